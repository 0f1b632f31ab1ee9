//! The two slots of a file, each with one state.
//!
//! ```text
//! offset 0        serializer-lock 1 NUMBER NONCE LENGTH HASH⏎ and the text
//! offset 128 KiB  the same, of another state
//! ```
//!
//! A state counts only if its hash is that of the rest. The state with the larger number is the
//! present one. `LENGTH` is `-` where nothing is stored. The nonce is random: a file that was
//! removed and made again never has the same state twice. It begins with `w` if the file had its
//! whole length (files of older programs have not), and with `wn` in the initial state.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::names::sha256;
use super::trouble;
use crate::record::MAX_BYTES;
use crate::store::failure::Failure;
use crate::store::file::publish::read_at;
use crate::sys::random::random_token;

/// The distance between the slots: twice what is needed.
const DISTANCE: u64 = 128 * 1024;

/// The length of a file with both slots.
const WHOLE: u64 = 2 * DISTANCE;

/// The beginning of each slot, before the number of the format.
pub const MAGIC: &str = "serializer-lock ";

const FORMAT: &str = "serializer-lock 1 ";

/// A header is shorter than this, in bytes.
const MAX_HEADER: usize = 256;

/// How many bytes are read first, nearly always all of them.
const FIRST_READ: usize = 4096;

/// A state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Larger than the numbers of all states before it.
    pub number: u64,
    nonce: String,
    /// The stored text.
    pub text: Option<String>,
}

impl Slot {
    /// A new state, or the one of a file to which nothing was written yet.
    pub fn new(number: u64, text: Option<&str>, is_initial: bool) -> io::Result<Self> {
        let nonce = format!("{}{}", if is_initial { "wn" } else { "w" }, random_token()?);
        Ok(Self { number, nonce, text: text.map(str::to_owned) })
    }

    /// Whether the file had its whole length when this was written, and not as its initial state.
    pub fn is_whole(&self) -> bool {
        self.nonce.starts_with('w') && self.identity().is_some()
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
        let length = words.next().filter(|length| *length != "-").map(|length| length.parse().ok());
        let text = match length {
            None => None,
            Some(length) => {
                Some(String::from_utf8(bytes[end + 1..].get(..length?)?.to_vec()).ok()?)
            }
        };
        let slot = Self { number, nonce, text };
        bytes.starts_with(slot.to_text().as_bytes()).then_some(slot)
    }
}

fn offset(place: usize) -> u64 {
    place as u64 * DISTANCE
}

/// The present state of a flocked file, and its place; or why there is none. One state is always
/// whole: a file is made with one, and the state before the present one stays until the next is
/// written.
pub fn present(file: &File) -> Result<(Slot, usize), Failure> {
    let length = file.metadata().map_err(trouble)?.len();
    let (mut present, mut is_damaged): (Option<(Slot, usize)>, _) = (None, false);
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
        is_damaged |= slot.nonce.starts_with('w') && length < WHOLE;
        if present.as_ref().is_none_or(|(other, _)| other.number < slot.number) {
            present = Some((slot, place));
        }
    }
    present.filter(|_| !is_damaged).ok_or_else(|| {
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::{MAGIC, Slot, is_begun, offset, present};
    use crate::record::MAX_BYTES;

    fn slot(number: u64, text: Option<&str>) -> Slot {
        Slot::new(number, text, false).expect("random numbers")
    }

    fn file() -> File {
        tempfile::tempfile().expect("a file")
    }

    /// The present state and its place, or why there is none.
    fn found(file: &File) -> Result<(Slot, usize), String> {
        present(file).map_err(|failure| failure.why)
    }

    #[track_caller]
    fn is_refused(file: &File, why: &str) {
        assert!(found(file).is_err_and(|found| found.contains(why)));
    }

    #[test]
    fn the_newer_of_two_states_is_the_present_one_and_can_be_written_again() {
        let file = file();
        is_refused(&file, "damaged");
        let newest = "x".repeat(MAX_BYTES);
        for (number, text, place) in
            [(7, Some("old"), 0), (8, None, 1), (9, Some(newest.as_str()), 0), (10, Some(""), 1)]
        {
            let slot = slot(number, text);
            slot.write(&file, place).expect("written");
            assert!(is_begun(&file));
            assert_eq!(found(&file), Ok((slot.clone(), place)));
            found(&file).expect("it is there").0.write(&file, place).expect("written");
            assert_eq!(found(&file), Ok((slot, place)));
        }
    }

    #[test]
    fn what_was_written_halfway_was_never_written() {
        let text = "0123456789".repeat(1000);
        let whole = slot(8, Some(&text)).to_text().into_bytes();
        for length in
            [0, 1, 5, MAGIC.len(), MAGIC.len() + 1, 30, 100, 200, 4095, 4096, 5000, whole.len() - 1]
        {
            for place in [0, 1] {
                let file = file();
                let before = slot(7, Some("before"));
                before.write(&file, 1 - place).expect("written");
                file.write_all_at(&whole[..length], offset(place)).expect("written");
                assert_eq!(found(&file), Ok((before.clone(), 1 - place)), "{length}");
                // Nor over a longer one, of which the rest is still there.
                slot(6, Some(&text.replace('9', "8"))).write(&file, place).expect("written");
                file.write_all_at(&whole[..length], offset(place)).expect("written");
                assert_eq!(found(&file), Ok((before, 1 - place)), "{length}");
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_off_anywhere_is_damaged_and_not_free() {
        let file = file();
        for (number, place) in [(0, 0), (7, 1), (8, 0), (9, 1)] {
            slot(number, Some("held").filter(|_| number > 0)).write(&file, place).expect("written");
            let mut whole = vec![0; usize::try_from(super::WHOLE).expect("it fits")];
            file.read_exact_at(&mut whole, 0).expect("readable");
            let second = whole.len() / 2;
            for length in
                [0, 1, 100, 500, second - 1, second, second + 1, second + 100, whole.len() - 1]
            {
                let copy = self::file();
                copy.write_all_at(&whole[..length], 0).expect("written");
                is_refused(&copy, "damaged");
            }
        }
    }

    #[test]
    fn what_others_have_written_is_left_alone() {
        let newer = format!("{MAGIC}2 x\n");
        let foreign = "not a lock that hosts share, or is damaged";
        for (text, why) in [
            ("4121\n2026-11-22 08:00:00\nv=1\n", foreign),
            ("hello", foreign),
            ("serialized", foreign),
            (&newer, "newer"),
        ] {
            let file = file();
            file.write_all_at(text.as_bytes(), 0).expect("written");
            assert!(why == "newer" || !is_begun(&file), "{text}");
            is_refused(&file, why);
        }
    }
}
