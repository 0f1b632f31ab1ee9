//! A register's file in a directory that hosts share. It is made once, and is read and written in
//! place under its own flock. A process builds only on a state that it knows to be on the server's
//! disk (*secured*). docs/protocol.md, "The file in a shared directory", has the argument.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use fs4::{FileExt, TryLockError};
use rustix::fs::OFlags;

use super::slot::{self, Slot};
use super::{opened, scope, trouble, unusable};
use crate::store::failure::Failure;
use crate::store::file::publish::{directory, flock_within, leads_to, link_new, open};
use crate::store::seam::{Next, State, Write};
use crate::sys::files::{lock_records, look_anew};
use crate::sys::random::jittered;

/// The pause between two tries for the flock: its holders read or write a few hundred bytes.
const FLOCK_PAUSE: Duration = Duration::from_millis(4);

#[derive(Debug)]
pub struct SharedFile {
    path: PathBuf,
    timeout: Duration,
    /// The identity of the state that was written last without an answer.
    tried: Option<Vec<u8>>,
    /// The identity of the state that is on the server's disk, by its last answer.
    secured: Option<Vec<u8>>,
}

struct Flocked {
    file: File,
    /// The present state, and the place of its slot.
    slot: Slot,
    place: usize,
    /// Whether there are record locks beside the flock.
    has_records: bool,
}

impl SharedFile {
    pub fn new(path: PathBuf, timeout: Duration) -> Self {
        Self { path, timeout, tried: None, secured: None }
    }

    /// The register's state as it is stored. After a write without an answer, the state is secured
    /// first; if that fails, the write may have been done.
    pub fn load(&mut self) -> Result<State, Failure> {
        let is_tried = self.tried.is_some();
        let loaded = self.open(is_tried).and_then(|found| {
            found.iter().filter(|_| is_tried).try_for_each(|found| self.secure(found))?;
            Ok(found.map(|found| found.slot))
        });
        let slot = if is_tried { loaded.map_err(Failure::indefinite)? } else { loaded? };
        self.tried = None;
        let Some(slot) = slot else { return Ok(State::default()) };
        let (version, number, value) = (slot.identity(), slot.number, slot.text);
        Ok(State { version, number, value, ..State::default() })
    }

    pub fn store(&mut self, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        let found = match self.open(true)? {
            Some(found) => found,
            None => {
                self.publish()?;
                self.open(true)?.ok_or_else(removed)?
            }
        };
        let place = if is_in(&found.slot, expected) && next.number > found.slot.number {
            self.secure(&found)?;
            1 - found.place
        } else if self.tried.is_some() && found.slot.identity() == self.tried {
            // An earlier try has written it, but it may not be on the server's disk: repeat it.
            found.place
        } else {
            return Ok(Write::Conflict);
        };
        let slot = Slot::new(next.number, next.value, false).map_err(trouble)?;
        // After a failure, the state may be whole nevertheless.
        self.tried = slot.identity();
        slot.write(&found.file, place).map_err(|error| trouble(error).indefinite())?;
        self.secured = self.tried.take();
        Ok(Write::Done)
    }

    /// Removes the file if the state is still `expected`. Not over NFS, where a delayed removal
    /// could arrive when another host holds the lock.
    pub fn remove(&mut self, expected: &State) -> Result<Write, Failure> {
        let is_written = |found: &Flocked| found.slot.identity().is_some();
        let found = self.open(true)?.filter(|found| found.has_records && is_written(found));
        let found = found.filter(|found| is_in(&found.slot, expected));
        // Removed while it is flocked.
        let Some(_found) = found else { return Ok(Write::Conflict) };
        fs::remove_file(&self.path).map_err(trouble)?;
        self.sync_directory().map_err(Failure::indefinite)?;
        Ok(Write::Done)
    }

    /// Makes the file, in its initial state and with its full length before it has its name: a
    /// shorter file is damaged. Another process may have made it meanwhile.
    fn publish(&self) -> Result<(), Failure> {
        let slot = Slot::new(0, None, true).map_err(trouble)?;
        let made = link_new(&self.path, &|file| slot.write(file, 0)).map_err(trouble)?;
        made.map(drop).ok_or_else(|| Failure::permanent("its file system has no hard links"))
    }

    fn sync_directory(&self) -> Result<(), Failure> {
        opened(directory(&self.path))?.sync_all().map_err(trouble)
    }

    /// Asks the server whether names lead elsewhere now, which might be seen seconds late.
    fn look_anew(&self) -> Result<(), Failure> {
        let directory = directory(&self.path);
        look_anew(directory).map_err(|error| unusable(directory, error))
    }

    /// Opens and flocks the file, if it exists, where all hosts see flocks: to read it beside other
    /// readers, or else checking that the name still leads to it.
    fn open(&self, to_write: bool) -> Result<Option<Flocked>, Failure> {
        self.look_anew()?;
        let directory = directory(&self.path);
        let access = if to_write { OFlags::RDWR } else { OFlags::RDONLY };
        let Some(file) = open(&self.path, access).map_err(trouble)? else {
            // The directory is on the same file system.
            return scope::check(directory, &opened(directory)?).map(|_| None);
        };
        let has_records = scope::check(directory, &file)?;
        self.flock(&file, to_write, has_records)?;
        if to_write {
            self.look_anew()?;
            if !leads_to(&self.path, &file).map_err(trouble)? {
                return Err(removed());
            }
        }
        let (slot, place) = slot::present(&file)?;
        Ok(Some(Flocked { file, slot, place, has_records }))
    }

    /// Flocks the file, exclusively or shared with other readers, and takes record locks as well.
    fn flock(&self, file: &File, exclusively: bool, has_records: bool) -> Result<(), Failure> {
        let try_lock = || {
            if exclusively { FileExt::try_lock(file) } else { FileExt::try_lock_shared(file) }?;
            // A client of this file server, which takes no flock here, may have the record lock.
            let is_locked = !has_records || lock_records(file, exclusively)?;
            if is_locked { Ok(()) } else { Err(TryLockError::WouldBlock) }
        };
        flock_within(self.timeout, || jittered(FLOCK_PAUSE), try_lock).map_err(|error| {
            if error.kind() == io::ErrorKind::WouldBlock {
                let hint = "`fuser -v` shows the processes of this host that have it open; NFS \
                            version 4 drops a disconnected host's locks after some 90 s";
                let why = "another process keeps it locked (flock)";
                return Failure::transient(why).with_hint(hint);
            }
            let failure = trouble(error);
            Failure { why: format!("locking does not work there: {}", failure.why), ..failure }
        })
    }

    /// Makes sure that the present state is on the server's disk. Of an initial state, only the
    /// name counts: a crash must not take it away from a file that holds a state.
    fn secure(&mut self, found: &Flocked) -> Result<(), Failure> {
        let identity = found.slot.identity();
        if identity.is_none() {
            return self.sync_directory();
        }
        if self.secured != identity {
            found.slot.write(&found.file, found.place).map_err(trouble)?;
            self.secured = identity;
        }
        Ok(())
    }
}

fn removed() -> Failure {
    Failure::transient("another process has removed its file")
}

fn is_in(slot: &Slot, expected: &State) -> bool {
    (slot.identity(), &slot.text) == (expected.version.clone(), &expected.value)
}
