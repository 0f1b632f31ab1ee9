//! On whose behalf `run` locks: the command that it is about to start.

use std::cell::{Cell, OnceCell, RefCell};
use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::process::{Pid, getpid};

use super::{Interruptions, Leftovers, Prepared};
use crate::claimant::Claimant;
use crate::mutex::register::Stored;
use crate::owner::{Owner, Place};
use crate::printable;
use crate::record::Entry;
use crate::verdict::RUN_VARIABLE;

/// The command that is to hold a lock while it runs. Its process is made when the lock seems to be free, and not before: who
/// only waits is ended by signals as any other program.
pub struct RunClaimant {
    here: Place,
    command: Vec<OsString>,
    leftovers: Leftovers,
    interruptions: Option<Interruptions>,
    prepared: OnceCell<Prepared>,
    /// Of each record that was made: it may be the one that is stored.
    tokens: RefCell<Vec<String>>,
    failure: Cell<Option<io::Error>>,
}

impl RunClaimant {
    /// Does not start anything yet.
    pub fn new(here: &Place, command: Vec<OsString>, leftovers: Leftovers) -> Self {
        let (prepared, tokens, failure) = (OnceCell::new(), RefCell::default(), Cell::new(None));
        let interruptions = Interruptions::hold();
        Self { here: here.clone(), command, leftovers, interruptions, prepared, tokens, failure }
    }

    /// The process that waits to be the command, if it was needed, for good.
    pub fn take(&mut self) -> Option<Prepared> {
        self.prepared.take()
    }

    /// The signal that has ended the waiting, if one has.
    pub fn interruption(&mut self) -> Option<i32> {
        self.interruptions.take()?.take()
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
            let _ = self.prepared.set(Prepared::spawn(&self.command, self.leftovers, self.interruptions.as_ref())?);
        }
        self.prepared.get().ok_or_else(|| io::Error::other("it was not made"))
    }

    /// The command owns the lock, so that it never goes on without; this process keeps it until it has released it, so that
    /// nobody takes over what is about to be released.
    fn entry_of(&self, command: Pid) -> io::Result<Entry> {
        let run = std::env::var(RUN_VARIABLE).ok().filter(|run| !run.is_empty());
        let keeper = Owner::of(getpid(), &self.here)?.identified()?;
        let entry = Entry::new(Owner::of(command, &self.here)?.identified()?, run, Some(self.describe()))?;
        self.tokens.borrow_mut().extend(entry.token.clone());
        Ok(Entry { keeper: Some((keeper.pid, keeper.instance)), ..entry })
    }
}

impl Claimant for RunClaimant {
    fn entry(&self) -> io::Result<Entry> {
        let entry = self.prepared().and_then(|prepared| self.entry_of(prepared.pid()));
        entry.map_err(|error| {
            let kind = error.kind();
            self.failure.set(Some(error));
            kind.into()
        })
    }

    fn owns(&self, _stored: &Stored, entry: &Entry) -> bool {
        entry.token.as_ref().is_some_and(|token| self.tokens.borrow().contains(token))
    }

    fn is_present(&self) -> bool {
        match self.prepared.get() {
            Some(prepared) => prepared.is_ready(),
            None => !self.interruptions.as_ref().is_some_and(Interruptions::have_come),
        }
    }

    fn absence_fds(&self) -> Vec<BorrowedFd<'_>> {
        match self.prepared.get() {
            Some(prepared) => prepared.fds(),
            None => self.interruptions.iter().flat_map(Interruptions::fds).collect(),
        }
    }
}
