//! The lock record, as text: `docs/design.md`, "The lock file". A record without a `v` line is a *legacy* record, written by
//! the Python plugin `meltano-pipeline-serializer`, whose takeover writes the first line only.

mod entry;

use std::time::Duration;

pub use entry::{Entry, Lease, Outcome, parse_pid, random_token};

use crate::once::Run;
use entry::Fields;

/// The largest record, in bytes: more than [`crate::mode::MAX_SLOTS`] entries usually need, and read in no time.
pub const MAX_BYTES: usize = 64 * 1024;

/// A store may remove a released record after this time. The next number is then the time of a
/// clock. So this also bounds by how much a host's clock may be slow before numbers go back.
pub const KEPT: Duration = Duration::from_secs(35 * 24 * 60 * 60);

/// The `v=` of the record of a plain mutex.
const PLAIN: u32 = 1;

/// The `v=` of a lock's record that is not plain.
const LOCK: u32 = 2;

/// The newest `v=` that this program understands, that of a key that runs once: older programs take it for held.
const VERSION: u32 = 3;

/// What is written down about the holders of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    version: Option<u32>,
    entries: Vec<Entry>,
}

const NO_PID: &str = "its first line is not a process id";
const NO_TIME: &str = "its second line is not a time";
const TOO_LARGE: &str = "it is larger than 64 KiB";

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
        let entry = self.entries.iter().rfind(|entry| entry.released != Some(Outcome::Lost))?;
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

    /// For how long it is of use: without limit while something is held, or by a newer format, which may say more.
    pub fn keep(&self) -> Option<Duration> {
        let is_released = |entry: &Entry| entry.released.is_some() && entry.until.is_none();
        let is_over = !self.is_newer() && self.entries.iter().all(is_released);
        is_over.then(|| self.last_run().map_or(Some(KEPT), |(_, run)| run.keep()))?
    }

    /// Reads a record. Unknown keys and lines without `=` after a `v` line are ignored, so that newer programs may add some.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() > MAX_BYTES {
            return Err(TOO_LARGE);
        }
        let text = String::from_utf8_lossy(bytes);
        let lines: Vec<&str> = text.lines().collect();
        let version = Fields::of(&lines).number("v");
        if lines.first().is_none_or(|line| parse_pid(line).is_none()) {
            return Err(NO_PID);
        }
        let local_time = lines.get(1).copied().unwrap_or("");
        if version.is_none() && !(lines.iter().skip(2).all(|line| line.is_empty()) && is_local_time_or_empty(local_time)) {
            return Err(NO_TIME);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Entry, Lease, MAX_BYTES, NO_PID, NO_TIME, Outcome, Record, TOO_LARGE};
    use crate::mode::Mode;

    fn sample() -> Record {
        let text = "4121\n2026-11-22 08:00:00\nv=1\nhost=a\nmachine=m\nboot=b\npidns=7\nstart=8\npidfd=9\nuid=10\n\
                    since=2026-11-22T08:00:00Z\ntoken=t\nrun=r\ncommand=meltano run x\nkeeper=41 - 9\n";
        Record::parse(text.as_bytes()).expect("the sample is a record")
    }

    #[test]
    fn what_the_python_plugin_writes_is_a_legacy_record() {
        for text in ["4121\n2026-11-22 08:00:00\n", "4121\n2026-11-22 08:00:00", "4121"] {
            let record = Record::parse(text.as_bytes()).expect(text);
            assert!(record.is_legacy() && record.entries()[0].owner.pid.as_raw_pid() == 4121, "{text:?}");
        }
    }

    #[test]
    fn a_file_that_only_begins_like_a_lock_file_is_none() {
        for text in ["0", "-1", "+1", " 1", "2147483648", "100000000000000000000", "", "\n", "abc", "1x", "\0\0\0\0"] {
            assert_eq!(Record::parse(text.as_bytes()), Err(NO_PID), "{text:?}");
        }
        for text in ["42\nis the answer\n", "42\n2026-11-22 08:00:00\nand more\n", "1\n2\n3\n"] {
            assert_eq!(Record::parse(text.as_bytes()), Err(NO_TIME), "{text:?}");
        }
        assert_eq!(Record::parse(&[b'1'; MAX_BYTES + 1]), Err(TOO_LARGE));
    }

    #[test]
    fn an_older_program_understands_the_record_of_a_plain_mutex_and_takes_others_for_held() {
        let record = sample();
        let text = record.to_text();
        let new = ["mode", "slots", "until", "released", "previous", "lease", "fencing"];
        assert!(text.contains("\nv=1\n") && !new.iter().any(|key| text.contains(key)), "{text}");
        assert_eq!(Record::parse(text.as_bytes()), Ok(record));

        let plain = sample().entries()[0].clone();
        let lease = |expires| Some(Lease { duration: Duration::from_secs(30), expires, renewals: 3 });
        let others = [
            Entry { mode: Mode::Shared, ..plain.clone() },
            Entry { mode: Mode::Slots(std::num::NonZeroU32::new(3).expect("three")), ..plain.clone() },
            Entry { until: Some(7), ..plain.clone() },
            Entry { released: Some(Outcome::Succeeded), ..plain.clone() },
            Entry { released: Some(Outcome::Lost), lease: lease(Some(7)), ..plain.clone() },
            Entry { lease: lease(None), ..plain.clone() },
            Entry { fencing: Some(7), ..plain.clone() },
            Entry { previous: Some("t".to_owned()), ..plain.clone() },
        ];
        let records = others.iter().map(|entry| vec![entry.clone()]).chain([others.to_vec(), vec![plain.clone(), plain]]);
        for entries in records {
            let record = Record::of(entries.clone()).expect("a record");
            let text = record.to_text();
            assert_eq!(text.matches("\nv=2\n").count(), entries.len(), "{text}");
            assert_eq!(Record::parse(text.as_bytes()), Ok(record));
        }
    }

    #[test]
    fn a_record_never_outgrows_what_is_read() {
        let usual = sample().entries()[0].clone();
        let mut entry = usual.clone();
        let long = Some("é\n".repeat(5000));
        let place = &mut entry.owner.place;
        let fields = [&mut entry.command, &mut entry.run, &mut entry.token, &mut place.host, &mut place.machine, &mut place.boot];
        fields.into_iter().for_each(|field| field.clone_from(&long));
        assert!(Record::of(vec![entry.clone()]).is_some());
        assert_eq!(Record::of(vec![entry; 200]), None);
        assert!(Record::of(vec![usual; crate::mode::MAX_SLOTS as usize]).is_some());
        assert_eq!(Record::of(Vec::new()), None);
    }
}
