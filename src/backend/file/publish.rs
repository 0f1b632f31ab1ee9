//! Making a lock file: complete before anybody can see it, under the lock's name or over the one that has it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use fs4::{FileExt, TryLockError};
use rustix::fs::{AtFlags, CWD, OFlags, linkat, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::CREATE;
use super::lock_file::{LockFile, MODE, leads_to};
use crate::backend::failure::Failure;
use crate::backend::seam::Write;
use crate::record::random_token;

/// Why there is no new lock file.
pub enum LinkError {
    Unsupported,
    Io(io::Error),
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Makes a complete file at `path`, unless that is taken: `fill` writes all of it before it has the name.
pub fn link_new(path: &Path, fill: Fill<'_>) -> Result<Write, LinkError> {
    match link_unnamed(path, fill) {
        Err(LinkError::Unsupported) => link_named(path, fill),
        answer => answer,
    }
}

/// What writes a file.
type Fill<'a> = &'a dyn Fn(&File) -> io::Result<()>;

/// The usual way: the file has no other name, so that no kill leaves one behind.
fn link_unnamed(path: &Path, fill: Fill<'_>) -> Result<Write, LinkError> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    // File systems without it (NFS, FAT) answer EOPNOTSUPP, old kernels EISDIR.
    let file = match openat(CWD, directory(path), flags, MODE) {
        Ok(fd) => File::from(fd),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => return Err(LinkError::Unsupported),
        Err(error) => return Err(LinkError::Io(error.into())),
    };
    fill(&file)?;
    FileExt::try_lock(&file).map_err(flock_error)?;
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    match linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => Ok(Write::Done),
        Err(Errno::EXIST) => Ok(Write::Conflict),
        // No /proc, or a file system that does not link.
        Err(_) => Err(LinkError::Unsupported),
    }
}

/// On NFS, for example: by way of a temporary name.
fn link_named(path: &Path, fill: Fill<'_>) -> Result<Write, LinkError> {
    let (temporary, file) = write_temporary(path, fill)?;
    let answer = linkat(CWD, &temporary, CWD, path, AtFlags::empty());
    // A repeated NFS request makes success look like EEXIST, so only the inode tells.
    let is_ours = leads_to(path, &file);
    // The lock stands or not, whatever becomes of this name.
    let _ = unlinkat(CWD, &temporary, AtFlags::empty());
    match (answer, is_ours) {
        (Ok(()), _) | (Err(_), Ok(true)) => Ok(Write::Done),
        (Err(Errno::EXIST), Ok(false)) => Ok(Write::Conflict),
        (Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK), Ok(false)) => Err(LinkError::Unsupported),
        (Err(error), Ok(false)) => Err(LinkError::Io(error.into())),
        (Err(_), Err(error)) => Err(LinkError::Io(error)),
    }
}

/// A complete file with a unique name.
fn write_temporary(path: &Path, fill: Fill<'_>) -> io::Result<(PathBuf, File)> {
    let temporary = directory(path).join(format!(".serializer.{}.tmp", random_token()?));
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(openat(CWD, &temporary, flags, MODE)?);
    if let Err(error) = fill(&file).and_then(|()| FileExt::try_lock(&file).map_err(flock_error)) {
        let _ = unlinkat(CWD, &temporary, AtFlags::empty());
        return Err(error);
    }
    Ok((temporary, file))
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl LockFile {
    /// Where there are no hard links (FAT, some FUSE file systems): everybody sees the file empty for a moment.
    pub(super) fn create_in_place(&self, text: &[u8]) -> Result<Write, Failure> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match openat(CWD, self.path(), flags, MODE) {
            Ok(fd) => File::from(fd),
            Err(Errno::EXIST) => return Ok(Write::Conflict),
            Err(error) => return Err(self.io_failure(CREATE, error)),
        };
        // We may have slept here for so long that others took the empty file for abandoned; they hold the flock then, or
        // have written.
        self.flock(&file)?;
        let still_empty = file.metadata().map_err(|error| self.io_failure(CREATE, error))?.len() == 0;
        if !still_empty || !leads_to(self.path(), &file).map_err(|error| self.io_failure(CREATE, error))? {
            return Ok(Write::Conflict);
        }
        if let Err(error) = file.write_all_at(text, 0) {
            let _ = unlinkat(CWD, self.path(), AtFlags::empty());
            return Err(self.io_failure(CREATE, error));
        }
        Ok(Write::Done)
    }

    /// Puts a new file in the place of the old one; both are flocked then.
    pub(super) fn rename_over(&self, text: &[u8]) -> io::Result<File> {
        let (temporary, new) = write_temporary(self.path(), &|file| file.write_all_at(text, 0))?;
        match renameat(CWD, &temporary, CWD, self.path()) {
            Ok(()) => Ok(new),
            Err(error) => {
                let _ = unlinkat(CWD, &temporary, AtFlags::empty());
                Err(error.into())
            }
        }
    }
}

/// A new file is flocked before it is the lock: where that does not work, nobody could release it.
fn flock_error(error: TryLockError) -> io::Error {
    match error {
        TryLockError::Error(error) => error,
        TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
    }
}
