//! `serializer schedule run`, `pause`, `resume` and `stop`.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};

use super::catalog::Source;
use super::events::Events;
use super::work::{self, NAME, Order};
use super::{lease_of, place_of, task_at};
use crate::backend::retry::since_1970;
use crate::backend::{self, Location};
use crate::cli::{PauseArgs, RunTaskArgs, StopArgs, TasksArgs};
use crate::config::Environment;
use crate::error::Error;
use crate::exit_code::{BUSY, DONE, FAILED};
use crate::keeper::process::signal_keeper;
use crate::mutex::Mutex;
use crate::once::{Claim, Run, State, Task};
use crate::owner::Place;
use crate::printable;
use crate::schedule::plan::introduced;
use crate::verdict::{LocalJudge, Orphans};

/// How much longer than a lease the end of a run may take.
const ENDING: Duration = Duration::from_secs(15);

/// Poll interval while a run ends.
const WATCHED: Duration = Duration::from_millis(500);

/// `serializer schedule run`
pub fn run(args: &RunTaskArgs, environment: &Environment) -> Result<u8, Error> {
    let catalog = Source::new(&args.catalog).read()?;
    let found = catalog.find(std::slice::from_ref(&args.task)).map_err(Error::usage)?;
    let [definition] = found[..] else { return Err(Error::usage("expected a task")) };
    if args.slot.is_some_and(|slot| slot > Timestamp::now()) {
        return Err(Error::usage("cannot run a task for a slot in the future"));
    }
    let place = place_of(environment, &args.catalog.place, args.catalog.meltano)?;
    let location = task_at(&place, &args.task);
    let judge = LocalJudge::new(Place::here(), Orphans::Ignore);
    let mut mutex = Mutex::new(backend::open(&location)?, &judge);
    let seen = match mutex.inspect()? {
        Some(key) => key,
        None => {
            let now = mutex.time();
            let stored = mutex.amend(&|run| introduced(run, &args.task, now));
            stored.map_err(|error| Error::mutex("store", &location.printable(), error))?;
            mutex.inspect()?.ok_or_else(|| Error::failed("cannot run the task: its state was removed"))?
        }
    };
    if seen.state == State::Running {
        return Err(is_running(&args.task));
    }
    let (last, is_over) = (seen.run.of_slot().0, !matches!(seen.state, State::Failed | State::Interrupted));
    // Its success would count for the slot that is still to be finished.
    let slot = match args.slot.map(milliseconds) {
        Some(slot) if !is_over && slot != last => {
            let (name, last) = (printable::field(&args.task), work::shown_slot(last));
            return Err(Error::failed(format!("cannot run `{name}` for another slot: {last} is unfinished")));
        }
        None if !is_over => last,
        slot => slot.unwrap_or_else(|| mutex.time()),
    };
    let seen_state = seen.run.seen(seen.state);
    let claim = Claim { seen: seen_state, slot, skipped: 0, definition: definition.number(), is_forced: true };
    let order = Order { lease: lease_of(environment, &args.catalog.place, &place)?, is_json: false };
    let limited = order.limit(definition, &location, &catalog.limits);
    let work = order.work((&args.task, definition), &location, (claim, &seen.run), limited);
    let cannot = |error| Error::failed(format!("cannot run `{}`: {}", args.task, backend::plain(&error)));
    let events = Events::new().map_err(cannot)?;
    let mut child = work::start(&work, definition).map_err(cannot)?;
    // The loop ends with the runner.
    loop {
        if let Some(status) = child.try_wait().map_err(cannot)? {
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED);
            return Ok(code);
        }
        if events.receive().must_stop {
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
        }
        events.sleep(u64::MAX, None).map_err(cannot)?;
    }
}

fn is_running(name: &str) -> Error {
    Error::new(BUSY, format!("cannot run `{}`: it is running", printable::field(name)))
        .with_hint("`serializer schedule status` shows where")
}

fn milliseconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_millisecond()).unwrap_or(0)
}

