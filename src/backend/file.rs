//! The lock file: a compare-and-swap register made of one file.
//!
//! # Why two writers never both succeed
//!
//! * **create** makes a complete file without a name and links it to the path. `link(2)` is atomic and fails if the path
//!   exists, so of any number of creators one wins, and nobody ever sees an incomplete file.
//! * **replace** and **delete** hold an exclusive flock on the file while they check that the path still leads to this very
//!   file (same inode) and that it still holds the bytes that were judged, and while they write or unlink. Of any number
//!   of writers that judged the same bytes, the first one changes them or removes the file, and all others find out.
//!   The flock lies on an inode that cannot be reused while it is open, so the check cannot pass on another file.
//! * create needs no flock: it succeeds only where there is no file, hence nobody who holds a flock that counts.
//!
//! # What a kill leaves behind
//!
//! The kernel undoes an open file without a name, and a flock, with the process. The rewrite is one write within one page,
//! which SIGKILL cannot split, and it covers all old bytes (with blank lines, which mean nothing). So at each system call
//! the path holds either the old record or the new one, whole. Where hard links of unnamed files are not to be had, a
//! named temporary file may be left over; it is never read. Where hard links are not to be had at all, an empty file may be.
//!
//! # The Python plugin
//!
//! It creates with `O_EXCL`, which excludes `link` and is excluded by it. It takes over by truncating and rewriting the file in
//! place, without any lock. So a takeover of a record that such a taker may be after *settles*: it rewrites in place as well
//! (the same inode: the last writer wins, for both to see), waits longer than that taker takes, and looks whether it is still there.

mod wakeup;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fs4::{FileExt, TryLockError};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat, unlinkat};
use rustix::io::Errno;
use wakeup::WakeUp;

use super::{Backend, Content, Error, Stored, Version, Write};
use crate::printable;
use crate::record::{MAX_BYTES, Record, random_token};

/// How long to try for the flock. Its holders do a handful of system calls, or settle; whoever keeps it longer is
/// stopped or hostile, and must not be waited for without end.
const FLOCK_LIMIT: Duration = Duration::from_secs(2);

/// Between two tries for the flock: about as long as its holders need.
const FLOCK_PAUSE: Duration = Duration::from_micros(500);

/// How long a rewritten legacy record must stay ours. Between its look and its write the Python plugin takes well below a
/// millisecond; this leaves a hundred times that for a busy machine.
const SETTLE: Duration = Duration::from_millis(100);

/// How often to open a path whose file is exchanged under our hands. Each time means that somebody else succeeded.
const MAX_OPENS: usize = 16;

/// The lock file at a path.
#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    wake_up: WakeUp,
}

impl LockFile {
    /// Does not touch the file system yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), wake_up: WakeUp::new(path) }
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
        let kind = file.metadata().map_err(OpenError::Io)?.file_type();
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

    fn read(&self, file: &File) -> Result<(Vec<u8>, Version), Error> {
        // One byte more than a record can have shows that it is none.
        let mut bytes = vec![0; MAX_BYTES + 1];
        let mut length = 0;
        // Bounded by the buffer: each read fills some of it, or is the last one.
        loop {
            match file.read_at(&mut bytes[length..], length as u64).map_err(|error| self.io_error("read", error))? {
                0 => break,
                count => length += count,
            }
        }
        bytes.truncate(length);
        let metadata = file.metadata().map_err(|error| self.io_error("read", error))?;
        let mut version = Vec::with_capacity(bytes.len() + 16);
        version.extend(metadata.dev().to_ne_bytes());
        version.extend(metadata.ino().to_ne_bytes());
        version.extend(&bytes);
        Ok((bytes, Version(version)))
    }

    fn content(&self, bytes: &[u8]) -> Result<Content, Error> {
        if bytes.is_empty() {
            return Ok(Content::Empty);
        }
        Record::parse(bytes).map(|record| Content::Record(Box::new(record))).map_err(|why| self.not_a_lock(why))
    }

