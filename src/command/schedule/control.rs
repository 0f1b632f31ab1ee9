//! `serializer schedule run`, `pause`, `resume`, `stop` and `forget`.

use std::os::unix::process::CommandExt;
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::json;

use super::catalog::Source;
use super::work::{self, NAME, TaskStore};
use crate::cli::{PauseArgs, RunTaskArgs, TasksArgs};
use crate::config::Environment;
use crate::error::{Error, for_each};
use crate::events::emit;
use crate::exit_code::{BUSY, DONE, FAILED, REFUSED};
use crate::lease::process::signal_keeper;
use crate::lock::Mutex;
use crate::lock::key::Inspected;
use crate::lock::once::{Claim, State};
use crate::lock::staleness::{LocalLiveness, Orphans};
use crate::record::run::{Run, Task};
use crate::schedule::plan::introduced;
use crate::store::Location;
use crate::sys::clock::since_1970;
use crate::sys::text;

/// How much longer than a lease the end of a run may take.
const ENDING: Duration = Duration::from_secs(15);

pub fn run(args: &RunTaskArgs, environment: &Environment) -> Result<u8, Error> {
    let catalog = Source::new(&args.catalog).read()?;
    let definition = catalog.find(&args.task).map_err(Error::usage)?;
    if args.slot.is_some_and(|slot| slot > Timestamp::now()) {
        return Err(Error::usage("cannot run a task for a slot in the future"));
    }
    let shown = text::field(&args.task);
    let cannot = |code, why: &str| Error::new(code, format!("cannot run `{shown}`{why}"));
    let judge = LocalLiveness::here(Orphans::Ignore);
    let store = TaskStore::open(&args.catalog, environment, &judge)?;
    let mut mutex = store.mutex(&args.task);
    let mut seen = mutex.inspect()?;
    if seen.is_none() {
        let now = mutex.register.time();
        let amended = mutex.amend(&|run| introduced(run, &args.task, now));
        amended.map_err(|error| Error::mutex("run", &store.location(&args.task), error))?;
        seen = mutex.inspect()?;
    }
    let seen = seen.ok_or_else(|| cannot(FAILED, ": its state was removed"))?;
    if seen.state == State::Running {
        let hint = "`serializer schedule status` shows where";
        return Err(cannot(BUSY, ": it is running").with_hint(hint));
    }
    let last = seen.run.of_slot().0;
    let is_over = !matches!(seen.state, State::Failed | State::Interrupted);
    // Its success would count for the slot that is still to be finished.
    let slot = match args.slot.map(milliseconds) {
        Some(slot) if !is_over && slot != last => {
            let last = work::shown_slot(last);
            return Err(cannot(FAILED, &format!(" for another slot: {last} is unfinished")));
        }
        None if !is_over => last,
        slot => slot.unwrap_or_else(|| mutex.register.time()),
    };
    let claim = Claim {
        seen: seen.run.seen(seen.state),
        slot,
        skipped: 0,
        definition: definition.number(),
        is_forced: true,
    };
    let work = store.work(&args.task, definition, claim, &seen.run);
    // Becomes the runner, which has a connection of its own.
    drop((mutex, store));
    let failed = work::runner(&work, definition)
        .map_or_else(|error| error, |(mut runner, _scheduler)| runner.exec());
    Err(cannot(FAILED, &work::why_not_started(definition, &failed)))
}

pub fn milliseconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_millisecond()).unwrap_or(0)
}

pub fn pause(args: &PauseArgs, environment: &Environment) -> Result<(), Error> {
    let until = args.until.map_or(u64::MAX, milliseconds);
    if until <= since_1970() {
        return Err(Error::usage("cannot pause until a time in the past"));
    }
    amend_all(&args.tasks, environment, &|_, task, _| task.paused = until)
}

pub fn resume(args: &TasksArgs, environment: &Environment) -> Result<(), Error> {
    amend_all(args, environment, &|run, task, now| {
        // Slots of the pause are skipped. A wrong clock may have stored times of the future.
        let ends = run.ends.iter_mut().map(|end| &mut end.at);
        let times = [&mut task.paused, &mut task.slot, &mut run.began].into_iter().chain(ends);
        times.for_each(|time| *time = now.min(*time));
    })
}

