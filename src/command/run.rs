//! `serializer run`

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Signal, getpid};
use sha2::{Digest, Sha256};

use super::progress::Progress;
use crate::backend::{self, Location};
use crate::child::claimant::RunClaimant;
use crate::child::lookup::look_up;
use crate::child::termination::{Termination, signal_tree};
use crate::child::{self, End, Leftovers};
use crate::cli::RunArgs;
use crate::config::{Environment, OnLost};
use crate::error::Error;
use crate::exit_code::ExitCode;
use crate::holder::Holder;
use crate::keeper::Charge;
use crate::keeper::thread::Renewing;
use crate::local_time::short;
use crate::mode::Mode;
use crate::mutex::{self, Acquired, Lost, Mutex, OUTAGE, Released, Request, Whose};
use crate::owner::Place;
use crate::printable;
use crate::record::Outcome;
use crate::verdict::{LocalJudge, Orphans};
use crate::waiting::Waiting;

/// What the command learns the number of its acquisition by.
const FENCING_TOKEN: &str = "SERIALIZER_FENCING_TOKEN";

/// What to run, and how to lock for it.
pub struct Job {
    /// The lock.
    pub lock: Location,
    /// How to hold it.
    pub request: Request,
    /// How to wait for it.
    pub waiting: Waiting,
    /// Whether orphans of a former holder count.
    pub orphans: Orphans,
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// What to do about what the command leaves behind.
    pub leftovers: Leftovers,
    /// What to do when the lock is lost.
    pub on_lost: OnLost,
    /// Exit code when the lock was held.
    pub conflict_exit_code: u8,
    /// Exit code when the command was skipped.
    pub skipped_exit_code: u8,
    /// Whether to say what usually goes without saying.
    pub is_verbose: bool,
    /// Whether not even to say that the lock is held.
    pub is_silent_if_busy: bool,
}

pub fn run(args: &RunArgs, environment: &Environment) -> Result<ExitCode, Error> {
    let command = match &args.script {
        Some(script) => script_of_shell(script),
        None => args.command.clone(),
    };
    let lock = if args.name_from_command {
        environment.lock_named(&args.file, &name_from_command(&command))?
    } else {
        environment.lock(&args.file)?
    };
    let on_lost = environment.on_lost(args.lost.on_lost)?.unwrap_or(OnLost::Terminate);
    execute(Job {
        request: request(args, environment, &lock)?,
        waiting: environment.waiting(&args.waiting)?,
        orphans: environment.orphans(args.orphans)?,
        command,
        leftovers: Leftovers {
            are_awaited: args.until_children_exit,
            end_with_the_lock: on_lost == OnLost::Terminate && lock.is_shared(),
        },
        on_lost,
        lock,
        conflict_exit_code: args.waiting.conflict_exit_code,
        skipped_exit_code: args.skipped_exit_code,
        is_verbose: args.verbose,
        is_silent_if_busy: false,
    })
}

fn request(args: &RunArgs, environment: &Environment, lock: &Location) -> Result<Request, Error> {
    let request = environment.request(&args.request, &args.file, lock)?;
    // Flags that stand for one holder beat SERIALIZER_SLOTS.
    let mode = if args.exclusive || args.wait_and_skip { Mode::EXCLUSIVE } else { request.mode };
    Ok(Request { mode, skip_if_done: args.wait_and_skip, ..request })
}