    /// Whether the path leads to this very file.
    fn leads_to(&self, file: &File) -> io::Result<bool> {
        let there = match rustix::fs::lstat(&self.path) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::STALE) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let here = rustix::fs::fstat(file)?;
        Ok(there.st_dev == here.st_dev && there.st_ino == here.st_ino)
    }

    /// Opens the file and locks it against all other writers, given that it is still in the state `seen`.
    fn open_exclusively(&self, action: &'static str, seen: &Stored, access: OFlags) -> Result<Option<Exclusive>, ExclusiveError> {
        for _ in 0..MAX_OPENS {
            let Some(file) = self.open(access).map_err(|error| match error {
                OpenError::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => ExclusiveError::Denied(error),
                error => ExclusiveError::Other(self.open_error(action, error)),
            })?
            else {
                return Ok(None);
            };
            self.flock(&file, FileExt::try_lock)?;
            if !self.leads_to(&file).map_err(|error| self.io_error(action, error))? {
                continue;
            }
            let (bytes, version) = self.read(&file)?;
            return Ok((version == seen.version).then_some(Exclusive { file, bytes }));
        }
        Ok(None)
    }

    fn flock(&self, file: &File, try_lock: fn(&File) -> Result<(), TryLockError>) -> Result<(), Error> {
        let give_up = Instant::now() + FLOCK_LIMIT;
        loop {
            match try_lock(file) {
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

    /// Makes a complete file and gives it the lock's name, unless that is taken.
    fn link_new(&self, text: &[u8]) -> Result<Write, Error> {
        match self.link_unnamed(text) {
            Err(LinkError::Unsupported) => {}
            answer => return self.link_answer(answer),
        }
        match self.link_named(text) {
            Err(LinkError::Unsupported) => self.create_in_place(text),
            answer => self.link_answer(answer),
        }
    }

    fn link_answer(&self, answer: Result<Write, LinkError>) -> Result<Write, Error> {
        answer.map_err(|error| match error {
            LinkError::Io(error) => self.io_error("create", error),
            LinkError::Unsupported => self.io_error("create", Errno::OPNOTSUPP),
        })
    }

    /// The usual way: the file has no other name, so that no kill leaves one behind.
    fn link_unnamed(&self, text: &[u8]) -> Result<Write, LinkError> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        // File systems without it (NFS, FAT) answer EOPNOTSUPP, old kernels EISDIR.
        let file = match openat(CWD, self.directory(), flags, Mode::from_raw_mode(0o666)) {
            Ok(fd) => File::from(fd),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => return Err(LinkError::Unsupported),
            Err(error) => return Err(LinkError::Io(error.into())),
        };
        file.write_all_at(text, 0).map_err(LinkError::Io)?;
        let name = format!("/proc/self/fd/{}", file.as_raw_fd());
        match linkat(CWD, name, CWD, &self.path, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => Ok(Write::Done),
            Err(Errno::EXIST) => Ok(Write::Conflict),
            // No /proc, or a file system that does not link.
            Err(_) => Err(LinkError::Unsupported),
        }
    }

    /// On NFS, for example: a temporary file with a name of its own.
    fn link_named(&self, text: &[u8]) -> Result<Write, LinkError> {
        let temporary = self.temporary_path().map_err(|error| LinkError::Io(error.into()))?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(CWD, &temporary, flags, Mode::from_raw_mode(0o666)).map_err(|error| LinkError::Io(error.into()))?;
        let file = File::from(file);
        let answer = file.write_all_at(text, 0).map_err(LinkError::Io).and_then(|()| {
            let answer = linkat(CWD, &temporary, CWD, &self.path, AtFlags::empty());
            // A repeated NFS request makes success look like EEXIST, so only the inode tells.
            match (self.leads_to(&file), answer) {
                (Ok(true), _) => Ok(Write::Done),
                (Ok(false), Ok(()) | Err(Errno::EXIST)) => Ok(Write::Conflict),
                (Ok(false), Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK)) => Err(LinkError::Unsupported),
                (Ok(false), Err(error)) => Err(LinkError::Io(error.into())),
                (Err(error), _) => Err(LinkError::Io(error)),
            }
        });
        // The lock stands or not, whatever becomes of this name.
        let _ = unlinkat(CWD, &temporary, AtFlags::empty());
        answer
    }

    /// Where there are no hard links (FAT, some FUSE file systems): everybody sees the file empty for a moment.
    fn create_in_place(&self, text: &[u8]) -> Result<Write, Error> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match openat(CWD, &self.path, flags, Mode::from_raw_mode(0o666)) {
            Ok(fd) => File::from(fd),
            Err(Errno::EXIST) => return Ok(Write::Conflict),
            Err(error) => return Err(self.io_error("create", error)),
        };
        // We may have slept here for so long that others took the empty file for abandoned; they hold the flock then, or
        // have written.
        self.flock(&file, FileExt::try_lock)?;
        let still_empty = file.metadata().map_err(|error| self.io_error("create", error))?.len() == 0;
        if !still_empty || !self.leads_to(&file).map_err(|error| self.io_error("create", error))? {
            return Ok(Write::Conflict);
        }
        if let Err(error) = file.write_all_at(text, 0) {
            let _ = unlinkat(CWD, &self.path, AtFlags::empty());
            return Err(self.io_error("create", error));
        }
        Ok(Write::Done)
    }

    fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }

    fn temporary_path(&self) -> rustix::io::Result<PathBuf> {
        Ok(self.directory().join(format!(".serializer.{}.tmp", random_token()?)))
    }

    fn rewrite(&self, exclusive: &Exclusive, text: &str) -> Result<(), Error> {
        let Exclusive { file, bytes: old } = exclusive;
        let mut new = text.as_bytes().to_vec();
        // Blank lines over the rest of a longer old record: a kill before the truncation leaves no garbage.
        new.resize(new.len().max(old.len()), b'\n');
        if let Err(error) = file.write_all_at(&new, 0) {
            // A file system may fail in the middle (full, over quota): put back what was there.
            let _ = file.write_all_at(old, 0).and_then(|()| file.set_len(old.len() as u64));
            return Err(self.io_error("take over", error));
        }
        if new.len() > text.len() {
            // Failing to shorten it changes nothing that counts.
            let _ = file.set_len(text.len() as u64);
        }
        Ok(())
    }

    /// Whether the file at the path still says what we wrote after a legacy taker has had its time.
    fn settle(&self, text: &str) -> Result<Write, Error> {
        std::thread::sleep(SETTLE);
        let Some(file) = self.open(OFlags::RDONLY).map_err(|error| self.open_error("read", error))? else {
            return Ok(Write::Conflict);
        };
        let (bytes, _) = self.read(&file)?;
        Ok(if bytes == text.as_bytes() { Write::Done } else { Write::Conflict })
    }

    /// For a file that we may not write to, in a directory where we may remove it.
    fn replace_by_another_file(&mut self, seen: &Stored, text: &str) -> Result<Write, Error> {
        match self.remove(seen, "take over")? {
            Write::Done => self.link_new(text.as_bytes()),
            Write::Conflict => Ok(Write::Conflict),
        }
    }

    fn remove(&self, seen: &Stored, action: &'static str) -> Result<Write, Error> {
        let exclusive = match self.open_exclusively(action, seen, OFlags::RDWR) {
            // Removing needs no right to write to the file; the flock needs one on NFS only.
            Err(ExclusiveError::Denied(_)) => self.open_exclusively(action, seen, OFlags::RDONLY),
            answer => answer,
        };
        let Some(_exclusive) = exclusive.map_err(|error| self.exclusive_error(action, error))? else {
            return Ok(Write::Conflict);
        };
        match unlinkat(CWD, &self.path, AtFlags::empty()) {
            Ok(()) => Ok(Write::Done),
            // Only the Python plugin removes without the flock.
            Err(Errno::NOENT) => Ok(Write::Conflict),
            Err(error) => Err(self.io_error(action, error)),
        }
    }

    fn exclusive_error(&self, action: &'static str, error: ExclusiveError) -> Error {
        match error {
            ExclusiveError::Denied(error) => self.io_error(action, error),
            ExclusiveError::Other(error) => error,
        }
    }
}

