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
//! # Who keeps a flock
//!
//! A host that has died loses its locks when the server notices: with NFS version 4 within its lease (90 s as a rule), and what it
//! would write afterwards is refused. Whoever stops in between keeps all others from looking for as long; that grants nobody
//! anything.

mod slot;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fs4::{FileExt, TryLockError};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode, percent_encode};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::file::{filesystem, leads_to};
use super::remote::{Cause, Failure, Register, Row, jittered};
use super::{Write, plain, sleep};
use crate::printable;
use crate::store::StoreSettings;
pub use slot::MAGIC;
use slot::{Slot, Unreadable};

/// How often to look at first, and in the end. A look is some five messages to a file server.
const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// It has waited for so many times as long as there is between two looks.
const LOOKS_GROW: u32 = 20;

/// Between two tries for the flock: its holders read or write a few hundred bytes.
const FLOCK_PAUSE: Duration = Duration::from_millis(4);

/// The longest name of a file, in bytes; most file systems take 255.
const MAX_NAME: usize = 240;

/// Whoever may come next must be able to use it; the user's umask says who else.
const MODE: Mode = Mode::from_raw_mode(0o666);

/// What a file's name cannot have, or means something else by.
const ENCODED: &AsciiSet = &CONTROLS.add(b'/').add(b'%');

/// One lock's file.
pub struct SharedFile {
    directory: PathBuf,
    path: PathBuf,
    /// How long to try for the flock.
    timeout: Duration,
    waits_since: Option<Instant>,
    /// Which state was written last without an answer.
    tried: Option<Vec<u8>>,
}

/// The directory of an address.
fn directory(settings: &StoreSettings) -> Result<PathBuf, Failure> {
    let path = settings.url.place();
    // RFC 8089: this host's files.
    let path = path.strip_prefix("localhost").unwrap_or(path);
    let decoded = PathBuf::from(OsString::from_vec(percent_decode(path.as_bytes()).collect()));
    if !decoded.is_absolute() {
        return Err(Failure::permanent("its address has no absolute path").with_hint("it looks like `file:///mnt/shared/locks`"));
    }
    Ok(decoded)
}

/// The names of all locks that somebody holds.
pub fn names(settings: &StoreSettings) -> Result<Vec<String>, Failure> {
    let directory = directory(settings)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).map_err(|error| trouble(&directory, &error))? {
        let entry = entry.map_err(|error| trouble(&directory, &error))?;
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let file = SharedFile::at(directory.clone(), entry.path(), settings.timeout);
        // Other programs keep files there, too.
        if file.read_slot().is_ok_and(|slot| slot.is_some_and(|slot| slot.text.is_some())) {
            names.push(String::from_utf8_lossy(&percent_decode(entry.file_name().as_bytes()).collect::<Vec<_>>()).into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The name of a lock's file: that of the lock, or if that is too long, its beginning and a hash.
fn file_name(name: &OsStr) -> OsString {
    let bytes = name.as_bytes();
    // No path leads to these, and hidden files are easily overlooked.
    let (dot, rest) = bytes.strip_prefix(b".").map_or(("", bytes), |rest| ("%2E", rest));
    let mut encoded = dot.as_bytes().to_vec();
    for piece in rest.split_inclusive(|byte| !byte.is_ascii()) {
        // Letters that are not ASCII stay what they are.
        let (ascii, other) = piece.split_at(piece.iter().take_while(|byte| byte.is_ascii()).count());
        encoded.extend(percent_encode(ascii, ENCODED).to_string().into_bytes());
        encoded.extend(other);
    }
    if bytes.is_empty() || encoded.len() > MAX_NAME {
        let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let shown: String = String::from_utf8_lossy(&encoded).chars().filter(|one| *one != '%').take(30).collect();
        return format!("{shown}%7E{hash}").into();
    }
    OsString::from_vec(encoded)
}

impl SharedFile {
    /// Touches nothing yet.
    pub fn new(settings: &StoreSettings, name: &OsStr) -> Result<Self, Failure> {
        let directory = directory(settings)?;
        let path = directory.join(file_name(name));
        Ok(Self::at(directory, path, settings.timeout))
    }

    fn at(directory: PathBuf, path: PathBuf, timeout: Duration) -> Self {
        Self { directory, path, timeout, waits_since: None, tried: None }
    }

    /// Opens the file, which must be a regular one on a file system whose flocks all hosts see; `None` when there is none.
    fn open(&self, access: OFlags) -> Result<Option<File>, Failure> {
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = match openat(CWD, &self.path, flags, MODE) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) if self.directory.is_dir() => return Ok(None),
            Err(Errno::NOENT) => return Err(missing(&self.directory)),
            Err(Errno::LOOP) => return Err(Failure::permanent("it is a symbolic link")),
            Err(error) => return Err(trouble(&self.directory, &error.into())),
        };
        if !file.metadata().map_err(|error| trouble(&self.directory, &error))?.is_file() {
            return Err(Failure::permanent("it is not a regular file"));
        }
        filesystem::check_shared(&file).map_err(|name| {
            let why = format!("flocks on its file system ({name}) are not known to exclude other hosts");
            Failure::permanent(why)
                .with_hint("NFS mounted without `nolock` and `local_lock` does; or name a store, such as `postgres://…`")
        })?;
        Ok(Some(file))
    }

    /// Locks it against writers, or if that is what is wanted, against all.
    fn flock(&self, file: &File, exclusively: bool) -> Result<(), Failure> {
        let begun = Instant::now();
        // Ends with the time for an answer.
        loop {
            let locked = if exclusively { FileExt::try_lock(file) } else { FileExt::try_lock_shared(file) };
            match locked {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) if begun.elapsed() < self.timeout => std::thread::sleep(jittered(FLOCK_PAUSE)),
                Err(TryLockError::WouldBlock) => {
                    let hint =
                        "a host that was cut off loses its flocks after a minute or two; `fuser -v` shows those of this host";
                    return Err(Failure::transient("another process keeps it locked (flock)").with_hint(hint));
                }
                Err(TryLockError::Error(error)) => {
                    return Err(Failure::permanent(format!("flock does not work there: {}", plain(&error))));
                }
            }
        }
    }

    /// What it says, if somebody has ever written to it.
    fn read_slot(&self) -> Result<Option<Slot>, Failure> {
        let Some(file) = self.open(OFlags::RDONLY)? else { return Ok(None) };
        self.flock(&file, false)?;
        self.present(&file).map(|present| present.map(|(slot, _)| slot))
    }

    /// The present state, and in which slot it stands.
    fn present(&self, file: &File) -> Result<Option<(Slot, usize)>, Failure> {
        slot::present(file).map_err(|unreadable| match unreadable {
            Unreadable::Io(error) => trouble(&self.directory, &error),
            Unreadable::Newer => Failure::permanent("a newer version of this program has written it").with_hint("update this program"),
            Unreadable::Foreign => Failure::permanent("it is not a lock that hosts share").with_hint(
                "a lock file of one machine has that name, or another program's; once nobody uses it, remove it, or choose another name",
            ),
        })
    }
}

