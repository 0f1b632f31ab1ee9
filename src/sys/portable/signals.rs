//! Signals by threads that wait for them (sigwait).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, raise};
use rustix::process::getpgrp;
use rustix::termios::tcgetpgrp;

use crate::sys::poll::is_readable;
use crate::sys::quietly;

/// The longest interval between two looks at children.
const LONGEST: Duration = Duration::from_millis(200);

/// Blocked signals, to be read; readable when one has come. A thread takes them, for good.
pub struct SignalQueue(PipeReader);

/// A signal that has come.
pub struct Received {
    /// Which one.
    pub signal: Signal,
    /// Whether it comes from no process, so from the terminal.
    pub is_from_kernel: bool,
}

impl SignalQueue {
    /// Does not block them.
    pub fn of(signals: &[Signal]) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        // A full pipe must not block: what it has is enough.
        rustix::io::ioctl_fionbio(&writer, true)?;
        let (children, others): (Vec<_>, Vec<_>) =
            signals.iter().partition(|signal| **signal == Signal::SIGCHLD);
        if !children.is_empty() {
            let writer = writer.try_clone()?;
            quietly("children", move || tick(writer))?;
        }
        let others: SigSet = others.into_iter().collect();
        if others != SigSet::empty() {
            quietly(
                "signals",
                move || {
                    while others.wait().is_ok_and(|signal| tell(&writer, signal)) {}
                },
            )?;
        }
        Ok(Self(reader))
    }

    /// The next one of those that have come.
    pub fn next(&self) -> Option<Received> {
        let mut byte = [0];
        (is_readable(&self.0) && (&self.0).read_exact(&mut byte).is_ok()).then_some(())?;
        let signal = Signal::try_from(i32::from(byte[0])).ok()?;
        Some(Received { signal, is_from_kernel: is_of_terminal(signal) })
    }

    /// Sends this process `signal`, one of these, which stays pending, unless `is_over`. Whether it
    /// is pending. A SIGCONT that comes in between is not noticed.
    pub fn raise_unless(&self, signal: Signal, is_over: impl FnOnce() -> bool) -> bool {
        !is_over() && raise(signal).is_ok()
    }
}

impl AsFd for SignalQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// BSD drops a SIGCHLD that is not handled, so something may always have happened to a child; the
/// longer it runs, the later that is noticed.
fn tick(writer: PipeWriter) {
    let begun = Instant::now();
    while tell(&writer, Signal::SIGCHLD) {
        thread::sleep((begun.elapsed() / 16).clamp(Duration::from_millis(1), LONGEST));
    }
}

/// Whether it is still to be told.
fn tell(mut writer: &PipeWriter, signal: Signal) -> bool {
    let told = writer.write_all(&[signal as u8]);
    told.is_ok() || told.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Where it comes from is not told. In the terminal's foreground, it is a key: then the command has
/// got it, too, and must not get it twice.
fn is_of_terminal(signal: Signal) -> bool {
    match signal {
        Signal::SIGTTIN | Signal::SIGTTOU => true,
        Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTSTP => File::open("/dev/tty")
            .is_ok_and(|terminal| tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp())),
        _ => false,
    }
}

/// What was ignored is not told. An ignored signal that is held back is dropped by BSD.
pub fn check_ignored() -> io::Result<()> {
    Ok(())
}

/// See [`check_ignored`].
pub extern "C" fn note_ignored_signals() {}

/// See [`check_ignored`].
pub fn was_ignored(_signal: Signal) -> bool {
    false
}

/// Not needed: what was ignored is not told.
pub fn exec_as_it_is(
    _program: OsString,
    _arguments: impl Iterator<Item = OsString>,
    _own: Vec<(String, String)>,
    _stdin: OwnedFd,
) -> io::Error {
    io::ErrorKind::Unsupported.into()
}
