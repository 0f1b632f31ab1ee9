//! Keys in MySQL and MariaDB: a row for each name.
//!
//! Each statement is a transaction of its own, and each write is conditional on the state that was
//! read. So a read may be stale (a node of Galera without `wsrep_sync_wait`, a replica): the write
//! is then a conflict, or is refused, and nothing is granted. With Galera, two writes on two nodes
//! with the same condition are certified one after the other, and the second one ends as a deadlock
//! (1213). A node that loses the other nodes while it commits reports a failure, but the write may
//! be done on the other nodes ([`failure::may_be_done`]).
//!
//! A connection counts rows that were found, not rows that were changed. So a row is inserted by a
//! plain `INSERT`, and a duplicate key is the conflict.

mod failure;
mod options;
mod queue;
mod session;

use std::ffi::OsStr;
use std::time::Duration;

use sqlx::mysql::{MySqlConnection, MySqlDatabaseError, MySqlRow};
use sqlx::{Connection as _, Error};

use self::failure::{is_read_only, may_be_done, refusal};
use self::options::{HINTS, Options};
use self::queue::Line;
use self::session::{Answer, Link, Trouble, literal, literal_or_null, number, text};
use super::failure::Failure;
use super::seam::Write;
use super::seam::{Key, Kind, Next, Page, Queue, State, Store};
use super::sql::failure::{Phase, no_answer, of, of_connecting};
use super::sql::{self, Driver, FORMAT, ReadOnly};
use crate::store::StoreSettings;

/// The statements that create the table.
const SCHEMA: &str = "\
-- Locks of `serializer`: one row for each name. Rows stay when a lock is released, so that the numbers never go back.
-- Its users need (with the database's and the user's name):
--   GRANT SELECT, INSERT, UPDATE, DELETE ON my_database.serializer_locks TO 'my_user'@'%';
CREATE TABLE IF NOT EXISTS serializer_locks (
  -- What the lock is called. Compared byte by byte.
  name VARBINARY(255) NOT NULL PRIMARY KEY,
  -- The number of the row's state; it only grows.
  version BIGINT UNSIGNED NOT NULL,
  -- What is stored; NULL when a lock is free.
  record MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
  -- When that was written. Only for people.
  changed TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
  -- What the columns mean: another number, something else.
  format SMALLINT NOT NULL DEFAULT 1 CHECK (format = 1)
) ENGINE = InnoDB;
";

/// The error code for a row that already exists.
const DUPLICATE_KEY: u16 = 1062;

/// The poll interval of a waiter without a place in the queue.
const POLL: Duration = Duration::from_secs(1);

/// A store in MySQL or MariaDB.
pub struct MySql {
    settings: StoreSettings,
    /// The options for the first connection; read anew for each later one, because passwords
    /// change.
    options: Option<Options>,
    /// The time limit for each answer.
    timeout: Duration,
    link: Option<Link>,
    line: Line,
    read_only: ReadOnly,
    driver: Driver,
}

