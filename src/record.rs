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

use std::fmt::Write as _;

use jiff::Timestamp;
use rustix::process::Pid;

use crate::local_time::local_time;
use crate::owner::{Instance, Owner, Place};
use crate::printable;

/// The largest record, in bytes: more than all fields together can have, and little enough to read without care.
pub const MAX_BYTES: usize = 4096;

/// The newest `v=` that this program understands.
pub const VERSION: u32 = 1;

/// The evidence that somebody holds a mutex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The `v=` line; `None` for a legacy record.
    pub version: Option<u32>,
    /// Who holds the lock.
    pub owner: Owner,
    /// When it was acquired, if the record says so.
    pub since: Option<Timestamp>,
    /// Random, different for each acquisition: two records are the same acquisition if and only if this is equal.
    pub token: Option<String>,
    /// The pipeline run that the owner belongs to (`MELTANO_PARENT_CONTEXT_UUID`).
    pub run: Option<String>,
    /// The owner's command line, as people may read it.
    pub command: Option<String>,
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
    #[error("it is larger than {MAX_BYTES} bytes")]
    TooLarge,
}

impl Record {
    /// Whether the Python plugin wrote this.
    pub fn is_legacy(&self) -> bool {
        self.version.is_none()
    }

    /// Reads a record. Unknown keys and lines without `=` after a `v` line are ignored, so that newer programs may add some.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotARecord> {
        if bytes.len() > MAX_BYTES {
            return Err(NotARecord::TooLarge);
        }
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.lines();
        let pid = parse_pid(lines.next().unwrap_or("")).ok_or(NotARecord::NoPid)?;
        let local_time = lines.next().unwrap_or("");
        let fields = Fields(lines.filter_map(|line| line.split_once('=')).collect());

        let version = fields.number("v");
        if version.is_none() && !(text.lines().skip(2).all(str::is_empty) && is_local_time_or_empty(local_time)) {
            return Err(NotARecord::NoTime);
        }
        Ok(Self {
            version,
            owner: Owner {
                pid,
                uid: fields.number("uid"),
                place: Place {
                    host: fields.text("host"),
                    machine: fields.text("machine"),
                    boot: fields.text("boot"),
                    pid_namespace: fields.number("pidns"),
                },
                instance: Instance { start: fields.number("start"), pidfd: fields.number("pidfd") },
            },
            since: fields.text("since").and_then(|time| time.parse().ok()),
            token: fields.text("token"),
            run: fields.text("run"),
            command: fields.text("command"),
        })
    }

    /// The record as text, at most [`MAX_BYTES`] long.
    pub fn to_text(&self) -> String {
        let mut text = self.owner.pid.to_string();
        text.push('\n');
        if let Some(since) = self.since {
            text.push_str(&local_time(since).to_string());
        }
        text.push('\n');
        let Owner { uid, place, instance, .. } = &self.owner;
        push(&mut text, "v", self.version);
        push(&mut text, "host", place.host.as_deref());
        push(&mut text, "machine", place.machine.as_deref());
        push(&mut text, "boot", place.boot.as_deref());
        push(&mut text, "pidns", place.pid_namespace);
        push(&mut text, "start", instance.start);
        push(&mut text, "pidfd", instance.pidfd);
        push(&mut text, "uid", *uid);
        push(&mut text, "since", self.since);
        push(&mut text, "token", self.token.as_deref());
        push(&mut text, "run", self.run.as_deref());
        push(&mut text, "command", self.command.as_deref());
        debug_assert!(text.len() <= MAX_BYTES, "every field is bounded by `printable::field`");
        text
    }
}

fn push(text: &mut String, key: &str, value: Option<impl ToString>) {
    if let Some(value) = value {
        let value = printable::field(&value.to_string());
        let _ = writeln!(text, "{key}={value}");
    }
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

impl Fields<'_> {
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
    use super::{NotARecord, Record};

    fn sample() -> Record {
        let text = "4121\n2026-11-22 08:00:00\nv=1\nhost=a\nmachine=m\nboot=b\npidns=7\nstart=8\npidfd=9\nuid=10\n\
                    since=2026-11-22T08:00:00Z\ntoken=t\nrun=r\ncommand=meltano run x\n";
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
            assert_eq!(record.owner.pid.as_raw_pid(), 4121);
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
        assert_eq!(Record::parse(&[b'1'; 5000]), Err(NotARecord::TooLarge));
    }

    #[test]
    fn the_largest_fields_fit_into_a_record() {
        let long = Some("é\n".repeat(5000));
        let mut record = sample();
        record.command = long.clone();
        record.run = long.clone();
        record.token = long.clone();
        record.owner.place.host = long.clone();
        record.owner.place.machine = long.clone();
        record.owner.place.boot = long;
        assert!(record.to_text().len() <= super::MAX_BYTES);
        assert!(Record::parse(record.to_text().as_bytes()).is_ok());
    }
}
