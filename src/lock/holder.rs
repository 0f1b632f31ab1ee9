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
        let is_legacy = entry.token.is_none() && entry.owner.place.boot.is_none();
        let asked = || text::command_line(&process::arguments(entry.owner.pid));
        if is_legacy {
            Some(asked()).filter(|command| !command.is_empty())
        } else {
            entry.command.clone()
        }
    }
}

impl<V> fmt::Display for Judged<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.entry {
            None => f.write_str("an unknown process (the file is empty)")?,
            Some(entry) => {
                write!(f, "pid {}", entry.owner.pid)?;
                if let Some(command) = self.command() {
                    write!(f, " ({command})")?;
                }
                if let Some(host) = &entry.owner.place.host {
                    write!(f, " on {host}")?;
                }
            }
        }
        // The alternate form leaves out what "held for" says as well.
        if let Some(since) = self.since().filter(|_| !f.alternate()) {
            write!(f, ", since {}", local_time(since))?;
        }
        match self.held_for() {
            Some(duration) => write!(f, ", held for {}", short(duration)),
            None => Ok(()),
        }
    }
}

/// The holders, and why they count as such if that is not plain; in short while one waits.
pub fn listed(holders: &[Holding], is_short: bool) -> String {
    let Some((first, others)) = holders.split_first() else {
        return "several processes in turn".to_owned();
    };
    let holder = if is_short { format!("{first:#}") } else { first.to_string() };
    let why = match &first.verdict {
        Held::Alive(_) | Held::Unknown(Unknown::BeingWritten) => String::new(),
        held => format!("; {held}"),
    };
    let more =
        if others.is_empty() { String::new() } else { format!(", and {} more", others.len()) };
    holder + &why + &more
}
