//! The register of one lock: a record in a store, read and written as a whole.
//!
//! Every write is conditional on the state that was read last. A lost answer is resolved as in
//! `docs/protocol.md`, "After an ambiguous answer": the same conditional write is sent again. On a
//! conflict, the stored record, which differs from every other one, shows whether ours was done.

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use super::Stored;
use crate::record::{Entry, KEPT, Record};
use crate::store::backoff::{PollBackoff, retry};
use crate::store::failure::{Cause, Error, Failure};
pub use crate::store::seam::Write;
use crate::store::seam::{Key, Kind, Next, Queue, State, Store};
use crate::store::{self, Location};
use crate::sys::clock::{since_1970, since_boot};
use crate::sys::locked;

/// The age, in milliseconds, from which a state is read again before a write. The number of the
/// write must not be below the numbers of a register that was made, used and purged meanwhile.
const MAX_AGE: u64 = 60_000;

/// The register of one lock.
pub struct Register {
    pub(super) store: Arc<Shared>,
    pub(super) key: Key,
    location: String,
    backoff: PollBackoff,
    pub(super) last: Option<Last>,
    /// A state that was read with others, and when it was asked for: what the next read finds.
    pub offered: Option<(State, u64)>,
}

pub(super) struct Last {
    pub(super) state: State,
    /// When the state was asked for, in milliseconds since boot: before the store read its clock.
    pub(super) asked: u64,
    next: u64,
    pub(super) is_prepared: bool,
}

pub(super) type Shared = Mutex<Box<dyn Store>>;

/// The connection of a register, which another thread may close.
pub struct Connection(Weak<Shared>);

impl Connection {
    /// Closes it, until the register is used again. Does nothing while another thread uses it.
    pub fn close(&self) {
        if let Some(store) = self.0.upgrade()
            && let Ok(mut store) = store.try_lock()
        {
            store.disconnect();
        }
    }
}

impl Register {
    /// Opens a register, without touching it.
    pub fn open(location: &Location) -> Result<Self, Error> {
        Ok(Self::new(store::open(location)?, location.key().clone(), location.printable()))
    }

    /// The register `key` of a store, called `location` in messages. Does not connect yet.
    pub fn new(store: Box<dyn Store>, key: Key, location: String) -> Self {
        let (first, last) = store.poll_interval();
        let (store, backoff) = (Arc::new(Mutex::new(store)), PollBackoff::new(first, last));
        Self { store, key, location, backoff, last: None, offered: None }
    }

    /// Another register of the same store, over the same connection.
    pub fn sibling(&self, location: &Location) -> Self {
        let (key, location) = (location.key().clone(), location.printable());
        let (store, backoff) = (self.store.clone(), self.backoff.clone());
        Self { store, key, location, backoff, last: None, offered: None }
    }

    /// All registers of a kind, with their states where the store gives those with the time.
    pub fn list(&mut self, kind: Kind) -> Result<Vec<(OsString, State)>, Error> {
        let all = self.ask(|store, _| store::list_all(store, kind));
        let all = all.map_err(|failure| self.error("list the tasks beside", failure))?;
        // By the clock of the first page: the caller asked before that.
        let now = all.first().and_then(|(_, state)| state.now);
        let all = all.into_iter().filter(|(_, state)| state.now.is_some());
        Ok(all.map(|(name, state)| (name, State { now, ..state })).collect())
    }

    /// The name of the lock in messages.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// The stored state; `None` when nothing is stored.
    pub fn load(&mut self) -> Result<Option<Stored>, Error> {
        let last = self.read()?;
        let state = self.last.insert(last).state.clone();
        let (Some(value), Some(_)) = (&state.value, &state.version) else { return Ok(None) };
        if value.is_empty() && !self.store().counts() {
            return Ok(Some(Stored { record: None, state }));
        }
        let record = Record::parse(value.as_bytes()).map_err(|why| self.is_foreign(why))?;
        let is_run = |entry: &Entry| entry.once.is_some();
        let last = record.entries().iter().rfind(|entry| !entry.is_mark());
        let is_plain = !record.is_newer() && last.is_some_and(|last| !is_run(last));
        let why = match self.key.kind {
            // A lock of one machine may be named as the file of a key.
            Kind::Lock if record.entries().iter().any(is_run) => "it tells of the run of a key",
            Kind::Once | Kind::Schedule if is_plain => "it does not tell of a run",
            _ => return Ok(Some(Stored { record: Some(record), state })),
        };
        Err(self.is_foreign(why))
    }

    /// Stores `record`, or removes what is stored, only if `seen` is still stored.
    pub fn put(&mut self, seen: Option<&Stored>, record: Option<&Record>) -> Result<Write, Error> {
        let is_newer = seen.and_then(|seen| seen.record.as_ref()).is_some_and(Record::is_newer);
        if record.is_some() && is_newer {
            return Err(self.error("change the lock", Failure::of_newer_version()));
        }
        let last = self.last.take().map_or_else(|| self.read(), Ok)?;
        let version = last.state.value.as_ref().and(last.state.version.as_ref());
        let is_old = since_boot().saturating_sub(last.asked) > MAX_AGE;
        if version != seen.and_then(|seen| seen.state.version.as_ref()) || is_old {
            return Ok(Write::Conflict);
        }
        let written = if last.is_prepared {
            self.write(&last, record)
        } else {
            // The next read finds a register without a state, and the clock.
            self.ask(|store, key| store.create_schema(key)).map(|()| Write::Conflict)
        };
        written.map_err(|failure| self.error("write the lock", failure))
    }