enum OpenError {
    Not(&'static str),
    Io(io::Error),
}

enum LinkError {
    Unsupported,
    Io(io::Error),
}

enum ExclusiveError {
    Denied(io::Error),
    Other(Error),
}

impl From<Error> for ExclusiveError {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// The lock file, open and flocked, and what it holds. Closing it releases the flock.
struct Exclusive {
    file: File,
    bytes: Vec<u8>,
}

impl Backend for LockFile {
    fn location(&self) -> String {
        printable::path(&self.path)
    }

    fn load(&mut self) -> Result<Option<Stored>, Error> {
        let Some(file) = self.open(OFlags::RDONLY).map_err(|error| self.open_error("read", error))? else {
            return Ok(None);
        };
        let (mut bytes, mut version) = self.read(&file)?;
        let content = match self.content(&bytes) {
            Ok(content) => content,
            // A reader may see a rewrite half done (ext4 reads without its lock), but not under the flock.
            Err(_) => {
                self.flock(&file, FileExt::try_lock_shared)?;
                (bytes, version) = self.read(&file)?;
                self.content(&bytes)?
            }
        };
        let written = file.metadata().and_then(|metadata| metadata.modified()).ok();
        Ok(Some(Stored { content, version, written }))
    }

    fn create(&mut self, record: &Record) -> Result<Write, Error> {
        self.link_new(record.to_text().as_bytes())
    }

    fn replace(&mut self, seen: &Stored, record: &Record) -> Result<Write, Error> {
        let text = record.to_text();
        let exclusive = match self.open_exclusively("take over", seen, OFlags::RDWR) {
            Err(ExclusiveError::Denied(_)) => return self.replace_by_another_file(seen, &text),
            answer => answer.map_err(|error| self.exclusive_error("take over", error))?,
        };
        let Some(exclusive) = exclusive else { return Ok(Write::Conflict) };
        self.rewrite(&exclusive, &text)?;
        let a_legacy_taker_may_be_after_it = seen.content.record().is_none_or(Record::is_legacy);
        if a_legacy_taker_may_be_after_it { self.settle(&text) } else { Ok(Write::Done) }
    }

    fn delete(&mut self, seen: &Stored) -> Result<Write, Error> {
        let answer = self.remove(seen, "remove")?;
        if answer == Write::Done {
            self.wake_up.send();
        }
        Ok(answer)
    }

    fn wait(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.wake_up.wait(limit, fds).map_err(|error| self.io_error("wait for", error))
    }
}
