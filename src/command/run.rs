//! `serializer run`

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::process::getpid;

use super::job::{
    INTERRUPTED, Job, LONGER, Ran, STOPPED, command_of, expired, is_stored, locked, say, settle,
};
use super::progress::Progress;
use crate::cli::RunArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::exit_code::{BUSY, DONE};
use crate::lease::thread::Renewing;
use crate::lease::{LeaseGrant, OnLost};
use crate::lock::once::Ending;
use crate::lock::staleness::LocalLiveness;
use crate::lock::{self, Acquired, Grant, Mutex, ReleaseScope, Released, Request, Requester};
use crate::record::Outcome;
use crate::record::mode::Mode;
use crate::run::lookup::{cannot_run, look_up};
use crate::run::requester::CommandRequester;
use crate::run::termination::end_tree;
use crate::run::{self, Child, Lease, Signals};
use crate::store::Location;
use crate::sys::clock::since_boot;
use crate::sys::text;
use crate::values::name_from_command;

pub fn run(args: &RunArgs, environment: &Environment) -> Result<u8, Error> {
    let name = args.name_from_command.then(|| name_from_command(&command_of(&args.command)));
    let lock = environment.lock(&args.file, name.as_deref())?;
    let lease = environment.lease(&args.file.place, &lock)?;
    let request = environment.request(&args.request, lease)?;
    // Flags that stand for one holder beat SERIALIZER_SLOTS.
    let mode = if args.exclusive || args.wait_and_skip { Mode::EXCLUSIVE } else { request.mode };
    let request = Request { mode, skip_if_done: args.wait_and_skip, ..request };
    let options = (&args.command, &args.waiting, args.request.on_lost);
    let job = Job::new(options, args.request.reason.as_deref(), environment, request)?;
    execute(&lock, &Job { skipped_exit_code: args.skipped_exit_code, ..job })
        .map_err(|error| error.or_if(BUSY, args.waiting.conflict_exit_code))
}

pub fn execute(lock: &Location, job: &Job) -> Result<u8, Error> {
    perform(lock, job).map(|ran| ran.map_or(job.skipped_exit_code, |ran| ran.code))
}

pub fn perform(lock: &Location, job: &Job) -> Result<Option<Ran>, Error> {
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
    let mutex = Mutex::open(lock, &judge)?;
    let mut requester = CommandRequester::new(job.program.clone(), job.descendants);
    requester.reason.clone_from(&job.reason);
    let mut run = Run { lock, job, program, shown: text::path(program), mutex, requester };
    let Some(mut grant) = run.acquire()? else { return Ok(None) };
    let renewing = run.renew(&mut grant)?;
    let child = run.start(&grant, renewing.as_ref())?;
    run.wait(child, renewing).map(|ran| Some(Ran { number: grant.run, ..ran }))
}

struct Run<'a> {
    lock: &'a Location,
    job: &'a Job,
    program: &'a Path,
    shown: String,
    mutex: Mutex<'a>,
    requester: CommandRequester,
}