    /// Checks that the store refuses a write on a false condition, on a lock that is not in use.
    pub fn verify_conditional_writes(&mut self) -> Result<(), Error> {
        self.ask(|store, key| store.verify_conditional_writes(key))
            .map_err(|failure| self.error("use", failure))
    }

    /// The version of the state that was read last, whether something is stored in it or not.
    pub fn version(&self) -> Option<&[u8]> {
        self.last.as_ref()?.state.version.as_deref()
    }

    /// The store's clock now, in milliseconds, or a little later; `None` without a clock.
    pub fn now(&self) -> Option<u64> {
        let Last { state, asked, .. } = self.last.as_ref()?;
        Some(state.now? + since_boot().saturating_sub(*asked))
    }

    /// The store's clock, or else this host's, in milliseconds since 1970.
    pub fn time(&self) -> u64 {
        self.now().unwrap_or_else(since_1970)
    }

    /// The name, as the user gave it.
    pub fn name(&self) -> Cow<'_, str> {
        self.key.name.to_string_lossy()
    }

    /// The error for a value that cannot be used, for the reason `why`.
    pub fn is_foreign(&self, why: &str) -> Error {
        self.error("read the lock", self.store().foreign(why))
    }

    /// The number of the next write, larger than all before it. `None` for a store without numbers.
    pub fn next_number(&self) -> Option<u64> {
        let last = self.last.as_ref().filter(|last| last.is_prepared && self.store().counts());
        last.map(|last| last.next)
    }

    /// The name and the version of the store's server, if known.
    pub fn server(&self) -> Option<String> {
        self.store().server()
    }

    /// Sleeps at most `limit`, until one of `fds` is readable, or until the register may have
    /// changed. Without `is_beside`, takes a place in the queue, and sleeps until its turn.
    pub fn wait(
        &mut self,
        is_beside: bool,
        limit: Duration,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        self.queue(|queue| queue.wait(is_beside, limit, fds))
            .map_err(|failure| self.error("wait for the lock", failure))
    }

    /// The connection, which is opened again when it is used.
    pub fn connection(&self) -> Connection {
        Connection(Arc::downgrade(&self.store))
    }

    /// Asks the queue of the store. Without one, waiters poll, and do not know of each other.
    pub fn queue<T>(&mut self, ask: impl FnOnce(&mut dyn Queue) -> T) -> T {
        ask(locked(&self.store).queue(&self.key).unwrap_or(&mut self.backoff))
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Box<dyn Store>> {
        locked(&self.store)
    }

    pub(super) fn error(&self, action: &'static str, failure: Failure) -> Error {
        let error = failure.during(action, self.location.clone());
        let noun = self.key.kind.noun();
        Error { action: error.action.map(|action| action.replace("the lock", noun)), ..error }
    }

    /// Asks the store; after a hiccup again, over a new connection.
    fn ask<T>(
        &mut self,
        mut ask: impl FnMut(&mut dyn Store, &Key) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let Self { store, key, .. } = self;
        let mut store = locked(store);
        retry(|| {
            let answer = ask(&mut **store, key);
            if answer.as_ref().is_err_and(|failure| failure.cause.passes()) {
                store.disconnect();
            }
            answer
        })
    }

    fn read(&mut self) -> Result<Last, Error> {
        let read = match self.offered.take() {
            Some(offered) => Ok(offered),
            None => self.ask(|store, key| {
                let asked = since_boot();
                Ok((store.get(key)?, asked))
            }),
        };
        let ((state, asked), is_prepared) = match read {
            Ok(read) => (read, true),
            Err(Failure { cause: Cause::NotPrepared, .. }) => {
                ((State::default(), since_boot()), false)
            }
            Err(failure) => return Err(self.error("read the lock", failure)),
        };
        let next = number_after(&state)
            .ok_or_else(|| self.is_foreign("its number is the largest possible one"))?;
        Ok(Last { state, asked, next, is_prepared })
    }

    fn write(&mut self, last: &Last, record: Option<&Record>) -> Result<Write, Failure> {
        let text = record.map(Record::to_text);
        let keep = record.map_or(Some(KEPT), Record::keep);
        let next = Next { number: last.next, value: text.as_deref(), keep };
        let mut is_indefinite = false;
        let write = self.ask(|store, key| {
            let write = store.put(key, &last.state, &next);
            write.inspect_err(|failure| is_indefinite |= failure.is_indefinite)
        });
        let found = match write {
            // It may be by a write of ours: an answer was lost, or a proxy has sent it twice.
            Ok(Write::Conflict) if self.store().counts() => self.ask(|store, key| store.get(key)),
            Err(failure) if is_indefinite => return Err(failure.indefinite()),
            write => return write,
        };
        match found {
            // If nothing is stored, as intended, another process may have intended the same.
            Ok(state) if state.value.as_deref() == next.value => {
                Ok(if next.value.is_some() || is_indefinite { Write::Done } else { Write::Unknown })
            }
            Ok(_) => Ok(if is_indefinite { Write::Unknown } else { Write::Conflict }),
            Err(failure) if is_indefinite => Err(failure.indefinite()),
            Err(_) => Ok(Write::Unknown),
        }
    }
}

/// A number larger than all before it, also after a restored backup, which counts again from an
/// older state. It is never below the time in milliseconds, and a lock changes hands less than a
/// thousand times a second. Without a clock in the store, the time is this host's.
pub fn number_after(state: &State) -> Option<u64> {
    let next = state.number.checked_add(1)?;
    Some(state.now.unwrap_or_else(since_1970).max(next))
}
