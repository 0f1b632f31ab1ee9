//! Acquiring a lock.

use std::mem::take;
use std::time::Instant;

use super::decision::{Bid, Decision};
use super::register::Write;
use super::staleness::{Held, Holding, Judged, Stale, StaleHolder, Unknown, entries};
use super::waiting::{Attempt, Observer, PATIENCE, Waiting};
use super::{Acquired, Error, Grant, Lost, MAX_ROUNDS, Mutex, Request, Requester, Stored};
use crate::record::mode::Mode;
use crate::record::run::Run;
use crate::record::{Entry, Lease, Outcome, Record};
use crate::store::{self, waiter};
use crate::sys::clock::{millis, since_boot};

/// How many acquisitions with lost answers are remembered: of more, the last ones count.
const MAX_UNCONFIRMED: usize = 256;

impl Mutex<'_> {
    /// Acquires the lock, waiting for it within `waiting`.
    ///
    /// With `skip_if_done`, it waits beside the queue for the present holder. If that reports
    /// success, nothing is acquired; otherwise it tries again. Nothing is held after an error.
    pub fn acquire(
        &mut self,
        requester: &dyn Requester,
        request: &Request,
        waiting: &Waiting,
        observer: &mut dyn Observer,
    ) -> Result<Acquired, Error> {
        let _ = waiter::WANTED.set(request.mode);
        // Only if it is told once: it would never get the lock again.
        if self.register.change_notices(&[], Some(requester)) == Some(true) {
            return Err(Error::Lost(Lost::Broken, self.holders().unwrap_or_default()));
        }
        if request.skip_if_done {
            // Before the first look: a holder that is seen must know of this waiter.
            self.register.queue(|queue| queue.observe());
        }
        let (unconfirmed, was_lost) = (take(&mut self.unconfirmed), self.was_lost);
        let mut bid = Bid { unconfirmed, was_lost, ..Bid::new(requester, request) };
        let acquired = self.wait_for(requester, request.skip_if_done, waiting, observer, |mutex| {
            let attempt = mutex.attempt(&mut bid)?;
            if request.skip_if_done
                && let Attempt::Busy(holders) = &attempt
            {
                bid.awaited = holders.first().and_then(|it| it.entry.as_ref()?.token.clone());
            }
            Ok(attempt)
        });
        // An acquisition is found once: the requester may hand it over.
        let is_told = matches!(acquired, Ok(Acquired::Granted(..)));
        self.unconfirmed = if is_told { Vec::new() } else { bid.unconfirmed };
        self.was_lost = bid.was_lost;
        self.register.queue(|queue| queue.leave());
        let is_skipped = request.skip_if_done && matches!(acquired, Ok(Acquired::NotNeeded(_)));
        if is_skipped && !self.register.queue(|queue| queue.has_waiters()) {
            // If this fails, the next holder does it.
            let _ = self.forget_outcome();
        }
        acquired
    }

    fn attempt(&mut self, bid: &mut Bid<'_>) -> Result<Attempt<Acquired>, Error> {
        let Bid { requester, request, .. } = *bid;
        for _ in 0..MAX_ROUNDS {
            if !requester.is_alive() {
                return Err(Error::Absent);
            }
            let (stored, judged) = self.look()?;
            let needs_clock = request.at_least.is_some() && request.lease.is_some();
            if needs_clock && self.register.now().is_none() && self.register.next_number().is_some()
            {
                return Err(Error::NoClock);
            }
            if let Some(rule) = request.once {
                bid.since.get_or_insert_with(|| rule.since(self.register.time()));
            }
            let key = (&*self.register.name(), self.register.time());
            let left = self.left_to_others.take();
            let (held, former, run) = match bid.decide(&stored, judged, key)? {
                Decision::Done(acquired) => return Ok(Attempt::Done(acquired)),
                Decision::Busy(held) => return Ok(Attempt::Busy(held)),
                Decision::Free(held, former, run) => (held, former, run),
                Decision::Lost(left, held) => {
                    // Until it is told: the write may be done although its answer is lost.
                    bid.was_lost = true;
                    if stored.entries() != left && self.store(&stored, left)? != Write::Done {
                        continue;
                    }
                    bid.was_lost = false;
                    return Err(Error::Lost(Lost::TakenOver, held));
                }
            };
            if !self.register.queue(|queue| queue.is_first()) {
                // A freed register has a version, too: it may be free again, by another hand-off.
                let seen = self.register.version().map(<[u8]>::to_vec);
                let left = left.filter(|(version, _)| *version == seen);
                let left = left.unwrap_or_else(|| (seen, Instant::now()));
                if self.left_to_others.insert(left).1.elapsed() < PATIENCE {
                    return Ok(Attempt::LeftToOthers);
                }
                if !may_overtake(request.mode, &held) {
                    return Ok(Attempt::Busy(held));
                }
            }
            if let Some(attempt) = self.take(bid, &stored, held, former, run)? {
                return Ok(attempt);
            }
        }
        Ok(Attempt::Busy(Vec::new()))
    }

    /// Takes the lock, if the register is still in the state `stored`; `None` to look again.
    fn take(
        &mut self,
        bid: &mut Bid<'_>,
        stored: &Stored,
        held: Vec<Holding>,
        former: Vec<StaleHolder>,
        run: Option<Run>,
    ) -> Result<Option<Attempt<Acquired>>, Error> {
        let requester = bid.requester;
        // Before the end of the lease is computed, and before it is sent.
        let leased_at = since_boot();
        let entry = self.entry(bid, &former, run)?;
        let was_own = |entry: &Entry| requester.owns(stored, entry);
        let marks = self.lost_marks(&former).into_iter().filter(|mark| !was_own(mark));
        let kept = entries(&held).cloned().chain(marks).chain([entry.clone()]);
        let Some(record) = Record::of(kept.collect()) else {
            return Ok(Some(Attempt::Busy(held)));
        };
        let grant = Grant::of(&entry, leased_at);
        match self.register.put(Some(stored), Some(&record)) {
            Ok(Write::Done) if requester.is_alive() => {
                let from = former.into_iter().find(|former| former.verdict != Stale::Released);
                Ok(Some(Attempt::Done(Acquired::Granted(grant, from.map(Box::new)))))
            }
            // The requester has ended meanwhile.
            Ok(Write::Done) => {
                self.withdraw(&entry)?;
                Err(Error::Absent)
            }
            // Nothing was changed, and what the other process is doing is unknown.
            Err(error) if error.cause == store::Cause::Contended => {
                let busy = former.into_iter().map(|Judged { entry, written, .. }| Judged {
                    entry,
                    written,
                    verdict: Held::Unknown(Unknown::Contended),
                });
                Ok(Some(Attempt::Busy(held.into_iter().chain(busy).collect())))
            }
            // It may be done, also after a conflict, if a proxy sent it twice: the next look tells.
            write => {
                bid.unconfirmed.truncate(MAX_UNCONFIRMED - 1);
                bid.unconfirmed.insert(0, grant);
                Ok(write.map(|_| None)?)
            }
        }
    }

    fn entry(
        &self,
        bid: &Bid<'_>,
        former: &[StaleHolder],
        run: Option<Run>,
    ) -> Result<Entry, Error> {
        let request = bid.request;
        let entry = bid.requester.entry().map_err(Error::Entry)?;
        let clock = if request.lease.is_some() { self.register.now() } else { Some(since_boot()) };
        let end = |at_least| Some(clock?.saturating_add(millis(at_least)));
        let succeeded = |entry: &&Entry| entry.released == Some(Outcome::Succeeded);
        let mut previous = entries(former).filter(succeeded);
        let lease = |duration| Lease { duration, expires: self.expiry(duration), renewals: 0 };
        Ok(Entry {
            mode: request.mode,
            once: run,
            until: request.at_least.and_then(end),
            previous: previous.find_map(|entry| entry.token.clone()),
            lease: request.lease.map(lease),
            fencing: request.lease.and_then(|_| self.register.next_number()),
            ..entry
        })
    }

    /// Removes what tells how an acquisition went, if there is nothing else.
    fn forget_outcome(&mut self) -> Result<(), Error> {
        let Some(stored) = self.register.load()? else { return Ok(()) };
        let tells_only = |it: &Entry| it.released == Some(Outcome::Succeeded) && it.until.is_none();
        if !stored.entries().is_empty() && stored.entries().iter().all(tells_only) {
            // After a conflict, another process makes use of it.
            self.register.put(Some(&stored), None)?;
        }
        Ok(())
    }
}

/// Whether to overtake earlier waiters that do not take what this one could have: not if they may
/// wait for the holders that it would join. Sharers in succession would keep out an exclusive
/// waiter. The waiters for one of several slots, as all holders have, want one, too.
fn may_overtake(mode: Mode, holders: &[Holding]) -> bool {
    let is_alike = |it: &Holding| it.entry.as_ref().is_some_and(|entry| entry.mode == mode);
    holders.is_empty() || (mode != Mode::Shared && holders.iter().all(is_alike))
}
