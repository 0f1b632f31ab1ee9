//! A panic of this program or of a library writes one line to stderr, and ends with a defined exit
//! code. Its message may contain a secret, so only its location is shown. While a lease is kept, a
//! panic counts as its loss: a command must not continue under a lease that is not renewed.

use std::io::Write;
use std::panic::{Location, PanicHookInfo};
use std::process;
use std::thread::{self, ThreadId};

use crate::error::Error;
use crate::exit_code;
use crate::lease::thread::Renewal;
use crate::logging;

/// From now on, a panic ends this process. The main thread must call this.
pub fn end_the_process() {
    let main = thread::current().id();
    std::panic::set_hook(Box::new(move |panic| end(panic, main)));
}

/// Does not return: release builds abort after the hook.
fn end(panic: &PanicHookInfo<'_>, main: ThreadId) {
    let what =
        panic.location().map_or_else(String::new, |location| format!(" at `{}`", place(location)));
    let what = format!("internal error{what}");
    if tracing::dispatcher::has_been_set() {
        let hint = "check the variables and files that set up the store's client (endpoints, \
                    proxies, certificates); if they are right, please report this line";
        logging::report(&Error::failed(&*what).with_hint(hint));
    } else {
        // If this write fails, nothing else can report it.
        let _ = writeln!(std::io::stderr(), "serializer: {what}");
    }
    match Renewal::current() {
        // The main thread goes on, and ends the command.
        Some(kept) if thread::current().id() != main => {
            kept.lose(what);
            // Without end: returning would abort, or unwind into a library in an unknown state.
            loop {
                thread::park();
            }
        }
        Some(kept) => {
            (kept.at_worst)();
            process::exit(exit_code::LOST.into())
        }
        None => process::exit(exit_code::FAILED.into()),
    }
}

/// File and line, without the directories of the build machine.
fn place(location: &Location<'_>) -> String {
    let file = location.file();
    let of_crate = file.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/'));
    let (_, file) = of_crate.or(file.split_once("/library/")).unwrap_or(("", file));
    format!("{file}:{}", location.line())
}
