//! The seam between the policy of locks and the stores that keep them.
//!
//! A store is a compare-and-swap register per key: it keeps an opaque text under a number, and writes only if the register is
//! still in the state that the caller has seen. It parses no lock record and knows no lease. Order and wake-ups are separate,
//! optional traits; a store without them is polled.

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::Write;
use super::remote::{Failure, Register, Row};
use crate::record::{Entry, Record};
use crate::waiter::Waiter;

/// What a register is for. Each kind has names of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A lock.
    Lock,
    /// A key that runs once.
    Once,
    /// A task on a schedule.
    Schedule,
    /// A live member of a cluster.
    Session,
}

/// Names one register of a store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// What it is for.
    pub kind: Kind,
    /// The name as the user gave it.
    pub name: OsString,
}

impl Key {
    /// The key of a lock.
    pub fn lock(name: &OsStr) -> Self {
        Self { kind: Kind::Lock, name: name.to_owned() }
    }
}

/// The state of a register as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Identifies the state, also after a restored backup; `None` if the register was never written, or has been purged.
    pub version: Option<Vec<u8>>,
    /// The state's number, which grows with each write; 0 without a version.
    pub number: u64,
    /// The stored text; `None` after a write of nothing.
    pub value: Option<String>,
    /// The store's clock, in milliseconds since 1970, for a store with one clock for all its clients. Read before the value.
    pub now: Option<u64>,
}

/// What to write.
#[derive(Clone, Copy, Debug)]
pub struct Next<'a> {
    /// The new state's number, larger than that of the state before.
    pub number: u64,
    /// The text, or nothing.
    pub value: Option<&'a str>,
    /// For how long the state is of use; `None` without limit. A store may remove it afterwards, and need not.
    pub keep: Option<Duration>,
}

/// Some registers of one kind, in the order of their stored names.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The stored name and the state of each. A long name, or one that is not text, is stored shortened; the stored name opens
    /// the same register.
    pub entries: Vec<(OsString, State)>,
    /// The stored name to continue after; `None` on the last page.
    pub next: Option<OsString>,
}

/// A compare-and-swap register per key.
pub trait Store {
    /// The register's state, strongly consistent. A store whose schema does not exist fails with
    /// [`Cause::NotPrepared`](super::remote::Cause::NotPrepared).
    ///
    /// # Errors
    /// When there is no answer.
    fn get(&mut self, key: &Key) -> Result<State, Failure>;

    /// Writes `next` only if the register is still in the state `expected`, of which the store compares number and value.
    ///
    /// # Errors
    /// When there is no answer, or it is a refusal. A failure that is not [indefinite](Failure::is_indefinite) has changed nothing.
    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure>;

    /// A page of the registers of `kind` whose stored names come after `after`, those without a value included.
    ///
    /// # Errors
    /// As for [`Store::get`].
    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page, Failure>;

    /// Removes the register, only if it is still in the state `expected`. A later write starts again without a version.
    ///
    /// # Errors
    /// As for [`Store::put`].
    fn purge(&mut self, key: &Key, expected: &State) -> Result<Write, Failure>;

    /// Creates the schema; an existing one is fine.
    ///
    /// # Errors
    /// When it cannot be created.
    fn create_schema(&mut self, key: &Key) -> Result<(), Failure>;

    /// Checks that the store refuses a write whose condition does not hold, where that is not certain.
    ///
    /// # Errors
    /// When it accepts such a write, or does not answer.
    fn verify_conditional_writes(&mut self, _key: &Key) -> Result<(), Failure> {
        Ok(())
    }

    /// Closes the connection politely, if there is one. The next call opens another.
    fn disconnect(&mut self) {}

    /// What frees a register with a foreign value, as part of a sentence.
    fn repair(&self) -> &'static str;

    /// The shortest and the longest interval between two polls of a waiter, in a store without a notifier.
    fn poll_interval(&self) -> (Duration, Duration) {
        (Duration::from_millis(100), Duration::from_secs(10))
    }

    /// Wake-ups, if the store has them.
    fn notifier(&mut self) -> Option<&mut dyn Notifier> {
        None
    }

    /// Order, if the store has it.
    fn queue(&mut self) -> Option<&mut dyn Queue> {
        None
    }
}

