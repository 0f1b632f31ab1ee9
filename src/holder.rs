//! A holder as people read it: PID, command, host, since when and for how long.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use crate::local_time::{local_time, short};
use crate::record::Entry;
use crate::verdict::{Held, Holding, Judged, Unknown};
use crate::{printable, process};

/// What a message says about a holder.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Its part of the record, unless the file is empty.
    pub entry: Option<Entry>,
    /// Since when, by the record or else by the file's time.
    pub since: Option<Timestamp>,
}

impl Holder {
    /// The holder that was judged.
    pub fn new<V>(judged: &Judged<V>) -> Self {
        let mut entry = judged.entry.clone();
        // The Python plugin writes no more than a PID, so ask the process.
        if let Some(legacy) = entry.as_mut().filter(|entry| entry.token.is_none() && entry.owner.place.boot.is_none()) {
            let command = printable::command_line(&process::arguments(legacy.owner.pid));
            legacy.command = Some(command).filter(|command| !command.is_empty());
        }
        let written = judged.written.and_then(|written| Timestamp::try_from(written).ok());
        Self { since: entry.as_ref().and_then(|entry| entry.since).or(written), entry }
    }

    /// For how long it has been held; `None` when the clock says less than nothing.
    pub fn held_for(&self) -> Option<Duration> {
        Timestamp::now().duration_since(self.since?).try_into().ok()
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.entry {
            None => f.write_str("an unknown process (the file is empty)")?,
            Some(entry) => {
                write!(f, "pid {}", entry.owner.pid)?;
                if let Some(command) = &entry.command {
                    write!(f, " ({command})")?;
                }
                if let Some(host) = &entry.owner.place.host {
                    write!(f, " on {host}")?;
                }
            }
        }
        // The alternate form leaves out what "held for" says as well.
        if let Some(since) = self.since.filter(|_| !f.alternate()) {
            write!(f, ", since {}", local_time(since))?;
        }
        match self.held_for() {
            Some(duration) => write!(f, ", held for {}", short(duration)),
            None => Ok(()),
        }
    }
}

/// The holders, and why they count as such if that is not plain. In short, what changes while a process waits.
pub fn listed(holders: &[Holding], is_short: bool) -> String {
    let Some((first, others)) = holders.split_first() else { return "several processes in turn".to_owned() };
    let holder = Holder::new(first);
    let holder = if is_short { format!("{holder:#}") } else { holder.to_string() };
    let why = match &first.verdict {
        Held::Alive(_) | Held::Unknown(Unknown::BeingWritten) => String::new(),
        held => format!("; {held}"),
    };
    holder
        + &why
        + &match others.len() {
            0 => String::new(),
            1 => ", and 1 other".to_owned(),
            others => format!(", and {others} others"),
        }
}
