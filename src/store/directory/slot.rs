//! The two slots of a file, each with one state.
//!
//! ```text
//! offset 0        serializer-lock 1 NUMBER NONCE LENGTH HASH⏎ and the text
//! offset 128 KiB  the same, of another state
//! ```
//!
//! A state counts only if its hash is right. The one with the larger number is the present one.
//! `LENGTH` is `-` where nothing is stored. The nonce is random: no file has the same state twice.
//! It begins with `w`, and with `wn` in the initial state.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::names::sha256;
use super::trouble;
use crate::record::MAX_BYTES;
use crate::store::failure::Failure;
use crate::store::file::publish::read_at;
use crate::sys::random::random_token;

const DISTANCE: u64 = 128 * 1024;
const WHOLE: u64 = 2 * DISTANCE;

/// The beginning of each slot, before the number of the format.
pub const MAGIC: &str = "serializer-lock ";
const FORMAT: &str = "serializer-lock 1 ";
const MAX_HEADER: usize = 256;

/// How many bytes are read first, nearly always all of them.
const FIRST_READ: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Larger than the numbers of all states before it.
    pub number: u64,
    nonce: String,
    pub text: Option<String>,
}

impl Slot {
    /// A new state, or the one of a file to which nothing was written yet.
    pub fn new(number: u64, text: Option<&str>, is_initial: bool) -> io::Result<Self> {
        let nonce = format!("{}{}", if is_initial { "wn" } else { "w" }, random_token()?);
        Ok(Self { number, nonce, text: text.map(str::to_owned) })
    }

    /// Identifies the state, whatever its number; `None` for an initial state.
    pub fn identity(&self) -> Option<Vec<u8>> {
        let is_initial = self.nonce.starts_with("wn");
        (!is_initial).then(|| format!("{} {}", self.number, self.nonce).into_bytes())
    }

    fn to_text(&self) -> String {
        let text = self.text.as_deref().unwrap_or("");
        let length = self.text.as_ref().map_or("-".to_owned(), |text| text.len().to_string());
        let head = format!("{FORMAT}{} {} {length}", self.number, self.nonce);
        format!("{head} {}\n{text}", sha256(format!("{head}{text}").as_bytes()))
    }

    /// Writes the state into a slot of a file, which gets its whole length, and syncs it.
    pub fn write(&self, file: &File, place: usize) -> io::Result<()> {
        if file.metadata()?.len() < WHOLE {
            file.set_len(WHOLE)?;
        }
        file.write_all_at(self.to_text().as_bytes(), offset(place))?;
        file.sync_data()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().take(MAX_HEADER).position(|byte| *byte == b'\n')?;
        let mut words = std::str::from_utf8(&bytes[..end]).ok()?.strip_prefix(FORMAT)?.split(' ');
        let (number, nonce) = (words.next()?.parse().ok()?, words.next()?.to_owned());
        let text = match words.next()? {
            "-" => None,
            length => {
                let text = bytes[end + 1..].get(..length.parse().ok()?)?;
                Some(String::from_utf8(text.to_vec()).ok()?)
            }
        };
        let slot = Self { number, nonce, text };
        bytes.starts_with(slot.to_text().as_bytes()).then_some(slot)
    }
}

fn offset(place: usize) -> u64 {
    place as u64 * DISTANCE
}

/// The present state of a flocked file, and its place. One state is always whole: the state before
/// the present one stays until the next is written.
pub fn present(file: &File) -> Result<(Slot, usize), Failure> {
    let length = file.metadata().map_err(trouble)?.len();
    let mut present: Option<(Slot, usize)> = None;
    for place in [0, 1] {
        let bytes = read(file, place).map_err(trouble)?;
        let Some(slot) = Slot::parse(&bytes) else {
            // Bytes that were never written are zeros: a state may be half written.
            let mut begun = bytes.iter().zip(FORMAT.as_bytes()).take_while(|(byte, _)| **byte != 0);
            if bytes.starts_with(MAGIC.as_bytes()) && !begun.all(|(one, other)| one == other) {
                return Err(Failure::of_newer_version());
            }
            continue;
        };
        if present.as_ref().is_none_or(|(other, _)| other.number < slot.number) {
            present = Some((slot, place));
        }
    }
    present.filter(|_| length >= WHOLE).ok_or_else(|| {
        let why = "it is not a lock that hosts share, or is damaged";
        let hint = "it is a lock file of one machine or another program's, or was cut off; once \
                    nothing uses the lock, remove the file, or choose another name";
        Failure::refused(why, hint)
    })
}

/// Whether a file looks like a register's, also while it is flocked and being written.
pub fn is_begun(file: &File) -> bool {
    let is_magic = |bytes: Vec<u8>| bytes == MAGIC.as_bytes();
    [0, 1].into_iter().any(|place| read_at(file, MAGIC.len(), offset(place)).is_ok_and(is_magic))
}

/// All bytes that may belong to the state in a slot.
fn read(file: &File, place: usize) -> io::Result<Vec<u8>> {
    let mut bytes = read_at(file, FIRST_READ, offset(place))?;
    if bytes.len() == FIRST_READ && Slot::parse(&bytes).is_none() {
        let more = MAX_HEADER + MAX_BYTES - FIRST_READ;
        bytes.extend(read_at(file, more, offset(place) + FIRST_READ as u64)?);
    }
    Ok(bytes)
}
