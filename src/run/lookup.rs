//! Whether a command can be found, before its lock is waited for.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Access, FileType, access, stat};
use rustix::io::Errno;

use crate::error::Error;
use crate::exit_code::{CANNOT_RUN, NOT_FOUND};
use crate::sys::text::{self, io_message};

/// Looks for `program` as the shell does. Fails only if it certainly does not run.
pub fn look_up(program: &OsStr) -> io::Result<()> {
    if program.as_bytes().contains(&b'/') {
        return match candidate(Path::new(program)) {
            Ok(false) => Err(Errno::ACCESS.into()),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(Errno::NOENT.into()),
            // Its directory must not be searched, or the file system is in trouble: the exec tells.
            Ok(true) | Err(_) => Ok(()),
        };
    }
    // Without it, the C library has a path of its own.
    let Some(path) = std::env::var_os("PATH") else { return Ok(()) };
    let mut why = Errno::NOENT;
    for directory in std::env::split_paths(&path).filter(|_| !program.is_empty()) {
        match candidate(&Path::new(".").join(directory).join(program)) {
            Ok(true) => return Ok(()),
            Ok(false) => why = Errno::ACCESS,
            // Not there, or in another user's directory.
            Err(_) => {}
        }
    }
    Err(why.into())
}

/// Whether a file that is there can be run.
fn candidate(path: &Path) -> rustix::io::Result<bool> {
    let is_file = FileType::from_raw_mode(stat(path)?.st_mode).is_file();
    Ok(is_file && access(path, Access::EXEC_OK) != Err(Errno::ACCESS))
}

/// Why a program cannot be run.
pub fn cannot_run(program: &Path, error: &io::Error) -> Error {
    let shown = text::path(program);
    if Errno::from_io_error(error) != Some(Errno::NOENT) {
        return Error::new(CANNOT_RUN, format!("cannot run `{shown}`: {}", io_message(error)));
    }
    let is_there = shown.contains('/') && program.exists();
    let why = if is_there {
        "the interpreter that its first line names is not found"
    } else {
        "command not found"
    };
    let error = Error::new(NOT_FOUND, format!("cannot run `{shown}`: {why}"));
    // A whole line in quotes.
    if shown.contains(char::is_whitespace) { error.with_hint("`-c` runs a script") } else { error }
}
