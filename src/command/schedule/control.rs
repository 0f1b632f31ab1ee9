//! `serializer schedule run`, `pause`, `resume` and `stop`.

use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::Signal;

use super::catalog::Source;
use super::work::{self, NAME, Order};
use super::{place_of, task_at};
use crate::cli::{PauseArgs, RunTaskArgs, TasksArgs};
use crate::config::Environment;
use crate::error::Error;
use crate::exit_code::{BUSY, DONE};
use crate::lease::process::signal_keeper;
use crate::lock::Mutex;
use crate::lock::key::Inspected;
use crate::lock::once::{Claim, State};
use crate::lock::register::Register;
use crate::lock::staleness::{LocalLiveness, Orphans};
use crate::record::run::{Run, Task};
use crate::schedule::plan::introduced;
use crate::store::Location;
use crate::sys::clock::since_1970;
use crate::sys::identity::HostIdentity;
use crate::sys::text::{self, io_message};

/// How much longer than a lease the end of a run may take.
const ENDING: Duration = Duration::from_secs(15);

/// Poll interval while a run ends.
const WATCHED: Duration = Duration::from_millis(500);

/// `serializer schedule run`
pub fn run(args: &RunTaskArgs, environment: &Environment) -> Result<u8, Error> {
    let catalog = Source::new(&args.catalog).read()?;
    let definition = catalog.find(&args.task).map_err(Error::usage)?;
    if args.slot.is_some_and(|slot| slot > Timestamp::now()) {
        return Err(Error::usage("cannot run a task for a slot in the future"));
    }
    let order = Order::new(&args.catalog.state, false, environment)?;
    let location = task_at(&order.place, &args.task);
    let judge = LocalLiveness::new(HostIdentity::here(), Orphans::Ignore);
    let mut mutex = Mutex::new(Register::open(&location)?, &judge);
    let seen = match mutex.inspect()? {
        Some(key) => key,
        None => {
            let now = mutex.time();
            let stored = mutex.amend(&|run| introduced(run, &args.task, now));
            stored.map_err(|error| Error::mutex("store", &location.printable(), error))?;
            mutex
                .inspect()?
                .ok_or_else(|| Error::failed("cannot run the task: its state was removed"))?
        }
    };
    if seen.state == State::Running {
        let why = format!("cannot run `{}`: it is running", text::field(&args.task));
        return Err(Error::new(BUSY, why).with_hint("`serializer schedule status` shows where"));
    }
    let (last, is_over) =
        (seen.run.of_slot().0, !matches!(seen.state, State::Failed | State::Interrupted));
    // Its success would count for the slot that is still to be finished.
    let slot = match args.slot.map(milliseconds) {
        Some(slot) if !is_over && slot != last => {
            let (name, last) = (text::field(&args.task), work::shown_slot(last));
            return Err(Error::failed(format!(
                "cannot run `{name}` for another slot: {last} is unfinished"
            )));
        }
        None if !is_over => last,
        slot => slot.unwrap_or_else(|| mutex.time()),
    };
    let claim = Claim {
        seen: seen.run.seen(seen.state),
        slot,
        skipped: 0,
        definition: definition.number(),
        is_forced: true,
    };
    let work = order.work(&args.task, definition, claim, &seen.run);
    // Becomes the runner, which has a connection of its own.
    drop(mutex);
    let failed =
        work::runner(&work, definition).map_or_else(|error| error, |mut runner| runner.exec());
    Err(Error::failed(format!("cannot run `{}`: {}", text::field(&args.task), io_message(&failed))))
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
    let resumed = |task: &Task, now: u64| Task {
        paused: task.paused.min(now),
        slot: task.slot.min(now),
        ..task.clone()
    };
    amend_all(args, environment, &resumed)
}

fn amend_all(
    args: &TasksArgs,
    environment: &Environment,
    change: &dyn Fn(&Task, u64) -> Task,
) -> Result<(), Error> {
    for_all(args, environment, |mutex, location, _| {
        let now = mutex.time();
        let stored = mutex.amend(&|run: Option<&Run>| {
            Some(Run { task: Some(change(run?.task.as_ref()?, now)), ..run?.clone() })
        });
        stored.map(drop).map_err(|error| Error::mutex("change", &location.printable(), error))
    })
}

/// `serializer schedule stop`: asks for the end of a run, and waits for it.
pub fn stop(args: &TasksArgs, environment: &Environment) -> Result<u8, Error> {
    let mut is_late = false;
    for_all(args, environment, |mutex, location, seen| {
        let shown = text::field(&seen.run.key);
        if seen.state != State::Running {
            tracing::info!("`{shown}` is not running");
            return Ok(());
        }
        let run = seen.run.of_slot();
        let mark = |stored: Option<&Run>| {
            let stored = stored.filter(|stored| stored.of_slot() == run)?;
            Some(Run {
                task: Some(Task { is_stopped: true, ..stored.task.clone()? }),
                ..stored.clone()
            })
        };
        mutex.amend(&mark).map_err(|error| Error::mutex("stop", &location.printable(), error))?;
        let entry = seen.process.entry.as_ref();
        // On another host, the runner finds the mark when it renews the lease.
        entry
            .iter()
            .for_each(|entry| signal_keeper(entry, &HostIdentity::here(), NAME, Signal::TERM));
        let lease =
            entry.and_then(|entry| entry.lease).map_or(Duration::ZERO, |lease| lease.duration);
        let end = Instant::now() + lease + ENDING;
        // The loop ends at that time.
        while Instant::now() < end {
            let Some(now) = mutex
                .inspect()?
                .filter(|now| now.state == State::Running && now.run.of_slot() == run)
            else {
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

/// Applies `work` to each task, also after a failure. Returns the first failure.
fn for_all(
    args: &TasksArgs,
    environment: &Environment,
    mut work: impl FnMut(&mut Mutex<'_>, &Location, Inspected) -> Result<(), Error>,
) -> Result<(), Error> {
    let place = place_of(environment, &args.state)?;
    let judge = LocalLiveness::new(HostIdentity::here(), Orphans::Ignore);
    let mut failure: Option<Error> = None;
    for name in &args.tasks {
        let location = task_at(&place, name);
        let mut mutex = Mutex::new(Register::open(&location)?, &judge);
        let done = match mutex.inspect() {
            Ok(Some(seen)) => work(&mut mutex, &location, seen),
            Ok(None) => {
                let why = format!(
                    "no state of the task `{}` is stored: `{}`",
                    text::field(name),
                    location.printable()
                );
                Err(Error::failed(why)
                    .with_hint("`serializer schedule start` stores it when it first sees a task"))
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = done
            && let Some(earlier) = failure.replace(error)
        {
            tracing::error!("{earlier}");
        }
    }
    failure.map_or(Ok(()), Err)
}
