//! A register in memory, for tests of what is built on registers. Clones share one register.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Backend, Content, Error, Stored, Version, Write};
use crate::process::since_boot;
use crate::record::Record;

/// A shared register in memory.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<Register>>);

#[derive(Debug, Default)]
struct Register {
    record: Option<Record>,
    changes: u64,
    /// How far its clock is ahead of ours.
    ahead: Option<u64>,
}

impl Memory {
    /// One as a store is that many hosts share: with a clock of its own, and without knowing who waits.
    pub fn shared() -> Self {
        let memory = Self::default();
        memory.register().ahead = Some(0);
        memory
    }

    /// Sets its clock ahead by so many milliseconds.
    pub fn leap(&self, milliseconds: u64) {
        let mut register = self.register();
        register.ahead = register.ahead.map(|ahead| ahead + milliseconds);
    }

    fn register(&self) -> MutexGuard<'_, Register> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Register {
    fn now(&self) -> Option<u64> {
        self.ahead.map(|ahead| since_boot() + ahead)
    }

    fn version(&self) -> Version {
        Version(self.changes.to_be_bytes().to_vec())
    }

    fn write(&mut self, expected: Option<&Version>, record: Option<&Record>) -> Write {
        let current = self.record.as_ref().map(|_| self.version());
        if expected != current.as_ref() {
            return Write::Conflict;
        }
        self.record = record.cloned();
        self.changes += 1;
        Write::Done
    }
}

impl Backend for Memory {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    fn load(&mut self) -> Result<Option<Stored>, Error> {
        let register = self.register();
        let stored = |record: &Record| Stored {
            content: Content::Record(Box::new(record.clone())),
            version: register.version(),
            written: None,
            is_local: register.ahead.is_none(),
            now: register.now(),
        };
        Ok(register.record.as_ref().map(stored))
    }

    fn create(&mut self, record: &Record) -> Result<Write, Error> {
        Ok(self.register().write(None, Some(record)))
    }

    fn replace(&mut self, seen: &Stored, record: &Record) -> Result<Write, Error> {
        Ok(self.register().write(Some(&seen.version), Some(record)))
    }

    fn delete(&mut self, seen: &Stored) -> Result<Write, Error> {
        Ok(self.register().write(Some(&seen.version), None))
    }

    fn is_awaited(&mut self) -> bool {
        self.register().ahead.is_some()
    }

    fn now(&self) -> Option<u64> {
        self.register().now()
    }

    fn next_number(&self) -> Option<u64> {
        let register = self.register();
        register.ahead.map(|_| register.changes + 1)
    }

    fn wait(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        if self.register().ahead.is_some() {
            // Nobody tells of changes.
            let _ = super::sleep(limit.min(Duration::from_millis(20)), fds);
        }
        Ok(())
    }
}
