//! `serializer run`

mod begin;

use std::io;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use super::ended::{INTERRUPTED, LONGER, Ran, STOPPED, not_released, outcome, say};
use super::job::{Job, command_of};
use super::report::conclude;
use crate::cli::RunArgs;
use crate::command::ended::unlocked;
use crate::config::Environment;
use crate::error::Error;
use crate::events::emit;
use crate::exit_code::{BUSY, DONE, LOST};
use crate::lease::OnLost;
use crate::lease::thread::Renewing;
use crate::lock::once::Ending;
use crate::lock::staleness::LocalLiveness;
use crate::lock::{self, Mutex, Released, Request};
use crate::record::Outcome;
use crate::record::mode::Mode;
use crate::run::lookup::{cannot_run, look_up};
use crate::run::requester::CommandRequester;
use crate::run::{self, Child, Lease, Signals};
use crate::sys::clock::since_boot;
use crate::sys::text;
use crate::values::name_from_command;

pub fn run(args: &RunArgs, environment: &Environment) -> Result<u8, Error> {
    let name = args.name_from_command.then(|| name_from_command(&command_of(&args.command)));
    let lock = environment.lock(&args.file, name.as_deref())?;
    let request = environment.request(&args.request, &args.file.place, &lock)?;
    // Flags that stand for one holder beat SERIALIZER_SLOTS.
    let mode = if args.exclusive || args.wait_and_skip { Mode::EXCLUSIVE } else { request.mode };
    let request = Request { mode, skip_if_done: args.wait_and_skip, ..request };
    let options = (&args.command, &args.waiting, args.request.on_lost);
    let job = Job::new(options, args.request.reason.as_deref(), environment, lock, request)?;
    execute(&Job { skipped_exit_code: args.skipped_exit_code, ..job })
        .map_err(|error| error.or_if(BUSY, args.waiting.conflict_exit_code))
}

/// Runs a job; returns its exit code.
pub fn execute(job: &Job) -> Result<u8, Error> {
    perform(job).map(|ran| ran.map_or(job.skipped_exit_code, |ran| ran.code))
}

/// Runs a job, unless it is not needed.
pub fn perform(job: &Job) -> Result<Option<Ran>, Error> {
    let program = job.program.command.first().map_or(Path::new(""), Path::new);
    // A mistyped command must fail before the wait. The run of a task reports it at its end.
    if job.request.claim.is_none() {
        look_up(program.as_os_str()).map_err(|error| cannot_run(program, &error))?;
    }
    if run::was_ignored(Signal::SIGCHLD) {
        let why = format!(
            "cannot run `{}`: SIGCHLD is ignored, so its exit code would be lost",
            text::path(program)
        );
        return Err(Error::failed(why).with_hint("`env --default-signal=CHLD serializer run …`"));
    }
    let mut judge = LocalLiveness::here(job.orphans);
    if job.is_flock {
        // An empty file is free at once.
        judge.being_written = Duration::ZERO;
    }
    let mutex = Mutex::open(&job.lock, &judge)?;
    let mut requester = CommandRequester::new(job.program.clone(), job.descendants);
    requester.reason.clone_from(&job.reason);
    let mut run = Run { job, program, shown: text::path(program), mutex, requester };
    let Some(mut grant) = run.acquire()? else { return Ok(None) };
    let renewing = run.renew(&mut grant)?;
    let child = run.start(&grant, renewing.as_ref())?;
    run.wait(child, renewing).map(|ran| Some(Ran { number: grant.run, ..ran }))
}

/// What was seen of a command until its end.
struct Watched {
    /// The inner error says why it never began.
    end: io::Result<run::End>,
    /// How it was ended because its lock was lost, and why that was.
    lost: Option<(&'static str, String)>,
    /// Of a lease: it had not expired.
    was_good: Option<bool>,
    /// The store did not answer the last renewal.
    is_unanswered: bool,
}

/// A job that is being done.
struct Run<'a> {
    job: &'a Job,
    program: &'a Path,
    /// The program, as people read it.
    shown: String,
    mutex: Mutex<'a>,
    requester: CommandRequester,
}

