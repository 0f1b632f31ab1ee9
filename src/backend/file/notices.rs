//! Notices for owners that lost their lock: a file beside the lock, with an entry for each broken
//! acquisition.
//!
//! The lock file itself cannot hold them. In a sticky directory, only the file's user could replace
//! it; and older programs, and the Python plugin, would take it for a lock. A notice decides nothing
//! about the lock. It is read only for an owner without an entry, and then changes the answer from
//! "not locked" or "not yours" to "broken".
//!
//! A notice is left after the lock was broken: a kill in between only costs the notice. It is removed
//! when its owner has asked, or by a later change of the file when its owner has ended.

use std::path::Path;

use super::{LockFile, MAX_OPENS};
use crate::backend::{Backend, Content, Error, Write};
use crate::owner::Place;
use crate::process;
use crate::record::{Entry, Record};

/// What follows the lock's name in the name of the file.
const SUFFIX: &str = ".broken";

/// The newest are kept: few owners lose a lock and go on.
const MAX_NOTICES: usize = 8;

/// The notices of one lock. The file is changed as a lock file is: no change is lost or half done.
pub struct Notices(LockFile);

impl Notices {
    /// Of the lock at `path`. Does not touch the file system yet.
    pub fn new(path: &Path) -> Self {
        let mut name = path.as_os_str().to_owned();
        name.push(SUFFIX);
        Self(LockFile::new(Path::new(&name)))
    }

    /// Leaves a notice of each of these entries.
    pub fn add(&mut self, broken: &[Entry]) -> Result<(), Error> {
        self.change(&mut |entries| entries.extend_from_slice(broken))
    }

    /// Removes the notices for which `is_own` holds. Returns whether there were any, also where they
    /// cannot be removed.
    pub fn take(&mut self, is_own: &dyn Fn(&Record, &Entry) -> bool) -> bool {
        let Ok(Some(stored)) = self.0.load() else { return false };
        let Some(record) = stored.content.record() else { return false };
        let own: Vec<Entry> = record.entries().iter().filter(|entry| is_own(record, entry)).cloned().collect();
        if !own.is_empty()
            && let Err(error) = self.change(&mut |entries| entries.retain(|entry| !own.contains(entry)))
        {
            tracing::debug!("{error}");
        }
        !own.is_empty()
    }

    fn change(&mut self, change: &mut dyn FnMut(&mut Vec<Entry>)) -> Result<(), Error> {
        let here = Place::here();
        // Each round, another process has changed the file.
        for _ in 0..MAX_OPENS {
            let stored = self.0.load()?;
            let record = stored.as_ref().and_then(|stored| stored.content.record());
            let mut entries = record.map(|record| record.entries().to_vec()).unwrap_or_default();
            change(&mut entries);
            entries.retain(|entry| may_ask(entry, &here));
            entries.drain(..entries.len().saturating_sub(MAX_NOTICES));
            let write = match (&stored, Record::of(entries)) {
                (None, None) => return Ok(()),
                (None, Some(record)) => self.0.create(&record)?,
                (Some(stored), None) => self.0.delete(stored)?,
                (Some(stored), Some(record)) if stored.content == Content::Record(Box::new(record.clone())) => return Ok(()),
                (Some(stored), Some(record)) => self.0.replace(stored, &record)?,
            };
            if write == Write::Done {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Whether the owner may still run.
fn may_ask(entry: &Entry, here: &Place) -> bool {
    let owner = &entry.owner;
    let is_of_this_boot = owner.place.boot.is_some() && owner.place.boot == here.boot;
    let is_seen = owner.place.pid_namespace == here.pid_namespace;
    is_of_this_boot && (!is_seen || process::is_running((owner.pid, owner.instance)))
}
