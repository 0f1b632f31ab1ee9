//! Locks in a directory that many hosts share, over NFS above all: a file for each name.
//!
//! # Why this is not the lock file of one machine
//!
//! That one is exchanged for another file each time. Over NFS, a host may be told late that a name leads to another file now, and a
//! file that is open somewhere on the host is moved out of the way before another takes its name, so that for a moment there is
//! none. Both would let two hosts think that they have written. What is *in* a file, however, is seen by whoever has locked the file, as
//! it was when the one before let go: clients read anew when they lock, and have written all when they unlock. So here a file is made
//! once and stays, and is read and written in place, always under a flock of its own.
//!
//! # What a crash leaves behind
//!
//! A file has two [`Slot`]s, one with the present state and one with the one before. The new state is written over the older one, and
//! is the present one when it is whole: what a crash has left half written counts as never written, and nobody was told otherwise,
//! because success is only reported after the server has it on its disk.
//!
//! # What may be built on
//!
//! A state can be read that is on no disk yet, and will be gone when the server starts again: its writer was killed before the sync, or that
//! failed. Nobody sees by looking, and whoever only waits need not care. But nobody builds on one that is not *secured*: synced
//! by whoever says so, or written once more, as it stands, and synced. (Only a sync of one's own tells; and after one that has
//! failed, the next one succeeds without having written anything.)
//!
//! * A state is secured before another is written, which goes where the one *before* it stood. So the state before the present
//!   one is always on the disk, and whatever a crash takes away, what is left is the present state or the one before.
//! * Whoever has lost the answer to a write secures whatever stands there, by whomever, before it looks for its own entry in it. Only it
//!   adds that; so it is in all later states until it is taken away, and those are only written over what is secured.
//!   If another host has written behind it, unsynced, and so with our entry in it, that is secured just the same.
//! * A write that is tried again goes where it was, over a state that nobody has written behind: the one before it stays. Others may
//!   have secured what was there in the meantime, but what they found of their own in it is in the one before, too.
//! * Securing changes nothing, not even the nonce: it is no conflict with anybody, and one that is cut off halfway has put the same bytes over the same.
//!
//! # Who keeps a flock
//!
//! With NFS version 4, a host that has died loses its locks within the server's lease (90 s as a rule), and what it would write
//! afterwards is refused. Version 3 does neither, and so has to be asked for (`?nfs=3`). Whoever stops in between keeps all others
//! from looking for as long; that grants nobody anything.
//!
//! A server takes record locks (`fcntl`) for the flocks of its clients. Who uses the file on the server itself takes both, therefore.
//!
//! # Where nothing is mounted
//!
//! A directory of one machine is only used if somebody has said so (`serializer initialize` leaves a file there): where the hosts' file system is
//! not mounted, there is mostly a directory all the same, and each host has its own.

mod names;
mod reach;
mod slot;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fs4::{FileExt, TryLockError};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::Errno;

use super::file::leads_to;
use super::looks::Looks;
use super::remote::{Cause, Failure, Register, Row, jittered};
use super::{Write, plain};
use crate::printable;
use crate::store::StoreSettings;
use names::{file_name, lock_name};
use reach::{Reach, reach};
pub use slot::MAGIC;
use slot::{Slot, Unreadable};

/// How often to look at first, and in the end. A look is some five messages to a file server.
const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Between two tries for the flock: its holders read or write a few hundred bytes.
const FLOCK_PAUSE: Duration = Duration::from_millis(4);

/// Whoever may come next must be able to use it; the user's umask says who else.
const MODE: Mode = Mode::from_raw_mode(0o666);

/// Whatever it is that has the name, opening it does nothing to it.
const OPENING: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

/// What tells that a directory of one machine is meant, or that hosts share one where that cannot be seen. No lock's file begins with a dot.
const MARKER: &str = ".serializer-shared";

/// One lock's file.
pub struct SharedFile {
    directory: PathBuf,
    /// Whether NFS version 3 was asked for.
    takes_nfs3: bool,
    path: PathBuf,
    /// How long to try for the flock.
    timeout: Duration,
    looks: Looks,
    /// Which state was written last without an answer.
    tried: Option<Vec<u8>>,
    /// Which state is on the server's disk, as it has said last.
    secured: Option<Vec<u8>>,
}

