//! A store in memory, for tests of what is built on stores. Clones share it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serializer::store::failure::Failure;
use serializer::store::seam::{Key, Kind, Next, Page, Queue, State, Store, Write};
use serializer::sys::clock::since_boot;
use serializer::sys::poll::sleep;

/// A shared store in memory.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<Registers>>);

#[derive(Debug, Default)]
struct Registers {
    /// The number of each state, and its value.
    states: BTreeMap<Key, (u64, Option<String>)>,
    /// Of all writes, so that a number never repeats after a purge.
    last_number: u64,
    /// How far its clock is ahead of ours.
    ahead: Option<u64>,
}

impl Memory {
    /// One as hosts share it: with a clock of its own, numbered states, and unknown waiters.
    pub fn shared() -> Self {
        let memory = Self::default();
        memory.registers().ahead = Some(0);
        memory
    }

    /// Sets its clock ahead by so many milliseconds.
    pub fn leap(&self, milliseconds: u64) {
        let mut registers = self.registers();
        registers.ahead = registers.ahead.map(|ahead| ahead + milliseconds);
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registers {
    fn state(&self, stored: Option<&(u64, Option<String>)>) -> State {
        let (now, is_local) = (self.ahead.map(|ahead| since_boot() + ahead), self.ahead.is_none());
        let Some((number, value)) = stored else {
            return State { now, is_local, ..State::default() };
        };
        let version = Some(number.to_be_bytes().to_vec());
        State { version, number: *number, value: value.clone(), now, is_local, written: None }
    }

    fn get(&self, key: &Key) -> State {
        self.state(self.states.get(key))
    }
}

impl Store for Memory {
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        Ok(self.registers().get(key))
    }

    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        let mut registers = self.registers();
        if registers.get(key).version != expected.version {
            return Ok(Write::Conflict);
        }
        // A store that does not count numbers its states all the same, to tell them apart.
        let number = next.number.max(registers.last_number + 1);
        registers.last_number = number;
        registers.states.insert(key.clone(), (number, next.value.map(str::to_owned)));
        Ok(Write::Done)
    }

    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page, Failure> {
        let registers = self.registers();
        let is_listed =
            |key: &Key| key.kind == kind && after.is_none_or(|after| key.name.as_os_str() > after);
        let listed = registers.states.iter().filter(|(key, _)| is_listed(key));
        let entries = listed.map(|(key, stored)| (key.name.clone(), registers.state(Some(stored))));
        Ok(Page { entries: entries.collect(), next: None })
    }

    fn purge(&mut self, key: &Key, expected: &State) -> Result<Write, Failure> {
        let mut registers = self.registers();
        let current = registers.get(key);
        if current.version.is_none()
            || (&current.version, &current.value) != (&expected.version, &expected.value)
        {
            return Ok(Write::Conflict);
        }
        registers.states.remove(key);
        Ok(Write::Done)
    }

    fn repair(&self) -> &'static str {
        "a new process"
    }

    fn counts(&self) -> bool {
        self.registers().ahead.is_some()
    }

    fn queue(&mut self, _key: &Key) -> Option<&mut dyn Queue> {
        Some(self)
    }
}

impl Queue for Memory {
    fn wait(
        &mut self,
        _beside: bool,
        limit: Duration,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Failure> {
        if self.counts() {
            // It wakes nothing.
            let _ = sleep(limit.min(Duration::from_millis(20)), fds);
        }
        Ok(())
    }
}
