//! Where registers are kept. What a record means, whether it is stale and when it is replaced is
//! decided in [`crate::lock`]. The seam between the two is [`seam::Store`].

pub mod address;
#[cfg(any(feature = "dynamodb", feature = "object-store"))]
mod aws;
pub mod backoff;
#[cfg(any(feature = "dynamodb", feature = "object-store"))]
mod checks;
pub mod directory;
#[cfg(feature = "dynamodb")]
mod dynamodb;
pub(crate) mod engines;
pub mod failure;
pub mod file;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "network")]
mod network;
#[cfg(feature = "object-store")]
mod object;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "network")]
mod runtime;
pub mod seam;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod sql;
pub mod waiter;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::store::address::StoreSettings;
use crate::sys::poll::sleep;
use crate::sys::text::{self, io_message};
use failure::Result;
pub use failure::{Cause, Error, Failure};
use seam::{Fds, Key, Kind, Page, State, Store};

/// Sleeps as [`sleep`] does, for a store.
pub(crate) fn pause(limit: Duration, fds: Fds<'_>) -> Result<()> {
    let cannot = |error: Errno| format!("cannot sleep: {}", io_message(&error.into()));
    sleep(limit, fds).map_err(|error| Failure::permanent(cannot(error)))
}

/// Which register, and where it is. Serialized, it holds the store's password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Location {
    /// A file in this directory.
    File(PathBuf, Key),
    /// In a store that many hosts share.
    Store(StoreSettings, Key),
}

impl Location {
    /// The lock with this file.
    pub fn file(path: &Path) -> Self {
        let key = Key::lock(path.file_name().unwrap_or_default());
        Self::File(file::publish::directory(path).to_owned(), key)
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

    /// All registers of a kind at the same place that have a value, in the order of their names.
    pub fn all(&self, kind: Kind) -> Result<Vec<Self>, Error> {
        let all = list_all(&mut *open(self)?, kind).map_err(|failure| {
            failure.during(&format!("list {}s of", kind.noun()), self.shown_place())
        })?;
        let held = all.into_iter().filter(|(_, state)| state.value.is_some());
        Ok(held.map(|(name, _)| self.sibling(Key { kind, name })).collect())
    }

    /// Which register.
    pub fn key(&self) -> &Key {
        let (Self::File(_, key) | Self::Store(_, key)) = self;
        key
    }

    /// Its name and place, for errors and events.
    pub fn printable(&self) -> String {
        match (self, self.key()) {
            (Self::File(directory, _), Key { kind: Kind::Lock, name }) => {
                text::path(&directory.join(name))
            }
            // As typed by the user. The file of a key has another name.
            (_, Key { kind, .. }) => {
                format!("{}#{}{}", self.shown_place(), kind.prefix(), self.name())
            }
        }
    }

    /// Its name, for all other messages.
    pub fn name(&self) -> String {
        text::path(Path::new(&self.key().name))
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
pub fn open_store(settings: &StoreSettings) -> Result<Box<dyn Store>, Error> {
    let unusable = |failure| Failure { cause: Cause::Unusable, ..failure };
    let store = engines::open(settings).map_err(unusable);
    store.map_err(|failure| failure.during("use the store", settings.url.to_string()))
}

/// A table with more pages of locks is not for locks alone, and going through it costs money.
const MAX_PAGES: usize = 1000;

/// All registers of a kind in a store, with their states as [`Store::list`] gives them.
pub fn list_all(store: &mut dyn Store, kind: Kind) -> Result<Vec<(OsString, State)>> {
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
    let hint = "name the locks, or give locks a store of their own";
    Err(Failure::permanent("it holds too many").with_hint(hint))
}
