//! How long to wait for a lock, and who is told meanwhile.

use std::num::NonZeroU32;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::backend;
use crate::backend::retry::jittered;
use crate::verdict::Holding;

/// How often and how far apart to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// How many attempts to make; `None` for any number.
    pub max_attempts: Option<NonZeroU32>,
    /// From one attempt to the next.
    pub sleep: Duration,
    /// How long to wait altogether; `None` for any time. The deadline counts from the first attempt.
    pub timeout: Option<Duration>,
}

impl Waiting {
    /// What is left of it after so long; the attempts begin anew.
    pub fn after(self, elapsed: Duration) -> Self {
        Self { timeout: self.timeout.map(|timeout| timeout.saturating_sub(elapsed)), ..self }
    }
}

/// Looks that follow each other within so long are counted together.
const WINDOW: Duration = Duration::from_secs(1);

/// So many looks may follow each other without a rest: hand-offs come in bursts.
const BURST: u32 = 20;

/// Looks may take one part in so many of a waiter's time, as processor time: some have to read the whole process table. Waiting
/// for a store's answer costs nobody anything.
const SHARE: u32 = 20;

/// The shortest rest behind a burst: a flood of wake-ups must not cost more than this.
const MIN_REST: Duration = Duration::from_millis(10);

/// The longest such rest: what was expensive once must not be paid for in hours.
const MAX_REST: Duration = Duration::from_secs(1);

/// Keeps looks from costing too much.
#[derive(Debug)]
pub struct Pace {
    since: Instant,
    looks: u32,
    spent: Duration,
    /// The processor time when the look began.
    begun: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { since: Instant::now(), looks: 0, spent: Duration::ZERO, begun: processor_time() }
    }
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

impl Pace {
    /// A look begins.
    pub fn begin(&mut self) {
        self.begun = processor_time();
    }

    /// How long to rest after it.
    pub fn rest(&mut self) -> Duration {
        let look = processor_time().saturating_sub(self.begun);
        if self.since.elapsed() >= WINDOW {
            *self = Self { begun: self.begun, ..Self::default() };
        }
        self.looks += 1;
        self.spent += look;
        if self.looks <= BURST && self.spent <= WINDOW / SHARE {
            return Duration::ZERO;
        }
        look.saturating_mul(SHARE).clamp(MIN_REST, MAX_REST)
    }
}

/// How long whoever waits stays away at first from a store that has no room for it.
const FIRST_ABSENCE: Duration = Duration::from_secs(2);

/// And in the end: those who come back all the time would fill it, too.
const LAST_ABSENCE: Duration = Duration::from_secs(10);

/// It has waited for so many times as long as it stays away.
const ABSENCE_GROWS: u32 = 4;

/// Those who wait for a store that has no connection to spare for them.
#[derive(Debug, Default)]
pub struct Crowd {
    since: Option<Instant>,
}

impl Crowd {
    /// There was no room: how long to stay away.
    pub fn pause(&mut self) -> Duration {
        let since = *self.since.get_or_insert_with(Instant::now);
        jittered((since.elapsed() / ABSENCE_GROWS).clamp(FIRST_ABSENCE, LAST_ABSENCE))
    }

    /// Whether there was none, the last time.
    pub fn is_kept_out(&self) -> bool {
        self.since.is_some()
    }

    /// There was room.
    pub fn end(&mut self) {
        self.since = None;
    }
}

/// How often attempts come due, and when they are over.
#[derive(Debug)]
pub struct Attempts<'a> {
    waiting: &'a Waiting,
    made: u32,
    next: Instant,
    deadline: Option<Instant>,
}

impl<'a> Attempts<'a> {
    /// The first one is due now.
    pub fn new(waiting: &'a Waiting) -> Self {
        let next = Instant::now();
        Self { waiting, made: 0, next, deadline: waiting.timeout.map(|timeout| next + timeout) }
    }

    /// Counts those that have come due. A look before the next one is due, after a wake-up, is no attempt.
    pub fn count(&mut self, now: Instant) {
        if now < self.next {
            return;
        }
        // A waiter that is not first in line sleeps through some. The first attempt has none before it, however late it is.
        let late = if self.made == 0 { Duration::ZERO } else { now - self.next };
        let sleep = self.waiting.sleep.as_nanos();
        let missed = late.as_nanos().checked_div(sleep).and_then(|missed| u32::try_from(missed).ok()).unwrap_or(0);
        let made = self.made.saturating_add(missed).saturating_add(1);
        // What follows the last one, to give others the time to take what is free, is none.
        self.made = self.waiting.max_attempts.map_or(made, |max| made.min(max.get()));
        self.next = now + self.waiting.sleep;
    }

    /// How many there were.
    pub fn made(&self) -> u32 {
        self.made
    }

    /// Whether there are no more.
    pub fn are_over(&self) -> bool {
        let is_too_late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        is_too_late || self.waiting.max_attempts.is_some_and(|max| self.made >= max.get())
    }

    /// When to make the next one.
    pub fn next(&self) -> Instant {
        self.deadline.map_or(self.next, |deadline| self.next.min(deadline))
    }

    /// When all of it is over, however many attempts were made.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// When to make the last one; `None` when there is none.
    pub fn last(&self) -> Option<Instant> {
        let more = self.waiting.max_attempts.map(|max| max.get().saturating_sub(self.made).saturating_sub(1));
        let last = more.and_then(|more| self.next.checked_add(self.waiting.sleep.checked_mul(more)?));
        last.into_iter().chain(self.deadline).min()
    }
}

/// Is told while a lock is waited for.
pub trait Observer {
    /// The lock is held; `attempt` attempts have been made. Nobody: the holder changed all the time.
    fn waiting(&mut self, holders: &[Holding], attempt: u32);

    /// It cannot be told whether the lock is held, and will be tried again.
    fn failing(&mut self, _error: &backend::Error, _attempt: u32) {}

    /// How often it wants to be told at least.
    fn interval(&self) -> Duration;

    /// Whether it has heard that the waiting is to end.
    fn is_interrupted(&self) -> bool {
        false
    }

    /// These become readable when that may have changed.
    fn interruption_fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_attempt_that_is_late_counts_once_and_a_later_one_for_those_that_were_slept_through() {
        let sleep = Duration::from_millis(10);
        let waiting = Waiting { max_attempts: NonZeroU32::new(7), sleep, timeout: None };
        let mut attempts = Attempts::new(&waiting);
        let late = Instant::now() + 100 * sleep;
        attempts.count(late);
        assert_eq!((attempts.made(), attempts.next()), (1, late + sleep));
        attempts.count(late);
        assert_eq!(attempts.made(), 1, "a wake-up is not an attempt");
        attempts.count(late + 3 * sleep);
        assert_eq!(attempts.made(), 4);
        attempts.count(late + 100 * sleep);
        assert_eq!(attempts.made(), 7, "attempts end at their maximum");
        assert!(attempts.are_over());
    }
}
