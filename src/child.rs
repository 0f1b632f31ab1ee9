//! Running a command of the user's, so that its PID is known before it does anything, and so that it is as alone with its
//! signals and its terminal as without us.
//!
//! ```text
//! Prepared::spawn   a shim of this program waits, under the PID that the command will have
//! Prepared::start   the go message; the shim becomes the command (exec)
//! Running::wait     signals that were meant for the command are passed on; we stop when it stops
//! ```
//!
//! The command stays in our process group. Whatever a terminal or `kill -TERM -PGID` sends to the group it gets by itself; what
//! is sent to us alone we pass on. A witness tells the two apart.

pub mod claimant;
pub(crate) mod helper;
mod interruptions;
pub mod lookup;
mod shim;
mod signals;
pub mod termination;
mod witness;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitIdStatus, getpid, set_child_subreaper, waitid};

use crate::process;
pub use interruptions::Interruptions;
use signals::{Received, Signals, barrier};
pub use signals::{are_ends_lost, die_of_interrupt, note_ignored_signals};
use termination::{Termination, is_anything_left, signal_tree};
use witness::Witness;

/// So many signals are passed on before something else gets its turn: somebody may send them without a pause.
const MAX_SIGNALS: usize = 64;

/// How long a command has to last to be worth a witness. Before that, it has hardly begun to care about signals.
const SHORT: Duration = Duration::from_millis(10);

/// What is to become of the processes that a command leaves behind. By default, they are nobody's business.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// The command has ended when they have.
    pub are_awaited: bool,
    /// They, and the command, are ended when the lock is lost.
    pub end_with_the_lock: bool,
}

impl Leftovers {
    /// Whether they have to become our children when their parents end.
    fn are_adopted(self) -> bool {
        self.are_awaited || self.end_with_the_lock
    }
}

/// How a command ended.
#[derive(Debug)]
pub enum End {
    /// With an exit code.
    Exited(i32),
    /// By a signal.
    Killed(i32),
    /// By SIGINT, which we have got as well: somebody has pressed Ctrl-C.
    Interrupted,
    /// It never began.
    NotRun(io::Error),
}

/// A process that will be the command, and does nothing until it is told to start. Dropped before that, it is ended.
pub struct Prepared {
    /// Empty when it was started.
    shim: Option<Shim>,
    /// Signals are held back from its making on.
    signals: Option<Signals>,
    leftovers: Leftovers,
}

struct Shim {
    pid: Pid,
    channel: OwnedFd,
}

/// A command that runs. It goes on when this is dropped.
pub struct Running {
    pid: Pid,
    channel: OwnedFd,
    signals: Signals,
    leftovers: Leftovers,
    begun: Instant,
    witness: Option<Witness>,
    has_tried_witness: bool,
    is_interrupted: bool,
}

/// If this process was started as one of our helpers, does a helper's work. To be asked before anything else: it has to be quick.
pub fn help() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next()?.to_str()? {
        shim::NAME => Some(shim::main(arguments)),
        witness::NAME => Some(witness::main()),
        _ => None,
    }
}

impl Prepared {
    /// Makes the process that is to be `command`, a program and its arguments. What was held back `earlier` is not in the way.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn spawn(command: &[OsString], leftovers: Leftovers, earlier: Option<&Interruptions>) -> io::Result<Self> {
        if leftovers.are_adopted() {
            set_child_subreaper(Some(getpid()))?;
        }
        // With all signals as they were given to us, which are the command's, too. They end it while it waits; and when they end
        // us before the next line, it ends because we have.
        let (pid, channel) = helper::spawn("serializer", shim::NAME, |shim| {
            shim.args(command);
        })?;
        let mut prepared = Self { shim: Some(Shim { pid, channel }), signals: None, leftovers };
        let signals = Signals::hold()?;
        prepared.signals = Some(match earlier {
            Some(earlier) => signals.held_since(earlier.signals()),
            None => signals,
        });
        Ok(prepared)
    }

    /// The PID that the command will have.
    ///
    /// # Panics
    /// Never: it is there until it is started, which consumes this.
    pub fn pid(&self) -> Pid {
        self.shim.as_ref().expect("it is there").pid
    }

    /// Whether it can still be started: neither has somebody killed it, nor has a signal come that is to end us.
    /// A signal that is to stop us does so here.
    pub fn is_ready(&self) -> bool {
        let Some(signals) = &self.signals else { return false };
        signals.stop_if_asked();
        let ended = wait_for(self.pid(), WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT);
        !signals.is_ending() && matches!(ended, Ok(None))
    }

    /// These become readable when that may have changed.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.signals.iter().flat_map(Signals::fds).collect()
    }

    /// Ends the process, and then ourselves by the signal that has come, if one has.
    pub fn give_up(mut self) -> Option<i32> {
        self.end();
        self.signals.take()?.die()
    }

    /// Lets the command run, with our stdin and with `environment` besides our own (`NAME=VALUE`). If it is to end with its lock, it
    /// is killed when this process ends, because nobody renews the lease then.
    ///
    /// # Errors
    /// When it does not run, and never will; with this, to be given up.
    pub fn start(mut self, environment: &[String]) -> Result<Running, Box<(io::Error, Self)>> {
        let (Some(shim), Some(signals)) = (self.shim.take(), self.signals.take()) else { unreachable!("they are there") };
        let is_bound = self.leftovers.end_with_the_lock;
        if let Err(error) = shim::go(&shim.channel, environment, &signals.of_command(), is_bound) {
            self.shim = Some(shim);
            self.signals = Some(signals);
            return Err(Box::new((error, self)));
        }
        let Shim { pid, channel } = shim;
        let (leftovers, begun) = (self.leftovers, Instant::now());
        Ok(Running { pid, channel, signals, leftovers, begun, witness: None, has_tried_witness: false, is_interrupted: false })
    }

    fn end(&mut self) {
        let Some(Shim { pid, channel }) = self.shim.take() else { return };
        drop(channel);
        // It has not been reaped, so that the PID is its own.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        let _ = wait_for(pid, WaitIdOptions::EXITED);
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        self.end();
    }
}

