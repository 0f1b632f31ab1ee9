//! `serializer` is a mutex for data pipelines: it makes the parts that must not overlap run one at a time.
//!
//! ```text
//! main → cli → config → command → mutex → backend
//! ```
//!
//! [`mutex`] is policy; a [`backend`] is mechanism: a register that is written only if it is in an expected state.
//! `docs/design.md` describes the whole design.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("serializer runs on Linux only");

pub mod backend;
mod child;
pub mod claimant;
mod cli;
mod command;
mod config;
mod error;
mod events;
mod exit_code;
mod holder;
mod keeper;
mod local_time;
mod logging;
pub mod mode;
pub mod mutex;
pub mod once;
pub mod owner;
pub mod panics;
mod printable;
pub mod process;
pub mod record;
pub mod schedule;
pub mod store;
mod timer;
mod usage;
pub mod verdict;
mod waiter;
pub mod waiting;

use std::process::ExitCode;

pub use child::note_ignored_signals;
use clap::Parser;

/// The program: parses, runs, and returns how it ended.
pub fn main() -> ExitCode {
    panics::end_the_process();
    if let Some(code) = child::help().or_else(keeper::process::help).or_else(command::schedule::runner::help) {
        return code;
    }
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::answer(&error),
    };
    logging::start(&cli.log);
    events::start(cli.log.events.as_ref());
    match command::run(&cli.command) {
        Ok(code) => code.into(),
        Err(error) => {
            logging::report(&error);
            error.code.into()
        }
    }
}
