//! What wakes a scheduler: signals, the end of its runners, the time, and a clock that is set.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::backend;
use crate::backend::retry::since_1970;
use crate::process::since_boot;
use crate::timer::Timer;

/// The longest sleep. After it, the definitions are looked at.
const REFRESH: Duration = Duration::from_secs(10);

/// A clock that has changed by so many milliseconds against the one that is never set was set.
const LEAP: u64 = 500;

/// How many signals are read at a time.
const MAX_SIGNALS: usize = 64;

pub struct Events {
    signals: SignalFd,
    timer: Timer,
    /// The host's clock minus the time since boot.
    drift: u64,
}

/// What signals ask for.
#[derive(Default)]
pub struct Asked {
    pub must_stop: bool,
    pub must_reload: bool,
}

impl Events {
    /// Holds the signals back from now on.
    pub fn new() -> io::Result<Self> {
        let all = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD];
        let mask: SigSet = all.into_iter().collect();
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { signals, timer: Timer::of_wall_clock()?, drift: drift() })
    }

    /// The signals that have come.
    pub fn receive(&self) -> Asked {
        let mut asked = Asked::default();
        for _ in 0..MAX_SIGNALS {
            let Ok(Some(signal)) = self.signals.read_signal() else { break };
            match i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok()) {
                Some(Signal::SIGTERM | Signal::SIGINT) => asked.must_stop = true,
                Some(Signal::SIGHUP) => asked.must_reload = true,
                _ => {}
            }
        }
        asked
    }

    /// Whether the host's clock was set since the last call.
    pub fn clock_was_set(&mut self) -> bool {
        let now = drift();
        now.abs_diff(std::mem::replace(&mut self.drift, now)) > LEAP
    }

    /// Sleeps until a signal comes, until `wall_clock`, in milliseconds since 1970, or until `boot_clock`, in
    /// milliseconds since boot; or until the host's clock is set.
    pub fn sleep(&self, wall_clock: u64, boot_clock: Option<u64>) -> io::Result<()> {
        // A distant time is not one that the kernel knows.
        self.timer.set(wall_clock.min(since_1970() + 2 * u64::try_from(REFRESH.as_millis()).unwrap_or(0)))?;
        let rest = boot_clock.map(|at| Duration::from_millis(at.saturating_sub(since_boot())));
        Ok(backend::sleep(rest.unwrap_or(REFRESH).min(REFRESH), &[self.signals.as_fd(), self.timer.fd()])?)
    }
}

fn drift() -> u64 {
    since_1970().wrapping_sub(since_boot())
}