fn amend_all(
    args: &TasksArgs,
    environment: &Environment,
    change: &dyn Fn(&mut Run, &mut Task, u64),
) -> Result<(), Error> {
    for_all(args, environment, |mutex, (name, location), _| {
        let now = mutex.register.time();
        let changed = |run: Option<&Run>| {
            let mut run = run.cloned().or_else(|| introduced(None, name, now))?;
            let mut task = run.task.take()?;
            change(&mut run, &mut task, now);
            Some(Run { task: Some(task), ..run })
        };
        mutex.amend(&changed).map(drop).map_err(|error| Error::mutex("change", location, error))
    })
}

/// `serializer schedule stop`: asks for the end of a run, and waits for it.
pub fn stop(args: &TasksArgs, environment: &Environment) -> Result<u8, Error> {
    let mut is_late = false;
    for_all(args, environment, |mutex, (name, location), seen| {
        let shown = text::field(name);
        let Some(seen) = seen.filter(|seen| seen.state == State::Running) else {
            tracing::info!("`{shown}` is not running");
            return Ok(());
        };
        let run = seen.run.of_slot();
        let mark = |stored: Option<&Run>| {
            let mut stored = stored.filter(|stored| stored.of_slot() == run)?.clone();
            stored.task.as_mut()?.is_stopped = true;
            Some(stored)
        };
        mutex.amend(&mark).map_err(|error| Error::mutex("stop", location, error))?;
        let entry = seen.process.entry.as_ref();
        let host = entry.and_then(|entry| entry.owner.place.host.clone());
        emit("stop", location, json!({ "host": host }));
        // On another host, the runner finds the mark when it renews the lease.
        entry.iter().for_each(|entry| signal_keeper(entry, NAME, Signal::TERM));
        let lease = entry.and_then(|entry| Some(entry.lease?.duration)).unwrap_or_default();
        let ended = |now: &Inspected| now.state != State::Running || now.run.of_slot() != run;
        if mutex.inspect_until(lease + ENDING, ended)?.is_none_or(|now| ended(&now)) {
            tracing::info!("stopped `{shown}`");
        } else {
            is_late = true;
            tracing::error!("cannot stop `{shown}`: it is still running");
        }
        Ok(())
    })?;
    Ok(if is_late { BUSY } else { DONE })
}

pub fn forget(args: &TasksArgs, environment: &Environment) -> Result<(), Error> {
    let defined = Source::read_if_any(&args.catalog)?;
    for_all(args, environment, |mutex, (name, location), seen| {
        let shown = text::field(name);
        let refused = |why| Err(Error::new(REFUSED, format!("cannot forget `{shown}`: {why}")));
        if defined.tasks.contains_key(name) {
            return refused("it is still defined");
        }
        match mutex.prove(seen)? {
            Some(seen) if seen.state == State::Running => refused("it is running"),
            Some(seen) => {
                mutex.forget(&seen).map_err(|error| Error::mutex("forget", location, error))?;
                tracing::info!("forgot `{shown}`");
                Ok(())
            }
            None => Ok(()),
        }
    })
}

/// Applies `work` to each task, with its name and stored state.
fn for_all(
    args: &TasksArgs,
    environment: &Environment,
    mut work: impl FnMut(&mut Mutex<'_>, (&str, &Location), Option<Inspected>) -> Result<(), Error>,
) -> Result<(), Error> {
    let judge = LocalLiveness::here(Orphans::Ignore);
    let store = TaskStore::open(&args.catalog, environment, &judge)?;
    for_each(&args.tasks, |name| {
        let mut mutex = store.mutex(name);
        let seen = mutex.inspect()?;
        if seen.is_none() {
            let hint = "`serializer schedule status` shows the stored tasks";
            let defined = Source::read_if_any(&args.catalog)?;
            defined.find(name).map_err(|why| Error::failed(why).with_hint(hint))?;
        }
        work(&mut mutex, (name, &store.location(name)), seen)
    })
}
