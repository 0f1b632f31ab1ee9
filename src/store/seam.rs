//! The seam between the policy of locks and the stores that keep them: docs/protocol.md, "The
//! seam". A store does not parse lock records or know leases.

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::directory::names::sha256;
use super::failure::{Failure, Result};
use crate::store::waiter::Waiter;

/// The longest name that a store keeps as it is, in bytes: what every engine can index.
const MAX_NAME: usize = 200;

/// What a register is for. Each kind has its own names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Kind {
    Lock,
    Once,
    Schedule,
    Session,
}

impl Kind {
    /// The kinds with a prefix in their stored names.
    pub const PREFIXED: [Self; 3] = [Self::Once, Self::Schedule, Self::Session];

    /// The beginning of the stored names of this kind.
    pub fn prefix(self) -> &'static str {
        ["", "once/", "schedule/", "session/"][self as usize]
    }

    /// What a register of this kind is called in messages.
    pub fn noun(self) -> &'static str {
        ["the lock", "the key", "the task", "the session"][self as usize]
    }

    /// Whether a lock of this name would be mistaken for a register of another kind.
    pub fn is_reserved(name: &OsStr) -> bool {
        Self::PREFIXED.iter().any(|kind| name.as_bytes().starts_with(kind.prefix().as_bytes()))
    }
}

/// The identity of one register of a store: its kind, and the name as the user gave it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Key {
    pub kind: Kind,
    pub name: OsString,
}

impl Key {
    /// The key of a lock.
    pub fn lock(name: &OsStr) -> Self {
        Self { kind: Kind::Lock, name: name.to_owned() }
    }

    /// The name of its register in a store: the prefix of its kind, and its name. A name that is
    /// too long or not text is its beginning and a hash, and so is the name of a lock that begins
    /// with such a prefix.
    pub fn stored_name(&self) -> String {
        let prefix = self.kind.prefix();
        let is_reserved = self.kind == Kind::Lock && Kind::is_reserved(&self.name);
        let is_kept = |text: &&str| text.len() <= MAX_NAME && !text.contains('\0') && !is_reserved;
        if let Some(text) = self.name.to_str().filter(is_kept) {
            return format!("{prefix}{text}");
        }
        let hash = sha256(self.name.as_bytes());
        let shown = self.name.to_string_lossy();
        let shown: String = shown.chars().filter(|c| *c != '\0').take(30).collect();
        let shown = if is_reserved { shown.replacen('/', "_", 1) } else { shown };
        format!("{prefix}{shown}~{hash}")
    }
}

/// A name that opens the register with this stored name, if it is one of `kind`, and behind
/// `after`.
pub fn name_after(stored: &str, kind: Kind, after: Option<&OsStr>) -> Option<OsString> {
    let rest = |kind: &Kind| Some((*kind, stored.strip_prefix(kind.prefix())?));
    let (found, name) = Kind::PREFIXED.iter().find_map(rest).unwrap_or((Kind::Lock, stored));
    (found == kind && after.is_none_or(|after| OsStr::new(name) > after)).then(|| name.into())
}

/// The state of a register as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Identifies the state, also after a restored backup; `None` if the register was never
    /// written, or has been purged.
    pub version: Option<Vec<u8>>,
    /// Grows with each write; 0 without a version.
    pub number: u64,
    /// The stored text; `None` after a write of nothing.
    pub value: Option<String>,
    /// The store's clock in milliseconds since 1970, read before the value; `None` if its clients
    /// do not share one.
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

/// What to write: a number above that before, and a text or nothing.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Next<'a> {
    pub number: u64,
    pub value: Option<&'a str>,
    /// After this time, the store may remove the state.
    pub keep: Option<Duration>,
}

/// Some registers of one kind, in the order of their stored names.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Names and states, with the time in a database. A name may be shortened; it opens the same
    /// register. A value that cannot be read, or was not, is empty; [`Store::get`] tells it.
    pub entries: Vec<(OsString, State)>,
    /// The name after which the next page begins.
    pub next: Option<OsString>,
}

