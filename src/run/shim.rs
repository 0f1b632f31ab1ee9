//! The process that becomes the command: it waits for the go message, and then replaces itself
//! (exec), so that its PID stays. When its connection is closed without a message, because `run`
//! has died, it ends.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::{SigSet, Signal};
use rustix::process::{Pid, getpid};
use serde::{Deserialize, Serialize};

use super::signals::was_ignored;
use crate::sys::signals::exec_as_it_is;
use crate::sys::{channel, process};

/// What this process is called on its command line.
pub const NAME: &str = "exec-locked";

/// The go message; the command's stdin comes with it.
#[derive(Serialize, Deserialize)]
struct Go {
    /// Variables of the command, besides those that it inherits.
    variables: Vec<(String, String)>,
    /// Signals that are blocked no longer.
    unblocked: Vec<i32>,
    /// The process that takes the command with it when it ends, if one does.
    bound_to: Option<i32>,
    ignores_pipe: bool,
}

/// Starts this program again, with a connection as its stdin, to do a small part of the work.
pub fn spawn(
    name: &str,
    adapt: impl FnOnce(&mut Command) -> &mut Command,
) -> io::Result<(Pid, OwnedFd)> {
    let (ours, theirs) = channel::connection()?;
    let mut command = Command::new(process::this_program());
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

/// Sends the go message, with our stdin. A command that `is_bound` is killed when this process
/// ends.
pub fn go(
    channel: &OwnedFd,
    variables: Vec<(String, String)>,
    unblocked: &SigSet,
    is_bound: bool,
) -> io::Result<()> {
    let go = Go {
        variables,
        unblocked: unblocked.iter().map(|signal| signal as i32).collect(),
        bound_to: is_bound.then(|| getpid().as_raw_pid()),
        ignores_pipe: was_ignored(Signal::SIGPIPE),
    };
    channel::pass(channel, &serde_json::to_vec(&go)?, io::stdin().as_fd())
}

/// Why the shim, which has ended, could not become the command, if that is so.
pub fn failure(channel: &OwnedFd) -> Option<io::Error> {
    let code = channel::receive_now(channel, 4).ok()?;
    Some(io::Error::from_raw_os_error(i32::from_ne_bytes(code.try_into().ok()?)))
}

/// The shim itself. Returns only if it cannot become the command.
pub fn main(mut command: impl Iterator<Item = OsString>) -> Option<()> {
    // Its file is called `/proc/self/exe`. By this name, it does not count as work that goes on.
    process::set_name(c"serializer");
    // A copy, because the command's stdin takes the place of this one. The exec closes it.
    let channel = io::stdin().as_fd().try_clone_to_owned().ok()?;
    let program = command.next()?;
    let (go, stdin) = channel::receive_with_file(&channel).ok()?;
    let go: Go = serde_json::from_slice(&go).ok()?;
    if let Some(parent) = go.bound_to {
        process::end_with_parent(Pid::from_raw(parent)?).ok()?;
    }
    let unblocked: SigSet =
        go.unblocked.iter().filter_map(|signal| Signal::try_from(*signal).ok()).collect();
    let _ = unblocked.thread_unblock();
    let error = if go.ignores_pipe {
        exec_as_it_is(program, command, go.variables, stdin)
    } else {
        Command::new(program).args(command).envs(go.variables).stdin(stdin).exec()
    };
    let code = error.raw_os_error().unwrap_or(rustix::io::Errno::INVAL.raw_os_error());
    channel::send(&channel, &code.to_ne_bytes()).ok()
}
