//! Acquiring a mutex: try, judge, take over, wait.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::register::Write;
use super::{Acquired, Error, Grant, Lost, MAX_ROUNDS, Mutex, Request, split};
use crate::backend;
use crate::claimant::Claimant;
use crate::mode::Mode;
use crate::process::since_boot;
use crate::record::{Entry, Lease, Outcome, Record};
use crate::verdict::{Former, Held, Holding, Judged, Stale, Unknown, Verdict};
use crate::waiting::{Attempts, Crowd, Observer, Pace, Waiting};

/// For how long a free lock is left to those who came first. They need milliseconds; one that is stopped must not stop
/// all others.
pub const PATIENCE: Duration = Duration::from_millis(200);

/// How often one that waits behind others looks whether they take what is free. Costs nothing, and only delays what ought
/// not to happen.
const IN_LINE: Duration = Duration::from_secs(60);

/// How often one that stands beside the line looks whether what is free has been taken.
const BESIDE: Duration = Duration::from_millis(5);

/// How often a store that does not answer is asked at most: whoever sleeps for no time between two tries must not flood it.
const MIN_OUTAGE: Duration = Duration::from_millis(200);

/// How often somebody who must not wait any longer leaves a free lock to others before it says that it is busy: every time,
/// somebody else has had it.
const MAX_DEFERRALS: usize = 50;

/// So many grants are remembered that may have been made in silence. A store that breaks all the time has made the last ones, if any.
const MAX_ASKED_FOR: usize = 256;

enum Attempt {
    Done(Acquired),
    Busy(Vec<Holding>),
    /// It is free, but others were first.
    LeftToOthers,
}

/// Whose turn it is to take what is free.
enum Turn {
    Ours,
    Others,
    /// Others are first, and do not take it.
    Nobodys,
}

