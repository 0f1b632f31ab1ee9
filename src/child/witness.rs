//! A process that does nothing but lie in our process group, with all signals blocked: what was sent to the
//! whole group is pending there, and what was sent to us alone is not. It ends when its connection does.
//!
//! The kernel signals the youngest member of a group first: when a signal has reached us, it has reached the
//! witness and the command.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::net::{RecvFlags, recv};
use rustix::process::{Pid, WaitId, WaitIdOptions};

use super::signals::STOPPING;
use crate::process;

/// What this process is called on its command line.
pub const NAME: &str = "witness";

/// Service managers signal one process after another: how long to wait for the others.
const PATIENCE: Duration = Duration::from_millis(20);

/// The witness, as seen by the process that asks it.
pub struct Witness {
    pid: Pid,
    _channel: OwnedFd,
    /// Signals that former witnesses have seen, and we have not yet.
    seen: u64,
}

fn bit(signal: Signal) -> u64 {
    1 << (signal as i32 - 1)
}

/// Stop signals and SIGCONT remove each other.
fn job_control() -> u64 {
    STOPPING.into_iter().map(bit).sum::<u64>() | bit(Signal::SIGCONT)
}

impl Witness {
    /// It inherits that signals are blocked, and so misses nothing from its first moment on.
    pub fn spawn() -> io::Result<Self> {
        // Not our own name: `pkill serializer` must not look like a signal to the group.
        let (pid, channel) = super::helper::spawn("run-witness", NAME, |command| {
            // Nothing by which it could be taken for a part of a pipeline run.
            command.env_clear().current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
        })?;
        Ok(Self { pid, _channel: channel, seen: 0 })
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether `signal`, which we have got, was sent to it, too.
    pub fn has_seen(&mut self, signal: Signal) -> io::Result<bool> {
        // A stop that was taken back for all is not pending any more.
        let wanted = if STOPPING.contains(&signal) { bit(signal) | bit(Signal::SIGCONT) } else { bit(signal) };
        if self.pending()? & wanted == 0 {
            std::thread::sleep(PATIENCE);
        }
        let has_seen = self.pending()? & wanted != 0;
        if has_seen {
            // The SIGCONT that has taken a stop back is still to come to us, too.
            self.replace(|| if signal == Signal::SIGCONT { job_control() } else { bit(signal) })?;
        }
        Ok(has_seen)
    }

    /// To be called when our own stop may have removed a SIGCONT that had come to us.
    pub fn after_stop(&mut self, is_continuing: impl FnOnce() -> bool) -> io::Result<()> {
        if self.pending()? & job_control() == 0 {
            return Ok(());
        }
        self.replace(|| if is_continuing() { 0 } else { job_control() })
    }

    /// Lets another process be the witness: what is pending in this one would hide the next signal of its kind.
    fn replace(&mut self, forgotten: impl FnOnce() -> u64) -> io::Result<()> {
        let mut next = Self::spawn()?;
        let seen = self.pending()? & !forgotten();
        // What has come since it was made, it has seen itself.
        next.seen = seen & !next.pending()?;
        *self = next;
        Ok(())
    }

    fn pending(&self) -> io::Result<u64> {
        let pending = process::pending_signals(self.pid).ok_or_else(|| io::Error::other("/proc does not show it"))?;
        Ok(self.seen | pending)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // It has not been reaped, so the PID is its own.
        let _ = rustix::process::kill_process(self.pid, rustix::process::Signal::KILL);
        let _ = super::wait_for(WaitId::Pid(self.pid), WaitIdOptions::EXITED);
    }
}

/// The witness itself.
pub fn main() -> ExitCode {
    let _ = rustix::thread::set_name(c"run-witness");
    let _ = rustix::io::retry_on_intr(|| recv(io::stdin(), &mut [0; 1], RecvFlags::empty()));
    ExitCode::SUCCESS
}
