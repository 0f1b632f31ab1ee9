//! The mutex: the policy over a [`Backend`] register. Try, judge, take over, wait, release; the only retry loop.
//!
//! # Why two claimants never both hold it
//!
//! A claimant holds the mutex when its own conditional write was [`Write::Done`]: either `create` (nothing was stored) or
//! `replace` of exactly the state that was judged stale. A record is judged stale only when its owner is proved gone, and
//! the proof stays true: a dead process does not come back. So when a write is done, no live owner's record was overwritten.
//! A release deletes exactly the state in which the record was found to be the claimant's own (or stale, or chosen by a
//! person with `--force`).
//!
//! # Why it does not get stuck
//!
//! A claimant that dies at any point leaves nothing, or a record of its owner, which is judged like any other one. A claimant
//! whose owner has gone away gives back what it has just acquired, and if it dies before that, its record is stale already.

use std::time::{Duration, Instant};

use crate::backend::{self, Backend, Stored, Version, Write};
use crate::claimant::Claimant;
use crate::record::Record;
use crate::verdict::{BEING_WRITTEN, Held, Judge, Stale, Unknown, Verdict};
use crate::waiting::{Observer, Waiting};

/// How often one attempt starts again because the register has changed under it. Each time somebody else made progress, so
/// that "held by another" is a true answer after so many.
const MAX_ROUNDS: usize = 16;

/// The shortest time between two looks that do not count as attempts: a flood of wake-ups must not cost more than this.
const MIN_LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The longest such time: a look that took long (a busy flock, a stopped process, a slow disk) must not be paid for in hours.
const MAX_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Looks may take one part in so many of a waiter's time: some have to read the whole process table.
const LOOK_SHARE: u32 = 20;

/// A mutex as one claimant sees it.
pub struct Mutex<'a> {
    backend: Box<dyn Backend + 'a>,
    judge: &'a dyn Judge,
    watched: Option<(Version, Instant)>,
}

/// How a lock was acquired.
#[derive(Debug)]
pub enum Acquired {
    /// It was free.
    Free,
    /// From an owner that is proved gone, or from nobody where a lock file was left empty.
    TakenOver(Stored, Stale),
    /// The claimant held it before.
    AlreadyHeld(Stored),
}

/// How a lock was released.
#[derive(Debug)]
pub enum Released {
    /// It was the claimant's.
    Own(Stored),
    /// Its owner is proved gone.
    Stale(Stored, Stale),
    /// It was another's, and taken away on request.
    Forced(Stored, Held),
}

/// A lock that somebody has, and what we know of that.
#[derive(Debug)]
pub struct Holding {
    /// What is stored.
    pub stored: Stored,
    /// Why it counts as held.
    pub held: Held,
}

/// Why a lock was not acquired or released.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// So many attempts are used up. `None`: the holder changed all the time.
    #[error("another process holds the lock")]
    Busy(u32, Option<Box<Holding>>),
    /// The claimant went away before it got the lock; nothing is held.
    #[error("the process that asked for it has ended")]
    Absent,
    /// Nothing is locked.
    #[error("it is not locked")]
    NotLocked,
    /// It is another's. `None`: it changed all the time.
    #[error("another process holds the lock")]
    NotOurs(Option<Box<Holding>>),
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] backend::Error),
    /// The operating system has no random numbers.
    #[error("cannot draw a token: {}", backend::plain(.0))]
    Token(std::io::Error),
}

enum Attempt {
    Acquired(Acquired),
    Busy(Option<Holding>),
}

impl<'a> Mutex<'a> {
    /// Does not touch the register yet.
    pub fn new(backend: Box<dyn Backend + 'a>, judge: &'a dyn Judge) -> Self {
        Self { backend, judge, watched: None }
    }

    /// What this mutex is called in messages.
    pub fn location(&self) -> String {
        self.backend.location()
    }

    /// What is stored, with a judgement of it.
    ///
    /// # Errors
    /// When the backend cannot tell.
    pub fn look(&mut self) -> Result<Option<(Stored, Verdict)>, backend::Error> {
        let Some(stored) = self.backend.load()? else { return Ok(None) };
        let verdict = self.judge(&stored);
        Ok(Some((stored, verdict)))
    }

    /// Acquires the lock, waiting for it within `waiting`.
    ///
    /// # Errors
    /// [`Error::Busy`] when the attempts are used up, [`Error::Absent`] when the claimant goes away; nothing is held then.
    pub fn acquire(
        &mut self,
        claimant: &dyn Claimant,
        waiting: &Waiting,
        observer: &mut dyn Observer,
    ) -> Result<Acquired, Error> {
        let mut attempts: u32 = 0;
        let mut next_attempt = Instant::now();
        let deadline = waiting.timeout.map(|timeout| next_attempt + timeout);
        // Ends when the attempts are used up; if the user allows any number, when the claimant goes away.
        loop {
            let looked = Instant::now();
            // A look before the next attempt is due, after a wake-up, is no attempt.
            if looked >= next_attempt {
                attempts = attempts.saturating_add(1);
                next_attempt = looked + waiting.sleep;
            }
            let holding = match self.attempt(claimant)? {
                Attempt::Acquired(acquired) => return Ok(acquired),
                Attempt::Busy(holding) => holding,
            };
            let is_too_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if is_too_late || waiting.max_attempts.is_some_and(|max| attempts >= max.get()) {
                return Err(Error::Busy(attempts, holding.map(Box::new)));
            }
            let pace = looked.elapsed().saturating_mul(LOOK_SHARE).clamp(MIN_LOOK_INTERVAL, MAX_LOOK_INTERVAL);
            observer.waiting(holding.as_ref(), attempts);
            let until = deadline.map_or(next_attempt, |deadline| next_attempt.min(deadline));
            self.sleep_until(until, claimant, holding.as_ref(), observer.interval())?;
            // Pace the looks, not the way to the first one after a long sleep.
            std::thread::sleep(pace.saturating_sub(looked.elapsed()));
        }
    }

