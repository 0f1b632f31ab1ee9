//! `serializer man`

use clap::CommandFactory;

use crate::cli::{Cli, ManArgs};
use crate::error::Error;

pub fn run(args: &ManArgs) -> Result<(), Error> {
    let mut program = Cli::command();
    program.build();
    let command = match &args.command {
        None => program,
        Some(name) => {
            let command = program.find_subcommand(name).cloned();
            let command =
                command.ok_or_else(|| Error::usage(format!("there is no command `{}`", crate::printable::field(name)), None))?;
            // Pages of subcommands are named as git's are.
            command.display_name(format!("serializer-{name}"))
        }
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut page)
        .map_err(|error| Error::failed(format!("cannot write the manual page: {error}")))?;
    super::print(&page)
}
