//! Ending a command, and all that it has started, because the lock under which they run is lost: TERM, a time of grace, KILL.

use std::collections::HashSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::process::{Pid, Signal, getpid, pidfd_send_signal};

use crate::backend;
use crate::process::{self, Observation, Process, since_boot};
use crate::timer::Timer;

/// How often to look for what is left to be stopped or killed: each time, somebody has started others meanwhile.
const MAX_ROUNDS: usize = 50;

/// How often to look what those have started who are asked to end, and do so: they may leave others behind.
const WHILE_ENDING: Duration = Duration::from_millis(50);

/// What ends a command, and how far that has come.
pub struct Termination<'a> {
    when: BorrowedFd<'a>,
    kill_at: &'a dyn Fn() -> u64,
    why: &'a dyn Fn() -> String,
    stage: Stage,
    /// When it is to be killed: by the clock that goes on while the host sleeps. None where the kernel has none left.
    timer: Option<Timer>,
}

enum Stage {
    /// There is no reason.
    Running,
    /// It has been asked to, and is killed then, in milliseconds since boot.
    Asked(u64),
    /// It has been killed.
    Killed,
}

impl<'a> Termination<'a> {
    /// A command is to be ended when `when` becomes readable. `kill_at` is asked then until when that may take, in milliseconds since
    /// boot: what is over must not go on. `why` is for people.
    pub fn new(when: BorrowedFd<'a>, kill_at: &'a dyn Fn() -> u64, why: &'a dyn Fn() -> String) -> Self {
        Self { when, kill_at, why, stage: Stage::Running, timer: None }
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
            Stage::Asked(until) => Some(until_then(until)),
            Stage::Running | Stage::Killed => None,
        }
    }

    /// Becomes readable when it is time for the next step.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self.stage {
            Stage::Running => Some(self.when),
            Stage::Asked(_) => self.timer.as_ref().map(Timer::fd),
            Stage::Killed => None,
        }
    }

    /// Takes the step that is due, if one is, for the command, which has not been reaped if it is named, and all that it has started;
    /// `spared` is no part of it. Whether it took one.
    ///
    /// # Errors
    /// When it cannot be told whether it is time.
    pub fn advance(&mut self, command: Option<Pid>, spared: Option<Pid>) -> io::Result<bool> {
        match self.stage {
            Stage::Running if super::is_readable(&self.when, Duration::ZERO)? => {
                let until = (self.kill_at)();
                self.stage = Stage::Asked(until);
                if until_then(until).is_zero() {
                    tracing::error!("killing the command, because its lock is lost: {}", (self.why)());
                } else {
                    tracing::error!("ending the command, because its lock is lost: {}", (self.why)());
                    send(command, Signal::TERM, spared);
                    self.timer = Timer::new().and_then(|timer| timer.set(until).map(|()| timer)).ok();
                    return Ok(true);
                }
            }
            Stage::Asked(until) if until_then(until).is_zero() => {
                tracing::error!("killing the command, which has not ended in time");
            }
            _ => return Ok(false),
        }
        for _ in 0..MAX_ROUNDS {
            if send(command, Signal::KILL, spared) == 0 {
                break;
            }
        }
        self.stage = Stage::Killed;
        Ok(true)
    }
}

/// Until a moment, in milliseconds since boot.
fn until_then(moment: u64) -> Duration {
    Duration::from_millis(moment.saturating_sub(since_boot()))
}

/// Ends a process that is not ours, and all that it has started: asks them to, and kills at `kill_at`, in milliseconds since boot, what
/// is left. What they start meanwhile is killed with them.
///
/// # Errors
/// When it cannot sleep.
pub fn end_tree(root: Pid, kill_at: u64) -> io::Result<()> {
    let spared = Some(getpid());
    // Looked up now: whoever outlives its parent is nobody's child any more.
    let mut all = tree(root, spared);
    if !until_then(kill_at).is_zero() {
        signal_all(&all, Signal::TERM);
    }
    // Ends with the time of grace.
    while !until_then(kill_at).is_zero() && all.iter().any(|process| !process.has_ended()) {
        let one = all.iter().find(|process| !process.has_ended()).and_then(Process::ended_fd);
        backend::sleep(until_then(kill_at).min(WHILE_ENDING), &one.into_iter().collect::<Vec<_>>())?;
        add_descendants(&mut all, spared);
    }
    // Whoever is stopped starts nobody.
    for _ in 0..MAX_ROUNDS {
        signal_all(&all, Signal::STOP);
        if !add_descendants(&mut all, spared) {
            break;
        }
    }
    signal_all(&all, Signal::KILL);
    Ok(())
}

/// Adds what those have started that still run; tells whether that was anything.
fn add_descendants(all: &mut Vec<Process>, spared: Option<Pid>) -> bool {
    let running = |all: &[Process]| all.iter().filter(|process| !process.has_ended()).map(Process::pid).collect::<HashSet<_>>();
    let known = running(all);
    let new = process::descendants_of_all(&known.iter().copied().collect::<Vec<_>>());
    let new: HashSet<Pid> = new.into_iter().filter(|pid| !known.contains(pid) && Some(*pid) != spared).collect();
    let before = all.len();
    all.extend(new.into_iter().filter_map(|pid| descendant(pid, |pid| process::has_ancestor_among(pid, &known))));
    all.len() > before
}

/// Whether anything is left of a command.
pub fn is_anything_left(spared: Option<Pid>) -> bool {
    !process::descendants_of_all(&[getpid()]).into_iter().all(|pid| Some(pid) == spared)
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
    signal_all(&tree(root, spared), signal)
}

fn signal_all(all: &[Process], signal: Signal) -> usize {
    // Some may have ended.
    all.iter().filter_map(Process::ended_fd).filter(|pidfd| pidfd_send_signal(*pidfd, signal).is_ok()).count()
}

/// `root`, unless that is this process, and everything that it and its descendants have started, but not `spared`.
fn tree(root: Pid, spared: Option<Pid>) -> Vec<Process> {
    let itself = Some(root).filter(|root| *root != getpid());
    let pids = process::descendants_of_all(&[root]).into_iter().chain(itself).filter(|pid| Some(*pid) != spared);
    pids.filter_map(|pid| descendant(pid, |pid| process::has_ancestor_among(pid, &HashSet::from([root])))).collect()
}

/// A process, if it still is what `is_one` says.
fn descendant(pid: Pid, is_one: impl Fn(Pid) -> bool) -> Option<Process> {
    match process::observe(pid) {
        // The number may have become another process's since it was listed: then it does not come from there.
        Observation::Running(process) if is_one(pid) => Some(process),
        _ => None,
    }
}
