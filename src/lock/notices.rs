//! Notices for owners of broken lock files, in a file beside the lock: an entry for each such
//! acquisition.
//!
//! The lock file cannot hold them: only its user may replace it in a sticky directory, and other
//! programs would take it for held. A notice decides nothing about the lock. It only changes the
//! answer to an owner that does not hold it any more. A store needs no notices: it keeps the mark
//! in the record.

use super::MAX_ROUNDS;
use super::register::{Register, Write};
use crate::lock::requester::Requester;
use crate::lock::stored::Stored;
use crate::record::owner::Owner;
use crate::record::{Entry, Record};
use crate::sys::identity::HostIdentity;
use crate::sys::process;

/// Follows the lock's name in the name of the file.
const SUFFIX: &str = ".broken";

/// How many notices are kept, the newest ones: few owners lose a lock and continue.
const MAX_NOTICES: usize = 8;

impl Register {
    /// Leaves notices for these entries. Best effort.
    pub fn leave_notices(&mut self, broken: &[Entry]) {
        self.change_notices(broken, None);
    }

    /// Removes the notices for `requester`; `None` if there were none. Returns whether it could: in
    /// a sticky directory, the file may be another user's.
    pub fn take_notices(&mut self, requester: &dyn Requester) -> Option<bool> {
        self.change_notices(&[], Some(requester))
    }

    fn change_notices(&mut self, new: &[Entry], of: Option<&dyn Requester>) -> Option<bool> {
        if self.store().counts() || (new.is_empty() && of.is_none()) {
            return None;
        }
        let mut key = self.key.clone();
        key.name.push(SUFFIX);
        let here = (std::mem::replace(&mut self.key, key), self.last.take());
        let changed = change(self, new, of);
        (self.key, self.last) = here;
        changed
    }
}

/// Adds `new` notices, and removes those for `requester` and those that will not be read. Returns
/// whether it could, if there were any for `requester`.
fn change(
    notices: &mut Register,
    new: &[Entry],
    requester: Option<&dyn Requester>,
) -> Option<bool> {
    let mut had_any = None;
    // Bounded: each further round means that another process has changed the file.
    for _ in 0..MAX_ROUNDS {
        let stored = notices.load().ok()?;
        let is_own = |entry: &&Entry| {
            requester.zip(stored.as_ref()).is_some_and(|(owner, stored)| owner.owns(stored, entry))
        };
        let present = stored.as_ref().map(Stored::entries).unwrap_or_default();
        // A lock of this name.
        if !present.iter().all(Entry::is_mark) {
            return None;
        }
        let (own, others): (Vec<_>, Vec<_>) = present.iter().partition(is_own);
        if own.is_empty() && new.is_empty() {
            return had_any;
        }
        had_any = had_any.or((!own.is_empty()).then_some(false));
        // Owners that may still be running.
        let here = HostIdentity::here();
        let may_ask = |entry: &&Entry| {
            let Owner { pid, place, instance, .. } = &entry.owner;
            let is_of_this_boot = place.boot.is_some() && place.boot == here.boot;
            let is_seen = place.pid_namespace == here.pid_namespace;
            is_of_this_boot && (!is_seen || process::is_running((*pid, *instance)))
        };
        let mut entries: Vec<Entry> =
            others.into_iter().chain(new).filter(may_ask).cloned().collect();
        entries.drain(..entries.len().saturating_sub(MAX_NOTICES));
        let record = Record::of(entries);
        if stored.is_none() && record.is_none() {
            return had_any;
        }
        match notices.put(stored.as_ref(), record.as_ref()) {
            Ok(Write::Done) => return had_any.map(|_| true),
            Ok(Write::Conflict | Write::Unknown) => {}
            Err(_) => return had_any,
        }
    }
    had_any
}
