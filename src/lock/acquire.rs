//! Acquiring a lock.

use std::time::{Duration, Instant};

use super::register::Write;
use super::wait::{Attempt, PATIENCE};
use super::{Acquired, Error, Grant, Lost, MAX_ROUNDS, Mutex, Request, Seen};
use crate::lock::once::{Ended, Next};
use crate::lock::requester::Requester;
use crate::lock::staleness::{Held, Holding, Judged, Stale, StaleHolder, Unknown, Verdict};
use crate::lock::stored::Stored;
use crate::lock::waiting::{Observer, Waiting};
use crate::record::mode::Mode;
use crate::record::run::{Rule, Run};
use crate::record::{Entry, Lease, Outcome, Record};
use crate::store;
use crate::sys::clock::since_boot;

/// How many acquisitions with lost answers are remembered. If a store breaks all the time, it made
/// the last ones, if any.
const MAX_UNCONFIRMED: usize = 256;

/// What a requester wants.
struct Bid<'b> {
    requester: &'b dyn Requester,
    request: &'b Request,
    /// With `skip_if_done`: nothing is needed any more when this acquisition has succeeded.
    awaited: Option<String>,
    /// Of a key that runs once: the begin of the period in which the requester has come.
    since: Option<u64>,
}

/// What to do about what is stored.
enum Decision {
    /// Nothing is to be written.
    Answer(Result<Attempt<Acquired>, Error>),
    /// The requester lost the lock before, which it must be told. These entries stay; `None` if its
    /// mark is gone already.
    Lost(Option<Vec<Entry>>, Vec<Holding>),
    /// The requester may join the holders, in place of the former ones; with this run of a key that
    /// runs once.
    Free(Vec<Holding>, Vec<StaleHolder>, Option<Run>),
}

