//! Keys in PostgreSQL: a row for each name.
//!
//! Each request is one round trip and one transaction, and does not depend on the session's state:
//! a pooler may send it to any session. The exceptions are the place in the queue and `LISTEN`
//! ([`queue`]), which are used only in a session of this process alone.

mod escape;
mod options;
mod queue;
mod session;
mod tickets;

use std::ffi::OsStr;

use sqlx::Error;
use sqlx::postgres::{PgDatabaseError, PgRow, PgSeverity};

use self::escape::{escaped, unescaped};
use self::options::{HINTS, Options};
use self::queue::Line;
use self::session::{Answer, Link, column, connect, refusal};
use super::failure::{Cause, Failure};
use super::seam::Write;
use super::seam::{Key, Kind, Next, Notifier, Page, Queue, State, Store};
use super::sql::failure::{Phase, no_answer, of};
use super::sql::{self, Driver, FORMAT, ReadOnly, hex};
use crate::store::StoreSettings;

/// The statements that create the table.
const SCHEMA: &str = "\
-- Locks of `serializer`: a row for each name. Rows stay when a lock is released.
CREATE TABLE IF NOT EXISTS serializer_locks (
    name    text COLLATE \"C\" PRIMARY KEY,
    version bigint NOT NULL,                                 -- the number of the state; never goes back
    record  text,                                            -- what is stored; NULL when a lock is free
    changed timestamptz NOT NULL DEFAULT clock_timestamp(),  -- for people
    format  smallint NOT NULL DEFAULT 1 CHECK (format = 1)   -- what the columns mean
);
-- For each role that is to use it:
-- GRANT SELECT, INSERT, UPDATE, DELETE ON serializer_locks TO ...;
-- COMMENT ON TABLE serializer_locks IS 'locks of serializer, one row for each name';
";

/// A store in PostgreSQL.
pub struct Postgres {
    settings: StoreSettings,
    /// The options for the first connection; read anew for each later one, because passwords
    /// change.
    options: Option<Options>,
    link: Option<Link>,
    line: Line,
    /// Whether the last request was answered.
    is_answering: bool,
    /// Whether the server's encoding can store any text.
    is_unicode: bool,
    /// Whether the server is a standby.
    is_standby: bool,
    read_only: ReadOnly,
    driver: Driver,
}

fn text(text: &str) -> String {
    format!("convert_from(decode('{}', 'hex'), 'UTF8')", hex(text.as_bytes()))
}