/// The directory of an address, and whether it may be on NFS version 3.
fn directory(settings: &StoreSettings) -> Result<(PathBuf, bool), Failure> {
    let takes_nfs3 = match settings.url.place().split_once('?') {
        None => false,
        Some((_, "nfs=3")) => true,
        Some(_) => {
            return Err(
                Failure::permanent("a directory has no option but `nfs=3`").with_hint("where its name has a `?`, write `%3F`")
            );
        }
    };
    let decoded = settings.url.directory().unwrap_or_default();
    if !decoded.is_absolute() {
        return Err(Failure::permanent("its address has no absolute path").with_hint("it looks like `file:///mnt/shared/locks`"));
    }
    Ok((decoded, takes_nfs3))
}

/// The names of all locks that somebody holds, or that cannot be looked at now: whoever looks at them is told why.
pub fn names(settings: &StoreSettings) -> Result<Vec<OsString>, Failure> {
    let (directory, takes_nfs3) = directory(settings)?;
    // Somebody else's flock on one lock is not waited for here.
    let at = |path| SharedFile::at(directory.clone(), path, Duration::ZERO, takes_nfs3);
    let listed = File::open(&directory).map_err(|error| trouble(&directory, &error))?;
    at(directory.clone()).check(&listed)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).map_err(|error| trouble(&directory, &error))? {
        let entry = entry.map_err(|error| trouble(&directory, &error))?;
        // Other programs keep files there, too, which are not even to be locked.
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) || !is_begun(&entry.path()) {
            continue;
        }
        let Some(name) = lock_name(&entry.file_name()) else { continue };
        if at(entry.path()).read_slot().is_ok_and(|slot| slot.is_none_or(|slot| slot.text.is_none())) {
            continue;
        }
        names.push(name);
    }
    names.sort();
    Ok(names)
}

/// Whether a file looks like a lock's.
fn is_begun(path: &Path) -> bool {
    openat(CWD, path, OFlags::RDONLY | OPENING, MODE).is_ok_and(|fd| slot::is_begun(&File::from(fd)))
}

impl SharedFile {
    /// Touches nothing yet.
    pub fn new(settings: &StoreSettings, name: &OsStr) -> Result<Self, Failure> {
        let (directory, takes_nfs3) = directory(settings)?;
        let path = directory.join(file_name(name));
        Ok(Self::at(directory, path, settings.timeout, takes_nfs3))
    }

    fn at(directory: PathBuf, path: PathBuf, timeout: Duration, takes_nfs3: bool) -> Self {
        let looks = Looks::new(LOOKS.0, LOOKS.1);
        Self { directory, takes_nfs3, path, timeout, looks, tried: None, secured: None }
    }

    /// Asks the server whether names in the directory lead elsewhere now; else another host's renaming might be seen seconds late.
    fn look_anew(&self) -> Result<(), Failure> {
        match statx(CWD, &self.directory, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS) {
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => Err(missing(&self.directory)),
            Err(error) => Err(trouble(&self.directory, &error.into())),
        }
    }

