//! Notices for owners of broken lock files, in a file beside the lock.
//!
//! The lock file cannot hold them: only its user may replace it in a sticky directory, and other
//! programs would take it for held. A notice decides nothing about the lock: it only changes the
//! answer to an owner that does not hold it any more. A store keeps the mark in the record instead.

use std::mem::replace;

use super::register::{Register, Write};
use super::{MAX_ROUNDS, Requester};
use crate::record::{Entry, Record};
use crate::sys::identity::HostIdentity;
use crate::sys::process;

const SUFFIX: &str = ".broken";

/// How many notices are kept, the newest ones: few owners lose a lock and continue.
const MAX_NOTICES: usize = 8;

impl Register {
    /// Leaves notices for the entries `new`, and removes those for `requester`, if there are any.
    /// Returns whether it could do that: in a sticky directory, the file may be another user's.
    pub(super) fn change_notices(
        &mut self,
        new: &[Entry],
        requester: Option<&dyn Requester>,
    ) -> Option<bool> {
        if self.store().counts() || (new.is_empty() && requester.is_none()) {
            return None;
        }
        let mut key = self.key.clone();
        key.name.push(SUFFIX);
        let here = (replace(&mut self.key, key), self.last.take());
        let mut had_any = None;
        // Bounded: each further round means that another process has changed the file.
        for _ in 0..MAX_ROUNDS {
            let Ok(stored) = self.load().map(Option::unwrap_or_default) else { break };
            let mut all = stored.entries().to_vec();
            let is_own = |entry: &mut Entry| requester.is_some_and(|it| it.owns(&stored, entry));
            // Otherwise it is a lock of this name.
            let are_notices = all.iter().all(Entry::is_mark);
            let has_own = all.extract_if(.., is_own).count() > 0;
            if !are_notices || (!has_own && new.is_empty()) {
                break;
            }
            had_any = had_any.or(has_own.then_some(false));
            all.extend_from_slice(new);
            all.retain(may_ask);
            all.drain(..all.len().saturating_sub(MAX_NOTICES));
            let record = Record::of(all);
            if stored.state.version.is_none() && record.is_none() {
                break;
            }
            match self.put(Some(&stored), record.as_ref()) {
                Ok(Write::Conflict | Write::Unknown) => {}
                done => {
                    had_any = had_any.map(|_| done.is_ok());
                    break;
                }
            }
        }
        (self.key, self.last) = here;
        had_any
    }
}

fn may_ask(entry: &Entry) -> bool {
    let (owner, here) = (&entry.owner, HostIdentity::here());
    let is_of_this_boot = owner.place.boot.is_some() && owner.place.boot == here.boot;
    let is_seen = owner.place.pid_namespace == here.pid_namespace;
    is_of_this_boot && (!is_seen || process::is_running((owner.pid, owner.instance)))
}
