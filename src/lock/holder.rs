//! A holder as people read it: PID, command, host, since when and for how long.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use crate::lock::staleness::{Held, Holding, Judged, Unknown};
use crate::sys::local_time::{local_time, short};
use crate::sys::process;
use crate::sys::text;

impl<V> Judged<V> {
    /// Since when it has been held, by the record or else by the file's time.
    pub fn since(&self) -> Option<Timestamp> {
        let written = || Timestamp::try_from(self.written?).ok();
        self.entry.as_ref().and_then(|entry| entry.since).or_else(written)
    }

    /// For how long it has been held; `None` when the clock says less than nothing.
    pub fn held_for(&self) -> Option<Duration> {
        Timestamp::now().duration_since(self.since()?).try_into().ok()
    }

    /// The owner's command. The Python plugin writes only a PID, so the process is asked.
    pub fn command(&self) -> Option<String> {
        let entry = self.entry.as_ref()?;
        if entry.token.is_some() || entry.owner.place.boot.is_some() {
            return entry.command.clone();
        }
        let asked = text::command_line(&process::arguments(entry.owner.pid));
        Some(asked).filter(|command| !command.is_empty())
    }

    fn named(&self, command: Option<&str>, with_host: bool) -> String {
        let Some(entry) = &self.entry else {
            return "an unknown process (the file is empty)".to_owned();
        };
        let command = command.map(|command| format!(" ({command})")).unwrap_or_default();
        let host = entry.owner.place.host.as_ref().filter(|_| with_host);
        let host = host.map(|host| format!(" on {host}")).unwrap_or_default();
        format!("pid {}{command}{host}", entry.owner.pid)
    }

    fn reason(&self) -> String {
        let reason = self.entry.as_ref().and_then(|entry| entry.reason.as_ref());
        reason.map(|reason| format!(", reason: \"{reason}\"")).unwrap_or_default()
    }
}

impl<V> fmt::Display for Judged<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.named(self.command().as_deref(), true))?;
        if let Some(since) = self.since() {
            write!(f, ", since {}", local_time(since))?;
        }
        if let Some(duration) = self.held_for() {
            write!(f, ", held for {}", short(duration))?;
        }
        f.write_str(&self.reason())
    }
}

/// The first one's reason, why it is a holder if that is not plain, and how many more there are.
fn rest(first: &Holding, others: &[Holding]) -> String {
    let reason = first.reason();
    let why = match &first.verdict {
        Held::Alive(_) | Held::Unknown(Unknown::BeingWritten) => reason,
        held => format!("{reason}; {held}"),
    };
    if others.is_empty() { why } else { format!("{why}, and {} more", others.len()) }
}

/// The holders, and why they count as such if that is not plain.
pub fn listed(holders: &[Holding]) -> String {
    let Some((first, others)) = holders.split_first() else {
        return "several processes in turn".to_owned();
    };
    let time = first.held_for().map(|time| format!(", which has had it for {}", short(time)));
    let name = first.named(first.command().as_deref(), true);
    format!("{name}{}{}", time.unwrap_or_default(), rest(first, others))
}

/// What a waiter waits for, in so many columns: the host is left out first, then the command cut.
pub fn held(holders: &[Holding], columns: usize) -> String {
    let Some((first, others)) = holders.split_first() else {
        return "held by several processes in turn".to_owned();
    };
    let time = first.held_for().map(|time| format!(" for {}", short(time))).unwrap_or_default();
    let rest = rest(first, others);
    let line = |command: &str, with_host| {
        let command = Some(command).filter(|command| !command.is_empty());
        format!("held{time} by {}{rest}", first.named(command, with_host))
    };
    let command = first.command().unwrap_or_default();
    let full = line(&command, true);
    if text::width(&full) <= columns {
        return full;
    }
    let room = columns + text::width(&command);
    let room = room.saturating_sub(text::width(&line(&command, false)));
    text::cut(&line(&text::cut(&command, room.max(1)), false), columns)
}