/// A compare-and-swap register per key.
pub trait Store: Send {
    /// The register's state, strongly consistent. [`Cause::NotPrepared`] without a schema.
    ///
    /// [`Cause::NotPrepared`]: super::Cause::NotPrepared
    fn get(&mut self, key: &Key) -> Result<State>;

    /// Writes `next` only if number and value are still those of `expected`. A failure that is not
    /// indefinite has changed nothing.
    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write>;

    /// A page of the registers of `kind` after `after`, including those without a value.
    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page>;

    /// Removes the register only if it is still in the state `expected`. A later write starts again
    /// without a version.
    fn purge(&mut self, _key: &Key, _expected: &State) -> Result<Write> {
        Err(Failure::permanent("the store itself removes what is not used"))
    }

    /// Creates the schema, if it does not exist.
    fn create_schema(&mut self, _key: &Key) -> Result<()> {
        Ok(())
    }

    /// Checks that the store refuses a write on a false condition, where that is
    /// uncertain. Warns of settings of the server by which it forgets what it has acknowledged.
    fn verify_conditional_writes(&mut self, _key: &Key) -> Result<()> {
        Ok(())
    }

    /// Closes the connection politely, if there is one. The next call opens another.
    fn disconnect(&mut self) {}

    /// The action that frees a register with a foreign value, as part of a sentence.
    fn repair(&self) -> &'static str {
        "removing the file when nothing uses it"
    }

    /// The failure to report for a value that is not a record, for the reason `why`.
    fn foreign(&self, why: &str) -> Failure {
        let hint = format!("another program has written there; {} frees the lock", self.repair());
        let why = format!("what is stored there is not a lock record: {why}");
        Failure::refused(why, hint)
    }

    /// Whether the store numbers its states. The lock file of one machine does not: its states are
    /// not ordered, an empty file is being written, and an answer is never lost.
    fn counts(&self) -> bool {
        true
    }

    /// Whether the store itself removes expired states. Then it does not purge.
    fn expires(&self) -> bool {
        false
    }

    /// The statements that create the schema, if there are any.
    fn schema(&self) -> Option<&'static str> {
        None
    }

    /// The server's name and version, if the store can query them.
    fn server(&mut self) -> Option<String> {
        None
    }

    /// The shortest and the longest interval between two polls, in a store without a queue.
    fn poll_interval(&self) -> (Duration, Duration) {
        (Duration::from_millis(100), Duration::from_secs(10))
    }

    /// The queue before a register, if the store wakes or orders waiters; otherwise it is polled.
    fn queue(&mut self, _key: &Key) -> Option<&mut dyn Queue> {
        None
    }
}

/// What ends a sleep by becoming readable.
pub type Fds<'a> = &'a [BorrowedFd<'a>];

/// Wakes the waiters for a register, and serves them in the order of their arrival. A courtesy:
/// exclusion never depends on it.
pub trait Queue {
    /// Sleeps at most `limit`, until one of `fds` is readable, or until the register may have
    /// changed. Takes a place in the queue, unless the caller waits `beside` it, and sleeps until
    /// it may be the caller's turn. Where a wake-up can be lost, it sleeps for a poll interval.
    fn wait(&mut self, beside: bool, limit: Duration, fds: Fds<'_>) -> Result<()>;

    /// Wakes waiters, best effort, because a holder has left.
    fn notify(&mut self) {}

    /// Whether no earlier waiter is known, as of the last [`Store::get`].
    fn is_first(&mut self) -> bool {
        true
    }

    /// Whether the caller is queued behind another waiter, which wakes it by leaving.
    fn is_queued(&mut self) -> bool {
        false
    }

    /// Whether the store has no room for another waiter, which should then pause before it polls.
    fn is_turned_away(&mut self) -> bool {
        false
    }

    /// Gives up the place in the queue.
    fn leave(&mut self) {}

    /// Shows holders that the caller waits, without a place in the queue.
    fn observe(&mut self) {}

    /// Whether there are other waiters; `true` where the store cannot tell.
    fn has_waiters(&mut self) -> bool {
        true
    }

    /// The known waiters, in their order.
    fn waiters(&mut self) -> Vec<Waiter> {
        Vec::new()
    }
}
