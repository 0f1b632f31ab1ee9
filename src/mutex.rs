//! The mutex: the policy over a [`Backend`] register. Try, judge, take over, wait, release; the only retry loop.
//!
//! # Why no two hold it that exclude each other
//!
//! A claimant holds the mutex when its own conditional write was [`Write::Done`](crate::backend::Write::Done): either `create` (nothing was stored) or
//! `replace` of exactly the state that was judged. In that state every holder's entry either was proved stale, and the proof
//! stays true (a dead process does not come back), or is kept in the new record, whose holders all may hold it together
//! ([`Mode::joins`]). So no live owner's entry is ever lost to somebody else's write.
//! A release takes away exactly the entries that were found to be the claimant's own (or stale, or chosen by a person with
//! `--force`), by a write that is conditional on the state in which they were found.
//!
//! # Why it does not get stuck
//!
//! A claimant that dies at any point leaves nothing, or an entry of its owner, which is judged like any other one. A claimant
//! whose owner has gone away gives back what it has just acquired, and if it dies before that, its entry is stale already.
//! Turns are kept by courtesy: whoever waits behind one that does not take what is free goes ahead after a while.
//!
//! # Leases
//!
//! Where holders cannot see each other, the proof is that a lease has expired ([`crate::verdict`]). It stays true, because nobody
//! renews a lease that has expired, and a renewal is conditional on the state in which it had not: so either the renewal comes
//! first, and the taker's write is a conflict, or the takeover does, and the renewal is. A holder stops before its lease is over
//! by its own clock, which it reads *before* it sends what begins the lease: so its end is never later than the one that others
//! see. (As long as the store's clock does not leap forward, and a server that takes over for it has its last commits.) Who loses a lease finds its entry marked as lost, by whoever took it over, and is told when it releases.

mod acquire;
mod release;
mod renew;
mod watched;

pub use release::OUTAGE;
pub use renew::Lost;

use std::time::{Duration, Instant};

use watched::Watched;

use crate::backend::{self, Backend, Stored, Version};
use crate::mode::Mode;
use crate::record::Entry;
use crate::verdict::{Former, Holding, Judge, Judged, Verdict, judge_all};
use crate::waiter::Waiter;

/// How often one try starts again because the register has changed under it. Each time somebody else made progress, so
/// that "held by another" is a true answer after so many.
const MAX_ROUNDS: usize = 16;

/// A mutex as one claimant sees it.
pub struct Mutex<'a> {
    backend: Box<dyn Backend + 'a>,
    judge: &'a dyn Judge,
    watched: Watched,
    /// What was asked for, and may have been granted: the answer was lost.
    asked_for: Vec<Grant>,
    left_to_others: Option<(Option<Version>, Instant)>,
    /// How the claimant has lost the lock before, which is to be told once.
    lost: Option<Lost>,
}

/// What is stored, with a judgement of each holder.
pub type Looked = (Stored, Vec<Judged<Verdict>>);

/// What a claimant asks for.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Together with whom.
    pub mode: Mode,
    /// For how long the lock is to be held at least, even if it is released or its owner ends earlier.
    pub at_least: Option<Duration>,
    /// Whether it is not needed any more once whoever held it has succeeded.
    pub skip_if_done: bool,
    /// For how long it is held unless that is renewed; `None` where all who want it see each other.
    pub lease: Option<Duration>,
}

/// What a claimant was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The acquisition's own.
    pub token: String,
    /// Larger than that of every acquisition before, where the store counts them.
    pub fencing: Option<u64>,
    /// From when on the lease counts, in milliseconds since boot.
    pub leased_at: u64,
}

/// How a lock was acquired.
#[derive(Debug)]
pub enum Acquired {
    /// It was free, or open to more holders.
    Free(Grant),
    /// From holders that are proved gone, or from nobody where a lock file was left empty.
    TakenOver(Grant, Box<Former>),
    /// The claimant held it before.
    AlreadyHeld(Box<Judged<Verdict>>),
    /// It was not: another has done meanwhile what it was wanted for.
    NotNeeded,
}

