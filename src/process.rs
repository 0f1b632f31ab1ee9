//! Looking at one process, cheaply and without being fooled: the mechanism under [`crate::verdict`].
//!
//! A pidfd is asked first (2 µs, not fooled by zombies and thread ids, not hidden by `hidepid`); `/proc` where it cannot answer.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FsWord, fstat, fstatfs};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open, test_kill_process};
use rustix::time::{ClockId, clock_gettime};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

use crate::owner::Instance;
use crate::printable;

/// `PIDFS_MAGIC` of `linux/magic.h`: only there is a pidfd's inode number an identity.
const PIDFS_MAGIC: FsWord = 0x5049_4446;

/// The inode number of the first PID namespace (`PROC_PID_INIT_INO` of `linux/proc_ns.h`), where PID 1 never ends.
pub const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// What a look at a PID found.
#[derive(Debug)]
pub enum Observation {
    /// There is no such process.
    Gone,
    /// The number is the id of a thread of another process.
    Thread,
    /// It has ended, and only waits for its parent to notice (a zombie).
    Ended,
    /// It runs, or it could not be proved that it does not.
    Running(Process),
}

/// A process that runs.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: Option<OwnedFd>,
    /// Which process of that PID.
    pub instance: Instance,
}

impl Process {
    /// Its number, which may be another's once it has been reaped.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable when the process has ended; `None` where the kernel gives no pidfd.
    pub fn ended_fd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// The same process.
    pub fn try_clone(&self) -> Option<Self> {
        Some(Self { pid: self.pid, pidfd: Some(self.pidfd.as_ref()?.try_clone().ok()?), instance: self.instance })
    }

    /// Whether it has ended since it was observed; an unclear answer counts as not ended.
    pub fn has_ended(&self) -> bool {
        self.pidfd.as_ref().is_some_and(is_readable)
    }
}

fn is_readable(pidfd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::IN)
}

/// Looks at `pid` as this PID namespace knows it.
pub fn observe(pid: Pid) -> Observation {
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) if is_readable(&pidfd) => Observation::Ended,
        Ok(pidfd) => {
            let instance = Instance { start: start_time(pid), pidfd: inode(&pidfd) };
            // The PID may have been reused between the two looks: then the start time is another process's.
            if is_readable(&pidfd) {
                return Observation::Ended;
            }
            Observation::Running(Process { pid, pidfd: Some(pidfd), instance })
        }
        Err(Errno::SRCH) => Observation::Gone,
        // EINVAL or, since Linux 6.16, ENOENT: alive, but not the leader of a thread group.
        Err(_) if is_thread(pid) => Observation::Thread,
        // Without pidfds (ENOSYS, or EPERM of a seccomp filter) a zombie cannot be told from a process whose main
        // thread has ended, so only absence counts.
        Err(_) if test_kill_process(pid) == Err(Errno::SRCH) => Observation::Gone,
        Err(_) => Observation::Running(Process { pid, pidfd: None, instance: Instance { start: start_time(pid), pidfd: None } }),
    }
}

/// Whether certainly this process of that PID runs.
pub fn is_running((pid, instance): (Pid, Instance)) -> bool {
    matches!(observe(pid), Observation::Running(process) if instance.same_as(process.instance) == Some(true))
}

fn inode(pidfd: &OwnedFd) -> Option<u64> {
    (fstatfs(pidfd).ok()?.f_type == PIDFS_MAGIC).then(|| fstat(pidfd).ok().map(|stat| stat.st_ino))?
}

/// What `/proc` says about a PID. Nothing where it is mounted for another PID namespace (`unshare --pid` alone), in which
/// the number is another process's.
fn read_proc(pid: Pid, name: &str) -> Option<Vec<u8>> {
    static COUNTS_AS_WE_DO: LazyLock<bool> =
        LazyLock::new(|| fs::read_link("/proc/self").is_ok_and(|link| link.as_os_str() == getpid().to_string().as_str()));
    COUNTS_AS_WE_DO.then(|| fs::read(format!("/proc/{pid}/{name}")).ok())?
}

/// The signals that were sent to a process and not yet taken by it, as a bit set; `None` where `/proc` does not tell.
pub fn pending_signals(pid: Pid) -> Option<u64> {
    let status = read_proc(pid, "status")?;
    let status = String::from_utf8_lossy(&status);
    let bits = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"))?;
    u64::from_str_radix(bits.trim(), 16).ok()
}

fn is_thread(pid: Pid) -> bool {
    let Some(status) = read_proc(pid, "status") else { return false };
    let status = String::from_utf8_lossy(&status);
    let group = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    group.is_some_and(|group| group.trim() != pid.to_string())
}

/// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`, see proc(5).
fn start_time(pid: Pid) -> Option<u64> {
    stat_field(pid, 22)
}

