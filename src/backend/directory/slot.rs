//! The two slots of a file, each with one state.
//!
//! ```text
//! offset 0        serializer-lock 1 NUMBER NONCE LENGTH HASH⏎ and the text
//! offset 128 KiB  the same, of another state
//! ```
//!
//! A state counts only if its hash is that of the rest: a half-written state does not count. The
//! state with the larger number is the present one. `LENGTH` is `-` where nothing is stored. The
//! nonce is random: a file that was removed and made again never has the same state twice. A nonce
//! that begins with `w` says that the file had its whole length; this detects a file that was
//! truncated since.
//!
//! The initial state, whose nonce begins with `wn`, is in the file before the file has its name.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::record::{MAX_BYTES, random_token};

/// The distance between the slots: twice what is needed.
const DISTANCE: u64 = 128 * 1024;

/// The beginning of each slot, before the number of the format.
pub const MAGIC: &str = "serializer-lock ";

const FORMAT: &str = "1";

/// A header is shorter than this, in bytes.
const MAX_HEADER: usize = 256;

/// The length of a file with both slots.
const WHOLE: u64 = 2 * DISTANCE;

/// A nonce of a file with its whole length begins with this.
const IS_WHOLE: char = 'w';

/// Next in the nonce of an initial state.
const IS_INITIAL: char = 'n';

/// How long an empty file counts as being made, by the server's clock or a host's: an older program
/// leaves a new file empty for a moment.
const BEING_MADE: Duration = Duration::from_secs(10);

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

/// Why the state in a file cannot be read.
#[derive(Debug)]
pub enum Unreadable {
    /// An error of the operating system.
    Io(io::Error),
    /// A later format.
    Newer,
    /// Not written by this program.
    Foreign,
    /// Truncated, or without a whole state: a crash never leaves that.
    Torn,
    /// Empty, and just made by an older program.
    Young,
}

impl Slot {
    /// A state with a new nonce. Fails where there are no random numbers.
    pub fn new(number: u64, text: Option<String>) -> rustix::io::Result<Self> {
        Ok(Self { number, nonce: format!("{IS_WHOLE}{}", random_token()?), text })
    }

    /// The state in which a file is made. Fails where there are no random numbers.
    pub fn initial(number: u64) -> rustix::io::Result<Self> {
        Ok(Self { number, nonce: format!("{IS_WHOLE}{IS_INITIAL}{}", random_token()?), text: None })
    }

    /// Whether this state only says that the register was never written.
    pub fn is_initial(&self) -> bool {
        self.nonce.strip_prefix(IS_WHOLE).is_some_and(|rest| rest.starts_with(IS_INITIAL))
    }

    /// Whether this state says that its file had the whole length.
    pub fn is_whole(&self) -> bool {
        self.nonce.starts_with(IS_WHOLE)
    }

    /// An identity that differs for each state.
    pub fn identity(&self) -> Vec<u8> {
        format!("{} {}", self.number, self.nonce).into_bytes()
    }

    fn head(&self) -> String {
        let length = self.text.as_ref().map_or_else(|| "-".to_owned(), |text| text.len().to_string());
        format!("{MAGIC}{FORMAT} {} {} {length}", self.number, self.nonce)
    }

