//! Looking at processes, cheaply and without being fooled: the mechanism under
//! [`crate::lock::staleness`].
//!
//! A pidfd is asked first (2 µs, not fooled by zombies and thread ids, not hidden by `hidepid`);
//! `/proc` where it cannot answer.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::LazyLock;

use nix::unistd::getsid;
use rustix::fs::{FsWord, fstat, fstatfs};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open, test_kill_process};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

use crate::sys::identity::ProcessIdentity;
use crate::sys::poll::is_readable;
use crate::sys::text;

/// `PIDFS_MAGIC` of `linux/magic.h`: only there is a pidfd's inode number an identity.
const PIDFS_MAGIC: FsWord = 0x5049_4446;

/// The inode number of the first PID namespace (`PROC_PID_INIT_INO`), where PID 1 never ends.
pub const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// A process that runs.
#[derive(Clone, Debug)]
pub struct Process {
    pid: Pid,
    pidfd: Option<Rc<OwnedFd>>,
    /// Which process of that PID.
    pub instance: ProcessIdentity,
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

    /// Whether it has ended since it was observed; an unclear answer counts as not ended.
    pub fn has_ended(&self) -> bool {
        self.pidfd.as_ref().is_some_and(is_readable)
    }
}

/// Why no process of a PID runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Absence {
    #[error("its process is gone")]
    Gone,
    #[error("its process is gone (a thread has its id)")]
    Thread,
    #[error("its process has ended")]
    Ended,
}

/// Looks at `pid` as this PID namespace knows it. A zombie has ended; a process that cannot be
/// judged runs.
pub fn observe(pid: Pid) -> Result<Process, Absence> {
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) if is_readable(&pidfd) => return Err(Absence::Ended),
        Ok(pidfd) => Some(pidfd),
        Err(Errno::SRCH) => return Err(Absence::Gone),
        // EINVAL or, since Linux 6.16, ENOENT: alive, but not the leader of a thread group.
        Err(_) if status_field(pid, "Tgid:").is_some_and(|group| group != pid.to_string()) => {
            return Err(Absence::Thread);
        }
        // Without pidfds (ENOSYS, or EPERM of a seccomp filter), a zombie looks like a
        // process after the end of its main thread, so only absence counts.
        Err(_) if test_kill_process(pid) == Err(Errno::SRCH) => return Err(Absence::Gone),
        Err(_) => None,
    };
    let process = Process {
        pid,
        instance: ProcessIdentity {
            start: stat_field(pid, 22),
            pidfd: pidfd.as_ref().and_then(inode),
        },
        pidfd: pidfd.map(Rc::new),
    };
    // The PID may have been reused between the two looks: then the start time is another process's.
    if process.has_ended() { Err(Absence::Ended) } else { Ok(process) }
}

/// The process `pid`, unless it is proved that none runs.
pub fn running(pid: Pid) -> Option<Process> {
    observe(pid).ok()
}

/// Whether certainly this process of that PID runs.
pub fn is_running((pid, instance): (Pid, ProcessIdentity)) -> bool {
    running(pid).is_some_and(|process| instance.same_as(process.instance) == Some(true))
}

fn inode(pidfd: &OwnedFd) -> Option<u64> {
    (fstatfs(pidfd).ok()?.f_type == PIDFS_MAGIC)
        .then(|| fstat(pidfd).ok().map(|stat| stat.st_ino))?
}

/// The PIDs in `/proc`, in whatever PID namespace they count.
fn listed() -> io::Result<Vec<Pid>> {
    let pid = |entry: fs::DirEntry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?);
    fs::read_dir("/proc")?.filter_map(|entry| entry.map(pid).transpose()).collect()
}

/// What `/proc` says about a PID. Nothing where it is mounted for another PID namespace (`unshare
/// --pid` alone), in which the number is another process's.
fn read_proc(pid: Pid, name: &str) -> Option<Vec<u8>> {
    static COUNTS_AS_WE_DO: LazyLock<bool> = LazyLock::new(|| {
        fs::read_link("/proc/self")
            .is_ok_and(|link| link.as_os_str() == getpid().to_string().as_str())
    });
    COUNTS_AS_WE_DO.then(|| fs::read(format!("/proc/{pid}/{name}")).ok())?
}

fn status_field(pid: Pid, name: &str) -> Option<String> {
    let status = read_proc(pid, "status")?;
    let status = String::from_utf8_lossy(&status);
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
}

/// A field of `/proc/PID/stat`, see proc(5).
fn stat_field<T: FromStr>(pid: Pid, field: usize) -> Option<T> {
    let stat = read_proc(pid, "stat")?;
    let stat = String::from_utf8_lossy(&stat);
    // The name in field 2 may hold spaces and parentheses. Field 3 follows its last one.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(field - 3)?.parse().ok()
}

/// The parent of a process.
pub fn parent(pid: Pid) -> Option<Pid> {
    stat_field(pid, 4).and_then(Pid::from_raw)
}

/// Whether a parent has certainly adopted this process: a child is in its parent's session, unless
/// it has begun one.
pub fn has_adopted_us(parent: Pid) -> bool {
    let ours = getsid(None).ok().filter(|session| *session != nix::unistd::getpid());
    let theirs = getsid(Some(nix::unistd::Pid::from_raw(parent.as_raw_pid()))).ok();
    ours.zip(theirs).is_some_and(|(ours, theirs)| ours != theirs)
}

/// The short name of a process (`comm`).
pub fn name(pid: Pid) -> Option<Vec<u8>> {
    Some(read_proc(pid, "comm")?.trim_ascii_end().to_vec())
}

/// The arguments of a process, or an empty list where they cannot be read.
pub fn arguments(pid: Pid) -> Vec<String> {
    split_arguments(&read_proc(pid, "cmdline").unwrap_or_default())
}

