//! A timer of the clock that goes on while the host sleeps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Readable from a certain moment on.
#[derive(Debug)]
pub struct Timer(OwnedFd, TimerfdTimerFlags);

impl Timer {
    pub fn new() -> io::Result<Self> {
        Self::of(TimerfdClockId::Boottime, TimerfdTimerFlags::ABSTIME)
    }

    /// The same by the clock of milliseconds since 1970. Readable also when that is set.
    pub fn of_wall_clock() -> io::Result<Self> {
        Self::of(
            TimerfdClockId::Realtime,
            TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET,
        )
    }

    fn of(clock: TimerfdClockId, flags: TimerfdTimerFlags) -> io::Result<Self> {
        Ok(Self(timerfd_create(clock, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?, flags))
    }

    /// Readable from `when` on, in milliseconds since boot; at once if that has passed.
    pub fn set(&self, when: u64) -> io::Result<()> {
        // Zero would mean never.
        let when = Duration::from_millis(when.max(1));
        let when = Timespec::try_from(when).map_err(io::Error::other)?;
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        timerfd_settime(&self.0, self.1, &Itimerspec { it_interval: never, it_value: when })?;
        Ok(())
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
