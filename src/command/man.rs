//! `serializer man`: pages as people know them, made from the declaration of the command line and
//! the texts of its help.

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::cli::Cli;
use crate::command::output::print;
use crate::error::Error;
use crate::sys::text;

/// Paragraphs of the help that are sections of a page, by their first words. Those of the program
/// count for its commands, too.
const SECTIONS: [(&str, &str, bool); 4] = [
    ("Examples:", "EXAMPLES", false),
    ("Environment variables ", "ENVIRONMENT", true),
    ("Exit codes:", "EXIT STATUS", true),
    ("Files:", "FILES", true),
];

pub fn page_of(words: &[String]) -> Result<(), Error> {
    // `help` has a page of its own nowhere.
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let (mut command, mut name) = (&program, "serializer".to_owned());
    for word in words {
        let unknown = || Error::usage(format!("no such command: `{}`", text::field(word)));
        command = command.find_subcommand(word).ok_or_else(unknown)?;
        name = format!("{name}-{}", command.get_name());
    }
    let page = page(&program, command.clone().display_name(&name), &name);
    print(&page.map_err(|error| Error::failed(format!("cannot write the manual page: {error}")))?)
}

fn page(program: &Command, mut command: Command, name: &str) -> std::io::Result<Vec<u8>> {
    let usage = command.render_usage().to_string();
    let (general, own) = (paragraphs(program), paragraphs(&command));
    let is_text = |text: &&String| !SECTIONS.iter().any(|(begin, ..)| text.starts_with(begin));
    // What stands behind the options of the program are sections, and hints at the help.
    let texts = own.iter().filter(is_text).filter(|_| command.get_name() != program.get_name());
    let about = command.get_about().map(ToString::to_string);
    let about: Vec<_> = about.into_iter().chain(texts.cloned()).collect();
    let command = command
        .override_usage(usage.trim_start_matches("Usage: ").to_owned())
        .long_about(about.join("\n\n"))
        .after_long_help(None)
        .version(None)
        .long_version(None)
        // `-h` leaves out what a page explains.
        .mut_args(|arg| arg.hide_short_help(false));
    let source = format!("serializer {}", env!("CARGO_PKG_VERSION"));
    let mut page = Vec::new();
    Man::new(command).manual("User Commands").source(source).render(&mut page)?;
    let mut roff = Roff::new();
    for (begin, title, is_general) in SECTIONS {
        let of = if is_general { &general } else { &own };
        for text in of.iter().filter_map(|text| text.strip_prefix(begin)) {
            roff.control("SH", [title]).control("nf", []);
            for line in text.trim_matches('\n').lines() {
                roff.text([roman(line)]);
            }
            roff.control("fi", []);
        }
    }
    let names = program.get_subcommands().filter(|other| !other.is_hide_set());
    let names = names.map(|other| format!("serializer-{}", other.get_name()));
    let names = std::iter::once("serializer".to_owned()).chain(names).filter(|it| it != name);
    let flock = name.ends_with("flock").then_some("flock".to_owned());
    let others: Vec<_> = names.chain(flock).map(|it| it + "(1)").collect();
    roff.control("SH", ["SEE ALSO"]).text([roman(others.join(", "))]);
    roff.to_writer(&mut page)?;
    Ok(page)
}

fn paragraphs(command: &Command) -> Vec<String> {
    let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    help.split("\n\n").map(str::to_owned).collect()
}
