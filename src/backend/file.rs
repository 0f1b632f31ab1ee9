//! The lock file: a compare-and-swap register made of one file.
//!
//! # Why two writers never both succeed
//!
//! A lock file is not written to once it has its name: each record is a new file, complete before anybody can see it.
//!
//! * **create** links it to the path. `link(2)` is atomic and fails if the path exists, so of any number of creators one wins.
//! * **replace** renames it over the old file, **delete** unlinks the old file. Both do so only while they hold an exclusive flock
//!   on the old file, and only if the path still leads to it (same inode) and it still holds the bytes that were judged. Of any
//!   number of writers that judged the same file one is first, and for all others the path then leads elsewhere. The inode
//!   number cannot be reused meanwhile, because they have it open.
//! * create needs no flock: it succeeds only where there is no file, hence nobody whose flock counts. replace leaves no moment
//!   without a file, in which a creator could come between.
//!
//! # What a kill leaves behind
//!
//! The kernel removes a file without a name, and a flock, together with the process. Each change is one system call, before which
//! the path shows the old state and after which the new one. Between the two calls of replace, and wherever the file system
//! has no unnamed files, a file `.serializer.*.tmp` may be left over; nobody ever reads it. Where the file system has no
//! hard links (FAT), an empty lock file may be.
//!
//! How it lives beside the Python plugin, which knows nothing of all this, is told in `file/legacy.rs`.

pub(super) mod filesystem;
mod legacy;
mod notices;
mod publish;
mod queue;
mod wakeup;

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fs4::{FileExt, TryLockError};
use notices::Notices;
use publish::LinkError;
use queue::Queue;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, lstat, openat, unlinkat};
use rustix::io::Errno;

use wakeup::{WakeUp, Watch};

use super::{Backend, Content, Error, Stored, Version, Write};
use crate::printable;
use crate::record::{Entry, MAX_BYTES, Record};
use crate::waiter::Waiter;

/// How long to try for the flock. Its holders do a handful of system calls, or settle; whoever keeps it longer is
/// stopped or hostile, and must not be waited for without end.
const FLOCK_LIMIT: Duration = Duration::from_secs(2);

/// Between two tries for the flock: about as long as its holders need.
const FLOCK_PAUSE: Duration = Duration::from_micros(500);

/// How often to open a path whose file is exchanged under our hands. Each time means that somebody else succeeded.
const MAX_OPENS: usize = 16;

/// How often to look where wake-ups are not heard.
const UNHEARD: Duration = Duration::from_secs(1);

/// Whoever may come next must be able to read it; the user's umask says who else.
const MODE: Mode = Mode::from_raw_mode(0o666);

/// The lock file at a path.
#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    queue: Queue,
    wake_up: WakeUp,
    watch: Watch,
}

impl LockFile {
    /// Does not touch the file system yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), queue: Queue::new(path), wake_up: WakeUp::new(path), watch: Watch::default() }
    }

    fn io_error(&self, action: &'static str, error: impl Into<io::Error>) -> Error {
        Error::Io { action, path: printable::path(&self.path), source_error: error.into() }
    }

    fn not_a_lock(&self, why: impl ToString) -> Error {
        Error::NotALock { path: printable::path(&self.path), why: why.to_string() }
    }

    /// Opens what is at the path, which must be a regular file; `None` when nothing is there. Never creates, follows a
    /// symbolic link or waits for the other end of a FIFO.
    fn open(&self, access: OFlags) -> Result<Option<File>, OpenError> {
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = match openat(CWD, &self.path, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            // ESTALE: an NFS server's way to say that the file was removed.
            Err(Errno::NOENT | Errno::STALE) => return Ok(None),
            Err(Errno::LOOP) => return Err(OpenError::Not("it is a symbolic link")),
            Err(Errno::ISDIR) => return Err(OpenError::Not("it is a directory")),
            Err(Errno::NXIO) => return Err(OpenError::Not("it is not a regular file")),
            Err(error) => return Err(OpenError::Io(error.into())),
        };
        let kind = match file.metadata() {
            Ok(metadata) => metadata.file_type(),
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(OpenError::Io(error)),
        };
        if kind.is_dir() {
            return Err(OpenError::Not("it is a directory"));
        }
        if !kind.is_file() {
            return Err(OpenError::Not("it is not a regular file"));
        }
        Ok(Some(file))
    }

    fn open_error(&self, action: &'static str, error: OpenError) -> Error {
        match error {
            OpenError::Not(why) => self.not_a_lock(why),
            OpenError::Io(error) => self.io_error(action, error),
        }
    }

    fn content(&self, bytes: &[u8]) -> Result<Content, Error> {
        if bytes.is_empty() {
            return Ok(Content::Empty);
        }
        if bytes.starts_with(super::directory::MAGIC.as_bytes()) {
            return Err(Error::SharedByHosts { path: printable::path(&self.path) });
        }
        Record::parse(bytes).map(|record| Content::Record(Box::new(record))).map_err(|why| self.not_a_lock(why))
    }

    /// Opens the file and locks it against all other writers of this program, given that it is still in the state `seen`.
    fn open_exclusively(&self, action: &'static str, seen: &Version) -> Result<Option<File>, Error> {
        for _ in 0..MAX_OPENS {
            let opened = match self.open(OFlags::RDWR) {
                // Renaming and unlinking need no right to write to the file; the flock needs one on NFS only.
                Err(OpenError::Io(error)) if error.kind() == io::ErrorKind::PermissionDenied => self.open(OFlags::RDONLY),
                opened => opened,
            };
            let Some(file) = opened.map_err(|error| self.open_error(action, error))? else { return Ok(None) };
            match self.flock(&file) {
                Err(Error::Io { source_error, .. }) if is_gone(&source_error) => continue,
                flocked => flocked?,
            }
            if !leads_to(&self.path, &file).map_err(|error| self.io_error(action, error))? {
                continue;
            }
            match read(&file) {
                Ok((_, version)) => return Ok((version == *seen).then_some(file)),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(self.io_error("read", error)),
            }
        }
        Ok(None)
    }

    fn flock(&self, file: &File) -> Result<(), Error> {
        let give_up = Instant::now() + FLOCK_LIMIT;
        loop {
            match FileExt::try_lock(file) {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) if Instant::now() >= give_up => {
                    return Err(Error::Contended { path: printable::path(&self.path) });
                }
                // A blocking flock could not be given up without a signal or a thread.
                Err(TryLockError::WouldBlock) => std::thread::sleep(FLOCK_PAUSE),
                Err(TryLockError::Error(error)) => return Err(self.io_error("flock", error)),
            }
        }
    }

    fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }
}

