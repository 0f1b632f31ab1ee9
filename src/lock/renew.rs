//! Renewing a lease, and telling holders that they have lost theirs.

use std::time::Duration;

use rustix::process::Pid;

use super::register::Write;
use super::{Error, Grant, MAX_ROUNDS, Mutex, Seen};
use crate::lock::staleness::{Judged, Stale, StaleHolder, Verdict};
use crate::record::{Entry, Lease, Outcome, Record};
use crate::sys::clock::{millis, since_boot};
use crate::sys::identity::ProcessIdentity;

/// The most marks of lost holders in a record, which has to stay small.
const MAX_LOST: usize = 8;

/// How long a mark is kept, in milliseconds.
const REMEMBERED: u64 = 7 * 24 * 60 * 60 * 1000;

/// How a lock was lost that was not released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Lost {
    #[error("its lease expired without a renewal; no other process has held it since")]
    Expired,
    #[error("its lease expired, or it was broken; other processes may have held it since")]
    TakenOver,
    #[error("it was broken")]
    Broken,
    /// It was released, or removed.
    #[error("its record is gone from the store")]
    Gone,
}

impl Mutex<'_> {
    /// Starts the lease of the acquisition `token` anew. `keeper` is the process that keeps it from
    /// now on, if that changes. [`Error::Lost`] means that it certainly is not held any more.
    pub fn renew(
        &mut self,
        token: &str,
        keeper: Option<(Pid, ProcessIdentity)>,
    ) -> Result<Grant, Error> {
        for _ in 0..MAX_ROUNDS {
            let (stored, judged) = self.look()?;
            let own = judged.iter().find_map(|Judged { entry, verdict, .. }| {
                let own = entry.as_ref().filter(|entry| entry.token.as_deref() == Some(token))?;
                Some((own, own.lease?, verdict))
            });
            let Some((entry, lease, verdict)) = own else {
                return Err(Error::Lost(Lost::Gone, Seen::held(judged)));
            };
            let lost = |how| Err(Error::Lost(how, Vec::new()));
            match (entry.released, verdict) {
                (Some(Outcome::Lost), _) => return lost(Lost::TakenOver),
                // Released, and held for a time yet.
                (Some(_), _) => return lost(Lost::Gone),
                (None, Verdict::Stale(Stale::Expired)) => return lost(Lost::Expired),
                (None, _) => {}
            }
            // Before the end of the lease is computed, and before it is sent.
            let leased_at = since_boot();
            let (expires, renewals) = (self.expiry(lease.duration), lease.renewals + 1);
            let lease = Some(Lease { expires, renewals, ..lease });
            let renewed = Entry { lease, keeper: keeper.or(entry.keeper), ..entry.clone() };
            let all = stored.entries().iter();
            let all = all.map(|other| if other == entry { &renewed } else { other });
            // A renewal takes as much room as the one before, but another keeper may not.
            let record = Record::of(all.cloned().collect())
                .ok_or_else(|| Error::Entry(std::io::ErrorKind::FileTooLarge.into()))?;
            if self.register.put(Some(&stored), Some(&record))? == Write::Done {
                return Ok(Grant::of(entry, leased_at));
            }
        }
        Err(Error::NotOurs(Vec::new()))
    }

    /// Renews what was granted if this host took so long since then that a part of the lease has
    /// passed. Fails only if it is lost: if the store does not answer, the keeper continues to try.
    pub fn refresh(&mut self, grant: &mut Grant, lease: Duration) -> Result<(), Error> {
        let age = Duration::from_millis(since_boot().saturating_sub(grant.leased_at));
        if age >= lease / 3 {
            match self.renew(&grant.token, None) {
                Ok(renewed) => *grant = renewed,
                Err(lost @ Error::Lost(..)) => return Err(lost),
                Err(error) => tracing::debug!("cannot renew the lease: {error}"),
            }
        }
        Ok(())
    }

    /// When a lease that begins now ends by the store's clock: never earlier than by ours.
    pub(super) fn expiry(&self, duration: Duration) -> Option<u64> {
        Some(self.register.now()? + millis(duration))
    }

    /// The marks by which holders find out that they have lost the lock. The newest are last.
    pub(super) fn lost_marks(&self, former: &[StaleHolder]) -> Vec<Entry> {
        let now = self.register.now();
        let mark = |former: &StaleHolder| {
            let entry = former.entry.as_ref()?;
            let expired = entry.lease.and_then(|lease| lease.expires);
            let age = now.zip(expired).map_or(0, |(now, expired)| now.saturating_sub(expired));
            let is_lost = entry.is_mark() || former.verdict == Stale::Expired;
            (is_lost && age < REMEMBERED).then(|| mark_lost(entry))
        };
        let mut lost: Vec<_> = former.iter().filter_map(mark).collect();
        lost.split_off(lost.len().saturating_sub(MAX_LOST))
    }
}

pub(super) fn mark_lost(entry: &Entry) -> Entry {
    Entry { released: Some(Outcome::Lost), until: None, once: None, ..entry.clone() }
}
