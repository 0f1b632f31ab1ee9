//! Waiting in turn: the waiters for one lock flock a queue file beside it. The kernel grants that
//! in the order of the requests. The first waiter, which has the flock, is the only one that
//! watches the lock. Closing the file, also by its death, lets the next one come.
//!
//! Each waiter also has a shared record lock (fcntl), which blocks nothing and shows whether there
//! are others: the last one removes the file. A wrong guess costs an order, never exclusion: a
//! waiter notices in its turn that its file has lost its name, and asks again at the new one.

use std::fs::{self, File};
use std::io::{self, PipeReader};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use fs4::{FileExt, TryLockError};
use rustix::fs::{CWD, FlockOperation, OFlags, fcntl_lock, openat};
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, Pid, fcntl_getlk};

use super::publish::{MODE, NEW, leads_to, open, unlink};
use super::wakeup;
use crate::store::failure::Failure;
use crate::store::pause;
use crate::store::seam::{Fds, Queue};
use crate::store::waiter::Waiter;
use crate::sys::files::{KEEPS_ORDER, UNHEARD, flock_waiters};
use crate::sys::quietly;

/// How often to ask again at a new file: it was just made, or all waiters at the old one left.
const MAX_FILES: usize = 100;

/// How often to try to sweep. Others need microseconds; a file that is left costs nothing.
const MAX_SWEEPS: usize = 10;
const SWEEP_PAUSE: Duration = Duration::from_millis(1);

/// The interval between two polls of a waiter that does not queue, and hears none.
const WATCH: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct FileQueue {
    lock: PathBuf,
    path: PathBuf,
    place: Position,
    /// Hears wake-ups, while this process is the first waiter.
    socket: Option<UnixDatagram>,
}

#[derive(Debug)]
enum Position {
    Outside,
    /// Only seen by others.
    Observer(File),
    /// A thread waits for the turn, because only a blocking flock is granted in order. It ends with
    /// the process or when its turn has come; then the pipe is readable.
    Queued(Receiver<io::Result<File>>, PipeReader),
    First(File),
    /// Queue file unusable: waiters poll, in no order.
    Unkept,
}

impl FileQueue {
    pub fn new(path: &Path) -> Self {
        let mut name = path.as_os_str().to_owned();
        name.push(".queue");
        Self { lock: path.to_owned(), path: name.into(), place: Position::Outside, socket: None }
    }

    /// Takes a place at the end of the queue, unless it has one. Returns whether it is new.
    fn join(&mut self) -> bool {
        if !matches!(self.place, Position::Outside) {
            return false;
        }
        if !self.try_first() {
            self.place = wait_in_thread(self.path.clone()).unwrap_or(Position::Unkept);
        }
        true
    }

    /// Removes a queue file that a killed waiter has left.
    fn sweep(&self) {
        for _ in 0..MAX_SWEEPS {
            // A waiter sweeps when it leaves.
            let Position::Outside = self.place else { return };
            let Ok(Some(file)) = open_existing(&self.path) else { return };
            if others_are_at(&file) {
                return;
            }
            match FileExt::try_lock(&file) {
                // Another process sweeps, and may have seen us there.
                Err(TryLockError::WouldBlock) => thread::sleep(SWEEP_PAUSE),
                Err(TryLockError::Error(_)) => return,
                Ok(()) => return remove_if_alone(&self.path, &file),
            }
        }
    }

    /// Becomes the first one, if there is none. `false` if there is one.
    fn try_first(&mut self) -> bool {
        self.place = match join(&self.path, |file| Ok(FileExt::try_lock(file)?)) {
            Ok(file) => Position::First(file),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(_) => Position::Unkept,
        };
        true
    }
}

impl Queue for FileQueue {
    fn wait(&mut self, beside: bool, limit: Duration, fds: Fds<'_>) -> Result<(), Failure> {
        if beside {
            return pause(limit.min(WATCH), fds);
        }
        let is_new = self.join();
        let is_first = self.is_first();
        if is_first && self.socket.is_none() {
            self.socket = wakeup::bind(&self.lock);
            // A release before that was not heard.
            if self.socket.is_some() {
                return Ok(());
            }
        }
        if is_new {
            return Ok(());
        }
        // Another process has the socket's name, or the system has no such sockets.
        let limit = if is_first && self.socket.is_none() { limit.min(UNHEARD) } else { limit };
        // The pipe becomes readable when its turn has come.
        let turn =
            if let Position::Queued(_, turn) = &self.place { Some(turn.as_fd()) } else { None };
        let woken = turn.into_iter().chain(self.socket.as_ref().map(AsFd::as_fd));
        pause(limit, &fds.iter().copied().chain(woken).collect::<Vec<_>>())?;
        self.socket.iter().for_each(wakeup::drain);
        Ok(())
    }

