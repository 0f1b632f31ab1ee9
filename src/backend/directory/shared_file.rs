//! A register's file in a directory that hosts share.
//!
//! The lock file of one machine is exchanged for another file at each change. Over NFS, a host
//! learns late that a name leads to another file. A process that has flocked a file, however, reads
//! its current content. So this file is made once, and is read and written in place, always under
//! its own flock.
//!
//! Two [`Slot`]s hold the present state and the one before; a new state is written over the older
//! one. A process builds only on a state that it knows to be on the server's disk (*secured*).
//! `docs/protocol.md`, "The file in a shared directory", has the argument.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fs4::{FileExt, TryLockError};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::Errno;

use super::slot::{self, Slot, Unreadable};
use super::{missing, scope, trouble};
use crate::backend::failure::Failure;
use crate::backend::file::leads_to;
use crate::backend::file::publish::{LinkError, link_new};
use crate::backend::retry::jittered;
use crate::backend::seam::{Next, State, Write};

/// The pause between two tries for the flock: its holders read or write a few hundred bytes.
const FLOCK_PAUSE: Duration = Duration::from_millis(4);

/// Users of all hosts must be able to use the file; the umask restricts it.
const MODE: Mode = Mode::from_raw_mode(0o666);

/// With these flags, opening a path has no effect on the file there, whatever kind it is.
pub(super) const OPENING: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

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
        Self { directory: directory.to_owned(), path: directory.join(name), timeout, tried: None, secured: None }
    }

    /// The register's state as it is stored. After a write without an answer, the state is secured
    /// first.
    pub fn load(&mut self) -> Result<State, Failure> {
        let slot = match self.tried {
            None => self.read_slot()?,
            // If this fails, too, the write may have been done.
            Some(_) => self.settle().map_err(Failure::indefinite)?,
        };
        Ok(slot.map(state).unwrap_or_default())
    }

    /// Writes `next` if the state is still `expected`.
    pub fn store(&mut self, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        let file = match self.open_alone()? {
            Some(file) => file,
            None => {
                // Just below the next number: an older program counts on from it.
                self.publish(next.number - 1)?;
                self.open_alone()?.ok_or_else(|| Failure::transient("another process has removed its file"))?
            }
        };
        let (slot, place) = self.present(&file)?;
        let is_tried = self.tried.is_some() && version(&slot) == self.tried;
        let place = if next.number <= slot.number && !is_tried {
            return Ok(Write::Conflict);
        } else if is_in(&slot, expected) {
            if slot.is_initial() {
                // A crash must not take away the name of a file that holds a state.
                self.sync_directory()?;
            } else {
                self.secure(&file, &slot, place)?;
            }
            1 - place
        } else if is_tried {
            // An earlier try has written it, but it may not be on the server's disk: repeat it.
            place
        } else {
            return Ok(Write::Conflict);
        };
        let slot = Slot::new(next.number, next.value.map(str::to_owned)).map_err(|error| self.trouble(&error.into()))?;
        let written = slot.write(&file, place).and_then(|()| file.sync_data());
        // After a failure, the state may be whole nevertheless.
        self.tried = written.is_err().then(|| slot.identity());
        written.map_err(|error| self.trouble(&error).indefinite())?;
        self.secured = Some(slot.identity());
        Ok(Write::Done)
    }

    /// Removes the file if the state is still `expected`. Only where a flock cannot be lost while
    /// its process lives: over NFS, a delayed removal could arrive when another host holds the
    /// lock. And only a file of this format: an older program would make an empty one in its place.
    pub fn remove(&mut self, expected: &State) -> Result<Write, Failure> {
        let Some(file) = self.open_alone()? else { return Ok(Write::Conflict) };
        let (slot, _) = self.present(&file)?;
        let is_it = slot.is_whole() && is_in(&slot, expected);
        if slot.is_initial() || !is_it || !self.check(&file)? {
            return Ok(Write::Conflict);
        }
        fs::remove_file(&self.path).map_err(|error| self.trouble(&error))?;
        self.sync_directory().map_err(Failure::indefinite)?;
        Ok(Write::Done)
    }

    /// Makes the file, in its initial state and with its full length before it has its name: a
    /// shorter file is damaged. The name is durable once the directory is synced, which is done
    /// before the first state is written.
    fn publish(&self, number: u64) -> Result<(), Failure> {
        let slot = Slot::initial(number).map_err(|error| self.trouble(&error.into()))?;
        // Another process may have made it meanwhile.
        match link_new(&self.path, &|file| slot.write(file, 0).and_then(|()| file.sync_data())) {
            Ok(_) => Ok(()),
            Err(LinkError::Io(error)) => Err(self.trouble(&error)),
            Err(LinkError::Unsupported) => Err(Failure::permanent("its file system has no hard links")),
        }
    }

    fn sync_directory(&self) -> Result<(), Failure> {
        let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.map_err(|error| self.trouble(&error))
    }

    /// Asks the server whether names in the directory lead elsewhere now. Otherwise, another host's
    /// change of a name might be seen seconds late.
    fn look_anew(&self) -> Result<(), Failure> {
        match statx(CWD, &self.directory, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS) {
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => Err(missing(&self.directory)),
            Err(error) => Err(self.trouble(&error.into())),
        }
    }

    /// Opens the file, which must be regular and on a file system whose flocks all hosts see;
    /// `None` when there is no file.
    fn open(&self, access: OFlags) -> Result<Option<File>, Failure> {
        self.look_anew()?;
        let file = match openat(CWD, &self.path, access | OPENING, MODE) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => {
                // The directory is on the same file system. Where locks cannot be kept, waiting for
                // one is useless.
                let directory = File::open(&self.directory).map_err(|error| self.trouble(&error))?;
                return self.check(&directory).map(|_| None);
            }
            Err(Errno::LOOP) => return Err(Failure::permanent("it is a symbolic link")),
            Err(error) => return Err(self.trouble(&error.into())),
        };
        if !file.metadata().map_err(|error| self.trouble(&error))?.is_file() {
            return Err(Failure::permanent("it is not a regular file"));
        }
        self.check(&file)?;
        Ok(Some(file))
    }

    /// Fails if locks cannot be kept on the file's file system. Returns whether record locks are
    /// needed beside flocks.
    fn check(&self, file: &File) -> Result<bool, Failure> {
        scope::check(&self.directory, file)
    }

    /// Flocks the file, exclusively or shared with other readers.
    fn flock(&self, file: &File, exclusively: bool) -> Result<(), Failure> {
        let is_of_machine = self.check(file)?;
        let begun = Instant::now();
        // Bounded by the timeout.
        loop {
            let locked = if exclusively { FileExt::try_lock(file) } else { FileExt::try_lock_shared(file) };
            let is_locked = match locked {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Error(error)) => {
                    let failure = self.trouble(&error);
                    return Err(Failure { why: format!("flock does not work there: {}", failure.why), ..failure });
                }
            };
            if is_locked && (!is_of_machine || self.lock_records(file, exclusively)?) {
                return Ok(());
            }
            if begun.elapsed() >= self.timeout {
                let hint = "`fuser -v` shows the processes of this host that have it open; NFS version 4 drops the locks of a \
                            disconnected host after some 90 s, version 3 does not";
                return Err(Failure::transient("another process keeps it locked (flock)").with_hint(hint));
            }
            if is_locked {
                // The process with the record lock may be waiting for this flock.
                FileExt::unlock(file).map_err(|error| self.trouble(&error))?;
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
            Err(error) => Err(self.trouble(&error.into())),
        }
    }

    /// The present state; `None` when there is no file.
    fn read_slot(&self) -> Result<Option<Slot>, Failure> {
        let Some(file) = self.open(OFlags::RDONLY)? else { return Ok(None) };
        self.flock(&file, false)?;
        self.present(&file).map(|(slot, _)| Some(slot))
    }

    /// Opens the file and flocks it exclusively, and checks that the name still leads to it.
    fn open_alone(&self) -> Result<Option<File>, Failure> {
        let Some(file) = self.open(OFlags::RDWR)? else { return Ok(None) };
        self.flock(&file, true)?;
        self.look_anew()?;
        if !leads_to(&self.path, &file).map_err(|error| self.trouble(&error))? {
            return Err(Failure::transient("another process has removed its file"));
        }
        Ok(Some(file))
    }

    /// Secures the present state after a write without an answer, and returns it.
    fn settle(&mut self) -> Result<Option<Slot>, Failure> {
        let Some(file) = self.open_alone()? else { return Ok(None) };
        let (slot, place) = self.present(&file)?;
        if !slot.is_initial() {
            self.secure(&file, &slot, place)?;
        }
        self.tried = None;
        Ok(Some(slot))
    }

    /// Makes sure that the present state is on the server's disk.
    fn secure(&mut self, file: &File, slot: &Slot, place: usize) -> Result<(), Failure> {
        if self.secured.as_ref() != Some(&slot.identity()) {
            let written = slot.write(file, place).and_then(|()| file.sync_data());
            written.map_err(|error| self.trouble(&error))?;
            self.secured = Some(slot.identity());
        }
        Ok(())
    }

    /// The present state, and the place of its slot.
    fn present(&self, file: &File) -> Result<(Slot, usize), Failure> {
        let removed = "once nothing uses the lock, remove the file";
        slot::present(file).map_err(|unreadable| match unreadable {
            Unreadable::Io(error) => self.trouble(&error),
            Unreadable::Young => Failure::transient("its file is being made"),
            Unreadable::Torn => Failure::permanent("it is damaged: cut off, or neither of its two states is whole")
                .with_hint(format!("another program has written to it, or the file system has lost data; {removed}")),
            Unreadable::Newer => {
                Failure::permanent("a newer version of this program has written it").with_hint("update this program")
            }
            Unreadable::Foreign => Failure::permanent("it is not a lock that hosts share").with_hint(format!(
                "the file is a lock file of one machine, or another program's; {removed}, or choose another name"
            )),
        })
    }

    fn trouble(&self, error: &io::Error) -> Failure {
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