impl Acquired {
    /// The number of the acquisition, where the store counts them.
    pub fn fencing(&self) -> Option<u64> {
        match self {
            Self::Free(grant) | Self::TakenOver(grant, _) => grant.fencing,
            Self::AlreadyHeld(held) => held.entry.as_ref()?.fencing,
            Self::NotNeeded => None,
        }
    }
}

/// Whose hold is to be released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose<'a> {
    /// The claimant's, or a stale one.
    Own,
    /// The claimant's, and nothing else.
    OwnAlone,
    /// That of whoever has it.
    Anybodys,
    /// The acquisition's that has this token.
    Of(&'a str),
}

/// How a lock was released.
#[derive(Debug)]
pub enum Released {
    /// It was the claimant's.
    Own {
        /// It stays held for so long, as it was asked to.
        stays: Option<Duration>,
        /// What was written down about it.
        was: Vec<Entry>,
    },
    /// Its owners are proved gone.
    Stale(Box<Former>),
    /// It was others', and taken away on request.
    Forced(Vec<Holding>),
}

/// Why a lock was not acquired or released.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// So many attempts are used up. Nobody: the holder changed all the time.
    #[error("another process holds the lock")]
    Busy(u32, Vec<Holding>),
    /// The claimant went away before it got the lock; nothing is held.
    #[error("the process that asked for it has ended")]
    Absent,
    /// Nothing is locked.
    #[error("it is not locked")]
    NotLocked,
    /// The same owner holds it in this mode, which is not the one that was asked for.
    #[error("the same process holds it already, as {0}")]
    HeldOtherwise(Mode),
    /// It cannot be held for a time: nobody would know when that is over.
    #[error("the store has no clock, by which all could tell for how long it has been held")]
    NoClock,
    /// It is another's. Nobody: it changed all the time.
    #[error("another process holds the lock")]
    NotOurs(Vec<Holding>),
    /// It was the claimant's, and is not any more, although it did not release it. It is held by these now.
    #[error("{0}")]
    Lost(Lost, Vec<Holding>),
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] backend::Error),
    /// There is nobody to own it, or the operating system has no random numbers.
    #[error("cannot write down who holds it: {}", backend::plain(.0))]
    Entry(std::io::Error),
}

impl<'a> Mutex<'a> {
    /// Does not touch the register yet.
    pub fn new(backend: Box<dyn Backend + 'a>, judge: &'a dyn Judge) -> Self {
        Self { backend, judge, watched: Watched::default(), asked_for: Vec::new(), left_to_others: None, lost: None }
    }

    /// What this mutex is called in messages.
    pub fn location(&self) -> String {
        self.backend.location()
    }

    /// Those who wait for it, in turn, as far as they are known.
    pub fn waiters(&mut self) -> Vec<Waiter> {
        self.backend.waiters()
    }

    /// Closes what is open, until it is used again.
    pub fn disconnect(&mut self) {
        self.backend.disconnect();
    }

    /// What is stored, with a judgement of each holder.
    ///
    /// # Errors
    /// When the backend cannot tell.
    pub fn look(&mut self) -> Result<Option<Looked>, backend::Error> {
        let asked = Instant::now();
        let Some(stored) = self.backend.load()? else { return Ok(None) };
        self.watched.see(&stored);
        let judged = judge_all(self.judge, &stored, &|entry| self.watched.unchanged_for(entry, asked));
        Ok(Some((stored, judged)))
    }
}

/// Those who hold it, and those who do not any more.
fn split(judged: Vec<Judged<Verdict>>) -> (Vec<Holding>, Vec<Former>) {
    let (mut held, mut former) = (Vec::new(), Vec::new());
    for Judged { entry, written, verdict } in judged {
        match verdict {
            Verdict::Held(verdict) => held.push(Judged { entry, written, verdict }),
            Verdict::Stale(verdict) => former.push(Judged { entry, written, verdict }),
        }
    }
    (held, former)
}
