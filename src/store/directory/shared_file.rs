//! A register's file in a directory that hosts share. It is made once, and is read and written in
//! place under its own flock. A process builds only on a state that it knows to be on the server's
//! disk (*secured*). docs/protocol.md, "The file in a shared directory", has the argument.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fs4::{FileExt, TryLockError};
use rustix::fs::{AtFlags, CWD, OFlags, StatxFlags, statx};
use rustix::io::Errno;

use super::slot::{self, Slot};
use super::{missing, scope, trouble};
use crate::store::failure::Failure;
use crate::store::file::publish::{leads_to, link_new, open};
use crate::store::seam::{Next, State, Write};
use crate::sys::random::jittered;

/// The pause between two tries for the flock: its holders read or write a few hundred bytes.
const FLOCK_PAUSE: Duration = Duration::from_millis(4);

/// One register's file.
#[derive(Debug)]
pub struct SharedFile {
    directory: PathBuf,
    path: PathBuf,
    /// How long to try for the flock.
    timeout: Duration,
    /// The identity of the state that was written last without an answer.
    tried: Option<Vec<u8>>,
    /// The identity of the state that is on the server's disk, by its last answer.
    secured: Option<Vec<u8>>,
}

impl SharedFile {
    /// The file `name` in a directory. Touches nothing yet.
    pub fn new(directory: &Path, name: &OsStr, timeout: Duration) -> Self {
        Self {
            directory: directory.to_owned(),
            path: directory.join(name),
            timeout,
            tried: None,
            secured: None,
        }
    }

    /// The register's state as it is stored. After a write without an answer, the state is secured
    /// first; if that fails, the write may have been done.
    pub fn load(&mut self) -> Result<State, Failure> {
        if self.tried.is_none() {
            let Some((file, _)) = self.open(false)? else { return Ok(State::default()) };
            return Ok(state(self.present(&file)?.0));
        }
        let state = self.load_secured().map_err(Failure::indefinite)?;
        self.tried = None;
        Ok(state)
    }

    fn load_secured(&mut self) -> Result<State, Failure> {
        let Some((file, _)) = self.open(true)? else { return Ok(State::default()) };
        let (slot, place) = self.present(&file)?;
        self.secure(&file, &slot, place)?;
        Ok(state(slot))
    }

    /// Writes `next` if the state is still `expected`.
    pub fn store(&mut self, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        let file = match self.open(true)? {
            Some((file, _)) => file,
            None => {
                // Just below the next number: an older program counts on from it.
                self.publish(next.number - 1)?;
                self.open(true)?
                    .ok_or_else(|| Failure::transient("another process has removed its file"))?
                    .0
            }
        };
        let (slot, place) = self.present(&file)?;
        let is_tried = self.tried.is_some() && version(&slot) == self.tried;
        let place = if next.number <= slot.number && !is_tried {
            return Ok(Write::Conflict);
        } else if is_in(&slot, expected) {
            self.secure(&file, &slot, place)?;
            1 - place
        } else if is_tried {
            // An earlier try has written it, but it may not be on the server's disk: repeat it.
            place
        } else {
            return Ok(Write::Conflict);
        };
        let slot = Slot::new(next.number, next.value).map_err(|error| self.trouble(error))?;
        let written = slot.write(&file, place).and_then(|()| file.sync_data());
        // After a failure, the state may be whole nevertheless.
        self.tried = written.is_err().then(|| slot.identity());
        written.map_err(|error| self.trouble(error).indefinite())?;
        self.secured = Some(slot.identity());
        Ok(Write::Done)
    }

    /// Removes the file if the state is still `expected`. Only where a flock cannot be lost while
    /// its process lives: over NFS, a delayed removal could arrive when another host holds the
    /// lock. And only a file of this format: an older program would make an empty one in its place.
    pub fn remove(&mut self, expected: &State) -> Result<Write, Failure> {
        let Some((file, has_records)) = self.open(true)? else { return Ok(Write::Conflict) };
        let (slot, _) = self.present(&file)?;
        if slot.is_initial() || !slot.is_whole() || !is_in(&slot, expected) || !has_records {
            return Ok(Write::Conflict);
        }
        fs::remove_file(&self.path).map_err(|error| self.trouble(error))?;
        self.sync_directory().map_err(Failure::indefinite)?;
        Ok(Write::Done)
    }

    /// Makes the file, in its initial state and with its full length before it has its name: a
    /// shorter file is damaged.
    fn publish(&self, number: u64) -> Result<(), Failure> {
        let made = Slot::initial(number).and_then(|slot| {
            // Another process may have made it meanwhile.
            link_new(&self.path, &|file| slot.write(file, 0).and_then(|()| file.sync_data()))
        });
        let made = made.map_err(|error| self.trouble(error))?;
        made.map(|_| ()).ok_or_else(|| Failure::permanent("its file system has no hard links"))
    }

