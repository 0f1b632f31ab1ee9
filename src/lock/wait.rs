//! The only loop that waits for a lock.

use std::time::{Duration, Instant};

use rustix::process::getpid;

use super::{Error, Mutex};
use crate::lock::requester::Requester;
use crate::lock::staleness::{Held, Holding};
use crate::lock::waiting::{Attempts, Observer, Waiting};
use crate::record::Entry;
use crate::store;
use crate::store::waiter::Waiter;
use crate::sys::identity::HostIdentity;
use crate::sys::poll;

/// How long a free lock is left to earlier waiters. They need milliseconds; one that is stopped
/// must not stop all others.
pub(super) const PATIENCE: Duration = Duration::from_millis(200);

/// The poll interval of a queued waiter, in case the earlier ones do not take a free lock.
const IN_LINE: Duration = Duration::from_secs(60);

/// The poll interval of a waiter that is not queued, while the lock is free and earlier waiters are
/// about to take it.
const BESIDE: Duration = Duration::from_millis(5);

/// How often a requester without attempts left leaves a free lock to others before it gives up:
/// each time, another process has had it.
const MAX_DEFERRALS: usize = 50;

/// How an attempt ended.
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
            attempts.count(looked, std::mem::take(&mut was_patient));
            let holders = match attempt(self) {
                Ok(Attempt::Done(done)) => return Ok(done),
                Ok(Attempt::Busy(holders)) => Some(holders),
                Ok(Attempt::LeftToOthers) => None,
                Err(Error::Store(error)) if error.cause.passes() && !attempts.are_over() => {
                    observer.failing(&error, attempts.made());
                    let is_full = error.cause == store::Cause::Full;
                    let pause = attempts.after_failure(is_full, observer.interval());
                    poll::sleep(pause, &requester.exit_fds())
                        .map_err(|error| Error::Entry(error.into()))?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            attempts.after_answer();
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
            let next_poll = looked + IN_LINE.min(observer.interval());
            // The first waiter is woken by whatever happens, the others when it leaves.
            let in_line = attempts.last().map_or(next_poll, |last| last.min(next_poll));
            let alone = attempts.next().min(looked + observer.interval());
            let was_queued = self.is_queued();
            was_patient = was_queued || self.register.queue(|queue, _| queue.is_turned_away());
            let until = if was_patient { in_line } else { alone };
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
            let again =
                |holding: &Holding| self.look_again_in(holding.entry.as_ref(), &holding.verdict);
            limit = holders.iter().filter_map(again).fold(limit, Duration::min);
            fds.extend(holders.iter().filter_map(|holding| holding.verdict.ended_fd()));
        }
        self.register.wait(is_beside, limit, &fds)
    }

    /// The place of this process among the waiters, or behind them before it queues; `None` if that
    /// is unknown, or if it `is_beside` the queue.
    fn place_in_line(&mut self, is_beside: bool) -> Option<usize> {
        if is_beside || self.register.store().queue().is_none() {
            return None;
        }
        let waiters = self.register.queue(|queue, key| queue.waiters(key));
        let (pid, here) = (Some(getpid().as_raw_pid()), HostIdentity::here().host);
        let is_own =
            |waiter: &Waiter| waiter.pid == pid && (waiter.host.is_none() || waiter.host == here);
        let place = waiters.iter().position(is_own);
        let is_new = !self.is_queued() && !self.register.queue(|queue, _| queue.is_turned_away());
        place.or(is_new.then_some(waiters.len())).map(|place| place + 1)
    }

    fn is_queued(&mut self) -> bool {
        self.register.queue(|queue, key| queue.is_queued(key))
    }

    /// When to look again at a holder, because nothing else may tell; `None` if something will.
    pub(super) fn look_again_in(&self, entry: Option<&Entry>, held: &Held) -> Option<Duration> {
        let lease = entry.and_then(|entry| entry.lease);
        let remaining = lease.map(|lease| {
            lease.left(self.register.now()).unwrap_or(lease.duration).min(lease.duration)
        });
        remaining.into_iter().chain(held.look_again_in()).min()
    }
}