fn split_arguments(cmdline: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(cmdline).split_terminator('\0').map(str::to_owned).collect()
}

/// Whether `pid` is this process, its parent, or the parent of that, and so on.
pub fn is_ancestor(pid: Pid) -> bool {
    has_ancestor_among(getpid(), &HashSet::from([pid]))
}

/// Whether it is one of these, or has come from one of them.
pub fn has_ancestor_among(pid: Pid, wanted: &HashSet<Pid>) -> bool {
    // More generations than there are in practice; processes may come and go while one looks.
    std::iter::successors(Some(pid), |child| parent(*child))
        .take(64)
        .any(|ancestor| wanted.contains(&ancestor))
}

/// All descendants of these, as far as `/proc` tells. Reads all of it.
pub fn descendants_of_all(pids: &[Pid]) -> Vec<Pid> {
    let mut all: Vec<_> =
        listed().unwrap_or_default().into_iter().map(|pid| (pid, parent(pid))).collect();
    let mut found = pids.to_vec();
    let mut seen = 0;
    // Each round finds the children of one process, and no process is found twice.
    while let Some(ancestor) = found.get(seen).copied() {
        seen += 1;
        found.extend(
            all.extract_if(.., |(_, parent)| *parent == Some(ancestor)).map(|(pid, _)| pid),
        );
    }
    found.split_off(pids.len())
}

/// The children of this process's main thread, as far as `/proc` tells (`CONFIG_PROC_CHILDREN`).
pub fn children() -> Vec<Pid> {
    let pid = getpid();
    let children = read_proc(pid, &format!("task/{pid}/children")).unwrap_or_default();
    let children = String::from_utf8_lossy(&children);
    children.split_ascii_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// Whether a process runs, or may run, the Python script `script`. Reads every process's name (5 µs
/// each), and only a candidate's arguments: that waits for a process that hangs. Fails when the
/// processes cannot be listed.
pub fn any_runs_python_script(script: &str) -> io::Result<bool> {
    // Not through `read_proc`: the numbers count where they were listed.
    let read = |pid: Pid, name: &str| fs::read(format!("/proc/{pid}/{name}"));
    let runs_it = |pid: Pid| -> io::Result<bool> {
        let name = read(pid, "comm")?;
        // The kernel names it after the script, or after the interpreter that was given it.
        if name.trim_ascii_end() != script.as_bytes() && !name.starts_with(b"python") {
            return Ok(false);
        }
        let arguments = split_arguments(&read(pid, "cmdline")?);
        let is_python =
            arguments.first().is_some_and(|program| text::base_name(program).starts_with("python"));
        Ok(is_python && text::program(&arguments).is_some_and(|(name, _)| name == script))
    };
    // An unreadable process might be running it.
    Ok(listed()?.into_iter().any(|pid| runs_it(pid).unwrap_or(true)))
}

/// Finds the process by the inode number of its pidfd, by opening a pidfd for every process (some
/// microseconds each). `None` only if it is certain that it does not exist, because all processes
/// of the machine are seen from here.
pub fn find_by_inode(wanted: u64) -> io::Result<Option<Process>> {
    // `/proc` shows the first PID namespace, and with `hidepid` would hide PID 1, which is root's.
    let is_first = fs::metadata("/proc/self/ns/pid")
        .is_ok_and(|namespace| namespace.ino() == FIRST_PID_NAMESPACE);
    let mut sees_all = is_first && read_proc(Pid::INIT, "stat").is_some();
    for pid in listed()? {
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => match inode(&pidfd) {
                // If it is not found now, it has just ended.
                Some(found) if found == wanted => {
                    return Ok(running(pid).filter(|it| it.instance.pidfd == Some(wanted)));
                }
                found => sees_all &= found.is_some(),
            },
            Err(Errno::SRCH) => {}
            Err(_) => sees_all = false,
        }
    }
    if sees_all { Ok(None) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Finds the oldest process that runs as `uid` with `variable=value` in its environment, and its
/// command line for people. Neither an ancestor of this process nor another `serializer` counts:
/// they would wait for each other. Reads all of `/proc` (milliseconds). Fails when that cannot be
/// read, or counts otherwise than this process does.
pub fn find_by_environment(
    variable: &str,
    value: &str,
    uid: u32,
) -> io::Result<Option<(Process, String)>> {
    read_proc(getpid(), "stat").ok_or(io::ErrorKind::NotFound)?;
    let what = ProcessRefreshKind::nothing().without_tasks().with_environ(UpdateKind::Always);
    let what = what.with_user(UpdateKind::Always).with_cmd(UpdateKind::Always);
    let mut system = System::new().map_err(io::Error::other)?;
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    let wanted = format!("{variable}={value}");
    let related = |one: &sysinfo::Process| {
        let pid = Pid::from_raw(i32::try_from(one.pid().as_u32()).ok()?)?;
        let is_related = one.user_id().is_some_and(|user| **user == uid)
            && one.environ().iter().any(|entry| entry.to_str() == Some(&wanted))
            && one.name() != "serializer"
            && !is_ancestor(pid);
        let process = is_related.then(|| running(pid))??;
        let arguments: Vec<String> =
            one.cmd().iter().map(|word| word.to_string_lossy().into_owned()).collect();
        Some((process, text::command_line(&arguments)))
    };
    Ok(system
        .processes()
        .values()
        .filter_map(related)
        .min_by_key(|(process, _)| process.pid().as_raw_pid()))
}

/// A decimal PID from 1 to 2³¹−1, as the kernel knows them; no sign, no white space.
pub fn parse_pid(text: &str) -> Option<Pid> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|pid| *pid > 0).and_then(Pid::from_raw)
}
