//! What a requester does about a lock, by what is stored. The first rule that applies decides:
//!
//! | what is stored | decision |
//! | --- | --- |
//! | an acquisition of the requester with a lost answer | confirmed |
//! | an entry of the requester that holds the lock | already held |
//! | a mark that the requester lost the lock, or one that it has just removed | lost |
//! | the success that the requester waits for (`--wait-and-skip`) | not needed |
//! | holders that it may not join, or that it does not understand | busy |
//! | a key that is done, or given up | not needed, or given up |
//! | anything else | free, in place of what is stale |

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::once::{Ended, Next};
use super::staleness::{Held, Holding, Judged, StaleHolder, Unknown, Verdict};
use super::{Acquired, Error, Grant, Request, Seen, Stored};
use crate::record::mode::Mode;
use crate::record::run::Run;
use crate::record::{Entry, Outcome};

/// For which process a lock is acquired.
pub trait Requester {
    /// Its entry for a new acquisition of a plain mutex.
    fn entry(&self) -> io::Result<Entry> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether an entry of the stored record is certainly this requester's.
    fn owns(&self, _stored: &Stored, _entry: &Entry) -> bool {
        false
    }

    /// Whether it still wants the lock.
    fn is_alive(&self) -> bool {
        true
    }

    /// These become readable when it does not want the lock any more.
    fn exit_fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

/// A request, and what its requester knows.
pub struct Bid<'b> {
    /// For which process.
    pub requester: &'b dyn Requester,
    /// What it asks for.
    pub request: &'b Request,
    /// With `skip_if_done`: nothing is needed any more when this acquisition has succeeded.
    pub awaited: Option<String>,
    /// Of a key that runs once: the begin of the period in which the requester has come.
    pub since: Option<u64>,
    /// Acquisitions with lost answers. If one of these tokens is stored, the lock is ours.
    pub unconfirmed: Vec<Grant>,
    /// The requester lost the lock before, and has not been told yet.
    pub was_lost: bool,
}

/// What to do about what is stored.
#[derive(Debug)]
pub enum Decision {
    /// Nothing needs to be written.
    Done(Acquired),
    /// The requester may not join these holders.
    Busy(Vec<Holding>),
    /// The requester lost it before, which it must be told. These entries stay.
    Lost(Vec<Entry>, Vec<Holding>),
    /// The requester may join these holders, in place of the former ones; with this run of a key.
    Free(Vec<Holding>, Vec<StaleHolder>, Option<Run>),
}

impl<'b> Bid<'b> {
    /// A new request.
    pub fn new(requester: &'b dyn Requester, request: &'b Request) -> Self {
        let (awaited, since, unconfirmed, was_lost) = Default::default();
        Self { requester, request, awaited, since, unconfirmed, was_lost }
    }

    /// Decides by what is stored. A key that runs once needs its name, and the time.
    pub fn decide(
        &self,
        stored: &Stored,
        judged: Vec<Judged<Verdict>>,
        (key, now): (&str, u64),
    ) -> Result<Decision, Error> {
        let Seen { own, lost, held, former } = Seen::new(judged, |entry| self.owns(stored, entry));
        if let Some(own) = own.into_iter().next() {
            return self.holds(own);
        }
        // The owner may not have noticed that it lost the lock, and that others have had it since.
        // It never relied on an acquisition with a lost answer.
        let is_mark = |entry: &Entry| entry.is_mark() && self.unconfirmed(entry).is_none();
        if self.was_lost || lost.iter().any(is_mark) {
            let stays = |entry: &&Entry| !(lost.contains(entry) && is_mark(entry));
            let left = stored.entries().iter().filter(stays).cloned().collect();
            return Ok(Decision::Lost(left, held));
        }
        if self.is_done(stored.entries(), &held) {
            return Ok(Decision::Done(Acquired::NotNeeded(None)));
        }
        if !joins(self.request.mode, &held) {
            return Ok(Decision::Busy(held));
        }
        self.decide_key(held, former, (key, now))
    }

    fn owns(&self, stored: &Stored, entry: &Entry) -> bool {
        // A legacy record may name a PID of another container: enough to unlock, but not to lock.
        let is_own = !stored.is_legacy() && self.requester.owns(stored, entry);
        is_own || self.unconfirmed(entry).is_some()
    }

    fn unconfirmed(&self, entry: &Entry) -> Option<&Grant> {
        self.unconfirmed.iter().find(|grant| Some(&grant.token) == entry.token.as_ref())
    }

    fn holds(&self, own: Judged<Verdict>) -> Result<Decision, Error> {
        let entry = own.entry.as_ref();
        let mode = entry.map_or(self.request.mode, |entry| entry.mode);
        let began = entry.and_then(|entry| Some(entry.once.as_ref()?.began));
        match entry.and_then(|entry| self.unconfirmed(entry)) {
            Some(grant) => Ok(Decision::Done(Acquired::Granted(grant.clone(), None))),
            None if mode != self.request.mode => Err(Error::HeldOtherwise(mode)),
            // It runs the key for an earlier period: it would wait for itself.
            None if began.is_some() && began < self.since => {
                Err(Error::Busy(Duration::ZERO, Seen::held(vec![own])))
            }
            None => Ok(Decision::Done(Acquired::AlreadyHeld(Box::new(own)))),
        }
    }

    /// Whether the holder that the requester waits for has succeeded.
    fn is_done(&self, entries: &[Entry], held: &[Holding]) -> bool {
        let is_success = |entry: &Entry| entry.released == Some(Outcome::Succeeded);
        let awaited = self.awaited.as_deref();
        let is_awaited = |entry: &Entry| {
            let is_it = entry.token.as_deref() == awaited && is_success(entry);
            awaited.is_some() && (is_it || entry.previous.as_deref() == awaited)
        };
        // A holder that has succeeded, and stays for a time, need not have been seen before.
        let stays = |holding: &Holding| holding.entry.as_ref().is_some_and(is_success);
        entries.iter().any(is_awaited) || (self.request.skip_if_done && held.iter().any(stays))
    }

    fn decide_key(
        &self,
        held: Vec<Holding>,
        former: Vec<StaleHolder>,
        (key, now): (&str, u64),
    ) -> Result<Decision, Error> {
        let Some(rule) = self.request.once else { return Ok(Decision::Free(held, former, None)) };
        let last = former.iter().rev().find_map(|former| {
            let entry = former.entry.as_ref()?;
            Some((entry.once.as_ref()?, Ended::of(entry, &Verdict::Stale(former.verdict))?))
        });
        let next = match self.request.claim {
            Some(claim) => claim.next(key, rule, last, now),
            None => rule.next(key, last, self.since.unwrap_or_default(), now),
        };
        match next {
            Next::Skip => {
                let done = last.map(|(run, _)| Box::new(run.clone()));
                Ok(Decision::Done(Acquired::NotNeeded(done)))
            }
            Next::GiveUp(why) => Err(Error::GivenUp(why)),
            Next::Run(run) => Ok(Decision::Free(held, former, Some(run))),
        }
    }
}

/// Whether a requester may join these holders, of which all must be understood here.
fn joins(mode: Mode, holders: &[Holding]) -> bool {
    let modes = holders.iter().map(|holding| match holding.verdict {
        Held::Unknown(Unknown::NewerVersion | Unknown::BeingWritten) => None,
        _ => Some(holding.entry.as_ref()?.mode),
    });
    modes.collect::<Option<Vec<_>>>().is_some_and(|modes| mode.joins(&modes))
}