impl Postgres {
    /// Does not connect yet.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        Ok(Self {
            settings: settings.clone(),
            options: Some(Options::new(settings)?),
            link: None,
            line: Line::default(),
            is_answering: false,
            is_unicode: true,
            is_standby: false,
            read_only: ReadOnly::default(),
            driver: Driver::default(),
        })
    }

    fn options(&mut self) -> Result<Options, Failure> {
        let mut options = self.options.take().map_or_else(|| Options::new(&self.settings), Ok)?;
        options.is_labelled = !self.line.is_pooled();
        Ok(options)
    }

    /// Sends a request in the existing session, or in a new one. While this process is queued, the
    /// new session is beside the queued one.
    fn ask(&mut self, statement: String, phase: Phase) -> Result<Answer, Failure> {
        let limit = self.settings.timeout;
        let mut link = match self.link.take() {
            Some(link) => link,
            None => {
                let options = self.options()?;
                self.driver.run(connect(&options, limit, None))??
            }
        };
        let answer = self.driver.run_within(limit, link.ask(statement, phase))?;
        let failure = match answer {
            Some(Ok(answer)) => {
                self.keep(link);
                self.is_answering = true;
                return Ok(answer);
            }
            Some(Err(Error::Database(error))) => {
                let error = error.downcast_ref::<PgDatabaseError>();
                let failure = refusal(error, phase);
                if matches!(error.severity(), PgSeverity::Error) {
                    self.keep(link);
                } else {
                    self.driver.discard(link);
                }
                failure
            }
            failed => {
                // A late answer must not be taken for the answer to the next request.
                self.driver.discard(link);
                match failed {
                    Some(Err(error)) => of(&error, phase, &HINTS),
                    _ if phase == Phase::Write => no_answer().indefinite(),
                    _ => no_answer(),
                }
            }
        };
        self.is_answering = false;
        Err(failure)
    }

    /// Keeps a session for the next request, unless this process has another one, which is queued.
    fn keep(&mut self, link: Link) {
        if self.line.is_standing() {
            self.driver.close(link.close());
        } else {
            self.link = Some(link);
        }
    }

    /// The beginning of a statement that may have to wait: its time limit is shorter than that for
    /// its answer, and counts also when this process is gone.
    fn bounds(&self) -> String {
        format!("SET LOCAL statement_timeout = {}; ", (self.settings.timeout * 3 / 4).as_millis().max(1))
    }

    fn write(&mut self, statement: &str) -> Result<Write, Failure> {
        // A crash right after the answer must not undo the write, whatever the role's setting is.
        let statement = format!("{}SET LOCAL synchronous_commit = on; {statement}", self.bounds());
        match self.ask(statement, Phase::Write) {
            Ok(answer) => {
                self.read_only.end();
                Ok(if answer.changed == 0 { Write::Conflict } else { Write::Done })
            }
            Err(failure) => Err(self.judge(failure)),
        }
    }

    /// The refusal of a write. For a read-only server, the failure tells why, and is transient only
    /// for a limited time.
    fn judge(&mut self, failure: Failure) -> Failure {
        if !failure.why.contains(READ_ONLY) {
            return failure;
        }
        let hint = if self.is_standby {
            "the server is a standby: name the primary in the address, or all servers; the primary is then used"
        } else {
            "`default_transaction_read_only` is set for the server, the database or the role"
        };
        self.read_only.judge(failure.with_hint(hint))
    }

    /// The stored text of a value. Characters that an encoding such as LATIN1 cannot store are
    /// escaped.
    fn stored(&self, value: &str) -> String {
        if self.is_unicode { value.to_owned() } else { escaped(value) }
    }

    fn state(&self, row: &PgRow) -> Result<State, Failure> {
        let format: Option<i16> = column(row, 2)?;
        if format.is_some_and(|format| format != FORMAT) {
            let failure = Failure::permanent("a newer version of this program has written it");
            return Err(failure.with_hint("use that version here, too"));
        }
        let version: Option<i64> = column(row, 0)?;
        let number = u64::try_from(version.unwrap_or(0)).map_err(|_| Failure::permanent("its version is negative"))?;
        let raw: Option<String> = column(row, 1)?;
        // Where texts are escaped, the condition of a write needs the stored form.
        let raw_bytes = raw.as_deref().filter(|_| !self.is_unicode).unwrap_or_default().as_bytes();
        let version = version.map(|version| [&version.to_be_bytes(), raw_bytes].concat());
        let value = if self.is_unicode { raw } else { raw.map(|raw| unescaped(&raw)) };
        Ok(State { version, number, value, ..State::default() })
    }

    /// The condition that a row is still in this state.
    fn condition(&self, key: &Key, expected: &State) -> String {
        let raw = expected.version.as_deref().and_then(|version| version.get(8..)).filter(|raw| !raw.is_empty());
        let raw = raw.map(|raw| String::from_utf8_lossy(raw).into_owned());
        let stored = expected.value.as_deref().map(|value| raw.unwrap_or_else(|| self.stored(value)));
        let stored = stored.map_or_else(|| "NULL".to_owned(), |stored| text(&stored));
        // The value is compared, too: a server that has lost its last commits gives out their
        // numbers again.
        let number = expected.number;
        format!(
            "name = {} AND version = {number} AND record IS NOT DISTINCT FROM {stored} AND format = {FORMAT}",
            text(&key.stored_name())
        )
    }
}

/// A part of the failure of a write that a read-only server refuses.
const READ_ONLY: &str = "read-only";

