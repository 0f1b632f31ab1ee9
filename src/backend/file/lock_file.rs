//! One lock file: how it is read, and how it is changed only in the state that was seen.
//!
//! # Why two writers never both succeed
//!
//! A lock file is not written to once it has its name: each record is a new file, complete before
//! it is visible.
//!
//! * **create** links it to the path. `link(2)` is atomic and fails if the path exists, so exactly
//!   one of any number of creators succeeds.
//! * **replace** renames it over the old file, **delete** unlinks the old file. Both do so only
//!   while they hold an exclusive flock on the old file, and only if the path still leads to it
//!   (same inode) and it still holds the bytes that were judged. Of any number of writers that
//!   judged the same file, one is first. For all the others, the path then leads elsewhere. The
//!   inode number cannot be reused meanwhile, because the writers have the file open.
//! * create needs no flock: it succeeds only where there is no file, and so no flock that counts.
//!   replace leaves no moment without a file, in which a creator could succeed.
//!
//! # What a kill leaves behind
//!
//! With the process, the kernel removes its unnamed files and its flocks. Each change is one system
//! call: before it, the path shows the old state, and after it the new one. A kill between the two
//! calls of replace, or on a file system without unnamed files, may leave a file
//! `.serializer.*.tmp`, which is never read. On a file system without hard links (FAT), it may
//! leave an empty lock file.
//!
//! `file/legacy.rs` describes how this works beside the Python plugin, which has none of these
//! rules.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fs4::{FileExt, TryLockError};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, lstat, openat, unlinkat};
use rustix::io::Errno;

use super::legacy::{self, Settled};
use super::publish::{LinkError, link_new};
use super::queue::Queue;
use super::wakeup::{WakeUp, Watch};
use super::{CHANGE, CREATE, READ, REMOVE, filesystem, io_failure};
use crate::backend::directory::MAGIC;
use crate::backend::failure::{Cause, Failure};
use crate::backend::seam::{Next, State, Write};
use crate::printable;
use crate::record::MAX_BYTES;

/// How long to try for the flock. Its holders make a handful of system calls, or settle. A process
/// that keeps it longer is stopped or hostile, so the wait must end.
const FLOCK_LIMIT: Duration = Duration::from_secs(2);

const FLOCK: &str = "flock the lock file";
const GIVE_BACK: &str = "give back the lock file";

/// The pause between two tries for the flock: about as long as its holders need.
const FLOCK_PAUSE: Duration = Duration::from_micros(500);

/// How often to open a path whose file is exchanged meanwhile. Each exchange means that another
/// process succeeded.
const MAX_OPENS: usize = 16;

/// The next holder must be able to read the file; the umask restricts it.
pub(super) const MODE: Mode = Mode::from_raw_mode(0o666);

/// The lock file at a path.
#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    pub(super) queue: Queue,
    pub(super) wake_up: WakeUp,
    pub(super) watch: Watch,
}