impl MySql {
    /// Does not connect yet.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        let options = Options::new(settings)?;
        Ok(Self {
            settings: settings.clone(),
            timeout: options.timeout,
            line: Line::new(&options.database),
            options: Some(options),
            link: None,
            read_only: ReadOnly::default(),
            driver: Driver::default(),
        })
    }

    /// Opens a new connection. After a failure, no statement was sent.
    fn connect(&mut self) -> Result<Link, Failure> {
        let options = self.options.take().map_or_else(|| Options::new(&self.settings), Ok)?;
        let connecting = MySqlConnection::connect_with(&options.server);
        let connection = match self.driver.run_within(options.connect_timeout, connecting)? {
            Some(Ok(connection)) => connection,
            Some(Err(Error::Database(error))) => return Err(refusal(error.downcast_ref::<MySqlDatabaseError>())),
            Some(Err(error)) => return Err(of_connecting(&error, &options.place, &HINTS)),
            None => return Err(no_answer()),
        };
        // Each statement must be its own transaction, whatever `init_connect` says. A statement
        // that waits for a lock ends before the time limit for its answer: a statement that is
        // given up here must not be done by the server later.
        let bound = (self.timeout.as_secs() / 2).max(1);
        let setup = format!("SET autocommit = 1, lock_wait_timeout = {bound}, innodb_lock_wait_timeout = {bound}; ");
        Ok(Link { connection, setup: Some(setup) })
    }

    /// Sends a statement over the existing connection, or a new one. While this process is queued,
    /// the new connection is beside the queued one.
    fn ask(&mut self, statement: &str, phase: Phase) -> Result<Answer, Trouble> {
        self.hear_of_turn();
        let mut link = match self.link.take() {
            Some(link) => link,
            None => self.connect()?,
        };
        let answer = self.driver.run_within(self.timeout, link.ask(statement, phase))?;
        let trouble = match answer {
            Some(Ok(answer)) => {
                self.keep(link);
                return Ok(answer);
            }
            Some(Err(Error::Database(error))) => {
                let error = error.downcast_ref::<MySqlDatabaseError>();
                let failure = refusal(error);
                let is_unknown = phase == Phase::Write && may_be_done(error.number());
                if !failure.cause.passes() {
                    self.keep(link);
                } else {
                    self.close(link);
                }
                let failure = if is_unknown { failure.indefinite() } else { failure };
                return Err(Trouble { code: Some(error.number()), failure });
            }
            Some(Err(error)) => of(&error, phase, &HINTS),
            None if phase == Phase::Write => no_answer().indefinite(),
            None => no_answer(),
        };
        // A late answer must not be taken for the answer to the next statement.
        drop(link);
        Err(trouble.into())
    }

    /// Keeps a connection for the next statement, unless this process has another one, which is
    /// queued.
    fn keep(&mut self, link: Link) {
        if self.line.is_standing() { self.close(link) } else { self.link = Some(link) }
    }

    fn close(&mut self, link: Link) {
        self.driver.close(link.connection.close());
    }

    fn write(&mut self, statement: &str) -> Result<Write, Failure> {
        match self.ask(statement, Phase::Write) {
            Ok(answer) => {
                self.read_only.end();
                Ok(if answer.changed == 1 { Write::Done } else { Write::Conflict })
            }
            Err(Trouble { code: Some(DUPLICATE_KEY), .. }) => Ok(Write::Conflict),
            Err(Trouble { code: Some(code), failure }) if is_read_only(code) => Err(self.read_only.judge(failure)),
            Err(trouble) => Err(trouble.failure),
        }
    }

    /// `version, record, format` of a row, from the column `first` on.
    fn state(row: &MySqlRow, first: usize) -> Result<State, Failure> {
        let Some(number) = number(row, first) else { return Ok(State::default()) };
        if self::number(row, first + 2) != u64::try_from(FORMAT).ok() {
            let failure = Failure::permanent("a newer version of this program has changed the table");
            return Err(failure.with_hint("update this program"));
        }
        Ok(State { version: Some(number.to_string().into_bytes()), number, value: text(row, first + 1), ..State::default() })
    }

    /// The condition that a row is still in this state.
    fn condition(key: &Key, expected: &State) -> String {
        format!(
            "name = {} AND version = {} AND CAST(record AS BINARY) <=> {} AND format = {FORMAT}",
            literal(&key.stored_name()),
            expected.number,
            // The value is compared, too: a server that has lost its last commits gives out their
            // numbers again.
            literal_or_null(expected.value.as_deref())
        )
    }
}