/// Wakes waiters.
pub trait Notifier {
    /// Sleeps at most `limit`, until one of `fds` is readable, or until the register may have changed. Without a connection, or
    /// where a wake-up can be lost, it sleeps for as long as is right between two polls.
    ///
    /// # Errors
    /// When it cannot sleep; not when the connection breaks.
    fn wait(&mut self, key: &Key, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure>;

    /// Wakes the waiters of a register. Best effort: a waiter polls as well.
    fn notify(&mut self, key: &Key);
}

/// Serves waiters first come, first served. A courtesy: exclusion never depends on it.
pub trait Queue {
    /// Takes a place in the queue, and sleeps as [`Notifier::wait`] does until it may be the caller's turn.
    ///
    /// # Errors
    /// As for [`Notifier::wait`].
    fn wait_in_turn(&mut self, key: &Key, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure>;

    /// Whether no earlier waiter is known, as of the last [`Store::get`].
    fn is_first(&mut self) -> bool;

    /// Whether it waits behind another waiter, whose leaving wakes it.
    fn is_queued(&mut self) -> bool;

    /// Whether the store has no room for another waiter, which should stay away for a while.
    fn is_turned_away(&mut self) -> bool {
        false
    }

    /// Gives up the place.
    fn leave(&mut self);

    /// Lets holders see that it waits, without a place in the queue.
    fn observe(&mut self) {}

    /// Whether there are other waiters; `true` where the store cannot tell.
    fn has_waiters(&mut self) -> bool {
        true
    }

    /// The waiters in their order, as far as they are known.
    fn waiters(&mut self, key: &Key) -> Vec<Waiter>;
}

/// One register of a store, as the policy of remote locks uses it.
pub struct StoreRegister<S> {
    store: S,
    key: Key,
    backoff: super::looks::Looks,
}

impl<S: Store> StoreRegister<S> {
    /// Does not connect yet.
    pub fn new(store: S, key: Key) -> Self {
        let (first, last) = store.poll_interval();
        Self { store, key, backoff: super::looks::Looks::new(first, last) }
    }
}

/// The stored names of all locks that have a value.
///
/// # Errors
/// As for [`Store::list`]; a store without a schema has no locks.
pub fn held(store: &mut dyn Store) -> Result<Vec<OsString>, Failure> {
    let (mut names, mut after) = (Vec::new(), None);
    // Ends with the last page: each begins behind the one before.
    loop {
        let page = match store.list(Kind::Lock, after.as_deref()) {
            Err(Failure { cause: super::remote::Cause::NotPrepared, .. }) => return Ok(names),
            page => page?,
        };
        names.extend(page.entries.into_iter().filter(|(_, state)| state.value.is_some()).map(|(name, _)| name));
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(names),
        }
    }
}

/// For so long a register is kept that no process holds. A clock may be slow by less than this before numbers go back.
const KEEP: Duration = Duration::from_secs(35 * 24 * 60 * 60);

/// Whether a process holds what a record says. A record that only tells how an acquisition went is not held; one that cannot be
/// read may be.
fn is_held(text: &str) -> bool {
    let is_released = |entry: &Entry| entry.released.is_some() && entry.until.is_none();
    Record::parse(text.as_bytes()).map_or(true, |record| record.is_newer() || !record.entries().iter().all(is_released))
}

fn row(state: State) -> Row {
    Row { version: state.version, number: state.number, text: state.value, now: state.now }
}

fn state(row: &Row) -> State {
    State { version: row.version.clone(), number: row.number, value: row.text.clone(), now: row.now }
}

impl<S: Store> Register for StoreRegister<S> {
    fn read(&mut self) -> Result<Row, Failure> {
        self.store.get(&self.key).map(row)
    }

    fn write(&mut self, seen: &Row, next: u64, text: Option<&str>) -> Result<Write, Failure> {
        let keep = text.is_none_or(|text| !is_held(text)).then_some(KEEP);
        self.store.put(&self.key, &state(seen), &Next { number: next, value: text, keep })
    }

    fn prepare(&mut self) -> Result<(), Failure> {
        self.store.create_schema(&self.key)
    }

    fn prove(&mut self) -> Result<(), Failure> {
        self.store.verify_conditional_writes(&self.key)
    }

    fn wait(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        match self.store.queue() {
            Some(queue) => queue.wait_in_turn(&self.key, limit, fds),
            None => self.watch(limit, fds),
        }
    }

    fn watch(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        match self.store.notifier() {
            Some(notifier) => notifier.wait(&self.key, limit, fds),
            None => self.backoff.sleep(limit, fds),
        }
    }

    fn is_first(&mut self) -> bool {
        self.store.queue().is_none_or(Queue::is_first)
    }

    fn is_in_line(&mut self) -> bool {
        self.store.queue().is_some_and(Queue::is_queued)
    }

    fn is_kept_out(&mut self) -> bool {
        self.store.queue().is_some_and(Queue::is_turned_away)
    }

    fn leave(&mut self) {
        self.backoff.end();
        if let Some(queue) = self.store.queue() {
            queue.leave();
        }
    }

    fn waiters(&mut self) -> Vec<Waiter> {
        self.store.queue().map(|queue| queue.waiters(&self.key)).unwrap_or_default()
    }

    fn notify(&mut self) {
        if let Some(notifier) = self.store.notifier() {
            notifier.notify(&self.key);
        }
    }

    fn disconnect(&mut self) {
        self.store.disconnect();
    }

    fn repair(&self) -> &'static str {
        self.store.repair()
    }
}
