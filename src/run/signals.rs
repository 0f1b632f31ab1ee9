//! The signals that are held back while a command is ours, so that it ends before we do: blocked
//! and read, never handled, because the command inherits what is ignored, and nothing else.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::{fs, io, iter};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::getpid;

use crate::sys::poll::is_readable;

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

/// `SI_KERNEL` of `asm-generic/siginfo.h`: it comes from no process.
const SI_KERNEL: i32 = 0x80;

/// Blocked signals, to be read. Those that we were started to ignore stay ignored, here and in the
/// command.
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
        IGNORED.get().ok_or_else(|| io::Error::other("/proc is not mounted"))?;
        let open = |signals: &[Signal]| {
            SignalFd::with_flags(
                &signals.iter().copied().collect(),
                SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
            )
        };
        let all = ENDING.into_iter().chain(STOPPING).chain([Signal::SIGCONT, Signal::SIGCHLD]);
        let held: SigSet = all.filter(|signal| !was_ignored(*signal)).collect();
        Ok(Self {
            ending: open(&ENDING)?,
            stopping: open(&STOPPING)?,
            continuing: open(&[Signal::SIGCONT])?,
            child: open(&[Signal::SIGCHLD])?,
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
        while let Some(Received { signal, .. }) = next(&self.stopping) {
            self.stop_unless(signal, || false);
        }
        while next(&self.continuing).or_else(|| next(&self.child)).is_some() {}
        is_readable(&self.ending)
    }

    /// Stops this process by `signal`, unless that is ignored, SIGCONT has come, or `is_over`. A
    /// SIGCONT that comes after this has begun prevents the stop, because `signal` is pending
    /// meanwhile.
    pub fn stop_unless(&self, signal: Signal, is_over: impl FnOnce() -> bool) {
        // The stop signal would remove a SIGCONT.
        if !self.held.contains(signal) || is_readable(&self.continuing) || raise(signal).is_err() {
            return;
        }
        if is_over() {
            while next(&self.stopping).is_some() {}
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
        fds.into_iter().flat_map(|fd| iter::from_fn(|| next(fd)).take(ENDING.len())).collect()
    }

    /// Ends this process by the signal that has come, if one has.
    pub fn die(&self) {
        if let Some(Received { signal, .. }) = next(&self.ending) {
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

/// The next one of those that have come.
fn next(fd: &SignalFd) -> Option<Received> {
    let information = fd.read_signal().ok()??;
    let signal = Signal::try_from(i32::try_from(information.ssi_signo).ok()?).ok()?;
    Some(Received { signal, is_from_kernel: information.ssi_code == SI_KERNEL })
}

/// The signals that were ignored when the program started, as a bit set.
static IGNORED: OnceLock<u64> = OnceLock::new();

/// Must run before Rust's runtime starts, which ignores SIGPIPE.
pub extern "C" fn note_ignored_signals() {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    if let Some(bits) = bits {
        let _ = IGNORED.set(bits);
    }
}

/// Whether this program was started to ignore `signal`.
pub fn was_ignored(signal: Signal) -> bool {
    IGNORED.get().is_some_and(|ignored| ignored >> (signal as i32 - 1) & 1 == 1)
}
