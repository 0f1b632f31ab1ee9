//! The process that becomes the command: it waits for the go message, and then replaces itself
//! (exec), so that its PID stays. When its connection is closed without a message, because `run`
//! has died, it ends.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{dup2_stdin, execvpe};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{Pid, getpid, getppid, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use super::helper;
use super::signals::was_ignored;

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
    helper::pass(channel, &serde_json::to_vec(&go)?, io::stdin().as_fd())
}

/// Why the shim, which has ended, could not become the command, if that is so.
pub fn failure(channel: &OwnedFd) -> Option<io::Error> {
    let mut code = [0; 4];
    let (_, length) = recv(channel, &mut code, RecvFlags::DONTWAIT).ok()?;
    (length == code.len()).then(|| io::Error::from_raw_os_error(i32::from_ne_bytes(code)))
}

/// The shim itself.
pub fn main(mut command: impl Iterator<Item = OsString>) -> ExitCode {
    // Its file is called `/proc/self/exe`. By this name, it does not count as work that goes on.
    let _ = rustix::thread::set_name(c"serializer");
    // A copy, because the command's stdin takes the place of this one. The exec closes it.
    let channel = io::stdin().as_fd().try_clone_to_owned();
    let (Ok(channel), Some(program)) = (channel, command.next()) else { return ExitCode::FAILURE };
    let Ok((go, stdin)) = helper::receive(&channel) else { return ExitCode::FAILURE };
    let Ok(go) = serde_json::from_slice::<Go>(&go) else { return ExitCode::FAILURE };
    if let Some(parent) = go.bound_to {
        // The main thread of `run` has made this process, and ends last.
        let _ = set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        if getppid().map(Pid::as_raw_pid) != Some(parent) {
            return ExitCode::FAILURE;
        }
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
    let _ = send(&channel, &code.to_ne_bytes(), SendFlags::NOSIGNAL);
    ExitCode::FAILURE
}

/// Becomes the command with SIGPIPE ignored, as it is in this process. std's `exec` always resets
/// that.
fn exec_as_it_is(
    program: OsString,
    arguments: impl Iterator<Item = OsString>,
    own: Vec<(String, String)>,
    stdin: OwnedFd,
) -> io::Error {
    let text = |word: OsString| CString::new(word.into_vec());
    let words: Result<Vec<_>, _> = std::iter::once(program).chain(arguments).map(text).collect();
    let own = own.into_iter().map(|(name, value)| (name.into(), value.into()));
    let variables: BTreeMap<OsString, OsString> = std::env::vars_os().chain(own).collect();
    let variables =
        variables.into_iter().map(|(name, value)| text([name, value].join("=".as_ref())));
    let (Ok(words), Ok(variables)) = (words, variables.collect::<Result<Vec<_>, _>>()) else {
        return io::ErrorKind::InvalidInput.into();
    };
    match dup2_stdin(stdin).and_then(|()| execvpe(&words[0], &words, &variables)) {
        Err(error) => error.into(),
        Ok(never) => match never {},
    }
}
