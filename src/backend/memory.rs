//! A register in memory, for tests of what is built on registers. Clones share one register.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Backend, Content, Error, Stored, Version, Write};
use crate::record::Record;

/// A shared register in memory.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<Register>>);

#[derive(Debug, Default)]
struct Register {
    record: Option<Record>,
    changes: u64,
    clock: Option<u64>,
}

impl Memory {
    /// One with a clock, as stores have it, which stands still until it is set.
    pub fn with_clock() -> Self {
        let memory = Self::default();
        memory.register().clock = Some(0);
        memory
    }

    /// Lets the clock go on by so many milliseconds.
    pub fn tick(&self, milliseconds: u64) {
        let mut register = self.register();
        register.clock = register.clock.map(|clock| clock + milliseconds);
    }

    fn register(&self) -> MutexGuard<'_, Register> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Register {
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
            is_local: register.clock.is_none(),
            now: register.clock,
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

    fn now(&self) -> Option<u64> {
        self.register().clock
    }

    fn next_number(&self) -> Option<u64> {
        let register = self.register();
        register.clock.map(|_| register.changes + 1)
    }

    fn wait(&mut self, _limit: Duration, _fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        Ok(())
    }
}
