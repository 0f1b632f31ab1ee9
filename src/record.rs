//! The lock record: what is written down about a lock, and how it reads as text.
//!
//! ```text
//! line 1   PID of the owner, decimal
//! line 2   local time, YYYY-MM-DD HH:MM:SS
//! line 3+  key=value
//! ```
//!
//! Lines 1 and 2 are what the Python plugin `meltano-pipeline-serializer` writes (its takeover writes line 1 only);
//! a record without a `v` line is such a *legacy* record.
//!
//! Where several hold the lock (slots, sharers), each has such an entry, one behind the other; that and whatever else a
//! program that knows plain mutexes only must not overlook is `v=2`, which such a program takes for held.

use std::fmt::Write as _;
use std::num::NonZeroU32;

use jiff::Timestamp;
use rustix::process::Pid;

use crate::local_time::local_time;
use crate::mode::Mode;
use crate::owner::{Instance, Owner, Place};
use crate::printable;

/// The largest record, in bytes: more than [`crate::mode::MAX_SLOTS`] entries usually need, and read in no time.
pub const MAX_BYTES: usize = 64 * 1024;

/// The `v=` of the record of a plain mutex.
const PLAIN: u32 = 1;

/// The newest `v=` that this program understands.
pub const VERSION: u32 = 2;

/// The evidence that somebody holds a mutex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    version: Option<u32>,
    entries: Vec<Entry>,
}

/// One process's part in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Who holds the lock.
    pub owner: Owner,
    /// Together with whom.
    pub mode: Mode,
    /// When it was acquired, if the record says so.
    pub since: Option<Timestamp>,
    /// Random, different for each acquisition: two entries are of the same acquisition if and only if this is equal.
    pub token: Option<String>,
    /// The pipeline run that the owner belongs to (`MELTANO_PARENT_CONTEXT_UUID`).
    pub run: Option<String>,
    /// The owner's command line, as people may read it.
    pub command: Option<String>,
    /// Another process of the owner's place, which started the owner and will release the lock: held as long as it lives, too.
    pub keeper: Option<(Pid, Instance)>,
    /// Held at least until then, in milliseconds since boot, whatever becomes of the owner.
    pub until: Option<u64>,
    /// The owner has released it; what is left stands for `until`, or tells how it went.
    pub released: Option<Outcome>,
    /// How the acquisition before this one ended, for those who waited for that.
    pub previous: Option<(String, Outcome)>,
}

/// How an acquisition ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command that ran under it succeeded.
    Succeeded,
    /// Nobody said that it did.
    Unknown,
}

/// Why some bytes are no lock record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotARecord {
    /// The first line is not a decimal number from 1 to 2³¹−1.
    #[error("its first line is no process id")]
    NoPid,
    /// The first line is a number, but what follows is neither a time nor a record.
    #[error("its second line is no time")]
    NoTime,
    /// Larger than any record.
    #[error("it is larger than {} KiB", MAX_BYTES / 1024)]
    TooLarge,
}

impl Record {
    /// The record of these holders; `None` when there are none, or too many for one record.
    pub fn of(entries: Vec<Entry>) -> Option<Self> {
        let is_plain = matches!(entries.as_slice(), [entry] if entry.is_plain());
        let record = Self { version: Some(if is_plain { PLAIN } else { VERSION }), entries };
        (!record.entries.is_empty() && record.to_text().len() <= MAX_BYTES).then_some(record)
    }

    /// Everybody's part; never empty.
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

    /// Whether the Python plugin could take it for its own kind of lock.
    pub fn is_plain(&self) -> bool {
        self.version <= Some(PLAIN)
    }