    fn sync_directory(&self) -> Result<(), Failure> {
        let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.map_err(|error| self.trouble(error))
    }

    /// Asks the server whether names in the directory lead elsewhere now. Otherwise, another host's
    /// change of a name might be seen seconds late.
    fn look_anew(&self) -> Result<(), Failure> {
        match statx(CWD, &self.directory, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS) {
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => Err(missing(&self.directory)),
            Err(error) => Err(self.trouble(error)),
        }
    }

    /// Opens and flocks the file, which must be regular and on a file system whose flocks all hosts
    /// see: to read it beside other readers, or else checking that the name still leads to it.
    /// Returns it, and whether it has record locks, too. `None` when there is no file.
    fn open(&self, to_write: bool) -> Result<Option<(File, bool)>, Failure> {
        self.look_anew()?;
        let access = if to_write { OFlags::RDWR } else { OFlags::RDONLY };
        let Some(file) = open(&self.path, access).map_err(|error| self.trouble(error))? else {
            // The directory is on the same file system. Where locks cannot be kept, waiting for one
            // is useless.
            let directory = File::open(&self.directory).map_err(|error| self.trouble(error))?;
            return scope::check(&self.directory, &directory).map(|_| None);
        };
        let has_records = scope::check(&self.directory, &file)?;
        self.flock(&file, to_write, has_records)?;
        if to_write {
            self.look_anew()?;
            if !leads_to(&self.path, &file).map_err(|error| self.trouble(error))? {
                return Err(Failure::transient("another process has removed its file"));
            }
        }
        Ok(Some((file, has_records)))
    }

    /// Flocks the file, exclusively or shared with other readers, and takes record locks as well.
    fn flock(&self, file: &File, exclusively: bool, has_records: bool) -> Result<(), Failure> {
        let begun = Instant::now();
        // Bounded by the timeout.
        loop {
            match if exclusively { FileExt::try_lock(file) } else { FileExt::try_lock_shared(file) }
            {
                Ok(()) if !has_records || self.lock_records(file, exclusively)? => return Ok(()),
                // The process with the record lock may be waiting for this flock.
                Ok(()) => FileExt::unlock(file).map_err(|error| self.trouble(error))?,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    let failure = self.trouble(error);
                    return Err(Failure {
                        why: format!("flock does not work there: {}", failure.why),
                        ..failure
                    });
                }
            }
            if begun.elapsed() >= self.timeout {
                let hint = "`fuser -v` shows the processes of this host that have it open; NFS \
                            version 4 drops the locks of a disconnected host after some 90 s, \
                            version 3 does not";
                return Err(
                    Failure::transient("another process keeps it locked (flock)").with_hint(hint)
                );
            }
            std::thread::sleep(jittered(FLOCK_PAUSE));
        }
    }

    /// Takes the lock that a file server takes for the flocks of its clients. It belongs to the
    /// open file, not to the process.
    fn lock_records(&self, file: &File, exclusively: bool) -> Result<bool, Failure> {
        let whole = nix::libc::flock {
            l_type: if exclusively { nix::libc::F_WRLCK } else { nix::libc::F_RDLCK } as _,
            l_whence: nix::libc::SEEK_SET as _,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        match nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)) {
            Ok(_) => Ok(true),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(false),
            Err(error) => Err(self.trouble(error)),
        }
    }

    /// Makes sure that the present state is on the server's disk. Of an initial state, only the
    /// name counts: a crash must not take it away from a file that holds a state.
    fn secure(&mut self, file: &File, slot: &Slot, place: usize) -> Result<(), Failure> {
        if slot.is_initial() {
            return self.sync_directory();
        }
        if self.secured.as_ref() != Some(&slot.identity()) {
            let written = slot.write(file, place).and_then(|()| file.sync_data());
            written.map_err(|error| self.trouble(error))?;
            self.secured = Some(slot.identity());
        }
        Ok(())
    }

    /// The present state, and the place of its slot.
    fn present(&self, file: &File) -> Result<(Slot, usize), Failure> {
        slot::present(file).map_err(|error| self.trouble(error))?
    }

    fn trouble(&self, error: impl Into<io::Error>) -> Failure {
        trouble(&self.directory, error)
    }
}

fn version(slot: &Slot) -> Option<Vec<u8>> {
    (!slot.is_initial()).then(|| slot.identity())
}

fn is_in(slot: &Slot, expected: &State) -> bool {
    (version(slot), &slot.text) == (expected.version.clone(), &expected.value)
}

fn state(slot: Slot) -> State {
    State { version: version(&slot), number: slot.number, value: slot.text, ..State::default() }
}
