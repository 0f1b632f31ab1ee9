//! `serializer completions`: what clap makes of the declaration, with the names of locks, and the
//! commands that `run` runs; and `serializer describe`.

use clap::CommandFactory;
use clap_complete::Shell;
use serde_json::json;

use crate::cli::{Cli, PlaceArgs};
use crate::command::output::{print, to_json};
use crate::command::status::is_lock;
use crate::config::Environment;
use crate::error::Error;
use crate::store::seam::Kind;

/// clap's scripts for bash and fish know options only.
const BASH: &str = include_str!("completions/serializer.bash");

/// clap's script for zsh calls this in the place of its own function for names of hosts. The script
/// begins with a comment, which must stay first, and ends by calling its function.
const ZSH: &str = include_str!("completions/serializer.zsh");

const FISH: &str = include_str!("completions/serializer.fish");

pub fn script_of(shell: Shell) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "serializer", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    print(match shell {
        Shell::Bash => script + BASH,
        Shell::Zsh => {
            let script = script.replace(":_hosts", ":_serializer_locks");
            script.replacen("\n_serializer() {", ZSH, 1)
        }
        Shell::Fish => {
            script.replace("(__fish_print_hostnames)", "(serializer completions --names)") + FISH
        }
        _ => script,
    })
}

/// Prints the names of all locks where the variables say.
pub fn names(environment: &Environment) -> Result<(), Error> {
    let all = environment.all(Kind::Lock, &PlaceArgs::default())?;
    let all = all.iter().filter(|location| is_lock(location));
    let names: Vec<_> = all.map(|location| location.key().name.to_string_lossy()).collect();
    print(names.join("\n") + "\n")
}

/// The commands as Meltano extensions list them.
pub fn describe(format: &str) -> Result<(), Error> {
    let program = Cli::command();
    let shown = program.get_subcommands().filter(|command| !command.is_hide_set());
    let commands = shown.map(|command| {
        (command.get_name(), command.get_about().map(ToString::to_string).unwrap_or_default())
    });
    if format == "text" {
        return print(
            commands.map(|(name, about)| format!("{name:<12} {about}\n")).collect::<String>(),
        );
    }
    // YAML can be written as JSON.
    let commands = commands.map(|(name, about)| json!({ "name": name, "description": about }));
    print(to_json(&json!({ "commands": commands.collect::<Vec<_>>() }))?)
}
