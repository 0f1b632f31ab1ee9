//! A store in a database: what PostgreSQL and MySQL have in common. `sqlx` speaks their protocols.
//! The table has one row for each name. A record is stored in ASCII, for databases of any encoding.
//!
//! Each statement is a transaction of its own: a simple query whose values are hexadecimal
//! literals. A pooler may send each to another session, so nothing is prepared, and nothing that a
//! statement sets outlives its transaction.

pub mod address;
pub mod engine;
pub mod failure;
pub mod session;
pub mod tls;

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, percent_decode_str, utf8_percent_encode};

use self::address::Address;
use self::engine::Engine;
use self::failure::Phase;
use super::failure::{Cause, Failure};
use super::network::variable;
use super::runtime::PrivateRuntime;
use super::seam::{Key, Kind, Next, Notifier, Page, Queue, State, Store, Write};
use crate::store::address::StoreSettings;
use crate::sys::random::jittered;

/// How many rows a page of `list` has.
const PAGE: usize = 500;

/// How often a process polls that wants no place in the queue.
const WATCHED: Duration = Duration::from_secs(1);

/// How often a waiter polls where there is no queue.
pub const UNQUEUED: Duration = Duration::from_millis(2500);

/// How long a read-only server counts as failing over. A longer read-only state ends only by an
/// administrator.
const FAIL_OVER: Duration = Duration::from_secs(120);

/// A part of the failure of a write that a read-only server refuses.
pub const READ_ONLY: &str = "read-only";

/// What is escaped in a record, beside all that is not ASCII.
const ESCAPED: &AsciiSet = &AsciiSet::EMPTY.add(b'%');

/// A store in a database.
pub struct Sql<E: Engine> {
    settings: StoreSettings,
    /// For the first connection: a password file may be a pipe. It is read anew for each later one,
    /// because passwords change.
    address: Option<Address>,
    /// The engine, and its queue as this process sees it.
    pub engine: E,
    pub session: Option<E::Session>,
    /// Whether the server has what the queue needs.
    pub has_queue: bool,
    /// Whether others were queued before this process when the row was read.
    pub are_others_first: bool,
    pub timeout: Duration,
    /// Since when the server has had no room for this waiter.
    pub full_since: Option<Instant>,
    /// When a write was first refused because the server is read-only.
    read_only_since: Option<(Instant, Instant)>,
    pub runtime: PrivateRuntime,
}

