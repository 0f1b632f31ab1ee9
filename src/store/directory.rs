//! Locks in a directory that hosts share, over NFS above all: a file for each.

mod names;
mod scope;
mod shared_file;
mod slot;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::failure::{Cause, Failure};
use super::file::publish::open;
use super::seam::{Key, Kind, Next, Page, State, Store, Write};
use crate::store::address::StoreSettings;
use crate::sys::text::{self, io_message};
pub(super) use names::{listed, name_of, stored_name};
use shared_file::SharedFile;
pub(super) use slot::MAGIC;

/// How many files are read for a page.
const PAGE: usize = 100;

/// A directory with a file for each register.
pub struct Directory {
    directory: PathBuf,
    /// How long to try for a flock.
    timeout: Duration,
    /// The files that were used.
    open: BTreeMap<Key, SharedFile>,
}

impl Directory {
    /// The directory of an address. Touches nothing yet.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        if settings.url.place().contains('?') {
            let failure = Failure::permanent("the address of a directory has no options");
            let hint = "instead of `nfs=3`, run `serializer initialize` once; where its name has a \
                        `?`, write `%3F`";
            return Err(failure.with_hint(hint));
        }
        let directory = settings.url.directory().unwrap_or_default();
        if !directory.is_absolute() {
            let failure = Failure::permanent("its address has no absolute path");
            return Err(failure.with_hint("it looks like `file:///mnt/shared/locks`"));
        }
        Ok(Self { directory, timeout: settings.timeout, open: BTreeMap::new() })
    }

    fn file(&mut self, key: &Key) -> &mut SharedFile {
        let Self { directory, timeout, open } = self;
        open.entry(key.clone())
            .or_insert_with(|| SharedFile::new(directory, &stored_name(key), *timeout))
    }
}

impl Store for Directory {
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        self.file(key).load()
    }

    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        self.file(key).store(expected, next)
    }

    /// All registers whose files were begun, including those that cannot be read now.
    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page, Failure> {
        let cannot = |error: io::Error| trouble(&self.directory, error);
        scope::check(&self.directory, &File::open(&self.directory).map_err(cannot)?)?;
        let mut files =
            listed(&self.directory, after, |file| name_of(kind, file)).map_err(cannot)?;
        let next = files.get(PAGE).map(|_| files[PAGE - 1].0.clone());
        files.truncate(PAGE);
        // Other programs keep files there, too, which must not even be locked.
        let opened = |file: &OsStr| open(&self.directory.join(file), OFlags::RDONLY).ok().flatten();
        files.retain(|(_, file)| opened(file).is_some_and(|file| slot::is_begun(&file)));
        let state = |file: OsString| {
            // A flock on one register is not waited for here.
            let state = SharedFile::new(&self.directory, &file, Duration::ZERO).load();
            state.unwrap_or_else(|_| State { value: Some(String::new()), ..State::default() })
        };
        Ok(Page {
            entries: files.into_iter().map(|(name, file)| (name, state(file))).collect(),
            next,
        })
    }

    fn purge(&mut self, key: &Key, expected: &State) -> Result<Write, Failure> {
        self.file(key).remove(expected)
    }

    /// Never makes the directory: where nothing is mounted yet, each host would have its own.
    /// Confirms, on the user's behalf, that hosts share a directory whose file system does not
    /// tell.
    fn verify_conditional_writes(&mut self, _key: &Key) -> Result<(), Failure> {
        scope::declare(&self.directory)
    }

    fn repair(&self) -> &'static str {
        "removing the file when nothing uses it"
    }

    /// A poll is some six messages to a file server.
    fn poll_interval(&self) -> (Duration, Duration) {
        (Duration::from_millis(50), Duration::from_secs(1))
    }
}

fn missing(directory: &Path) -> Failure {
    let hint = "mount it, or make it on the file system that the hosts share; this program does \
                not, because each host would make its own";
    Failure::permanent(format!("there is no directory `{}`", text::path(directory)))
        .with_hint(hint.to_owned() + on_one_machine(directory))
}

/// A further hint for one machine: the address may be copied from Meltano's state backend, as is
/// right for buckets.
fn on_one_machine(directory: &Path) -> &'static str {
    let is_meltanos = directory.iter().any(|part| part == ".meltano");
    if is_meltanos {
        "; for Meltano on one machine, leave the store out, and set `SERIALIZER_DIR=.meltano`"
    } else {
        ""
    }
}

/// The failure for an error of the operating system.
fn trouble(directory: &Path, error: impl Into<io::Error>) -> Failure {
    use Errno as E;
    let error = error.into();
    let failure = Failure::transient(io_message(&error).to_string());
    match Errno::from_io_error(&error) {
        Some(E::NOENT) => missing(directory),
        // The file was removed, the server restarts, or it takes longer than a soft mount waits.
        Some(
            E::STALE
            | E::NOLCK
            | E::IO
            | E::TIMEDOUT
            | E::HOSTDOWN
            | E::HOSTUNREACH
            | E::AGAIN
            | E::INTR,
        ) => failure,
        Some(E::ACCESS | E::PERM) => {
            let hint = "its users need the rights to read and write the file, and to make files in \
                        its directory";
            Failure { cause: Cause::Permanent, ..failure }.with_hint(hint)
        }
        _ => Failure { cause: Cause::Permanent, ..failure },
    }
}
