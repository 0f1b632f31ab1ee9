//! A process that does nothing but lie in our process group and remember which signals it has got: what was sent to the whole
//! group has reached it, too, and what was sent to us alone has not. It ends when its connection does.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{Pid, WaitIdOptions};

use super::signals::{self, STOPPING, barrier};
use crate::process;

/// What this process is called on its command line.
pub const NAME: &str = "witness";

/// Not our own name: `pkill serializer` must not look like a signal to the group.
const PROCESS_NAME: &str = "run-witness";

/// How long to wait for an answer before the kernel is asked instead.
const LIMIT: Duration = Duration::from_millis(999);

/// How long to give others who send a signal to every process, one after another, as service managers do.
const PATIENCE: Duration = Duration::from_millis(20);

/// The witness, as who asks it sees it.
pub struct Witness {
    pid: Pid,
    channel: OwnedFd,
    /// Signals that it has seen and we have not, yet.
    seen: u64,
}

fn bit(signal: Signal) -> u64 {
    1 << (signal as i32 - 1)
}

/// Stop signals and the one that ends a stop remove each other.
fn job_control() -> u64 {
    STOPPING.into_iter().map(bit).sum::<u64>() | bit(Signal::SIGCONT)
}

impl Witness {
    /// All that it is to see must be blocked: it inherits that, and so misses nothing from its first moment on.
    pub fn spawn() -> io::Result<Self> {
        let (pid, channel) = super::helper::spawn(PROCESS_NAME, NAME, |command| {
            // Nothing by which others could take it for a part of a pipeline run.
            command.env_clear().current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
        })?;
        Ok(Self { pid, channel, seen: 0 })
    }

    /// Its PID.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether `signal`, which we have got, was sent to it, too.
    pub fn has_seen(&mut self, signal: Signal, is_certain: bool) -> io::Result<bool> {
        barrier();
        self.seen |= self.ask()?;
        let wanted = bit(signal);
        // A stop that has been taken back for all cannot be seen any more.
        let wanted = if STOPPING.contains(&signal) { wanted | bit(Signal::SIGCONT) } else { wanted };
        if self.seen & wanted == 0 && !is_certain {
            std::thread::sleep(PATIENCE);
            self.seen |= self.ask()?;
        }
        let has_seen = self.seen & wanted != 0;
        // The one that takes a stop back is still to come to us, too.
        self.seen &= if signal == Signal::SIGCONT { !job_control() } else { !bit(signal) };
        Ok(has_seen)
    }

    /// To be called when our own stop may have removed the signal that ends a stop, where it was sent to us.
    pub fn after_stop(&mut self, is_continuing: impl FnOnce() -> bool) -> io::Result<()> {
        self.seen |= self.ask()?;
        // Asked later: if it comes in between, it will be seen here, too.
        if !is_continuing() {
            self.seen &= !job_control();
        }
        Ok(())
    }

    /// The signals that it has got since it was asked last.
    fn ask(&mut self) -> io::Result<u64> {
        send(&self.channel, b"?", SendFlags::NOSIGNAL)?;
        if !super::is_readable(&self.channel, LIMIT)? {
            // The machine has no time for it, or has stood still itself, or somebody has stopped it. What waits for it is known all
            // the same; but it would tell that again.
            let seen = process::pending_signals(self.pid).ok_or(io::ErrorKind::TimedOut)?;
            tracing::debug!("the witness of signals does not answer, and is replaced");
            let seen_before = std::mem::replace(self, Self::spawn()?).seen;
            self.seen = seen_before;
            return Ok(seen);
        }
        let mut answer = [0; 8];
        let (_, length) = recv(&self.channel, &mut answer, RecvFlags::DONTWAIT)?;
        if length == answer.len() { Ok(u64::from_ne_bytes(answer)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // It has not been reaped, so that the PID is its own; and it may be stopped.
        let _ = rustix::process::kill_process(self.pid, rustix::process::Signal::KILL);
        let _ = super::wait_for(self.pid, WaitIdOptions::EXITED);
    }
}

/// The witness itself.
pub fn main() -> ExitCode {
    let _ = rustix::thread::set_name(c"run-witness");
    let stdin = io::stdin();
    let answer_all = || -> io::Result<()> {
        let all = signals::all();
        // It inherits that all are blocked, but for those that are ignored.
        let descriptor = signals::descriptor(&all)?;
        let mut question = [0; 1];
        while rustix::io::retry_on_intr(|| recv(&stdin, &mut question, RecvFlags::empty()))?.1 > 0 {
            let mut seen: u64 = 0;
            while let Some(information) = descriptor.read_signal()? {
                seen |= 1 << (information.ssi_signo - 1);
            }
            send(&stdin, &seen.to_ne_bytes(), SendFlags::NOSIGNAL)?;
        }
        Ok(())
    };
    if answer_all().is_err() { super::helper::not_by_hand(NAME) } else { ExitCode::SUCCESS }
}
