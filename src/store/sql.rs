//! A store in a database: docs/protocol.md, "Databases". `sqlx` speaks their protocols.

pub mod address;
pub mod engine;
pub mod session;

use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, percent_decode_str, utf8_percent_encode};

use self::address::Address;
use self::engine::{Engine, Phase, READ_ONLY};
use super::failure::{Cause, Failure, Result};
use super::runtime::PrivateRuntime;
use super::seam::{Key, Kind, Next, Page, Queue, State, Store, Write};
use crate::store::address::StoreSettings;
use crate::sys::text;

const PAGE: usize = 500;

/// How long a read-only server counts as failing over.
const FAIL_OVER: Duration = Duration::from_secs(120);

/// What is escaped in a record, beside all that is not ASCII.
const ESCAPED: &AsciiSet = &AsciiSet::EMPTY.add(b'%');

pub struct Sql<E: Engine> {
    pub settings: StoreSettings,
    /// For the first connection: a password file may be a pipe. Later ones read it anew, because
    /// passwords change.
    address: Option<Address>,
    #[cfg_attr(not(feature = "mysql"), expect(dead_code, reason = "for names of MySQL's locks"))]
    pub database: String,
    pub session: Option<E::Session>,
    /// The stored name of the register with the queue in use.
    pub name: String,
    pub place: Option<E::Place>,
    /// Whether the server has what the queue needs.
    pub has_queue: bool,
    /// Whether others were queued before this process when the row was read.
    pub are_others_first: bool,
    /// Since when the server has had no room for this waiter.
    full_since: Option<Instant>,
    /// Since when the server has refused writes because it is read-only.
    read_only_since: Option<Instant>,
    pub runtime: PrivateRuntime,
}

impl<E: Engine> Sql<E> {
    /// Does not connect yet.
    pub fn new(settings: &StoreSettings) -> Result<Self> {
        let address = Address::read::<E>(settings)?;
        E::check(&address)?;
        Ok(Self {
            settings: settings.clone(),
            database: address.database.clone().unwrap_or_default(),
            address: Some(address),
            session: None,
            name: String::new(),
            place: None,
            has_queue: true,
            are_others_first: false,
            full_since: None,
            read_only_since: None,
            runtime: PrivateRuntime::default(),
        })
    }

    fn write(&mut self, statement: String) -> Result<Write> {
        let answer = self.ask(statement, Phase::Write).map_err(|failure| self.judge(failure))?;
        self.read_only_since = None;
        let is_none = answer.text(0, 0).is_none_or(|changed| changed == "0");
        Ok(if is_none { Write::Conflict } else { Write::Done })
    }

    /// A read-only server is waited for as long as a fail-over takes; later, only an administrator
    /// can change it.
    fn judge(&mut self, failure: Failure) -> Failure {
        if !failure.why.contains(READ_ONLY) {
            return failure;
        }
        let since = self.read_only_since.get_or_insert_with(Instant::now);
        let cause = if since.elapsed() < FAIL_OVER { Cause::Transient } else { Cause::Permanent };
        Failure { cause, ..failure }
    }

