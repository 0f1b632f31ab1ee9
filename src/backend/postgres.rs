//! Keys in PostgreSQL: a row for each name.
//!
//! Each question is one round trip and one transaction, and needs nothing that a session remembers: a pooler may give it to any
//! session. The exceptions are the place in the queue and `LISTEN` ([`queue`]), which are used in a session of one's own only.

mod options;
mod queue;

use std::ffi::OsStr;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgDatabaseError, PgListener, PgPool, PgRow, PgSeverity};
use sqlx::{AssertSqlSafe, Connection as _, Error, Row as _, raw_sql};
use tokio::time::timeout;

use self::options::{HINTS, Options, Server};
use self::queue::Line;
use super::Write;
use super::network::sentence;
use super::remote::{Cause, Failure};
use super::seam::{self, Key, Kind, Next, Notifier, Page, Queue, State, Store};
use super::sql::failure::{Phase, no_answer, of, of_connecting};
use super::sql::{self, Driver, FORMAT, ReadOnly, hex};
use crate::store::StoreSettings;

/// The statements that make the table.
pub const SCHEMA: &str = "\
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

/// Classes of errors that pass: connections, rolled back transactions, resources, the operator, the system.
const PASSING: [&str; 5] = ["08", "40", "53", "57", "58"];

/// A session, of the kind that its use needs.
enum Link {
    Plain(PgConnection),
    /// One of our own, which also gets notifications.
    Own(PgListener, PgPool),
}

/// Rows, or how many were changed.
struct Answer {
    rows: Vec<PgRow>,
    changed: u64,
}

impl Link {
    async fn ask(&mut self, statement: String, phase: Phase) -> Result<Answer, Error> {
        let query = raw_sql(AssertSqlSafe(statement));
        if phase == Phase::Write {
            let done = match self {
                Self::Plain(link) => query.execute(link).await,
                Self::Own(link, _) => query.execute(link).await,
            };
            return Ok(Answer { rows: Vec::new(), changed: done?.rows_affected() });
        }
        let rows = match self {
            Self::Plain(link) => query.fetch_all(link).await,
            Self::Own(link, _) => query.fetch_all(link).await,
        };
        Ok(Answer { rows: rows?, changed: 0 })
    }

    async fn close(self) {
        match self {
            Self::Plain(link) => drop(link.close().await),
            Self::Own(link, pool) => {
                drop(link);
                pool.close().await;
            }
        }
    }
}

/// A store in PostgreSQL.
pub struct Postgres {
    settings: StoreSettings,
    /// What was read at first; read anew for each later connection, because passwords change.
    options: Option<Options>,
    link: Option<Link>,
    line: Line,
    /// Whether the last question was answered.
    is_answering: bool,
    /// Whether the server's encoding can store any text.
    is_unicode: bool,
    /// Whether the server is a standby.
    is_standby: bool,
    read_only: ReadOnly,
    driver: Driver,
}

/// The names of all locks that are held.
pub fn names(settings: &StoreSettings) -> Result<Vec<std::ffi::OsString>, Failure> {
    seam::held(&mut Postgres::new(settings)?)
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
        self.options.take().map_or_else(|| Options::new(&self.settings), Ok)
    }

    /// Asks in the session that there is, or in a new one; while it waits in the queue, in one beside it.
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
                // An answer that comes later must not be taken for that to the next question.
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

    /// Keeps a session for the next question, unless one waits in the queue.
    fn keep(&mut self, link: Link) {
        if self.line.is_standing() {
            self.driver.close(link.close());
        } else {
            self.link = Some(link);
        }
    }

    /// What a statement that may be kept waiting begins with: it ends before its answer is missed, also when this process is gone.
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
            Err(failure) if failure.why.contains(READ_ONLY) => {
                let hint = if self.is_standby {
                    "the server is a standby: name the primary in the address, or all servers, of which the primary is used"
                } else {
                    "`default_transaction_read_only` is set for the server, the database or the role"
                };
                Err(self.read_only.judge(failure.with_hint(hint)))
            }
            Err(failure) => Err(failure),
        }
    }

    /// The stored text of a value. What an encoding such as LATIN1 cannot store is escaped.
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
        // Where texts are escaped, the condition of a write needs the text as it is stored.
        let raw_bytes = raw.as_deref().filter(|_| !self.is_unicode).unwrap_or_default().as_bytes();
        let version = version.map(|version| [&version.to_be_bytes(), raw_bytes].concat());
        let value = if self.is_unicode { raw } else { raw.map(|raw| unescaped(&raw)) };
        Ok(State { version, number, value, now: None })
    }

    /// That a row is still in this state.
    fn condition(&self, key: &Key, expected: &State) -> String {
        let raw = expected.version.as_deref().and_then(|version| version.get(8..)).filter(|raw| !raw.is_empty());
        let raw = raw.map(|raw| String::from_utf8_lossy(raw).into_owned());
        let stored = expected.value.as_deref().map(|value| raw.unwrap_or_else(|| self.stored(value)));
        let stored = stored.map_or_else(|| "NULL".to_owned(), |stored| text(&stored));
        // Also by the value: a server that has forgotten its last commits counts them again.
        let number = expected.number;
        format!(
            "name = {} AND version = {number} AND record IS NOT DISTINCT FROM {stored} AND format = {FORMAT}",
            text(&key.stored_name())
        )
    }
}

