//! Locks in PostgreSQL: a row for each name.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::Write;
use super::remote::{Failure, Register, Row};
use super::sql;
use crate::store::StoreSettings;

/// The table.
pub const SCHEMA: &str = "";

/// One lock's row.
pub struct Table {
    key: String,
}

/// The names of all locks that somebody holds.
pub fn names(_settings: &StoreSettings) -> Result<Vec<String>, Failure> {
    Err(not_yet())
}

fn not_yet() -> Failure {
    Failure::permanent(format!("it is not spoken yet (format {})", sql::FORMAT))
}

impl Table {
    /// Does not connect yet.
    pub fn new(_settings: &StoreSettings, name: &OsStr) -> Result<Self, Failure> {
        Ok(Self { key: sql::key(name) })
    }
}

impl Register for Table {
    fn read(&mut self) -> Result<Row, Failure> {
        tracing::debug!("reading `{}`", self.key);
        Err(not_yet())
    }

    fn write(&mut self, _seen: &Row, _next: u64, _text: Option<&str>) -> Result<Write, Failure> {
        Err(not_yet())
    }

    fn prepare(&mut self) -> Result<(), Failure> {
        Err(not_yet())
    }

    fn wait(&mut self, _limit: Duration, _fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        Err(not_yet())
    }

    fn disconnect(&mut self) {}
}
