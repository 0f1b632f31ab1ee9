//! What `run`, `once` and `flock` are to run, how to lock for it, and what its end means for the
//! lock. The runner of a task reports the end to its scheduler.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cli::{CommandArgs, WaitingArgs};
use crate::config::Environment;
use crate::error::Error;
use crate::events::emit;
use crate::exit_code::{DONE, LOST};
use crate::lease::OnLost;
use crate::lock::once::Ending;
use crate::lock::staleness::{Holding, Orphans, StaleHolder, rounded_up};
use crate::lock::waiting::Waiting;
use crate::lock::{self, Grant, Lost, Request};
use crate::record::Outcome;
use crate::run::{Descendants, Program};
use crate::store::Location;
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
    /// Of a task on a schedule: what its scheduler has acquired, and the connection to that.
    pub handed_over: Option<(Grant, OwnedFd)>,
}

impl Job {
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

/// The hint after a loss that an outage has caused.
pub const LONGER: &str = "a longer `SERIALIZER_LEASE_SECONDS` survives longer outages";

pub struct Ran {
    pub code: u8,
    pub how: String,
    /// The number of the run of a key.
    pub number: Option<u32>,
}

/// How the run of a task ended that its scheduler ended.
pub const INTERRUPTED: &str = "interrupted: its scheduler has ended";

/// The exit code of a command that was stopped and says that all is well: 128 + SIGTERM.
pub const STOPPED: u8 = 143;

/// Reports the release of a lock after its command has ended with `code`. Fails if the command has
/// succeeded, but perhaps not alone. `was_good`, of a lease, says that it had not expired then.
pub fn settle(
    (lock, job): (&Location, &Job),
    command: &str,
    code: u8,
    released: Result<Option<Duration>, lock::Error>,
    was_good: Option<bool>,
) -> Result<(), Error> {
    let lost = |why: &str, holders: &[Holding]| (false, Error::lost(lock, why, holders));
    let gone = format!("it was not held any more when `{command}` ended");
    let (is_harmless, error) = match released {
        Ok(stays) => {
            emit("release", lock, json!({ "command": command, "exit_code": code }));
            say(job.is_verbose, &unlocked(lock, stays));
            return Ok(());
        }
        Err(lock::Error::NotLocked) => lost(&gone, &[]),
        Err(lock::Error::Lost(how, holders)) if how != Lost::Expired => {
            lost(&how.to_string(), &holders)
        }
        // Without holders, the lock kept changing.
        Err(lock::Error::NotOurs(holders)) if !holders.is_empty() => lost(&gone, &holders),
        Err(error) if was_good == Some(false) => {
            lost(&format!("its lease expired before `{command}` ended: {error}"), &[])
        }
        // A lease that is not renewed expires.
        Err(error) => (was_good.is_some(), Error::mutex("unlock", lock, error)),
    };
    if code == DONE && error.code != LOST && job.request.once.is_some() {
        let again = format!("`{command}` has succeeded, but may run again");
        return Err(error.during(&again));
    }
    if code == DONE && !is_harmless {
        return Err(error);
    }
    tracing::warn!("{error}");
    Ok(())
}

pub fn expired(lock: &Location) -> Error {
    Error::lost(lock, "its lease expired before it could be renewed", &[]).with_hint(LONGER)
}

/// Logs a message that only `--verbose` shows.
pub fn say(is_verbose: bool, message: &str) {
    match is_verbose {
        true => tracing::info!("{message}"),
        false => tracing::debug!("{message}"),
    }
}

/// The message about a lock that was acquired for `owner`, perhaps after a wait or from a former
/// holder. Also writes the event.
pub fn locked(
    lock: &Location,
    owner: &str,
    (begun, after): (Instant, &str),
    from: Option<&StaleHolder>,
) -> String {
    let (event, from) = match from {
        Some(from) => ("takeover", format!(", taken over from {from}: {}", from.verdict)),
        None => ("acquire", String::new()),
    };
    emit(event, lock, json!({ "waited_seconds": begun.elapsed().as_secs_f64() }));
    format!("locked `{}` for {owner}{after}{from}", lock.name())
}

pub fn unlocked(lock: &Location, stays: Option<Duration>) -> String {
    let rest = stays
        .map(|stays| format!("; it stays reserved for {} (`--hold-at-least`)", rounded_up(&stays)));
    format!("unlocked `{}`{}", lock.name(), rest.unwrap_or_default())
}

/// The answer of a scheduler that has stored the end.
const STORED: &[u8] = b"+";

/// How long to wait for the answer; at most a part of the lease, which is not renewed meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
const PART: u32 = 8;

const MAX_REPORT: usize = 4096;

/// The token of the run, and the fields of its [`Ending`].
pub type Report = (String, Outcome, String, Option<u8>);

/// Whether the scheduler confirms that it has stored the end.
pub fn is_stored(
    (grant, scheduler): &(Grant, OwnedFd),
    ending: Ending<'_>,
    lease: Duration,
) -> io::Result<bool> {
    let Ending { outcome, how, code } = ending;
    // Nothing else was sent, so this does not wait.
    channel::send(scheduler, &serde_json::to_vec(&(&grant.token, outcome, how, code))?)?;
    poll::sleep(PATIENCE.min(lease / PART), &[scheduler.as_fd()])?;
    Ok(channel::receive_now(scheduler, STORED.len())? == STORED)
}

/// The report that has come; `None` if the runner has ended without one.
pub fn receive_end(runner: &OwnedFd) -> Option<Report> {
    serde_json::from_slice(&channel::receive_now(runner, MAX_REPORT).ok()?).ok()
}

pub fn confirm_end(runner: &OwnedFd) {
    let _ = channel::send(runner, STORED);
}
