//! Files, locks of files, and random numbers.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::Pid;

use crate::sys::random::random_token;

/// The poll interval of a waiter for a lock file, which receives no wake-ups here.
pub const UNHEARD: Duration = Duration::from_millis(100);

/// Not on BSD and macOS: a record lock and a flock exclude each other, and flocks have no order.
pub const KEEPS_ORDER: bool = false;

pub fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    File::open("/dev/urandom")?.read_exact(bytes)
}

/// Unsupported: a file without a name cannot get one here.
pub fn link_unnamed(
    _directory: &Path,
    _path: &Path,
    _mode: Mode,
    _complete: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<Option<bool>> {
    Ok(None)
}

pub fn anonymous_file() -> io::Result<File> {
    let path = std::env::temp_dir().join(format!("serializer-{}", random_token()?));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(path)?;
    Ok(file)
}

/// Looks the directory up. A file server cannot be asked again, but locks on one are refused here.
pub fn look_anew(directory: &Path) -> io::Result<()> {
    fs::metadata(directory).map(drop)
}

/// Unsupported, so a directory that hosts share cannot be used.
pub fn lock_records(_file: &File, _exclusively: bool) -> io::Result<bool> {
    Err(io::Error::other("record locks of open files are unsupported on this system"))
}

/// Unknown: the system does not show it.
pub fn flock_waiters(_inode: u64) -> Vec<Pid> {
    Vec::new()
}

/// Unsupported: each socket would be a file.
pub fn abstract_address(_name: &str) -> Option<SocketAddr> {
    None
}
