//! The program: parse, run, tell how it ended.

#![deny(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use serializer::cli::Cli;
use serializer::{child, command, keeper, logging, panics, usage};

/// Called before Rust's runtime starts, which ignores SIGPIPE. After that, no system call and no file of `/proc` shows whether the
/// caller ignored it, which a command of `run` has to inherit. No safe means exists: std's own (`-Zon-broken-pipe`) is not stable,
/// and a `main` of one's own is as unsafe, and gets no arguments under musl.
///
/// The attribute is sound: a loader calls what stands in this section as a C function, and this one reads no argument. It uses of
/// std only files and an atomic cell, which need no runtime, and it cannot panic.
#[allow(unsafe_code, reason = "see above")]
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_THE_RUNTIME: extern "C" fn() = child::note_ignored_signals;

fn main() -> ExitCode {
    panics::end_the_process();
    if let Some(code) = child::help().or_else(keeper::process::help) {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::answer(&error),
    };
    logging::start(&cli.log);
    match command::run(&cli.command) {
        Ok(code) => code.into(),
        Err(error) => {
            logging::report(&error);
            error.exit_code().into()
        }
    }
}
