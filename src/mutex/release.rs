//! Releasing a mutex: one's own, a stale one, or on request another's.

use std::time::Duration;

use super::{Error, MAX_ROUNDS, Mutex, Released, Whose, split};
use crate::backend::{self, Stored, Write};
use crate::claimant::Claimant;
use crate::process::since_boot;
use crate::record::{Entry, Outcome, Record};
use crate::verdict::{Former, Holding, Judged, Stale, Verdict};

impl Mutex<'_> {
    /// Releases the lock if it is the claimant's or stale, or as `whose` says; that only if it is still the one seen first.
    /// `outcome` is told to those who wait for it.
    ///
    /// # Errors
    /// [`Error::NotLocked`], or [`Error::NotOurs`]; nothing was changed then.
    pub fn release(&mut self, claimant: &dyn Claimant, mut whose: Whose, outcome: Outcome) -> Result<Released, Error> {
        for _ in 0..MAX_ROUNDS {
            let Some((stored, judged)) = self.look()? else { return Err(Error::NotLocked) };
            let record = stored.content.record();
            let is_own = |judged: &Judged<Verdict>| {
                let entry = judged.entry.as_ref().filter(|entry| entry.released.is_none());
                record.zip(entry).is_some_and(|(record, entry)| claimant.owns(record, entry, judged.written))
            };
            let (own, others): (Vec<_>, Vec<_>) = judged.into_iter().partition(is_own);
            let (held, former) = split(others);
            let released = match whose {
                // Nobody has to be forced.
                Whose::Own | Whose::Anybodys if !own.is_empty() && (whose == Whose::Own || held.is_empty()) => {
                    self.release_own(&stored, own, held, outcome)?
                }
                _ if own.is_empty() && held.is_empty() => self.remove_stale(claimant, &stored, former, whose)?,
                _ => {
                    let (own, _) = split(own);
                    self.take_away(&stored, own.into_iter().chain(held).collect(), whose)?
                }
            };
            if let Some(released) = released {
                return Ok(released);
            }
            // Whoever holds it now is not the one whom the user wanted to take it from.
            if whose == Whose::Anybodys {
                whose = Whose::Own;
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
        outcome: Outcome,
    ) -> Result<Option<Released>, Error> {
        let left = own.into_iter().filter_map(|own| what_stays(own.entry?, outcome));
        let (until, left): (Vec<_>, Vec<_>) = left.unzip();
        let told = left.iter().find(|_| outcome == Outcome::Succeeded).cloned();
        if self.store(stored, entries(others).chain(left).collect())? == Write::Conflict {
            return Ok(None);
        }
        // Asked only now: who comes later sees that it has ended, and does not wait for that.
        if let Some(told) = told.filter(|told| told.until.is_none_or(|until| until <= since_boot()))
            && !self.backend.is_awaited()
        {
            self.withdraw(&told)?;
        }
        Ok(Some(Released::Own(until.into_iter().flatten().max())))
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
            Whose::Own | Whose::Anybodys => true,
        };
        let stale = former.iter().position(|former| former.verdict != Stale::Released && is_meant(former));
        let stale = former.swap_remove(stale.ok_or(Error::NotLocked)?);
        let write = match whose {
            Whose::Own => self.delete_stale(claimant, stored)?,
            Whose::Anybodys | Whose::Of(_) => self.backend.delete(stored)?,
        };
        self.backend.notify();
        Ok((write == Write::Done).then(|| Released::Stale(Box::new(stale))))
    }

    fn take_away(&mut self, stored: &Stored, mut holders: Vec<Holding>, whose: Whose) -> Result<Option<Released>, Error> {
        let is_meant = |holding: &Holding| match whose {
            Whose::Own => false,
            Whose::Anybodys => true,
            Whose::Of(token) => holding.entry.as_ref().is_some_and(|entry| entry.token.as_deref() == Some(token)),
        };
        let taken: Vec<_> = holders.extract_if(.., |holding| is_meant(holding)).collect();
        if taken.is_empty() {
            return Err(Error::NotOurs(holders));
        }
        let write = self.store(stored, entries(holders).collect())?;
        Ok((write == Write::Done).then_some(Released::Forced(taken)))
    }

    /// Leaves these entries, or nothing if there are none, and wakes who waits.
    fn store(&mut self, seen: &Stored, mut entries: Vec<Entry>) -> Result<Write, backend::Error> {
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
            Write::Conflict => Ok(Write::Conflict),
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

fn entries(holders: Vec<Holding>) -> impl Iterator<Item = Entry> {
    holders.into_iter().filter_map(|holding| holding.entry)
}

/// What is left of a holder's own entry when it releases, and for how long yet.
fn what_stays(entry: Entry, outcome: Outcome) -> Option<(Option<Duration>, Entry)> {
    let remaining = entry.until.and_then(|until| until.checked_sub(since_boot())).filter(|remaining| *remaining > 0);
    let stays = remaining.is_some() || outcome == Outcome::Succeeded;
    stays.then(|| (remaining.map(Duration::from_millis), Entry { released: Some(outcome), ..entry }))
}