impl Mutex<'_> {
    /// Acquires the lock, waiting for it within `waiting`.
    ///
    /// With `skip_if_done` it stands beside the line, and waits for whoever holds the lock at the moment: if that one says that
    /// it has succeeded, nothing is acquired; otherwise it tries again, and may have to wait for the next one.
    ///
    /// # Errors
    /// [`Error::Busy`] when the attempts are used up, [`Error::Absent`] when the claimant goes away; nothing is held then.
    pub fn acquire(
        &mut self,
        claimant: &dyn Claimant,
        request: &Request,
        waiting: &Waiting,
        observer: &mut dyn Observer,
    ) -> Result<Acquired, Error> {
        if request.skip_if_done {
            // Before the first look: whoever is seen holding the lock is to know that it is awaited.
            self.register.observe_queue();
        }
        let acquired = self.wait_and_acquire(claimant, request, waiting, observer);
        self.register.leave_queue();
        if matches!(acquired, Ok(Acquired::NotNeeded)) && !self.register.has_waiters() {
            // If it cannot, the next holder does; it was done all the same.
            let _ = self.forget_outcome();
        }
        acquired
    }

    fn wait_and_acquire(
        &mut self,
        claimant: &dyn Claimant,
        request: &Request,
        waiting: &Waiting,
        observer: &mut dyn Observer,
    ) -> Result<Acquired, Error> {
        let mut attempts = Attempts::new(waiting);
        let mut pace = Pace::default();
        let mut crowd = Crowd::default();
        let mut deferrals = 0;
        let mut awaited: Option<String> = None;
        // Ends when the attempts are used up; if the user allows any number, when the claimant goes away.
        loop {
            let looked = Instant::now();
            pace.begin();
            attempts.count(looked);
            let (holders, is_free) = match self.attempt(claimant, request, awaited.as_deref()) {
                Ok(Attempt::Done(acquired)) => return Ok(acquired),
                Ok(Attempt::Busy(holders)) => (holders, false),
                Ok(Attempt::LeftToOthers) => (Vec::new(), true),
                Err(Error::Backend(error)) if error.is_transient() && !attempts.are_over() => {
                    wait_for_store(&error, &attempts, &mut crowd, observer, &claimant.absence_fds())?;
                    if !claimant.is_present() {
                        return Err(Error::Absent);
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            crowd.end();
            if attempts.are_over() && (!is_free || deferrals >= MAX_DEFERRALS) {
                return Err(Error::Busy(attempts.made(), holders));
            }
            if is_free {
                deferrals += 1;
                // Those in line are woken when it is their turn.
                let until = if request.skip_if_done { BESIDE } else { PATIENCE };
                self.sleep_until(looked + until, claimant, request, &holders)?;
                continue;
            }
            if request.skip_if_done {
                awaited = holders.first().and_then(|holding| holding.entry.as_ref()?.token.clone());
            }
            let rest = pace.rest();
            observer.waiting(&holders, attempts.made());
            let next_look = looked + IN_LINE.min(observer.interval());
            // The first in line is woken by whatever happens; the others only by its leaving.
            let in_line = attempts.last().map_or(next_look, |last| last.min(next_look));
            let alone = attempts.next().min(looked + observer.interval());
            let was_in_line = self.register.is_queued();
            let is_patient = was_in_line || self.register.is_turned_away();
            self.sleep_until(if is_patient { in_line } else { alone }, claimant, request, &holders)?;
            if !was_in_line && self.register.is_queued() {
                // It has just come behind others. What the holder does is not to wake all of them.
                self.sleep_until(in_line, claimant, request, &holders)?;
            }
            // Pace the looks, not the way to the first one after a long sleep.
            std::thread::sleep(rest.saturating_sub(looked.elapsed()));
        }
    }

    /// One try, which never waits. It is in vain if the acquisition `awaited` has succeeded.
    fn attempt(&mut self, claimant: &dyn Claimant, request: &Request, awaited: Option<&str>) -> Result<Attempt, Error> {
        let mut last = Vec::new();
        for _ in 0..MAX_ROUNDS {
            if !claimant.is_present() {
                return Err(Error::Absent);
            }
            let (stored, judged) = self.look()?.map_or((None, Vec::new()), |(stored, judged)| (Some(stored), judged));
            if request.at_least.is_some() && request.lease.is_some() && self.has_no_clock() {
                return Err(Error::NoClock);
            }
            let record = stored.as_ref().and_then(|stored| stored.content.record());
            // The PID in a legacy record may be another container's, which is reason enough to unlock, but not to lock.
            let record = record.filter(|record| !record.is_legacy());
            let is_own =
                |entry: &Entry| record.is_some_and(|record| entry.released.is_none() && claimant.owns(record, entry, None));
            let (own, others): (Vec<_>, Vec<_>) = judged.into_iter().partition(|judged| {
                let is_expired = matches!(judged.verdict, Verdict::Stale(Stale::Expired));
                !is_expired && judged.entry.as_ref().is_some_and(is_own)
            });
            if let Some(own) = own.into_iter().next() {
                let token = own.entry.as_ref().and_then(|entry| entry.token.as_deref());
                // The answer to an earlier attempt was lost: it was granted.
                if let Some(grant) = self.asked_for.iter().find(|grant| Some(grant.token.as_str()) == token) {
                    return Ok(Attempt::Done(Acquired::Free(grant.clone())));
                }
                return match own.entry.as_ref().map(|entry| entry.mode) {
                    Some(mode) if mode != request.mode => Err(Error::HeldOtherwise(mode)),
                    _ => Ok(Attempt::Done(Acquired::AlreadyHeld(Box::new(own)))),
                };
            }
            let (held, former) = split(others);
            let is_own_or_was = |entry: &Entry| record.is_some_and(|record| claimant.owns(record, entry, None));
            // Whoever asks again need not have noticed that its lock was lost, and that others may have had it since.
            // What was asked for just now, and granted in silence, nobody has relied on.
            let is_news = |entry: &Entry| {
                let is_asked_for = |grant: &Grant| Some(grant.token.as_str()) == entry.token.as_deref();
                entry.released == Some(Outcome::Lost) && is_own_or_was(entry) && !self.asked_for.iter().any(is_asked_for)
            };
            let is_lost = |former: &Former| former.entry.as_ref().is_some_and(is_news);
            if let Some(stored) = &stored
                && former.iter().any(is_lost)
            {
                self.lost = Some(Lost::TakenOver);
                let kept = held.iter().filter_map(|held| held.entry.clone());
                // Others may be waiting for the word that it was done.
                let told = former.iter().filter(|former| success(former).is_some()).filter_map(|former| former.entry.clone());
                let kept = kept.chain(told).chain(self.lost_marks(&former, is_own_or_was)).collect();
                if self.store(stored, kept)? != Write::Done {
                    continue;
                }
            }
            if let Some(how) = self.lost.take() {
                return Err(Error::Lost(how, held));
            }
            // What has just succeeded, and is only to be held for a time, need not even have been seen running.
            let is_done =
                |holding: &Holding| holding.entry.as_ref().is_some_and(|entry| entry.released == Some(Outcome::Succeeded));
            if awaited.is_some_and(|token| has_succeeded(token, &held, &former))
                || (request.skip_if_done && held.iter().any(is_done))
            {
                return Ok(Attempt::Done(Acquired::NotNeeded));
            }
            if !joins(request.mode, &held) {
                self.left_to_others = None;
                return Ok(Attempt::Busy(held));
            }
            match self.turn() {
                Turn::Ours => {}
                Turn::Others => return Ok(Attempt::LeftToOthers),
                Turn::Nobodys if may_overtake(request.mode, &held) => {}
                Turn::Nobodys => return Ok(Attempt::Busy(held)),
            }
            let mut entry = claimant.entry().map_err(Error::Entry)?;
            entry.mode = request.mode;
            let clock = if request.lease.is_some() { self.register.now() } else { Some(since_boot()) };
            let end =
                |at_least: Duration| Some(clock?.saturating_add(u64::try_from(at_least.as_millis()).unwrap_or(u64::MAX / 2)));
            entry.until = request.at_least.and_then(end);
            entry.previous = former.iter().find_map(success);
            // Before the end that others see is reckoned, and before it is sent.
            let leased_at = since_boot();
            entry.lease = request.lease.map(|duration| Lease { duration, expires: self.expiry(duration), renewals: 0 });
            entry.fencing = request.lease.and_then(|_| self.register.next_number());
            let lost = self.lost_marks(&former, is_own_or_was);
            let kept = held.iter().filter_map(|held| held.entry.clone()).chain(lost);
            let Some(record) = Record::of(kept.chain([entry.clone()]).collect()) else {
                return Ok(Attempt::Busy(held));
            };
            let grant = Grant { token: entry.token.clone().unwrap_or_default(), fencing: entry.fencing, leased_at };
            let write = match &stored {
                None => self.register.create(&record),
                Some(stored) => self.register.replace(stored, &record),
            };
            match write {
                Ok(Write::Done) if claimant.is_present() => {
                    let taken_from = former.into_iter().find(|former| former.verdict != Stale::Released);
                    return Ok(Attempt::Done(match taken_from {
                        Some(from) => Acquired::TakenOver(grant, Box::new(from)),
                        None => Acquired::Free(grant),
                    }));
                }
                // It has gone away meanwhile, so what was acquired for it is given back.
                Ok(Write::Done) => {
                    self.withdraw(&entry)?;
                    return Err(Error::Absent);
                }
                // The next look tells, by the token. A conflict may be one with our own write, if something on the way has sent it twice.
                Ok(Write::Conflict | Write::Unknown) => {
                    self.remember(grant);
                    last.clear();
                }
                // Nothing was changed, and nobody can tell what the other one is about.
                Err(error) if error.cause == backend::Cause::Contended => {
                    let contended = |former: Former| Judged {
                        entry: former.entry,
                        written: former.written,
                        verdict: Held::Unknown(Unknown::Contended),
                    };
                    last = held.into_iter().chain(former.into_iter().map(contended)).collect();
                    break;
                }
                // Also where it says that nothing was done: what is found with this token is ours all the same.
                Err(error) => {
                    self.remember(grant);
                    return Err(error.into());
                }
            }
        }
        Ok(Attempt::Busy(last))
    }

    /// It may have been granted, as the next look will tell.
    fn remember(&mut self, grant: Grant) {
        self.asked_for.truncate(MAX_ASKED_FOR - 1);
        self.asked_for.insert(0, grant);
    }

    /// When to look again at a holder, because nothing else may tell; `None` if something will.
    fn look_again_in(&self, holding: &Holding) -> Option<Duration> {
        let lease = holding.entry.as_ref().and_then(|entry| entry.lease);
        let remaining = lease.map(|lease| match lease.expires.zip(self.register.now()) {
            Some((expires, now)) => Duration::from_millis(expires.saturating_sub(now)).min(lease.duration),
            None => lease.duration,
        });
        remaining.into_iter().chain(holding.verdict.look_again_in()).min()
    }

    fn turn(&mut self) -> Turn {
        if self.register.is_first() {
            self.left_to_others = None;
            return Turn::Ours;
        }
        // Of a free register, too: two hand-offs between two polls leave it free each time.
        let seen = self.register.version();
        match &self.left_to_others {
            Some((version, since)) if version.as_deref() == seen && since.elapsed() >= PATIENCE => Turn::Nobodys,
            Some((version, _)) if version.as_deref() == seen => Turn::Others,
            _ => {
                self.left_to_others = Some((seen.map(<[u8]>::to_vec), Instant::now()));
                Turn::Others
            }
        }
    }

    fn sleep_until(
        &mut self,
        until: Instant,
        claimant: &dyn Claimant,
        request: &Request,
        holders: &[Holding],
    ) -> Result<(), backend::Error> {
        let mut limit = until.saturating_duration_since(Instant::now());
        let mut fds = claimant.absence_fds();
        // What becomes of the holders concerns the first in line.
        if !self.register.is_queued() {
            limit = holders.iter().filter_map(|holding| self.look_again_in(holding)).fold(limit, Duration::min);
            fds.extend(holders.iter().filter_map(|holding| holding.verdict.ended_fd()));
        }
        if request.skip_if_done { self.register.watch(limit, &fds) } else { self.register.wait(limit, &fds) }
    }

    /// Waits until nobody holds the lock, without wanting it.
    ///
    /// # Errors
    /// [`Error::Busy`] when the attempts are used up, [`Error::Absent`] when the observer is interrupted.
    pub fn wait_until_free(&mut self, waiting: &Waiting, observer: &mut dyn Observer) -> Result<(), Error> {
        let mut attempts = Attempts::new(waiting);
        let mut pace = Pace::default();
        let mut crowd = Crowd::default();
        // Ends when the attempts are used up; for ever, if the user wants that.
        loop {
            let looked = Instant::now();
            pace.begin();
            attempts.count(looked);
            let held = match self.look() {
                Ok(looked) => split(looked.map(|(_, judged)| judged).unwrap_or_default()).0,
                Err(error) if error.is_transient() && !attempts.are_over() && !observer.is_interrupted() => {
                    wait_for_store(&error, &attempts, &mut crowd, observer, &[])?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            crowd.end();
            if held.is_empty() {
                return Ok(());
            }
            if observer.is_interrupted() {
                return Err(Error::Absent);
            }
            if attempts.are_over() {
                return Err(Error::Busy(attempts.made(), held));
            }
            let rest = pace.rest();
            observer.waiting(&held, attempts.made());
            let limit = attempts.next().min(looked + observer.interval()).saturating_duration_since(Instant::now());
            let limit = held.iter().filter_map(|holding| self.look_again_in(holding)).fold(limit, Duration::min);
            let ends = held.iter().filter_map(|holding| holding.verdict.ended_fd());
            let fds: Vec<_> = ends.chain(observer.interruption_fds()).collect();
            self.register.watch(limit, &fds)?;
            std::thread::sleep(rest.saturating_sub(looked.elapsed()));
        }
    }

    /// Removes what tells how an acquisition went, if there is nothing else.
    fn forget_outcome(&mut self) -> Result<(), Error> {
        let Some(stored) = self.register.load()? else { return Ok(()) };
        let tells_only = |entry: &Entry| entry.released == Some(Outcome::Succeeded) && entry.until.is_none();
        if stored.content.record().is_some_and(|record| record.entries().iter().all(tells_only)) {
            // In a conflict, somebody has come who makes use of it.
            self.register.delete(&stored)?;
        }
        Ok(())
    }
}

/// Until the store is asked again, which may be there before the attempts are used up.
fn wait_for_store(
    error: &backend::Error,
    attempts: &Attempts<'_>,
    crowd: &mut Crowd,
    observer: &mut dyn Observer,
    fds: &[BorrowedFd<'_>],
) -> Result<(), Error> {
    observer.failing(error, attempts.made());
    let now = Instant::now();
    let until = attempts.next().min(now + observer.interval()).max(now + MIN_OUTAGE);
    let until = if error.is_full() {
        let until = until.max(now + crowd.pause());
        attempts.last().map_or(until, |last| until.min(last.max(now + MIN_OUTAGE)))
    } else {
        crowd.end();
        until
    };
    let until = attempts.deadline().map_or(until, |deadline| until.min(deadline));
    let fds: Vec<_> = fds.iter().copied().chain(observer.interruption_fds()).collect();
    backend::sleep(until.saturating_duration_since(now), &fds).map_err(|error| Error::Entry(error.into()))
}

/// Whether somebody may come to these holders; not where they may mean something that is not understood here.
fn joins(mode: Mode, holders: &[Holding]) -> bool {
    let modes = holders.iter().map(|holding| match (&holding.verdict, &holding.entry) {
        (Held::Unknown(Unknown::NewerVersion | Unknown::BeingWritten | Unknown::Contended), _) | (_, None) => None,
        // Nobody holds it; it stays as it is for a time.
        (Held::AtLeast(_), Some(entry)) | (_, Some(entry)) => Some(entry.mode),
    });
    modes.collect::<Option<Vec<_>>>().is_some_and(|modes| mode.joins(&modes))
}

/// Whether the record says that the acquisition `token` has ended, and that it has succeeded.
fn has_succeeded(token: &str, held: &[Holding], former: &[Former]) -> bool {
    let entries = held.iter().map(|holding| &holding.entry).chain(former.iter().map(|former| &former.entry)).flatten();
    let says_so = |entry: &Entry| {
        let is_it = entry.token.as_deref() == Some(token) && entry.released == Some(Outcome::Succeeded);
        is_it || entry.previous.as_ref().is_some_and(|(previous, outcome)| previous == token && *outcome == Outcome::Succeeded)
    };
    entries.into_iter().any(says_so)
}

/// Whether those who are first, and do not take what this one could have, may be overtaken: not if they may be waiting for the
/// very holders whom it would join. Sharers who come one after the other would keep out for ever whoever wants it alone; who
/// asks for one of so many slots, as all holders did, can expect that those who wait did so, too.
fn may_overtake(mode: Mode, holders: &[Holding]) -> bool {
    let is_alike = |holding: &Holding| holding.entry.as_ref().is_some_and(|entry| entry.mode == mode);
    holders.is_empty() || (mode != Mode::Shared && holders.iter().all(is_alike))
}

fn success(former: &Former) -> Option<(String, Outcome)> {
    let entry = former.entry.as_ref().filter(|entry| entry.released == Some(Outcome::Succeeded))?;
    Some((entry.token.clone()?, Outcome::Succeeded))
}
