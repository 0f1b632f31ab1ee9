//! How long and how often to try to lock, and the observer of the wait.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::lock::staleness::Holding;
use crate::store;
use crate::store::backoff::{PAUSES, pause_outside};

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

/// How many polls may follow each other within a second without a rest: hand-offs come in bursts.
const BURST: u32 = 20;

/// The shortest rest after each further one, which bounds the cost of a flood of wake-ups.
const REST: Duration = Duration::from_millis(10);

/// The ratio of a rest to the poll before it: some polls read the whole process table.
const REST_FACTOR: u32 = 5;

/// The shortest interval between two requests to a store that does not answer.
const MIN_OUTAGE: Duration = Duration::from_millis(200);

/// When attempts are due, and when they end.
#[derive(Debug)]
pub struct Attempts<'a> {
    waiting: &'a Waiting,
    begun: Instant,
    made: u32,
    next: Instant,
    deadline: Option<Instant>,
    /// The polls since then.
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

    /// Counts a poll that is due. A poll before that, after a wake-up, is not an attempt.
    /// `was_queued` says that the waiter has slept in its queue, which stands for the attempts
    /// meanwhile.
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
    pub fn waited(&self) -> Duration {
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

    /// When to make the last one; `None` when there is none.
    pub fn last(&self) -> Option<Instant> {
        let last = self.waiting.max_attempts.and_then(|max| {
            let more = max.get().saturating_sub(self.made).saturating_sub(1);
            self.next.checked_add(self.waiting.sleep.checked_mul(more)?)
        });
        last.into_iter().chain(self.deadline).min()
    }

    /// How long to rest after a poll of this duration.
    pub fn rest(&mut self, poll: Duration) -> Duration {
        let second = Duration::from_secs(1);
        if self.polls.0.elapsed() >= second {
            self.polls = (Instant::now(), 0);
        }
        self.polls.1 += 1;
        let is_burst = self.polls.1 <= BURST && poll < REST;
        if is_burst { Duration::ZERO } else { (poll * REST_FACTOR).clamp(REST, second) }
    }

    /// How long to pause before a store that fails is asked again; `interval` is the observer's.
    pub fn after_failure(&mut self, is_full: bool, interval: Duration) -> Duration {
        let now = Instant::now();
        // After a stop in the middle of a request, the next attempt would be too late.
        let mut until = self.next().min(now + interval.min(PAUSES.1)).max(now + MIN_OUTAGE);
        if is_full {
            until = until.max(now + pause_outside(&mut self.full_since));
            until = self.last().map_or(until, |last| until.min(last.max(now + MIN_OUTAGE)));
        } else {
            self.full_since = None;
        }
        self.deadline.map_or(until, |deadline| until.min(deadline)) - now
    }

    /// The store has answered.
    pub fn after_answer(&mut self) {
        self.full_since = None;
    }
}

/// Receives reports during a wait for a lock.
pub trait Observer {
    /// The lock is held after `attempt` attempts. Without holders if they changed all the time.
    /// `place` asks for the place in line.
    fn waiting(
        &mut self,
        holders: &[Holding],
        attempt: u32,
        place: &mut dyn FnMut() -> Option<usize>,
    );

    /// The store does not tell whether the lock is held, and will be asked again.
    fn failing(&mut self, _error: &store::Error, _attempt: u32) {}

    /// The longest interval between two reports.
    fn interval(&self) -> Duration;
}
