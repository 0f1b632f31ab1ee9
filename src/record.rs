//! The lock record, as text: `docs/design.md`, "The lock file". A record without a `v` line is a
//! *legacy* record, written by the Python plugin `meltano-pipeline-serializer`, which in a takeover
//! writes the first line only.

mod entry;
pub mod mode;
pub mod owner;
pub mod period;
pub mod run;

use std::time::Duration;

pub use entry::{Entry, Lease, Outcome};
use jiff::civil::DateTime;

use crate::record::run::Run;
use crate::sys::process::parse_pid;
use entry::Fields;

/// The largest record, in bytes: more than [`crate::record::mode::MAX_SLOTS`] entries usually need,
/// and read in no time.
pub const MAX_BYTES: usize = 64 * 1024;

/// A store may remove a released record after this time. The next number is then the time of a
/// clock. So this also bounds by how much a host's clock may be slow before numbers go back.
pub const KEPT: Duration = Duration::from_secs(35 * 24 * 60 * 60);

/// The `v=` of the record of a plain mutex.
const PLAIN: u32 = 1;

/// The `v=` of a lock's record that is not plain.
const LOCK: u32 = 2;

/// The newest `v=` that this program understands, that of a key that runs once: older programs take
/// it for held.
const VERSION: u32 = 3;

/// What is written down about the holders of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    version: Option<u32>,
    entries: Vec<Entry>,
}

impl Record {
    /// The record of these holders; `None` when there are none, or too many for one record.
    pub fn of(entries: Vec<Entry>) -> Option<Self> {
        let version = match entries.as_slice() {
            entries if entries.iter().any(|entry| entry.once.is_some()) => VERSION,
            [entry] if entry.is_plain() => PLAIN,
            _ => LOCK,
        };
        let record = Self { version: Some(version), entries };
        (!record.entries.is_empty() && record.to_text().len() <= MAX_BYTES).then_some(record)
    }

    /// The parts of all acquisitions; never empty.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of the last run of a key that runs once, and the run.
    pub fn last_run(&self) -> Option<(&Entry, &Run)> {
        let entry = self.entries.iter().rfind(|entry| !entry.is_mark())?;
        Some((entry, entry.once.as_ref()?))
    }

    /// Whether the Python plugin wrote this.
    pub fn is_legacy(&self) -> bool {
        self.version.is_none()
    }

    /// Whether a later version of this program wrote it, so that it may mean more than we read.
    pub fn is_newer(&self) -> bool {
        self.version > Some(VERSION)
    }

    /// For how long it is of use: without limit while something is held, or by a newer format,
    /// which may say more.
    pub fn keep(&self) -> Option<Duration> {
        let is_released = |entry: &Entry| entry.released.is_some() && entry.until.is_none();
        let is_over = !self.is_newer() && self.entries.iter().all(is_released);
        is_over.then(|| self.last_run().map_or(Some(KEPT), |(_, run)| run.keep()))?
    }

    /// Reads a record. Unknown keys and lines without `=` after a `v` line are ignored, so that
    /// newer programs may add some.
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
        let is_time = |line: &&str| DateTime::strptime("%Y-%m-%d %H:%M:%S", line).is_ok();
        let mut rest = lines.iter().enumerate().skip(1);
        let is_legacy = rest.all(|(at, line)| line.is_empty() || (at == 1 && is_time(line)));
        if version.is_none() && !is_legacy {
            return Err("its second line is not a time");
        }
        // A plain record has one entry, whatever its other lines are.
        let is_same = |_: &&str, next: &&str| version <= Some(PLAIN) || parse_pid(next).is_none();
        let entries = lines.chunk_by(is_same).filter_map(Entry::parse).collect();
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

/// How long an empty file counts as being written: the Python plugin leaves one between open and
/// write, and so does this program without hard links.
pub const BEING_WRITTEN: Duration = Duration::from_secs(2);
