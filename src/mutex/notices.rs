//! Notices for owners that lost their lock: a file beside the lock, with an entry for each broken
//! acquisition.
//!
//! The lock file itself cannot hold them. In a sticky directory, only the file's user could replace
//! it. Older programs and the Python plugin would mistake it for a lock. A notice decides nothing
//! about the lock. It is read only for an owner without an entry, and then changes the answer from
//! "not locked" or "not yours" to "broken".
//!
//! A notice is left after the lock was broken: a kill in between only costs the notice. It is
//! removed when its owner has read it, or by a later change of the file when its owner has ended. A
//! store needs no notices: it keeps the mark in the record.

use super::MAX_ROUNDS;
use super::register::{Content, Register, Write};
use crate::backend::failure::Error;
use crate::owner::Place;
use crate::process;
use crate::record::{Entry, Record};

/// Follows the lock's name in the name of the file.
const SUFFIX: &str = ".broken";

/// How many notices are kept, the newest ones: few owners lose a lock and continue.
const MAX_NOTICES: usize = 8;

impl Register<'_> {
    /// Leaves notices for these entries. Best effort.
    pub fn leave_notices(&mut self, broken: &[Entry]) {
        if self.is_numbered() || broken.is_empty() {
            return;
        }
        let left = self.beside(SUFFIX, |notices| change(notices, &|entries| entries.extend_from_slice(broken)));
        if let Err(error) = left {
            tracing::debug!("{error}");
        }
    }

    /// Removes the notices for which `is_own` holds. Returns whether there were any, even if they
    /// cannot be removed.
    pub fn take_notices(&mut self, is_own: &dyn Fn(&Record, &Entry) -> bool) -> bool {
        !self.is_numbered() && self.beside(SUFFIX, |notices| take(notices, is_own))
    }
}

fn take(notices: &mut Register<'_>, is_own: &dyn Fn(&Record, &Entry) -> bool) -> bool {
    let Ok(Some(stored)) = notices.load() else { return false };
    let Some(record) = stored.content.record() else { return false };
    let own: Vec<Entry> = record.entries().iter().filter(|entry| is_own(record, entry)).cloned().collect();
    if !own.is_empty()
        && let Err(error) = change(notices, &|entries| entries.retain(|entry| !own.contains(entry)))
    {
        tracing::debug!("{error}");
    }
    !own.is_empty()
}

fn change(notices: &mut Register<'_>, change: &dyn Fn(&mut Vec<Entry>)) -> Result<(), Error> {
    let here = Place::here();
    // Bounded: each further round means that another process has changed the file.
    for _ in 0..MAX_ROUNDS {
        let stored = notices.load()?;
        let record = stored.as_ref().and_then(|stored| stored.content.record());
        let mut entries = record.map(|record| record.entries().to_vec()).unwrap_or_default();
        change(&mut entries);
        entries.retain(|entry| may_ask(entry, &here));
        entries.drain(..entries.len().saturating_sub(MAX_NOTICES));
        let write = match (&stored, Record::of(entries)) {
            (None, None) => return Ok(()),
            (None, Some(record)) => notices.create(&record)?,
            (Some(stored), None) => notices.delete(stored)?,
            (Some(stored), Some(record)) if stored.content == Content::Record(Box::new(record.clone())) => return Ok(()),
            (Some(stored), Some(record)) => notices.replace(stored, &record)?,
        };
        if write == Write::Done {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether the owner may still be running.
fn may_ask(entry: &Entry, here: &Place) -> bool {
    let owner = &entry.owner;
    let is_of_this_boot = owner.place.boot.is_some() && owner.place.boot == here.boot;
    let is_seen = owner.place.pid_namespace == here.pid_namespace;
    is_of_this_boot && (!is_seen || process::is_running((owner.pid, owner.instance)))
}