impl Run<'_> {
    fn acquire(&mut self) -> Result<Option<Grant>, Error> {
        let (job, name) = (self.job, self.lock.name());
        if let Some((grant, _)) = &job.handed_over {
            return Ok(Some(self.requester.adopt(grant)));
        }
        let mut progress = Progress::new(self.lock, &job.waiting, job.is_flock && !job.is_verbose);
        let begun = Instant::now();
        let acquired =
            self.mutex.acquire(&self.requester, &job.request, &job.waiting, &mut progress);
        let waited_for = progress.end();
        let is_said = job.is_verbose || waited_for.is_some();
        let at_once = format!(" after {:.1?}", begun.elapsed());
        let at_once = Some(at_once).filter(|_| job.is_flock && job.is_verbose);
        let after = waited_for.or(at_once).unwrap_or_default();
        let command = self.requester.describe();
        match acquired {
            Ok(Acquired::NotNeeded(_)) if job.request.claim.is_some() => {
                tracing::debug!("another scheduler was faster");
                Ok(None)
            }
            Ok(Acquired::NotNeeded(run)) => {
                let other = || format!("another process has just completed it under `{name}`");
                let why = run.map_or_else(other, |run| run.is_done());
                tracing::info!("skipped `{command}`: {why}");
                Ok(None)
            }
            Ok(Acquired::Granted(grant, from)) => {
                let (owner, from) = (format!("`{command}`"), from.as_deref());
                let line = locked(self.lock, &owner, (begun, &after), from);
                say(is_said || from.is_some() && !job.is_flock, &line);
                Ok(Some(grant))
            }
            // The command's process is new.
            Ok(Acquired::AlreadyHeld(_)) => {
                Err(Error::failed(format!("cannot lock `{name}`: it is locked already")))
            }
            Err(lock::Error::Absent) => Err(self.give_up()),
            Err(lock::Error::Entry(error)) => Err(cannot_run(self.program, &error)),
            Err(error) => Err(Error::mutex("lock", self.lock, error)),
        }
    }

    fn renew(&mut self, grant: &mut Grant) -> Result<Option<Renewing>, Error> {
        let Some(lease) = self.job.request.lease else { return Ok(None) };
        let not_started = format!("did not start `{}`", self.shown);
        self.mutex
            .refresh(grant, lease)
            .map_err(|error| Error::mutex("keep", self.lock, error).during(&not_started))?;
        let is_bound = self.job.descendants.end_with_the_lock;
        let at_worst = move || drop(is_bound.then(|| end_tree(getpid(), 0)));
        let charge =
            LeaseGrant { grant: grant.clone(), lease, is_unnamed: self.job.handed_over.is_some() };
        let idle = Some(self.mutex.register.connection());
        match Renewing::start(self.lock, charge, idle, self.job.on_lost, Box::new(at_worst)) {
            Ok(renewing) => Ok(Some(renewing)),
            Err(error) => {
                self.give_back()?;
                let cannot = format!("cannot keep the lease of `{}`", self.lock.name());
                Err(Error::io(cannot, &error))
            }
        }
    }

    fn start(&mut self, grant: &Grant, renewing: Option<&Renewing>) -> Result<Child, Error> {
        // If this process was stopped meanwhile, it has not renewed anything.
        if renewing.is_some_and(Renewing::is_given_up) {
            drop(self.requester.take());
            self.mutex.patience = Duration::ZERO;
            let _ = self.release(Outcome::Unknown.into());
            return Err(expired(self.lock).during(&format!("did not start `{}`", self.shown)));
        }
        if self.requester.is_alive()
            && let Some(mut child) = self.requester.take()
        {
            match child.start(self.variables(grant)) {
                Ok(()) => return Ok(child),
                Err(error) => tracing::debug!("cannot start it: {error}"),
            }
        }
        self.give_back()?;
        Err(self.give_up())
    }

    fn variables(&self, grant: &Grant) -> Vec<(String, String)> {
        let key = || self.lock.key().name.to_string_lossy().into_owned();
        let all = [
            ("FENCING_TOKEN", grant.fencing.map(|number| number.to_string())),
            ("TRY", grant.run.map(|number| number.to_string())),
            ("ONCE_KEY", grant.run.map(|_| key())),
        ];
        let set = all.into_iter().filter_map(|(name, value)| Some((name, value?)));
        set.map(|(name, value)| (format!("SERIALIZER_{name}"), value)).collect()
    }

    /// Waits for the command's end, releases the lock, and returns the result.
    fn wait(&mut self, child: Child, renewing: Option<Renewing>) -> Result<Ran, Error> {
        let (end, lost) = self.watch(child, renewing.as_ref());
        let was_good = renewing.as_ref().map(Renewing::is_good);
        let is_unanswered = renewing.as_ref().is_some_and(Renewing::is_unanswered);
        drop(renewing);
        // A lost lease ends by itself: one request frees it earlier, but an absent store is not
        // waited for.
        if lost.is_some() || was_good == Some(false) {
            self.mutex.patience = Duration::ZERO;
        }
        // The command may still run, so the lock is left to end with it.
        let untold = format!("cannot read the exit code of `{}`", self.shown);
        let end = end.map_err(|error| Error::io(untold, &error))?;
        let end = end.map_err(|error| cannot_run(self.program, &error));
        let code = end.as_ref().map_or_else(|error| error.code, |end| end.code);
        let request = &self.job.request;
        let is_stopped = end.as_ref().is_ok_and(|end| end.is_stopped);
        let why = is_stopped.then(|| self.why_stopped().to_owned());
        let how = why.unwrap_or_else(|| format!("ended with {code}"));
        let is_lost = lost.is_some();
        let outcome = match code {
            // Another scheduler runs it again.
            _ if is_lost || how == INTERRUPTED => Outcome::Unknown,
            // A stopped command may still exit with 0.
            DONE if is_stopped => Outcome::Failed,
            DONE if request.skip_if_done || request.once.is_some() => Outcome::Succeeded,
            _ if request.once.is_some() => Outcome::Failed,
            _ => Outcome::Unknown,
        };
        let ending =
            Ending { outcome, how: &how, code: Some(code).filter(|_| !is_lost && !is_stopped) };
        let released = if is_lost && is_unanswered { Ok(None) } else { self.release(ending) };
        let (command, lock) = (&self.shown, self.lock);
        // Nothing has run then, so a lost lock has done no harm.
        let end = match end {
            Err(error) if request.claim.is_some() => {
                return Ok(Ran { code, how: error.to_string(), number: None });
            }
            end => end?,
        };
        if let Some((ended, why)) = lost {
            let lost = Error::lost(lock, why, &[]).during(&format!("{ended} `{command}`"));
            return Err(if is_unanswered { lost.with_hint(LONGER) } else { lost });
        }
        settle((lock, self.job), command, end.code, released, was_good)?;
        // A shell ends its script only if its child has died of Ctrl-C.
        if let Some(signals) = self.requester.signals().filter(|_| end.is_interrupted) {
            signals.die_of(Signal::SIGINT);
        }
        let code = if is_stopped && end.code == DONE { STOPPED } else { end.code };
        Ok(Ran { code, how, number: None })
    }

    /// Waits for the command's end, and ends it if its lock is lost. The inner error says why it
    /// never began; the second value how it was ended because its lock was lost, and why that was.
    fn watch(
        &self,
        child: Child,
        renewing: Option<&Renewing>,
    ) -> (io::Result<io::Result<run::End>>, Option<(&'static str, String)>) {
        let ends_with_it = renewing.filter(|_| self.job.on_lost == OnLost::Terminate);
        let mut lost = None;
        let kill_at = || renewing.map_or(u64::MAX, Renewing::kill_at);
        let mut on_loss = || {
            let why = ends_with_it.map(Renewing::why).unwrap_or_default();
            lost = Some((if kill_at() > since_boot() { "stopped" } else { "killed" }, why));
        };
        let lost_fd = ends_with_it.map(Renewing::lost_fd);
        let end = child.wait(Lease { lost: lost_fd, kill_at: &kill_at, on_loss: &mut on_loss });
        (end, lost)
    }

    fn why_stopped(&mut self) -> &'static str {
        if self.job.task_ends_at.is_some_and(|at| at <= since_boot()) {
            return "timed out";
        }
        let task = self.mutex.inspect().ok().flatten().and_then(|key| key.run.task);
        if task.is_some_and(|task| task.is_stopped) { "stopped" } else { INTERRUPTED }
    }

    /// Releases the lock, if it is still the command's; returns for how long it stays reserved. A
    /// scheduler stores the end over its own connection: a login costs more than many a command.
    fn release(&mut self, ending: Ending<'_>) -> Result<Option<Duration>, lock::Error> {
        let released = match &self.job.handed_over {
            None => self.mutex.release(&self.requester, ReleaseScope::Own, ending)?,
            Some(handed_over) => {
                let lease = self.job.request.lease.unwrap_or_default();
                if is_stored(handed_over, ending, lease).unwrap_or(false) {
                    return Ok(None);
                }
                // The scheduler may have stored the end, and its confirmation was lost.
                self.mutex.end_run(&self.requester, &handed_over.0.token, ending)?
            }
        };
        match released {
            Released::Own { stays, .. } => Ok(stays),
            Released::Stale(_) | Released::Forced(_) => Err(lock::Error::NotLocked),
        }
    }

    fn give_back(&mut self) -> Result<(), Error> {
        let released = self.release(Outcome::Unknown.into());
        released.map(drop).map_err(|error| Error::mutex("unlock", self.lock, error))
    }

    /// A signal has come, or what was to be the command was killed. Nothing is held any more.
    fn give_up(&mut self) -> Error {
        drop(self.requester.take());
        self.requester.signals().into_iter().for_each(Signals::die);
        let why = "its process was killed before it began";
        Error::failed(format!("cannot run `{}`: {why}", self.shown))
    }
}