/// The short name of a process (`comm`).
pub fn name(pid: Pid) -> Option<Vec<u8>> {
    read_proc(pid, "comm")
}

/// Whether `pid` is this process, its parent, or the parent of that, and so on.
pub fn is_ancestor(pid: Pid) -> bool {
    has_ancestor(getpid(), pid)
}

/// Whether `wanted` is `pid`, its parent, or the parent of that, and so on.
pub fn has_ancestor(pid: Pid, wanted: Pid) -> bool {
    has_ancestor_among(pid, &HashSet::from([wanted]))
}

/// Whether it is one of these, or has come from one of them.
pub fn has_ancestor_among(pid: Pid, wanted: &HashSet<Pid>) -> bool {
    // More generations than there are in practice; processes may come and go while one looks.
    std::iter::successors(Some(pid), |child| parent(*child)).take(64).any(|ancestor| wanted.contains(&ancestor))
}

/// All that `pid` has started or adopted, and what those have, and so on, as far as `/proc` tells. Reads all of it.
pub fn descendants_of(pid: Pid) -> Vec<Pid> {
    descendants_of_all(&[pid])
}

/// The same for all of these, of which some may have started others.
pub fn descendants_of_all(pids: &[Pid]) -> Vec<Pid> {
    let listed = fs::read_dir("/proc").into_iter().flatten().flatten();
    let listed = listed.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    let mut all: Vec<(Pid, Option<Pid>)> = listed.map(|pid| (pid, parent(pid))).collect();
    let mut found = pids.to_vec();
    let mut seen = 0;
    // Each round finds the children of one; nobody is found twice.
    while let Some(ancestor) = found.get(seen).copied() {
        seen += 1;
        found.extend(all.extract_if(.., |(_, parent)| *parent == Some(ancestor)).map(|(pid, _)| pid));
    }
    found.split_off(pids.len())
}

/// What this process's main thread has started or adopted; `None` where `/proc` does not tell (`CONFIG_PROC_CHILDREN`), or tells numbers
/// of another PID namespace, by which others would be signalled.
pub fn children() -> Option<Vec<Pid>> {
    let pid = getpid();
    let children = read_proc(pid, &format!("task/{pid}/children"))?;
    let children = String::from_utf8_lossy(&children);
    Some(children.split_ascii_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect())
}

/// The parent of a process: field 4.
pub fn parent(pid: Pid) -> Option<Pid> {
    stat_field(pid, 4).and_then(Pid::from_raw)
}

fn stat_field<T: FromStr>(pid: Pid, field: usize) -> Option<T> {
    let stat = read_proc(pid, "stat")?;
    let stat = String::from_utf8_lossy(&stat);
    // The name in field 2 may itself hold spaces and parentheses, so count from the last one; field 3 comes next.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(field - 3)?.parse().ok()
}

/// Milliseconds since this machine has booted, sleep included; nobody sets this clock.
pub fn since_boot() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// When a process with that start time started, by the wall clock. Wrong by as much as the clock was set since.
pub fn wall_clock(start: u64) -> Option<SystemTime> {
    let ticks = rustix::param::clock_ticks_per_second();
    let since_boot = Duration::from_millis(start.checked_mul(1000)? / ticks);
    let uptime = clock_gettime(ClockId::Boottime);
    let uptime = Duration::new(u64::try_from(uptime.tv_sec).ok()?, u32::try_from(uptime.tv_nsec).ok()?);
    SystemTime::now().checked_sub(uptime.checked_sub(since_boot)?)
}

/// The arguments of a process, or an empty list where they cannot be read.
pub fn arguments(pid: Pid) -> Vec<String> {
    split_arguments(&read_proc(pid, "cmdline").unwrap_or_default())
}

fn split_arguments(cmdline: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(cmdline).split_terminator('\0').map(str::to_owned).collect()
}

