//! What `run`, `once` and `flock` are to run, how to lock for it, and how the runner of a task
//! reports the end to its scheduler.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::cli::{CommandArgs, WaitingArgs};
use crate::config::Environment;
use crate::error::Error;
use crate::lease::OnLost;
use crate::lock::once::Ending;
use crate::lock::staleness::Orphans;
use crate::lock::waiting::Waiting;
use crate::lock::{Grant, Request};
use crate::record::Outcome;
use crate::run::{Descendants, Program};
use crate::sys::{channel, poll};

#[derive(Default)]
pub struct Job {
    pub request: Request,
    pub waiting: Waiting,
    pub orphans: Orphans,
    pub program: Program,
    pub descendants: Descendants,
    pub on_lost: OnLost,
    pub skipped_exit_code: u8,
    pub is_verbose: bool,
    /// Whether to answer as flock(1): without a message, and with an empty file as a free lock.
    pub is_flock: bool,
    pub reason: Option<String>,
    /// Of a task on a schedule: when its time is over, in milliseconds since boot.
    pub task_ends_at: Option<u64>,
    /// Of a task on a schedule: what its scheduler has acquired for it.
    pub handed_over: Option<HandedOver>,
}

impl Job {
    /// A job as the options say.
    pub fn new(
        (args, waiting, on_lost): (&CommandArgs, &WaitingArgs, Option<OnLost>),
        reason: Option<&str>,
        environment: &Environment,
        request: Request,
    ) -> Result<Self, Error> {
        let on_lost = environment.on_lost(on_lost, OnLost::Terminate)?;
        let descendants = Descendants {
            are_awaited: args.until_children_exit,
            end_with_the_lock: on_lost == OnLost::Terminate && request.lease.is_some(),
            ..Descendants::default()
        };
        Ok(Self {
            request,
            waiting: environment.waiting(waiting)?,
            orphans: environment.orphans(args.orphans)?,
            program: Program { command: command_of(args), ..Program::default() },
            descendants,
            on_lost,
            is_verbose: args.verbose,
            reason: environment.reason(reason)?,
            ..Self::default()
        })
    }
}

pub fn command_of(args: &CommandArgs) -> Vec<OsString> {
    args.script.as_ref().map_or_else(|| args.command.clone(), |script| script_of_shell(script))
}

/// The command that runs a script, as flock(1) does it.
pub fn script_of_shell(script: &OsStr) -> Vec<OsString> {
    let shell = std::env::var_os("SHELL")
        .filter(|shell| !shell.is_empty())
        .unwrap_or_else(|| "/bin/sh".into());
    vec![shell, "-c".into(), script.to_owned()]
}

/// The answer of a scheduler that has stored the end.
const STORED: &[u8] = b"+";

/// How long to wait for the answer; at most a part of the lease, which is not renewed meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
const PART: u32 = 8;

const MAX_REPORT: usize = 4096;

/// The token of the run, and the fields of its [`Ending`].
pub type Report = (String, Outcome, String, Option<u8>);

/// What a scheduler has handed over: the acquisition, the duration of its lease, and the connection
/// to the scheduler.
pub type HandedOver = (Grant, Duration, OwnedFd);

/// Whether the scheduler confirms that it has stored the end.
pub fn is_stored(
    scheduler: &OwnedFd,
    token: &str,
    ending: Ending<'_>,
    lease: Duration,
) -> io::Result<bool> {
    let Ending { outcome, how, code } = ending;
    // Nothing else was sent, so this does not wait.
    channel::send(scheduler, &serde_json::to_vec(&(token, outcome, how, code))?)?;
    poll::sleep(PATIENCE.min(lease / PART), &[scheduler.as_fd()])?;
    Ok(channel::receive_now(scheduler, STORED.len())? == STORED)
}

/// The report that has come; `None` if the runner has ended without one.
pub fn receive_end(runner: &OwnedFd) -> Option<Report> {
    serde_json::from_slice(&channel::receive_now(runner, MAX_REPORT).ok()?).ok()
}

/// Tells the runner that its end is stored.
pub fn confirm_end(runner: &OwnedFd) {
    let _ = channel::send(runner, STORED);
}