impl Run<'_> {
    /// Waits for the command's end, releases the lock, and returns the result.
    fn wait(&mut self, child: Child, renewing: Option<Renewing>) -> Result<Ran, Error> {
        let Watched { end, lost, was_good, is_unanswered } = self.watch(child, renewing)?;
        let code =
            end.as_ref().map_or_else(|error| cannot_run(self.program, error).code, |end| end.code);
        let request = &self.job.request;
        let is_stopped = end.as_ref().is_ok_and(|end| end.is_stopped);
        let how = if is_stopped { self.why_stopped() } else { format!("ended with {code}") };
        let (is_lost, counts) = (lost.is_some(), lost.is_none() && !is_stopped);
        let outcome =
            if is_lost { Outcome::Unknown } else { outcome(request, code, is_stopped, &how) };
        let ending = Ending { outcome, how: &how, code: Some(code).filter(|_| counts) };
        let released = if is_lost && is_unanswered { Ok(None) } else { self.release(ending) };
        let (command, lock) = (&self.shown, &self.job.lock);
        // Nothing has run then, so a lost lock has done no harm.
        let end = match end.map_err(|error| cannot_run(self.program, &error)) {
            Err(error) if request.claim.is_some() => {
                return Ok(Ran { code, how: error.to_string(), number: None });
            }
            end => end?,
        };
        if let Some((ended, why)) = lost {
            let lost = Error::lost(lock, why, &[]).during(&format!("{ended} `{command}`"));
            return Err(if is_unanswered { lost.with_hint(LONGER) } else { lost });
        }
        match released {
            Ok(stays) => {
                emit("release", lock, json!({ "command": command, "exit_code": code }));
                say(self.job.is_verbose, &unlocked(lock, stays));
            }
            Err(error) => {
                let (is_harmless, error) = not_released(lock, command, error, was_good);
                if end.code == DONE && error.code != LOST && request.once.is_some() {
                    return Err(
                        error.during(&format!("`{command}` has succeeded, but may run again"))
                    );
                }
                if end.code == DONE && !is_harmless {
                    return Err(error);
                }
                tracing::warn!("{error}");
            }
        }
        // A shell ends its script only if its child has died of Ctrl-C.
        if let Some(signals) = self.requester.signals().filter(|_| end.is_interrupted) {
            signals.die_of(Signal::SIGINT);
        }
        let code = if is_stopped && end.code == DONE { STOPPED } else { end.code };
        Ok(Ran { code, how, number: None })
    }

    /// Waits for the command's end, and ends it if its lock is lost.
    fn watch(&mut self, child: Child, renewing: Option<Renewing>) -> Result<Watched, Error> {
        let ends_with_it = renewing.as_ref().filter(|_| self.job.on_lost == OnLost::Terminate);
        let mut lost = None;
        let kill_at = || renewing.as_ref().map_or(u64::MAX, Renewing::kill_at);
        let mut on_loss = || {
            let why = ends_with_it.map(Renewing::why).unwrap_or_default();
            emit("loss", &self.job.lock, json!({ "why": why }));
            lost = Some((if kill_at() > since_boot() { "stopped" } else { "killed" }, why));
        };
        let lost_fd = ends_with_it.map(Renewing::lost_fd);
        let end = child.wait(Lease { lost: lost_fd, kill_at: &kill_at, on_loss: &mut on_loss });
        let was_good = renewing.as_ref().map(Renewing::is_good);
        let is_unanswered = renewing.as_ref().is_some_and(Renewing::is_unanswered);
        // A lost lease ends by itself: one request frees it earlier, but an absent store is not
        // waited for.
        if lost.is_some() || was_good == Some(false) {
            self.mutex.patience = Duration::ZERO;
        }
        // Then it may still run, so the lock is left to end with it.
        let untold =
            |error| Error::io(format!("cannot read the exit code of `{}`", self.shown), &error);
        Ok(Watched { end: end.map_err(untold)?, lost, was_good, is_unanswered })
    }

    /// Why the run of a task was stopped by a signal.
    fn why_stopped(&mut self) -> String {
        let is_late = self.job.task_ends_at.is_some_and(|at| at <= since_boot());
        let state = if is_late { None } else { self.mutex.inspect().ok().flatten() };
        let is_asked_for = state.and_then(|key| key.run.task).is_some_and(|task| task.is_stopped);
        let why = match (is_late, is_asked_for) {
            (true, _) => "timed out",
            (false, true) => "stopped",
            (false, false) => INTERRUPTED,
        };
        why.to_owned()
    }

    /// Releases the lock, if it is still the command's; returns for how long it stays reserved.
    fn release(&mut self, ending: Ending<'_>) -> Result<Option<Duration>, lock::Error> {
        match conclude(&mut self.mutex, &self.requester, self.job.handed_over.as_ref(), ending)? {
            Released::Own { stays, .. } => Ok(stays),
            Released::Stale(_) | Released::Forced(_) => Err(lock::Error::NotLocked),
        }
    }

    /// Gives back what nothing has run under.
    fn give_back(&mut self) -> Result<(), Error> {
        let released = self.release(Outcome::Unknown.into());
        released.map(drop).map_err(|error| Error::mutex("unlock", &self.job.lock, error))
    }

    /// A signal has come, or what was to be the command was killed. Nothing is held any more.
    fn give_up(&mut self) -> Error {
        drop(self.requester.take());
        self.requester.signals().into_iter().for_each(Signals::die);
        Error::failed(format!(
            "cannot run `{}`: its process was killed before it began",
            self.shown
        ))
    }
}