/// Runs a job; tells how its command ended.
pub fn execute(job: Job) -> Result<ExitCode, Error> {
    let here = Place::here();
    let judge = LocalJudge::new(here.clone(), job.orphans);
    let program = job.command.first().cloned().unwrap_or_default();
    // Somebody who has mistyped a command must not wait for hours to be told.
    look_up(&program).map_err(|error| cannot_run(&program, &error))?;
    if child::are_ends_lost() {
        return Err(Error::failed(format!(
            "cannot run `{}`: how it ends would be lost, because SIGCHLD is ignored",
            shown(&program)
        ))
        .with_hint("`env --default-signal=CHLD serializer run …`"));
    }

    let mut mutex = Mutex::new(backend::open(&job.lock)?, &judge);
    let location = mutex.location();
    let mut claimant = RunClaimant::new(&here, job.command, job.leftovers);
    let mut progress = Progress::new(job.waiting.max_attempts);
    if job.is_silent_if_busy {
        progress = progress.only_on_a_terminal();
    }
    let acquired = mutex.acquire(&claimant, &job.request, &job.waiting, &mut progress);
    progress.clear();
    let acquired = match acquired {
        Ok(acquired) => acquired,
        Err(mutex::Error::Absent) => return Ok(ended_early(claimant, &program)),
        Err(error) => {
            let failure = claimant.failure();
            return Err(match failure {
                Some(failure) => cannot_run(&program, &failure),
                None if job.is_silent_if_busy && matches!(error, mutex::Error::Busy(..)) => {
                    tracing::debug!("{}", Error::mutex("lock", &location, error));
                    return Ok(ExitCode::Conflict(job.conflict_exit_code));
                }
                None => Error::mutex("lock", &location, error).or_if_busy(job.conflict_exit_code),
            });
        }
    };
    let grant = match acquired {
        Acquired::NotNeeded => {
            tracing::info!("skipped `{}`: another process has just done it under `{location}`", claimant.describe());
            return Ok(ExitCode::Command(job.skipped_exit_code));
        }
        // The command's process is new, so that nobody can have locked for it before.
        Acquired::AlreadyHeld(_) => return Err(Error::failed(format!("cannot lock `{location}`: it is locked already"))),
        Acquired::Free(grant) => {
            match job.is_verbose {
                true => tracing::info!("locked `{location}` for `{}`", claimant.describe()),
                false => tracing::debug!("locked `{location}` for `{}`", claimant.describe()),
            }
            grant
        }
        Acquired::TakenOver(grant, from) => {
            let (holder, why) = (Holder::new(&from), from.verdict);
            tracing::info!("locked `{location}` for `{}`, taken over from {holder}: {why}", claimant.describe());
            grant
        }
    };
    let mut grant = grant;
    if let Some(lease) = job.request.lease {
        mutex.refresh(&mut grant, lease).map_err(|error| Error::mutex("lock", &location, error))?;
    }
    let environment: Vec<String> = grant.fencing.map(|number| format!("{FENCING_TOKEN}={number}")).into_iter().collect();
    let is_bound = job.leftovers.end_with_the_lock;
    let at_worst = move || {
        if is_bound {
            signal_tree(getpid(), Signal::KILL, None);
        }
    };
    let idle = Some(mutex.connection());
    let keep = |lease| Renewing::start(&job.lock, Charge { grant, lease }, idle, job.on_lost, Box::new(at_worst));
    let renewing = job.request.lease.map(keep);
    let renewing = match renewing.transpose() {
        Ok(renewing) => renewing,
        Err(error) => {
            give_back(&mut mutex, &claimant, &location)?;
            return Err(Error::failed(format!("cannot keep the lease of `{location}`: {}", backend::plain(&error))));
        }
    };

    // Whoever was stopped meanwhile has not renewed anything.
    let is_lost = renewing.as_ref().is_some_and(Renewing::is_given_up);
    let started = match claimant.take() {
        Some(prepared) if is_lost => {
            drop(prepared);
            let _ = release(&mut mutex, &claimant, Outcome::Unknown, Duration::ZERO);
            return Err(Error::lost_before(&location, &shown(&program)));
        }
        Some(prepared) if prepared.is_ready() => prepared.start(&environment).map_err(|not_started| {
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
            give_back(&mut mutex, &claimant, &location)?;
            return Ok(gave_up(prepared, &program));
        }
    };
    let why = || renewing.as_ref().map(Renewing::why).unwrap_or_default();
    let kill_at = || renewing.as_ref().map(Renewing::kill_at).unwrap_or_default();
    let mut termination = renewing
        .as_ref()
        .filter(|_| job.on_lost == OnLost::Terminate)
        .map(|renewing| Termination::new(renewing.lost_fd(), &kill_at, &why));
    let end = running.wait(termination.as_mut());
    let was_ended = termination.is_some_and(|termination| termination.has_begun());
    let why = why();
    let was_good = renewing.as_ref().is_some_and(Renewing::is_good);
    let is_unanswered = renewing.as_ref().is_some_and(Renewing::is_unanswered);
    // A lost lease ends by itself: one request frees it earlier, but a store that is away is not waited for.
    let is_lost = renewing.is_some() && (was_ended || !was_good);
    let patience = if is_lost { Duration::ZERO } else { OUTAGE };
    // From here on, nothing is renewed any more.
    drop(renewing);
    let is_to_be_told = job.request.skip_if_done && matches!(end, Ok(End::Exited(0))) && !was_ended;
    let outcome = if is_to_be_told { Outcome::Succeeded } else { Outcome::Unknown };
    let released = match was_ended && is_unanswered {
        true => Ok(None),
        false => release(&mut mutex, &claimant, outcome, patience),
    };
    let code = exit_code(&end, &program)?;
    if was_ended {
        return Err(Error::ended(&location, &shown(&program), &why));
    }
    match released {
        Ok(remaining) => {
            let held = remaining.map(|remaining| format!(", which stays held for another {}", short(remaining)));
            let held = held.unwrap_or_default();
            match job.is_verbose {
                true => tracing::info!("unlocked `{location}`{held}"),
                false => tracing::debug!("unlocked `{location}`{held}"),
            }
        }
        Err(error) => {
            let error = not_released(&location, error, job.request.lease.is_some().then_some(was_good));
            match error {
                NotReleased::Harmless(error) => tracing::warn!("{error}"),
                NotReleased::Fatal(error) if code == ExitCode::Command(0) => return Err(error),
                NotReleased::Fatal(error) => tracing::warn!("{error}"),
            }
        }
    }
    if matches!(end, Ok(End::Interrupted)) {
        child::die_of_interrupt();
    }
    Ok(code)
}

/// How the command has ended, as our own end.
fn exit_code(end: &io::Result<End>, program: &OsString) -> Result<ExitCode, Error> {
    match end {
        Ok(End::Exited(code)) => Ok(ExitCode::Command(u8::try_from(*code).unwrap_or(u8::MAX))),
        Ok(End::Killed(signal)) => Ok(ExitCode::killed(*signal)),
        Ok(End::Interrupted) => Ok(ExitCode::killed(Signal::INT.as_raw())),
        // Nothing has run, so that a lost lock has done no harm.
        Ok(End::NotRun(error)) => Err(cannot_run(program, error)),
        Err(error) => {
            let why = backend::plain(error);
            Err(Error::failed(format!("cannot tell how `{}` ended: {why}", shown(program))))
        }
    }
}

/// The command that runs a script, as flock(1) does it.
pub fn script_of_shell(script: &OsStr) -> Vec<OsString> {
    let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty()).unwrap_or_else(|| "/bin/sh".into());
    vec![shell, "-c".into(), script.to_owned()]
}

