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
use crate::sys::signals::Received;

const LONGEST: Duration = Duration::from_millis(200);

pub struct SignalQueue(PipeReader);

impl SignalQueue {
    pub fn of(signals: &[Signal]) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        // A full pipe must not block: its content is enough to wake the reader.
        rustix::io::ioctl_fionbio(&writer, true)?;
        let (children, others): (Vec<_>, Vec<_>) =
            signals.iter().partition(|signal| **signal == Signal::SIGCHLD);
        if !children.is_empty() {
            let writer = writer.try_clone()?;
            quietly("children", move || tick(writer))?;
        }
        let others: SigSet = others.into_iter().collect();
        if others != SigSet::empty() {
            let wait = move || while others.wait().is_ok_and(|signal| tell(&writer, signal)) {};
            quietly("signals", wait)?;
        }
        Ok(Self(reader))
    }

    pub fn next(&self) -> Option<Received> {
        let mut byte = [0];
        (is_readable(&self.0) && (&self.0).read_exact(&mut byte).is_ok()).then_some(())?;
        let signal = Signal::try_from(i32::from(byte[0])).ok()?;
        Some(Received { signal, is_from_kernel: is_of_terminal(signal) })
    }

    /// A SIGCONT between the check and the signal goes unnoticed.
    pub fn raise_unless(&self, signal: Signal, is_over: impl FnOnce() -> bool) -> bool {
        !is_over() && raise(signal).is_ok()
    }
}

impl AsFd for SignalQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// BSD drops a SIGCHLD without a handler, so this reports one at growing intervals.
fn tick(writer: PipeWriter) {
    let begun = Instant::now();
    while tell(&writer, Signal::SIGCHLD) {
        thread::sleep((begun.elapsed() / 16).clamp(Duration::from_millis(1), LONGEST));
    }
}

fn tell(mut writer: &PipeWriter, signal: Signal) -> bool {
    let told = writer.write_all(&[signal as u8]);
    told.is_ok() || told.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// The sender is unknown. In the terminal's foreground, a key is assumed: then the command has
/// received the signal as well, and must not get it twice.
fn is_of_terminal(signal: Signal) -> bool {
    match signal {
        Signal::SIGTTIN | Signal::SIGTTOU => true,
        Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTSTP => File::open("/dev/tty")
            .is_ok_and(|terminal| tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp())),
        _ => false,
    }
}

/// Succeeds: the system does not report ignored signals, and BSD drops an ignored blocked signal.
pub fn check_ignored() -> io::Result<()> {
    Ok(())
}

pub extern "C" fn note_ignored_signals() {}

pub fn was_ignored(_signal: Signal) -> bool {
    false
}

/// Unsupported, and not needed: ignored signals are unknown.
pub fn exec_as_it_is(
    _program: OsString,
    _arguments: impl Iterator<Item = OsString>,
    _own: Vec<(String, String)>,
    _stdin: OwnedFd,
) -> io::Error {
    io::ErrorKind::Unsupported.into()
}
