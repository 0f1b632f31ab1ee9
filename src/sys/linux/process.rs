//! Processes by pidfds and `/proc`.
//!
//! A pidfd comes first: 2 µs, right for zombies and thread ids, not hidden by `hidepid`.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::LazyLock;

use rustix::fs::{FsWord, fstat, fstatfs};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, pidfd_send_signal, set_child_subreaper,
    set_parent_process_death_signal, test_kill_process,
};

use super::identity::pid_namespace;
use crate::sys::identity::ProcessIdentity;
use crate::sys::poll::is_readable;
use crate::sys::process::{Absence, running};

/// `PIDFS_MAGIC` of `linux/magic.h`: only there is a pidfd's inode number an identity.
const PIDFS_MAGIC: FsWord = 0x5049_4446;

/// The inode number of the first PID namespace (`PROC_PID_INIT_INO`), where PID 1 never ends.
pub const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Whether a descriptor can tell that a process has ended.
pub const HAS_PIDFDS: bool = true;

#[derive(Clone, Debug)]
pub struct Process {
    pid: Pid,
    pidfd: Option<Rc<OwnedFd>>,
    pub instance: ProcessIdentity,
}

impl Process {
    /// Its number, which another process may get once this one is reaped.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable when the process has ended; `None` without pidfds.
    pub fn ended_fd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Whether it has ended since it was observed; `false` if unknown.
    pub fn has_ended(&self) -> bool {
        self.pidfd.as_ref().is_some_and(is_readable)
    }

    /// Sends a signal to exactly this process. Returns whether it was sent.
    pub fn signal(&self, signal: Signal) -> bool {
        self.ended_fd().is_some_and(|pidfd| pidfd_send_signal(pidfd, signal).is_ok())
    }
}

/// Inspects `pid`. A zombie has ended; an unreadable process counts as running.
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
    // If the PID was reused between the two reads, the start time is another process's.
    if process.has_ended() { Err(Absence::Ended) } else { Ok(process) }
}

fn inode(pidfd: &OwnedFd) -> Option<u64> {
    (fstatfs(pidfd).ok()?.f_type == PIDFS_MAGIC)
        .then(|| fstat(pidfd).ok().map(|stat| stat.st_ino))?
}

/// The PIDs in `/proc`, in the PID namespace that it is mounted for.
pub fn listed() -> io::Result<Vec<Pid>> {
    let pid = |entry: fs::DirEntry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?);
    fs::read_dir("/proc")?.filter_map(|entry| entry.map(pid).transpose()).collect()
}

/// A file of `/proc/PID`. `None` if `/proc` has the numbers of another PID namespace.
fn read_proc(pid: Pid, name: &str) -> Option<Vec<u8>> {
    static COUNTS_AS_WE_DO: LazyLock<bool> = LazyLock::new(|| {
        fs::read_link("/proc/self")
            .is_ok_and(|link| link.as_os_str() == getpid().to_string().as_str())
    });
    if !*COUNTS_AS_WE_DO {
        return None;
    }
    // The size of such a file is unknown; most are read at once.
    let mut content = Vec::with_capacity(4096);
    let file = File::open(format!("/proc/{pid}/{name}")).ok()?;
    file.take(u64::MAX).read_to_end(&mut content).ok()?;
    Some(content)
}

fn status_field(pid: Pid, name: &str) -> Option<String> {
    let status = read_proc(pid, "status")?;
    let status = String::from_utf8_lossy(&status);
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
}

fn stat_field<T: FromStr>(pid: Pid, field: usize) -> Option<T> {
    let stat = read_proc(pid, "stat")?;
    // The name in field 2 may hold spaces, parentheses and other bytes. Field 3 follows its end.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(field - 3)?.parse().ok()
}

pub fn why_unidentifiable() -> io::Error {
    fs::read("/proc/self/stat")
        .err()
        .filter(|error| error.raw_os_error() == Some(Errno::MFILE.raw_os_error()))
        .unwrap_or_else(|| io::Error::other("/proc is not mounted or not readable"))
}

pub fn parent(pid: Pid) -> Option<Pid> {
    stat_field(pid, 4).and_then(Pid::from_raw)
}

/// The short name of a process (`comm`).
pub fn name(pid: Pid) -> Option<Vec<u8>> {
    Some(read_proc(pid, "comm")?.trim_ascii_end().to_vec())
}

/// The arguments of a process, or an empty list if they cannot be read.
pub fn arguments(pid: Pid) -> Vec<String> {
    let cmdline = read_proc(pid, "cmdline").unwrap_or_default();
    String::from_utf8_lossy(&cmdline).split_terminator('\0').map(str::to_owned).collect()
}

/// The children of this process's main thread, if the kernel lists them (`CONFIG_PROC_CHILDREN`).
pub fn children() -> Vec<Pid> {
    let pid = getpid();
    let children = read_proc(pid, &format!("task/{pid}/children")).unwrap_or_default();
    let children = String::from_utf8_lossy(&children);
    children.split_ascii_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// Never: the environment of a user's own processes can be read here.
pub fn may_hide_its_environment(_process: &sysinfo::Process) -> bool {
    false
}

/// Lets the orphans of this process's descendants become its children.
pub fn adopt_orphans(_is_needed: bool) -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// From now on, and after an exec, this process is killed when its parent ends. Fails if `parent`
/// has ended. The main thread of the parent must have made this process, and end last.
pub fn end_with_parent(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Helpers of this module are not processes here.
pub fn help() -> Option<ExitCode> {
    None
}

/// Names this process: work that continues is looked for by names, too.
pub fn set_name(name: &CStr) {
    let _ = rustix::thread::set_name(name);
}

/// The file of this program, also after it was replaced.
pub fn this_program() -> PathBuf {
    "/proc/self/exe".into()
}

/// Finds the process by the inode number of its pidfd (some microseconds for each process). `None`
/// only if it is certain that it does not exist: all processes are seen from here.
pub fn find_by_inode(wanted: u64) -> io::Result<Option<Process>> {
    // `/proc` shows the first PID namespace, and with `hidepid` would hide PID 1, which is root's.
    let is_first = pid_namespace() == Some(FIRST_PID_NAMESPACE);
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
