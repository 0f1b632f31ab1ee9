//! The only loop that waits for a lock; how long and how often it tries, and its observer.

use std::mem::take;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use rustix::process::getpid;

use super::{Error, Mutex, Requester};
use crate::lock::staleness::{Held, Holding};
use crate::record::Entry;
use crate::store;
use crate::store::backoff::{PAUSES, pause_outside};
use crate::store::waiter::Waiter;
use crate::sys::identity::HostIdentity;

/// How long a free lock is left to earlier waiters, which need milliseconds, but may be stopped.
pub(super) const PATIENCE: Duration = Duration::from_millis(200);

/// The poll interval beside the queue, while earlier waiters are about to take a free lock.
const BESIDE: Duration = Duration::from_millis(5);

/// How often a free lock is left to others without an attempt left: each time, one has had it.
const MAX_DEFERRALS: usize = 50;

/// How many polls may follow each other within a second without a rest: hand-offs come in bursts.
const BURST: u32 = 20;

/// The shortest rest after each further one, which bounds the cost of a flood of wake-ups.
const REST: Duration = Duration::from_millis(10);

/// The ratio of a rest to the poll before it: some polls read the whole process table.
const REST_FACTOR: u32 = 5;

/// The shortest interval between two requests to a store that does not answer.
const MIN_OUTAGE: Duration = Duration::from_millis(200);

/// How often and how far apart to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// How many attempts to make; `None` for any number.
    pub max_attempts: Option<NonZeroU32>,
    /// From one attempt to the next.
    pub sleep: Duration,
    /// How long to wait altogether, from the first attempt on; `None` for any time.
    pub timeout: Option<Duration>,
    /// After which time to warn that it still waits.
    pub warn_after: Option<Duration>,
}

impl Default for Waiting {
    fn default() -> Self {
        let sleep = Duration::from_secs(1);
        Self { max_attempts: None, sleep, timeout: None, warn_after: None }
    }
}

/// Receives reports during a wait for a lock.
pub trait Observer {
    /// The lock is held after `attempt` attempts. `place` asks for the place in line.
    fn waiting(
        &mut self,
        holders: &[Holding],
        attempt: u32,
        place: &mut dyn FnMut() -> Option<usize>,
    );

    /// The store does not tell whether the lock is held, and will be asked again.
    fn failing(&mut self, _error: &store::Error, _attempt: u32) {}

    /// The time until the next report. A queued waiter polls as often, in case the earlier ones do
    /// not take a free lock.
    fn interval(&self) -> Duration;
}

pub(super) enum Attempt<T> {
    Done(T),
    Busy(Vec<Holding>),
    /// It is free, but there are earlier waiters.
    LeftToOthers,
}

impl Mutex<'_> {
    /// Waits until the lock is free, without acquiring it.
    pub fn wait_until_free(
        &mut self,
        requester: &dyn Requester,
        waiting: &Waiting,
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        self.wait_for(requester, true, waiting, observer, |mutex| {
            let held = mutex.holders()?;
            Ok(if held.is_empty() { Attempt::Done(()) } else { Attempt::Busy(held) })
        })
    }

    pub(super) fn wait_for<T>(
        &mut self,
        requester: &dyn Requester,
        is_beside: bool,
        waiting: &Waiting,
        observer: &mut dyn Observer,
        mut attempt: impl FnMut(&mut Self) -> Result<Attempt<T>, Error>,
    ) -> Result<T, Error> {
        let mut attempts = Attempts::new(waiting);
        let (mut deferrals, mut was_patient) = (0, false);
        // Ends with the attempts; if their number is not limited, with the requester.
        loop {
            if !requester.is_alive() {
                return Err(Error::Absent);
            }
            let looked = Instant::now();
            attempts.count(looked, take(&mut was_patient));
            let holders = match attempt(self) {
                Ok(Attempt::Done(done)) => return Ok(done),
                Ok(Attempt::Busy(holders)) => Some(holders),
                Ok(Attempt::LeftToOthers) => None,
                Err(Error::Store(error)) if error.cause.passes() && !attempts.are_over() => {
                    observer.failing(&error, attempts.made());
                    let pause = attempts.after_failure(error.cause, observer.interval());
                    store::pause(pause, &requester.exit_fds())?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            attempts.full_since = None;
            if attempts.are_over() && (holders.is_some() || deferrals >= MAX_DEFERRALS) {
                return Err(Error::Busy(attempts.waited(), holders.unwrap_or_default()));
            }
            let Some(holders) = holders else {
                deferrals += 1;
                let until = looked + if is_beside { BESIDE } else { PATIENCE };
                self.sleep_until(until, is_beside, &[], requester)?;
                continue;
            };
            let rest = attempts.rest(looked.elapsed());
            observer.waiting(&holders, attempts.made(), &mut || self.place_in_line(is_beside));
            let report = Instant::now() + observer.interval();
            // The first waiter is woken by whatever happens, the others when it leaves.
            let in_line = attempts.last().unwrap_or(report).min(report);
            let was_queued = self.is_queued();
            was_patient = was_queued || self.register.queue(|queue| queue.is_turned_away());
            let until = if was_patient { in_line } else { attempts.next().min(report) };
            self.sleep_until(until, is_beside, &holders, requester)?;
            if !was_queued && self.is_queued() {
                was_patient = true;
                // It has just queued. What the holder does must not wake all waiters.
                self.sleep_until(in_line, is_beside, &holders, requester)?;
            }
            // This limits how often it looks, and must not delay the first look after a long sleep.
            std::thread::sleep(rest.saturating_sub(looked.elapsed()));
        }
    }

    pub(super) fn sleep_until(
        &mut self,
        until: Instant,
        is_beside: bool,
        holders: &[Holding],
        requester: &dyn Requester,
    ) -> Result<(), store::Error> {
        let mut limit = until.saturating_duration_since(Instant::now());
        let mut fds = requester.exit_fds();
        // What becomes of the holders concerns the first waiter.
        if !self.is_queued() {
            let again = |it: &Holding| self.look_again_in(it.entry.as_ref(), &it.verdict);
            limit = holders.iter().filter_map(again).fold(limit, Duration::min);
            fds.extend(holders.iter().filter_map(|holding| holding.verdict.ended_fd()));
        }
        self.register.wait(is_beside, limit, &fds)
    }

    /// The place of this process among the waiters, or behind them before it queues, if known.
    fn place_in_line(&mut self, is_beside: bool) -> Option<usize> {
        if is_beside || self.register.store().queue(&self.register.key).is_none() {
            return None;
        }
        let waiters = self.register.queue(|queue| queue.waiters());
        let (pid, here) = (Some(getpid().as_raw_pid()), HostIdentity::here().host);
        let is_own = |it: &Waiter| it.pid == pid && (it.host.is_none() || it.host == here);
        let place = waiters.iter().position(is_own);
        let is_new = !self.is_queued() && !self.register.queue(|queue| queue.is_turned_away());
        place.or(is_new.then_some(waiters.len())).map(|place| place + 1)
    }

    fn is_queued(&mut self) -> bool {
        self.register.queue(|queue| queue.is_queued())
    }

    /// When to look again at a holder, because nothing else may tell; `None` if something will.
    pub(super) fn look_again_in(&self, entry: Option<&Entry>, held: &Held) -> Option<Duration> {
        let lease = entry.and_then(|entry| entry.lease);
        let left = lease.and_then(|lease| lease.left(self.register.now()));
        let ends = lease.map(|lease| lease.duration).into_iter().chain(left);
        ends.chain(held.look_again_in()).min()
    }
}

/// When attempts are due, and when they end.
#[derive(Debug)]
pub struct Attempts<'a> {
    waiting: &'a Waiting,
    begun: Instant,
    made: u32,
    next: Instant,
    deadline: Option<Instant>,
    polls: (Instant, u32),
    /// Since when the store has had no connection for this waiter.
    full_since: Option<Instant>,
}

