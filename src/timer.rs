//! A timer of the clock that goes on while the host sleeps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime};

/// Readable from a certain moment on.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// Not readable yet.
    ///
    /// # Errors
    /// When the kernel has none.
    pub fn new() -> io::Result<Self> {
        Ok(Self(timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?))
    }

    /// The same timer.
    ///
    /// # Errors
    /// When there are too many descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Readable from `when` on, in milliseconds since boot, and not before; at once if that has passed.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn set(&self, when: u64) -> io::Result<()> {
        // Zero would mean never.
        let when = when.max(1);
        let when = Timespec {
            tv_sec: i64::try_from(when / 1000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(when % 1000).unwrap_or(0) * 1_000_000,
        };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        timerfd_settime(&self.0, TimerfdTimerFlags::ABSTIME, &Itimerspec { it_interval: never, it_value: when })?;
        Ok(())
    }

    /// Becomes readable then.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
