//! Renewing a lease, and what is left of one that is lost.

use std::fmt;
use std::time::Duration;

use rustix::process::Pid;

use super::{Error, Grant, MAX_ROUNDS, Mutex, split};
use crate::backend::Write;
use crate::local_time::short;
use crate::owner::Instance;
use crate::process::since_boot;
use crate::record::{Entry, Lease, Outcome, Record};
use crate::verdict::{Former, Judged, Stale, Verdict};

/// So many lost holders are remembered, until they ask: a few at a time lose a lock, and a record has to stay small.
const MAX_LOST: usize = 8;

/// For how long, in milliseconds: whoever has not asked until then does not run any more.
const REMEMBERED: u64 = 7 * 24 * 60 * 60 * 1000;

/// How a lock was lost that was not released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The lease had expired, for so long if that is known, and nobody else has taken it.
    Expired(Option<Duration>),
    /// Somebody else has taken it since, or it was taken away.
    TakenOver,
    /// It was taken away on request.
    Broken,
    /// Nothing tells of it any more: it was released, or somebody has removed it.
    Gone,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired(Some(ago)) => {
                write!(f, "its lease expired {} ago, because it was not renewed; nobody else has held it since", short(*ago))
            }
            Self::Expired(None) => {
                f.write_str("its lease has expired, because it was not renewed; nobody else has held it since")
            }
            Self::TakenOver => f.write_str("its lease expired, or it was taken away; others may have held it since"),
            Self::Broken => f.write_str("it was broken"),
            Self::Gone => f.write_str("nothing tells of it in the store any more"),
        }
    }
}

impl Mutex<'_> {
    /// Makes the lease of the acquisition `token` count from now on; tells from when. `keeper` is who keeps it from now on, if that is
    /// somebody else than before.
    ///
    /// # Errors
    /// [`Error::Lost`] when it certainly is not held any more.
    pub fn renew(&mut self, token: &str, keeper: Option<(Pid, Instance)>) -> Result<Grant, Error> {
        for _ in 0..MAX_ROUNDS {
            let Some((stored, judged)) = self.look()? else { return Err(Error::Lost(Lost::Gone, Vec::new())) };
            let is_it =
                |judged: &Judged<Verdict>| judged.entry.as_ref().is_some_and(|entry| entry.token.as_deref() == Some(token));
            let Some(own) = judged.iter().find(|judged| is_it(judged)) else {
                return Err(Error::Lost(Lost::Gone, split(judged).0));
            };
            let Some((entry, lease)) = own.entry.as_ref().and_then(|entry| entry.lease.map(|lease| (entry, lease))) else {
                return Err(Error::Lost(Lost::Gone, Vec::new()));
            };
            match entry.released {
                None => {}
                Some(Outcome::Lost) => return Err(Error::Lost(Lost::TakenOver, Vec::new())),
                // Released, and held for a time yet.
                Some(_) => return Err(Error::Lost(Lost::Gone, Vec::new())),
            }
            if matches!(own.verdict, Verdict::Stale(Stale::Expired)) {
                return Err(Error::Lost(self.expired(entry), Vec::new()));
            }
            let fencing = entry.fencing;
            // Before the end that others see is reckoned, and before it is sent.
            let leased_at = since_boot();
            let renewed = Entry { lease: Some(self.renewed(lease)), keeper: keeper.or(entry.keeper), ..entry.clone() };
            let others = stored.content.record().map(Record::entries).unwrap_or_default();
            let others = others.iter().map(|other| if other.token.as_deref() == Some(token) { &renewed } else { other });
            let record = Record::of(others.cloned().collect());
            // A renewal takes as much room as the one before, but another keeper may not.
            let record = record.ok_or_else(|| Error::Entry(std::io::ErrorKind::FileTooLarge.into()))?;
            if self.backend.replace(&stored, &record)? == Write::Done {
                return Ok(Grant { token: token.to_owned(), fencing, leased_at });
            }
        }
        Err(Error::NotOurs(Vec::new()))
    }

    /// Makes sure that what was granted has not been waiting for this host for so long that it is over, or soon will be.
    ///
    /// # Errors
    /// [`Error::Lost`] when it is. If the store does not answer, whoever keeps the lease goes on asking.
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

    /// A lease that counts from now on.
    fn renewed(&self, lease: Lease) -> Lease {
        Lease { expires: self.expiry(lease.duration), renewals: lease.renewals + 1, ..lease }
    }

    /// When a lease that begins now is over by the store's clock: never earlier than by ours.
    pub(super) fn expiry(&self, duration: Duration) -> Option<u64> {
        Some(self.backend.now()? + u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2))
    }

    /// Whether what was looked at has numbers, and so a place to write to, but no clock. Elsewhere it may be yet to come.
    pub(super) fn has_no_clock(&self) -> bool {
        self.backend.now().is_none() && self.backend.next_number().is_some()
    }

    pub(super) fn expired(&self, entry: &Entry) -> Lost {
        let expires = entry.lease.and_then(|lease| lease.expires);
        let ago = self.backend.now().zip(expires).map(|(now, expires)| now.saturating_sub(expires));
        Lost::Expired(ago.map(Duration::from_millis))
    }

    /// What has to be told to those whose leases have expired, when they ask.
    pub(super) fn lost_marks<'f>(&self, former: &'f [Former], is_own: impl Fn(&Entry) -> bool + 'f) -> Vec<Entry> {
        let now = self.backend.now();
        let is_recent = |entry: &Entry| {
            let expired = entry.lease.and_then(|lease| lease.expires);
            now.zip(expired).is_none_or(|(now, expired)| now.saturating_sub(expired) < REMEMBERED)
        };
        let entries = former.iter().filter_map(|former| {
            let entry = former.entry.as_ref()?;
            match entry.released {
                Some(Outcome::Lost) => Some(entry.clone()),
                None if former.verdict == Stale::Expired => Some(mark_lost(entry)),
                _ => None,
            }
        });
        let mut lost: Vec<_> = entries.filter(|entry| is_recent(entry) && !is_own(entry)).collect();
        // The newest stand last.
        lost.split_off(lost.len().saturating_sub(MAX_LOST))
    }
}

/// The entry of a holder that has lost its lock.
pub(super) fn mark_lost(entry: &Entry) -> Entry {
    Entry { released: Some(Outcome::Lost), until: None, ..entry.clone() }
}