impl<'a> Attempts<'a> {
    /// The first one is due now.
    pub fn new(waiting: &'a Waiting) -> Self {
        let next = Instant::now();
        let deadline = waiting.timeout.map(|timeout| next + timeout);
        let polls = (next, 0);
        Self { waiting, begun: next, made: 0, next, deadline, polls, full_since: None }
    }

    /// Counts a poll that is due; none after a wake-up before that. A sleep in the queue
    /// (`was_queued`) stands for the attempts meanwhile.
    pub fn count(&mut self, now: Instant, was_queued: bool) {
        if now < self.next {
            return;
        }
        let slept = if was_queued { now - self.next } else { Duration::ZERO };
        let missed = slept.as_nanos().checked_div(self.waiting.sleep.as_nanos()).unwrap_or(0);
        let made = self.made.saturating_add(u32::try_from(missed).unwrap_or(0)).saturating_add(1);
        // Polls after the last attempt, which leave others the time to take it, do not count.
        self.made = made.min(self.waiting.max_attempts.map_or(u32::MAX, NonZeroU32::get));
        self.next = now + self.waiting.sleep;
    }

    /// How long they have been waited for in the end; a single one is not.
    fn waited(&self) -> Duration {
        tracing::debug!("gave up, attempts: {}", self.made);
        let is_one = self.waiting.max_attempts == Some(NonZeroU32::MIN);
        if is_one { Duration::ZERO } else { self.begun.elapsed() }
    }

    /// How many were made.
    pub fn made(&self) -> u32 {
        self.made
    }

    /// Whether all attempts are made.
    pub fn are_over(&self) -> bool {
        let is_too_late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        is_too_late || self.waiting.max_attempts.is_some_and(|max| self.made >= max.get())
    }

    /// When to make the next one.
    pub fn next(&self) -> Instant {
        self.deadline.map_or(self.next, |deadline| self.next.min(deadline))
    }

    fn last(&self) -> Option<Instant> {
        let last = self.waiting.max_attempts.and_then(|max| {
            let more = max.get().saturating_sub(self.made).saturating_sub(1);
            self.next.checked_add(self.waiting.sleep.checked_mul(more)?)
        });
        last.into_iter().chain(self.deadline).min()
    }

    /// How long to rest after a poll of this duration.
    fn rest(&mut self, poll: Duration) -> Duration {
        let second = Duration::from_secs(1);
        if self.polls.0.elapsed() >= second {
            self.polls = (Instant::now(), 0);
        }
        self.polls.1 += 1;
        let is_burst = self.polls.1 <= BURST && poll < REST;
        if is_burst { Duration::ZERO } else { (poll * REST_FACTOR).clamp(REST, second) }
    }

    /// How long to pause before a store that fails is asked again; `interval` is the observer's.
    fn after_failure(&mut self, cause: store::Cause, interval: Duration) -> Duration {
        let now = Instant::now();
        // After a stop in the middle of a request, the next attempt would be too late.
        let report = now + interval.clamp(PAUSES.0, PAUSES.1);
        let mut until = self.next().min(report).max(now + MIN_OUTAGE);
        if cause == store::Cause::Full {
            until = until.max(now + pause_outside(&mut self.full_since));
            until = self.last().map_or(until, |last| until.min(last.max(now + MIN_OUTAGE)));
        } else {
            self.full_since = None;
        }
        self.deadline.map_or(until, |deadline| until.min(deadline)) - now
    }
}