    /// Opens the file, which must be a regular one on a file system whose flocks all hosts see; `None` when there is none.
    fn open(&self, access: OFlags) -> Result<Option<File>, Failure> {
        self.look_anew()?;
        let file = match openat(CWD, &self.path, access | OPENING, MODE) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => {
                // What holds for the file holds for its directory; nobody is to wait for a lock that cannot be kept.
                let directory = File::open(&self.directory).map_err(|error| trouble(&self.directory, &error))?;
                return self.check(&directory).map(|_| None);
            }
            Err(Errno::LOOP) => return Err(Failure::permanent("it is a symbolic link")),
            Err(error) => return Err(trouble(&self.directory, &error.into())),
        };
        if !file.metadata().map_err(|error| trouble(&self.directory, &error))?.is_file() {
            return Err(Failure::permanent("it is not a regular file"));
        }
        self.check(&file)?;
        Ok(Some(file))
    }

    /// Whether locks can be kept on its file system; tells whether that is one machine's, or may be.
    fn check(&self, file: &File) -> Result<bool, Failure> {
        match reach(file) {
            Reach::Hosts => Ok(false),
            Reach::HostsUnfenced if self.takes_nfs3 => Ok(false),
            Reach::HostsUnfenced => Err(Failure::permanent(
                "NFS before version 4 keeps the locks of hosts that have died, and writes for those that have lost theirs",
            )
            .with_hint("mount it with `vers=4.2`; or accept that by `file:///…?nfs=3`, see docs/stores.md")),
            Reach::Machine | Reach::Untold(_) if self.directory.join(MARKER).exists() => Ok(true),
            Reach::Machine => Err(Failure::permanent(format!(
                "`{}` is a directory of this machine alone",
                printable::path(&self.directory)
            ))
            .with_hint(
                "mount what the hosts share; or, if it is meant (containers, the file server itself), `serializer initialize`".to_owned()
                    + on_one_machine(&self.directory),
            )),
            Reach::Untold(name) => Err(Failure::permanent(format!(
                "its mount does not tell whether flocks on its file system ({name}) exclude other hosts"
            ))
            .with_hint(
                "if all hosts use it as one cluster, without `localflocks`, say so by `serializer initialize`; GFS2 tells when it is \
                 mounted with `lockproto=lock_dlm`",
            )),
            Reach::Unknown(name) => {
                Err(Failure::permanent(format!("flocks on its file system ({name}) are not known to exclude other hosts"))
                    .with_hint("NFS mounted without `nolock` and `local_lock` does; or name a store, such as `postgres://…`"))
            }
        }
    }

    /// Locks it against writers, or if that is what is wanted, against all.
    fn flock(&self, file: &File, exclusively: bool) -> Result<(), Failure> {
        let is_of_machine = self.check(file)?;
        let begun = Instant::now();
        // Ends with the time for an answer.
        loop {
            let locked = if exclusively { FileExt::try_lock(file) } else { FileExt::try_lock_shared(file) };
            let is_locked = match locked {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Error(error)) => {
                    let failure = trouble(&self.directory, &error);
                    return Err(Failure { why: format!("flock does not work there: {}", failure.why), ..failure });
                }
            };
            if is_locked && (!is_of_machine || self.lock_records(file, exclusively)?) {
                return Ok(());
            }
            if begun.elapsed() >= self.timeout {
                let hint = "`fuser -v` shows who has it open on this host; NFS version 4 takes the locks of a host that was cut off from it \
                            after some 90 s, version 3 does not";
                return Err(Failure::transient("another process keeps it locked (flock)").with_hint(hint));
            }
            if is_locked {
                // Whoever has the records may be waiting for this.
                FileExt::unlock(file).map_err(|error| trouble(&self.directory, &error))?;
            }
            std::thread::sleep(jittered(FLOCK_PAUSE));
        }
    }

    /// What a file server has for the flocks of its clients; of this open file, not of this process.
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
            Err(error) => Err(trouble(&self.directory, &error.into())),
        }
    }

    /// What it says, if somebody has ever written to it.
    fn read_slot(&self) -> Result<Option<Slot>, Failure> {
        let Some(file) = self.open(OFlags::RDONLY)? else { return Ok(None) };
        self.flock(&file, false)?;
        self.present(&file).map(|present| present.map(|(slot, _)| slot))
    }

    /// Opens the file and locks it against all; it is the one that has the name then.
    fn open_alone(&self, access: OFlags) -> Result<Option<File>, Failure> {
        let Some(file) = self.open(OFlags::RDWR | access)? else { return Ok(None) };
        self.flock(&file, true)?;
        self.look_anew()?;
        if !leads_to(&self.path, &file).map_err(|error| trouble(&self.directory, &error))? {
            return Err(Failure::transient("somebody has removed its file"));
        }
        Ok(Some(file))
    }

    /// What it says, after a write of which nobody knows whether it was done: once that is certain to stay.
    fn settle(&mut self) -> Result<Option<Slot>, Failure> {
        let Some(file) = self.open_alone(OFlags::empty())? else { return Ok(None) };
        let present = self.present(&file)?;
        if let Some((slot, place)) = &present {
            self.secure(&file, slot, *place)?;
        }
        self.tried = None;
        Ok(present.map(|(slot, _)| slot))
    }

    /// Makes sure that the present state is on the server's disk.
    fn secure(&mut self, file: &File, slot: &Slot, place: usize) -> Result<(), Failure> {
        if self.secured.as_ref() != Some(&slot.identity()) {
            let written = slot.write(file, place).and_then(|()| file.sync_data());
            written.map_err(|error| trouble(&self.directory, &error))?;
            self.secured = Some(slot.identity());
        }
        Ok(())
    }

    /// The present state, and in which slot it stands.
    fn present(&self, file: &File) -> Result<Option<(Slot, usize)>, Failure> {
        slot::present(file).map_err(|unreadable| match unreadable {
            Unreadable::Io(error) => trouble(&self.directory, &error),
            Unreadable::Torn => Failure::permanent("it is damaged: neither of its two states is whole")
                .with_hint("something else has written to it, or the file system has lost data; once nobody uses the lock, remove the file"),
            Unreadable::Newer => Failure::permanent("a newer version of this program has written it").with_hint("update this program"),
            Unreadable::Foreign => Failure::permanent("it is not a lock that hosts share").with_hint(
                "a lock file of one machine has that name, or another program's; once nobody uses it, remove it, or choose another name",
            ),
        })
    }
}