/// What a file holds, at most one byte more than a record can have, and which state of which file that is.
fn read(file: &File) -> io::Result<(Vec<u8>, Version)> {
    let metadata = file.metadata()?;
    // A byte more than it should have shows that it has grown meanwhile.
    let mut bytes = vec![0; metadata.len().min(MAX_BYTES as u64) as usize + 1];
    let mut length = 0;
    // Bounded by the buffer: each read fills some of it, or is the last one.
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], length as u64)? {
            0 => break,
            count => length += count,
        }
    }
    bytes.truncate(length);
    let mut version = bytes.clone();
    // The time tells an empty file from another one that got its inode number.
    for number in [metadata.dev(), metadata.ino(), metadata.mtime() as u64, metadata.mtime_nsec() as u64] {
        version.extend(number.to_ne_bytes());
    }
    Ok((bytes, Version(version)))
}

/// Whether `path` leads to this very file.
pub(super) fn leads_to(path: &Path, file: &File) -> io::Result<bool> {
    let there = match lstat(path) {
        Ok(stat) => stat,
        Err(Errno::NOENT | Errno::STALE) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let here = match fstat(file) {
        Ok(stat) => stat,
        Err(Errno::STALE) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    Ok(there.st_dev == here.st_dev && there.st_ino == here.st_ino)
}

/// Over NFS, a file may be removed while it is open.
fn is_gone(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::STALE)
}

enum OpenError {
    Not(&'static str),
    Io(io::Error),
}

impl Backend for LockFile {
    fn location(&self) -> String {
        printable::path(&self.path)
    }

    fn load(&mut self) -> Result<Option<Stored>, Error> {
        let mut gone = None;
        for _ in 0..MAX_OPENS {
            let Some(file) = self.open(OFlags::RDONLY).map_err(|error| self.open_error("read", error))? else {
                return Ok(None);
            };
            match read(&file) {
                Ok((bytes, version)) => {
                    let content = self.content(&bytes)?;
                    let written = file.metadata().and_then(|metadata| metadata.modified()).ok();
                    return Ok(Some(Stored { content, version, written, is_local: filesystem::is_local(&file), now: None }));
                }
                Err(error) if is_gone(&error) => gone = Some(error),
                Err(error) => return Err(self.io_error("read", error)),
            }
        }
        Err(self.io_error("read", gone.unwrap_or_else(|| io::ErrorKind::NotFound.into())))
    }

    fn create(&mut self, record: &Record) -> Result<Write, Error> {
        let text = record.to_text();
        match self.link_new(text.as_bytes()) {
            Ok(answer) => Ok(answer),
            Err(LinkError::Unsupported) => self.create_in_place(text.as_bytes()),
            Err(LinkError::Io(error)) => Err(self.io_error("create", error)),
        }
    }

    fn replace(&mut self, seen: &Stored, record: &Record) -> Result<Write, Error> {
        // Whoever joins or leaves several holders takes nothing over.
        let is_plain = seen.content.record().is_none_or(Record::is_plain);
        let action = if is_plain { "take over" } else { "change" };
        let Some(old) = self.open_exclusively(action, &seen.version)? else { return Ok(Write::Conflict) };
        if let Some(file_system) = filesystem::without_exchange(&old) {
            // What only tells how it went can be left out.
            return match record.entries().iter().all(|entry| entry.released.is_some() && entry.until.is_none()) {
                true => self.delete(seen),
                false => Err(Error::NoExchange { action, path: printable::path(&self.path), file_system }),
            };
        }
        let text = record.to_text();
        let new = self.rename_over(text.as_bytes()).map_err(|error| self.io_error(action, error))?;
        match legacy::settle(&self.path, seen, &old, &new, text.as_bytes()) {
            Ok(legacy::Settled::Ours) => Ok(Write::Done),
            Ok(legacy::Settled::Lost) => Ok(Write::Conflict),
            Ok(legacy::Settled::Plugins(bytes)) => {
                if self.rename_over(&bytes).is_err() {
                    // No room for another file: ours, which nobody relies on yet, is to say it. Empty, it is being written.
                    let rewritten = new.set_len(0).and_then(|()| new.write_all_at(&bytes, 0));
                    rewritten.map_err(|error| self.io_error("give back", error))?;
                }
                // Who waits has seen our record, and watches our owner.
                self.wake_up.send();
                Ok(Write::Conflict)
            }
            Err(error) => {
                // The caller will say that nothing was changed, so there must be no lock of ours.
                if leads_to(&self.path, &new).unwrap_or(false) {
                    match seen.content.record().filter(|record| !record.is_plain()) {
                        // Others may hold it, whose entries must not be lost. If this fails, an entry too many is the lesser evil.
                        Some(record) => drop(self.rename_over(record.to_text().as_bytes())),
                        None => drop(unlinkat(CWD, &self.path, AtFlags::empty())),
                    }
                    self.wake_up.send();
                }
                Err(self.io_error(action, error))
            }
        }
    }

    fn delete(&mut self, seen: &Stored) -> Result<Write, Error> {
        let Some(_flocked) = self.open_exclusively("remove", &seen.version)? else { return Ok(Write::Conflict) };
        match unlinkat(CWD, &self.path, AtFlags::empty()) {
            Ok(()) => Ok(Write::Done),
            // Only the Python plugin removes without the flock.
            Err(Errno::NOENT) => Ok(Write::Conflict),
            Err(error) => Err(self.io_error("remove", error)),
        }
    }

    fn wait(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        // What was released before one was first, or before the socket existed, has not been heard: look first.
        let has_come = self.queue.join();
        let is_first = self.queue.is_first();
        if (is_first && self.wake_up.listen()) || has_come {
            return Ok(());
        }
        let fds: Vec<_> = fds.iter().copied().chain(self.queue.turn_fd()).collect();
        // Another process has the name of the socket, or there are no such sockets.
        let limit = if is_first && !self.wake_up.is_listening() { limit.min(UNHEARD) } else { limit };
        self.wake_up.wait(limit, &fds).map_err(|error| self.io_error("wait for", error))
    }

    fn watch(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        if self.watch.follow(&self.path) {
            return Ok(());
        }
        let fds: Vec<_> = fds.iter().copied().chain(self.watch.changed_fd()).collect();
        let limit = limit.min(UNHEARD);
        super::sleep(limit, &fds).map_err(|error| self.io_error("wait for", error))
    }

    fn notify(&mut self) {
        self.wake_up.send();
        self.queue.sweep();
    }

    fn is_first(&mut self) -> Result<bool, Error> {
        Ok(self.queue.is_first())
    }

    fn is_in_line(&mut self) -> bool {
        self.queue.is_in_line()
    }

    fn leave(&mut self) {
        // The next one is to find the name of the socket free.
        self.wake_up.stop_listening();
        self.queue.leave();
    }

    fn attend(&mut self) {
        self.queue.stand_beside();
    }

    fn is_awaited(&mut self) -> bool {
        self.queue.others_are_there()
    }

    fn leave_notices(&mut self, broken: &[Entry]) {
        if let Err(error) = Notices::new(&self.path).add(broken) {
            tracing::debug!("{error}");
        }
    }

    fn take_notices(&mut self, is_own: &dyn Fn(&Record, &Entry) -> bool) -> bool {
        Notices::new(&self.path).take(is_own)
    }

    fn waiters(&mut self) -> Vec<Waiter> {
        self.queue.waiters().into_iter().map(Waiter::of).collect()
    }
}
