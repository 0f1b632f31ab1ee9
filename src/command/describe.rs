//! `serializer describe`: the commands as Meltano extensions list them, from the command line's declaration.

use std::collections::HashMap;

use clap::CommandFactory;
use serde::Serialize;

use crate::cli::{Cli, DescribeArgs, DescribeFormat};
use crate::error::Error;

#[derive(Serialize)]
struct Description {
    name: String,
    description: String,
}

pub fn run(args: &DescribeArgs) -> Result<(), Error> {
    let program = Cli::command();
    let commands = program.get_subcommands().filter(|command| !command.is_hide_set()).map(|command| Description {
        name: command.get_name().to_owned(),
        description: command.get_about().map(ToString::to_string).unwrap_or_default(),
    });
    let text = match args.format {
        DescribeFormat::Text => commands.map(|command| format!("{:<12} {}\n", command.name, command.description)).collect(),
        DescribeFormat::Json => super::to_json(&HashMap::from([("commands", commands.collect::<Vec<_>>())]))?,
        DescribeFormat::Yaml => serde_saphyr::to_string(&HashMap::from([("commands", commands.collect::<Vec<_>>())]))
            .map_err(|error| Error::failed(error.to_string()))?,
    };
    super::print(text.as_bytes())
}
