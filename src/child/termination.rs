//! Ending a command, and all that it has started, because the lock under which they run is lost: TERM, a time of grace, KILL.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpid, pidfd_send_signal};

use crate::process::{self, Observation, Process};

/// How often to look for what is left to be killed: whoever starts processes all the time may be a little quicker.
const MAX_KILLS: usize = 50;

/// What ends a command, and how far that has come.
pub struct Termination<'a> {
    when: BorrowedFd<'a>,
    grace: Duration,
    why: &'a dyn Fn() -> String,
    stage: Stage,
}

enum Stage {
    /// There is no reason.
    Running,
    /// It has been asked to, and is killed then.
    Asked(Instant),
    /// It has been killed.
    Killed,
}

impl<'a> Termination<'a> {
    /// A command is to be ended when `when` becomes readable. It may take `grace`; `why` is for people.
    pub fn new(when: BorrowedFd<'a>, grace: Duration, why: &'a dyn Fn() -> String) -> Self {
        Self { when, grace, why, stage: Stage::Running }
    }

    /// Whether the command was told to end.
    pub fn has_begun(&self) -> bool {
        !matches!(self.stage, Stage::Running)
    }

    /// Whether it was told, and has time yet.
    pub fn is_going_on(&self) -> bool {
        matches!(self.stage, Stage::Asked(_))
    }

    /// How long to sleep at most before the next step.
    pub fn limit(&self) -> Option<Duration> {
        match self.stage {
            Stage::Asked(until) => Some(until.saturating_duration_since(Instant::now())),
            Stage::Running | Stage::Killed => None,
        }
    }

    /// Becomes readable when it is time for the first step.
    pub fn fd(&self) -> Option<BorrowedFd<'a>> {
        (!self.has_begun()).then_some(self.when)
    }

    /// Takes the step that is due, if one is, for the command, which has not been reaped if it is named, and all that it has started;
    /// `spared` is no part of it. Whether it took one.
    ///
    /// # Errors
    /// When it cannot be told whether it is time.
    pub fn advance(&mut self, command: Option<Pid>, spared: Option<Pid>) -> io::Result<bool> {
        match self.stage {
            Stage::Running if super::is_readable(&self.when, Duration::ZERO)? => {
                tracing::error!("ending the command, because its lock is lost: {}", (self.why)());
                send(command, Signal::TERM, spared);
                self.stage = Stage::Asked(Instant::now() + self.grace);
                Ok(true)
            }
            Stage::Asked(until) if Instant::now() >= until => {
                tracing::error!("killing the command, which has not ended in time");
                for _ in 0..MAX_KILLS {
                    if send(command, Signal::KILL, spared) == 0 {
                        break;
                    }
                }
                self.stage = Stage::Killed;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

/// Whether anything is left of a command.
pub fn is_anything_left(spared: Option<Pid>) -> bool {
    !process::descendants_of(getpid()).into_iter().all(|pid| Some(pid) == spared)
}

/// Signals the command, and everything that this process and its descendants have started; tells how many got it.
fn send(command: Option<Pid>, signal: Signal, spared: Option<Pid>) -> usize {
    let listed = signal_tree(getpid(), signal, spared);
    // Where /proc tells nothing of it. It has not been reaped, so that the PID is its own.
    match command.filter(|_| listed == 0) {
        Some(command) => usize::from(rustix::process::kill_process(command, signal).is_ok()),
        None => listed,
    }
}

/// Signals `root`, unless that is this process, and everything that it and its descendants have started, but not `spared`; tells how
/// many got it.
pub fn signal_tree(root: Pid, signal: Signal, spared: Option<Pid>) -> usize {
    let all = tree(root, spared);
    all.iter().filter_map(Process::ended_fd).filter(|pidfd| pidfd_send_signal(*pidfd, signal).is_ok()).count()
}

/// `root`, unless that is this process, and everything that it and its descendants have started, but not `spared`.
pub fn tree(root: Pid, spared: Option<Pid>) -> Vec<Process> {
    let itself = Some(root).filter(|root| *root != getpid());
    let pids = process::descendants_of(root).into_iter().chain(itself).filter(|pid| Some(*pid) != spared);
    let look = |pid| match process::observe(pid) {
        // The number may have become another process's since it was listed: then it does not come from this one.
        Observation::Running(process) if process::has_ancestor(pid, root) => Some(process),
        _ => None,
    };
    pids.filter_map(look).collect()
}
