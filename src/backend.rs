//! Where registers are kept. A store is a compare-and-swap register per key, not a lock: what a record means, whether it is
//! stale and when it is replaced is decided in [`crate::mutex`]. The seam between the two is [`seam::Store`].

#[cfg(any(feature = "dynamodb", feature = "object-store"))]
mod aws;
#[cfg(any(feature = "dynamodb", feature = "object-store"))]
mod checks;
mod directory;
#[cfg(feature = "dynamodb")]
mod dynamodb;
mod engines;
pub mod failure;
pub mod file;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "dynamodb", feature = "object-store"))]
mod key;
pub mod looks;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "dynamodb", feature = "object-store"))]
mod network;
#[cfg(feature = "object-store")]
mod object;
#[cfg(feature = "postgres")]
mod postgres;
pub mod retry;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "dynamodb", feature = "object-store"))]
mod runtime;
pub mod seam;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod sql;

use std::ffi::OsString;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::mutex::register::Register;
use crate::printable;
use crate::store::StoreSettings;
pub use failure::{Cause, Error, Failure};
use seam::{Key, Kind, Page};

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
pub fn sleep(limit: Duration, fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let timeout = Timespec::try_from(limit).map_err(|_| Errno::INVAL)?;
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Which lock, and where it is. Serialized, it holds the store's password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

    /// Whether its holders cannot see each other.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Store(..))
    }
}

/// Opens the register that keeps a lock, without touching it.
pub fn open(location: &Location) -> Result<Register, Error> {
    let (store, name): (Box<dyn seam::Store>, _) = match location {
        Location::File(path) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            (Box::new(file::Files::new(parent)), path.file_name().unwrap_or_default())
        }
        Location::Store(settings, name) => (open_store(settings)?, name.as_os_str()),
    };
    Ok(Register::new(store, Key::lock(name), location.printable()))
}

/// Opens a store, without connecting to it.
pub fn open_store(settings: &StoreSettings) -> Result<Box<dyn seam::Store>, Error> {
    let unusable = |failure| Failure { cause: Cause::Unusable, ..failure }.during("use the store", settings.url.to_string());
    engines::open(settings).map_err(unusable)
}

/// A table with more pages of locks is not for locks alone, and going through it costs money in some stores.
const MAX_PAGES: usize = 1000;

/// All locks of a store that are held, or were, in the order of their names.
pub fn all_in(settings: &StoreSettings) -> Result<Vec<Location>, Error> {
    let place = || settings.url.to_string();
    let mut store = open_store(settings)?;
    let mut locks = Vec::new();
    let mut after = None;
    for _ in 0..MAX_PAGES {
        let page = match store.list(Kind::Lock, after.as_deref()) {
            Err(Failure { cause: Cause::NotPrepared, .. }) => Page::default(),
            page => page.map_err(|failure| failure.during("list the locks of", place()))?,
        };
        let held = page.entries.into_iter().filter(|(_, state)| state.value.is_some());
        locks.extend(held.map(|(name, _)| Location::Store(settings.clone(), name)));
        after = page.next;
        if after.is_none() {
            return Ok(locks);
        }
    }
    let failure = Failure::permanent("it holds too many").with_hint("name the locks, or give locks a store of their own");
    Err(failure.during("list the locks of", place()))
}
