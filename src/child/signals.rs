//! The signals that are held back while a command is ours, so that it ends before we do: blocked and read,
//! never handled, because the command inherits what is ignored, and nothing else.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use rustix::process::getpid;

use crate::process::is_readable;

/// They end a process unless it does something about them.
const ENDING: [Signal; 6] = [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// They stop a process unless it does something about them.
pub const STOPPING: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// `SI_KERNEL` of `asm-generic/siginfo.h`: it comes from no process.
const SI_KERNEL: i32 = 0x80;

/// Blocked signals, to be read. Those that we were started to ignore stay ignored, here and in the command.
pub struct Signals {
    ending: SignalFd,
    stopping: SignalFd,
    continuing: SignalFd,
    child: SignalFd,
    held: SigSet,
    before: SigSet,
}

/// A signal that has come.
pub struct Received {
    pub signal: Signal,
    pub is_from_kernel: bool,
}

impl Signals {
    /// Holds signals back from now on.
    pub fn hold() -> io::Result<Self> {
        let ignored = *IGNORED.get().ok_or_else(|| io::Error::other("/proc is not mounted"))?;
        let open = |signals: &[Signal]| {
            SignalFd::with_flags(&signals.iter().copied().collect(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        };
        let all = ENDING.into_iter().chain(STOPPING).chain([Signal::SIGCONT, Signal::SIGCHLD]);
        let held: SigSet = all.filter(|signal| !contains(ignored, *signal)).collect();
        Ok(Self {
            ending: open(&ENDING)?,
            stopping: open(&STOPPING)?,
            continuing: open(&[Signal::SIGCONT])?,
            child: open(&[Signal::SIGCHLD])?,
            held,
            before: held.thread_swap_mask(SigmaskHow::SIG_BLOCK)?,
        })
    }

    /// Holds them back for PID 1 of a container, which the kernel ends by none that it does not handle.
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

    /// Becomes readable when one has come that is to end us.
    pub fn ending_fd(&self) -> BorrowedFd<'_> {
        self.ending.as_fd()
    }

    /// Whether one has come that is to end us.
    pub fn is_ending(&self) -> bool {
        is_readable(&self.ending)
    }

    /// Whether SIGCONT has come.
    pub fn is_continuing(&self) -> bool {
        is_readable(&self.continuing)
    }

    /// Stops this process if it was asked to, as if nothing were held back.
    pub fn stop_if_asked(&self) {
        while let Ok(Some(information)) = self.stopping.read_signal() {
            if let Some(Received { signal, .. }) = received(&information) {
                self.stop_unless(signal, || false);
            }
        }
        for fd in [&self.continuing, &self.child] {
            while let Ok(Some(_)) = fd.read_signal() {}
        }
    }

    /// Stops this process by `signal`, unless that is ignored or `is_over`. A SIGCONT that comes after this
    /// has begun prevents the stop, because `signal` is pending meanwhile.
    pub fn stop_unless(&self, signal: Signal, is_over: impl FnOnce() -> bool) {
        if !self.held.contains(signal) || raise(signal).is_err() {
            return;
        }
        if is_over() {
            while let Ok(Some(_)) = self.stopping.read_signal() {}
            return;
        }
        // Here it stops, and goes on later.
        let this_one: SigSet = [signal].into_iter().collect();
        if !self.before.contains(signal) && this_one.thread_unblock().is_ok() {
            let _ = this_one.thread_block();
        }
    }

    /// The signals that have come, each once.
    pub fn receive(&self) -> io::Result<Vec<Received>> {
        let mut all = Vec::new();
        for fd in [&self.ending, &self.stopping, &self.continuing, &self.child] {
            // Not without end: they may come without a pause.
            for _ in ENDING {
                let Some(information) = fd.read_signal()? else { break };
                all.extend(received(&information));
            }
        }
        Ok(all)
    }

    /// Ends this process by the signal that has come, if one has.
    pub fn die(&self) {
        if let Some(received) = self.ending.read_signal().ok().flatten().as_ref().and_then(received) {
            self.die_of(received.signal);
        }
    }

    /// Ends this process by `signal`, or by the exit code for that where the kernel does not.
    pub fn die_of(&self, signal: Signal) -> ! {
        let _ = raise(signal);
        let _ = self.before.thread_set_mask();
        std::process::exit(128 + signal as i32)
    }
}

fn received(information: &siginfo) -> Option<Received> {
    let signal = Signal::try_from(i32::try_from(information.ssi_signo).ok()?).ok()?;
    Some(Received { signal, is_from_kernel: information.ssi_code == SI_KERNEL })
}

/// The signals that were ignored when the program started, as a bit set.
static IGNORED: OnceLock<u64> = OnceLock::new();

/// Must run before Rust's runtime starts, which ignores SIGPIPE.
pub extern "C" fn note_ignored_signals() {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    if let Some(bits) = bits {
        let _ = IGNORED.set(bits);
    }
}

fn contains(signals: u64, signal: Signal) -> bool {
    signals >> (signal as i32 - 1) & 1 == 1
}

/// Whether we were started so that the ends of our children are not told.
pub fn are_ends_lost() -> bool {
    IGNORED.get().is_some_and(|ignored| contains(*ignored, Signal::SIGCHLD))
}

/// Whether we were started to ignore SIGPIPE, as all Rust programs do from their start on.
pub fn is_pipe_ignored() -> bool {
    IGNORED.get().is_some_and(|ignored| contains(*ignored, Signal::SIGPIPE))
}