fn wait_for(pid: Pid, options: WaitIdOptions) -> rustix::io::Result<Option<WaitIdStatus>> {
    rustix::io::retry_on_intr(|| waitid(WaitId::Pid(pid), options))
}

impl Running {
    /// The command's PID.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for the command's end, and brings it about if `termination` says so. Nobody but this may wait for it.
    ///
    /// # Errors
    /// When its end cannot be learned.
    pub fn wait(mut self, mut termination: Option<&mut Termination<'_>>) -> io::Result<End> {
        let status = loop {
            let what = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
            match wait_for(self.pid, what)? {
                Some(status) if !status.stopped() => break status,
                // Signals first: one that has us go on again must not be lost to this stop.
                Some(status) => {
                    self.pass_on_signals(Some(self.pid))?;
                    self.stop(WaitId::Pid(self.pid), status.stopping_signal());
                    continue;
                }
                None => {}
            }
            self.step(Some(self.pid), termination.as_deref_mut())?;
        };
        // What has ended the command may be on its way to us.
        barrier();
        for _ in 0..MAX_SIGNALS {
            let Some(received) = self.signals.receive()? else { break };
            self.is_interrupted |= received.signal == Signal::SIGINT;
        }
        let not_run = shim::failure(&self.channel);
        self.witness = None;
        if self.leftovers.are_awaited {
            self.reap_leftovers(termination.as_deref_mut())?;
        }
        // What the command has started is to end with it then.
        while termination.as_ref().is_some_and(|termination| termination.is_going_on()) && is_anything_left(None) {
            self.reap_adopted();
            self.step(None, termination.as_deref_mut())?;
        }
        if let Some(error) = not_run {
            return Ok(End::NotRun(error));
        }
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ok(End::Exited(code)),
            (None, Some(signal)) if signal == Signal::SIGINT as i32 && self.is_interrupted => Ok(End::Interrupted),
            (None, Some(signal)) => Ok(End::Killed(signal)),
            (None, None) => Err(io::Error::other("it ended in an unknown way")),
        }
    }

    /// Does what is to be done for the command, or what it has left behind, or sleeps until there may be something.
    fn step(&mut self, command: Option<Pid>, mut termination: Option<&mut Termination<'_>>) -> io::Result<()> {
        let witness = self.witness.as_ref().map(Witness::pid);
        // Also where signals come all the time.
        let has_advanced = termination.as_deref_mut().map_or(Ok(false), |termination| termination.advance(command, witness))?;
        // One of those that are read may have told of an end or a stop.
        if !self.pass_on_signals(command)? && !has_advanced {
            self.sleep(termination.as_deref())?;
        }
        Ok(())
    }

    /// Until something happens, or it is time for a witness.
    fn sleep(&mut self, termination: Option<&Termination<'_>>) -> io::Result<()> {
        let wait = if self.has_tried_witness { None } else { Some(SHORT.saturating_sub(self.begun.elapsed())) };
        if wait.is_some_and(|wait| wait.is_zero()) {
            self.has_tried_witness = true;
            let witness = Witness::spawn();
            self.witness = witness.inspect_err(|error| tracing::debug!("cannot start a witness of signals: {error}")).ok();
            return Ok(());
        }
        let mut fds: Vec<PollFd<'_>> = self.signals.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).to_vec();
        fds.extend(termination.and_then(Termination::fd).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let wait = wait.into_iter().chain(termination.and_then(Termination::limit)).min();
        let wait = wait.and_then(|wait| Timespec::try_from(wait).ok());
        match poll(&mut fds, wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Passes on what was sent to us alone. Whether there was any signal.
    fn pass_on_signals(&mut self, to: Option<Pid>) -> io::Result<bool> {
        let mut has_any = false;
        for _ in 0..MAX_SIGNALS {
            let Some(received) = self.signals.receive()? else { break };
            has_any = true;
            if received.signal == Signal::SIGCHLD && (self.leftovers.are_adopted() || getpid().is_init()) {
                self.reap_adopted();
            }
            self.is_interrupted |= received.signal == Signal::SIGINT;
            if received.signal != Signal::SIGCHLD && !self.was_sent_to_all(&received) {
                let receivers = to.map(|pid| vec![pid]).or_else(process::children);
                if receivers.is_none() {
                    tracing::warn!("cannot pass {} on: /proc does not tell what the command has left behind", received.signal);
                }
                for pid in receivers.into_iter().flatten() {
                    // It may just have ended; then nobody is left to be told. It has not been reaped, so that the PID is its own.
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.as_raw_pid()), received.signal);
                }
            }
        }
        Ok(has_any)
    }

    /// Nobody else does so where orphans are ours.
    fn reap_adopted(&self) {
        let own = [Some(self.pid), self.witness.as_ref().map(Witness::pid)];
        for pid in process::children().into_iter().flatten().filter(|pid| !own.contains(&Some(*pid))) {
            let _ = wait_for(pid, WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
    }

    /// Whether the command has got the signal, too.
    fn was_sent_to_all(&mut self, received: &Received) -> bool {
        // A terminal sends to the whole group. Hang-ups have another way besides: to the leader of the session alone.
        let is_terminals = received.is_from_kernel && received.signal != Signal::SIGHUP;
        // The witness is asked in any case, so that it does not remember this signal when the next one comes.
        let has_seen = self.witness.as_mut().map(|witness| witness.has_seen(received.signal, is_terminals));
        if self.has_left_the_group() {
            return false;
        }
        match has_seen {
            Some(Ok(has_seen)) => has_seen || is_terminals,
            Some(Err(error)) => {
                tracing::debug!("the witness of signals does not answer: {error}");
                self.witness = None;
                received.is_from_kernel
            }
            None => received.is_from_kernel,
        }
    }

    /// Whether the command has made a process group of its own, as `timeout` does. Without us, it would have led the one that the
    /// signal was sent to.
    fn has_left_the_group(&self) -> bool {
        let group = |pid: Option<Pid>| nix::unistd::getpgid(pid.map(|pid| nix::unistd::Pid::from_raw(pid.as_raw_pid())));
        group(Some(self.pid)).is_ok_and(|its| group(None).is_ok_and(|ours| its != ours))
    }

    /// Stops ourselves as the command was stopped, or what it has left behind, so that a shell sees that the job has.
    fn stop(&mut self, whom: WaitId<'_>, signal: Option<i32>) {
        let Some(signal) = signal.and_then(|signal| Signal::try_from(signal).ok()) else { return };
        // A terminal stops all; SIGSTOP may be meant for the command alone (`cpulimit`), which is then let go on alone. A shell that
        // watches jobs, and would have us go on, makes us the leader of our group; that of a script does not.
        if signal == Signal::SIGSTOP && nix::unistd::getpgrp() != nix::unistd::getpid() {
            return;
        }
        // SIGSTOP would stop us where nobody watches jobs and has us go on again (an orphaned process group); and it cannot be
        // taken back.
        let signal = if signal == Signal::SIGSTOP { Signal::SIGTSTP } else { signal };
        // While we are stopped, nothing is renewed, so that nothing may go on, also what has left our group, as `timeout` does.
        let tree = self.leftovers.end_with_the_lock.then(|| self.witness.as_ref().map(Witness::pid));
        if let Some(witness) = tree {
            signal_tree(getpid(), rustix::process::Signal::STOP, witness);
        }
        let (signals, witness) = (&self.signals, &mut self.witness);
        signals.stop_unless(signal, || {
            // The signal that lets all go on may be on its way. It takes back our stop signal if it comes after this.
            barrier();
            if witness.as_mut().is_some_and(|witness| witness.after_stop(|| signals.is_continuing()).is_err()) {
                *witness = None;
            }
            let goes_on = WaitIdOptions::CONTINUED | WaitIdOptions::NOHANG;
            let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            let is_so = |what| !matches!(rustix::io::retry_on_intr(|| waitid(whom.clone(), what)), Ok(None));
            // Of several, others may be stopped yet when one has ended.
            is_so(goes_on) || (matches!(whom, WaitId::Pid(_)) && is_so(ended))
        });
        if let Some(witness) = tree {
            signal_tree(getpid(), rustix::process::Signal::CONT, witness);
        }
    }

    /// Waits until no process is left that the command has started.
    fn reap_leftovers(&mut self, mut termination: Option<&mut Termination<'_>>) -> io::Result<()> {
        loop {
            let what = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
            match rustix::io::retry_on_intr(|| waitid(WaitId::All, what)) {
                Ok(Some(status)) if status.stopped() => {
                    self.pass_on_signals(None)?;
                    self.stop(WaitId::All, status.stopping_signal());
                    continue;
                }
                Ok(Some(_)) => continue,
                Ok(None) => {}
                Err(Errno::CHILD) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            // No witness: it would be one of those who are waited for.
            self.has_tried_witness = true;
            self.step(None, termination.as_deref_mut())?;
        }
    }
}

/// Whether somebody waits at the other end, or has closed it.
fn is_readable(fd: &impl AsFd, limit: Duration) -> io::Result<bool> {
    let limit = Timespec { tv_sec: 0, tv_nsec: i64::from(limit.subsec_nanos()) };
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit)))? > 0)
}
