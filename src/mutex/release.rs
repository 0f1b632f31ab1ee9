//! Releasing a mutex: one's own, a stale one, or on request another's.

use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::renew::mark_lost;
use super::{Error, Lost, MAX_ROUNDS, Mutex, Released, Whose, split};
use crate::backend::{self, Stored, Write};
use crate::claimant::Claimant;
use crate::process::since_boot;
use crate::record::{Entry, Outcome, Record};
use crate::verdict::{Former, Held, Holding, Judged, Stale, Verdict};

/// For how long to try to release while the store does not answer: it may be starting again. Nothing is lost if it takes longer:
/// the lease ends with its owner.
pub const OUTAGE: Duration = Duration::from_secs(15);

/// Between two such tries.
const PAUSE: Duration = Duration::from_millis(250);

/// What was tried so far, and may have been done: the answer was lost.
#[derive(Default)]
struct Tried {
    may_be_done: bool,
    /// What was to be released.
    was: Vec<Entry>,
    /// What was to be told instead, because it was lost before.
    lost: Option<Lost>,
    /// Whom to take the lock away from: whoever held it at the first look, and nobody who has come since.
    aim: Option<Vec<Identity>>,
    /// From whom it was to be taken away.
    taken: Vec<Holding>,
}

/// Of an acquisition, as far as it is written down.
type Identity = (Option<Pid>, Option<String>);

fn identity(entry: Option<&Entry>) -> Identity {
    (entry.map(|entry| entry.owner.pid), entry.and_then(|entry| entry.token.clone()))
}

