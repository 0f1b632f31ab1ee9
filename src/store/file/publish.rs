//! Makes a file that is complete and flocked before it has its name, which may be another file's.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use fs4::{FileExt, TryLockError};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, linkat, lstat, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::store::seam::Write;
use crate::sys::files::link_unnamed;
use crate::sys::random::random_token;

/// Users of all hosts must be able to use a file; the umask restricts it.
pub(in crate::store) const MODE: Mode = Mode::from_raw_mode(0o666);

pub const NEW: OFlags = OFlags::CREATE
    .union(OFlags::EXCL)
    .union(OFlags::RDWR)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// How long to try for a flock. A process that keeps it longer is stopped or hostile.
const FLOCK_LIMIT: Duration = Duration::from_secs(2);

/// The pause between two tries: about as long as holders need.
const FLOCK_PAUSE: Duration = Duration::from_micros(500);

/// How temporary names begin and end.
const TEMPORARY: (&str, &str) = (".serializer.", ".tmp");

/// The age at which a temporary name is not in use: it lasts for some system calls.
const LEFT: Duration = Duration::from_secs(60);

pub type Fill<'a> = &'a dyn Fn(&File) -> io::Result<()>;

/// Opens a regular file; `None` when no file exists. Never creates a file, follows a symbolic
/// link or waits for the other end of a FIFO. The error for anything else is `InvalidData`.
pub fn open(path: &Path, access: OFlags) -> io::Result<Option<File>> {
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let opened = openat(CWD, path, flags, Mode::empty()).map_err(io::Error::from);
    // statx, other than fstat, finds out that a file was removed on an NFS server.
    let opened = opened.map(File::from).and_then(|file| Ok((file.metadata()?.file_type(), file)));
    let is_other = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    match opened {
        Ok((kind, file)) if kind.is_file() => Ok(Some(file)),
        Ok((kind, _)) if kind.is_dir() => is_other("it is a directory"),
        Ok(_) => is_other("it is not a regular file"),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => Ok(None),
            Some(Errno::LOOP) => is_other("it is a symbolic link"),
            Some(Errno::ISDIR) => is_other("it is a directory"),
            Some(Errno::NXIO) => is_other("it is not a regular file"),
            _ => Err(error),
        },
    }
}

/// Makes a complete file at `path`, unless that is taken. `None` without hard links.
pub fn link_new(path: &Path, fill: Fill<'_>) -> io::Result<Option<Write>> {
    // Usually without a temporary name, which a kill would leave behind.
    if let Some(is_done) = link_unnamed(directory(path), path, MODE, |file| complete(file, fill))? {
        return Ok(Some(if is_done { Write::Done } else { Write::Conflict }));
    }
    let (file, temporary) = write_temporary(path, fill)?;
    let linked = linkat(CWD, &temporary, CWD, path, AtFlags::empty());
    // A repeated NFS request makes success look like EEXIST, so only the inode tells.
    let is_ours = leads_to(path, &file);
    unlink(&temporary);
    match linked {
        Err(error) if !is_ours? => match error {
            Errno::EXIST => Ok(Some(Write::Conflict)),
            Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK => Ok(None),
            // On macOS, the number differs from EOPNOTSUPP.
            error if error == Errno::NOTSUP => Ok(None),
            error => Err(error.into()),
        },
        _ => Ok(Some(Write::Done)),
    }
}

/// Puts a complete file in the place of another one, and returns it.
pub fn rename_over(path: &Path, fill: Fill<'_>) -> io::Result<File> {
    let (file, temporary) = write_temporary(path, fill)?;
    renameat(CWD, &temporary, CWD, path).inspect_err(|_| unlink(&temporary))?;
    Ok(file)
}