/// A file name that is the same for equal commands, and for no others.
fn name_from_command(command: &[OsString]) -> PathBuf {
    let mut hash = Sha256::new();
    for word in command {
        hash.update(word.as_bytes());
        // No argument holds a zero byte, so that `a b` and `ab` differ.
        hash.update([0]);
    }
    let hash: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let program = command.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default();
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(c);
    let program: String = printable::base_name(&program).chars().filter(is_plain).take(40).collect();
    format!("{}-{hash}.lck", program.trim_start_matches('.')).into()
}

/// Gives the lock back, if it is still the command's; tells for how long it stays held all the same.
fn release(
    mutex: &mut Mutex<'_>,
    claimant: &RunClaimant,
    outcome: Outcome,
    patience: Duration,
) -> Result<Option<Duration>, mutex::Error> {
    // A stale lock of another's is nothing that we should remove.
    match mutex.release_within(patience, claimant, Whose::OwnAlone, outcome)? {
        Released::Own { stays, .. } => Ok(stays),
        Released::Stale(_) | Released::Forced(_) => Err(mutex::Error::NotLocked),
    }
}

/// Gives back what nothing has run under.
fn give_back(mutex: &mut Mutex<'_>, claimant: &RunClaimant, location: &str) -> Result<(), Error> {
    release(mutex, claimant, Outcome::Unknown, OUTAGE).map(drop).map_err(|error| Error::mutex("unlock", location, error))
}

/// What it means that a lock could not be given back.
enum NotReleased {
    /// The command has run alone.
    Harmless(Error),
    /// It may not have, or the lock stays held.
    Fatal(Error),
}

/// `was_good`, of a lease, says that nobody else can have had the lock before the command had ended, unless it was taken away.
fn not_released(location: &str, error: mutex::Error, was_good: Option<bool>) -> NotReleased {
    let is_taken = match &error {
        mutex::Error::NotLocked | mutex::Error::Lost(Lost::TakenOver | Lost::Broken | Lost::Gone, _) => true,
        // Nobody: it has changed all the time.
        mutex::Error::NotOurs(holders) => !holders.is_empty(),
        _ => false,
    };
    match was_good {
        _ if is_taken => NotReleased::Fatal(Error::lost(location)),
        // Nobody has had it since, or nothing is lost but time: what is not renewed any more lapses.
        Some(true) => NotReleased::Harmless(Error::mutex("unlock", location, error)),
        // Its process has ended, so that the lock is stale.
        None if matches!(error, mutex::Error::NotOurs(_)) => NotReleased::Harmless(Error::mutex("unlock", location, error)),
        Some(false) if !matches!(error, mutex::Error::Lost(..)) => NotReleased::Fatal(Error::not_kept(location, &error)),
        Some(false) | None => NotReleased::Fatal(Error::mutex("unlock", location, error)),
    }
}

/// A signal, or somebody who killed what was to be the command. Nothing is held any more.
fn ended_early(mut claimant: RunClaimant, program: &OsString) -> ExitCode {
    match claimant.take() {
        Some(prepared) => gave_up(prepared, program),
        None => claimant.interruption().map_or(ExitCode::Failed, ExitCode::killed),
    }
}

fn gave_up(prepared: child::Prepared, program: &OsString) -> ExitCode {
    match prepared.give_up() {
        Some(signal) => ExitCode::killed(signal),
        None => {
            tracing::error!("cannot run `{}`: its process was killed before it began", shown(program));
            ExitCode::Failed
        }
    }
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
    let error = Error::command(format!("cannot run `{shown}`: {why}"), ExitCode::NotFound);
    // A whole line in quotes.
    if shown.contains(char::is_whitespace) { error.with_hint("`-c` runs a script") } else { error }
}
