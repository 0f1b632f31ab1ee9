//! The program: parse, run, tell how it ended.

use std::process::ExitCode;

use clap::Parser;
use serializer::cli::Cli;
use serializer::{child, command, keeper, logging, usage};

fn main() -> ExitCode {
    if let Some(code) = child::help().or_else(keeper::process::help) {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::answer(&error),
    };
    logging::start(&cli.log);
    match command::run(&cli.command) {
        Ok(code) => code.into(),
        Err(error) => {
            logging::report(&error);
            error.exit_code().into()
        }
    }
}
