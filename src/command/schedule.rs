//! `serializer schedule`

mod catalog;
mod control;
mod events;
mod node;
pub mod runner;
mod status;
mod task;
mod work;

use crate::cli::ScheduleCommand;
use crate::config::Environment;
use crate::error::Error;
use crate::exit_code::DONE;

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