impl Store for Postgres {
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        let name = text(&key.stored_name());
        let read = |ahead: &str, server: &str| {
            format!(
                "SELECT lock.version, lock.record, lock.format, \
                 floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint, {ahead}, {server} \
                 FROM (VALUES (1)) AS always LEFT JOIN serializer_locks AS lock ON lock.name = {name}"
            )
        };
        let bounds = if self.is_answering { String::new() } else { self.bounds() };
        let full = read(&self.line.ahead(&key.stored_name()), "getdatabaseencoding(), pg_catalog.pg_is_in_recovery()");
        let answer = match self.line.is_supported.then(|| self.ask(bounds.clone() + &full, Phase::Read)) {
            Some(Ok(answer)) => answer,
            Some(Err(failure)) if failure.cause.passes() || failure.cause == Cause::NotPrepared => return Err(failure),
            _ => {
                let answer = self.ask(bounds + &read("NULL::integer", "'UTF8', false"), Phase::Read)?;
                // A server that speaks PostgreSQL's protocol, but is another product.
                self.line.is_supported = false;
                answer
            }
        };
        let row = answer.rows.first().ok_or_else(|| Failure::permanent("the server's answer is empty"))?;
        self.line.ahead = column(row, 4)?;
        self.is_unicode = matches!(column::<String>(row, 5)?.as_str(), "UTF8" | "SQL_ASCII");
        self.is_standby = column(row, 6)?;
        let now: i64 = column(row, 3)?;
        Ok(State { now: u64::try_from(now).ok(), ..self.state(row)? })
    }

    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        let record = next.value.map_or_else(|| "NULL".to_owned(), |value| text(&self.stored(value)));
        let Ok(number) = i64::try_from(next.number) else { return Err(Failure::permanent("its version is too large")) };
        let statement = if expected.version.is_some() {
            let condition = self.condition(key, expected);
            format!(
                "UPDATE serializer_locks SET version = {number}, record = {record}, changed = clock_timestamp() WHERE {condition}"
            )
        } else {
            let name = text(&key.stored_name());
            format!(
                "INSERT INTO serializer_locks (name, version, record) VALUES ({name}, {number}, {record}) ON CONFLICT DO NOTHING"
            )
        };
        self.write(&statement)
    }

    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page, Failure> {
        let condition = sql::condition(kind, after, "name", text);
        let statement = format!(
            "{}SELECT version, record, format, name, getdatabaseencoding() FROM serializer_locks WHERE {condition} ORDER BY name \
             LIMIT {}",
            self.bounds(),
            sql::PAGE
        );
        let answer = self.ask(statement, Phase::Read)?;
        if let Some(row) = answer.rows.first() {
            self.is_unicode = matches!(column::<String>(row, 4)?.as_str(), "UTF8" | "SQL_ASCII");
        }
        let unreadable = |_| State { value: Some(String::new()), ..State::default() };
        let entry = |row| Ok((sql::listed(kind, &column::<String>(row, 3)?), self.state(row).unwrap_or_else(unreadable)));
        Ok(sql::page(answer.rows.iter().map(entry).collect::<Result<_, Failure>>()?))
    }

    fn purge(&mut self, key: &Key, expected: &State) -> Result<Write, Failure> {
        let statement = format!("DELETE FROM serializer_locks WHERE {}", self.condition(key, expected));
        self.write(&statement)
    }

    fn create_schema(&mut self, key: &Key) -> Result<(), Failure> {
        let Err(failure) = self.ask(SCHEMA.to_owned(), Phase::Read) else { return Ok(()) };
        // Two processes that create the table at the same time can fail, in spite of `IF NOT
        // EXISTS`. The right to use the table does not imply the right to create it.
        self.get(key).map(drop).map_err(|_| self.judge(failure))
    }

    fn disconnect(&mut self) {
        if let Some(link) = self.link.take() {
            self.driver.close(link.close());
        }
        self.line.forget(&mut self.driver);
        self.driver.end();
    }

    fn schema(&self) -> Option<&'static str> {
        Some(SCHEMA)
    }

    fn repair(&self) -> &'static str {
        sql::REPAIR
    }

    fn notifier(&mut self) -> Option<&mut dyn Notifier> {
        Some(self)
    }

    fn queue(&mut self) -> Option<&mut dyn Queue> {
        Some(self)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.disconnect();
    }
}
