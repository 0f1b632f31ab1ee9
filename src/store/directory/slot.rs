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

use sha2::{Digest, Sha256};

use crate::record::MAX_BYTES;
use crate::store::failure::Failure;
use crate::store::file::publish::read_at;
use crate::sys::random::random_token;

/// The distance between the slots: twice what is needed.
const DISTANCE: u64 = 128 * 1024;

/// The beginning of each slot, before the number of the format.
pub const MAGIC: &str = "serializer-lock ";

const FORMAT: &str = "serializer-lock 1 ";

/// A header is shorter than this, in bytes.
const MAX_HEADER: usize = 256;

/// The length of a file with both slots.
const WHOLE: u64 = 2 * DISTANCE;

/// How many bytes are read first, nearly always all of them.
const FIRST_READ: usize = 4096;

const REMOVE: &str = "once nothing uses the lock, remove the file";

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
    /// A new state. It is durable only once the file is synced.
    pub fn new(number: u64, text: Option<&str>) -> io::Result<Self> {
        Ok(Self { number, nonce: format!("w{}", random_token()?), text: text.map(str::to_owned) })
    }

    /// The state of a file to which nothing was written yet.
    pub fn initial(number: u64) -> io::Result<Self> {
        Ok(Self { number, nonce: format!("wn{}", random_token()?), text: None })
    }

    /// Whether nothing was written yet.
    pub fn is_initial(&self) -> bool {
        self.nonce.starts_with("wn")
    }

    /// Whether the file had its whole length when this was written.
    pub fn is_whole(&self) -> bool {
        self.nonce.starts_with('w')
    }

    /// Identifies the state, whatever its number.
    pub fn identity(&self) -> Vec<u8> {
        format!("{} {}", self.number, self.nonce).into_bytes()
    }

    fn to_text(&self) -> String {
        let (text, length) =
            self.text.as_ref().map_or(("", "-".to_owned()), |text| (text, text.len().to_string()));
        let head = format!("{FORMAT}{} {} {length}", self.number, self.nonce);
        let digest = Sha256::new().chain_update(&head).chain_update(text).finalize();
        let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{head} {hash}\n{text}")
    }

    /// Writes the state into a slot of a file, which gets its whole length.
    pub fn write(&self, file: &File, place: usize) -> io::Result<()> {
        if file.metadata()?.len() < WHOLE {
            file.set_len(WHOLE)?;
        }
        file.write_all_at(self.to_text().as_bytes(), offset(place))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().take(MAX_HEADER).position(|byte| *byte == b'\n')?;
        let mut words = std::str::from_utf8(&bytes[..end]).ok()?.strip_prefix(FORMAT)?.split(' ');
        let (number, nonce) = (words.next()?.parse().ok()?, words.next()?.to_owned());
        let text = match words.next()? {
            "-" => None,
            length => {
                let text = bytes[end + 1..].get(..length.parse().ok()?)?;
                Some(std::str::from_utf8(text).ok()?.to_owned())
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
pub fn present(file: &File) -> io::Result<Result<(Slot, usize), Failure>> {
    let length = file.metadata()?.len();
    let mut present: Option<(Slot, usize)> = None;
    let mut is_damaged = false;
    for place in [0, 1] {
        let bytes = read(file, place)?;
        let Some(slot) = Slot::parse(&bytes) else {
            if let Some(failure) = foreign(&bytes) {
                return Ok(Err(failure));
            }
            continue;
        };
        is_damaged |= slot.is_whole() && length < WHOLE;
        if present.as_ref().is_none_or(|(other, _)| other.number < slot.number) {
            present = Some((slot, place));
        }
    }
    Ok(present.filter(|_| !is_damaged).ok_or_else(|| {
        Failure::permanent("it is damaged: cut off, or neither of its two states is whole")
            .with_hint(format!(
                "another program or version has written to it, or the file system has lost data; \
                 {REMOVE}"
            ))
    }))
}

/// Whether a file looks like a register's, also while it is flocked and being written.
pub fn is_begun(file: &File) -> bool {
    let is_begun = |place| {
        read_at(file, MAGIC.len(), offset(place)).is_ok_and(|bytes| bytes == MAGIC.as_bytes())
    };
    is_begun(0) || is_begun(1)
}

/// All bytes that may belong to the state in a slot.
fn read(file: &File, place: usize) -> io::Result<Vec<u8>> {
    let mut bytes = read_at(file, FIRST_READ, offset(place))?;
    if bytes.len() == FIRST_READ && Slot::parse(&bytes).is_none() {
        bytes.extend(read_at(
            file,
            MAX_HEADER + MAX_BYTES - FIRST_READ,
            offset(place) + FIRST_READ as u64,
        )?);
    }
    Ok(bytes)
}

/// The failure for a slot that is neither empty nor a half-written state of this program.
fn foreign(bytes: &[u8]) -> Option<Failure> {
    // Bytes that were never written are zeros.
    let begun = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let is_like = |text: &str| begun.iter().zip(text.as_bytes()).all(|(one, other)| one == other);
    if !is_like(MAGIC) {
        let hint = format!(
            "the file is a lock file of one machine, or another program's; {REMOVE}, or choose \
             another name"
        );
        return Some(Failure::permanent("it is not a lock that hosts share").with_hint(hint));
    }
    (!is_like(FORMAT)).then(Failure::of_newer_version)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::{MAGIC, Slot, is_begun, offset, present};
    use crate::record::MAX_BYTES;

    fn slot(number: u64, text: Option<&str>) -> Slot {
        Slot::new(number, text).expect("random numbers")
    }

    fn file() -> File {
        tempfile::tempfile().expect("a file")
    }

    /// The present state and its place, or why there is none.
    fn found(file: &File) -> Result<(Slot, usize), String> {
        present(file).expect("readable").map_err(|failure| failure.why)
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
        let foreign = "not a lock that hosts share";
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
