//! `serializer describe`

use clap::CommandFactory;
use serde_json::json;

use crate::cli::Cli;
use crate::command::output::{print, to_json};
use crate::error::Error;

/// `serializer describe`: the commands as Meltano extensions list them.
pub fn run(format: &str) -> Result<(), Error> {
    let program = Cli::command();
    let shown = program.get_subcommands().filter(|command| !command.is_hide_set());
    let commands = shown.map(|command| {
        (command.get_name(), command.get_about().map(ToString::to_string).unwrap_or_default())
    });
    let text = if format == "text" {
        commands.map(|(name, about)| format!("{name:<12} {about}\n")).collect()
    } else {
        // YAML can be written as JSON.
        let commands = commands.map(|(name, about)| json!({ "name": name, "description": about }));
        to_json(&json!({ "commands": commands.collect::<Vec<_>>() }))?
    };
    print(text.as_bytes())
}
