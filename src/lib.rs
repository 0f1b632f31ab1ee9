//! `serializer` is a mutex for data pipelines: it makes the parts that must not overlap run one at
//! a time.
//!
//! ```text
//! main → cli → config → command → lock → store
//! ```
//!
//! [`lock`] is policy; a [`store`] is mechanism: a register that is written only if it is in an
//! expected state. `docs/design.md` describes the whole design.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod cli;
mod command;
mod config;
mod error;
mod events;
mod exit_code;
pub mod lease;
pub mod lock;
mod logging;
pub mod panics;
pub mod record;
mod run;
pub mod schedule;
pub mod store;
pub mod sys;
mod usage;
mod values;

use std::process::ExitCode;

pub use run::note_ignored_signals;

/// The program: parses, runs, and returns how it ended.
pub fn main() -> ExitCode {
    panics::end_the_process();
    let help = run::help().or_else(lease::process::help).or_else(command::schedule::runner::help);
    if let Some(code) = help.or_else(sys::process::help) {
        return code;
    }
    let cli = match cli::Cli::parse_once() {
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
