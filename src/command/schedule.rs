//! `serializer schedule`

mod catalog;
mod control;
mod events;
mod node;
mod relay;
pub mod runner;
mod runners;
mod status;
mod task;
mod work;

use std::time::Duration;

use catalog::Source;
use node::{Node, Options};
use work::Order;

use super::once::made;
use crate::backend::Location;
use crate::backend::seam::{Key, Kind};
use crate::claimant::Claimant;
use crate::cli::{PlaceArgs, ScheduleCommand, TickArgs};
use crate::config::Environment;
use crate::error::Error;
use crate::exit_code::DONE;
use crate::owner::Place;
use crate::verdict::{LocalJudge, Orphans};

pub fn run(command: &ScheduleCommand, environment: &Environment) -> Result<u8, Error> {
    match command {
        ScheduleCommand::Start(args) => start(&args.tick, Some(args.stop_timeout), environment),
        ScheduleCommand::Tick(args) => start(args, None, environment),
        ScheduleCommand::Status(args) => return status::run(args, environment),
        ScheduleCommand::Next(args) => status::next(args),
        ScheduleCommand::Run(args) => return control::run(args, environment),
        ScheduleCommand::Pause(args) => control::pause(args, environment),
        ScheduleCommand::Resume(args) => control::resume(args, environment),
        ScheduleCommand::Stop(args) => return control::stop(args, environment),
    }?;
    Ok(DONE)
}

fn start(args: &TickArgs, stop_timeout: Option<Duration>, environment: &Environment) -> Result<(), Error> {
    let mut source = Source::new(&args.catalog);
    let catalog = source.read()?;
    let place = place_of(environment, &args.catalog.place, args.catalog.meltano)?;
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = args.jobs.map_or_else(processors, usize::from);
    let here = Place::here();
    let host = here.host.clone().unwrap_or_default();
    let judge = LocalJudge::new(here, Orphans::Ignore);
    let order = Order { lease: lease_of(environment, &args.catalog.place, &place)?, is_json: args.json };
    if stop_timeout.is_some() {
        let (tasks, shown) = (catalog.tasks.len(), place.shown_place());
        tracing::info!("tasks to schedule: {tasks}, {jobs} at a time; their state is in `{shown}`");
    }
    let options = Options { jobs, stop_timeout, place, order };
    Node::new(source, &options, &judge, host)?.run(catalog)
}

/// The location of the tasks' state, with a placeholder for the task.
fn place_of(environment: &Environment, args: &PlaceArgs, is_meltano: bool) -> Result<Location, Error> {
    // With its state in SQLite, a project has one host.
    let of_meltano = std::env::var("MELTANO_DATABASE_URI").ok();
    let of_meltano = of_meltano.filter(|uri| is_meltano && !uri.is_empty() && !uri.starts_with("sqlite"));
    let store = match of_meltano {
        Some(uri) if args.store.is_none() && args.dir.is_none() && !environment.has_store() => Some((&*uri).into()),
        _ => args.store.clone(),
    };
    let args = PlaceArgs { store, dir: args.dir.clone(), lease_seconds: args.lease_seconds };
    made(environment.key(Kind::Schedule, &args, "task")?)
}

fn task_at(place: &Location, name: &str) -> Location {
    place.sibling(Key { kind: Kind::Schedule, name: name.into() })
}

fn lease_of(environment: &Environment, args: &PlaceArgs, place: &Location) -> Result<Option<Duration>, Error> {
    place.is_shared().then(|| environment.lease(args)).transpose()
}

/// A claimant that only observes.
struct Nothing;

impl Claimant for Nothing {}
