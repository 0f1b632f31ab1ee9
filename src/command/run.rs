//! `serializer run`

use std::ffi::OsString;
use std::io;

use rustix::io::Errno;

use super::progress::Progress;
use crate::backend;
use crate::child::claimant::RunClaimant;
use crate::child::lookup::look_up;
use crate::child::{self, End, Leftovers};
use crate::claimant::Claimant;
use crate::cli::RunArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::exit_code::ExitCode;
use crate::holder::Holder;
use crate::mutex::{self, Acquired, Mutex, Released};
use crate::owner::Place;
use crate::printable;
use crate::verdict::LocalJudge;

pub fn run(args: &RunArgs, environment: &Environment) -> Result<ExitCode, Error> {
    let path = environment.lock_file(&args.file)?;
    let waiting = environment.waiting(&args.waiting)?;
    let here = Place::here();
    let judge = LocalJudge { here: here.clone(), orphans: environment.orphans(args.orphans)? };
    let command = command(args);
    let program = command.first().cloned().unwrap_or_default();
    // Somebody who has mistyped a command must not wait for hours to be told.
    look_up(&program).map_err(|error| cannot_run(&program, &error))?;
    if child::are_ends_lost() {
        return Err(Error::failed(format!(
            "cannot run `{}`: how it ends would be lost, because SIGCHLD is ignored",
            shown(&program)
        ))
        .with_hint("`env --default-signal=CHLD serializer run …`"));
    }

    let mut mutex = Mutex::new(backend::open(&path), &judge);
    let location = mutex.location();
    let leftovers = if args.until_children_exit { Leftovers::Await } else { Leftovers::Leave };
    let mut claimant = RunClaimant::new(&here, command, leftovers);
    let mut progress = Progress::new(waiting.max_attempts);
    let acquired = mutex.acquire(&claimant, &waiting, &mut progress);
    progress.clear();
    let acquired = match acquired {
        Ok(acquired) => acquired,
        Err(mutex::Error::Absent) => return Ok(ended_early(claimant, &program)),
        Err(error) => {
            let failure = claimant.failure();
            return Err(match failure {
                Some(failure) => cannot_run(&program, &failure),
                None => Error::mutex("lock", &location, error).or_if_busy(args.waiting.conflict_exit_code),
            });
        }
    };
    match acquired {
        Acquired::Free | Acquired::AlreadyHeld(_) => tracing::debug!("locked `{location}` for `{}`", claimant.describe()),
        Acquired::TakenOver(from, why) => {
            tracing::info!("locked `{location}` for `{}`, taken over from {}: {why}", claimant.describe(), Holder::new(&from));
        }
    }

    let started = match claimant.take() {
        Some(prepared) if prepared.is_ready() => prepared.start(&[]).map_err(|not_started| {
            let (error, prepared) = *not_started;
            tracing::debug!("cannot start it: {error}");
            prepared
        }),
        Some(prepared) => Err(prepared),
        None => return Err(Error::failed(format!("cannot run `{}`: it was not prepared", shown(&program)))),
    };
    let running = match started {
        Ok(running) => running,
        Err(prepared) => {
            release(&mut mutex, &claimant, &location)?;
            return Ok(gave_up(prepared, &program));
        }
    };
    let end = running.wait();
    let released = release(&mut mutex, &claimant, &location);
    let code = match end {
        Ok(End::Exited(code)) => u8::try_from(code).unwrap_or(u8::MAX),
        Ok(End::Killed(signal)) => killed(signal),
        // Nothing has run, so that a lost lock has done no harm.
        Ok(End::NotRun(error)) => return Err(cannot_run(&program, &error)),
        Err(error) => {
            let why = backend::plain(&error);
            return Err(Error::failed(format!("cannot tell how `{}` ended: {why}", shown(&program))));
        }
    };
    match released {
        Ok(()) => {}
        Err(error) if code == 0 => return Err(error),
        Err(error) => tracing::warn!("{error}"),
    }
    Ok(ExitCode::Command(code))
}

fn command(args: &RunArgs) -> Vec<OsString> {
    let Some(script) = &args.script else { return args.command.clone() };
    let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty()).unwrap_or_else(|| "/bin/sh".into());
    vec![shell, "-c".into(), script.clone()]
}

/// Gives the lock back, if it is still the command's.
fn release(mutex: &mut Mutex<'_>, claimant: &RunClaimant, location: &str) -> Result<(), Error> {
    // Looked at first, because a stale lock of another's is nothing that we should remove.
    let is_ours = mutex.look()?.is_some_and(|(stored, _)| claimant.owns(&stored));
    let released = if is_ours { mutex.release(claimant, false) } else { Err(mutex::Error::NotLocked) };
    match released {
        Ok(Released::Own(_)) => tracing::debug!("unlocked `{location}`"),
        Ok(Released::Stale(..) | Released::Forced(..)) | Err(mutex::Error::NotLocked | mutex::Error::NotOurs(_)) => {
            return Err(Error::lost(location));
        }
        Err(error) => return Err(Error::mutex("unlock", location, error)),
    }
    Ok(())
}

/// A signal, or somebody who killed what was to be the command. Nothing is held any more.
fn ended_early(mut claimant: RunClaimant, program: &OsString) -> ExitCode {
    match claimant.take() {
        Some(prepared) => gave_up(prepared, program),
        None => ExitCode::Failed,
    }
}

fn gave_up(prepared: child::Prepared, program: &OsString) -> ExitCode {
    match prepared.give_up() {
        Some(signal) => ExitCode::Command(killed(signal)),
        None => {
            tracing::error!("cannot run `{}`: its process was killed before it began", shown(program));
            ExitCode::Failed
        }
    }
}

/// As shells tell it.
fn killed(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

fn shown(program: &OsString) -> String {
    printable::path(program.as_ref())
}

fn cannot_run(program: &OsString, error: &io::Error) -> Error {
    let shown = shown(program);
    if Errno::from_io_error(error) != Some(Errno::NOENT) {
        let message = format!("cannot run `{shown}`: {}", backend::plain(error));
        return Error::command(message, ExitCode::CannotRun);
    }
    let is_there = shown.contains('/') && std::path::Path::new(program).exists();
    let why = if is_there { "the interpreter that its first line names is not found" } else { "command not found" };
    Error::command(format!("cannot run `{shown}`: {why}"), ExitCode::NotFound)
}
