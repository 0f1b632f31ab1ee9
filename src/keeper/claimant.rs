//! A process that locks in a store, with the keeper that the record names.

use std::cell::OnceCell;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::process::Pid;

use super::process::Keeper;
use crate::claimant::{Claimant, ProcessClaimant};
use crate::mutex::register::Stored;
use crate::owner::Instance;
use crate::record::Entry;

/// The owner of a lock whose lease, if it has one, is kept by another process, which is started when the lock seems to be free.
pub struct KeptClaimant<'a> {
    owner: &'a ProcessClaimant,
    needs_keeper: bool,
    keeper: OnceCell<Keeper>,
}

impl<'a> KeptClaimant<'a> {
    /// Does not start anything yet.
    pub fn new(owner: &'a ProcessClaimant, needs_keeper: bool) -> Self {
        Self { owner, needs_keeper, keeper: OnceCell::new() }
    }

    /// The keeper, started if need be. Dropped before it was told what to keep, it ends.
    pub fn keeper(&self) -> io::Result<&Keeper> {
        if self.keeper.get().is_none() {
            let _ = self.keeper.set(Keeper::spawn()?);
        }
        self.keeper.get().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Whether this keeper was started here.
    pub fn has_made(&self, keeper: (Pid, Instance)) -> bool {
        self.keeper.get().is_some_and(|own| own.identity() == keeper)
    }

    /// The entry of this acquisition, if it needs a keeper.
    pub fn made(&self, token: &str) -> io::Result<Option<Entry>> {
        let entry = self.needs_keeper.then(|| self.entry()).transpose()?;
        Ok(entry.map(|entry| Entry { token: Some(token.to_owned()), ..entry }))
    }
}

impl Claimant for KeptClaimant<'_> {
    fn entry(&self) -> io::Result<Entry> {
        let mut entry = self.owner.entry()?;
        if self.needs_keeper {
            entry.keeper = Some(self.keeper()?.identity());
        }
        Ok(entry)
    }

    fn owns(&self, stored: &Stored, entry: &Entry) -> bool {
        self.owner.owns(stored, entry)
    }

    fn is_present(&self) -> bool {
        self.owner.is_present()
    }

    fn absence_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.owner.absence_fds()
    }
}
