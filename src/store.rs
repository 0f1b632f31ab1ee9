//! Where registers are kept. A store is a compare-and-swap register per key, not a lock: what a
//! record means, whether it is stale and when it is replaced is decided in [`crate::lock`]. The
//! seam between the two is [`seam::Store`].

pub mod address;
#[cfg(any(feature = "dynamodb", feature = "object-store"))]
mod aws;
pub mod backoff;
#[cfg(any(feature = "dynamodb", feature = "object-store"))]
mod checks;
mod directory;
#[cfg(feature = "dynamodb")]
mod dynamodb;
pub(crate) mod engines;
pub mod failure;
pub mod file;
#[cfg(any(
    feature = "postgres",
    feature = "mysql",
    feature = "dynamodb",
    feature = "object-store"
))]
mod key;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(any(
    feature = "postgres",
    feature = "mysql",
    feature = "dynamodb",
    feature = "object-store"
))]
mod network;
#[cfg(feature = "object-store")]
mod object;
#[cfg(feature = "postgres")]
mod postgres;
pub mod retry;
#[cfg(any(
    feature = "postgres",
    feature = "mysql",
    feature = "dynamodb",
    feature = "object-store"
))]
mod runtime;
pub mod seam;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod sql;
pub mod waiter;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::lock::register::Register;
use crate::store::address::StoreSettings;
use crate::sys::text;
pub use failure::{Cause, Error, Failure};
use seam::{Key, Kind, Page};

/// Which register, and where it is. Serialized, it holds the store's password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Location {
    /// A file in this directory.
    File(PathBuf, Key),
    /// In a store that many hosts share.
    Store(StoreSettings, Key),
}

impl Location {
    /// The lock whose file has this path.
    pub fn file(path: &Path) -> Self {
        let parent =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self::File(parent.to_owned(), Key::lock(path.file_name().unwrap_or_default()))
    }

    /// The lock of this name in a store.
    pub fn store(settings: StoreSettings, name: &OsStr) -> Self {
        Self::Store(settings, Key::lock(name))
    }

    /// Another register at the same place.
    pub fn sibling(&self, key: Key) -> Self {
        match self {
            Self::File(directory, _) => Self::File(directory.clone(), key),
            Self::Store(settings, _) => Self::Store(settings.clone(), key),
        }
    }

    /// Which register.
    pub fn key(&self) -> &Key {
        let (Self::File(_, key) | Self::Store(_, key)) = self;
        key
    }

    /// What it is called in messages.
    pub fn printable(&self) -> String {
        match self {
            Self::File(directory, key) => text::path(&directory.join(file::file_name(key))),
            Self::Store(settings, key) => {
                format!(
                    "{}#{}{}",
                    settings.url,
                    key.kind.prefix(),
                    text::path(Path::new(&key.name))
                )
            }
        }
    }

    /// What the place is called in messages, without the register.
    pub fn shown_place(&self) -> String {
        match self {
            Self::File(directory, _) => text::path(directory),
            Self::Store(settings, _) => settings.url.to_string(),
        }
    }

    /// Whether its holders cannot see each other.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Store(..))
    }
}

/// Opens a store, without connecting to it.
pub fn open(location: &Location) -> Result<Box<dyn seam::Store>, Error> {
    match location {
        Location::File(directory, _) => Ok(Box::new(file::Files::new(directory))),
        Location::Store(settings, _) => open_store(settings),
    }
}

/// Opens a store, without connecting to it.
pub fn open_store(settings: &StoreSettings) -> Result<Box<dyn seam::Store>, Error> {
    let unusable = |failure| {
        Failure { cause: Cause::Unusable, ..failure }
            .during("use the store", settings.url.to_string())
    };
    engines::open(settings).map_err(unusable)
}

/// A table with more pages of locks is not for locks alone, and going through it costs money in
/// some stores.
const MAX_PAGES: usize = 1000;

/// All registers of a kind in a store that have a value, in the order of their names.
pub fn all_in(settings: &StoreSettings, kind: Kind) -> Result<Vec<Location>, Error> {
    let mut store = open_store(settings)?;
    let all = list_all(&mut *store, kind).map_err(|failure| {
        failure.during(&format!("list {}s of", kind.noun()), settings.url.to_string())
    })?;
    let held = all.into_iter().filter(|(_, state)| state.value.is_some());
    Ok(held.map(|(name, _)| Location::Store(settings.clone(), Key { kind, name })).collect())
}

/// All registers of a kind in a store, with their states as [`seam::Store::list`] gives them.
pub fn list_all(
    store: &mut dyn seam::Store,
    kind: Kind,
) -> Result<Vec<(OsString, seam::State)>, Failure> {
    let (mut all, mut after) = (Vec::new(), None);
    for _ in 0..MAX_PAGES {
        let page = match store.list(kind, after.as_deref()) {
            Err(Failure { cause: Cause::NotPrepared, .. }) => Page::default(),
            page => page?,
        };
        all.extend(page.entries);
        after = page.next;
        if after.is_none() {
            return Ok(all);
        }
    }
    Err(Failure::permanent("it holds too many")
        .with_hint("name the locks, or give locks a store of their own"))
}
