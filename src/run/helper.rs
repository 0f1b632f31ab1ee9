//! Helpers: this program again, doing a small part of the work in a process of its own.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::Pid;

use crate::sys::channel::connection;
use crate::sys::process::this_program;

/// This program again, with a connection as its stdin.
pub fn spawn(
    name: &str,
    adapt: impl FnOnce(&mut Command) -> &mut Command,
) -> io::Result<(Pid, OwnedFd)> {
    let (ours, theirs) = connection()?;
    let mut command = Command::new(this_program());
    command.arg0("serializer").arg(name).stdin(theirs);
    // Then this program is not found, and not the one that it is to run.
    let child = adapt(&mut command).spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            io::Error::other("/proc is not mounted, or its file was removed")
        }
        _ => error,
    })?;
    Ok((Pid::from_child(&child), ours))
}
