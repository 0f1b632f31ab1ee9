//! Locks of one machine: a file for each, in a directory.

mod legacy;
mod lock_file;
pub(super) mod publish;
mod queue;
mod wakeup;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::directory::{listed, name_of, stored_name};
use super::failure::{Cause, Failure};
use super::seam::{Key, Kind, Next, Page, Queue, State, Store, Write};
use crate::sys::filesystem;
use crate::sys::text::{self, io_message};
use lock_file::LockFile;
pub use publish::{is_temporary, sweep};

const CREATE: &str = "create the lock file";
const READ: &str = "read the lock file";
const CHANGE: &str = "take over the lock file";
const REMOVE: &str = "remove the lock file";

/// A directory with lock files.
#[derive(Debug)]
pub struct Files {
    directory: PathBuf,
    open: BTreeMap<Key, LockFile>,
}

impl Files {
    /// Does not touch the file system yet.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), open: BTreeMap::new() }
    }

    fn file(&mut self, key: &Key) -> &mut LockFile {
        let directory = &self.directory;
        self.open.entry(key.clone()).or_insert_with(|| {
            LockFile::new(directory.join(file_name(key)), key.kind != Kind::Lock)
        })
    }
}

/// The file of a lock has the lock's name. Files of other kinds are named as in a shared directory.
pub(super) fn file_name(key: &Key) -> OsString {
    if key.kind == Kind::Lock { key.name.clone() } else { stored_name(key) }
}

fn name_of_register(kind: Kind, file: &OsStr) -> Option<OsString> {
    if kind == Kind::Lock {
        (!is_temporary(file)).then(|| file.to_owned())
    } else {
        name_of(kind, file)
    }
}

/// Why a directory does not keep what must outlive a crash of the machine.
pub fn forgets(path: &Path) -> Option<String> {
    if [Path::new("/tmp"), Path::new("/var/tmp")].contains(&path) {
        return Some("old files are removed there".to_owned());
    }
    let directory = File::open(path).ok()?;
    if let Some(file_system) = filesystem::without_exchange(&directory) {
        return Some(format!(
            "its file system ({file_system}) is shared by hosts; set `SERIALIZER_LEASE_SECONDS`, \
             too"
        ));
    }
    filesystem::is_in_memory(&directory)
        .then(|| "its file system is in memory, and empty after a reboot".to_owned())
}

/// The file system of a directory, and why locks are unreliable there.
pub fn file_system(directory: &Path) -> Option<(String, Option<&'static str>)> {
    let opened = File::open(directory).ok()?;
    let (name, options) = filesystem::mount(&opened)?;
    let why = if filesystem::without_exchange(&opened).is_some() {
        Some("shared by hosts: the lock of a dead holder is not taken over")
    } else if filesystem::is_local(&opened) {
        None
    } else {
        Some("may not lock out other hosts or other mounts")
    };
    let how = if why.is_none() { ", flock works on this machine" } else { "" };
    let is_read_only = options.split(',').any(|option| option == "ro");
    Some((name + how + if is_read_only { ", read-only" } else { "" }, why))
}

impl Store for Files {
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        self.file(key).load()
    }

    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        let file = self.file(key);
        match (&expected.version, next.value) {
            (None, Some(text)) => file.create(text),
            (Some(version), Some(text)) => file.replace(expected, version, next, text),
            (Some(version), None) => file.delete(version),
            (None, None) => Ok(Write::Conflict),
        }
    }

    /// All registers, as far as the names of files tell: any file may be a lock.
    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page, Failure> {
        let names = listed(&self.directory, after, |file| name_of_register(kind, file));
        let names = names.map_err(|error| {
            // Keys need no directory before the first one.
            let is_none = kind != Kind::Lock && error.kind() == io::ErrorKind::NotFound;
            let cause = if is_none { Cause::NotPrepared } else { Cause::Permanent };
            let failure = Failure::permanent(io_message(&error).to_string());
            Failure { cause, ..failure.during_action("list the lock directory") }
        })?;
        let unread = State { value: Some(String::new()), ..State::default() };
        let entries = names.into_iter().map(|(name, _)| (name, unread.clone())).collect();
        Ok(Page { entries, next: None })
    }

    fn counts(&self) -> bool {
        false
    }

    /// A release removes the file.
    fn expires(&self) -> bool {
        true
    }

    fn foreign(&self, why: &str) -> Failure {
        not_a_lock(why)
    }

    fn queue(&mut self, key: &Key) -> Option<&mut dyn Queue> {
        Some(&mut self.file(key).queue)
    }
}

fn not_a_lock(why: &str) -> Failure {
    let hint = "check `SERIALIZER_FILE_NAME` and `SERIALIZER_DIR`; the file was not changed";
    Failure { cause: Cause::NotALock, ..Failure::permanent(why) }.with_hint(hint)
}

/// The failure for an error of the operating system; nothing was changed.
fn io_failure(path: &Path, action: &'static str, error: &io::Error) -> Failure {
    use io::ErrorKind;
    let failure = Failure::permanent(io_message(error).to_string()).during_action(action);
    let shown = text::path(path);
    // Only flock says so: what else is not supported is done in another way.
    if let Some(Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP) = Errno::from_io_error(error) {
        let directory = File::open(publish::directory(path)).ok();
        let mount = directory.and_then(|directory| filesystem::mount(&directory));
        let name = mount.map_or_else(|| "of an unknown kind".to_owned(), |(name, _)| name);
        let why = format!("flock does not work on its file system ({name}): {}", failure.why);
        return Failure { why, ..failure }
            .with_hint("name a directory on another file system with `SERIALIZER_DIR`");
    }
    let hint = match error.kind() {
        // There is something else than a regular file.
        ErrorKind::InvalidData => return not_a_lock(&error.to_string()),
        ErrorKind::WouldBlock => {
            let hint = format!("`fuser -v {shown}` shows the processes that have it open");
            let why = "another process keeps it locked (flock)".to_owned();
            return Failure { cause: Cause::Contended, why, ..failure }.with_hint(hint);
        }
        ErrorKind::NotFound => {
            "create the directory with `serializer initialize`, or name another one with \
             `SERIALIZER_DIR`"
        }
        ErrorKind::PermissionDenied if action == CREATE => {
            "name a directory that you can write to with `SERIALIZER_DIR`"
        }
        ErrorKind::PermissionDenied if action == CHANGE => {
            "in a directory with the sticky bit, only the file's owner, or root, can replace it; \
             for several users, name a directory without that bit with `SERIALIZER_DIR`"
        }
        ErrorKind::PermissionDenied => &format!("`ls -l {shown}` shows the file's owner"),
        ErrorKind::ReadOnlyFilesystem => "name another directory with `SERIALIZER_DIR`",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "make room there: another directory would have other locks"
        }
        _ => return failure,
    };
    failure.with_hint(hint)
}
