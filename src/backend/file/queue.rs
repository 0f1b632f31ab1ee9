//! Waiting in turn: those who wait for one lock flock a queue file beside it, one after the other, and the kernel grants that
//! in the order in which they asked, and wakes no other. Whoever has it is the first in line: the only one that watches the
//! lock. It lets the next one come by closing the file, which its death does as well.
//!
//! The order is a courtesy, not the lock: without a queue file (no right to make or read one, no flock) everybody watches.
//! Each who waits also has a shared record lock (fcntl) on the file, which blocks nobody and tells whether others are there: the
//! last one removes the file. If that guess is wrong, somebody waits on a file that has no name any more, notices it when his
//! turn comes, and asks again at the new one: this costs places in the line, and nothing else.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use fs4::{FileExt, TryLockError};
use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, fcntl_lock, lstat, openat, unlinkat};
use rustix::io::Errno;
use rustix::process::{Flock, FlockOffsetType, FlockType, Pid, fcntl_getlk, getpid};

use super::lock_file::leads_to;
use crate::process;

/// How often to ask again at a new file. Each time means that all who waited at the old one have left.
const MAX_FILES: usize = 100;

/// How often to try to sweep. Others who do so need microseconds; and what is left costs nobody anything.
const MAX_SWEEPS: usize = 10;

/// Between two such tries.
const SWEEP_PAUSE: Duration = Duration::from_millis(1);

/// What follows the lock's name in the name of its queue file.
const SUFFIX: &str = ".queue";

/// What the thread that waits for its turn needs; it calls two system functions.
const STACK_BYTES: usize = 64 * 1024;

/// One's place among those who wait.
#[derive(Debug)]
pub struct Queue {
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Outside,
    /// Only there to be seen.
    Beside(File),
    InLine(Turn),
    First(File),
    /// There is no queue, so nobody has to be waited for.
    Unkept,
}

/// Comes from a thread, because only a blocking flock is granted in turn, and nothing else can be waited for meanwhile.
/// The thread ends with the process, or as soon as its turn has come.
#[derive(Debug)]
struct Turn {
    first: Receiver<io::Result<File>>,
    has_come: OwnedFd,
}

impl Queue {
    /// Of the lock at `path`. Does not touch the file system yet.
    pub fn new(path: &Path) -> Self {
        let mut name = path.as_os_str().to_owned();
        name.push(SUFFIX);
        Self { path: name.into(), place: Place::Outside }
    }

    /// Whether nobody waits who came before. True as well where no order is kept.
    pub fn is_first(&mut self) -> bool {
        match &self.place {
            Place::First(_) | Place::Unkept => return true,
            Place::InLine(turn) => match turn.first.try_recv() {
                Ok(Ok(file)) => self.place = Place::First(file),
                Err(TryRecvError::Empty) => return false,
                Ok(Err(_)) | Err(TryRecvError::Disconnected) => self.place = Place::Unkept,
            },
            // By the file that it has: closing another one would take its record lock away (fcntl(2)).
            // Shared and for a moment, so that those beside do not take each other for one who waits, nor keep others from it.
            Place::Beside(file) => match FileExt::try_lock_shared(file) {
                Ok(()) => drop(FileExt::unlock(file)),
                Err(TryLockError::WouldBlock) => return false,
                Err(TryLockError::Error(_)) => {}
            },
            Place::Outside => {
                // Nobody waits: the usual case, and the only cost of it.
                if !self.exists() {
                    return true;
                }
                match self.try_first() {
                    Ok(Some(file)) => self.place = Place::First(file),
                    Ok(None) => return false,
                    Err(_) => self.place = Place::Unkept,
                }
            }
        }
        true
    }

    /// Whether others are waited for.
    pub fn is_in_line(&mut self) -> bool {
        matches!(self.place, Place::InLine(_)) && !self.is_first()
    }

    /// Takes a place at the end of the line, unless it has one. Returns whether something has changed.
    pub fn join(&mut self) -> bool {
        if !matches!(self.place, Place::Outside) {
            return false;
        }
        self.place = match self.try_first() {
            Ok(Some(file)) => Place::First(file),
            Ok(None) => self.wait_in_line().map_or(Place::Unkept, Place::InLine),
            Err(_) => Place::Unkept,
        };
        true
    }