    /// Reads a record. Unknown keys and lines without `=` after a `v` line are ignored, so that newer programs may add some.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotARecord> {
        if bytes.len() > MAX_BYTES {
            return Err(NotARecord::TooLarge);
        }
        let text = String::from_utf8_lossy(bytes);
        let lines: Vec<&str> = text.lines().collect();
        let version = Fields::of(&lines).number("v");
        if lines.first().is_none_or(|line| parse_pid(line).is_none()) {
            return Err(NotARecord::NoPid);
        }
        let local_time = lines.get(1).copied().unwrap_or("");
        if version.is_none() && !(lines.iter().skip(2).all(|line| line.is_empty()) && is_local_time_or_empty(local_time)) {
            return Err(NotARecord::NoTime);
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

impl Entry {
    /// The entry of a new acquisition of a plain mutex.
    ///
    /// # Errors
    /// When the operating system has no random numbers.
    pub fn new(owner: Owner, run: Option<String>, command: Option<String>) -> std::io::Result<Self> {
        let (since, token) = (Some(Timestamp::now()), Some(random_token()?));
        Ok(Self {
            owner,
            mode: Mode::EXCLUSIVE,
            since,
            token,
            run,
            command,
            keeper: None,
            until: None,
            released: None,
            previous: None,
        })
    }

    /// Whether whoever only knows plain mutexes would understand it.
    fn is_plain(&self) -> bool {
        self.mode == Mode::EXCLUSIVE && self.until.is_none() && self.released.is_none() && self.previous.is_none()
    }

    fn parse(lines: &[&str]) -> Option<Self> {
        let fields = Fields::of(lines);
        let mode = match fields.text("mode").as_deref() {
            Some("shared") => Mode::Shared,
            _ => Mode::Slots(fields.number("slots").unwrap_or(NonZeroU32::MIN)),
        };
        Some(Self {
            owner: Owner {
                pid: parse_pid(lines.first()?)?,
                uid: fields.number("uid"),
                place: Place {
                    host: fields.text("host"),
                    machine: fields.text("machine"),
                    boot: fields.text("boot"),
                    pid_namespace: fields.number("pidns"),
                },
                instance: Instance { start: fields.number("start"), pidfd: fields.number("pidfd") },
            },
            mode,
            since: fields.text("since").and_then(|time| time.parse().ok()),
            token: fields.text("token"),
            run: fields.text("run"),
            command: fields.text("command"),
            keeper: fields.text("keeper").and_then(|text| parse_process(&text)),
            until: fields.number("until"),
            released: fields.text("released").map(|word| Outcome::parse(&word)),
            previous: fields.text("previous").and_then(|text| {
                let (token, word) = text.split_once(' ')?;
                Some((token.to_owned(), Outcome::parse(word)))
            }),
        })
    }

    fn write(&self, text: &mut String, version: Option<u32>) {
        let _ = writeln!(text, "{}", self.owner.pid);
        if let Some(since) = self.since {
            text.push_str(&local_time(since).to_string());
        }
        text.push('\n');
        let Owner { uid, place, instance, .. } = &self.owner;
        push(text, "v", version);
        match self.mode {
            Mode::EXCLUSIVE => {}
            Mode::Slots(slots) => push(text, "slots", Some(slots)),
            Mode::Shared => push(text, "mode", Some("shared")),
        }
        push(text, "host", place.host.as_deref());
        push(text, "machine", place.machine.as_deref());
        push(text, "boot", place.boot.as_deref());
        push(text, "pidns", place.pid_namespace);
        push(text, "start", instance.start);
        push(text, "pidfd", instance.pidfd);
        push(text, "uid", *uid);
        push(text, "since", self.since);
        push(text, "token", self.token.as_deref());
        push(text, "run", self.run.as_deref());
        push(text, "command", self.command.as_deref());
        push(text, "keeper", self.keeper.map(|(pid, instance)| process_text(pid, instance)));
        push(text, "until", self.until);
        push(text, "released", self.released.map(Outcome::word));
        push(text, "previous", self.previous.as_ref().map(|(token, outcome)| format!("{token} {}", outcome.word())));
    }
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Unknown => "unknown",
        }
    }

    fn parse(word: &str) -> Self {
        if word == Self::Succeeded.word() { Self::Succeeded } else { Self::Unknown }
    }
}

fn push(text: &mut String, key: &str, value: Option<impl ToString>) {
    if let Some(value) = value {
        let value = printable::field(&value.to_string());
        let _ = writeln!(text, "{key}={value}");
    }
}

/// PID, start time and pidfd; `-` stands for what is not known.
fn process_text(pid: Pid, instance: Instance) -> String {
    let or_dash = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    format!("{pid} {} {}", or_dash(instance.start), or_dash(instance.pidfd))
}

fn parse_process(text: &str) -> Option<(Pid, Instance)> {
    let mut words = text.split(' ');
    let pid = parse_pid(words.next()?)?;
    let mut number = || words.next().and_then(|word| word.parse().ok());
    Some((pid, Instance { start: number(), pidfd: number() }))
}

