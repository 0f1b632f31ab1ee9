//! Runs a command of the user's: its PID is known before its first instruction, and its signals and
//! its terminal are what they would be without this program (docs/design.md, "Running a command").
//!
//! [`Child::prepare`] makes a process that waits; [`Child::start`] lets it become the command;
//! [`Child::wait`] passes signals on, stops when the command stops, and ends it if its lock is
//! lost.

pub mod lookup;
pub mod requester;
pub mod shim;
mod signals;
pub mod termination;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{getpgid, getpgrp, getsid};
use rustix::io::Errno;
use rustix::process::{
    Pid, WaitId, WaitIdOptions, WaitOptions, WaitStatus, getpid, wait, waitid, waitpid,
};

use crate::sys::clock::since_boot;
use crate::sys::{poll, process};
use signals::Received;
pub use signals::{Signals, note_ignored_signals, was_ignored};
use termination::{end_tree, signal_descendants};

/// Until something happens.
const LONG: Duration = Duration::from_secs(3600);

/// How long a command that a signal ends may take before it is killed, in milliseconds.
const GRACE: u64 = 10_000;

/// What becomes of the processes that a command leaves behind. By default, they go on.
#[derive(Clone, Copy, Default)]
pub struct Descendants {
    /// The command has ended when they have.
    pub are_awaited: bool,
    /// They, and the command, are ended when the lock is lost.
    pub end_with_the_lock: bool,
    /// They, and the command, are ended when a signal is to end this process.
    pub end_by_signals: bool,
}

impl Descendants {
    /// Whether they become our children when their parents end.
    fn are_adopted(self) -> bool {
        self.are_awaited || self.end_with_the_lock || self.end_by_signals
    }
}

/// How a command ended.
#[derive(Clone, Copy, Default)]
pub struct End {
    pub code: u8,
    /// Whether SIGINT has ended it, which we have got as well: Ctrl-C.
    pub is_interrupted: bool,
    /// Whether a signal to this process has ended it, by [`Descendants::end_by_signals`].
    pub is_stopped: bool,
}

/// The lease under which a command runs.
pub struct Lease<'a> {
    /// Becomes readable when the command has to end.
    pub lost: Option<BorrowedFd<'a>>,
    /// When to kill a command that is told to end now, in milliseconds since boot.
    pub kill_at: &'a dyn Fn() -> u64,
    /// Called when it is lost.
    pub on_loss: &'a mut dyn FnMut(),
}

/// If this process was started to become a command, does so.
pub fn help() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == shim::NAME).then(|| {
        shim::main(arguments);
        ExitCode::FAILURE
    })
}

/// What is to run.
#[derive(Clone, Default)]
pub struct Program {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// Variables besides ours.
    pub env: BTreeMap<String, String>,
}

/// The process of a command. Dropped before it was started, it is ended; dropped later, it goes on.
pub struct Child {
    /// Until it was reaped; so the PID is its own.
    pid: Option<Pid>,
    channel: OwnedFd,
    signals: Rc<Signals>,
    descendants: Descendants,
    is_started: bool,
    end: End,
}

impl Child {
    /// Makes the process that is to be the command. `signals` are held back from it until it is
    /// started.
    pub fn prepare(
        program: &Program,
        descendants: Descendants,
        signals: Rc<Signals>,
    ) -> io::Result<Self> {
        if descendants.are_adopted() {
            process::adopt_orphans(descendants.are_awaited)?;
        }
        let (pid, channel) =
            shim::spawn(shim::NAME, |shim| shim.args(&program.command).envs(&program.env))?;
        Ok(Self {
            pid: Some(pid),
            channel,
            signals,
            descendants,
            is_started: false,
            end: End::default(),
        })
    }

    /// The PID that the command has or will have, until it has ended.
    pub fn pid(&self) -> io::Result<Pid> {
        self.pid.ok_or_else(|| io::Error::other("its process has ended"))
    }

    /// Whether it can still be started: it was not killed.
    pub fn is_alive(&self) -> bool {
        has_come(self.whom(), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) == Ok(false)
    }

    /// Lets the command run, with our stdin, and with `variables` besides ours. If it is to end
    /// with its lock, it is killed when this process ends, because then the lease is not renewed.
    pub fn start(&mut self, variables: Vec<(String, String)>) -> io::Result<()> {
        let is_bound = self.descendants.end_with_the_lock;
        shim::go(&self.channel, variables, &self.signals.of_command(), is_bound)?;
        self.is_started = true;
        Ok(())
    }

