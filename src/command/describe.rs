//! What the declaration of the command line is good for besides: `describe`, `completions` and `man`.

use std::collections::HashMap;

use clap::CommandFactory;
use serde::Serialize;

use crate::cli::{Cli, CompletionsArgs, DescribeArgs, DescribeFormat, ManArgs};
use crate::error::Error;
use crate::printable;

#[derive(Serialize)]
struct Description {
    name: String,
    description: String,
}

/// `serializer describe`: the commands as Meltano extensions list them.
pub fn run(args: &DescribeArgs) -> Result<(), Error> {
    let program = Cli::command();
    let commands = program.get_subcommands().filter(|command| !command.is_hide_set()).map(|command| Description {
        name: command.get_name().to_owned(),
        description: command.get_about().map(ToString::to_string).unwrap_or_default(),
    });
    let text = match args.format {
        DescribeFormat::Text => commands.map(|command| format!("{:<12} {}\n", command.name, command.description)).collect(),
        // YAML can be written as JSON.
        DescribeFormat::Json | DescribeFormat::Yaml => {
            super::to_json(&HashMap::from([("commands", commands.collect::<Vec<_>>())]))?
        }
    };
    super::print(text.as_bytes())
}

/// `serializer completions`
pub fn completions(args: &CompletionsArgs) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "serializer", &mut script);
    super::print(&script)
}

/// `serializer man`
pub fn man(args: &ManArgs) -> Result<(), Error> {
    let mut command = Cli::command();
    command.build();
    if let Some(name) = &args.command {
        let unknown = || Error::usage(format!("there is no command `{}`", printable::field(name)));
        // Pages of subcommands are named as git's are.
        command = command.find_subcommand(name).ok_or_else(unknown)?.clone().display_name(format!("serializer-{name}"));
    }
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(command).render(&mut page);
    rendered.map_err(|error| Error::failed(format!("cannot write the manual page: {error}")))?;
    super::print(&page)
}