impl Store for MySql {
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        let name = key.stored_name();
        // The clock is computed from UTC, because `UNIX_TIMESTAMP` of a local time repeats itself
        // when summer time ends. It is the time at which the statement began, before the row is
        // read. The record is read as bytes, which no setting converts.
        let read = |first: &str| {
            format!(
                "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6)) DIV 1000, {first}, l.version, \
                 CAST(l.record AS BINARY), l.format \
                 FROM (SELECT 1 AS one) AS o LEFT JOIN serializer_locks AS l ON l.name = {}",
                literal(&name)
            )
        };
        let first = if self.line.is_supported { self.line.first(&name) } else { "NULL".to_owned() };
        let answer = match self.ask(&read(&first), Phase::Read) {
            Err(Trouble { code: Some(code), .. }) if self.line.is_supported && queue::is_unsupported(code) => {
                self.line.is_supported = false;
                self.ask(&read("NULL"), Phase::Read)
            }
            answer => answer,
        }?;
        let row = answer.rows.first().ok_or_else(|| Failure::transient("the server's answer is empty"))?;
        let now = number(row, 0).ok_or_else(|| Failure::transient("the server does not tell the time"))?;
        let state = Self::state(row, 2)?;
        self.line.look(number(row, 1).is_some(), state.number);
        Ok(State { now: Some(now), ..state })
    }

    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        let (number, record) = (next.number, literal_or_null(next.value));
        if expected.version.is_none() {
            let name = literal(&key.stored_name());
            return self
                .write(&format!("INSERT INTO serializer_locks (name, version, record) VALUES ({name}, {number}, {record})"));
        }
        let condition = Self::condition(key, expected);
        self.write(&format!("UPDATE serializer_locks SET version = {number}, record = {record} WHERE {condition}"))
    }

    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page, Failure> {
        let condition = sql::condition(kind, after, "name", literal);
        let statement = format!(
            "SELECT name, version, CAST(record AS BINARY), format FROM serializer_locks WHERE {condition} ORDER BY name LIMIT {}",
            sql::PAGE
        );
        let answer = self.ask(&statement, Phase::Read)?;
        let unreadable = |_| State { value: Some(String::new()), ..State::default() };
        let entry =
            |row| Ok((sql::listed(kind, &text(row, 0).unwrap_or_default()), Self::state(row, 1).unwrap_or_else(unreadable)));
        Ok(sql::page(answer.rows.iter().map(entry).collect::<Result<_, Failure>>()?))
    }

    fn purge(&mut self, key: &Key, expected: &State) -> Result<Write, Failure> {
        self.write(&format!("DELETE FROM serializer_locks WHERE {}", Self::condition(key, expected)))
    }

    fn create_schema(&mut self, _key: &Key) -> Result<(), Failure> {
        if let Err(Trouble { code, failure }) = self.ask(SCHEMA, Phase::Read) {
            // The right to use the table does not imply the right to create it.
            let is_denied = matches!(code, Some(1142 | 1044 | 1290));
            if !is_denied || self.ask("SELECT 1 FROM serializer_locks LIMIT 0", Phase::Read).is_err() {
                return Err(if code.is_some_and(is_read_only) { self.read_only.judge(failure) } else { failure });
            }
        }
        Ok(())
    }

    fn advice(&mut self) -> Option<String> {
        let flushed = "SELECT @@innodb_flush_log_at_trx_commit";
        let flushed = self.ask(flushed, Phase::Read).ok()?.number(0, 0).filter(|flushed| *flushed != 1)?;
        Some(format!(
            "the server runs with `innodb_flush_log_at_trx_commit = {flushed}`: after a crash of its machine, a lock that was \
             granted within the last second may be granted again; set it to 1"
        ))
    }

    fn disconnect(&mut self) {
        self.line.forget();
        if let Some(link) = self.link.take() {
            self.close(link);
        }
    }

    fn schema(&self) -> Option<&'static str> {
        Some(SCHEMA)
    }

    fn repair(&self) -> &'static str {
        sql::REPAIR
    }

    fn poll_interval(&self) -> (Duration, Duration) {
        (POLL, POLL)
    }

    fn queue(&mut self) -> Option<&mut dyn Queue> {
        Some(self)
    }
}

impl Drop for MySql {
    fn drop(&mut self) {
        self.disconnect();
    }
}

#[cfg(test)]
mod tests {
    use super::{Key, MySql, State, literal};

    #[test]
    fn nothing_of_a_value_is_read_as_sql_and_each_write_has_its_condition() {
        assert_eq!(literal("a'\\é"), "X'61275cc3a9'");
        let expected = State { version: Some(b"6".to_vec()), number: 6, value: Some("b".to_owned()), ..State::default() };
        let condition = MySql::condition(&Key::lock("a".as_ref()), &expected);
        assert_eq!(condition, "name = X'61' AND version = 6 AND CAST(record AS BINARY) <=> X'62' AND format = 1");
    }
}