impl Register for SharedFile {
    fn read(&mut self) -> Result<Row, Failure> {
        let slot = match self.tried {
            None => self.read_slot()?,
            // Whatever fails now, the write may have been done.
            Some(_) => self.settle().map_err(Failure::indefinite)?,
        };
        Ok(slot.map(row).unwrap_or_default())
    }

    fn write(&mut self, seen: &Row, next: u64, text: Option<&str>) -> Result<Write, Failure> {
        let file = match self.open_alone(OFlags::empty())? {
            Some(file) => file,
            // In directories that are sticky, others' files cannot be opened so.
            None => match self.open_alone(OFlags::CREATE)? {
                Some(file) => file,
                None => return Err(missing(&self.directory)),
            },
        };
        let place = match self.present(&file)? {
            Some((slot, place)) if Some(slot.identity()) == seen.version => {
                self.secure(&file, &slot, place)?;
                1 - place
            }
            // Written by an earlier try, of which nobody knows whether the server has it on its disk: once more.
            Some((slot, place)) if Some(slot.identity()) == self.tried => place,
            None if seen.version.is_none() => 0,
            _ => return Ok(Write::Conflict),
        };
        let slot = Slot::new(next, text.map(str::to_owned)).map_err(|error| trouble(&self.directory, &error.into()))?;
        let written = slot.write(&file, place).and_then(|()| file.sync_data());
        // It may be whole all the same.
        self.tried = written.is_err().then(|| slot.identity());
        written.map_err(|error| trouble(&self.directory, &error).indefinite())?;
        self.secured = Some(slot.identity());
        Ok(Write::Done)
    }

    /// Never makes the directory: where nothing is mounted yet, each host would have one of its own.
    fn prepare(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// Somebody says that a directory of this machine is meant, or that one reaches all hosts.
    fn prove(&mut self) -> Result<(), Failure> {
        let directory = File::open(&self.directory).map_err(|error| trouble(&self.directory, &error))?;
        let shown = printable::path(&self.directory);
        match reach(&directory) {
            Reach::Machine => tracing::warn!(
                "`{shown}` is a directory of this machine alone: other hosts do not exclude each other there, nor this one"
            ),
            Reach::Untold(name) => tracing::warn!(
                "`{shown}` is on {name}, whose mount does not tell whether hosts exclude each other there: you have said so now"
            ),
            _ => return Ok(()),
        }
        File::create(self.directory.join(MARKER)).map_err(|error| trouble(&self.directory, &error))?;
        Ok(())
    }

    fn wait(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        self.looks.sleep(limit, fds)
    }

    fn leave(&mut self) {
        self.looks.end();
    }

    fn disconnect(&mut self) {}

    fn repair(&self) -> &'static str {
        "removing the file when nobody uses it"
    }
}

fn row(slot: Slot) -> Row {
    Row { version: Some(slot.identity()), number: slot.number, text: slot.text, now: None }
}

fn missing(directory: &Path) -> Failure {
    let hint = "mount it, or make it on the file system that the hosts share; nobody else makes it, because a directory of each host would lock nothing";
    Failure::permanent(format!("there is no directory `{}`", printable::path(directory)))
        .with_hint(hint.to_owned() + on_one_machine(directory))
}

/// What else to do on one machine, where somebody has taken the address of Meltano's states, as is right for buckets.
fn on_one_machine(directory: &Path) -> &'static str {
    match directory.iter().any(|part| part == ".meltano") {
        true => "; for Meltano on one machine, leave the store out, and set `SERIALIZER_DIR=.meltano`",
        false => "",
    }
}

/// What the operating system answers.
fn trouble(directory: &Path, error: &io::Error) -> Failure {
    let errno = Errno::from_io_error(error);
    let failure = Failure::transient(plain(error).to_string());
    match errno {
        Some(Errno::NOENT) => missing(directory),
        // It was removed, the server starts again, or takes longer than a soft mount waits.
        Some(
            Errno::STALE
            | Errno::NOLCK
            | Errno::IO
            | Errno::TIMEDOUT
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::AGAIN
            | Errno::INTR,
        ) => failure,
        Some(Errno::ACCESS | Errno::PERM) => {
            let hint = "whoever uses it needs to read and write the file, and to make files in its directory";
            Failure { cause: Cause::Permanent, ..failure }.with_hint(hint)
        }
        _ => Failure { cause: Cause::Permanent, ..failure },
    }
}
