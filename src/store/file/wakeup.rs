//! Wake-ups: a datagram socket in the abstract namespace, which the first waiter binds, and a
//! release sends to. The kernel removes it with the process. A wake-up only means that the lock may
//! have changed: any process can send one or take the name, and other network namespaces are not
//! reached. So waiters poll as well; without such a namespace, they only poll.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use super::publish::directory;
use crate::sys::files::abstract_address;

/// How many wake-ups to read at once: more than a socket's queue usually holds.
const MAX_DATAGRAMS: usize = 64;

/// Directory and file name, so that all spellings of a path meet.
fn address(path: &Path) -> Option<SocketAddr> {
    let directory = fs::metadata(directory(path)).ok()?;
    let file = path.file_name()?.as_bytes().escape_ascii();
    let mut name = format!("serializer:{:x}:{:x}:{file}", directory.dev(), directory.ino());
    // Two names that differ only behind it wake each other's waiters, which is harmless.
    name.truncate(107);
    abstract_address(&name)
}

/// Wakes the first waiter for the lock at `path`, if there is one.
pub fn send(path: &Path) {
    let Some(address) = address(path) else { return };
    let Ok(socket) = UnixDatagram::unbound() else { return };
    // A full queue already holds a wake-up.
    if socket.set_nonblocking(true).is_ok() {
        let _ = socket.send_to_addr(&[0], &address);
    }
}

/// A socket that becomes readable by a wake-up; `None` while another process has its name.
pub fn bind(path: &Path) -> Option<UnixDatagram> {
    let socket = UnixDatagram::bind_addr(&address(path)?).ok()?;
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

/// Reads the wake-ups that have come.
pub fn drain(socket: &UnixDatagram) {
    (0..MAX_DATAGRAMS).take_while(|_| socket.recv(&mut [0]).is_ok()).count();
}
