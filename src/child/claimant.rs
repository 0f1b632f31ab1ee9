//! On whose behalf `run` locks: the command that it is about to start.

use std::cell::{Cell, OnceCell, RefCell};
use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;

use jiff::Timestamp;
use rustix::process::{Pid, getpid, getuid};

use super::{Leftovers, Prepared};
use crate::backend::Stored;
use crate::claimant::{Claimant, NoOwner};
use crate::owner::{Owner, Place};
use crate::printable;
use crate::process::{self, Observation};
use crate::record::{self, Record, random_token};
use crate::verdict::RUN_VARIABLE;

/// The command that is to hold a lock while it runs. Its process is made when the lock seems to be free, and not before: who
/// only waits is ended by signals as any other program.
pub struct RunClaimant {
    here: Place,
    command: Vec<OsString>,
    leftovers: Leftovers,
    prepared: OnceCell<Prepared>,
    /// Of each record that was made: it may be the one that is stored.
    tokens: RefCell<Vec<String>>,
    failure: Cell<Option<io::Error>>,
}

impl RunClaimant {
    /// Does not start anything yet.
    pub fn new(here: &Place, command: Vec<OsString>, leftovers: Leftovers) -> Self {
        let (prepared, tokens, failure) = (OnceCell::new(), RefCell::default(), Cell::new(None));
        Self { here: here.clone(), command, leftovers, prepared, tokens, failure }
    }

    /// The process that waits to be the command, if it was needed, for good.
    pub fn take(&mut self) -> Option<Prepared> {
        self.prepared.take()
    }

    /// Why it could not be made.
    pub fn failure(&self) -> Option<io::Error> {
        self.failure.take()
    }

    /// The command, as people may read it.
    pub fn describe(&self) -> String {
        let words: Vec<String> = self.command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        printable::command_line(&words)
    }

    fn prepared(&self) -> io::Result<&Prepared> {
        if self.prepared.get().is_none() {
            let _ = self.prepared.set(Prepared::spawn(&self.command, self.leftovers)?);
        }
        self.prepared.get().ok_or_else(|| io::Error::other("it was not made"))
    }

    fn record_of(&self, pid: Pid, run: Option<String>, command: String) -> io::Result<Record> {
        let Observation::Running(process) = process::observe(pid) else {
            return Err(io::Error::other("its process has ended"));
        };
        let owner = Owner { pid, uid: Some(getuid().as_raw()), place: self.here.clone(), instance: process.instance };
        if !owner.is(&owner) {
            return Err(io::Error::other(NoOwner::Unidentifiable { pid }));
        }
        let token = random_token()?;
        self.tokens.borrow_mut().push(token.clone());
        let (version, since) = (Some(record::VERSION), Some(Timestamp::now()));
        Ok(Record { version, owner, since, token: Some(token), run, command: Some(command) })
    }
}

impl Claimant for RunClaimant {
    fn record(&self) -> io::Result<Record> {
        let run = std::env::var(RUN_VARIABLE).ok().filter(|run| !run.is_empty());
        let record = self.prepared().and_then(|prepared| self.record_of(prepared.pid(), run, self.describe()));
        record.map_err(|error| {
            let kind = error.kind();
            self.failure.set(Some(error));
            kind.into()
        })
    }

    fn transient_record(&self) -> io::Result<Record> {
        self.record_of(getpid(), None, "serializer run".to_owned())
    }

    fn owns(&self, stored: &Stored) -> bool {
        let token = stored.content.record().and_then(|record| record.token.as_ref());
        token.is_some_and(|token| self.tokens.borrow().contains(token))
    }

    fn is_present(&self) -> bool {
        self.prepared.get().is_none_or(Prepared::is_ready)
    }

    fn absence_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.prepared.get().map(Prepared::fds).unwrap_or_default()
    }
}
