//! The subcommands, one file each.

mod completions;
mod describe;
mod ended;
mod flock;
mod initialize;
mod job;
mod lock;
mod man;
mod metrics;
mod once;
mod progress;
mod requester;
mod run;
pub mod schedule;
mod status;
mod unlock;
mod wait;

use std::io::{self, Write};

use crate::cli::Command;
use crate::config::Environment;
use crate::error::Error;
use crate::exit_code;
use crate::sys::text::io_message;

pub fn run(command: &Command) -> Result<u8, Error> {
    let environment = Environment::read();
    match command {
        Command::Run(args) => return run::run(args, &environment?),
        Command::Once(args) => return once::run(args, &environment?),
        Command::Forget(args) => once::forget(args, &environment?),
        Command::Flock(args) => return flock::run(args, &environment?),
        Command::Schedule { command } => return schedule::run(command, &environment?),
        Command::Status(args) => return status::run(args, &environment?),
        Command::Lock(args) => lock::run(args, &environment?),
        Command::Unlock(args) => unlock::run(args, &environment?),
        Command::Wait(args) => wait::run(args, &environment?),
        Command::Break(args) => unlock::run_break(args, &environment?),
        Command::Initialize(args) => initialize::run(args, &environment?),
        Command::Plugin => print(include_bytes!("../dbtmutex.yml")),
        Command::Describe { format } => describe::run(format),
        Command::Completions { shell: Some(shell), .. } => completions::print(*shell),
        Command::Completions { .. } => completions::names(&environment?),
        Command::Man { command } => man::print(command),
    }?;
    Ok(exit_code::DONE)
}

fn to_json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string_pretty(value)
        .map(|json| json + "\n")
        .map_err(|error| Error::failed(error.to_string()))
}

/// Writes data to stdout.
fn print(text: &[u8]) -> Result<(), Error> {
    is_read(text).map(drop)
}

/// Writes data to stdout; tells whether it is read yet.
fn is_read(text: &[u8]) -> Result<bool, Error> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        // The reader has read enough (`| head`).
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => {
            Err(Error::failed(format!("cannot write to standard output: {}", io_message(&error))))
        }
    }
}
