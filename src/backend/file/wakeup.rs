//! How a release wakes a waiter: a datagram socket in the abstract namespace, named after the lock, which the waiter that
//! is first in line binds and the releaser sends to. The kernel removes it with the process, at no cost (closing an inotify
//! descriptor takes 5 to 20 ms).
//!
//! It carries no meaning but "look again": anybody may send, or take the name first, and other network namespaces are not
//! reached. Whoever waits therefore also looks from time to time.

use std::fmt::Write as _;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;

/// How much of a file's name goes into the socket's name, which holds 107 bytes. Two names that only differ behind it
/// wake each other's waiters, which is harmless.
const MAX_NAME: usize = 40;

/// How many datagrams to read away at once; a socket's queue holds fewer unless the administrator raised the limit, and
/// what remains costs one more look each time.
const MAX_DATAGRAMS: usize = 64;

/// The sending and the receiving end.
#[derive(Debug)]
pub struct WakeUp {
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl WakeUp {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), socket: None }
    }

    /// Directory and file name, so that all spellings of a path meet; the lock's own inode changes with each holder.
    fn address(&self) -> Option<SocketAddr> {
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = fs::metadata(parent).ok()?;
        let mut name = format!("serializer:{:x}:{:x}:", directory.dev(), directory.ino());
        for byte in self.path.file_name()?.as_bytes().iter().take(MAX_NAME) {
            let _ = write!(name, "{}", byte.escape_ascii());
        }
        name.truncate(107);
        SocketAddr::from_abstract_name(name).ok()
    }

    /// Wakes the waiter, if there is one. Whatever goes wrong, the waiter's next look makes up for it.
    pub fn send(&self) {
        let Some(address) = self.address() else { return };
        let Ok(socket) = UnixDatagram::unbound() else { return };
        // A full queue already holds a wake-up.
        if socket.set_nonblocking(true).is_ok() {
            let _ = socket.send_to_addr(&[0], &address);
        }
    }

    /// Begins to hear wake-ups; returns whether that is new, so that what came before has to be looked for.
    pub fn listen(&mut self) -> bool {
        if self.socket.is_some() {
            return false;
        }
        self.socket = self.bind();
        self.socket.is_some()
    }

    /// Whether it hears them.
    pub fn is_listening(&self) -> bool {
        self.socket.is_some()
    }

    /// Lets another one hear them.
    pub fn stop_listening(&mut self) {
        self.socket = None;
    }

    /// Sleeps until a wake-up, `limit`, or one of `fds` is readable.
    pub fn wait(&self, limit: Duration, fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
        let wake_up = self.socket.as_ref().map(AsFd::as_fd);
        let fds: Vec<_> = fds.iter().copied().chain(wake_up).collect();
        crate::backend::sleep(limit, &fds)?;
        self.drain();
        Ok(())
    }

    fn bind(&self) -> Option<UnixDatagram> {
        // Fails while another waiter has the name; then this one looks from time to time, and tries again.
        let socket = UnixDatagram::bind_addr(&self.address()?).ok()?;
        socket.set_nonblocking(true).ok()?;
        Some(socket)
    }

    fn drain(&self) {
        let Some(socket) = &self.socket else { return };
        let mut byte = [0];
        for _ in 0..MAX_DATAGRAMS {
            if socket.recv(&mut byte).is_err() {
                break;
            }
        }
    }
}

/// How those hear of a change who must not take the socket from the first in line. Ending it takes the kernel some
/// milliseconds, which nobody else waits for.
#[derive(Debug, Default)]
pub struct Watch {
    inotify: Option<OwnedFd>,
    watched: Option<i32>,
}

impl Watch {
    /// Begins to watch the file at the path; returns whether it is another one than before, so that what has become of that has
    /// to be looked for.
    pub fn follow(&mut self, path: &Path) -> bool {
        if self.inotify.is_none() {
            self.inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok();
        }
        let Some(inotify) = &self.inotify else { return false };
        // What it tells is only that there is something to see. Bounded by the kernel's queue of events.
        let mut events = [0_u8; 4096];
        while rustix::io::read(inotify, &mut events).is_ok_and(|length| length > 0) {}
        // Unlinking the file and renaming another one over it change the number of its names.
        let what = inotify::WatchFlags::ATTRIB | inotify::WatchFlags::DELETE_SELF;
        let watched = inotify::add_watch(inotify, path, what).ok();
        std::mem::replace(&mut self.watched, watched) != watched
    }

    /// Becomes readable when the file is not the lock file any more.
    pub fn changed_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }
}