impl LockFile {
    /// Does not touch the file system yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), queue: Queue::new(path), wake_up: WakeUp::new(path), watch: Watch::default() }
    }

    /// Begins to watch the file. Returns whether it is another file than before, and so must be
    /// read.
    pub(super) fn follow(&mut self) -> bool {
        self.watch.follow(&self.path)
    }

    /// The path of the lock file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn io_failure(&self, action: &'static str, error: impl Into<io::Error>) -> Failure {
        io_failure(&self.path, action, &error.into())
    }

    /// Opens the file at the path, which must be regular; `None` when there is no file. Never
    /// creates a file, follows a symbolic link or waits for the other end of a FIFO.
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

    fn open_failure(&self, action: &'static str, error: OpenError) -> Failure {
        match error {
            OpenError::Not(why) => super::not_a_lock(why),
            OpenError::Io(error) => self.io_failure(action, error),
        }
    }

    /// Opens the file and flocks it against all other writers of this program; `None` if it is not
    /// in the state `seen` any more.
    fn open_exclusively(&self, action: &'static str, seen: &[u8]) -> Result<Option<File>, Failure> {
        for _ in 0..MAX_OPENS {
            let opened = match self.open(OFlags::RDWR) {
                // Renaming and unlinking do not need the right to write to the file; the flock
                // needs it on NFS only.
                Err(OpenError::Io(error)) if error.kind() == io::ErrorKind::PermissionDenied => self.open(OFlags::RDONLY),
                opened => opened,
            };
            let Some(file) = opened.map_err(|error| self.open_failure(action, error))? else { return Ok(None) };
            match self.try_flock(&file) {
                Ok(()) => {}
                Err(Refusal::Gone(_)) => continue,
                Err(Refusal::Failure(failure)) => return Err(failure),
            }
            if !leads_to(&self.path, &file).map_err(|error| self.io_failure(action, error))? {
                continue;
            }
            match read(&file) {
                Ok((_, version)) => return Ok((version == seen).then_some(file)),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(self.io_failure(READ, error)),
            }
        }
        Ok(None)
    }

    /// Flocks the file against all other writers of this program.
    pub(super) fn flock(&self, file: &File) -> Result<(), Failure> {
        self.try_flock(file).map_err(|refusal| match refusal {
            Refusal::Gone(error) => self.io_failure(FLOCK, error),
            Refusal::Failure(failure) => failure,
        })
    }

    fn try_flock(&self, file: &File) -> Result<(), Refusal> {
        let give_up = Instant::now() + FLOCK_LIMIT;
        loop {
            match FileExt::try_lock(file) {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) if Instant::now() >= give_up => {
                    let hint = format!("`fuser -v {}` shows the processes that have it open", printable::path(&self.path));
                    let failure = Failure { cause: Cause::Contended, ..Failure::permanent("it is busy") };
                    return Err(Refusal::Failure(failure.with_hint(hint)));
                }
                // A blocking flock could be ended only by a signal or with a thread.
                Err(TryLockError::WouldBlock) => std::thread::sleep(FLOCK_PAUSE),
                Err(TryLockError::Error(error)) if is_gone(&error) => return Err(Refusal::Gone(error)),
                Err(TryLockError::Error(error)) => return Err(Refusal::Failure(self.io_failure(FLOCK, error))),
            }
        }
    }
}

/// The content of a file, at most one byte more than a record can have, and its version: which
/// state of which file this is.
pub(super) fn read(file: &File) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let metadata = file.metadata()?;
    // One byte more than its length shows that the file has grown meanwhile.
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
    // The time distinguishes an empty file from a later one with the same inode number.
    for number in [metadata.dev(), metadata.ino(), metadata.mtime() as u64, metadata.mtime_nsec() as u64] {
        version.extend(number.to_ne_bytes());
    }
    Ok((bytes, version))
}

/// Whether `path` leads to this very file.
pub(in crate::backend) fn leads_to(path: &Path, file: &File) -> io::Result<bool> {
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

/// A file may be removed while it is open: NFS tells by ESTALE, sshfs, which goes by names, by ENOENT.
fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::STALE | Errno::NOENT))
}

/// Why there is no flock.
enum Refusal {
    /// The file was removed, which NFS reports only now.
    Gone(io::Error),
    Failure(Failure),
}

enum OpenError {
    Not(&'static str),
    Io(io::Error),
}

impl LockFile {
    /// The stored state: the text, and its version.
    pub(super) fn load(&self) -> Result<State, Failure> {
        let mut gone = None;
        for _ in 0..MAX_OPENS {
            let Some(file) = self.open(OFlags::RDONLY).map_err(|error| self.open_failure(READ, error))? else {
                return Ok(State::default());
            };
            match read(&file) {
                Ok((bytes, _)) if bytes.starts_with(MAGIC.as_bytes()) => return Err(self.shared_by_hosts()),
                Ok((bytes, version)) => {
                    let written = file.metadata().and_then(|metadata| metadata.modified()).ok();
                    let value = Some(String::from_utf8_lossy(&bytes).into_owned());
                    let is_local = filesystem::is_local(&file);
                    return Ok(State { version: Some(version), value, written, is_local, ..State::default() });
                }
                Err(error) if is_gone(&error) => gone = Some(error),
                Err(error) => return Err(self.io_failure(READ, error)),
            }
        }
        Err(self.io_failure(READ, gone.unwrap_or_else(|| io::ErrorKind::NotFound.into())))
    }

