//! Processes by `kill(0)` and sysinfo.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, setsid, test_kill_process};
use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, UpdateKind};

use crate::sys::identity::ProcessIdentity;
use crate::sys::process::{Absence, parse_pid, table};
use crate::sys::{channel, text};

/// The only namespace, of all processes. Linux never uses this number.
pub const FIRST_PID_NAMESPACE: u64 = 0;

pub const HAS_PIDFDS: bool = false;

const GUARD: &str = "end-with-parent";

#[derive(Clone, Debug)]
pub struct Process {
    pid: Pid,
    pub instance: ProcessIdentity,
}

impl Process {
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// `None`: only polling shows that a process has ended.
    pub fn ended_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    pub fn has_ended(&self) -> bool {
        !start(self.pid).is_ok_and(|start| self.instance.same_as(start) != Some(false))
    }

    /// Sends a signal to this process, unless its PID is reused just now. Returns whether it did.
    pub fn signal(&self, signal: Signal) -> bool {
        !self.has_ended() && kill_process(self.pid, signal).is_ok()
    }
}

pub fn observe(pid: Pid) -> Result<Process, Absence> {
    Ok(Process { pid, instance: start(pid)? })
}

fn start(pid: Pid) -> Result<ProcessIdentity, Absence> {
    let is_gone = || test_kill_process(pid) == Err(Errno::SRCH);
    if is_gone() {
        return Err(Absence::Gone);
    }
    let look = |one: &sysinfo::Process| (one.status(), one.start_time());
    match of(pid, ProcessRefreshKind::nothing(), look) {
        Some((ProcessStatus::Zombie | ProcessStatus::Dead, _)) => Err(Absence::Ended),
        // It has ended meanwhile.
        None if is_gone() => Err(Absence::Gone),
        // macOS hides another user's process.
        found => {
            let start = found.map(|(_, start)| start).filter(|start| *start > 0);
            Ok(ProcessIdentity { start, pidfd: None })
        }
    }
}

fn of<T>(pid: Pid, what: ProcessRefreshKind, look: impl Fn(&sysinfo::Process) -> T) -> Option<T> {
    let pid = sysinfo::Pid::from_u32(pid.as_raw_pid().unsigned_abs());
    let system = table(ProcessesToUpdate::Some(&[pid]), what).ok()?;
    system.process(pid).map(look)
}

fn pid_of(pid: sysinfo::Pid) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid.as_u32()).ok()?)
}

pub fn why_unidentifiable() -> io::Error {
    io::Error::other("the system shows neither its start time nor the id of this boot")
}

pub fn listed() -> io::Result<Vec<Pid>> {
    let system = table(ProcessesToUpdate::All, ProcessRefreshKind::nothing())?;
    Ok(system.processes().keys().copied().filter_map(pid_of).collect())
}

pub fn parent(pid: Pid) -> Option<Pid> {
    of(pid, ProcessRefreshKind::nothing(), sysinfo::Process::parent)?.and_then(pid_of)
}

pub fn name(pid: Pid) -> Option<Vec<u8>> {
    of(pid, ProcessRefreshKind::nothing(), |one| one.name().as_encoded_bytes().to_vec())
}

pub fn arguments(pid: Pid) -> Vec<String> {
    let what = ProcessRefreshKind::nothing().with_cmd(UpdateKind::Always);
    let words = |one: &sysinfo::Process| {
        one.cmd().iter().map(|word| word.to_string_lossy().into_owned()).collect()
    };
    let mut words: Vec<String> = of(pid, what, words).unwrap_or_default();
    // A framework's Python: `…/Python.app/Contents/MacOS/Python`.
    if let Some(program) = words.first_mut().filter(|it| text::base_name(it) == "Python") {
        *program = "python".to_owned();
    }
    words
}

/// Empty: this process adopts no orphans, and knows its own children.
pub fn children() -> Vec<Pid> {
    Vec::new()
}

/// Whether a process may be related although its environment does not show it: macOS hides the
/// environment of its own programs. An orphaned shell may be running the script of an ended owner.
pub fn may_hide_its_environment(process: &sysinfo::Process) -> bool {
    process.environ().is_empty()
        && process.parent().is_none_or(|parent| parent.as_u32() <= 1)
        && process.name().to_str().is_some_and(|name| text::SHELLS.contains(&name))
}

/// Orphans cannot be adopted, so descendants are found only while their parents run.
pub fn adopt_orphans(is_needed: bool) -> io::Result<()> {
    let why = "this system does not report the end of processes that a command leaves behind";
    if is_needed { Err(io::Error::new(io::ErrorKind::Unsupported, why)) } else { Ok(()) }
}

/// From now on, and after an exec, this process is killed when its parent ends: a second process
/// waits until the parent closes its end of our stdin.
pub fn end_with_parent(parent: Pid) -> io::Result<()> {
    let mut guard = Command::new(this_program());
    guard
        .arg(GUARD)
        .arg(getpid().to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

pub fn help() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let guarded = (arguments.next()? == GUARD).then(|| arguments.next())??;
    let guarded = parse_pid(guarded.to_str()?)?;
    // Leaves the command's terminal and process group.
    let _ = setsid();
    let channel = io::stdin().as_fd().try_clone_to_owned().ok()?;
    // The parent sends nothing: this returns at its end.
    let _ = channel::receive(&channel, 0);
    // While it is our parent, it is not reaped, so its PID is not reused.
    if getppid() == Some(guarded) {
        let _ = kill_process(guarded, Signal::KILL);
    }
    Some(ExitCode::SUCCESS)
}

pub fn set_name(_name: &CStr) {}

/// The file of this program, or what it was started as.
pub fn this_program() -> PathBuf {
    std::env::current_exe()
        .unwrap_or_else(|_| std::env::args_os().next().unwrap_or_default().into())
}

/// Unsupported: containers have no processes here.
pub fn find_by_inode(_wanted: u64) -> io::Result<Option<Process>> {
    Err(io::ErrorKind::Unsupported.into())
}