impl Mutex<'_> {
    /// Releases the lock if it is the claimant's or stale, or as `whose` says; that only if it is still the one seen first.
    /// `outcome` is told to those who wait for it. A store that does not answer is asked for some time.
    ///
    /// # Errors
    /// [`Error::NotLocked`], or [`Error::NotOurs`]; nothing was changed then. [`Error::Lost`] when it was the claimant's.
    pub fn release(&mut self, claimant: &dyn Claimant, whose: Whose, outcome: Outcome) -> Result<Released, Error> {
        self.release_within(OUTAGE, claimant, whose, outcome)
    }

    /// The same, but a store that does not answer is asked again for so long only.
    ///
    /// # Errors
    /// As for [`Mutex::release`].
    pub fn release_within(
        &mut self,
        patience: Duration,
        claimant: &dyn Claimant,
        whose: Whose,
        outcome: Outcome,
    ) -> Result<Released, Error> {
        let begun = Instant::now();
        let mut tried = Tried::default();
        // Ends with the patience.
        loop {
            match self.try_to_release(claimant, whose, outcome, &mut tried) {
                Err(Error::Backend(error)) if error.is_transient() && begun.elapsed() < patience => {
                    tried.may_be_done |= error.is_indefinite();
                    tracing::debug!("{error}; trying again");
                    backend::sleep(PAUSE, &[]).map_err(|error| Error::Entry(error.into()))?;
                }
                // What was found before was the claimant's, and is gone, as it was asked to.
                Err(gone @ (Error::NotLocked | Error::NotOurs(_))) if tried.may_be_done && whose.is_own() => {
                    let holders = if let Error::NotOurs(holders) = gone { holders } else { Vec::new() };
                    return match tried.lost {
                        Some(how) => Err(Error::Lost(how, holders)),
                        None => Ok(Released::Own { stays: None, was: tried.was }),
                    };
                }
                Err(Error::NotLocked | Error::NotOurs(_)) if tried.may_be_done && !tried.taken.is_empty() => {
                    return Ok(Released::Forced(tried.taken));
                }
                answer => return answer.map_err(|error| self.or_broken(error, claimant, whose)),
            }
        }
    }

    /// The same error, or another one if the claimant's lock was broken.
    fn or_broken(&mut self, error: Error, claimant: &dyn Claimant, whose: Whose) -> Error {
        let is_own = |record: &Record, entry: &Entry| claimant.owns(record, entry, None);
        match error {
            Error::NotLocked | Error::NotOurs(_) if !whose.is_own() || !self.backend.take_notices(&is_own) => error,
            Error::NotLocked => Error::Lost(Lost::Broken, Vec::new()),
            Error::NotOurs(holders) => Error::Lost(Lost::Broken, holders),
            error => error,
        }
    }

    fn try_to_release(
        &mut self,
        claimant: &dyn Claimant,
        whose: Whose,
        outcome: Outcome,
        tried: &mut Tried,
    ) -> Result<Released, Error> {
        for _ in 0..MAX_ROUNDS {
            let Some((stored, judged)) = self.look()? else { return Err(Error::NotLocked) };
            let record = stored.content.record();
            let is_claimants = |entry: &Entry| record.is_some_and(|record| claimant.owns(record, entry, stored.written));
            let lost = judged.iter().filter(|judged| is_lost(judged)).filter_map(|judged| judged.entry.as_ref());
            let lost: Vec<Entry> = lost.filter(|entry| is_claimants(entry)).cloned().collect();
            let is_own = |judged: &Judged<Verdict>| {
                judged.entry.as_ref().is_some_and(|entry| entry.released.is_none() && !is_lost(judged) && is_claimants(entry))
            };
            let (own, others): (Vec<_>, Vec<_>) = judged.into_iter().partition(is_own);
            if let Some(entry) = lost.first()
                && own.is_empty()
                && whose.is_own()
            {
                let how = if entry.released.is_none() { self.expired(entry) } else { Lost::TakenOver };
                let left = others.iter().filter_map(|judged| judged.entry.clone());
                let left = left.filter(|entry| lost.iter().all(|lost| lost.token != entry.token)).collect();
                tried.lost = Some(how);
                match self.store(&stored, left)? {
                    Write::Done => return Err(Error::Lost(how, split(others).0)),
                    write => tried.may_be_done |= write == Write::Unclear,
                }
                continue;
            }
            let (held, former) = split(others);
            if whose == Whose::Anybodys && tried.aim.is_none() {
                let all = own.iter().map(|own| own.entry.as_ref()).chain(held.iter().map(|held| held.entry.as_ref()));
                tried.aim = Some(all.map(identity).collect());
            }
            let released = match whose {
                // Nobody has to be forced.
                Whose::Own | Whose::OwnAlone | Whose::Anybodys if !own.is_empty() && (whose.is_own() || held.is_empty()) => {
                    self.release_own(&stored, own, held, &former, outcome, tried)?
                }
                Whose::OwnAlone if own.is_empty() && held.is_empty() => return Err(Error::NotLocked),
                _ if own.is_empty() && held.is_empty() => self.remove_stale(claimant, &stored, former, whose)?,
                _ => {
                    let (own, _) = split(own);
                    let all = own.into_iter().chain(held).collect();
                    self.take_away(&stored, all, &former, whose, tried, &is_claimants)?
                }
            };
            if let Some(released) = released {
                return Ok(released);
            }
        }
        Err(Error::NotOurs(Vec::new()))
    }

    /// `None` where somebody has changed the record; so for the next two.
    fn release_own(
        &mut self,
        stored: &Stored,
        own: Vec<Judged<Verdict>>,
        others: Vec<Holding>,
        former: &[Former],
        outcome: Outcome,
        tried: &mut Tried,
    ) -> Result<Option<Released>, Error> {
        let was: Vec<_> = own.iter().filter_map(|own| own.entry.clone()).collect();
        let now = |entry: &Entry| if entry.lease.is_some() { self.backend.now() } else { Some(since_boot()) };
        let left = own.into_iter().filter_map(|own| {
            let entry = own.entry?;
            what_stays(now(&entry), entry, outcome)
        });
        let (until, left): (Vec<_>, Vec<_>) = left.unzip();
        let told = left.iter().find(|_| outcome == Outcome::Succeeded).cloned();
        let is_to_stay = until.iter().any(Option::is_some);
        let lost = self.lost_marks(former, |_| false);
        // Whoever takes a leased lock away leaves a mark. Without one, it has gone by a write of ours that something on the way has sent twice.
        let leaves_marks = was.iter().all(|entry| entry.lease.is_some());
        (tried.was, tried.lost) = (was.clone(), None);
        match self.store(stored, entries(others).chain(lost).chain(left).collect())? {
            Write::Done => {}
            write => {
                tried.may_be_done |= write == Write::Unclear || leaves_marks;
                return Ok(None);
            }
        }
        // Asked only now: who comes later sees that it has ended, and does not wait for that.
        if let Some(told) = told.filter(|_| !is_to_stay)
            && !self.backend.is_awaited()
        {
            self.withdraw(&told)?;
        }
        Ok(Some(Released::Own { stays: until.into_iter().flatten().max(), was }))
    }

    fn remove_stale(
        &mut self,
        claimant: &dyn Claimant,
        stored: &Stored,
        mut former: Vec<Former>,
        whose: Whose,
    ) -> Result<Option<Released>, Error> {
        let is_meant = |former: &Former| match whose {
            Whose::Of(token) => former.entry.as_ref().is_some_and(|entry| entry.token.as_deref() == Some(token)),
            Whose::Own | Whose::OwnAlone | Whose::Anybodys => true,
        };
        let stale = former.iter().position(|former| former.verdict != Stale::Released && is_meant(former));
        let stale = former.swap_remove(stale.ok_or(Error::NotLocked)?);
        let write = match whose {
            // Who has lost it is told.
            _ if stale.entry.as_ref().is_some_and(|entry| entry.lease.is_some()) => {
                former.push(Former { entry: stale.entry.clone(), ..stale });
                let lost = self.lost_marks(&former, |_| false);
                self.store(stored, lost)?
            }
            Whose::Own | Whose::OwnAlone => self.delete_stale(claimant, stored)?,
            Whose::Anybodys | Whose::Of(_) => self.backend.delete(stored)?,
        };
        self.backend.notify();
        Ok((write == Write::Done).then(|| Released::Stale(Box::new(stale))))
    }

    fn take_away(
        &mut self,
        stored: &Stored,
        mut holders: Vec<Holding>,
        former: &[Former],
        whose: Whose,
        tried: &mut Tried,
        is_claimants: &dyn Fn(&Entry) -> bool,
    ) -> Result<Option<Released>, Error> {
        let is_meant = |holding: &Holding| match whose {
            Whose::Own | Whose::OwnAlone => false,
            Whose::Anybodys => tried.aim.as_ref().is_some_and(|aim| aim.contains(&identity(holding.entry.as_ref()))),
            Whose::Of(token) => holding.entry.as_ref().is_some_and(|entry| entry.token.as_deref() == Some(token)),
        };
        let taken: Vec<_> = holders.extract_if(.., |holding| is_meant(holding)).collect();
        if taken.is_empty() {
            return Err(Error::NotOurs(holders));
        }
        // Who takes it from all, and so from itself, knows.
        let knows = |entry: &Entry| whose == Whose::Anybodys && is_claimants(entry);
        let is_to_be_told = |entry: &&Entry| entry.lease.is_some() && entry.released.is_none() && !knows(entry);
        let lost = taken.iter().filter_map(|holding| holding.entry.as_ref()).filter(is_to_be_told).map(mark_lost);
        let lost: Vec<_> = self.lost_marks(former, |_| false).into_iter().chain(lost).collect();
        // An owner without a lease that does not run never asks.
        let is_seen = |holding: &&Holding| matches!(holding.verdict, Held::Alive(_));
        let broken = taken.iter().filter(is_seen).filter_map(|holding| holding.entry.clone());
        let broken: Vec<_> =
            broken.filter(|entry| entry.lease.is_none() && !knows(entry)).map(|entry| mark_lost(&entry)).collect();
        tried.taken = taken;
        let write = self.store(stored, entries(holders).chain(lost).collect())?;
        tried.may_be_done |= write == Write::Unclear;
        if write == Write::Done && !broken.is_empty() {
            self.backend.leave_notices(&broken);
        }
        Ok((write == Write::Done).then(|| Released::Forced(std::mem::take(&mut tried.taken))))
    }

    /// Leaves these entries, or nothing if there are none, and wakes who waits.
    pub(super) fn store(&mut self, seen: &Stored, mut entries: Vec<Entry>) -> Result<Write, backend::Error> {
        let mut record = Record::of(entries.clone());
        if record.is_none() {
            // What is added to an entry that is released may be too much for a full record. Fewer entries than there were fit,
            // and nobody holds this one.
            entries.retain(|entry| entry.released.is_none());
            record = Record::of(entries.clone());
        }
        let write = match record {
            Some(record) => self.backend.replace(seen, &record)?,
            None if entries.is_empty() => self.backend.delete(seen)?,
            None => Write::Conflict,
        };
        if write == Write::Done {
            self.backend.notify();
        }
        Ok(write)
    }

    /// Takes a stale lock over before it is deleted, because a takeover finds out who else is taking it over.
    /// In the name of this very process: if it is killed in between, the record is stale again.
    fn delete_stale(&mut self, claimant: &dyn Claimant, stale: &Stored) -> Result<Write, Error> {
        let entry = claimant.transient_entry().map_err(Error::Entry)?;
        let Some(record) = Record::of(vec![entry.clone()]) else { return Ok(Write::Conflict) };
        match self.backend.replace(stale, &record)? {
            Write::Done => Ok(self.withdraw(&entry)?),
            write => Ok(write),
        }
    }

    /// Takes away an entry that was just written; a conflict means that somebody has taken it over.
    pub(super) fn withdraw(&mut self, entry: &Entry) -> Result<Write, backend::Error> {
        for _ in 0..MAX_ROUNDS {
            let Some(stored) = self.backend.load()? else { return Ok(Write::Conflict) };
            let entries = stored.content.record().map(Record::entries).unwrap_or_default();
            let rest: Vec<_> = entries.iter().filter(|other| other.token != entry.token).cloned().collect();
            if rest.len() == entries.len() {
                return Ok(Write::Conflict);
            }
            if self.store(&stored, rest)? == Write::Done {
                return Ok(Write::Done);
            }
        }
        Ok(Write::Conflict)
    }
}

impl Whose<'_> {
    fn is_own(self) -> bool {
        matches!(self, Self::Own | Self::OwnAlone)
    }
}

fn entries(holders: Vec<Holding>) -> impl Iterator<Item = Entry> {
    holders.into_iter().filter_map(|holding| holding.entry)
}

/// Whether it was held once, and its lease has expired, or it was taken away.
fn is_lost(judged: &Judged<Verdict>) -> bool {
    let is_told = judged.entry.as_ref().is_some_and(|entry| entry.released == Some(Outcome::Lost));
    is_told || matches!(judged.verdict, Verdict::Stale(Stale::Expired))
}

/// What is left of a holder's own entry when it releases at `now`, and for how long yet.
fn what_stays(now: Option<u64>, entry: Entry, outcome: Outcome) -> Option<(Option<Duration>, Entry)> {
    let remaining = entry.until.and_then(|until| until.checked_sub(now?)).filter(|remaining| *remaining > 0);
    let stays = remaining.is_some() || outcome == Outcome::Succeeded;
    stays.then(|| (remaining.map(Duration::from_millis), Entry { released: Some(outcome), ..entry }))
}