    /// Stores a text where there is no file.
    pub(super) fn create(&self, text: &str) -> Result<Write, Failure> {
        match link_new(&self.path, &|file| file.write_all_at(text.as_bytes(), 0)) {
            Ok(answer) => Ok(answer),
            Err(LinkError::Unsupported) => self.create_in_place(text.as_bytes()),
            Err(LinkError::Io(error)) => Err(self.io_failure(CREATE, error)),
        }
    }

    /// Stores a text over the state `seen`.
    pub(super) fn replace(&self, seen: &State, version: &[u8], next: &Next<'_>, text: &str) -> Result<Write, Failure> {
        let Some(old) = self.open_exclusively(CHANGE, version)? else { return Ok(Write::Conflict) };
        if let Some(file_system) = filesystem::without_exchange(&old) {
            drop(old);
            // A record that is only of use for a time can be left out.
            return if next.keep.is_some() { self.delete(version) } else { Err(self.without_exchange(&file_system)) };
        }
        let seen_text = seen.value.as_deref().unwrap_or("");
        let new = self.rename_over(text.as_bytes()).map_err(|error| self.io_failure(CHANGE, error))?;
        match legacy::settle(&self.path, version, seen_text, &old, &new, text.as_bytes()) {
            Ok(Settled::Ours) => Ok(Write::Done),
            Ok(Settled::Lost) => Ok(Write::Conflict),
            Ok(Settled::Plugins(bytes)) => {
                if self.rename_over(&bytes).is_err() {
                    // No room for another file: the text goes into ours, which nothing relies on
                    // yet. While it is empty, it counts as being written.
                    let rewritten = new.set_len(0).and_then(|()| new.write_all_at(&bytes, 0));
                    rewritten.map_err(|error| self.io_failure(GIVE_BACK, error))?;
                }
                // A waiter has seen our record, and watches our owner.
                self.wake_up.send();
                Ok(Write::Conflict)
            }
            Err(error) => {
                // The caller will report that nothing was changed, so no lock of ours may remain.
                if leads_to(&self.path, &new).unwrap_or(false) {
                    if legacy::has_one_holder(seen_text) {
                        let _ = unlinkat(CWD, &self.path, AtFlags::empty());
                    } else {
                        // Other holders may remain. If this fails, an extra entry is a lesser evil
                        // than a lost one.
                        drop(self.rename_over(seen_text.as_bytes()));
                    }
                    self.wake_up.send();
                }
                Err(self.io_failure(CHANGE, error))
            }
        }
    }

    /// Removes the file, if it is still in the state `version`.
    pub(super) fn delete(&self, version: &[u8]) -> Result<Write, Failure> {
        let Some(_flocked) = self.open_exclusively(REMOVE, version)? else { return Ok(Write::Conflict) };
        match unlinkat(CWD, &self.path, AtFlags::empty()) {
            Ok(()) => Ok(Write::Done),
            // Only the Python plugin removes the file without the flock.
            Err(Errno::NOENT) => Ok(Write::Conflict),
            Err(error) => Err(self.io_failure(REMOVE, error)),
        }
    }

    /// The failure for a lock that hosts share.
    fn shared_by_hosts(&self) -> Failure {
        let hint = "set `SERIALIZER_LEASE_SECONDS` here, too, as on those hosts";
        Failure::permanent("it is a lock that hosts share, under leases").with_hint(hint).during_action(READ)
    }

    /// The failure for a file system on which two hosts could change the lock at the same time. The
    /// lock itself may be changed.
    fn without_exchange(&self, file_system: &str) -> Failure {
        let path = printable::path(&self.path);
        let why = format!("on its file system ({file_system}), hosts do not see at once that a file was exchanged");
        let hint = format!(
            "to have locks there that end with their holders, set `SERIALIZER_LEASE_SECONDS` on all hosts; when you are certain \
             that nothing uses it, remove `{path}`"
        );
        Failure::permanent(why).with_hint(hint).during_action(CHANGE)
    }
}
