//! The policy of a lock: judge what is stored, decide, write, wait. Works on a [`Register`], by a
//! [`LivenessCheck`] of the holders, for a [`Requester`].
//! `docs/protocol.md` argues why two processes never both hold a lock.

mod acquire;
pub mod decision;
pub(crate) mod holder;
pub mod key;
mod notices;
pub mod once;
pub mod register;
mod release;
mod removal;
mod renew;
pub mod staleness;
mod sweep;
pub mod waiting;

pub use decision::Requester;
pub use renew::Lost;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use register::Register;
use serde::{Deserialize, Serialize};

use crate::lock::once::Claim;
use crate::lock::staleness::{
    Holding, Judged, LivenessCheck, Stale, StaleHolder, Verdict, Watched, judge_all,
};
use crate::record::mode::Mode;
use crate::record::run::{Rule, Run};
use crate::record::{Entry, Record};
use crate::store::seam::State;
use crate::store::{self, Location};
use crate::sys::text::io_message;

/// Bounds an attempt: each further round means that another process has changed the register.
const MAX_ROUNDS: usize = 16;

/// How long a release waits for a store that does not answer: it may be starting again.
const OUTAGE: Duration = Duration::from_secs(15);

/// A lock as one requester sees it.
pub struct Mutex<'a> {
    /// How long a release waits for a store that does not answer.
    pub patience: Duration,
    /// Where the record of the lock is.
    pub register: Register,
    judge: &'a dyn LivenessCheck,
    /// Of each lease, and of an empty file: since when its state has not changed.
    watched: HashMap<Watched, Instant>,
    /// Acquisitions with lost answers. If one of these tokens is stored, the lock is ours.
    unconfirmed: Vec<Grant>,
    /// The version of the free state that was left to earlier waiters, and since when.
    left_to_others: Option<(Option<Vec<u8>>, Instant)>,
    /// The requester lost the lock before, and has not been told yet.
    was_lost: bool,
}

/// The content of a register, as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// The record; `None` for a file that is being made.
    pub record: Option<Record>,
    /// The state of the register. Its text is that of the record.
    pub state: State,
}

impl Stored {
    /// The entries of the record.
    pub fn entries(&self) -> &[Entry] {
        self.record.as_ref().map(Record::entries).unwrap_or_default()
    }

    /// Whether the Python plugin stored it.
    pub fn is_legacy(&self) -> bool {
        self.record.as_ref().is_some_and(Record::is_legacy)
    }
}

/// What is stored, or the default for a free register, and the verdict on each holder.
pub type Looked = (Stored, Vec<Judged<Verdict>>);

/// What a requester asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request {
    /// Together with which holders.
    pub mode: Mode,
    /// The shortest time to hold the lock, even if it is released or its owner ends earlier.
    pub at_least: Option<Duration>,
    /// Whether the lock is not needed any more once its present holder has succeeded.
    pub skip_if_done: bool,
    /// How long the lock is held without a renewal; `None` where all requesters see each other.
    pub lease: Option<Duration>,
    /// Of a key that runs once: how often.
    pub once: Option<Rule>,
    /// Of a task on a schedule: which run.
    pub claim: Option<Claim>,
}

/// An acquisition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Unique to the acquisition.
    pub token: String,
    /// Larger than in every earlier acquisition, where the store numbers its states.
    pub fencing: Option<u64>,
    /// The beginning of the lease, in milliseconds since boot.
    pub leased_at: u64,
    /// The number of the run of a key that runs once.
    pub run: Option<u32>,
    /// Whether the run of a task is to be ended.
    #[serde(default)]
    pub is_stopped: bool,
}

impl Grant {
    fn of(entry: &Entry, leased_at: u64) -> Self {
        let run = entry.once.as_ref();
        let task = run.and_then(|run| run.task.as_ref());
        Self {
            token: entry.token.clone().unwrap_or_default(),
            fencing: entry.fencing,
            leased_at,
            run: run.map(|run| run.number),
            is_stopped: task.is_some_and(|task| task.is_stopped),
        }
    }
}

/// How a lock was acquired.
#[derive(Debug)]
pub enum Acquired {
    /// It was free, open to more holders, or taken from a holder that is proved gone.
    Granted(Grant, Option<Box<StaleHolder>>),
    /// The requester held it before.
    AlreadyHeld(Box<Judged<Verdict>>),
    /// It was not acquired: another process has done the work. With the run of a key that is done.
    NotNeeded(Option<Box<Run>>),
}