    fn condition(key: &Key, expected: &State) -> String {
        let seen = String::from_utf8_lossy(expected.version.as_deref().unwrap_or_default());
        let stored = seen.split_once(' ').filter(|_| expected.value.is_some());
        let stored = stored.map(|(_, stored)| format!("= {}", E::literal(stored)));
        let stored = stored.unwrap_or_else(|| "IS NULL".to_owned());
        let (name, number) = (E::literal(&key.stored_name()), expected.number);
        format!("name = {name} AND version = {number} AND record {stored} AND format = 1")
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The state in `version, record, format, now`. Its version holds what is stored, which need not be
/// escaped as this program would.
fn state(row: &[Option<String>]) -> Result<State> {
    let now = row.get(3).and_then(|now| now.as_ref()?.parse().ok());
    let now = Some(now.ok_or_else(|| Failure::transient("the server does not tell the time"))?);
    let free = State { now, ..State::default() };
    let [Some(number), record, format, ..] = row else { return Ok(free) };
    if format.as_deref() != Some("1") {
        return Err(Failure::of_newer_version());
    }
    let version = Some(format!("{number} {}", record.as_deref().unwrap_or_default()).into_bytes());
    let foreign = |_| Failure::permanent("its version is not a number from 0 on");
    let number = number.parse().map_err(foreign)?;
    let value = record.as_deref().map(percent_decode_str);
    let value = value.map(|record| record.decode_utf8_lossy().into_owned());
    Ok(State { version, number, value, ..free })
}

fn page_condition<E: Engine>(kind: Kind, after: Option<&OsStr>) -> String {
    let others = Kind::PREFIXED.map(|other| format!("name NOT LIKE '{}%'", other.prefix()));
    let of_kind = match kind {
        Kind::Lock => others.join(" AND "),
        kind => format!("name LIKE '{}%'", kind.prefix()),
    };
    let Some(after) = after.and_then(OsStr::to_str) else { return of_kind };
    format!("{of_kind} AND name > {}", E::literal(&format!("{}{after}", kind.prefix())))
}

impl<E: Engine> Store for Sql<E> {
    fn get(&mut self, key: &Key) -> Result<State> {
        let name = key.stored_name();
        let (now, literal) = (E::NOW, E::literal(&name));
        let read = |are_others_first: &str| {
            format!(
                "SELECT version, record, format, {now}, {are_others_first} FROM (SELECT 1 AS one) \
                 AS always LEFT JOIN serializer_locks ON name = {literal}"
            )
        };
        let queue = self.queues(&name).then(|| E::are_others_first(self, &name));
        let mut answer = self.ask(read(queue.as_deref().unwrap_or("NULL")), Phase::Read);
        if matches!(&answer, Err(failure) if failure.cause == Cause::Permanent && queue.is_some()) {
            // Perhaps a proxy or another product, which only speaks like the engine.
            answer = self.ask(read("NULL"), Phase::Read);
            self.has_queue = answer.is_err();
        }
        let answer = answer?;
        self.are_others_first = answer.is_true(0, 4);
        state(answer.0.first().map_or(&[], Vec::as_slice))
    }

    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write> {
        let (name, number) = (E::literal(&key.stored_name()), next.number);
        let record = next.value.map(|value| utf8_percent_encode(value, ESCAPED).to_string());
        let record = record.map_or_else(|| "NULL".to_owned(), |record| E::literal(&record));
        self.write(if expected.version.is_none() {
            let values = format!("VALUES ({name}, {number}, {record}){}", E::UNLESS_EXISTS);
            format!("INSERT INTO serializer_locks (name, version, record) {values}")
        } else {
            let (set, condition) =
                ("changed = CURRENT_TIMESTAMP(6)", Self::condition(key, expected));
            let set = format!("version = {number}, record = {record}, {set}");
            format!("UPDATE serializer_locks SET {set} WHERE {condition}")
        })
    }

    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page> {
        let columns = format!("version, record, format, {}, name", E::NOW);
        let page = format!("{} ORDER BY name LIMIT {PAGE}", page_condition::<E>(kind, after));
        let statement = format!("SELECT {columns} FROM serializer_locks WHERE {page}");
        let answer = self.ask(statement, Phase::Read)?;
        let entry = |row: &Vec<Option<String>>| {
            let name = row.get(4)?.as_deref()?.strip_prefix(kind.prefix())?;
            let unreadable = |_| State { value: Some(String::new()), ..State::default() };
            Some((OsString::from(name), state(row).unwrap_or_else(unreadable)))
        };
        let entries: Vec<_> = answer.0.iter().filter_map(entry).collect();
        let next = entries.last().filter(|_| entries.len() == PAGE).map(|(name, _)| name.clone());
        Ok(Page { entries, next })
    }

    fn purge(&mut self, key: &Key, expected: &State) -> Result<Write> {
        let condition = Self::condition(key, expected);
        self.write(format!("DELETE FROM serializer_locks WHERE {condition}"))
    }

    fn create_schema(&mut self, key: &Key) -> Result<()> {
        let Err(failure) = self.ask(E::SCHEMA, Phase::Read) else { return Ok(()) };
        // Two processes that create the table at the same time can fail, in spite of `IF NOT
        // EXISTS`. The right to use the table does not imply the right to create it.
        self.get(key).map(drop).map_err(|_| self.judge(failure))
    }

    fn verify_conditional_writes(&mut self, key: &Key) -> Result<()> {
        // A trial of the store, which follows, tells of a failure.
        if self.create_schema(key).is_ok() {
            E::warn(self);
        }
        Ok(())
    }

    fn disconnect(&mut self) {
        self.end();
    }

    fn schema(&self) -> Option<&'static str> {
        Some(E::SCHEMA)
    }

    fn server(&mut self) -> Option<String> {
        let answer = self.ask("SELECT version()", Phase::Read).ok()?;
        // PostgreSQL appends the platform and the compiler.
        answer.text(0, 0)?.split(" on ").next().map(text::field)
    }

    fn repair(&self) -> &'static str {
        "setting `record` to NULL in its row"
    }

    fn queue(&mut self, key: &Key) -> Option<&mut dyn Queue> {
        self.name = key.stored_name();
        Some(self)
    }
}

impl<E: Engine> Drop for Sql<E> {
    fn drop(&mut self) {
        self.end();
    }
}
