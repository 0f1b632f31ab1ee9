//! A holder as people read it: PID, command, host, since when and for how long.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use crate::backend::Stored;
use crate::local_time::{local_time, short};
use crate::mutex::Holding;
use crate::record::Record;
use crate::verdict::{Held, Unknown};
use crate::{printable, process};

/// What a message says about whoever holds a lock.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The record, unless the file is empty.
    pub record: Option<Record>,
    /// Since when, by the record or else by the file's time.
    pub since: Option<Timestamp>,
}

impl Holder {
    /// The holder that a record names.
    pub fn new(stored: &Stored) -> Self {
        let mut record = stored.content.record().cloned();
        if let Some(legacy) = record.as_mut().filter(|record| record.is_legacy()) {
            // The Python plugin writes no more than a PID, so ask the process.
            let command = printable::command_line(&process::arguments(legacy.owner.pid));
            legacy.command = Some(command).filter(|command| !command.is_empty());
        }
        let written = stored.written.and_then(|written| Timestamp::try_from(written).ok());
        Self { since: record.as_ref().and_then(|record| record.since).or(written), record }
    }

    /// For how long it has been held; `None` when the clock says less than nothing.
    pub fn held_for(&self) -> Option<Duration> {
        Timestamp::now().duration_since(self.since?).try_into().ok()
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.record {
            None => f.write_str("a process that has not written its name yet")?,
            Some(record) => {
                write!(f, "pid {}", record.owner.pid)?;
                if let Some(command) = &record.command {
                    write!(f, " ({command})")?;
                }
                if let Some(host) = &record.owner.place.host {
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

/// The holder in full, and why it counts as one if that is not plain.
pub fn in_full(holding: Option<&Holding>) -> String {
    with_reason(holding, |holder| holder.to_string())
}

/// The same, shorter: what changes while one waits.
pub fn in_short(holding: Option<&Holding>) -> String {
    with_reason(holding, |holder| format!("{holder:#}"))
}

fn with_reason(holding: Option<&Holding>, format: impl Fn(&Holder) -> String) -> String {
    let Some(Holding { stored, held }) = holding else { return "one process after another".to_owned() };
    let holder = format(&Holder::new(stored));
    match held {
        Held::Alive(_) | Held::Unknown(Unknown::BeingWritten) => holder,
        held => format!("{holder}; {held}"),
    }
}
