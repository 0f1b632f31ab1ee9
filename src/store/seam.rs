//! The seam between the policy of locks and the stores that keep them.
//!
//! A store is a compare-and-swap register per key. It keeps an opaque text under a number, and
//! writes only if the register is still in the state that the caller has seen. It does not parse
//! lock records or know leases. Order and wake-ups are separate, optional traits; a store without
//! them is polled.

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::failure::Failure;
use crate::store::waiter::Waiter;

/// What a register is for. Each kind has its own names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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

impl Kind {
    /// The kinds whose stored names have a prefix.
    pub const PREFIXED: [Self; 3] = [Self::Once, Self::Schedule, Self::Session];

    /// The beginning of the stored name of a register of this kind. The stored name of a lock is
    /// its own name; a lock whose name begins like another kind's is stored under a hash.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Lock => "",
            Self::Once => "once/",
            Self::Schedule => "schedule/",
            Self::Session => "session/",
        }
    }

    /// What a register of this kind is called in messages.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Lock => "the lock",
            Self::Once => "the key",
            Self::Schedule => "the task",
            Self::Session => "the session",
        }
    }

    /// Whether a lock of this name would be mistaken for a register of another kind.
    pub fn is_reserved(name: &OsStr) -> bool {
        Self::PREFIXED.iter().any(|kind| name.as_bytes().starts_with(kind.prefix().as_bytes()))
    }
}

/// The identity of one register of a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// What the register is for.
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
    /// Identifies the state, also after a restored backup; `None` if the register was never
    /// written, or has been purged.
    pub version: Option<Vec<u8>>,
    /// The state's number, which grows with each write; 0 without a version.
    pub number: u64,
    /// The stored text; `None` after a write of nothing.
    pub value: Option<String>,
    /// The store's clock, in milliseconds since 1970, if the store has one clock for all its
    /// clients. Read before the value.
    pub now: Option<u64>,
    /// When the state was stored, by the clock of this machine.
    pub written: Option<SystemTime>,
    /// Whether only this machine can have stored it.
    pub is_local: bool,
}

/// How a conditional write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The write was done.
    Done,
    /// Nothing was changed: the register was in another state.
    Conflict,
    /// The write may have been done, and the state has changed since.
    Unknown,
}

/// What to write.
#[derive(Clone, Copy, Debug)]
pub struct Next<'a> {
    /// The new state's number, larger than that of the state before.
    pub number: u64,
    /// The text, or nothing.
    pub value: Option<&'a str>,
    /// For how long the state is of use; `None` without limit. A store may remove it afterwards.
    pub keep: Option<Duration>,
}

/// Some registers of one kind, in the order of their stored names.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The name and the state of each register, with the time in a database. A name that is long or
    /// not text may be shortened; the short name opens the same register. The value of a register
    /// that cannot be read is empty; [`Store::get`] tells why.
    pub entries: Vec<(OsString, State)>,
    /// The name after which the next page begins; `None` on the last page.
    pub next: Option<OsString>,
}

/// A compare-and-swap register per key.
pub trait Store: Send {
    /// The register's state, strongly consistent. A store whose schema does not exist fails with
    /// [`Cause::NotPrepared`](super::failure::Cause::NotPrepared).
    fn get(&mut self, key: &Key) -> Result<State, Failure>;

    /// Writes `next` only if the register is still in the state `expected`, of which the store
    /// compares number and value.
    ///
    /// # Errors
    /// When there is no answer, or the store refuses. A failure that is not
    /// [indefinite](Failure::is_indefinite) has changed nothing.
    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure>;

    /// A page of the registers of `kind` after `after`, which is [`Page::next`] of the page before.
    /// Includes registers without a value.
    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page, Failure>;

    /// Removes the register only if it is still in the state `expected`. A later write starts again
    /// without a version. A store that [`Self::expires`] does not remove anything when asked.
    fn purge(&mut self, _key: &Key, _expected: &State) -> Result<Write, Failure> {
        Err(Failure::permanent("the store itself removes what is not used"))
    }

    /// Creates the schema, if it does not exist.
    fn create_schema(&mut self, _key: &Key) -> Result<(), Failure> {
        Ok(())
    }

    /// Checks that the store refuses a write whose condition does not hold, where that is
    /// uncertain.
    fn verify_conditional_writes(&mut self, _key: &Key) -> Result<(), Failure> {
        Ok(())
    }

    /// What is wrong with the server's settings, for `initialize` to warn of.
    fn advice(&mut self) -> Option<String> {
        None
    }

    /// Closes the connection politely, if there is one. The next call opens another.
    fn disconnect(&mut self) {}

    /// The action that frees a register with a foreign value, as part of a sentence.
    fn repair(&self) -> &'static str;

    /// The failure to report for a value that is not a record, for the reason `why`.
    fn foreign(&self, why: &str) -> Failure {
        let hint = format!("another program has written there; {} frees the lock", self.repair());
        Failure::permanent(format!("what is stored there is not a lock record: {why}"))
            .with_hint(hint)
    }

    /// Whether the store numbers its states. The lock file of one machine does not: its states are
    /// not ordered, an empty file is being written, and an answer is never lost.
    fn counts(&self) -> bool {
        true
    }

    /// Whether the store itself removes expired states, by [`Next::keep`] or by its configuration.
    fn expires(&self) -> bool {
        false
    }

    /// The statements that create the schema; `None` for a store that is not set up by statements.
    fn schema(&self) -> Option<&'static str> {
        None
    }

    /// The shortest and the longest interval between two polls of a waiter, in a store without a
    /// notifier.
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
    /// Sleeps at most `limit`, until one of `fds` is readable, or until the register may have
    /// changed. Without a connection, or where a wake-up can be lost, it sleeps for one poll
    /// interval.
    ///
    /// # Errors
    /// When it cannot sleep; not when the connection breaks.
    fn wait(&mut self, key: &Key, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure>;

    /// Wakes the waiters of a register. Best effort: a waiter polls as well.
    fn notify(&mut self, key: &Key);
}

/// Serves waiters in the order of their arrival. A courtesy: exclusion never depends on it.
pub trait Queue {
    /// Takes a place in the queue, and sleeps as [`Notifier::wait`] does until it may be the
    /// caller's turn.
    fn wait_in_turn(
        &mut self,
        key: &Key,
        limit: Duration,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Failure>;

    /// Whether no earlier waiter is known, as of the last [`Store::get`].
    fn is_first(&mut self, key: &Key) -> bool;

    /// Whether the caller is queued behind another waiter, which wakes it by leaving.
    fn is_queued(&mut self, key: &Key) -> bool;

    /// Whether the store has no room for another waiter. The caller should then pause before it
    /// polls again.
    fn is_turned_away(&mut self) -> bool {
        false
    }

    /// Gives up the place in the queue.
    fn leave(&mut self, key: &Key);

    /// Shows holders that the caller waits, without a place in the queue.
    fn observe(&mut self, _key: &Key) {}

    /// Whether there are other waiters; `true` where the store cannot tell.
    fn has_waiters(&mut self, _key: &Key) -> bool {
        true
    }

    /// The known waiters, in their order.
    fn waiters(&mut self, key: &Key) -> Vec<Waiter>;
}