impl Mutex<'_> {
    /// Acquires the lock, waiting for it within `waiting`.
    ///
    /// With `skip_if_done`, it waits without a place in the queue for the present holder. If that
    /// reports success, nothing is acquired; otherwise it tries again. Nothing is held after an
    /// error.
    pub fn acquire(
        &mut self,
        requester: &dyn Requester,
        request: &Request,
        waiting: &Waiting,
        observer: &mut dyn Observer,
    ) -> Result<Acquired, Error> {
        // Only if it is told once: it would never get the lock again.
        if self.register.take_notices(requester) == Some(true) {
            let held = self.look().ok().flatten().map(|(_, judged)| Seen::held(judged));
            return Err(Error::Lost(Lost::Broken, held.unwrap_or_default()));
        }
        if request.skip_if_done {
            // Before the first look: a holder that is seen must know of this waiter.
            self.register.queue(|queue, key| queue.observe(key));
        }
        let mut bid = Bid { requester, request, awaited: None, since: None };
        let acquired = self.wait_for(requester, request.skip_if_done, waiting, observer, |mutex| {
            let attempt = mutex.attempt(&mut bid)?;
            if let Attempt::Busy(holders) = &attempt
                && request.skip_if_done
            {
                bid.awaited =
                    holders.first().and_then(|holding| holding.entry.as_ref()?.token.clone());
            }
            Ok(attempt)
        });
        self.register.leave_queue();
        if request.skip_if_done
            && matches!(acquired, Ok(Acquired::NotNeeded(_)))
            && !self.has_waiters()
        {
            // If this fails, the next holder does it.
            let _ = self.forget_outcome();
        }
        acquired
    }

    /// One attempt, which never waits.
    fn attempt(&mut self, bid: &mut Bid<'_>) -> Result<Attempt<Acquired>, Error> {
        let Bid { requester, request, .. } = *bid;
        for _ in 0..MAX_ROUNDS {
            if !requester.is_alive() {
                return Err(Error::Absent);
            }
            let (stored, judged) =
                self.look()?.map_or((None, Vec::new()), |(stored, judged)| (Some(stored), judged));
            let has_no_clock =
                self.register.now().is_none() && self.register.next_number().is_some();
            if request.at_least.is_some() && request.lease.is_some() && has_no_clock {
                return Err(Error::NoClock);
            }
            if let Some(rule) = request.once {
                bid.since.get_or_insert_with(|| rule.since(self.register.time()));
            }
            let (held, former, run) = match self.evaluate(stored.as_ref(), judged, bid) {
                Decision::Answer(answer) => {
                    self.left_to_others = None;
                    return answer;
                }
                Decision::Lost(left, held) => {
                    // Until it is told: the write may be done although its answer is lost.
                    self.was_lost = true;
                    if let (Some(stored), Some(left)) = (&stored, left)
                        && self.store(stored, left)? != Write::Done
                    {
                        continue;
                    }
                    self.was_lost = false;
                    return Err(Error::Lost(Lost::TakenOver, held));
                }
                Decision::Free(held, former, run) => (held, former, run),
            };
            if !self.register.queue(|queue, key| queue.is_first(key)).unwrap_or(true) {
                if self.left_for() < PATIENCE {
                    return Ok(Attempt::LeftToOthers);
                }
                if !may_overtake(request.mode, &held) {
                    return Ok(Attempt::Busy(held));
                }
            }
            if let Some(attempt) = self.take(bid, stored.as_ref(), held, former, run)? {
                return Ok(attempt);
            }
        }
        Ok(Attempt::Busy(Vec::new()))
    }

    /// Decides by what is stored alone; nothing is written.
    fn evaluate(
        &self,
        stored: Option<&Stored>,
        judged: Vec<Judged<Verdict>>,
        bid: &Bid<'_>,
    ) -> Decision {
        // The PID in a legacy record may be another container's: reason enough to unlock, but not
        // to lock.
        let owns = |entry: &Entry| {
            let is_own = |stored: &Stored| !stored.is_legacy() && bid.requester.owns(stored, entry);
            stored.is_some_and(is_own) || self.unconfirmed(entry).is_some()
        };
        let Seen { own, mut lost, held, former } = Seen::new(judged, owns);
        if let Some(own) = own.into_iter().next() {
            let mode = own.entry.as_ref().map_or(bid.request.mode, |entry| entry.mode);
            let began = own.entry.as_ref().and_then(|entry| Some(entry.once.as_ref()?.began));
            return Decision::Answer(
                match own.entry.as_ref().and_then(|entry| self.unconfirmed(entry)) {
                    Some(grant) => Ok(Attempt::Done(Acquired::Free(grant.clone()))),
                    None if mode != bid.request.mode => Err(Error::HeldOtherwise(mode)),
                    // It runs for an earlier period, and would wait for itself.
                    None if began.is_some() && began < bid.since => {
                        Err(Error::Busy(1, Seen::held(vec![own])))
                    }
                    None => Ok(Attempt::Done(Acquired::AlreadyHeld(Box::new(own)))),
                },
            );
        }
        // The owner may not have noticed that it lost the lock, and that others have had it since.
        // It never relied on an acquisition whose answer was lost.
        lost.retain(|entry| {
            entry.released == Some(Outcome::Lost) && self.unconfirmed(entry).is_none()
        });
        if let Some(stored) = stored.filter(|_| !lost.is_empty()) {
            return Decision::Lost(Some(stored.without(&lost)), held);
        }
        if self.was_lost {
            return Decision::Lost(None, held);
        }
        let is_success = |entry: &Entry| entry.released == Some(Outcome::Succeeded);
        let awaited = bid.awaited.as_deref();
        let is_awaited = |entry: &Entry| {
            let is_it = entry.token.as_deref() == awaited && is_success(entry);
            awaited.is_some() && (is_it || entry.previous.as_deref() == awaited)
        };
        // A holder that has succeeded, and stays for a time, need not have been seen before.
        let is_done = |holding: &Holding| holding.entry.as_ref().is_some_and(is_success);
        let all = stored.map(Stored::entries).unwrap_or_default();
        if all.iter().any(is_awaited) || (bid.request.skip_if_done && held.iter().any(is_done)) {
            return Decision::Answer(Ok(Attempt::Done(Acquired::NotNeeded(None))));
        }
        if !joins(bid.request.mode, &held) {
            return Decision::Answer(Ok(Attempt::Busy(held)));
        }
        let Some(rule) = bid.request.once else { return Decision::Free(held, former, None) };
        self.evaluate_key(rule, bid, held, former)
    }

    /// Decides about a key that runs once, which has no holder, by its last run.
    fn evaluate_key(
        &self,
        rule: Rule,
        bid: &Bid<'_>,
        held: Vec<Holding>,
        former: Vec<StaleHolder>,
    ) -> Decision {
        let mut entries =
            former.iter().filter_map(|former| Some((former.entry.as_ref()?, former.verdict)));
        let last = entries.rfind(|(entry, _)| entry.released != Some(Outcome::Lost));
        let last = match last
            .map(|(entry, why)| (entry.once.as_ref(), Ended::of(entry, &Verdict::Stale(why))))
        {
            Some((Some(run), Some(ended))) => Some((run, ended)),
            // Of a newer format, or another program's.
            Some(_) => {
                return Decision::Answer(Err(self
                    .register
                    .is_foreign("it does not tell of a run")
                    .into()));
            }
            None => None,
        };
        let (name, now) = (self.register.name(), self.register.time());
        let next = match bid.request.claim {
            Some(claim) => claim.next(&name, rule, last, now),
            None => rule.next(&name, last, bid.since.unwrap_or_default(), now),
        };
        match next {
            Next::Run(run) => Decision::Free(held, former, Some(run)),
            Next::Skip => Decision::Answer(Ok(Attempt::Done(Acquired::NotNeeded(
                last.map(|(run, _)| Box::new(run.clone())),
            )))),
            Next::GiveUp(why) => Decision::Answer(Err(Error::GivenUp(why))),
        }
    }

    /// The acquisition of this entry, if its answer was lost.
    fn unconfirmed(&self, entry: &Entry) -> Option<&Grant> {
        self.unconfirmed.iter().find(|grant| Some(&grant.token) == entry.token.as_ref())
    }

    /// Takes the lock, if the register is still in the state `stored`; `None` to look again.
    fn take(
        &mut self,
        Bid { requester, request, .. }: &Bid<'_>,
        stored: Option<&Stored>,
        held: Vec<Holding>,
        former: Vec<StaleHolder>,
        run: Option<Run>,
    ) -> Result<Option<Attempt<Acquired>>, Error> {
        let mut entry = requester.entry().map_err(Error::Entry)?;
        (entry.mode, entry.once) = (request.mode, run);
        let clock = if request.lease.is_some() { self.register.now() } else { Some(since_boot()) };
        let end = |at_least: Duration| {
            Some(clock?.saturating_add(u64::try_from(at_least.as_millis()).unwrap_or(u64::MAX / 2)))
        };
        entry.until = request.at_least.and_then(end);
        let entries = former.iter().filter_map(|former| former.entry.as_ref());
        let succeeded = entries.filter(|entry| entry.released == Some(Outcome::Succeeded));
        entry.previous = succeeded.filter_map(|entry| entry.token.clone()).next();
        // Before the end of the lease is computed, and before it is sent.
        let leased_at = since_boot();
        entry.lease = request.lease.map(|duration| Lease {
            duration,
            expires: self.expiry(duration),
            renewals: 0,
        });
        entry.fencing = request.lease.and_then(|_| self.register.next_number());
        let was_own = |entry: &Entry| stored.is_some_and(|stored| requester.owns(stored, entry));
        let marks = self.lost_marks(&former).into_iter().filter(|mark| !was_own(mark));
        let kept = held.iter().filter_map(|held| held.entry.clone()).chain(marks);
        let Some(record) = Record::of(kept.chain([entry.clone()]).collect()) else {
            return Ok(Some(Attempt::Busy(held)));
        };
        let token = entry.token.clone().unwrap_or_default();
        let run = entry.once.as_ref().map(|run| run.number);
        let grant = Grant { token, fencing: entry.fencing, leased_at, run, is_stopped: false };
        match self.register.put(stored, Some(&record)) {
            Ok(Write::Done) if requester.is_alive() => {
                let from = former.into_iter().find(|former| former.verdict != Stale::Released);
                Ok(Some(Attempt::Done(match from {
                    Some(from) => Acquired::TakenOver(grant, Box::new(from)),
                    None => Acquired::Free(grant),
                })))
            }
            // The requester has ended meanwhile.
            Ok(Write::Done) => {
                self.withdraw(&entry)?;
                Err(Error::Absent)
            }
            // Nothing was changed, and what the other process is doing is unknown.
            Err(error) if error.cause == store::Cause::Contended => {
                let verdict = || Held::Unknown(Unknown::Contended);
                let former = former.into_iter().map(|Judged { entry, written, .. }| Judged {
                    entry,
                    written,
                    verdict: verdict(),
                });
                Ok(Some(Attempt::Busy(held.into_iter().chain(former).collect())))
            }
            // It may be done, even after a conflict, which is the second answer if a proxy has sent
            // the write twice. The next look tells, by the token.
            write => {
                self.unconfirmed.truncate(MAX_UNCONFIRMED - 1);
                self.unconfirmed.insert(0, grant);
                Ok(write.map(|_| None)?)
            }
        }
    }

    /// How long earlier waiters have left the lock free, in one and the same state.
    fn left_for(&mut self) -> Duration {
        // A freed register has a version, too: two hand-offs between two polls leave it free each
        // time.
        let seen = self.register.version().map(<[u8]>::to_vec);
        if self.left_to_others.as_ref().is_none_or(|(version, _)| *version != seen) {
            self.left_to_others = Some((seen, Instant::now()));
        }
        self.left_to_others.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }

    /// Removes what tells how an acquisition went, if there is nothing else.
    fn forget_outcome(&mut self) -> Result<(), Error> {
        let Some(stored) = self.register.load()? else { return Ok(()) };
        let tells_only =
            |entry: &Entry| entry.released == Some(Outcome::Succeeded) && entry.until.is_none();
        if !stored.entries().is_empty() && stored.entries().iter().all(tells_only) {
            // After a conflict, another process makes use of it.
            self.register.put(Some(&stored), None)?;
        }
        Ok(())
    }
}

/// Whether a requester may join these holders; not where they may mean something that is not
/// understood here.
fn joins(mode: Mode, holders: &[Holding]) -> bool {
    let modes = holders.iter().map(|holding| match holding.verdict {
        Held::Unknown(Unknown::NewerVersion | Unknown::BeingWritten) => None,
        _ => Some(holding.entry.as_ref()?.mode),
    });
    modes.collect::<Option<Vec<_>>>().is_some_and(|modes| mode.joins(&modes))
}

/// Whether to overtake earlier waiters that do not take what this one could have: not if they may
/// be waiting for the very holders that it would join. Sharers in succession would keep out an
/// exclusive waiter for ever. A requester of one of several slots, as all holders were, can expect
/// that the waiters want one, too.
fn may_overtake(mode: Mode, holders: &[Holding]) -> bool {
    let is_alike =
        |holding: &Holding| holding.entry.as_ref().is_some_and(|entry| entry.mode == mode);
    holders.is_empty() || (mode != Mode::Shared && holders.iter().all(is_alike))
}
