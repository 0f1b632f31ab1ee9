//! Releasing a lock: one's own, a stale one, or on request another's.

use std::time::{Duration, Instant};

use super::once::Ending;
use super::register::Write;
use super::removal::Removal;
use super::renew::mark_lost;
use super::staleness::{Held, Holding};
use super::{Error, Lost, MAX_ROUNDS, Mutex, ReleaseScope, Released, Requester, Stored};
use crate::record::{Entry, KEPT, Outcome, Record};
use crate::store;

const PAUSE: Duration = Duration::from_millis(250);

impl Mutex<'_> {
    /// Releases the lock within `scope`. `ending` is told to waiters. Tries again in an outage.
    pub fn release<'r>(
        &mut self,
        requester: &'r dyn Requester,
        scope: ReleaseScope<'r>,
        ending: impl Into<Ending<'r>>,
    ) -> Result<Released, Error> {
        let begun = Instant::now();
        let mut tried = Removal::new(requester, scope, ending.into());
        // Ends with the patience.
        loop {
            match self.try_to_release(&mut tried) {
                Ok(()) => break,
                Err(Error::Store(error))
                    if error.cause.passes() && begun.elapsed() < self.patience =>
                {
                    tried.may_be_done |= error.is_indefinite;
                    tracing::debug!("{error}; trying again");
                    store::pause(PAUSE, &[])?;
                }
                Err(absent @ (Error::NotLocked | Error::NotOurs(_))) => {
                    return self.resolve(tried, absent);
                }
                Err(error) => return Err(error),
            }
        }
        if tried.answer.is_ok() && !self.patience.is_zero() && self.register.is_sweep_due() {
            self.register.remove_unused(KEPT);
        }
        tried.answer
    }

    /// The answer when the requester's entry is `absent`: an earlier write may have removed it.
    fn resolve(&mut self, tried: Removal<'_>, absent: Error) -> Result<Released, Error> {
        let Removal { requester, scope, ending, may_be_done, .. } = tried;
        let how = match tried.answer {
            // The run of a key does not vanish when it ends: what is remembered of it counts.
            Ok(Released::Own { was, .. }) if was.iter().any(|entry| entry.once.is_some()) => {
                let stored = self.register.load()?.unwrap_or_default();
                let last = stored.record.as_ref().and_then(Record::last_run);
                if last.is_some_and(|(entry, _)| {
                    requester.owns(&stored, entry) && entry.released == Some(ending.outcome)
                }) {
                    return Ok(Released::Own { stays: None, was });
                }
                Lost::Gone
            }
            // What was found before is gone, as was intended.
            Ok(Released::Own { was, .. }) if may_be_done => {
                return Ok(Released::Own { stays: None, was });
            }
            Err(Error::Lost(how, _)) if may_be_done => how,
            answer if may_be_done => return answer,
            _ if scope.is_own() && self.register.change_notices(&[], Some(requester)).is_some() => {
                Lost::Broken
            }
            _ => return Err(absent),
        };
        let holders = if let Error::NotOurs(holders) = absent { holders } else { Vec::new() };
        Err(Error::Lost(how, holders))
    }

    fn try_to_release(&mut self, removal: &mut Removal<'_>) -> Result<(), Error> {
        let has_lease = |entry: &Entry| entry.lease.is_some();
        for _ in 0..MAX_ROUNDS {
            let (stored, judged) = self.look()?;
            let (left, answer) = self.plan(removal, &stored, judged)?;
            removal.answer = answer;
            let write = match &removal.answer {
                // Force deletes at once, also where no stale lock can be taken over (NFS).
                Ok(Released::Stale(former))
                    if removal.scope.is_own() && !former.entry.as_ref().is_some_and(has_lease) =>
                {
                    self.delete_stale(&stored)?
                }
                _ => self.store(&stored, left)?,
            };
            removal.may_be_done |= match (write, &removal.answer) {
                (Write::Done, _) => {
                    self.tell(removal, &stored);
                    return Ok(());
                }
                // A leased entry leaves a mark, unless a proxy has sent our write twice.
                (Write::Conflict, Ok(Released::Own { was, .. })) => was.iter().all(has_lease),
                (write, _) => write == Write::Unknown,
            };
        }
        Err(Error::NotOurs(Vec::new()))
    }

    /// What follows a release, best effort.
    fn tell(&mut self, removal: &Removal<'_>, stored: &Stored) {
        match &removal.answer {
            // A success is told to waiters only: a process that comes later does not wait.
            Ok(Released::Own { stays: None, was })
                if removal.ending.outcome == Outcome::Succeeded
                    && was.first().is_some_and(|own| own.once.is_none())
                    && !self.register.queue(|queue| queue.has_waiters()) =>
            {
                let _ = self.withdraw(&was[0]);
            }
            // An owner without a lease finds no mark in the record, and asks only if it runs.
            Ok(Released::Forced(taken)) => {
                let is_alive = |it: &&Holding| matches!(it.verdict, Held::Alive(_));
                let told = taken.iter().filter(is_alive).filter_map(|it| it.entry.as_ref());
                let told = told.filter(|it| it.lease.is_none() && !removal.is_known(stored, it));
                self.register.change_notices(&told.map(mark_lost).collect::<Vec<_>>(), None);
            }
            _ => {}
        }
    }

    /// Leaves these entries, or nothing if there are none, and wakes a waiter.
    pub(super) fn store(&mut self, seen: &Stored, mut left: Vec<Entry>) -> Result<Write, Error> {
        let record = Record::of(left.clone()).or_else(|| {
            // A full record may lack room for what is added to released entries.
            left.retain(|entry| entry.released.is_none());
            Record::of(left.clone())
        });
        if record.is_none() && !left.is_empty() {
            return Ok(Write::Conflict);
        }
        let write = self.register.put(Some(seen), record.as_ref())?;
        if write == Write::Done {
            self.register.queue(|queue| queue.notify());
        }
        Ok(write)
    }

    /// Takes a stale lock over before it is deleted, because a takeover finds out which other
    /// process takes it over, too. It is taken in the name of this process: if that is killed in
    /// between, the record is stale again.
    fn delete_stale(&mut self, stale: &Stored) -> Result<Write, Error> {
        let command = Some("serializer unlock".to_owned());
        let entry = Entry::of_this_process(command).map_err(Error::Entry)?;
        let Some(record) = Record::of(vec![entry.clone()]) else { return Ok(Write::Conflict) };
        match self.register.put(Some(stale), Some(&record))? {
            Write::Done => self.withdraw(&entry),
            write => Ok(write),
        }
    }

    /// Removes an entry that was just written, unless another process has taken it over.
    pub(super) fn withdraw(&mut self, entry: &Entry) -> Result<Write, Error> {
        for _ in 0..MAX_ROUNDS {
            let Some(stored) = self.register.load()? else { return Ok(Write::Conflict) };
            let mut rest = stored.entries().to_vec();
            let own: Vec<_> = rest.extract_if(.., |other| other.token == entry.token).collect();
            let [own] = own.as_slice() else { return Ok(Write::Conflict) };
            // A key remembers that it was begun.
            rest.extend(own.once.as_ref().map(|_| self.ended(own, Outcome::Unknown.into())));
            if self.store(&stored, rest)? == Write::Done {
                return Ok(Write::Done);
            }
        }
        Ok(Write::Conflict)
    }
}
