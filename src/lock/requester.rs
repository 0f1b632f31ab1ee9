//! For which process a lock is acquired, and whether that still wants the lock.

use std::io;
use std::os::fd::BorrowedFd;

use super::Stored;
use crate::record::Entry;

/// A requester of a lock.
pub trait Requester {
    /// Its entry for a new acquisition of a plain mutex.
    fn entry(&self) -> io::Result<Entry> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether an entry of the stored record is certainly this requester's.
    fn owns(&self, _stored: &Stored, _entry: &Entry) -> bool {
        false
    }

    /// Whether it still wants the lock.
    fn is_alive(&self) -> bool {
        true
    }

    /// These become readable when it does not want the lock any more.
    fn exit_fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}
