//! Wakes a scheduler on signals, on the end of a runner, at a time, and when the clock is set.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use crate::sys::clock::{millis, since_1970, since_boot};
use crate::sys::poll::{self, is_readable};
use crate::sys::signals::SignalQueue;
use crate::sys::timer::Timer;

/// The longest sleep. After it, the scheduler checks whether the definitions have changed.
const REFRESH: Duration = Duration::from_secs(10);

/// A wall clock that drifts from the boot clock by this many milliseconds was set.
const LEAP: u64 = 500;

const MAX_SIGNALS: usize = 64;

pub struct Events {
    signals: SignalQueue,
    timer: Timer,
    /// The host's clock minus the time since boot.
    drift: u64,
}

impl Events {
    /// Blocks the signals from now on.
    pub fn new() -> io::Result<Self> {
        let all = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD];
        let mask: SigSet = all.into_iter().collect();
        mask.thread_block()?;
        Ok(Self { signals: SignalQueue::of(&all)?, timer: Timer::of_wall_clock()?, drift: drift() })
    }

    pub fn receive(&self) -> Vec<Signal> {
        let received = (0..MAX_SIGNALS).map_while(|_| self.signals.next());
        received.map(|received| received.signal).collect()
    }

    /// Whether signals have come that were not received yet.
    pub fn are_there(&self) -> bool {
        is_readable(&self.signals)
    }

    pub fn clock_was_set(&mut self) -> bool {
        let now = drift();
        now.abs_diff(std::mem::replace(&mut self.drift, now)) > LEAP
    }

    /// Sleeps until a signal, until the clock is set, until `wall_clock` (milliseconds since 1970),
    /// until `boot_clock` (milliseconds since boot), or until one of `fds` is readable.
    pub fn sleep(
        &self,
        wall_clock: u64,
        boot_clock: Option<u64>,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        // The kernel refuses distant times.
        self.timer.set(wall_clock.min(since_1970() + 2 * millis(REFRESH)))?;
        let rest = boot_clock.map(|at| Duration::from_millis(at.saturating_sub(since_boot())));
        let fds = [&[self.signals.as_fd(), self.timer.fd()], fds].concat();
        Ok(poll::sleep(rest.unwrap_or(REFRESH).min(REFRESH), &fds)?)
    }
}

fn drift() -> u64 {
    since_1970().wrapping_sub(since_boot())
}