/// 128 random bits in hexadecimal.
///
/// # Errors
/// When the operating system has none.
pub fn random_token() -> rustix::io::Result<String> {
    let mut bytes = [0_u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// A decimal PID from 1 to 2³¹−1, as the kernel knows them; no sign, no white space.
pub fn parse_pid(text: &str) -> Option<Pid> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|pid| *pid > 0).and_then(Pid::from_raw)
}

fn is_local_time_or_empty(line: &str) -> bool {
    line.is_empty() || jiff::civil::DateTime::strptime("%Y-%m-%d %H:%M:%S", line).is_ok()
}

struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    /// The `key=value` lines behind the first two.
    fn of(lines: &[&'a str]) -> Self {
        Self(lines.iter().skip(2).filter_map(|line| line.split_once('=')).collect())
    }

    fn text(&self, key: &str) -> Option<String> {
        let (_, value) = self.0.iter().find(|(name, _)| *name == key)?;
        Some(printable::field(value)).filter(|value| !value.is_empty())
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.text(key)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, MAX_BYTES, Mode, NotARecord, Outcome, Record};

    fn sample() -> Record {
        let text = "4121\n2026-11-22 08:00:00\nv=1\nhost=a\nmachine=m\nboot=b\npidns=7\nstart=8\npidfd=9\nuid=10\n\
                    since=2026-11-22T08:00:00Z\ntoken=t\nrun=r\ncommand=meltano run x\nkeeper=41 - 9\n";
        Record::parse(text.as_bytes()).expect("the sample is a record")
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let record = sample();
        assert_eq!(Record::parse(record.to_text().as_bytes()), Ok(record));
    }

    #[test]
    fn what_the_python_plugin_writes_is_a_legacy_record() {
        for text in ["4121\n2026-11-22 08:00:00\n", "4121\n2026-11-22 08:00:00", "4121"] {
            let record = Record::parse(text.as_bytes()).expect(text);
            assert!(record.is_legacy(), "{text:?}");
            assert_eq!(record.entries()[0].owner.pid.as_raw_pid(), 4121);
        }
    }

    #[test]
    fn a_file_that_only_begins_like_a_lock_file_is_none() {
        for text in ["0", "-1", "+1", " 1", "2147483648", "100000000000000000000", "", "\n", "abc", "1x", "\0\0\0\0"] {
            assert_eq!(Record::parse(text.as_bytes()), Err(NotARecord::NoPid), "{text:?}");
        }
        for text in ["42\nis the answer\n", "42\n2026-11-22 08:00:00\nand more\n", "1\n2\n3\n"] {
            assert_eq!(Record::parse(text.as_bytes()), Err(NotARecord::NoTime), "{text:?}");
        }
        assert_eq!(Record::parse(&[b'1'; MAX_BYTES + 1]), Err(NotARecord::TooLarge));
    }

    #[test]
    fn the_record_of_a_plain_mutex_is_what_it_was_before_there_were_others() {
        let text = sample().to_text();
        assert!(text.contains("\nv=1\n"), "{text}");
        for key in ["mode", "slots", "until", "released", "previous"] {
            assert!(!text.contains(key), "{text}");
        }
    }

    #[test]
    fn whatever_else_a_record_says_an_older_program_takes_it_for_held() {
        let plain = sample().entries()[0].clone();
        let others = [
            Entry { mode: Mode::Shared, ..plain.clone() },
            Entry { mode: Mode::Slots(std::num::NonZeroU32::new(3).expect("three")), ..plain.clone() },
            Entry { until: Some(7), ..plain.clone() },
            Entry { released: Some(Outcome::Succeeded), ..plain.clone() },
            Entry { previous: Some(("t".to_owned(), Outcome::Unknown)), ..plain.clone() },
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
        let long = Some("é\n".repeat(5000));
        let mut entry = sample().entries()[0].clone();
        let usual = entry.clone();
        entry.command = long.clone();
        entry.run = long.clone();
        entry.token = long.clone();
        entry.owner.place.host = long.clone();
        entry.owner.place.machine = long.clone();
        entry.owner.place.boot = long;
        assert!(Record::of(vec![entry.clone()]).is_some());
        assert_eq!(Record::of(vec![entry; 200]), None);
        assert!(Record::of(vec![usual; crate::mode::MAX_SLOTS as usize]).is_some());
        assert_eq!(Record::of(Vec::new()), None);
    }
}
