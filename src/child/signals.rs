//! The signals that we hold back while a command is ours, so that it ends before we do: blocked and read, never handled,
//! because the command inherits what we ignore, and nothing else.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{Pid, setpgid};

/// They end a process unless it does something about them.
const ENDING: [Signal; 6] = [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// They stop a process unless it does something about them.
pub const STOPPING: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// `SI_KERNEL` of `asm-generic/siginfo.h`: it comes from no process.
const SI_KERNEL: i32 = 0x80;

/// Blocked signals, to be read. Those that we were started to ignore stay ignored, here and in the command.
pub struct Signals {
    before: SigSet,
    held: SigSet,
    ending: SignalFd,
    stopping: SignalFd,
    continuing: SignalFd,
    child: SignalFd,
}

/// A signal that has come.
pub struct Received {
    pub signal: Signal,
    pub is_from_kernel: bool,
}

/// Returns when every signal that is being sent to a process group has reached all its members: the kernel sends it under
/// a lock (`tasklist_lock`, for reading) that this call takes for writing. It changes nothing.
///
/// As yet, the kernel begins with the youngest member, so that we, who are older than the witness and the command, are the last
/// one anyway. That is nowhere promised.
pub fn barrier() {
    // The lock is taken before the process is looked for. No process has this number, which is larger than any (`PID_MAX_LIMIT`);
    // our own, with our own group, would not do where its leader is in another PID namespace, and the group has no number here.
    let _ = setpgid(Pid::from_raw(i32::MAX), Pid::from_raw(i32::MAX));
}

/// A description of signals, to be read without waiting.
pub fn descriptor(signals: &SigSet) -> nix::Result<SignalFd> {
    SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// All that are passed on.
pub fn all() -> SigSet {
    ENDING.into_iter().chain(STOPPING).chain([Signal::SIGCONT]).collect()
}

impl Signals {
    /// Holds signals back from now on.
    pub fn hold() -> io::Result<Self> {
        let ignored = ignored()?;
        let wanted =
            |signals: &[Signal]| -> SigSet { signals.iter().copied().filter(|signal| !contains(ignored, *signal)).collect() };
        let sets = [wanted(&ENDING), wanted(&STOPPING), wanted(&[Signal::SIGCONT]), wanted(&[Signal::SIGCHLD])];
        let held: SigSet = sets.iter().flat_map(SigSet::iter).collect();
        let [ending, stopping, continuing, child] = sets.map(|set| descriptor(&set));
        let (ending, stopping, continuing, child) = (ending?, stopping?, continuing?, child?);
        let before = held.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Self { before, held, ending, stopping, continuing, child })
    }

    /// As if they had been held back since `earlier`.
    pub fn held_since(self, earlier: &Self) -> Self {
        Self { before: earlier.before, ..self }
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
        super::is_readable(&self.ending, std::time::Duration::ZERO).unwrap_or(true)
    }

    /// Whether one has come that ends a stop.
    pub fn is_continuing(&self) -> bool {
        super::is_readable(&self.continuing, std::time::Duration::ZERO).unwrap_or(false)
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

    /// Stops this process by `signal`, unless it is ignored, or taken back, or `is_over`. What takes it back, SIGCONT, does so from the moment
    /// before `is_over` is asked on, because the signal is kept pending meanwhile.
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

    /// The next signal that has come.
    pub fn receive(&self) -> io::Result<Option<Received>> {
        for fd in [&self.ending, &self.stopping, &self.continuing, &self.child] {
            if let Some(received) = fd.read_signal()?.as_ref().and_then(received) {
                return Ok(Some(received));
            }
        }
        Ok(None)
    }

    /// Ends this process by the signal that has come, if one has. Returns its number where it does not end us.
    pub fn die(self) -> Option<i32> {
        let information = self.ending.read_signal().ok()??;
        let Received { signal, .. } = received(&information)?;
        // It counts as any other signal does; the difference is who sent it.
        let _ = raise(signal);
        let _ = self.before.thread_set_mask();
        Some(signal as i32)
    }
}

/// Ends this process by SIGINT, as the command was ended: a shell that runs a script ends that only if its child did not take
/// Ctrl-C for an answer. Returns where SIGINT does not end us.
pub fn die_of_interrupt() {
    let interrupt: SigSet = [Signal::SIGINT].into_iter().collect();
    // It is blocked, and comes with the end of that.
    if raise(Signal::SIGINT).is_ok() {
        let _ = interrupt.thread_unblock();
    }
}

fn received(information: &nix::sys::signalfd::siginfo) -> Option<Received> {
    let signal = Signal::try_from(i32::try_from(information.ssi_signo).ok()?).ok()?;
    Some(Received { signal, is_from_kernel: information.ssi_code == SI_KERNEL })
}

/// The signals that were ignored when the program started, as a bit set. Unset where `/proc` does not show them, and in programs
/// that only use this library.
static AT_START: OnceLock<u64> = OnceLock::new();

/// To be called before Rust's runtime starts, which ignores SIGPIPE.
pub extern "C" fn note_ignored_signals() {
    if let Ok(ignored) = ignored_now() {
        let _ = AT_START.set(ignored);
    }
}

fn ignored() -> io::Result<u64> {
    AT_START.get().copied().map_or_else(ignored_now, Ok)
}

fn ignored_now() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let bits = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    bits.ok_or_else(|| io::Error::other("/proc/self/status does not tell which signals are ignored"))
}

fn contains(signals: u64, signal: Signal) -> bool {
    signals >> (signal as i32 - 1) & 1 == 1
}

/// Whether we were started so that the ends of our children are not told.
pub fn are_ends_lost() -> bool {
    ignored().is_ok_and(|ignored| contains(ignored, Signal::SIGCHLD))
}

/// Whether we were started to ignore SIGPIPE, as all programs of this kind do from their start on.
pub fn is_pipe_ignored() -> bool {
    AT_START.get().is_some_and(|ignored| contains(*ignored, Signal::SIGPIPE))
}
