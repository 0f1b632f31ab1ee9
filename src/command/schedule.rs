//! `serializer schedule`

mod catalog;
mod control;
mod events;
mod node;
pub mod runner;
mod status;
mod task;
mod work;

use super::once::made;
use crate::cli::{CatalogArgs, PlaceArgs, ScheduleCommand};
use crate::config::{ANY, Environment};
use crate::error::Error;
use crate::exit_code::DONE;
use crate::store::Location;
use crate::store::address::StoreUrl;
use crate::store::seam::{Key, Kind};

pub fn run(command: &ScheduleCommand, environment: &Environment) -> Result<u8, Error> {
    match command {
        ScheduleCommand::Start(args) => node::run(&args.tick, Some(args.stop_timeout), environment),
        ScheduleCommand::Tick(args) => node::run(args, None, environment),
        ScheduleCommand::Status(args) => return status::run(args, environment),
        ScheduleCommand::Next(args) => status::next(args),
        ScheduleCommand::Run(args) => return control::run(args, environment),
        ScheduleCommand::Pause(args) => control::pause(args, environment),
        ScheduleCommand::Resume(args) => control::resume(args, environment),
        ScheduleCommand::Stop(args) => return control::stop(args, environment),
        ScheduleCommand::Forget(args) => control::forget(args, environment),
    }?;
    Ok(DONE)
}

/// The location of the tasks' state, with a placeholder for the task.
fn place_of(environment: &Environment, args: &CatalogArgs) -> Result<Location, Error> {
    let PlaceArgs { store, dir, .. } = &args.place;
    let is_open = store.is_none() && dir.is_none() && !environment.is_set("STORE");
    // With its state in SQLite, a project has one host.
    let of_meltano = std::env::var("MELTANO_DATABASE_URI").ok().filter(|_| args.meltano && is_open);
    let of_meltano = of_meltano.filter(|uri| !uri.is_empty() && !uri.starts_with("sqlite"));
    let store = of_meltano.as_deref().map(StoreUrl::parse).or(store.clone());
    let args = PlaceArgs { store, ..args.place.clone() };
    made(environment.key(Kind::Schedule, &args, ANY)?)
}

fn task_at(place: &Location, name: &str) -> Location {
    place.sibling(Key { kind: Kind::Schedule, name: name.into() })
}
