//! One holder's part of a lock record.

use std::fmt::{self, Write as _};
use std::io;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Pid, getpid};
use serde::{Deserialize, Serialize};

use crate::record::mode::Mode;
use crate::record::owner::Owner;
use crate::record::run::Run;
use crate::sys::clock::since_boot;
use crate::sys::identity::{HostIdentity, ProcessIdentity};
use crate::sys::local_time::local_time;
use crate::sys::process::parse_pid;
use crate::sys::random::random_token;
use crate::sys::text;

/// Follows the token of a previous acquisition.
const SUCCEEDED: &str = " succeeded";

/// The part of one acquisition in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The process that holds the lock.
    pub owner: Owner,
    /// Together with which holders.
    pub mode: Mode,
    /// When it was acquired, if the record says so.
    pub since: Option<Timestamp>,
    /// Random, and unique to the acquisition.
    pub token: Option<String>,
    /// The pipeline run that the owner belongs to (`MELTANO_PARENT_CONTEXT_UUID`).
    pub run: Option<String>,
    /// The owner's command line, for people.
    pub command: Option<String>,
    /// Why it is held, in the user's words.
    pub reason: Option<String>,
    /// Another process of the owner's place, which started the owner and will release the lock. The
    /// lock is held while it lives.
    pub keeper: Option<(Pid, ProcessIdentity)>,
    /// Held at least until then, in milliseconds, even without its owner: since boot, or with a
    /// lease, of the store's clock.
    pub until: Option<u64>,
    /// Where the owner cannot be seen from everywhere, the lock is held only while this is renewed.
    pub lease: Option<Lease>,
    /// Larger than in every earlier acquisition.
    pub fencing: Option<u64>,
    /// The owner does not hold it any more. The entry stands for `until`, or tells how the
    /// acquisition ended.
    pub released: Option<Outcome>,
    /// The token of the acquisition before this one, if it succeeded: other processes may wait for
    /// that.
    pub previous: Option<String>,
    /// The run of a key that runs once.
    pub once: Option<Run>,
}

/// How long a holder holds the lock without a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// From a renewal on, in whole milliseconds.
    pub duration: Duration,
    /// The end, in milliseconds of the store's clock, if it has one.
    pub expires: Option<u64>,
    /// Counts renewals, for observers without a shared clock.
    pub renewals: u64,
}

/// How an acquisition ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The command that ran under it succeeded.
    Succeeded,
    /// The run of a key has failed.
    Failed,
    /// Its owner did not release it: the lease expired, or it was broken. The owner is to be told.
    Lost,
    /// No success was reported.
    Unknown,
}

impl Entry {
    /// The entry of a new acquisition of a plain mutex by this very process.
    pub fn of_this_process(command: Option<String>) -> io::Result<Self> {
        Self::new(Owner::of(getpid(), &HostIdentity::here())?, None, command)
    }

    /// The entry of a new acquisition of a plain mutex.
    pub fn new(owner: Owner, run: Option<String>, command: Option<String>) -> io::Result<Self> {
        let (since, token) = (Some(Timestamp::now()), Some(random_token()?));
        Ok(Self { since, token, run, command, ..Self::with(owner, &Fields(Vec::new())) })
    }

    /// Whether it has this token, or this fencing token.
    pub fn has_token(&self, token: &str) -> bool {
        self.token.as_deref() == Some(token)
            || self.fencing.is_some_and(|number| number.to_string() == token)
    }

    /// How long it is to be held at least: with a lease, by the store's clock, which shows `now`.
    pub fn remaining(&self, now: Option<u64>) -> Option<Duration> {
        let now = if self.lease.is_some() { now? } else { since_boot() };
        let remaining = self.until?.checked_sub(now)?;
        (remaining > 0).then(|| Duration::from_millis(remaining))
    }

    /// Whether it only tells its process that the lock was lost.
    pub fn is_mark(&self) -> bool {
        self.released == Some(Outcome::Lost)
    }

    /// Whether a program that knows plain mutexes only would understand it.
    pub(super) fn is_plain(&self) -> bool {
        self.mode == Mode::EXCLUSIVE
            && (self.until, self.released, self.lease, self.fencing) == (None, None, None, None)
            && self.previous.is_none()
            && self.once.is_none()
    }