impl<E: Engine> Sql<E> {
    /// Does not connect yet.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        let address = Address::read(settings, &E::USUAL, &variable)?;
        Ok(Self {
            engine: E::new(&address)?,
            settings: settings.clone(),
            address: Some(address),
            session: None,
            has_queue: true,
            are_others_first: false,
            timeout: settings.timeout,
            full_since: None,
            read_only_since: None,
            runtime: PrivateRuntime::default(),
        })
    }

    fn write(&mut self, statement: String) -> Result<Write, Failure> {
        let answer = self.ask(statement, Phase::Write).map_err(|failure| self.judge(failure))?;
        self.read_only_since = None;
        Ok(if answer.changed == 0 { Write::Conflict } else { Write::Done })
    }

    /// The refusal of a write. That of a read-only server passes for as long as a fail-over takes.
    fn judge(&mut self, failure: Failure) -> Failure {
        if !failure.why.contains(READ_ONLY) {
            return failure;
        }
        // Of an earlier fail-over, another process may have seen the end.
        let (first, last) =
            self.read_only_since.get_or_insert_with(|| (Instant::now(), Instant::now()));
        if last.elapsed() >= FAIL_OVER {
            *first = Instant::now();
        }
        *last = Instant::now();
        let since = *first;
        let cause = if since.elapsed() < FAIL_OVER { Cause::Transient } else { Cause::Permanent };
        let hint = "if the server is a standby, name the primary in the address; otherwise, \
                    `read_only` or `default_transaction_read_only` is set for the server, the \
                    database or the user";
        Failure { cause, ..failure.with_hint(hint) }
    }

    /// The condition that a row is still in this state.
    fn condition(key: &Key, expected: &State) -> String {
        let seen = String::from_utf8_lossy(expected.version.as_deref().unwrap_or_default());
        let stored =
            seen.split_once(' ').map(|(_, stored)| stored).filter(|_| expected.value.is_some());
        let stored = stored.map_or_else(|| "NULL".to_owned(), E::literal);
        let (name, record, is) = (E::literal(&key.stored_name()), E::RECORD, E::IS);
        format!(
            "name = {name} AND version = {} AND {record} {is} {stored} AND format = 1",
            expected.number
        )
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The state in `version, record, format`. Its version holds what is stored, which need not be
/// escaped as this program would.
fn state(row: &[Option<String>]) -> Result<State, Failure> {
    let [Some(number), record, format, ..] = row else { return Ok(State::default()) };
    if format.as_deref() != Some("1") {
        return Err(Failure::of_newer_version());
    }
    let version = format!("{number} {}", record.as_deref().unwrap_or_default()).into_bytes();
    let number =
        number.parse().map_err(|_| Failure::permanent("its version is not a number from 0 on"))?;
    let value = record.as_deref().map(|record| {
        // Only what an older program has stored has other escapes: they are its text.
        let is_escaped = |rest: &str| {
            rest.starts_with("25") || rest.starts_with(['8', '9', 'A', 'B', 'C', 'D', 'E', 'F'])
        };
        if record.is_ascii() && record.split('%').skip(1).all(is_escaped) {
            percent_decode_str(record).decode_utf8_lossy().into_owned()
        } else {
            record.to_owned()
        }
    });
    Ok(State { version: Some(version), number, value, ..State::default() })
}

/// The condition that selects a page of names of a kind.
fn page_condition<E: Engine>(kind: Kind, after: Option<&OsStr>) -> String {
    let range = |kind: Kind| {
        let prefix = kind.prefix();
        // The next character after `/` is `0`.
        format!(
            "(name >= {} AND name < {})",
            E::literal(prefix),
            E::literal(&prefix.replace('/', "0"))
        )
    };
    let of_kind = match kind {
        Kind::Lock => Kind::PREFIXED.map(|kind| format!("NOT {}", range(kind))).join(" AND "),
        kind => range(kind),
    };
    let after =
        after.and_then(OsStr::to_str).map(|after| E::literal(&format!("{}{after}", kind.prefix())));
    after.map_or(of_kind.clone(), |after| format!("{of_kind} AND name > {after}"))
}

impl<E: Engine> Store for Sql<E>
where
    Self: Queue,
{
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        let name = key.stored_name();
        let read = |are_others_first: &str| {
            format!(
                "SELECT version, {}, format, {}, {are_others_first} FROM (SELECT 1 AS one) AS \
                 always LEFT JOIN serializer_locks ON name = {}",
                E::RECORD,
                E::NOW,
                E::literal(&name)
            )
        };
        let full = self.has_queue.then(|| read(&E::are_others_first(self, &name)));
        let answer = match full.map(|full| self.ask(full, Phase::Read)) {
            Some(Ok(answer)) => answer,
            Some(Err(failure)) if failure.cause.passes() || failure.cause == Cause::NotPrepared => {
                return Err(failure);
            }
            _ => {
                let answer = self.ask(read("NULL"), Phase::Read)?;
                // A proxy or another product, which only speaks like the engine.
                self.has_queue = false;
                answer
            }
        };
        let row = answer
            .rows
            .first()
            .ok_or_else(|| Failure::transient("the server's answer is empty"))?;
        let now = answer.text(0, 3).and_then(|now| now.parse().ok());
        let now = now.ok_or_else(|| Failure::transient("the server does not tell the time"))?;
        self.are_others_first = answer.is_true(0, 4);
        Ok(State { now: Some(now), ..state(row)? })
    }

    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        let number = next.number;
        let record =
            next.value.map(|value| E::literal(&utf8_percent_encode(value, ESCAPED).to_string()));
        let record = record.unwrap_or_else(|| "NULL".to_owned());
        let (name, unless_exists) = (E::literal(&key.stored_name()), E::UNLESS_EXISTS);
        self.write(if expected.version.is_none() {
            format!(
                "INSERT INTO serializer_locks (name, version, record) VALUES ({name}, {number}, \
                 {record}){unless_exists}"
            )
        } else {
            let condition = Self::condition(key, expected);
            format!(
                "UPDATE serializer_locks SET version = {number}, record = {record}, changed = \
                 CURRENT_TIMESTAMP(6) WHERE {condition}"
            )
        })
    }

    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page, Failure> {
        let condition = page_condition::<E>(kind, after);
        let statement = format!(
            "SELECT version, {}, format, name, {} FROM serializer_locks WHERE {condition} ORDER BY \
             name LIMIT {PAGE}",
            E::RECORD,
            E::NOW
        );
        let answer = self.ask(statement, Phase::Read)?;
        let unreadable = |_| State { value: Some(String::new()), ..State::default() };
        let entry = |row: &Vec<Option<String>>| {
            let name = row.get(3)?.as_deref()?;
            let now = row.get(4)?.as_ref().and_then(|now| now.parse().ok());
            let state = State { now, ..state(row).unwrap_or_else(unreadable) };
            Some((OsString::from(name.strip_prefix(kind.prefix()).unwrap_or(name)), state))
        };
        let entries: Vec<_> = answer.rows.iter().filter_map(entry).collect();
        let next = entries.last().filter(|_| entries.len() == PAGE).map(|(name, _)| name.clone());
        Ok(Page { entries, next })
    }

    fn purge(&mut self, key: &Key, expected: &State) -> Result<Write, Failure> {
        self.write(format!("DELETE FROM serializer_locks WHERE {}", Self::condition(key, expected)))
    }

    fn create_schema(&mut self, key: &Key) -> Result<(), Failure> {
        let Err(failure) = self.ask(E::SCHEMA, Phase::Read) else { return Ok(()) };
        // Two processes that create the table at the same time can fail, in spite of `IF NOT
        // EXISTS`. The right to use the table does not imply the right to create it.
        self.get(key).map(drop).map_err(|_| self.judge(failure))
    }

    fn advice(&mut self) -> Option<String> {
        E::advice(self)
    }

    fn disconnect(&mut self) {
        self.end();
    }

    fn schema(&self) -> Option<&'static str> {
        Some(E::SCHEMA)
    }

    fn repair(&self) -> &'static str {
        "setting `record` to NULL in its row"
    }

    fn notifier(&mut self) -> Option<&mut dyn Notifier> {
        Some(self)
    }

    fn queue(&mut self) -> Option<&mut dyn Queue> {
        Some(self)
    }
}

impl<E: Engine> Notifier for Sql<E> {
    fn wait(&mut self, _key: &Key, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        self.doze(limit.min(jittered(WATCHED)), fds)
    }

    fn notify(&mut self, key: &Key) {
        E::notify(self, &key.stored_name());
    }
}

impl<E: Engine> Drop for Sql<E> {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(all(test, feature = "postgres", feature = "mysql"))]
#[path = "sql/address_tests.rs"]
mod tests;
