//! A wrong command line, told in one line as all other errors are.

use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::cli::{self, Cli};
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
    // clap writes paragraphs: the error, tips (the best one first), the usage, where to find help.
    let (message, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let tips = rest.lines().filter_map(|line| line.trim().strip_prefix("tip: "));
    // An option that was meant as a value is the rarest mistake.
    let tip = tips.map(str::to_owned).find(|tip| !tip.starts_with("to pass "));
    let (mut command, mut known) = (String::new(), Cli::command());
    for word in std::env::args_os().skip(1) {
        match known.find_subcommand(&word).cloned() {
            Some(found) => (command, known) = (command + found.get_name() + " ", found),
            // Options of all commands stand before the first one.
            None if command.is_empty() => {}
            None => break,
        }
    }
    // After `--`, clap takes the command for the key.
    let message = match command.as_str() {
        "once " if cli::words_after_dashes() > 0 => message.replace("<CMD>...", "<KEY>"),
        _ => message.to_owned(),
    };
    let usage = || format!("for usage: `serializer {command}--help`");
    Error::usage(message).with_hint(tip.unwrap_or_else(usage))
}
