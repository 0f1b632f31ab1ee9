//! Locks in a directory that hosts share, over NFS above all: a file for each.

pub(super) mod names;
pub mod scope;
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

use super::failure::Failure;
use super::file::publish::open;
use super::seam::{Key, Kind, Next, Page, State, Store, Write};
use crate::store::address::StoreSettings;
use crate::sys::text::{self, io_message};
pub(super) use names::{listed, name_of, stored_name};
use shared_file::SharedFile;
pub(super) use slot::MAGIC;

const PAGE: usize = 100;

/// A directory with a file for each register.
pub struct Directory {
    directory: PathBuf,
    timeout: Duration,
    open: BTreeMap<Key, SharedFile>,
}

impl Directory {
    /// The directory of an address. Touches nothing yet.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        let directory = settings.url.directory().unwrap_or_default();
        if settings.url.rest.contains('?') {
            let hint =
                "instead of `nfs=3`, run `serializer initialize` once; `%3F` is a `?` in a name";
            return Err(Failure::refused("the address of a directory has no options", hint));
        }
        if !directory.is_absolute() {
            let hint = "it looks like `file:///mnt/shared/locks`";
            return Err(Failure::refused("its address has no absolute path", hint));
        }
        Ok(Self { directory, timeout: settings.timeout, open: BTreeMap::new() })
    }

    fn file(&mut self, key: &Key) -> &mut SharedFile {
        let Self { directory, timeout, open } = self;
        open.entry(key.clone())
            .or_insert_with(|| SharedFile::new(directory.join(stored_name(key)), *timeout))
    }
}

impl Store for Directory {
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        self.file(key).load()
    }

    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        self.file(key).store(expected, next)
    }

    /// All registers with a file that was begun, including those that cannot be read now.
    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page, Failure> {
        scope::check(&self.directory, &opened(&self.directory)?)?;
        let files = listed(&self.directory, after, |file| name_of(kind, file));
        let mut files = files.map_err(trouble)?;
        let next = files.get(PAGE).map(|_| files[PAGE - 1].0.clone());
        files.truncate(PAGE);
        let unreadable = |_| State { value: Some(String::new()), ..State::default() };
        let entry = |(name, file): (OsString, OsString)| {
            // Other programs keep files there, too, which must not even be locked.
            let path = self.directory.join(&file);
            open(&path, OFlags::RDONLY).ok().flatten().filter(slot::is_begun)?;
            // A flock on one register is not waited for here.
            let mut file = SharedFile::new(path, Duration::ZERO);
            Some((name, file.load().unwrap_or_else(unreadable)))
        };
        Ok(Page { entries: files.into_iter().filter_map(entry).collect(), next })
    }

    fn purge(&mut self, key: &Key, expected: &State) -> Result<Write, Failure> {
        self.file(key).remove(expected)
    }

    /// Confirms, on the user's behalf, that hosts share a directory on a file system that does not
    /// tell. Never makes the directory: where nothing is mounted yet, each host would have its own.
    fn verify_conditional_writes(&mut self, _key: &Key) -> Result<(), Failure> {
        scope::declare(&self.directory)
    }

    /// A poll is some six messages to a file server.
    fn poll_interval(&self) -> (Duration, Duration) {
        (Duration::from_millis(50), Duration::from_secs(1))
    }
}

fn opened(directory: &Path) -> Result<File, Failure> {
    File::open(directory).map_err(|error| unusable(directory, error))
}

fn unusable(directory: &Path, error: impl Into<io::Error>) -> Failure {
    let error = error.into();
    if error.kind() != io::ErrorKind::NotFound {
        return trouble(error);
    }
    let why = format!("directory `{}` does not exist", text::path(directory));
    let hint = "mount it, or make it on the file system that the hosts share: made by this \
                program, each host would have its own";
    Failure::refused(why, hint.to_owned() + on_one_machine(directory))
}

/// A further hint for one machine: the address may be copied from Meltano's state backend.
fn on_one_machine(directory: &Path) -> &'static str {
    let is_meltanos = directory.iter().any(|part| part == ".meltano");
    if !is_meltanos {
        return "";
    }
    "; for Meltano on one machine, leave the store out, and set `SERIALIZER_DIR=.meltano`"
}

fn trouble(error: impl Into<io::Error>) -> Failure {
    use Errno as E;
    let error = error.into();
    let why = io_message(&error).to_string();
    match Errno::from_io_error(&error) {
        // The file was removed, the server restarts, or it takes longer than a soft mount waits.
        Some(E::NOENT | E::STALE | E::NOLCK | E::IO) => Failure::transient(why),
        Some(E::TIMEDOUT | E::HOSTDOWN | E::HOSTUNREACH | E::AGAIN | E::INTR) => {
            Failure::transient(why)
        }
        Some(E::ACCESS | E::PERM) => Failure::refused(
            why,
            "its users need the rights to read and write it, and to make files beside it",
        ),
        _ => Failure::permanent(why),
    }
}
