//! The program: parse, run, tell how it ended.

use std::process::ExitCode;

use clap::Parser;
use serializer::cli::Cli;
use serializer::{command, exit_code, logging, usage};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::answer(&error),
    };
    logging::start(&cli.log);
    match command::run(&cli.command) {
        Ok(()) => exit_code::ExitCode::Done.into(),
        Err(error) => {
            logging::report(&error);
            error.exit_code().into()
        }
    }
}
