//! Files, locks of files, and random numbers.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use nix::libc;
use rustix::fs::{
    AtFlags, CWD, MemfdFlags, Mode, OFlags, StatxFlags, linkat, memfd_create, openat, statx,
};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::sys::process;

/// The poll interval of the first waiter for a lock file while it cannot receive wake-ups.
pub const UNHEARD: Duration = Duration::from_secs(1);

/// Whether waiters for a lock file can queue: flocks are granted in the order of requests.
pub const KEEPS_ORDER: bool = true;

pub fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    // A request for so few bytes is never filled in part.
    getrandom(bytes, GetRandomFlags::empty())?;
    Ok(())
}

/// Completes a file without a name, and names it `path`: `false` if that exists, `None` without
/// such files.
pub fn link_unnamed(
    directory: &Path,
    path: &Path,
    mode: Mode,
    complete: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<Option<bool>> {
    match openat(CWD, directory, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
        Ok(fd) => {
            let file = File::from(fd);
            complete(&file)?;
            let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
            match linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW) {
                Ok(()) => Ok(Some(true)),
                Err(Errno::EXIST) => Ok(Some(false)),
                // Without /proc, or on a file system without links.
                Err(_) => Ok(None),
            }
        }
        // NFS and FAT answer EOPNOTSUPP, old kernels EISDIR.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A file without a name, which disappears when it is closed.
pub fn anonymous_file() -> io::Result<File> {
    Ok(File::from(memfd_create("input", MemfdFlags::CLOEXEC)?))
}

/// Asks a file server whether names in the directory have changed.
pub fn look_anew(directory: &Path) -> io::Result<()> {
    statx(CWD, directory, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS)?;
    Ok(())
}

/// Acquires the kind of lock that a file server uses for its clients' flocks; `false` while another
/// process has it. It belongs to the open file, not to the process.
pub fn lock_records(file: &File, exclusively: bool) -> io::Result<bool> {
    let whole = libc::flock {
        l_type: if exclusively { libc::F_WRLCK } else { libc::F_RDLCK } as _,
        l_whence: libc::SEEK_SET as _,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(true),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The processes that have, or wait for, a flock on the file with this inode number, in order, from
/// `/proc/locks` (proc(5)), as far as this PID namespace shows them. The device number is ignored:
/// it differs there on some file systems (btrfs).
pub fn flock_waiters(inode: u64) -> Vec<Pid> {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let pid = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().filter(|word| *word != "->").collect();
        let [_, "FLOCK", _, _, pid, place, ..] = words.as_slice() else { return None };
        let is_here = place.rsplit_once(':')?.1.parse() == Ok(inode);
        process::parse_pid(pid).filter(|_| is_here)
    };
    locks.lines().filter_map(pid).collect()
}

/// An address in the abstract namespace, of at most 107 bytes.
pub fn abstract_address(name: &str) -> Option<SocketAddr> {
    SocketAddr::from_abstract_name(name).ok()
}
