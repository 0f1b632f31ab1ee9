//! `serializer describe`: what Meltano extensions tell about themselves, taken from the command line's declaration.

use clap::CommandFactory;
use serde::Serialize;

use crate::cli::{Cli, DescribeArgs, DescribeFormat};
use crate::error::Error;

#[derive(Serialize)]
struct Description {
    commands: Vec<CommandDescription>,
}

#[derive(Serialize)]
struct CommandDescription {
    name: String,
    description: String,
}

pub fn run(args: &DescribeArgs) -> Result<(), Error> {
    let commands = Cli::command()
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(|command| CommandDescription {
            name: command.get_name().to_owned(),
            description: command.get_about().map(ToString::to_string).unwrap_or_default(),
        })
        .collect();
    let description = Description { commands };
    let text = match args.format {
        DescribeFormat::Text => text(&description),
        DescribeFormat::Json => {
            serde_json::to_string_pretty(&description).map_err(|error| Error::failed(error.to_string()))? + "\n"
        }
        DescribeFormat::Yaml => serde_saphyr::to_string(&description).map_err(|error| Error::failed(error.to_string()))?,
    };
    super::print(text.as_bytes())
}

fn text(description: &Description) -> String {
    let lines = description.commands.iter().map(|command| format!("{:<12} {}\n", command.name, command.description));
    lines.collect()
}
