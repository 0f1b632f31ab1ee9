//! What `run`, `once` and `flock` are to run, and how to lock for it.

use std::ffi::OsStr;
use std::ffi::OsString;

use super::report::HandedOver;
use crate::cli::{CommandArgs, WaitingArgs};
use crate::config::Environment;
use crate::error::Error;
use crate::lease::OnLost;
use crate::lock::Request;
use crate::lock::staleness::Orphans;
use crate::lock::waiting::Waiting;
use crate::run::{Descendants, Program};
use crate::store::Location;

pub struct Job {
    pub lock: Location,
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
    /// A job without options.
    pub fn of(lock: Location, request: Request, waiting: Waiting, program: Program) -> Self {
        Self {
            lock,
            request,
            waiting,
            orphans: Orphans::default(),
            program,
            descendants: Descendants::default(),
            on_lost: OnLost::Terminate,
            skipped_exit_code: 0,
            is_verbose: false,
            is_flock: false,
            reason: None,
            task_ends_at: None,
            handed_over: None,
        }
    }

    /// A job as the options say.
    pub fn new(
        (args, waiting, on_lost): (&CommandArgs, &WaitingArgs, Option<OnLost>),
        reason: Option<&str>,
        environment: &Environment,
        lock: Location,
        request: Request,
    ) -> Result<Self, Error> {
        let program = Program { command: command_of(args), ..Program::default() };
        let mut job = Self::of(lock, request, environment.waiting(waiting)?, program);
        job.on_lost = environment.on_lost(on_lost, OnLost::Terminate)?;
        job.descendants.are_awaited = args.until_children_exit;
        job.descendants.end_with_the_lock =
            job.on_lost == OnLost::Terminate && job.lock.is_shared();
        job.orphans = environment.orphans(args.orphans)?;
        job.reason = environment.reason(reason)?;
        Ok(Self { is_verbose: args.verbose, ..job })
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
