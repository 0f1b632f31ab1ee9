//! The lock record, as text: `docs/design.md`, "The lock file". A record without a `v` line is a *legacy* record, written by
//! the Python plugin `meltano-pipeline-serializer`, whose takeover writes the first line only.

mod entry;

pub use entry::{Entry, Lease, Outcome, parse_pid, random_token};

use entry::Fields;

/// The largest record, in bytes: more than [`crate::mode::MAX_SLOTS`] entries usually need, and read in no time.
pub const MAX_BYTES: usize = 64 * 1024;

/// The `v=` of the record of a plain mutex.
const PLAIN: u32 = 1;

/// The newest `v=` that this program understands.
const VERSION: u32 = 2;

/// What is written down about the holders of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    version: Option<u32>,
    entries: Vec<Entry>,
}

impl Record {
    /// The record of these holders; `None` when there are none, or too many for one record.
    pub fn of(entries: Vec<Entry>) -> Option<Self> {
        let is_plain = matches!(entries.as_slice(), [entry] if entry.is_plain());
        let record = Self { version: Some(if is_plain { PLAIN } else { VERSION }), entries };
        (!record.entries.is_empty() && record.to_text().len() <= MAX_BYTES).then_some(record)
    }

    /// The parts of all acquisitions; never empty.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whether the Python plugin wrote this.
    pub fn is_legacy(&self) -> bool {
        self.version.is_none()
    }

    /// Whether a later version of this program wrote it, so that it may mean more than we read.
    pub fn is_newer(&self) -> bool {
        self.version > Some(VERSION)
    }

    /// Reads a record. Unknown keys and lines without `=` after a `v` line are ignored, so that newer programs may add some.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() > MAX_BYTES {
            return Err("it is larger than 64 KiB");
        }
        let text = String::from_utf8_lossy(bytes);
        let lines: Vec<&str> = text.lines().collect();
        let version = Fields::of(&lines).number("v");
        if lines.first().is_none_or(|line| parse_pid(line).is_none()) {
            return Err("its first line is not a process id");
        }
        let local_time = lines.get(1).copied().unwrap_or("");
        if version.is_none() && !(lines.iter().skip(2).all(|line| line.is_empty()) && is_local_time_or_empty(local_time)) {
            return Err("its second line is not a time");
        }
        // A plain record has one entry, whatever its other lines are.
        let begins_entry = |line: usize| line == 0 || (version > Some(PLAIN) && parse_pid(lines[line]).is_some());
        let mut starts: Vec<usize> = (0..lines.len()).filter(|line| begins_entry(*line)).collect();
        starts.push(lines.len());
        let entries = starts.windows(2).filter_map(|range| Entry::parse(&lines[range[0]..range[1]])).collect();
        Ok(Self { version, entries })
    }

    /// The record as text.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for entry in &self.entries {
            entry.write(&mut text, self.version);
        }
        text
    }
}

fn is_local_time_or_empty(line: &str) -> bool {
    line.is_empty() || jiff::civil::DateTime::strptime("%Y-%m-%d %H:%M:%S", line).is_ok()
}