/// Whether a process runs, or may run, the Python script `script`, such as `/venv/bin/python /venv/bin/serializer lock`.
///
/// Reads every process's name, without more (5 µs each): a hand-off waits for the answer. The arguments of others are not
/// read, because that waits for a process that hangs in its memory's lock.
///
/// # Errors
/// When the processes cannot be listed.
pub fn any_runs_python_script(script: &str) -> std::io::Result<bool> {
    // Whoever is gone does not run it; of whom nothing can be read, it is not known.
    let is_gone =
        |error: std::io::Error| error.kind() == ErrorKind::NotFound || Errno::from_io_error(&error) == Some(Errno::SRCH);
    // Not through `read_proc`: in whatever namespace these numbers count, they are looked up where they were listed.
    let may_run_it = |pid: Pid| {
        let name = match fs::read(format!("/proc/{pid}/comm")) {
            Ok(name) => name,
            Err(error) => return !is_gone(error),
        };
        // The kernel calls an interpreted script by its own name, unless it was given to the interpreter.
        if name.trim_ascii_end() != script.as_bytes() && !name.starts_with(b"python") {
            return false;
        }
        let arguments = match fs::read(format!("/proc/{pid}/cmdline")) {
            Ok(cmdline) => split_arguments(&cmdline),
            Err(error) => return !is_gone(error),
        };
        let is_python = arguments.first().is_some_and(|program| printable::base_name(program).starts_with("python"));
        is_python && arguments.iter().skip(1).any(|argument| printable::base_name(argument) == script)
    };
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        if pid.is_some_and(may_run_it) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Finds the process whose pidfd has that inode number, under whatever number it is known here. `None` only if it is certain
/// that there is none: all processes of the machine are seen from here.
///
/// Opens a pidfd for every process (some microseconds each).
///
/// # Errors
/// When it is not found, and may exist all the same.
pub fn find_by_inode(wanted: u64) -> Result<Option<Process>, NoProcessTable> {
    let mut sees_all = sees_all_processes();
    for entry in fs::read_dir("/proc").map_err(|_| NoProcessTable)? {
        let entry = entry.map_err(|_| NoProcessTable)?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else { continue };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => match inode(&pidfd) {
                Some(found) if found == wanted && !is_readable(&pidfd) => {
                    let instance = Instance { start: start_time(pid), pidfd: Some(found) };
                    return Ok(Some(Process { pid, pidfd: Some(pidfd), instance }));
                }
                found => sees_all &= found.is_some(),
            },
            Err(Errno::SRCH) => {}
            Err(_) => sees_all = false,
        }
    }
    if sees_all { Ok(None) } else { Err(NoProcessTable) }
}

/// Whether `/proc` lists every process: it is that of the first PID namespace, and hides nobody (`hidepid`).
fn sees_all_processes() -> bool {
    let namespace = fs::metadata("/proc/self/ns/pid").map(|metadata| std::os::unix::fs::MetadataExt::ino(&metadata));
    // PID 1 is root's, and would be the first to be hidden.
    namespace.is_ok_and(|inode| inode == FIRST_PID_NAMESPACE) && read_proc(Pid::INIT, "stat").is_some()
}

/// The processes of this machine cannot be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the process table cannot be read")]
pub struct NoProcessTable;

/// A process that belongs to a pipeline run.
#[derive(Debug)]
pub struct Relative {
    /// Its PID.
    pub pid: Pid,
    /// Its command line, as people may read it.
    pub command: String,
    /// The process, to wait for.
    pub process: Process,
}

/// Finds a process that does work and runs as `uid` with `variable=value` in its environment: neither one of
/// our own ancestors nor another `serializer`. `None` when there is none.
///
/// Reads all of `/proc` (milliseconds), so ask only where a record names a run whose owner is dead.
///
/// # Errors
/// When the process table cannot be read, or counts otherwise than this process does.
pub fn find_by_environment(variable: &str, value: &str, uid: u32) -> Result<Option<Relative>, NoProcessTable> {
    read_proc(getpid(), "stat").ok_or(NoProcessTable)?;
    let what = ProcessRefreshKind::nothing()
        .with_environ(UpdateKind::Always)
        .with_user(UpdateKind::Always)
        .with_cmd(UpdateKind::Always)
        .without_tasks();
    let mut system = System::new().map_err(|_| NoProcessTable)?;
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    let wanted = format!("{variable}={value}");
    let ancestors = ancestors(&system);
    let relative = |process: &sysinfo::Process| {
        let pid = Pid::from_raw(i32::try_from(process.pid().as_u32()).ok()?)?;
        // Neither what waits here, nor other waiters of that run: they would wait for each other.
        let does_work = !ancestors.contains(&process.pid()) && process.name() != "serializer";
        let is_related = does_work
            && process.user_id().is_some_and(|user| **user == uid)
            && process.environ().iter().any(|entry| entry.to_str() == Some(&wanted));
        let Observation::Running(running) = is_related.then(|| observe(pid))? else { return None };
        let arguments: Vec<String> = process.cmd().iter().map(|word| word.to_string_lossy().into_owned()).collect();
        Some(Relative { pid, command: printable::command_line(&arguments), process: running })
    };
    // The oldest one, which the others probably come from.
    Ok(system.processes().values().filter_map(relative).min_by_key(|relative| relative.pid.as_raw_pid()))
}

/// This process, its parent and so on.
fn ancestors(system: &System) -> Vec<sysinfo::Pid> {
    let mut line = vec![sysinfo::Pid::from_u32(std::process::id())];
    // Processes may come and go while the table is read, so a circle is not impossible.
    while let Some(parent) = line.last().and_then(|last| system.process(*last)?.parent())
        && !line.contains(&parent)
    {
        line.push(parent);
    }
    line
}
