//! The process that becomes the command: it waits for the go message, and then replaces itself (exec), so that the PID stays.
//! When its connection is closed without one, because whoever started it is dead, it ends.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{dup2_stdin, execvpe};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recv, recvmsg, send, sendmsg,
};
use rustix::process::{Pid, getpid, getppid, set_parent_process_death_signal};

use super::signals::is_pipe_ignored;

/// What this process is called on its command line.
pub const NAME: &str = "exec-locked";

/// The largest go message.
const MAX_MESSAGE: usize = 16 * 1024;

/// What the go message brings.
struct Go {
    stdin: OwnedFd,
    signals: SigSet,
    environment: Vec<(OsString, OsString)>,
    /// Who has started it, if it is to end with that process.
    bound_to: Option<i32>,
    /// Whether the command ignores SIGPIPE.
    ignores_pipe: bool,
}

/// Stands in the go message of a command that is to end with who started it, before the PID of that one.
const BOUND: &str = "bound=";

/// Stands there if the command ignores SIGPIPE.
const IGNORES_PIPE: &str = "ignores-pipe";

/// Sends the go message, with our stdin. `signals` are to be blocked no longer. A command that `is_bound` is killed when this
/// process ends.
pub fn go(channel: &OwnedFd, environment: &[String], signals: &SigSet, is_bound: bool) -> io::Result<()> {
    // Never empty, which would look like the end of the connection.
    let signals: String = signals.iter().map(|signal| format!(" {}", signal as i32)).collect();
    let bound = if is_bound { format!(" {BOUND}{}", getpid()) } else { String::new() };
    let pipe = if is_pipe_ignored() { format!(" {IGNORES_PIPE}") } else { String::new() };
    let message = format!("go{bound}{pipe}{signals}\0{}", environment.join("\0"));
    if message.len() > MAX_MESSAGE {
        return Err(io::Error::from(io::ErrorKind::ArgumentListTooLong));
    }
    let stdin = io::stdin();
    let stdin = [stdin.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&stdin));
    sendmsg(channel, &[IoSlice::new(message.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Why the shim, which has ended, could not become the command, if that is so.
pub fn failure(channel: &OwnedFd) -> Option<io::Error> {
    let mut code = [0; 4];
    let (_, length) = recv(channel, &mut code, RecvFlags::DONTWAIT).ok()?;
    (length == code.len()).then(|| io::Error::from_raw_os_error(i32::from_ne_bytes(code)))
}

/// The shim itself.
pub fn main(mut command: impl Iterator<Item = OsString>) -> ExitCode {
    // Its file is called `/proc/self/exe`; and who looks for work that goes on must know that this is none.
    let _ = rustix::thread::set_name(c"serializer");
    // A copy, because the command's stdin takes the place of this one. It is closed by the exec.
    let channel = io::stdin().as_fd().try_clone_to_owned();
    let (Ok(channel), Some(program)) = (channel, command.next()) else { return super::helper::not_by_hand(NAME) };
    let go = match receive(&channel) {
        Ok(Some(go)) => go,
        Ok(None) => return ExitCode::FAILURE,
        Err(_) => return super::helper::not_by_hand(NAME),
    };
    if let Some(parent) = go.bound_to {
        // Nobody would renew its lease then. The thread that has made this process is the main one, which ends last.
        let _ = set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        if getppid().map(Pid::as_raw_pid) != Some(parent) {
            return ExitCode::FAILURE;
        }
    }
    let _ = go.signals.thread_unblock();
    let error = if go.ignores_pipe {
        exec_as_it_is(program, command, go)
    } else {
        Command::new(program).args(command).envs(go.environment).stdin(go.stdin).exec()
    };
    let code = error.raw_os_error().unwrap_or(rustix::io::Errno::INVAL.raw_os_error());
    let _ = send(&channel, &code.to_ne_bytes(), SendFlags::NOSIGNAL);
    ExitCode::FAILURE
}

/// Becomes the command with SIGPIPE ignored, as it is in this process. std's `exec` always resets that.
fn exec_as_it_is(program: OsString, arguments: impl Iterator<Item = OsString>, go: Go) -> io::Error {
    let text = |word: OsString| CString::new(word.into_vec());
    let variable = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        text(name)
    };
    let is_kept = |name: &OsString| go.environment.iter().all(|(other, _)| other != name);
    let kept: Vec<_> = std::env::vars_os().filter(|(name, _)| is_kept(name)).collect();
    let words: Result<Vec<_>, _> = std::iter::once(program).chain(arguments).map(text).collect();
    let environment: Result<Vec<_>, _> = kept.into_iter().chain(go.environment).map(variable).collect();
    let (Ok(words), Ok(environment)) = (words, environment) else { return io::ErrorKind::InvalidInput.into() };
    match dup2_stdin(go.stdin).and_then(|()| execvpe(&words[0], &words, &environment)) {
        Err(error) => error.into(),
        Ok(never) => match never {},
    }
}

fn receive(channel: &OwnedFd) -> io::Result<Option<Go>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut message = vec![0; MAX_MESSAGE];
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(channel, &mut [IoSliceMut::new(&mut message)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let descriptors = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let is_whole = !received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    let stdin = descriptors.filter(|_| is_whole).ok_or_else(|| io::Error::other("it was cut"))?;
    let message = &message[..received.bytes];
    let numbers = String::from_utf8_lossy(message.split(|byte| *byte == 0).next().unwrap_or_default());
    let signals = numbers.split(' ').filter_map(|number| Signal::try_from(number.parse::<i32>().ok()?).ok()).collect();
    let environment = message.split(|byte| *byte == 0).filter_map(|variable| {
        let variable = OsStr::from_bytes(variable).as_bytes();
        let equals = variable.iter().position(|byte| *byte == b'=')?;
        let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        Some((text(&variable[..equals]), text(&variable[equals + 1..])))
    });
    let bound_to = numbers.split(' ').find_map(|word| word.strip_prefix(BOUND)?.parse().ok());
    let ignores_pipe = numbers.split(' ').any(|word| word == IGNORES_PIPE);
    Ok(Some(Go { stdin, signals, environment: environment.collect(), bound_to, ignores_pipe }))
}