    /// Waits for the command's end. The inner error says why the command has never begun.
    pub fn wait(mut self, mut lease: Lease<'_>) -> io::Result<io::Result<End>> {
        let status = self.wait_for_one(&mut lease)?.ok_or(Errno::CHILD)?;
        self.pid = None;
        // What has ended the command may have come to us, too.
        let mut all = self.signals.receive().into_iter();
        self.end.is_interrupted |= all.any(|received| received.signal == Signal::SIGINT);
        while self.descendants.are_awaited && self.wait_for_one(&mut lease)?.is_some() {}
        if let Some(error) = shim::failure(&self.channel) {
            return Ok(Err(error));
        }
        let signal = status.terminating_signal();
        let code = status.exit_status().or(signal.map(|signal| 128 + signal));
        self.end.code = code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX);
        self.end.is_interrupted &= signal == Some(Signal::SIGINT as i32);
        Ok(Ok(self.end))
    }

    /// The command, or else all that it has left behind.
    fn whom(&self) -> WaitId<'static> {
        self.pid.map_or(WaitId::All, WaitId::Pid)
    }

    /// Waits until one of those that are waited for has ended; `None` if there are none.
    fn wait_for_one(&mut self, lease: &mut Lease<'_>) -> io::Result<Option<WaitStatus>> {
        loop {
            // Not by waitid, which on macOS does not report the signal that ended a process.
            let what = WaitOptions::UNTRACED | WaitOptions::NOHANG;
            match rustix::io::retry_on_intr(|| match self.pid {
                Some(pid) => waitpid(Some(pid), what),
                None => wait(what),
            }) {
                Ok(Some((_, status))) if !status.stopped() => return Ok(Some(status)),
                Ok(Some((_, status))) => {
                    self.stop(status.stopping_signal());
                    continue;
                }
                Ok(None) => {}
                Err(Errno::CHILD) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            if lease.lost.take_if(|fd| poll::is_readable(fd)).is_some() {
                (lease.on_loss)();
                end_tree(self.pid.unwrap_or_else(getpid), (lease.kill_at)())?;
            // A signal that was read may have told of an end or a stop.
            } else if !self.pass_on_signals(lease)? {
                let fds = self.signals.fds().into_iter().chain(lease.lost);
                poll::sleep(LONG, &fds.collect::<Vec<_>>())?;
            }
        }
    }

    /// Passes on what has not reached the command by itself. Whether there was any signal.
    fn pass_on_signals(&mut self, lease: &Lease<'_>) -> io::Result<bool> {
        let all = self.signals.receive();
        for received in &all {
            let signal = received.signal;
            if signal == Signal::SIGCHLD {
                if self.descendants.are_adopted() || getpid().is_init() {
                    reap_orphans(self.pid.as_slice());
                }
                continue;
            }
            if self.descendants.end_by_signals && signal != Signal::SIGCONT {
                self.end.is_stopped = true;
                let kill_at = (since_boot() + GRACE).min((lease.kill_at)());
                end_tree(self.pid.unwrap_or_else(getpid), kill_at)?;
                continue;
            }
            self.end.is_interrupted |= signal == Signal::SIGINT;
            let receivers = self.pid.map_or_else(process::children, |pid| vec![pid]);
            for pid in receivers.into_iter().map(nix_pid).filter(|pid| !has_reached(*pid, received))
            {
                // It may just have ended. It has not been reaped, so the PID is its own.
                let _ = nix::sys::signal::kill(pid, signal);
            }
        }
        Ok(!all.is_empty())
    }

    /// Stops this process as the command was stopped, so that a shell sees that the job has.
    fn stop(&self, signal: Option<i32>) {
        let Some(signal) = signal.and_then(|signal| Signal::try_from(signal).ok()) else { return };
        // SIGSTOP may be meant for the command alone (`cpulimit`). Only a shell with job control,
        // which makes us the leader of our group, would let us go on again.
        if signal == Signal::SIGSTOP && getpgrp() != nix_pid(getpid()) {
            return;
        }
        // SIGSTOP cannot be taken back, and would stop us even where no shell lets us go on.
        let signal = if signal == Signal::SIGSTOP { Signal::SIGTSTP } else { signal };
        // While we are stopped, the lease is not renewed. What has left our group must not go on
        // either.
        let signal_all =
            |signal| self.descendants.end_with_the_lock.then(|| signal_descendants(signal));
        signal_all(rustix::process::Signal::STOP);
        self.signals.stop_unless(signal, || {
            let is_so = |what| has_come(self.whom(), what) != Ok(false);
            // Of several, one may have ended while others are stopped.
            is_so(WaitIdOptions::CONTINUED)
                || self.pid.is_some() && is_so(WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        });
        signal_all(rustix::process::Signal::CONT);
    }
}

/// Whether what has come to us has come to `pid`, too: the kernel sends a terminal's signals to a
/// whole process group, but a hang-up, and SIGCONT after it, to the leader of the session alone.
fn has_reached(pid: nix::unistd::Pid, received: &Received) -> bool {
    let is_hang_up = matches!(received.signal, Signal::SIGHUP | Signal::SIGCONT)
        && getsid(None) == Ok(nix_pid(getpid()));
    received.is_from_kernel && !is_hang_up && getpgid(Some(pid)) == Ok(getpgrp())
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pid) = self.pid.filter(|_| !self.is_started) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

/// Reaps orphans that have become our children and have ended, but for `own`.
pub fn reap_orphans(own: &[Pid]) {
    for pid in process::children().into_iter().filter(|pid| !own.contains(pid)) {
        let _ = has_come(WaitId::Pid(pid), WaitIdOptions::EXITED);
    }
}

/// Whether such a change of our children has come.
fn has_come(whom: WaitId<'_>, what: WaitIdOptions) -> rustix::io::Result<bool> {
    waitid(whom, what | WaitIdOptions::NOHANG).map(|status| status.is_some())
}

fn nix_pid(pid: Pid) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(pid.as_raw_pid())
}
