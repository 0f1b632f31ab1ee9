//! The signals that are held back while a command is ours, so that it ends before we do: blocked
//! and read, never handled, because the command inherits what is ignored, and nothing else.

use std::os::fd::{AsFd, BorrowedFd};
use std::{io, iter};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use rustix::process::getpid;

use crate::sys::poll::is_readable;
pub use crate::sys::signals::{Received, note_ignored_signals, was_ignored};
use crate::sys::signals::{SignalQueue, check_ignored};

/// They end a process unless it does something about them.
const ENDING: [Signal; 6] = [
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// They stop a process unless it does something about them.
const STOPPING: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// Blocked signals, to be read. Those that we were started to ignore stay ignored, here and in the
/// command.
pub struct Signals {
    ending: SignalQueue,
    stopping: SignalQueue,
    continuing: SignalQueue,
    child: SignalQueue,
    held: SigSet,
    before: SigSet,
}

impl Signals {
    /// Holds signals back from now on.
    pub fn hold() -> io::Result<Self> {
        check_ignored()?;
        let all = ENDING.into_iter().chain(STOPPING).chain([Signal::SIGCONT, Signal::SIGCHLD]);
        let held: SigSet = all.filter(|signal| !was_ignored(*signal)).collect();
        Ok(Self {
            ending: SignalQueue::of(&ENDING)?,
            stopping: SignalQueue::of(&STOPPING)?,
            continuing: SignalQueue::of(&[Signal::SIGCONT])?,
            child: SignalQueue::of(&[Signal::SIGCHLD])?,
            held,
            before: held.thread_swap_mask(SigmaskHow::SIG_BLOCK)?,
        })
    }

    /// Holds them back for PID 1 of a container, which the kernel ends by none that it does not
    /// handle.
    pub fn hold_as_init() -> Option<Self> {
        getpid().is_init().then(|| Self::hold().ok())?
    }

    /// Those that were not held back before, and are to reach the command.
    pub fn of_command(&self) -> SigSet {
        self.held.iter().filter(|signal| !self.before.contains(*signal)).collect()
    }

    /// Become readable when a signal has come.
    pub fn fds(&self) -> [BorrowedFd<'_>; 4] {
        [&self.ending, &self.stopping, &self.continuing, &self.child].map(AsFd::as_fd)
    }

    /// Whether one has come that is to end us. One that is to stop us does so here, as if nothing
    /// were held back.
    pub fn is_ending(&self) -> bool {
        while let Some(Received { signal, .. }) = self.stopping.next() {
            self.stop_unless(signal, || false);
        }
        while self.continuing.next().or_else(|| self.child.next()).is_some() {}
        is_readable(&self.ending)
    }

    /// Stops this process by `signal`, unless that is ignored, SIGCONT has come, or `is_over`. A
    /// SIGCONT that comes after this has begun prevents the stop, because `signal` is pending
    /// meanwhile.
    pub fn stop_unless(&self, signal: Signal, is_over: impl FnOnce() -> bool) {
        // The stop signal would remove a SIGCONT.
        if !self.held.contains(signal)
            || is_readable(&self.continuing)
            || !self.stopping.raise_unless(signal, is_over)
        {
            return;
        }
        // Here it stops, and goes on later.
        let this_one: SigSet = [signal].into_iter().collect();
        if !self.before.contains(signal) && this_one.thread_unblock().is_ok() {
            let _ = this_one.thread_block();
        }
    }

    /// The signals that have come, each once.
    pub fn receive(&self) -> Vec<Received> {
        let fds = [&self.ending, &self.stopping, &self.continuing, &self.child];
        // Not without end: they may come without a pause.
        fds.into_iter().flat_map(|fd| iter::from_fn(|| fd.next()).take(ENDING.len())).collect()
    }

    /// Ends this process by the signal that has come, if one has.
    pub fn die(&self) {
        if let Some(Received { signal, .. }) = self.ending.next() {
            self.die_of(signal);
        }
    }

    /// Ends this process by `signal`, or by the exit code for that where the kernel does not.
    pub fn die_of(&self, signal: Signal) -> ! {
        let _ = raise(signal);
        let _ = self.before.thread_set_mask();
        std::process::exit(128 + signal as i32)
    }
}
