//! One lock file: how it is read, and how it is changed only in the state that was seen.
//! docs/protocol.md, "The lock file of one machine", has the argument.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawMode, fchmod, fstat, unlinkat};
use rustix::io::Errno;

use super::publish::{
    create_in_place, directory, flock, leads_to, link_new, open, read_at, rename_over, unlink,
};
use super::queue::FileQueue;
use super::{CHANGE, CREATE, READ, REMOVE, io_failure, legacy, wakeup};
use crate::record::MAX_BYTES;
use crate::store::directory::MAGIC;
use crate::store::failure::Failure;
use crate::store::seam::{Next, State, Write};
use crate::sys::{filesystem, text};

/// How often to open a path. Each exchange of its file means that another process succeeded.
const MAX_OPENS: usize = 16;

/// What a umask does not take from a record, which says no more than the process table does.
const READABLE: RawMode = 0o444;

/// After this time, a new name is on the disk: most file systems write within 30 seconds.
const SETTLED: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    pub(super) queue: FileQueue,
    /// Whether it must outlive a crash of the machine. A lock need not: a reboot makes it stale.
    is_durable: bool,
}

impl LockFile {
    pub fn new(path: PathBuf, is_durable: bool) -> Self {
        Self { queue: FileQueue::new(&path), path, is_durable }
    }

    pub(super) fn load(&self) -> Result<State, Failure> {
        for _ in 0..MAX_OPENS {
            let Some(file) = self.open(READ, OFlags::RDONLY)? else { return Ok(State::default()) };
            match read(&file) {
                Ok((bytes, ..)) if bytes.starts_with(MAGIC.as_bytes()) => {
                    let hint = "set `SERIALIZER_LEASE_SECONDS` here, too, as on those hosts";
                    let failure = Failure::permanent("it is a lock that hosts share, under leases");
                    return Err(failure.with_hint(hint).during_action(READ));
                }
                Ok((bytes, version, written)) => {
                    let value = Some(String::from_utf8_lossy(&bytes).into_owned());
                    let is_local = filesystem::is_local(&file);
                    if self.is_durable && !is_settled(&file).map_err(self.failure(READ))? {
                        self.secured(Write::Done, READ)?;
                    }
                    return Ok(State {
                        version: Some(version),
                        value,
                        written,
                        is_local,
                        ..State::default()
                    });
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(self.failure(READ)(error)),
            }
        }
        Err(self.failure(READ)(Errno::STALE.into()))
    }

    pub(super) fn create(&self, text: &str) -> Result<Write, Failure> {
        let fill = |file: &File| self.fill(file, text.as_bytes());
        let created = link_new(&self.path, &fill);
        let created = created
            .and_then(|linked| linked.map_or_else(|| create_in_place(&self.path, &fill), Ok));
        self.secured(created.map_err(self.failure(CREATE))?, CREATE)
    }

    fn fill(&self, file: &File, bytes: &[u8]) -> io::Result<()> {
        file.write_all_at(bytes, 0)?;
        if self.is_durable {
            return file.sync_data();
        }
        // Other users wait for a holder that they can see. Some file systems have no modes.
        let mode = fstat(file)?.st_mode;
        if mode & READABLE != READABLE {
            let _ = fchmod(file, Mode::from_raw_mode(mode | READABLE));
        }
        Ok(())
    }

    /// A write that was done, once a crash cannot undo it.
    fn secured(&self, write: Write, action: &'static str) -> Result<Write, Failure> {
        if self.is_durable && write == Write::Done {
            let synced = File::open(directory(&self.path)).and_then(|it| it.sync_all());
            synced.map_err(|error| self.failure(action)(error).indefinite())?;
        }
        Ok(write)
    }

    pub(super) fn replace(
        &self,
        seen: &State,
        version: &[u8],
        next: &Next<'_>,
        text: &str,
    ) -> Result<Write, Failure> {
        let Some(old) = self.open_flocked(CHANGE, version)? else { return Ok(Write::Conflict) };
        if let Some(file_system) = filesystem::without_exchange(&old) {
            drop(old);
            // A record that is only of use for a time can be left out.
            return if next.keep.is_some() && !self.is_durable {
                self.delete(version)
            } else {
                Err(self.without_exchange(&file_system))
            };
        }
        let seen_text = seen.value.as_deref().unwrap_or("");
        let fill = |text: &[u8]| rename_over(&self.path, &|file| self.fill(file, text));
        let new = fill(text.as_bytes()).map_err(self.failure(CHANGE))?;
        if self.is_durable {
            // The Python plugin does not know such files.
            return self.secured(Write::Done, CHANGE);
        }
        let settled = legacy::settle(&old, version, seen_text).and_then(|plugins| {
            Ok((plugins, read(&new)?.0 == text.as_bytes() && leads_to(&self.path, &new)?))
        });
        match &settled {
            Ok((None, true)) => return Ok(Write::Done),
            Ok((_, false)) => return Ok(Write::Conflict),
            Ok((Some(bytes), true)) => {
                if fill(bytes).is_err() {
                    // No room for another file: the text goes into ours, which nothing relies on
                    // yet. While it is empty, it counts as being written.
                    new.set_len(0)
                        .and_then(|()| new.write_all_at(bytes, 0))
                        .map_err(self.failure(CHANGE))?;
                }
            }
            // The caller will report that nothing was changed, so no lock of ours may remain.
            Err(_) if !leads_to(&self.path, &new).unwrap_or(false) => {}
            Err(_) if legacy::has_one_holder(seen_text) => unlink(&self.path),
            // Other holders may remain. If this fails, an extra entry is better than a lost one.
            Err(_) => drop(fill(seen_text.as_bytes())),
        }
        // A waiter has seen our record, and watches our owner.
        wakeup::send(&self.path);
        settled.map(|_| Write::Conflict).map_err(self.failure(CHANGE))
    }

    pub(super) fn delete(&self, version: &[u8]) -> Result<Write, Failure> {
        let Some(_flocked) = self.open_flocked(REMOVE, version)? else {
            return Ok(Write::Conflict);
        };
        match unlinkat(CWD, &self.path, AtFlags::empty()) {
            Ok(()) => self.secured(Write::Done, REMOVE),
            // Only the Python plugin removes the file without the flock.
            Err(Errno::NOENT) => Ok(Write::Conflict),
            Err(error) => Err(self.failure(REMOVE)(error.into())),
        }
    }

    /// Opens and flocks the file; `None` if it is not in the state `seen` any more.
    fn open_flocked(&self, action: &'static str, seen: &[u8]) -> Result<Option<File>, Failure> {
        for _ in 0..MAX_OPENS {
            let Some(file) = self.open(action, OFlags::RDWR)? else { return Ok(None) };
            let version = || {
                flock(&file)?;
                if leads_to(&self.path, &file)? {
                    read(&file).map(|(_, version, _)| Some(version))
                } else {
                    Ok(None)
                }
            };
            match version() {
                Ok(Some(version)) => return Ok((version == seen).then_some(file)),
                Ok(None) => {}
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(self.failure(action)(error)),
            }
        }
        Ok(None)
    }

    fn open(&self, action: &'static str, access: OFlags) -> Result<Option<File>, Failure> {
        let opened = match open(&self.path, access) {
            // To rename and unlink needs no right to write to the file; a flock on NFS does.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                open(&self.path, OFlags::RDONLY)
            }
            opened => opened,
        };
        opened.or_else(
            |error| if is_gone(&error) { Ok(None) } else { Err(self.failure(action)(error)) },
        )
    }

