//! Signals that end who only waits.

use std::os::fd::BorrowedFd;

use rustix::process::getpid;

use super::signals::Signals;

/// Signals that end who waits. Only PID 1 of a container has to hold them back for that: the kernel ends it by none.
pub struct Interruptions(Signals);

impl Interruptions {
    /// Where they are needed.
    pub fn hold() -> Option<Self> {
        getpid().is_init().then(|| Signals::hold().ok().map(Self))?
    }

    /// Whether one has come.
    pub fn have_come(&self) -> bool {
        self.0.is_ending()
    }

    /// These become readable when that may have changed.
    pub fn fds(&self) -> [BorrowedFd<'_>; 1] {
        [self.0.ending_fd()]
    }

    /// The signals that are held back.
    pub(super) fn signals(&self) -> &Signals {
        &self.0
    }

    /// Which one has come.
    pub fn take(self) -> Option<i32> {
        self.0.die()
    }
}
