//! A wrong command line, told in one line as all other errors are.

use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::cli::Cli;
use crate::error::Error;
use crate::logging::{self, LogArgs};

/// Prints what clap has to say: help and version as they are, an error as one line.
pub fn answer(error: &clap::Error) -> ExitCode {
    let is_help =
        !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if is_help {
        // A reader that closes the pipe (`| head`) has read enough.
        let _ = error.print();
    } else {
        // The arguments were not parsed.
        let meltano_log_json = std::env::args_os().any(|argument| argument == "--meltano-log-json");
        logging::start(&LogArgs { meltano_log_json, ..LogArgs::default() });
        logging::report(&one_line(error));
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

fn one_line(error: &clap::Error) -> Error {
    let text = error.to_string();
    // clap writes paragraphs: the error, tips, the usage, where to find help.
    let mut paragraphs = text
        .split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    let message = paragraphs.next().unwrap_or_default();
    let tip = paragraphs.find_map(|paragraph| paragraph.strip_prefix("tip: ").map(str::to_owned));
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let (mut command, mut known) = (String::new(), Cli::command());
    for word in std::env::args().skip(1) {
        let Some(found) = known.find_subcommand(&word).cloned() else { break };
        (command, known) = (command + &word + " ", found);
    }
    Error::usage(message)
        .with_hint(tip.unwrap_or_else(|| format!("for usage: `serializer {command}--help`")))
}
