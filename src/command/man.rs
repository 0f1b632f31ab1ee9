//! `serializer man`

use clap::CommandFactory;

use crate::cli::{Cli, ManArgs};
use crate::error::Error;

pub fn run(args: &ManArgs) -> Result<(), Error> {
    let mut command = Cli::command();
    command.build();
    if let Some(name) = &args.command {
        let unknown = || Error::usage(format!("there is no command `{}`", crate::printable::field(name)));
        // Pages of subcommands are named as git's are.
        command = command.find_subcommand(name).ok_or_else(unknown)?.clone().display_name(format!("serializer-{name}"));
    }
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(command).render(&mut page);
    rendered.map_err(|error| Error::failed(format!("cannot write the manual page: {error}")))?;
    super::print(&page)
}