    fn notify(&mut self) {
        wakeup::send(&self.lock);
        self.sweep();
    }

    fn is_first(&mut self) -> bool {
        match &self.place {
            Position::First(_) | Position::Unkept => true,
            Position::Queued(turn, _) => match turn.try_recv() {
                Err(TryRecvError::Empty) => false,
                turn => {
                    self.place =
                        turn.ok().and_then(Result::ok).map_or(Position::Unkept, Position::First);
                    true
                }
            },
            // Through its own file: closing another one would drop its record lock (fcntl(2)).
            // Shared, so that observers do not take each other for waiters.
            Position::Observer(file) => match FileExt::try_lock_shared(file) {
                Ok(()) => FileExt::unlock(file).is_ok(),
                Err(error) => !matches!(error, TryLockError::WouldBlock),
            },
            // Nothing waits: the usual case, and its only cost.
            Position::Outside => {
                let there = self.path.symlink_metadata();
                there.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
                    || self.try_first()
            }
        }
    }

    fn is_queued(&mut self) -> bool {
        matches!(self.place, Position::Queued(..)) && !self.is_first()
    }

    fn leave(&mut self) {
        // The next waiter must find the socket's name free.
        self.socket = None;
        let file = match std::mem::replace(&mut self.place, Position::Outside) {
            Position::First(file) | Position::Observer(file) => Some(file),
            // Before its turn, the thread lets the next one come.
            Position::Queued(turn, _) => turn.try_recv().ok().and_then(Result::ok),
            Position::Outside | Position::Unkept => None,
        };
        if file.is_some() {
            drop(file);
            self.sweep();
        }
    }

    fn observe(&mut self) {
        if matches!(self.place, Position::Outside) {
            self.place = join(&self.path, |_| Ok(())).map_or(Position::Unkept, Position::Observer);
        }
    }

    fn has_waiters(&mut self) -> bool {
        match &self.place {
            Position::First(file) | Position::Observer(file) => others_are_at(file),
            _ => open_existing(&self.path)
                .is_ok_and(|file| file.is_some_and(|file| others_are_at(&file))),
        }
    }

    /// Processes with a flock on the queue file.
    fn waiters(&mut self) -> Vec<Waiter> {
        let there = fs::symlink_metadata(&self.path);
        let pids = there.map(|there| flock_waiters(there.ino())).unwrap_or_default();
        let waiter = |pid: Pid| Waiter { pid: Some(pid.as_raw_pid()), ..Waiter::default() };
        pids.into_iter().map(waiter).collect()
    }
}

fn wait_in_thread(path: PathBuf) -> io::Result<Position> {
    let (sender, receiver) = channel();
    let (turn, has_come) = io::pipe()?;
    quietly("queue", move || {
        let sent = sender.send(join(&path, FileExt::lock));
        if let Err(std::sync::mpsc::SendError(Ok(file))) = sent {
            remove_if_alone(&path, &file);
        }
        drop(has_come);
    })?;
    Ok(Position::Queued(receiver, turn))
}

/// Opens and locks the file that has the queue's name, which is made if need be.
fn join(path: &Path, lock: impl Fn(&File) -> io::Result<()>) -> io::Result<File> {
    if !KEEPS_ORDER {
        return Err(io::ErrorKind::Unsupported.into());
    }
    for _ in 0..MAX_FILES {
        let Some(file) = open_existing(path)? else {
            match openat(CWD, path, NEW, MODE) {
                Ok(_) | Err(Errno::EXIST) => continue,
                Err(error) => return Err(error.into()),
            }
        };
        fcntl_lock(&file, FlockOperation::NonBlockingLockShared)?;
        match lock(&file) {
            Ok(()) if leads_to(path, &file)? => return Ok(file),
            Ok(()) => {}
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    // No process can take a place here, and none could remove it later.
                    remove_if_alone(path, &file);
                }
                return Err(error);
            }
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// Opens a queue file, if there is one. Fails on anything else, which must not be removed.
fn open_existing(path: &Path) -> io::Result<Option<File>> {
    match open(path, OFlags::RDONLY)? {
        Some(file) if file.metadata()?.len() > 0 => Err(io::ErrorKind::InvalidData.into()),
        file => Ok(file),
    }
}

fn others_are_at(file: &File) -> bool {
    matches!(fcntl_getlk(file, &Flock::from(FlockType::WriteLock)), Ok(Some(_)))
}

/// Removes the file, if nothing else is there. The caller has its flock, or no process can have it.
/// In a sticky directory it may be another user's, which will remove it another time.
fn remove_if_alone(path: &Path, file: &File) {
    if !others_are_at(file) && leads_to(path, file).unwrap_or(false) {
        unlink(path);
    }
}
