//! What is made from the declaration of the command line: `describe`, `completions` and `man`.

use clap::CommandFactory;
use serde_json::json;

use crate::cli::Cli;
use crate::error::Error;
use crate::sys::text;

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
        super::to_json(&json!({ "commands": commands.collect::<Vec<_>>() }))?
    };
    super::print(text.as_bytes())
}

/// `serializer completions`
pub fn completions(shell: clap_complete::Shell) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "serializer", &mut script);
    super::print(&script)
}

/// `serializer man`
pub fn man(name: Option<&str>) -> Result<(), Error> {
    let mut command = Cli::command();
    command.build();
    if let Some(name) = name {
        let unknown = || Error::usage(format!("no such command: `{}`", text::field(name)));
        // Pages of subcommands are named as git's are.
        let page = format!("serializer-{name}");
        command = command.find_subcommand(name).ok_or_else(unknown)?.clone().display_name(page);
    }
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(command).render(&mut page);
    rendered.map_err(|error| Error::failed(format!("cannot write the manual page: {error}")))?;
    super::print(&page)
}