/// Makes a file that is empty for a moment, without hard links (FAT, some FUSE file systems).
pub fn create_in_place(path: &Path, fill: Fill<'_>) -> io::Result<Write> {
    // sshfs says EPERM for a file that exists. If that is gone, the second time is a refusal.
    let create = || match openat(CWD, path, NEW, MODE) {
        Err(Errno::PERM) if lstat(path).is_ok() => Err(Errno::EXIST),
        created => created,
    };
    let file = match create().or_else(|it| if it == Errno::PERM { create() } else { Err(it) }) {
        Ok(fd) => File::from(fd),
        Err(Errno::EXIST) => return Ok(Write::Conflict),
        Err(error) => return Err(error.into()),
    };
    // After a long sleep here, others may have taken the empty file for abandoned.
    flock(&file)?;
    if file.metadata()?.len() > 0 || !leads_to(path, &file)? {
        return Ok(Write::Conflict);
    }
    fill(&file).inspect_err(|_| unlink(path))?;
    Ok(Write::Done)
}

/// Flocks a file against all other writers of this program.
pub fn flock(file: &File) -> io::Result<()> {
    flock_within(FLOCK_LIMIT, || FLOCK_PAUSE, || FileExt::try_lock(file))
}

/// Tries for so long to flock. A blocking flock could be ended only by a signal or with a thread.
pub fn flock_within(
    limit: Duration,
    pause: impl Fn() -> Duration,
    try_lock: impl Fn() -> Result<(), TryLockError>,
) -> io::Result<()> {
    let give_up = Instant::now() + limit;
    loop {
        match try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < give_up => thread::sleep(pause()),
            flocked => return Ok(flocked?),
        }
    }
}

pub fn leads_to(path: &Path, file: &File) -> io::Result<bool> {
    match lstat(path).and_then(|there| Ok((there, fstat(file)?))) {
        Ok((there, here)) => Ok((there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)),
        Err(Errno::NOENT | Errno::STALE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// At most `length` bytes from `offset` on.
pub fn read_at(file: &File, length: usize, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    // Bounded by the buffer: each read fills some of it, or is the last one.
    while filled < length {
        match file.read_at(&mut bytes[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Removes a name, if that is possible.
pub fn unlink(path: &Path) {
    let _ = unlinkat(CWD, path, AtFlags::empty());
}

/// Whether only this program's own files have such names: temporary ones, and those that
/// `initialize` tries out. Each has a token.
pub fn is_temporary(name: &OsStr) -> bool {
    let ends = [TEMPORARY.1, ".probe"];
    let token = name.to_str().and_then(|name| {
        let rest = name.strip_prefix(TEMPORARY.0)?;
        ends.iter().find_map(|end| rest.strip_suffix(end))
    });
    token.is_some_and(|token| token.len() == 32 && token.bytes().all(|it| it.is_ascii_hexdigit()))
}

/// Removes temporary files that kills have left: old ones that no process has flocked.
pub fn sweep(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_old = |file: &File| {
            let written = file.metadata().and_then(|metadata| metadata.modified());
            written.is_ok_and(|written| written.elapsed().is_ok_and(|age| age > LEFT))
        };
        if path.file_name().is_some_and(is_temporary)
            && let Ok(Some(file)) = open(&path, OFlags::RDONLY)
            && is_old(&file)
            && FileExt::try_lock(&file).is_ok()
        {
            unlink(&path);
        }
    }
}

fn write_temporary(path: &Path, fill: Fill<'_>) -> io::Result<(File, PathBuf)> {
    let (begin, end) = TEMPORARY;
    let temporary = directory(path).join(format!("{begin}{}{end}", random_token()?));
    let file = File::from(openat(CWD, &temporary, NEW, MODE)?);
    complete(&file, fill).inspect_err(|_| unlink(&temporary))?;
    Ok((file, temporary))
}

/// Where flock does not work, nothing is locked, because nothing could be released.
fn complete(file: &File, fill: Fill<'_>) -> io::Result<()> {
    fill(file).and_then(|()| flock(file))
}

pub fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