    pub(super) fn parse(lines: &[&str]) -> Option<Self> {
        let fields = Fields::of(lines);
        let place = HostIdentity {
            host: fields.text("host"),
            machine: fields.text("machine"),
            boot: fields.text("boot"),
            pid_namespace: fields.number("pidns"),
        };
        let instance =
            ProcessIdentity { start: fields.number("start"), pidfd: fields.number("pidfd") };
        let (pid, uid) = (parse_pid(lines.first()?)?, fields.number("uid"));
        Some(Self::with(Owner { pid, uid, place, instance }, &fields))
    }

    /// The entry of this owner, with what the other fields tell.
    fn with(owner: Owner, fields: &Fields<'_>) -> Self {
        let mode = match fields.text("mode").as_deref() {
            Some("shared") => Mode::Shared,
            _ => Mode::Slots(fields.number("slots").unwrap_or(NonZeroU32::MIN)),
        };
        Self {
            owner,
            mode,
            since: fields.text("since").and_then(|time| time.parse().ok()),
            token: fields.text("token"),
            run: fields.text("run"),
            command: fields.text("command"),
            reason: fields.text("reason"),
            keeper: fields.text("keeper").and_then(|text| parse_process(&text)),
            until: fields.number("until"),
            lease: fields.text("lease").and_then(|text| Lease::parse(&text)),
            fencing: fields.number("fencing"),
            released: fields.text("released").map(|word| Outcome::of(&word)),
            previous: fields
                .text("previous")
                .and_then(|text| Some(text.strip_suffix(SUCCEEDED)?.to_owned())),
            once: fields.find("once").and_then(|text| serde_json::from_str(text).ok()),
        }
    }

    pub(super) fn write(&self, text: &mut String, version: Option<u32>) {
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
        push(text, "reason", self.reason.as_deref());
        push(text, "keeper", self.keeper.map(process_text));
        push(text, "until", self.until);
        push(text, "lease", self.lease.map(Lease::text));
        push(text, "fencing", self.fencing);
        push(text, "released", self.released.map(Outcome::word));
        push(text, "previous", self.previous.as_ref().map(|token| format!("{token}{SUCCEEDED}")));
        if let Some(once) = self.once.as_ref().and_then(|once| serde_json::to_string(once).ok()) {
            // One line: JSON escapes what is not printable.
            let _ = writeln!(text, "once={once}");
        }
    }
}

impl Lease {
    /// The rest, by the store's clock, which shows `now`; `None` without one.
    pub fn left(&self, now: Option<u64>) -> Option<Duration> {
        Some(Duration::from_millis(self.expires?.saturating_sub(now?)))
    }

    /// Duration and end in milliseconds, and the number of renewals.
    fn text(self) -> String {
        // As long after each renewal, so that a full record still has room for it.
        format!("{} {} {:010}", self.duration.as_millis(), or_dash(self.expires), self.renewals)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let duration = Duration::from_millis(number(&mut words)?);
        Some(Self { duration, expires: number(&mut words), renewals: number(&mut words)? })
    }
}

impl Outcome {
    fn word(self) -> &'static str {
        ["succeeded", "failed", "lost", "unknown"][self as usize]
    }

    fn of(word: &str) -> Self {
        let all = [Self::Succeeded, Self::Failed, Self::Lost];
        all.into_iter().find(|outcome| outcome.word() == word).unwrap_or(Self::Unknown)
    }
}

fn push(text: &mut String, key: &str, value: Option<impl fmt::Display>) {
    if let Some(value) = value {
        let _ = writeln!(text, "{key}={}", text::field(&value.to_string()));
    }
}

/// PID, start time and pidfd.
fn process_text((pid, instance): (Pid, ProcessIdentity)) -> String {
    format!("{pid} {} {}", or_dash(instance.start), or_dash(instance.pidfd))
}

fn parse_process(text: &str) -> Option<(Pid, ProcessIdentity)> {
    let mut words = text.split(' ');
    let pid = parse_pid(words.next()?)?;
    Some((pid, ProcessIdentity { start: number(&mut words), pidfd: number(&mut words) }))
}

/// `-` stands for an unknown number.
fn or_dash(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

fn number<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<u64> {
    words.next()?.parse().ok()
}

/// The settings of one entry.
pub(super) struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    /// The `key=value` lines behind the first two.
    pub(super) fn of(lines: &[&'a str]) -> Self {
        Self(lines.iter().skip(2).filter_map(|line| line.split_once('=')).collect())
    }

    fn find(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }

    fn text(&self, key: &str) -> Option<String> {
        self.find(key).map(text::field).filter(|value| !value.is_empty())
    }

    pub(super) fn number<T: FromStr>(&self, key: &str) -> Option<T> {
        self.text(key)?.parse().ok()
    }
}