    /// Releases the lock if it is the claimant's, or stale; with `force` also another's, if it is still the one seen first.
    ///
    /// # Errors
    /// [`Error::NotLocked`], or [`Error::NotOurs`]; nothing was changed then.
    pub fn release(&mut self, claimant: &dyn Claimant, mut force: bool) -> Result<Released, Error> {
        for _ in 0..MAX_ROUNDS {
            let Some((stored, verdict)) = self.look()? else { return Err(Error::NotLocked) };
            let released = match verdict {
                _ if claimant.owns(&stored) => Released::Own(stored.clone()),
                Verdict::Stale(why) => Released::Stale(stored.clone(), why),
                Verdict::Held(held) if force => Released::Forced(stored.clone(), held),
                Verdict::Held(held) => return Err(Error::NotOurs(Some(Box::new(Holding { stored, held })))),
            };
            let write = match released {
                Released::Stale(..) if !force => self.delete_stale(claimant, &stored)?,
                _ => self.backend.delete(&stored)?,
            };
            if write == Write::Done {
                return Ok(released);
            }
            // Whoever holds it now is not the one whom the user wanted to take it from.
            force = false;
        }
        Err(Error::NotOurs(None))
    }

    /// Takes a stale lock over before it is deleted, because a takeover finds out who else is taking it over.
    /// In the name of this very process: if it is killed in between, the record is stale again.
    fn delete_stale(&mut self, claimant: &dyn Claimant, stale: &Stored) -> Result<Write, Error> {
        let record = claimant.transient_record().map_err(Error::Token)?;
        match self.backend.replace(stale, &record)? {
            Write::Done => Ok(self.delete_own(&record)?),
            Write::Conflict => Ok(Write::Conflict),
        }
    }

    /// Deletes a record that was just written; a conflict means that somebody has taken it over.
    fn delete_own(&mut self, record: &Record) -> Result<Write, backend::Error> {
        match self.backend.load()? {
            Some(stored) if stored.content.record().is_some_and(|stored| stored.token == record.token) => {
                self.backend.delete(&stored)
            }
            _ => Ok(Write::Conflict),
        }
    }

    /// One try, which never waits.
    fn attempt(&mut self, claimant: &dyn Claimant) -> Result<Attempt, Error> {
        let mut last = None;
        for _ in 0..MAX_ROUNDS {
            if !claimant.is_present() {
                return Err(Error::Absent);
            }
            let Some((stored, verdict)) = self.look()? else {
                let record = claimant.record().map_err(Error::Token)?;
                match self.backend.create(&record)? {
                    Write::Done => return self.confirm(claimant, &record, Acquired::Free),
                    Write::Conflict => continue,
                }
            };
            // The PID in a legacy record may be another container's, which is reason enough to unlock, but not to lock.
            let is_legacy = stored.content.record().is_some_and(Record::is_legacy);
            if !is_legacy && claimant.owns(&stored) {
                return Ok(Attempt::Acquired(Acquired::AlreadyHeld(stored)));
            }
            let why = match verdict {
                Verdict::Stale(why) => why,
                Verdict::Held(held) => return Ok(Attempt::Busy(Some(Holding { stored, held }))),
            };
            let record = claimant.record().map_err(Error::Token)?;
            match self.backend.replace(&stored, &record) {
                Ok(Write::Done) => return self.confirm(claimant, &record, Acquired::TakenOver(stored, why)),
                Ok(Write::Conflict) => last = None,
                // Nothing was changed, and nobody can tell what the other one is about.
                Err(backend::Error::Contended { .. }) => {
                    last = Some(Holding { stored, held: Held::Unknown(Unknown::Contended) });
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Attempt::Busy(last))
    }

    /// Gives back what was acquired for a claimant that has gone away meanwhile.
    fn confirm(&mut self, claimant: &dyn Claimant, record: &Record, acquired: Acquired) -> Result<Attempt, Error> {
        if claimant.is_present() {
            return Ok(Attempt::Acquired(acquired));
        }
        self.delete_own(record)?;
        Err(Error::Absent)
    }

    fn judge(&mut self, stored: &Stored) -> Verdict {
        let now = Instant::now();
        let since = match &self.watched {
            Some((version, since)) if *version == stored.version => *since,
            _ => {
                self.watched = Some((stored.version.clone(), now));
                now
            }
        };
        self.judge.judge(stored, now - since)
    }

    fn sleep_until(
        &mut self,
        until: Instant,
        claimant: &dyn Claimant,
        holding: Option<&Holding>,
        at_most: Duration,
    ) -> Result<(), backend::Error> {
        // An empty file becomes stale by nothing but time.
        let is_being_written = holding.is_some_and(|holding| matches!(holding.held, Held::Unknown(Unknown::BeingWritten)));
        let at_most = if is_being_written { at_most.min(BEING_WRITTEN) } else { at_most };
        let mut fds = claimant.absence_fds();
        fds.extend(holding.and_then(|holding| holding.held.ended_fd()));
        self.backend.wait(until.saturating_duration_since(Instant::now()).min(at_most), &fds)
    }
}
