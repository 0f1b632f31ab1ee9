//! `serializer flock`: the command line of flock(1) from util-linux, so that a crontab is switched
//! by a word.

use std::ffi::OsString;
use std::time::Duration;

use super::job::{Job, script_of_shell};
use super::run::execute;
use crate::cli::FlockArgs;
use crate::config::{Environment, lock_file_at};
use crate::error::Error;
use crate::exit_code::{BUSY, FAILED};
use crate::lock::Request;
use crate::lock::waiting::Waiting;
use crate::record::mode::Mode;
use crate::run::Program;
use crate::sys::text;

/// `EX_NOINPUT` of sysexits.h, by which flock tells a file that cannot be used from one that is
/// locked.
const NO_INPUT: u8 = 66;

pub fn run(args: &FlockArgs, environment: &Environment) -> Result<u8, Error> {
    let command = command_of(args)?;
    if args.file.is_dir() {
        let shown = text::path(&args.file);
        let why = format!("cannot lock the directory `{shown}`: a lock of this program is a file");
        let hint = format!("name a file in it: `serializer flock {shown}/lock …`");
        return Err(Error::new(NO_INPUT, why).with_hint(hint));
    }
    let mut file = args.file.clone();
    if args.fcntl {
        file.as_mut_os_string().push(".fcntl");
    }
    if environment.is_set("STORE") {
        tracing::warn!(
            "`flock` locks a file of this machine; `SERIALIZER_STORE` is for `lock` and `run`"
        );
    }
    let timeout = args.timeout.or(args.nonblock.then_some(Duration::ZERO));
    let mode = if args.shared { Mode::Shared } else { Mode::EXCLUSIVE };
    let job = Job {
        request: Request { mode, ..Request::default() },
        waiting: Waiting { timeout, ..Waiting::default() },
        program: Program { command, ..Program::default() },
        orphans: environment.orphans(None)?,
        is_verbose: args.verbose,
        is_flock: true,
        reason: environment.reason(None)?,
        ..Job::default()
    };
    let code = args.conflict_exit_code;
    match execute(&lock_file_at(&file)?, &job) {
        // As flock(1): a crontab that was switched must not begin to send mail.
        Err(error) if !args.verbose && error.code == BUSY => {
            tracing::debug!("{error}");
            Ok(code)
        }
        ended => ended.map_err(|error| error.or_if(FAILED, NO_INPUT).or_if(BUSY, code)),
    }
}

/// What is to run; refuses what is not there.
fn command_of(args: &FlockArgs) -> Result<Vec<OsString>, Error> {
    match args.command.as_slice() {
        command if args.unlock || command.is_empty() => {
            let message = "cannot lock without a command, or `--unlock`: the lock belongs to a \
                           process, not to a file descriptor";
            let hint = "`serializer flock FILE COMMAND`; in a script, put `serializer lock` before \
                        and `serializer unlock` behind what must not overlap";
            Err(Error::usage(message).with_hint(hint))
        }
        [option, script] if option == "-c" || option == "--command" => Ok(script_of_shell(script)),
        [option, ..] if option == "-c" || option == "--command" => {
            let message = "cannot run what follows `-c`: expected exactly one argument, a script";
            Err(Error::usage(message))
        }
        command => Ok(command.to_vec()),
    }
}
