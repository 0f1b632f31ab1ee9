//! Where lock records are kept. A backend is a compare-and-swap register, not a lock: what a record means, whether it is
//! stale and who may replace it is decided in [`crate::mutex`].

mod directory;
#[cfg(feature = "dynamodb")]
mod dynamodb;
mod engines;
pub mod file;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "dynamodb", feature = "object-store"))]
mod key;
mod looks;
pub mod memory;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "dynamodb", feature = "object-store"))]
mod network;
#[cfg(feature = "object-store")]
mod object;
#[cfg(feature = "postgres")]
mod postgres;
pub mod remote;
pub mod seam;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod sql;

use std::ffi::OsString;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::printable;
use crate::record::{Entry, Record};
use crate::store::StoreSettings;
use crate::waiter::Waiter;
use engines::Engine;
use remote::{Cause, Failure};

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

    /// Tries whether it refuses what it has to, where that depends on what it is kept by. Nobody may use the lock meanwhile.
    ///
    /// # Errors
    /// When it does not.
    fn prove(&mut self) -> Result<(), Error> {
        Ok(())
    }

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

    /// What the store's clock says now, in milliseconds, or a little later: as what was loaded last tells. `None` where it has none.
    fn now(&self) -> Option<u64> {
        None
    }

    /// The number of whoever writes next, given what was loaded last: larger than all before it. `None` where nobody counts.
    fn next_number(&self) -> Option<u64> {
        None
    }

    /// Gives up what it keeps open, until it is used again: a command may run for hours.
    fn disconnect(&mut self) {}

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

    /// Whether it had better not look as often as others do, because there is no room for those who wait.
    fn is_kept_out(&mut self) -> bool {
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

    /// Leaves notices of broken acquisitions, where the record itself cannot hold them. Best effort.
    fn leave_notices(&mut self, _broken: &[Entry]) {}

    /// Whether there was a notice for which `is_own` holds. Removes it.
    fn take_notices(&mut self, _is_own: &dyn Fn(&Record, &Entry) -> bool) -> bool {
        false
    }

    /// Those who wait, in turn, as far as they are known.
    fn waiters(&mut self) -> Vec<Waiter> {
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
    /// What the store's clock said when it was read, in milliseconds, where it has one.
    pub now: Option<u64>,
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version(Vec<u8>);

/// How a conditional write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It was done.
    Done,
    /// Nothing was changed: the register did not hold what the caller expected.
    Conflict,
    /// It is not what is stored now; but it may have been done, with somebody else's change behind it.
    Unclear,
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
    /// The file is a lock of another kind.
    #[error("`{path}` is a lock that hosts share, under leases")]
    SharedByHosts {
        /// The path, printable.
        path: String,
    },
    /// Somebody keeps the lock file busy; nothing was changed.
    #[error("another process keeps the lock file `{path}` locked (flock)")]
    Contended {
        /// The path, printable.
        path: String,
    },
    /// Whether the lock may be changed is known, but not how to do that so that nobody else does at the same time.
    #[error(
        "cannot {action} the lock file `{path}`: on its file system ({file_system}), hosts do not see at once that a file is exchanged"
    )]
    NoExchange {
        /// What was tried.
        action: &'static str,
        /// The path, printable.
        path: String,
        /// The file system's name.
        file_system: String,
    },
    /// A store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A store cannot be asked, because of what was set up. Nothing was tried.
    #[error(transparent)]
    Unusable(StoreError),
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
    /// Whether it may work soon.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store(error) if error.cause.passes())
    }

    /// Whether there was no connection to be had, of which those who hold locks have more need than those who wait.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Store(error) if error.cause == Cause::Full)
    }

    /// Whether it may have been done all the same.
    pub fn is_indefinite(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_indefinite)
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        use std::io::ErrorKind;
        match self {
            Self::Store(error) | Self::Unusable(error) => error.hint.clone(),
            Self::NotALock { .. } => Some("check `SERIALIZER_FILE_NAME` and `SERIALIZER_DIR`; the file was not changed".into()),
            Self::SharedByHosts { .. } => Some("set `SERIALIZER_LEASE_SECONDS` here, too, as they have it".into()),
            Self::NoExchange { path, .. } => Some(format!(
                "for locks that end with their holders there, set `SERIALIZER_LEASE_SECONDS` on all hosts; when you are certain that \
                 nobody uses it, remove `{path}`"
            )),
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

/// Why a store did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{location}`: {why}{}", if *is_indefinite { "; whether it was changed is not known" } else { "" })]
pub struct StoreError {
    /// What was tried, and with what: read the lock …
    pub action: &'static str,
    /// The lock, printable and without secrets.
    pub location: String,
    /// What the store says, or what is in the way.
    pub why: String,
    /// What the user can do about it.
    pub hint: Option<String>,
    /// What kind of reason that is.
    pub cause: Cause,
    /// Whether it may have been done all the same.
    pub is_indefinite: bool,
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

/// Sleeps at most `limit`, or until one of `fds` becomes readable.
///
/// # Errors
/// When it cannot sleep.
pub fn sleep(limit: Duration, fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let timeout = Timespec::try_from(limit).map_err(|_| Errno::INVAL)?;
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Which lock, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file at this path.
    File(PathBuf),
    /// A lock of this name in a store that many hosts share.
    Store(StoreSettings, OsString),
}

impl Location {
    /// What it is called in messages.
    pub fn printable(&self) -> String {
        match self {
            Self::File(path) => printable::path(path),
            Self::Store(settings, name) => format!("{}#{}", settings.url, printable::path(Path::new(name))),
        }
    }

    /// Whether those who hold it cannot see each other.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Store(..))
    }
}

/// Opens the backend that keeps a lock, without touching it.
///
/// # Errors
/// When this program was built without it, or its address cannot be used.
pub fn open(location: &Location) -> Result<Box<dyn Backend>, Error> {
    match location {
        Location::File(path) => Ok(Box::new(file::LockFile::new(path))),
        Location::Store(settings, name) => {
            let cannot = |failure: Failure| Error::Unusable(failure.during("use the lock", location.printable()));
            let engine = Engine::of(settings.url.scheme()).map_err(cannot)?;
            (engine.open)(settings, name, location.printable()).map_err(cannot)
        }
    }
}

/// All locks of a store that somebody holds, or held, in the order of their names.
///
/// # Errors
/// When they cannot be listed.
pub fn all_in(settings: &StoreSettings) -> Result<Vec<Location>, Error> {
    // What is wrong with the settings is told in the same way as for one lock.
    open(&Location::Store(settings.clone(), OsString::new()))?;
    let names = Engine::of(settings.url.scheme()).and_then(|engine| (engine.names)(settings));
    let names = names.map_err(|failure| failure.during("list the locks of", settings.url.to_string()))?;
    Ok(names.into_iter().map(|name| Location::Store(settings.clone(), name)).collect())
}

/// The statements that make a store's table; `None` where it is not made by statements.
///
/// # Errors
/// When this program was built without the store.
pub fn schema(settings: &StoreSettings) -> Result<Option<&'static str>, Error> {
    let engine = Engine::of(settings.url.scheme());
    let cannot = |failure: Failure| Error::Unusable(failure.during("use the store", settings.url.to_string()));
    Ok(engine.map_err(cannot)?.schema)
}
