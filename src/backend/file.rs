//! Locks of one machine: a file for each, in a directory.

pub(super) mod filesystem;
mod legacy;
mod lock_file;
pub(super) mod publish;
mod queue;
mod wakeup;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::directory::{name_of, stored_name};
use super::failure::{Cause, Failure};
use super::plain;
use super::seam::{Key, Kind, Next, Notifier, Page, Queue, State, Store, Write};
use crate::printable;
use crate::waiter::Waiter;
use lock_file::LockFile;
pub(super) use lock_file::leads_to;

/// The interval between two polls where wake-ups are not heard.
const UNHEARD: Duration = Duration::from_secs(1);

const CREATE: &str = "create the lock file";
const READ: &str = "read the lock file";
const CHANGE: &str = "take over the lock file";
const REMOVE: &str = "remove the lock file";
const WAIT: &str = "wait for the lock file";

/// A directory with lock files.
#[derive(Debug)]
pub struct Files {
    directory: PathBuf,
    /// The lock files that were used, with their queues.
    open: BTreeMap<Key, LockFile>,
}

impl Files {
    /// Does not touch the file system yet.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), open: BTreeMap::new() }
    }

    fn file(&mut self, key: &Key) -> &mut LockFile {
        let directory = &self.directory;
        self.open.entry(key.clone()).or_insert_with(|| LockFile::new(&directory.join(file_name(key))))
    }
}

/// The file of a lock has the lock's name. Files of other kinds are named as in a shared directory.
fn file_name(key: &Key) -> OsString {
    if key.kind == Kind::Lock { key.name.clone() } else { stored_name(key) }
}

/// The register to which a file belongs.
fn key_of(kind: Kind, file: &OsStr) -> Option<Key> {
    let is_named_like_a_lock = || Path::new(file).extension().is_some_and(|end| end == "lck" || end == "lock");
    let name = match kind {
        Kind::Lock => is_named_like_a_lock().then(|| file.to_owned()),
        _ => name_of(kind, file),
    };
    name.map(|name| Key { kind, name })
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

    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page, Failure> {
        let cannot = |error: io::Error| io_failure(&self.directory, READ, &error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(cannot)? {
            let entry = entry.map_err(cannot)?;
            if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                names.push(entry.file_name());
            }
        }
        names.sort();
        let mut entries = Vec::new();
        for key in names.iter().filter_map(|name| key_of(kind, name)) {
            // Other programs keep files there, too.
            if after.is_none_or(|after| key.name.as_os_str() > after)
                && let Ok(state) = self.file(&key).load()
            {
                entries.push((key.name, state));
            }
        }
        Ok(Page { entries, next: None })
    }

    fn purge(&mut self, key: &Key, expected: &State) -> Result<Write, Failure> {
        match &expected.version {
            Some(version) => self.file(key).delete(version),
            None => Ok(Write::Conflict),
        }
    }

    fn create_schema(&mut self, _key: &Key) -> Result<(), Failure> {
        Ok(())
    }

    fn repair(&self) -> &'static str {
        "removing the file when nothing uses it"
    }

    fn counts(&self) -> bool {
        false
    }

    fn foreign(&self, why: &str) -> Failure {
        not_a_lock(why)
    }

    fn notifier(&mut self) -> Option<&mut dyn Notifier> {
        Some(self)
    }

    fn queue(&mut self) -> Option<&mut dyn Queue> {
        Some(self)
    }
}

impl Notifier for Files {
    fn wait(&mut self, key: &Key, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let file = self.file(key);
        if file.follow() {
            return Ok(());
        }
        let fds: Vec<_> = fds.iter().copied().chain(file.watch.changed_fd()).collect();
        super::sleep(limit.min(UNHEARD), &fds).map_err(|error| file.io_failure(WAIT, error))
    }

    fn notify(&mut self, key: &Key) {
        let file = self.file(key);
        file.wake_up.send();
        file.queue.sweep();
    }
}

impl Queue for Files {
    fn wait_in_turn(&mut self, key: &Key, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let file = self.file(key);
        // A release before this waiter was first, or before the socket existed, was not heard: poll
        // once.
        let has_come = file.queue.join();
        let is_first = file.queue.is_first();
        if (is_first && file.wake_up.listen()) || has_come {
            return Ok(());
        }
        let fds: Vec<_> = fds.iter().copied().chain(file.queue.turn_fd()).collect();
        // Another process has the socket's name, or the system has no such sockets.
        let limit = if is_first && !file.wake_up.is_listening() { limit.min(UNHEARD) } else { limit };
        file.wake_up.wait(limit, &fds).map_err(|error| file.io_failure(WAIT, error))
    }

    fn is_first(&mut self, key: &Key) -> bool {
        self.file(key).queue.is_first()
    }

    fn is_queued(&mut self, key: &Key) -> bool {
        self.file(key).queue.is_in_line()
    }

    fn leave(&mut self, key: &Key) {
        let file = self.file(key);
        // The next waiter must find the socket's name free.
        file.wake_up.stop_listening();
        file.queue.leave();
    }

    fn observe(&mut self, key: &Key) {
        self.file(key).queue.stand_beside();
    }

    fn has_waiters(&mut self, key: &Key) -> bool {
        self.file(key).queue.others_are_there()
    }

    fn waiters(&mut self, key: &Key) -> Vec<Waiter> {
        self.file(key).queue.waiters().into_iter().map(Waiter::of).collect()
    }
}

/// The failure of a path that leads to something else.
fn not_a_lock(why: &str) -> Failure {
    let hint = "check `SERIALIZER_FILE_NAME` and `SERIALIZER_DIR`; the file was not changed";
    Failure { cause: Cause::NotALock, ..Failure::permanent(why) }.with_hint(hint)
}

/// The failure for an error of the operating system; nothing was changed.
fn io_failure(path: &Path, action: &'static str, error: &io::Error) -> Failure {
    use io::ErrorKind;
    let hint = match error.kind() {
        ErrorKind::NotFound => "create the directory with `serializer initialize`, or name another one with `SERIALIZER_DIR`",
        ErrorKind::PermissionDenied if action == CREATE => "name a directory that you can write to with `SERIALIZER_DIR`",
        ErrorKind::PermissionDenied if action == CHANGE => {
            "in a directory with the sticky bit, only the file's owner, or root, can replace it; for several users, name \
             a directory without that bit with `SERIALIZER_DIR`"
        }
        ErrorKind::PermissionDenied => &format!("`ls -l {}` shows the file's owner", printable::path(path)),
        ErrorKind::ReadOnlyFilesystem | ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "name another directory with `SERIALIZER_DIR`"
        }
        _ => return Failure::permanent(plain(error).to_string()).during_action(action),
    };
    Failure::permanent(plain(error).to_string()).with_hint(hint).during_action(action)
}