    fn hash(&self) -> String {
        let digest = Sha256::new().chain_update(self.head()).chain_update(self.text.as_deref().unwrap_or("")).finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Writes the state into a slot. It is durable only once the file is synced.
    pub fn write(&self, file: &File, place: usize) -> io::Result<()> {
        let whole = format!("{} {}\n{}", self.head(), self.hash(), self.text.as_deref().unwrap_or(""));
        if file.metadata()?.len() < WHOLE {
            file.set_len(WHOLE)?;
        }
        file.write_all_at(whole.as_bytes(), offset(place))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (header, rest) = split(bytes)?;
        let mut words = header.strip_prefix(MAGIC)?.strip_prefix(FORMAT)?.strip_prefix(' ')?.split(' ');
        let (number, nonce) = (words.next()?.parse().ok()?, words.next()?.to_owned());
        let text = match words.next()? {
            "-" => None,
            length => Some(std::str::from_utf8(rest.get(..length.parse().ok()?)?).ok()?.to_owned()),
        };
        let slot = Self { number, nonce, text };
        (words.next()? == slot.hash() && words.next().is_none()).then_some(slot)
    }
}

fn offset(place: usize) -> u64 {
    place as u64 * DISTANCE
}

fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().take(MAX_HEADER).position(|byte| *byte == b'\n')?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

/// The present state of a flocked file, and its place. One state is always whole: a file is made
/// with one, and the state before the present one stays until the next is written.
pub fn present(file: &File) -> Result<(Slot, usize), Unreadable> {
    let mut present: Option<(Slot, usize)> = None;
    let metadata = file.metadata().map_err(Unreadable::Io)?;
    let mut is_cut_off = false;
    for place in [0, 1] {
        let bytes = read(file, place).map_err(Unreadable::Io)?;
        let Some(slot) = Slot::parse(&bytes) else {
            check_torn(&bytes)?;
            continue;
        };
        is_cut_off |= slot.is_whole() && metadata.len() < WHOLE;
        if present.as_ref().is_none_or(|(other, _)| other.number < slot.number) {
            present = Some((slot, place));
        }
    }
    // The server's clock may be ahead of this host's.
    let age = metadata.modified().map(|made| made.elapsed().unwrap_or_else(|ahead| ahead.duration()));
    match present {
        Some(present) if !is_cut_off => Ok(present),
        None if metadata.len() == 0 && age.is_ok_and(|age| age < BEING_MADE) => Err(Unreadable::Young),
        _ => Err(Unreadable::Torn),
    }
}

/// Whether a file looks like a register's, also while it is flocked and being written.
pub fn is_begun(file: &File) -> bool {
    [0, 1].into_iter().any(|place| read_at(file, MAGIC.len(), offset(place)).is_ok_and(|bytes| bytes == MAGIC.as_bytes()))
}

/// All bytes that may belong to the state in a slot.
fn read(file: &File, place: usize) -> io::Result<Vec<u8>> {
    let mut bytes = read_at(file, FIRST_READ, offset(place))?;
    let is_longer = bytes.len() == FIRST_READ && Slot::parse(&bytes).is_none();
    if is_longer {
        bytes.extend(read_at(file, MAX_HEADER + MAX_BYTES - FIRST_READ, offset(place) + FIRST_READ as u64)?);
    }
    Ok(bytes)
}

fn read_at(file: &File, length: usize, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    // Bounded by the buffer: each read fills some of it, or is the last one.
    while filled < length {
        match file.read_at(&mut bytes[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Checks that a slot without a whole state is this program's: empty, or half-written.
fn check_torn(bytes: &[u8]) -> Result<(), Unreadable> {
    // Bytes that were never written are zeros.
    let begun = bytes.iter().position(|byte| *byte == 0).map_or(bytes, |end| &bytes[..end]);
    let expected = MAGIC.as_bytes();
    let length = begun.len().min(expected.len());
    if begun[..length] != expected[..length] {
        return Err(Unreadable::Foreign);
    }
    let format = &begun[length..];
    let is_ours = format.is_empty() || format.starts_with(FORMAT.as_bytes()) && format.get(1).is_none_or(|byte| *byte == b' ');
    if is_ours { Ok(()) } else { Err(Unreadable::Newer) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::{MAGIC, Slot, Unreadable, is_begun, offset, present};
    use crate::record::MAX_BYTES;

    fn slot(number: u64, text: Option<&str>) -> Slot {
        Slot::new(number, text.map(str::to_owned)).expect("random numbers")
    }

    fn file() -> File {
        tempfile::tempfile().expect("a file")
    }

    fn present_in(file: &File) -> (Slot, usize) {
        present(file).expect("it can be read")
    }

    #[test]
    fn the_newer_of_two_states_is_the_present_one() {
        let file = file();
        assert!(matches!(present(&file), Err(Unreadable::Young)) && !is_begun(&file));
        let (old, new) = (slot(7, Some("old")), slot(8, None));
        old.write(&file, 0).expect("written");
        assert_eq!(present_in(&file), (old.clone(), 0));
        new.write(&file, 1).expect("written");
        assert_eq!(present_in(&file), (new, 1));
        let newest = slot(9, Some(&"x".repeat(MAX_BYTES)));
        newest.write(&file, 0).expect("written");
        assert!(is_begun(&file));
        assert_eq!(present_in(&file), (newest, 0));
    }

    #[test]
    fn what_was_written_halfway_was_never_written() {
        let text = "0123456789".repeat(1000);
        let whole = tempfile::NamedTempFile::new().expect("a file");
        slot(8, Some(&text)).write(whole.as_file(), 0).expect("written");
        let whole = std::fs::read(whole.path()).expect("readable");
        let end = whole.iter().rposition(|byte| *byte != 0).expect("a state") + 1;
        let whole = &whole[..end];
        for length in [0, 1, 5, MAGIC.len(), MAGIC.len() + 1, 30, 100, 200, 4095, 4096, 5000, whole.len() - 1] {
            for place in [0, 1] {
                let file = file();
                let before = slot(7, Some("before"));
                before.write(&file, 1 - place).expect("written");
                file.write_all_at(&whole[..length], offset(place)).expect("written");
                assert_eq!(present_in(&file), (before, 1 - place), "{length}");
                // Nor over a longer one, of which the rest is still there.
                slot(6, Some(&text.replace('9', "8"))).write(&file, place).expect("written");
                file.write_all_at(&whole[..length], offset(place)).expect("written");
                assert_eq!(present_in(&file).0.number, 7, "{length}");
            }
        }
    }

    #[test]
    fn a_state_that_is_written_again_is_the_same() {
        let file = file();
        for text in [None, Some(""), Some("some\ntext")] {
            let mut before = vec![0; 1000];
            slot(7, text).write(&file, 1).expect("written");
            let length = file.read_at(&mut before, offset(1)).expect("readable");
            present_in(&file).0.write(&file, 1).expect("written");
            let mut after = vec![0; 1000];
            assert_eq!(file.read_at(&mut after, offset(1)).expect("readable"), length);
            assert_eq!(before, after);
        }
    }

    #[test]
    fn two_damaged_states_are_never_taken_for_no_state() {
        for length in [1, 30, 200] {
            let file = file();
            slot(7, Some(&"x".repeat(500))).write(&file, 0).expect("written");
            slot(8, Some(&"y".repeat(500))).write(&file, 1).expect("written");
            for place in [0, 1] {
                assert!(present(&file).is_ok(), "{length} {place}");
                file.write_all_at(&vec![0; 500], offset(place) + length).expect("written");
            }
            assert!(matches!(present(&file), Err(Unreadable::Torn)), "{length}");
        }
    }

    #[test]
    fn a_file_that_is_cut_off_anywhere_is_damaged_and_not_free() {
        let file = file();
        for (number, place) in [(0, 0), (7, 1), (8, 0), (9, 1)] {
            slot(number, Some("held").filter(|_| number > 0)).write(&file, place).expect("written");
            let whole = file.metadata().expect("its length").len();
            for length in [0, 1, 100, 500, offset(1) - 1, offset(1), offset(1) + 1, offset(1) + 100, whole - 1] {
                let copy = self::file();
                let mut bytes = vec![0; usize::try_from(length).expect("it fits")];
                file.read_exact_at(&mut bytes, 0).expect("readable");
                copy.write_all_at(&bytes, 0).expect("written");
                copy.set_modified(std::time::UNIX_EPOCH).expect("its time");
                assert!(matches!(present(&copy), Err(Unreadable::Torn)), "{number} {length}");
            }
        }
    }

    #[test]
    fn what_others_have_written_is_left_alone() {
        for text in ["4121\n2026-11-22 08:00:00\nv=1\n", "hello", "serialized"] {
            let file = file();
            file.write_all_at(text.as_bytes(), 0).expect("written");
            assert!(!is_begun(&file), "{text}");
            assert!(matches!(present(&file), Err(Unreadable::Foreign)), "{text}");
        }
        let file = file();
        file.write_all_at(format!("{MAGIC}2 x\n").as_bytes(), 0).expect("written");
        assert!(matches!(present(&file), Err(Unreadable::Newer)));
    }
}