/// `serializer schedule pause`
pub fn pause(args: &PauseArgs, environment: &Environment) -> Result<(), Error> {
    let until = args.until.map_or(u64::MAX, milliseconds);
    if until <= since_1970() {
        return Err(Error::usage("cannot pause until a time in the past"));
    }
    amend_all(&args.tasks, environment, &|task, _| Task { paused: until, ..task.clone() })
}

/// `serializer schedule resume`
pub fn resume(args: &TasksArgs, environment: &Environment) -> Result<(), Error> {
    // Slots of the pause are skipped. A wrong clock may have stored a slot of the future.
    let resumed = |task: &Task, now: u64| Task { paused: task.paused.min(now), slot: task.slot.min(now), ..task.clone() };
    amend_all(args, environment, &resumed)
}

fn amend_all(args: &TasksArgs, environment: &Environment, change: &dyn Fn(&Task, u64) -> Task) -> Result<(), Error> {
    for_all(args, environment, |mutex, name, location| {
        mutex.inspect()?;
        let now = mutex.time();
        let stored = mutex.amend(&|run: Option<&Run>| Some(Run { task: Some(change(run?.task.as_ref()?, now)), ..run?.clone() }));
        match stored {
            Ok(true) => Ok(()),
            Ok(false) => Err(is_unknown(name, location)),
            Err(error) => Err(Error::mutex("change", &location.printable(), error)),
        }
    })
}

/// `serializer schedule stop`: asks for the end of a run, and waits for it.
pub fn stop(args: &StopArgs, environment: &Environment) -> Result<u8, Error> {
    let mut is_late = false;
    for_all(&args.tasks, environment, |mutex, name, location| {
        let shown = printable::field(name);
        let Some(seen) = mutex.inspect()? else { return Err(is_unknown(name, location)) };
        if seen.state != State::Running {
            tracing::info!("`{shown}` is not running");
            return Ok(());
        }
        let run = seen.run.of_slot();
        let mark = |stored: Option<&Run>| {
            let stored = stored.filter(|stored| stored.of_slot() == run)?;
            Some(Run { task: Some(Task { is_stopped: true, ..stored.task.clone()? }), ..stored.clone() })
        };
        mutex.amend(&mark).map_err(|error| Error::mutex("stop", &location.printable(), error))?;
        let entry = seen.process.entry.as_ref();
        // On another host, the runner finds the mark when it renews the lease.
        entry.iter().for_each(|entry| signal_keeper(entry, &Place::here(), NAME, Signal::TERM));
        let lease = entry.and_then(|entry| entry.lease).map_or(Duration::ZERO, |lease| lease.duration);
        let end = Instant::now() + lease + ENDING;
        // The loop ends at that time.
        while Instant::now() < end {
            let Some(now) = mutex.inspect()?.filter(|now| now.state == State::Running && now.run.of_slot() == run) else {
                tracing::info!("stopped `{shown}`");
                return Ok(());
            };
            mutex.watch(Some(now), WATCHED, &super::Nothing)?;
        }
        is_late = true;
        tracing::error!("cannot stop `{shown}`: it is still running");
        Ok(())
    })?;
    Ok(if is_late { BUSY } else { DONE })
}

fn is_unknown(name: &str, location: &Location) -> Error {
    let why = format!("no state of the task `{}` is stored: `{}`", printable::field(name), location.printable());
    Error::failed(why).with_hint("`serializer schedule start` stores it when it first sees a task")
}

/// Applies `work` to each task, also after a failure. Returns the first failure.
fn for_all(
    args: &TasksArgs,
    environment: &Environment,
    mut work: impl FnMut(&mut Mutex<'_>, &str, &Location) -> Result<(), Error>,
) -> Result<(), Error> {
    let place = place_of(environment, &args.place, args.meltano)?;
    let judge = LocalJudge::new(Place::here(), Orphans::Ignore);
    let mut failure: Option<Error> = None;
    for name in &args.tasks {
        let location = task_at(&place, name);
        let mut mutex = Mutex::new(backend::open(&location)?, &judge);
        if let Err(error) = work(&mut mutex, name, &location)
            && let Some(earlier) = failure.replace(error)
        {
            tracing::error!("{earlier}");
        }
    }
    failure.map_or(Ok(()), Err)
}
