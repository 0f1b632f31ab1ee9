//! Ending a command, and all that it has started, because the lock under which they run is lost: TERM, a time of grace, KILL.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpid, pidfd_send_signal};

use crate::process::{self, Observation};

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

    /// Takes the step that is due, if one is; `spared` is no part of the command. Whether it took one.
    ///
    /// # Errors
    /// When it cannot be told whether it is time.
    pub fn advance(&mut self, spared: Option<Pid>) -> io::Result<bool> {
        match self.stage {
            Stage::Running if super::is_readable(&self.when, Duration::ZERO)? => {
                tracing::error!("ending the command, because its lock is lost: {}", (self.why)());
                send_to_descendants(Signal::TERM, spared);
                self.stage = Stage::Asked(Instant::now() + self.grace);
                Ok(true)
            }
            Stage::Asked(until) if Instant::now() >= until => {
                tracing::error!("killing the command, which has not ended in time");
                for _ in 0..MAX_KILLS {
                    if send_to_descendants(Signal::KILL, spared) == 0 {
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
    !process::descendants().into_iter().all(|pid| Some(pid) == spared)
}

/// Signals everything that this process and its descendants have started; tells how many got it.
fn send_to_descendants(signal: Signal, spared: Option<Pid>) -> usize {
    let mut sent = 0;
    for pid in process::descendants().into_iter().filter(|pid| Some(*pid) != spared) {
        let Observation::Running(process) = process::observe(pid) else { continue };
        // The number may have become another process's since it was listed; this one is looked at again through its pidfd.
        let is_ours = process::has_ancestor(pid, getpid());
        if let Some(pidfd) = process.ended_fd().filter(|_| is_ours) {
            sent += usize::from(pidfd_send_signal(pidfd, signal).is_ok());
        }
    }
    sent
}