impl Register for SharedFile {
    fn read(&mut self) -> Result<Row, Failure> {
        Ok(self.read_slot()?.map(row).unwrap_or_default())
    }

    fn write(&mut self, seen: &Row, next: u64, text: Option<&str>) -> Result<Write, Failure> {
        let file = match self.open(OFlags::RDWR)? {
            Some(file) => file,
            // In directories that are sticky, others' files cannot be opened so.
            None => match self.open(OFlags::RDWR | OFlags::CREATE)? {
                Some(file) => file,
                None => return Err(missing(&self.directory)),
            },
        };
        self.flock(&file, true)?;
        if !leads_to(&self.path, &file).map_err(|error| trouble(&self.directory, &error))? {
            return Err(Failure::transient("somebody has removed its file"));
        }
        let present = self.present(&file)?;
        let place = match present {
            // Written by an earlier try, of which nobody knows whether the server has it on its disk: once more.
            Some((slot, place)) if Some(slot.identity()) == self.tried => place,
            Some((slot, place)) if Some(slot.identity()) == seen.version => 1 - place,
            None if seen.version.is_none() => 0,
            _ => return Ok(Write::Conflict),
        };
        let slot = Slot::new(next, text.map(str::to_owned)).map_err(|error| trouble(&self.directory, &error.into()))?;
        let written = slot.write(&file, place).and_then(|()| file.sync_data());
        // It may be whole all the same.
        self.tried = written.is_err().then(|| slot.identity());
        written.map_err(|error| trouble(&self.directory, &error).indefinite())?;
        Ok(Write::Done)
    }

    /// Never makes the directory: where nothing is mounted yet, each host would have one of its own.
    fn prepare(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn wait(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let waited = self.waits_since.get_or_insert_with(Instant::now).elapsed();
        let pause = (waited / LOOKS_GROW).clamp(LOOKS.0, LOOKS.1);
        sleep(limit.min(jittered(pause)), fds)
            .map_err(|error| Failure::permanent(format!("cannot sleep: {}", plain(&error.into()))))
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
    Failure::permanent(format!("there is no directory `{}`", printable::path(directory)))
        .with_hint("mount it, or make it on the file system that the hosts share; nobody else makes it, because a directory of each host would lock nothing")
}

/// What the operating system answers.
fn trouble(directory: &Path, error: &io::Error) -> Failure {
    let errno = Errno::from_io_error(error);
    let failure = Failure::transient(plain(error).to_string());
    match errno {
        Some(Errno::NOENT) => missing(directory),
        // It was removed, the server starts again, or takes longer than a soft mount waits.
        Some(Errno::STALE | Errno::IO | Errno::TIMEDOUT | Errno::HOSTDOWN | Errno::HOSTUNREACH | Errno::AGAIN | Errno::INTR) => {
            failure
        }
        Some(Errno::ACCESS | Errno::PERM) => {
            let hint = "whoever uses it needs to read and write the file, and to make files in its directory";
            Failure { cause: Cause::Permanent, ..failure }.with_hint(hint)
        }
        _ => Failure { cause: Cause::Permanent, ..failure },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::{MAX_NAME, file_name};

    #[test]
    fn different_names_are_different_files() {
        let long = "é".repeat(3000);
        let names: [&[u8]; 13] = [
            b"a",
            b"A",
            b"",
            b".",
            b"..",
            b"../a",
            b"a/b",
            b"a%2Fb",
            b"\xff",
            b"\n",
            "é".as_bytes(),
            long.as_bytes(),
            &long.as_bytes()[2..],
        ];
        let files: HashSet<_> = names.iter().map(|name| file_name(OsStr::from_bytes(name))).collect();
        assert_eq!(files.len(), names.len(), "{files:?}");
        for file in files {
            let bytes = file.as_bytes();
            assert!(bytes.len() <= MAX_NAME && !bytes.starts_with(b".") && !bytes.contains(&b'/'), "{file:?}");
        }
    }

    #[test]
    fn usual_names_stay_what_they_are() {
        for name in ["serializer.lck", "dbt run é", "a~b"] {
            assert_eq!(file_name(OsStr::new(name)), name);
        }
    }
}
