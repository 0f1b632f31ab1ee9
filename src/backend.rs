//! Where lock records are kept. A backend is a compare-and-swap register, not a lock: what a record means, whether it is
//! stale and who may replace it is decided in [`crate::mutex`].

pub mod file;
pub mod memory;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::process::Pid;

use crate::record::Record;

/// A register that holds at most one record.
pub trait Backend {
    /// What this register is called in messages.
    fn location(&self) -> String;

    /// What is stored; `None` when nothing is.
    ///
    /// # Errors
    /// When it cannot be told.
    fn load(&mut self) -> Result<Option<Stored>, Error>;

    /// Stores `record` only if nothing is stored.
    ///
    /// # Errors
    /// When it certainly was not stored, for another reason than a conflict.
    fn create(&mut self, record: &Record) -> Result<Write, Error>;

    /// Stores `record` only if `seen` is still what is stored.
    ///
    /// # Errors
    /// As for [`Backend::create`].
    fn replace(&mut self, seen: &Stored, record: &Record) -> Result<Write, Error>;

    /// Stores nothing any more, only if `seen` is still what is stored.
    ///
    /// # Errors
    /// When `seen` certainly was not removed, for another reason than a conflict.
    fn delete(&mut self, seen: &Stored) -> Result<Write, Error>;

    /// Sleeps at most `limit`. Returns early when something may have changed, when one of `fds` becomes readable, or for
    /// no reason at all.
    ///
    /// # Errors
    /// When it cannot sleep.
    fn wait(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Error>;

    /// Sleeps as [`Backend::wait`] does, without a place among those who want the lock.
    ///
    /// # Errors
    /// When it cannot sleep.
    fn watch(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.wait(limit, fds)
    }

    /// Wakes whoever is to look next, because a holder has gone.
    fn notify(&mut self) {}

    /// Whether nobody waits who came before. A backend without a queue serves in any order.
    ///
    /// # Errors
    /// When it cannot be told.
    fn is_first(&mut self) -> Result<bool, Error> {
        Ok(true)
    }

    /// Whether it waits behind others, and so will be woken when its turn comes.
    fn is_in_line(&mut self) -> bool {
        false
    }

    /// Waits no more, and lets the next one come.
    fn leave(&mut self) {}

    /// Waits to be told how it went, without wanting the lock: takes no turn, but is seen by [`Backend::is_awaited`].
    fn attend(&mut self) {}

    /// Whether others wait, as far as it is known.
    fn is_awaited(&mut self) -> bool {
        false
    }

    /// The processes that wait, in turn, as far as they are known.
    fn waiters(&mut self) -> Vec<Pid> {
        Vec::new()
    }
}

/// What a backend holds, as of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// What it says.
    pub content: Content,
    /// Which state of the register this is.
    pub version: Version,
    /// When it was stored, by the clock of this machine.
    pub written: Option<SystemTime>,
    /// Whether no other machine can have stored it.
    pub is_local: bool,
}

/// What is stored says this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing yet: somebody has made a place and not written to it.
    Empty,
    /// Somebody holds, or held, the lock.
    Record(Box<Record>),
}

impl Content {
    /// The record, if there is one.
    pub fn record(&self) -> Option<&Record> {
        match self {
            Self::Empty => None,
            Self::Record(record) => Some(record),
        }
    }
}

/// Identifies a state of a register; only the backend that made it knows what is inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(Vec<u8>);

/// How a conditional write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It was done.
    Done,
    /// Nothing was changed: the register did not hold what the caller expected.
    Conflict,
}

/// Why a backend could not do its work. The message is complete: it says what could not be done, to what, and why.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path names something that is no lock.
    #[error("`{path}` is not a lock file: {why}")]
    NotALock {
        /// The path, printable.
        path: String,
        /// What it is instead.
        why: String,
    },
    /// Somebody keeps the lock file busy; nothing was changed.
    #[error("another process keeps the lock file `{path}` locked (flock)")]
    Contended {
        /// The path, printable.
        path: String,
    },
    /// Whether the lock is stale is known, but not how to take it over so that nobody else does at the same time.
    #[error(
        "cannot take over the stale lock file `{path}`: flock does not exclude other hosts on its file system ({file_system})"
    )]
    FakedFlock {
        /// The path, printable.
        path: String,
        /// The file system's name.
        file_system: String,
    },
    /// The operating system refused; nothing was changed.
    #[error("cannot {action} the lock file `{path}`: {}", plain(source_error))]
    Io {
        /// What was tried: create, read, take over, remove …
        action: &'static str,
        /// The path, printable.
        path: String,
        /// The operating system's answer.
        source_error: std::io::Error,
    },
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        use std::io::ErrorKind;
        match self {
            Self::NotALock { .. } => Some("check `SERIALIZER_FILE_NAME` and `SERIALIZER_DIR`; the file was not changed".into()),
            Self::FakedFlock { path, .. } => Some(format!("when you are certain that nobody uses it, remove `{path}`")),
            Self::Contended { path } => Some(format!("`fuser -v {path}` shows who has it open")),
            Self::Io { source_error, path, action } => match source_error.kind() {
                ErrorKind::NotFound => {
                    Some("create the directory with `serializer initialize`, or name another one with `SERIALIZER_DIR`".into())
                }
                ErrorKind::PermissionDenied if *action == "create" => {
                    Some("name a directory that you can write to with `SERIALIZER_DIR`".into())
                }
                ErrorKind::PermissionDenied if ["take over", "change"].contains(action) => Some(
                    "in a directory with the sticky bit, only the user whose file it is, or root, can replace it; for several \
                     users, name a directory without that with `SERIALIZER_DIR`"
                        .into(),
                ),
                ErrorKind::PermissionDenied => Some(format!("`ls -l {path}` shows whose file it is")),
                ErrorKind::ReadOnlyFilesystem | ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                    Some("name another directory with `SERIALIZER_DIR`".into())
                }
                _ => None,
            },
        }
    }
}

/// An operating system's error as part of a sentence: lower case and without its number.
pub fn plain(error: &std::io::Error) -> impl fmt::Display {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect::<String>())
        .unwrap_or_else(|| "unknown error".to_owned())
}

/// Opens the backend that keeps the lock at `path`. The one place that knows which backends there are.
pub fn open(path: &Path) -> Box<dyn Backend> {
    Box::new(file::LockFile::new(path))
}
