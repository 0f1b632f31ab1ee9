//! The subcommands, one file each.

mod completions;
mod doctor;
mod flock;
mod initialize;
mod job;
mod lock;
mod man;
mod metrics;
mod once;
mod output;
mod progress;
mod requester;
mod run;
pub mod schedule;
mod status;
mod unlock;
mod wait;

use crate::cli::Command;
use crate::config::Environment;
use crate::error::Error;
use crate::exit_code;

pub fn run(command: &Command) -> Result<u8, Error> {
    let environment = &Environment::read()?;
    // `doctor` has a line for each.
    for typo in environment.typos().iter().filter(|_| !matches!(command, Command::Doctor(_))) {
        tracing::warn!("{typo} (hint: {})", typo.hint.as_deref().unwrap_or_default());
    }
    match command {
        Command::Run(args) => return run::run(args, environment),
        Command::Once(args) => return once::run(args, environment),
        Command::Forget(args) => once::forget(args, environment),
        Command::Flock(args) => return flock::run(args, environment),
        Command::Schedule { command } => return schedule::run(command, environment),
        Command::Status(args) => return status::run(args, environment),
        Command::Doctor(args) => return doctor::run(args, environment),
        Command::Lock(args) => lock::run(args, environment),
        Command::Unlock(args) => unlock::run(args, environment),
        Command::Wait(args) => wait::run(args, environment),
        Command::Break(args) => unlock::run_break(args, environment),
        Command::Initialize(args) => initialize::run(args, environment),
        Command::Plugin => output::print(include_bytes!("../dbtmutex.yml")),
        Command::Describe { format } => completions::describe(format),
        Command::Completions { shell: Some(shell), .. } => completions::script_of(*shell),
        Command::Completions { .. } => completions::names(environment),
        Command::Man { command } => man::page_of(command),
    }?;
    Ok(exit_code::DONE)
}