    /// Is seen by [`Queue::others_are_there`], without a place in the line.
    pub fn stand_beside(&mut self) {
        if matches!(self.place, Place::Outside) {
            self.place = self.come().map_or(Place::Unkept, Place::Beside);
        }
    }

    /// Becomes readable when one's turn has come.
    pub fn turn_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.place {
            Place::InLine(turn) => Some(turn.has_come.as_fd()),
            Place::Outside | Place::Beside(_) | Place::First(_) | Place::Unkept => None,
        }
    }

    /// Lets the next one come. The last one leaves nothing behind.
    pub fn leave(&mut self) {
        match std::mem::replace(&mut self.place, Place::Outside) {
            Place::First(file) => {
                remove_if_alone(&self.path, &file);
                drop(file);
                // Somebody who stood beside may have left between the look and the closing, and have seen us.
                self.sweep();
            }
            Place::Beside(file) => {
                drop(file);
                self.sweep();
            }
            // The thread lets the next one come.
            Place::InLine(_) | Place::Outside | Place::Unkept => {}
        }
    }

    /// Removes what somebody left behind who was killed.
    pub fn sweep(&self) {
        if !matches!(self.place, Place::Outside) || !self.exists() {
            return;
        }
        let Ok(Some(file)) = open_existing(&self.path) else { return };
        for _ in 0..MAX_SWEEPS {
            // Whoever is there sweeps when it leaves.
            if others_are_at(&file) {
                return;
            }
            match FileExt::try_lock(&file) {
                Ok(()) => return remove_if_alone(&self.path, &file),
                // Somebody else sweeps, and may have seen us there.
                Err(TryLockError::WouldBlock) => thread::sleep(SWEEP_PAUSE),
                Err(TryLockError::Error(_)) => return,
            }
        }
    }

    /// Whether somebody else waits, or stands beside.
    pub fn others_are_there(&self) -> bool {
        match &self.place {
            Place::First(file) | Place::Beside(file) => others_are_at(file),
            _ => open_existing(&self.path).is_ok_and(|file| file.is_some_and(|file| others_are_at(&file))),
        }
    }

    /// Who waits, in turn, as far as this PID namespace knows them.
    pub fn waiters(&self) -> Vec<Pid> {
        let Ok(there) = fs::symlink_metadata(&self.path) else { return Vec::new() };
        let Ok(locks) = fs::read_to_string("/proc/locks") else { return Vec::new() };
        let is_ours = |pid: Pid| process::name(pid).is_some_and(|name| Some(name) == process::name(getpid()));
        flocks_on(&locks, there.dev(), there.ino(), is_ours)
    }

    /// Also where that cannot be told.
    fn exists(&self) -> bool {
        !matches!(lstat(&self.path), Err(Errno::NOENT))
    }

    fn try_first(&self) -> io::Result<Option<File>> {
        for _ in 0..MAX_FILES {
            let file = self.come()?;
            match FileExt::try_lock(&file) {
                Ok(()) if leads_to(&self.path, &file)? => return Ok(Some(file)),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => {
                    // Nobody can take a place here, so that nothing is lost; and nobody could remove it later.
                    remove_if_alone(&self.path, &file);
                    return Err(error);
                }
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    fn wait_in_line(&self) -> io::Result<Turn> {
        let (sender, first) = channel();
        let has_come = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let wake = has_come.try_clone()?;
        let queue = Self { path: self.path.clone(), place: Place::Outside };
        // It inherits that. What is sent to this process is the other thread's, which may hold it back while a command runs: one
        // that has gone ahead of those who came first still waits here.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let thread = thread::Builder::new().name("queue".to_owned()).stack_size(STACK_BYTES);
        let spawned = thread.spawn(move || queue.wait(&sender, &wake));
        before.thread_set_mask()?;
        spawned?;
        Ok(Turn { first, has_come })
    }

    fn wait(&self, first: &Sender<io::Result<File>>, wake: &OwnedFd) {
        let turn = self.wait_for_turn();
        if let Err(nobody) = first.send(turn)
            && let Ok(file) = nobody.0
        {
            remove_if_alone(&self.path, &file);
        }
        // Nobody who listens misses it: the counter of an eventfd does not run over by one.
        let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
    }

    fn wait_for_turn(&self) -> io::Result<File> {
        for _ in 0..MAX_FILES {
            let file = self.come()?;
            FileExt::lock(&file)?;
            if leads_to(&self.path, &file)? {
                return Ok(file);
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Opens the queue file, which is made if need be, and is there to be seen.
    fn come(&self) -> io::Result<File> {
        for _ in 0..MAX_FILES {
            if let Some(file) = open_existing(&self.path)? {
                fcntl_lock(&file, FlockOperation::NonBlockingLockShared)?;
                return Ok(file);
            }
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(CWD, &self.path, flags, super::lock_file::MODE) {
                Ok(_) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }
}

/// Opens a queue file; `None` where there is none. An error where it is something else, which must not be removed.
fn open_existing(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = match openat(CWD, path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT | Errno::STALE) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let metadata = file.metadata()?;
    if metadata.is_file() && metadata.len() == 0 { Ok(Some(file)) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Whether another process has a record lock on it.
fn others_are_at(file: &File) -> bool {
    let everything = Flock { start: 0, length: 0, pid: None, typ: FlockType::WriteLock, offset_type: FlockOffsetType::Set };
    matches!(fcntl_getlk(file, &everything), Ok(Some(_)))
}

/// Removes the file, whose flock the caller has or nobody can have, if nobody else is there.
fn remove_if_alone(path: &Path, file: &File) {
    if !others_are_at(file) && leads_to(path, file).unwrap_or(false) {
        // In a sticky directory it may be another user's, who will remove it another time.
        let _ = unlinkat(CWD, path, AtFlags::empty());
    }
}

/// The PIDs behind the flock on a file, in the order in which they were or will be granted, from `/proc/locks` (proc(5)). Some
/// file systems (btrfs) have another device number there: then `is_ours` decides about those that have the same inode number.
fn flocks_on(locks: &str, dev: u64, inode: u64, is_ours: impl Fn(Pid) -> bool) -> Vec<Pid> {
    let device = format!("{:02x}:{:02x}", rustix::fs::major(dev), rustix::fs::minor(dev));
    let pid = |line: &str| {
        let (_, line) = line.split_once(": ")?;
        let words: Vec<&str> = line.trim_start().trim_start_matches("-> ").split_ascii_whitespace().collect();
        let ["FLOCK", _, _, pid, at, ..] = words.as_slice() else { return None };
        let (its_device, its_inode) = at.rsplit_once(':')?;
        let pid = pid.parse().ok().and_then(Pid::from_raw)?;
        (its_inode.parse() == Ok(inode) && (its_device == device || is_ours(pid))).then_some(pid)
    };
    locks.lines().filter_map(pid).collect()
}

#[cfg(test)]
mod tests {
    use super::{Pid, flocks_on};

    #[test]
    fn the_line_is_read_from_proc_locks_in_turn() {
        let locks = "\
1: POSIX  ADVISORY  READ  21333 fe:00:10010636 0 EOF
2: FLOCK  ADVISORY  WRITE 21329 fe:00:10010636 0 EOF
2: -> FLOCK  ADVISORY  WRITE 21333 fe:00:10010636 0 EOF
2:  -> FLOCK  ADVISORY  WRITE 21336 fe:00:10010636 0 EOF
3: FLOCK  ADVISORY  WRITE 4 fe:00:1001063 0 EOF
4: FLOCK  ADVISORY  WRITE 5 fd:00:10010636 0 EOF
4: -> FLOCK  ADVISORY  WRITE 6 fd:00:10010636 0 EOF
";
        let line = |is_ours: fn(Pid) -> bool| -> Vec<i32> {
            let pids = flocks_on(locks, rustix::fs::makedev(0xfe, 0), 10_010_636, is_ours);
            pids.iter().map(|pid| pid.as_raw_pid()).collect()
        };
        assert_eq!(line(|_| false), [21329, 21333, 21336]);
        assert_eq!(line(|pid| pid.as_raw_pid() == 6), [21329, 21333, 21336, 6]);
    }
}