/// Which entries a release removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum ReleaseScope<'a> {
    OwnOrStale,
    Own,
    /// Those of all present holders.
    Force,
    /// That of this acquisition.
    Token(&'a str),
}

/// How a lock was released.
#[derive(Debug)]
pub enum Released {
    /// It was the requester's.
    Own {
        /// It stays held for this time, as was asked for.
        stays: Option<Duration>,
        /// The removed entries.
        was: Vec<Entry>,
    },
    /// Its owner is proved gone.
    Stale(Box<StaleHolder>),
    /// It was broken.
    Forced(Vec<Holding>),
}

/// Why a lock was not acquired or released.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    /// All attempts failed, after this time. Without holders if they kept changing.
    #[error("another process holds the lock")]
    Busy(Duration, Vec<Holding>),
    /// The requester ended before it got the lock; nothing is held.
    #[error("the process it was for has exited")]
    Absent,
    #[error("it is not locked")]
    NotLocked,
    /// Of a key that runs once.
    #[error("{0}")]
    GivenUp(String),
    #[error("this process already holds it in another mode ({0})")]
    HeldOtherwise(Mode),
    #[error("this store has no clock, which `--hold-at-least` needs")]
    NoClock,
    /// It is another process's. Without holders if the holder changed all the time.
    #[error("another process holds the lock")]
    NotOurs(Vec<Holding>),
    /// The requester lost it without releasing it. These hold it now.
    #[error("{0}")]
    Lost(Lost, Vec<Holding>),
    #[error(transparent)]
    Store(#[from] store::Error),
    /// No process can own it, or the operating system has no random numbers.
    #[error("cannot identify the owner: {}", io_message(.0))]
    Entry(std::io::Error),
}

impl<'a> Mutex<'a> {
    /// Opens a lock without accessing it.
    pub fn open(lock: &Location, judge: &'a dyn LivenessCheck) -> Result<Self, store::Error> {
        Ok(Self::new(Register::open(lock)?, judge))
    }

    /// Does not touch the register yet.
    pub fn new(register: Register, judge: &'a dyn LivenessCheck) -> Self {
        Self {
            patience: OUTAGE,
            register,
            judge,
            watched: HashMap::new(),
            unconfirmed: Vec::new(),
            left_to_others: None,
            was_lost: false,
        }
    }

    /// The present holders.
    pub fn holders(&mut self) -> Result<Vec<Holding>, store::Error> {
        Ok(Seen::held(self.look()?.1))
    }

    /// What is stored, and the verdict on each holder.
    pub fn look(&mut self) -> Result<Looked, store::Error> {
        // What the answer says may be older than the answer, but not than the question.
        let asked = Instant::now();
        let Some(stored) = self.register.load()? else { return Ok(Looked::default()) };
        let mut watched = HashMap::new();
        let judged = judge_all(self.judge, &stored, &mut |state| {
            let since = self.watched.get(&state).copied().unwrap_or_else(Instant::now);
            watched.insert(state, since);
            asked.saturating_duration_since(since)
        });
        self.watched = watched;
        Ok((stored, judged))
    }
}

/// What is stored, as one requester sees it.
#[derive(Default)]
struct Seen {
    own: Vec<Judged<Verdict>>,
    /// Its entries by which it does not hold the lock any more, although it has not released it.
    lost: Vec<Entry>,
    held: Vec<Holding>,
    /// The entries that hold nothing; the lost ones are among them.
    former: Vec<StaleHolder>,
}

impl Seen {
    fn new(judged: Vec<Judged<Verdict>>, owns: impl Fn(&Entry) -> bool) -> Self {
        let mut seen = Self::default();
        for Judged { entry, written, verdict } in judged {
            let is_mark = entry.as_ref().is_some_and(Entry::is_mark);
            let is_lost = matches!(verdict, Verdict::Stale(it) if is_mark || it == Stale::Expired);
            let own = entry.as_ref().filter(|entry| owns(entry));
            seen.lost.extend(own.filter(|_| is_lost).cloned());
            let is_own = own.is_some_and(|own| !is_lost && own.released.is_none());
            match verdict {
                verdict if is_own => seen.own.push(Judged { entry, written, verdict }),
                Verdict::Held(verdict) => seen.held.push(Judged { entry, written, verdict }),
                Verdict::Stale(verdict) => seen.former.push(Judged { entry, written, verdict }),
            }
        }
        seen
    }

    fn held(judged: Vec<Judged<Verdict>>) -> Vec<Holding> {
        Self::new(judged, |_| false).held
    }
}
