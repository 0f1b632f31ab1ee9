//! Whether a command can be found, before anybody waits for a lock on its behalf. Nothing is said where it is not certain.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Access, access};
use rustix::io::Errno;

/// What is known of a path.
enum Candidate {
    Runs,
    Missing,
    Denied,
    /// Its directory must not be looked into.
    Hidden,
    Unknown,
}

/// Looks for `program` as the shell does.
///
/// # Errors
/// When it certainly does not run: not found, or not executable.
pub fn look_up(program: &OsStr) -> io::Result<()> {
    if program.as_bytes().contains(&b'/') {
        return match candidate(Path::new(program)) {
            Candidate::Missing => Err(Errno::NOENT.into()),
            Candidate::Denied => Err(Errno::ACCESS.into()),
            Candidate::Runs | Candidate::Hidden | Candidate::Unknown => Ok(()),
        };
    }
    if program.is_empty() {
        return Err(Errno::NOENT.into());
    }
    // Without it, the C library has a path of its own.
    let Some(path) = std::env::var_os("PATH") else { return Ok(()) };
    let mut is_denied = false;
    for directory in std::env::split_paths(&path) {
        match candidate(&Path::new(".").join(directory).join(program)) {
            Candidate::Runs | Candidate::Unknown => return Ok(()),
            Candidate::Denied => is_denied = true,
            // Another user's directory on the PATH has no commands for this one.
            Candidate::Missing | Candidate::Hidden => {}
        }
    }
    Err(if is_denied { Errno::ACCESS } else { Errno::NOENT }.into())
}

fn candidate(path: &Path) -> Candidate {
    match path.metadata() {
        Ok(metadata) if !metadata.is_file() => Candidate::Denied,
        Ok(_) => match access(path, Access::EXEC_OK) {
            Ok(()) => Candidate::Runs,
            Err(Errno::ACCESS) => Candidate::Denied,
            Err(_) => Candidate::Unknown,
        },
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTDIR) => Candidate::Missing,
            Some(Errno::ACCESS) => Candidate::Hidden,
            _ => Candidate::Unknown,
        },
    }
}