    pub(super) fn failure(&self, action: &'static str) -> impl Fn(io::Error) -> Failure {
        move |error| io_failure(&self.path, action, &error)
    }

    /// The failure for a file system on which two hosts could change the lock at the same time.
    fn without_exchange(&self, file_system: &str) -> Failure {
        let path = text::path(&self.path);
        let why = format!(
            "on its file system ({file_system}), hosts do not see at once that a file was exchanged"
        );
        let hint = format!(
            "to have locks there that end with their holders, set `SERIALIZER_LEASE_SECONDS` on \
             all hosts; when you are certain that nothing uses it, remove `{path}`"
        );
        Failure::permanent(why).with_hint(hint).during_action(CHANGE)
    }
}

/// The content of a file, or its beginning; the version of this state; and when it was written.
pub(super) fn read(file: &File) -> io::Result<(Vec<u8>, Vec<u8>, Option<SystemTime>)> {
    let metadata = file.metadata()?;
    // One byte more than its length shows that the file has grown meanwhile.
    let bytes = read_at(file, metadata.len().min(MAX_BYTES as u64) as usize + 1, 0)?;
    let mut version = bytes.clone();
    // The time distinguishes an empty file from a later one with the same inode number.
    for number in
        [metadata.dev(), metadata.ino(), metadata.mtime() as u64, metadata.mtime_nsec() as u64]
    {
        version.extend(number.to_ne_bytes());
    }
    Ok((bytes, version, metadata.modified().ok()))
}

/// Whether the name of a file is certainly on the disk.
fn is_settled(file: &File) -> io::Result<bool> {
    // The time of the last change of its names.
    let changed = Duration::from_secs(u64::try_from(file.metadata()?.ctime()).unwrap_or(0));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(now.checked_sub(changed).is_some_and(|age| age > SETTLED))
}

/// A file may be removed while it is open: NFS tells by ESTALE, sshfs by ENOENT.
fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::STALE | Errno::NOENT))
}
