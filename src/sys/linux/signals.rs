//! Signals by signalfd; the signals that were ignored at the start, and exec with SIGPIPE ignored.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::OnceLock;

use nix::sys::signal::{Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{dup2_stdin, execvpe};

use crate::sys::signals::Received;

/// `SI_KERNEL` of `asm-generic/siginfo.h`: the kernel sent the signal.
const SI_KERNEL: i32 = 0x80;

/// A queue of blocked signals; readable when a signal has arrived.
pub struct SignalQueue(SignalFd);

impl SignalQueue {
    /// Does not block them.
    pub fn of(signals: &[Signal]) -> io::Result<Self> {
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&signals.iter().copied().collect(), flags)?))
    }

    pub fn next(&self) -> Option<Received> {
        let information = self.0.read_signal().ok()??;
        let signal = Signal::try_from(i32::try_from(information.ssi_signo).ok()?).ok()?;
        Some(Received { signal, is_from_kernel: information.ssi_code == SI_KERNEL })
    }

    /// Makes `signal`, one of the queue's, pending, unless `is_over` then. Returns whether it is.
    pub fn raise_unless(&self, signal: Signal, is_over: impl FnOnce() -> bool) -> bool {
        if raise(signal).is_err() {
            return false;
        }
        let is_over = is_over();
        while is_over && self.next().is_some() {}
        !is_over
    }
}

impl AsFd for SignalQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Fails if the ignored signals are unknown.
pub fn check_ignored() -> io::Result<()> {
    IGNORED.get().map(drop).ok_or_else(|| io::Error::other("/proc is not mounted"))
}

/// The signals that were ignored when the program started, as a bit set.
static IGNORED: OnceLock<u64> = OnceLock::new();

/// Must run before Rust's runtime starts, which ignores SIGPIPE.
pub extern "C" fn note_ignored_signals() {
    // Usually in one read; groups may make it longer.
    let mut status = Vec::with_capacity(4096);
    let file = File::open("/proc/self/status");
    let _ = file.and_then(|file| file.take(u64::MAX).read_to_end(&mut status));
    let status = String::from_utf8_lossy(&status);
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

/// Becomes the command, with SIGPIPE ignored, which std's `exec` resets.
pub fn exec_as_it_is(
    program: OsString,
    arguments: impl Iterator<Item = OsString>,
    own: Vec<(String, String)>,
    stdin: OwnedFd,
) -> io::Error {
    let text = |word: OsString| CString::new(word.into_vec());
    let words: Result<Vec<_>, _> = std::iter::once(program).chain(arguments).map(text).collect();
    let own = own.into_iter().map(|(name, value)| (name.into(), value.into()));
    let variables: BTreeMap<OsString, OsString> = std::env::vars_os().chain(own).collect();
    let variables =
        variables.into_iter().map(|(name, value)| text([name, value].join("=".as_ref())));
    let (Ok(words), Ok(variables)) = (words, variables.collect::<Result<Vec<_>, _>>()) else {
        return io::ErrorKind::InvalidInput.into();
    };
    match dup2_stdin(stdin).and_then(|()| execvpe(&words[0], &words, &variables)) {
        Err(error) => error.into(),
        Ok(never) => match never {},
    }
}