/// What a refused write says of a server that is read-only.
const READ_ONLY: &str = "read-only";

fn column<'r, T>(row: &'r PgRow, index: usize) -> Result<T, Failure>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(index).map_err(|error| of(&error, Phase::Read, &HINTS))
}

/// A session with the first server that grants one. Nothing was sent if there is none. One of its own begins with `session`.
async fn connect(options: &Options, limit: Duration, session: Option<&(String, String)>) -> Result<Link, Failure> {
    // A silent server leaves time for the next one.
    let share = options.connect_timeout / u32::try_from(options.servers.len()).unwrap_or(u32::MAX).max(1);
    let mut failure: Option<Failure> = None;
    for server in &options.servers {
        let tried = timeout(share.min(limit), connect_to(options, server, session)).await;
        let late = || Failure::transient(format!("no connection within {} s", share.as_secs_f32()));
        match tried.unwrap_or_else(|_| Err(late())) {
            Ok(link) => return Ok(link),
            // If one of them may be back soon, trying again is of use.
            Err(next) => failure = failure.filter(|failure| failure.cause.passes()).or(Some(next)),
        }
    }
    Err(failure.unwrap_or_else(|| Failure::permanent("the address names no server")))
}

async fn connect_to(options: &Options, server: &Server, session: Option<&(String, String)>) -> Result<Link, Failure> {
    let mut first = None;
    for mode in options.modes(server) {
        let way = options.for_sqlx(server, *mode, session)?;
        let connected = match session {
            None => PgConnection::connect_with(&way).await.map(Link::Plain),
            Some(_) => queue::own(way, options.connect_timeout).await,
        };
        let mut link = match connected {
            Ok(link) => link,
            Err(error) => {
                let (failure, is_about_tls) = of_login(&error, server);
                if is_about_tls {
                    first = first.or(Some(failure));
                    continue;
                }
                return Err(first.unwrap_or(failure));
            }
        };
        if options.wants_writable {
            let asked = link.ask("SELECT current_setting('transaction_read_only')".to_owned(), Phase::Read).await;
            let asked = asked.map_err(|error| of_login(&error, server).0)?;
            if asked.rows.first().map(|row| column::<String>(row, 0)).transpose()?.as_deref() == Some("on") {
                return Err(Failure::transient("the server is read-only"));
            }
        }
        return Ok(link);
    }
    Err(first.unwrap_or_else(|| Failure::permanent("the address names no server")))
}

/// Why there is no session, and whether there might be one with more or less TLS.
fn of_login(error: &Error, server: &Server) -> (Failure, bool) {
    match error {
        Error::Database(error) => {
            let error = error.downcast_ref::<PgDatabaseError>();
            (refusal(error, Phase::Connect), error.code() == "28000")
        }
        error => (of_connecting(error, &format!("{}:{}", server.host, server.port), &HINTS), false),
    }
}

/// What a server's refusal means.
fn refusal(error: &PgDatabaseError, phase: Phase) -> Failure {
    let code = error.code();
    let cause = match code {
        "42P01" => Cause::NotPrepared,
        // Read-only, a lock that was waited for too long, an object in use.
        "25006" | "55P03" | "55006" => Cause::Transient,
        "53300" => Cause::Full,
        // What a pooler says of settings that it does not know.
        "08P01" if phase == Phase::Connect => Cause::Permanent,
        _ if PASSING.iter().any(|class| code.starts_with(class)) => Cause::Transient,
        _ => Cause::Permanent,
    };
    // Its own limit, which ends what would otherwise go on without us.
    let why = if code == "57014" { no_answer().why } else { sentence(error.message()) };
    let hint = match code {
        "28P01" => Some(
            "the password is that of the address, else the first line of `SERIALIZER_PASSWORD_FILE`, else `PGPASSWORD`, else \
             that in `~/.pgpass`",
        ),
        "28000" => Some(
            "check the user's name; the server's `pg_hba.conf` says which users may connect from where, and whether encrypted \
             (`?sslmode=require`)",
        ),
        "3D000" => Some("create the database, or name another one at the end of the address"),
        "42501" => Some(
            "`serializer initialize --print-sql` prints the statements for an administrator; a role needs `GRANT SELECT, INSERT, \
             UPDATE ON serializer_locks TO …`, and `DELETE` to tidy up",
        ),
        "3F000" => Some("the table is made in the first schema of `search_path`; `?options=-csearch_path%3DSCHEMA` names one"),
        "42703" | "42883" => {
            Some("there is another table `serializer_locks`; `?options=-csearch_path%3DSCHEMA` names a schema of its own")
        }
        _ => None,
    };
    // An ordinary error rolls back. But a pooler may have lost its server, and an error that ends the session may come after the
    // end of the transaction.
    let is_fatal = !matches!(error.severity(), PgSeverity::Error);
    let is_unknown = code == "40003" || code.starts_with("08");
    let is_indefinite = phase == Phase::Write && (is_fatal || is_unknown);
    Failure { why, cause, hint: hint.map(str::to_owned), is_indefinite }
}

/// A text in ASCII: other characters as `\u{…}`, and a backslash that could be taken for the beginning of one as well.
fn escaped(text: &str) -> String {
    let text = text.replace("\\u{", "\\u{5c}u{");
    text.chars().map(|c| if c.is_ascii() { c.to_string() } else { c.escape_unicode().to_string() }).collect()
}

/// The text that was [`escaped`]. Any other text is itself, but for what looks like an escape.
fn unescaped(text: &str) -> String {
    let mut rest = text;
    let mut plain = String::with_capacity(text.len());
    // Ends with the last escape.
    while let Some((before, after)) = rest.split_once("\\u{") {
        let escape = after.split_once('}').and_then(|(digits, behind)| {
            Some((char::from_u32(u32::from_str_radix(digits, 16).ok()?)?, behind))
        });
        plain.push_str(before);
        match escape {
            Some((character, behind)) => {
                plain.push(character);
                rest = behind;
            }
            None => {
                plain.push_str("\\u{");
                rest = after;
            }
        }
    }
    plain + rest
}

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
                // A server that only speaks like PostgreSQL.
                self.line.is_supported = false;
                answer
            }
        };
        let row = answer.rows.first().ok_or_else(|| Failure::permanent("the server answers with nothing"))?;
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
        let entry = |row| Ok((sql::listed(kind, &column::<String>(row, 3)?), self.state(row)?));
        Ok(sql::page(answer.rows.iter().map(entry).collect::<Result<_, Failure>>()?))
    }

    fn purge(&mut self, key: &Key, expected: &State) -> Result<Write, Failure> {
        let statement = format!("DELETE FROM serializer_locks WHERE {}", self.condition(key, expected));
        self.write(&statement)
    }

    fn create_schema(&mut self, key: &Key) -> Result<(), Failure> {
        let Err(failure) = self.ask(SCHEMA.to_owned(), Phase::Read) else { return Ok(()) };
        // Two processes that create it at the same time disturb each other, in spite of the `IF NOT EXISTS`; and the right to use it
        // does not imply the right to create it.
        self.get(key).map(drop).map_err(|_| failure)
    }

    fn disconnect(&mut self) {
        self.line.forget(&mut self.driver);
        if let Some(link) = self.link.take() {
            self.driver.close(link.close());
        }
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

#[cfg(test)]
mod tests {
    use super::{escaped, unescaped};

    #[test]
    fn what_is_escaped_is_ascii_and_comes_back() {
        for text in ["", "plain", "# Łódź", "\\u{41}", "\\u{5c}u{41}", "\\\\u{", "é\\u{zz}", "\u{10ffff}\\"] {
            assert!(escaped(text).is_ascii());
            assert_eq!(unescaped(&escaped(text)), text);
        }
    }
}
