//! Locks in PostgreSQL: a row for each name.
//!
//! Every question is one statement, one round trip and one transaction, without anything that a session would have to remember:
//! so it does not matter which session of a pooler it gets. The exception is `LISTEN`, which is only a faster way to what
//! looking every second finds out as well, and the place in line ([`line`]), which is a courtesy; both are only used where the
//! session is our own ([`session`]). Behind a pooler there is no line, and everybody looks every second.

mod address;
mod cancel;
mod connect;
mod failures;
mod line;
mod link;
mod options;
mod passwords;
mod server;
mod service;
mod session;
mod tls;
mod wait;

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_postgres::types::Type;

use self::line::Place;
use self::link::Link;
use self::server::Server;
use super::key::key;
use super::remote::jittered;
use super::remote::{Cause, Failure, Register, Row};
use super::{Write, plain, sleep, sql};
use crate::record::random_token;
use crate::store::StoreSettings;
use crate::waiter::Waiter;
use crate::waiting::Crowd;

/// The table.
pub const SCHEMA: &str = "\
-- Locks of `serializer`: a row for each name. Rows stay when a lock is released.
CREATE TABLE IF NOT EXISTS serializer_locks (
    name    text COLLATE \"C\" PRIMARY KEY,
    version bigint NOT NULL,                                 -- the number of the state; never goes back
    record  text,                                            -- who holds it; NULL when nobody does
    changed timestamptz NOT NULL DEFAULT clock_timestamp(),  -- for people
    format  smallint NOT NULL DEFAULT 1 CHECK (format = 1)   -- what the columns mean
);
-- For each role that is to use it:
-- GRANT SELECT, INSERT, UPDATE ON serializer_locks TO ...;
-- COMMENT ON TABLE serializer_locks IS 'locks of serializer, one row for each name';
";

/// The state of a name, and also without one, the server's clock, and the process that answers; and who is `ahead` in line, and
/// whether a write [can be cancelled](cancel::IS_SAFE).
fn read(ahead: &str) -> String {
    format!(
        "SELECT lock.version, lock.record, lock.format, \
         floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint, pg_backend_pid(), {ahead} \
         FROM (VALUES (1)) AS always LEFT JOIN serializer_locks AS lock ON lock.name = $1"
    )
}

const INSERT: &str = "\
INSERT INTO serializer_locks (name, version, record) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";

const UPDATE: &str = "\
UPDATE serializer_locks SET version = $2, record = $3, changed = clock_timestamp()
WHERE name = $1 AND version = $4 AND record IS NOT DISTINCT FROM $6 AND format = $5";

const NAMES: &str = "SELECT name FROM serializer_locks WHERE record IS NOT NULL ORDER BY name";

const NOTIFY: &str = "SELECT pg_notify($1, '')";

/// One lock's row.
pub struct Table {
    key: String,
    /// What changes of this lock are told on.
    channel: String,
    server: Server,
    /// The process of the server that has answered last.
    process: Option<i32>,
    /// The lock's line.
    line: i32,
    crowd: Crowd,
    /// Whether the server has lines.
    has_lines: bool,
    /// Whose ticket is right before ours, or the last one if we have none, when the row was last read.
    ahead: Option<i32>,
    /// Whether a write could be cancelled, when the row was last read.
    cancels_writes: bool,
}

/// The names of all locks that somebody holds.
pub fn names(settings: &StoreSettings) -> Result<Vec<String>, Failure> {
    let mut server = Server::new(settings)?;
    let limit = server.options.answer_timeout;
    match server.ask(async |link| link.query(limit, NAMES, &[]).await) {
        Ok(rows) => rows.iter().map(|row| row.try_get(0).map_err(|error| failures::of(&error, false))).collect(),
        Err(Failure { cause: Cause::NotPrepared, .. }) => Ok(Vec::new()),
        Err(failure) => Err(failure),
    }
}

impl Table {
    /// Does not connect yet.
    pub fn new(settings: &StoreSettings, name: &OsStr) -> Result<Self, Failure> {
        let key = key(name);
        let hash: String = Sha256::digest(&key).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            line: line::number(&key),
            key,
            channel: format!("serializer_{hash}"),
            server: Server::new(settings)?,
            crowd: Crowd::default(),
            process: None,
            has_lines: true,
            ahead: None,
            cancels_writes: false,
        })
    }
}

impl Register for Table {
    fn read(&mut self) -> Result<Row, Failure> {
        let rows = self.read_row()?;
        let row = rows.first().ok_or_else(|| Failure::permanent("the server answers with nothing"))?;
        let cannot = |error| failures::of(&error, false);
        if !self.server.is_standing() {
            self.process = row.try_get(4).map_err(cannot)?;
        }
        self.ahead = row.try_get(5).map_err(cannot)?;
        self.cancels_writes = row.try_get::<_, Option<bool>>(6).map_err(cannot)?.unwrap_or(false);
        if row.try_get::<_, Option<i16>>(2).map_err(cannot)?.is_some_and(|format| format != sql::FORMAT) {
            return Err(
                Failure::permanent("a newer version of this program has written it").with_hint("use that version here, too")
            );
        }
        let version: Option<i64> = row.try_get(0).map_err(cannot)?;
        let number = u64::try_from(version.unwrap_or(0)).map_err(|_| Failure::permanent("its version is negative"))?;
        let now: i64 = row.try_get(3).map_err(cannot)?;
        Ok(Row {
            version: version.map(|version| version.to_be_bytes().to_vec()),
            number,
            text: row.try_get(1).map_err(cannot)?,
            now: u64::try_from(now).ok(),
        })
    }

    fn write(&mut self, seen: &Row, next: u64, text: Option<&str>) -> Result<Write, Failure> {
        let Self { key, server, cancels_writes, .. } = self;
        let limit = server.options.answer_timeout;
        let too_large = |_| Failure::permanent("its version is too large");
        let (next, number) = (i64::try_from(next).map_err(too_large)?, i64::try_from(seen.number).map_err(too_large)?);
        let is_there = seen.version.is_some();
        let rows = server.ask(async |link| {
            link.cancels_writes = *cancels_writes;
            if is_there {
                let values: [link::Parameter<'_>; 6] = [
                    (key, Type::TEXT),
                    (&next, Type::INT8),
                    (&text, Type::TEXT),
                    (&number, Type::INT8),
                    (&sql::FORMAT, Type::INT2),
                    // A server that has forgotten its last commits counts them again.
                    (&seen.text, Type::TEXT),
                ];
                link.execute(limit, UPDATE, &values).await
            } else {
                link.execute(limit, INSERT, &[(key, Type::TEXT), (&next, Type::INT8), (&text, Type::TEXT)]).await
            }
        })?;
        Ok(if rows == 0 { Write::Conflict } else { Write::Done })
    }

    fn prepare(&mut self) -> Result<(), Failure> {
        let limit = self.server.options.answer_timeout;
        let Err(failure) = self.server.ask(async |link| link.batch(limit, SCHEMA).await) else { return Ok(()) };
        // Two who make it at the same time get in each other's way, in spite of the `IF NOT EXISTS`; and who may use it need not
        // be one who may make it.
        self.read().map(|_| ()).map_err(|_| failure)
    }

    fn wait(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        if self.place().is_none() {
            match self.line_up() {
                // Who is ahead is to be seen, and the row once more: what was released before was told to others.
                Some(true) => {
                    self.crowd.end();
                    return Ok(());
                }
                // Who only waits leaves the rest of a server's connections to who holds a lock, and comes back for each look.
                Some(false) => {
                    self.server.disconnect();
                    return slept(sleep(limit.min(self.crowd.pause()), fds));
                }
                None => {}
            }
        }
        match (self.place(), self.ahead) {
            (Some(place), Some(ahead)) => self.stand(place, ahead, limit, fds),
            _ => self.watch(limit, fds),
        }
    }

    fn watch(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        if self.listen() {
            // What has changed before that was not told.
            return Ok(());
        }
        let Server { runtime, link, .. } = &mut self.server;
        let slept = match (runtime, link.as_mut().filter(|link| link.is_open())) {
            (Some(runtime), Some(link)) => {
                let pause = if link.listens == Some(true) { wait::TOLD } else { wait::UNTOLD };
                wait::wait(runtime, link, limit.min(jittered(pause)), fds)
            }
            _ => sleep(limit.min(jittered(wait::UNTOLD)), fds),
        };
        self::slept(slept)
    }

    fn notify(&mut self) {
        let Self { channel, server, .. } = self;
        let limit = server.options.answer_timeout;
        if server.link.as_ref().is_some_and(Link::is_open) {
            // Who waits looks now and then without being told.
            let told = server.ask(async |link| link.query(limit, NOTIFY, &[(channel, Type::TEXT)]).await);
            told.inspect_err(|failure| tracing::debug!("cannot tell those who wait: {}", failure.why)).ok();
        }
    }

    fn is_first(&mut self) -> bool {
        // Who cannot stand in line would wait for ever for those who can.
        self.ahead.is_none() || !self.is_own_session()
    }

    fn is_in_line(&mut self) -> bool {
        self.place().is_some() && self.ahead.is_some()
    }

    fn is_kept_out(&mut self) -> bool {
        self.crowd.is_kept_out()
    }

    fn leave(&mut self) {
        let Some(place) = self.place() else { return };
        let limit = self.server.options.answer_timeout;
        let values: [link::Parameter<'_>; 2] = [(&place.line, Type::INT4), (&place.ticket, Type::INT4)];
        // Asleep, it is told to wake up by nothing but the end of the session, which the server notices when the statement ends.
        let has_left =
            !self.server.is_standing() && self.server.ask(async |link| link.query(limit, line::LEAVE, &values).await).is_ok();
        if has_left {
            self.server.link.iter_mut().for_each(|link| link.place = None);
        } else {
            self.server.disconnect();
        }
    }

    fn waiters(&mut self) -> Vec<Waiter> {
        let Self { line, server, .. } = self;
        let limit = server.options.answer_timeout;
        let asked = server.ask(async |link| link.query(limit, line::WAITERS, &[(line, Type::INT4)]).await);
        let rows = asked.inspect_err(|failure| tracing::debug!("cannot tell who waits: {}", failure.why)).unwrap_or_default();
        let waiter = |row: &tokio_postgres::Row| {
            let text = |column| row.try_get::<_, Option<String>>(column).ok().flatten();
            let told = text(0).and_then(|label| Waiter::parse(&label)).unwrap_or_default();
            Waiter { host: told.host.or_else(|| text(1)), ..told }
        };
        rows.iter().map(waiter).collect()
    }

    fn repair(&self) -> &'static str {
        sql::REPAIR
    }

    fn disconnect(&mut self) {
        self.server.disconnect();
    }
}

impl Table {
    fn read_row(&mut self) -> Result<Vec<tokio_postgres::Row>, Failure> {
        let ticket = self.place().map_or(line::BEHIND_ALL, |place| place.ticket.into());
        let Self { key, server, line, .. } = self;
        let limit = server.options.answer_timeout;
        if self.has_lines {
            let values: [link::Parameter<'_>; 3] = [(key, Type::TEXT), (line, Type::INT4), (&ticket, Type::INT8)];
            let statement = read(&format!("{}, {}", line::AHEAD, cancel::IS_SAFE));
            match server.ask(async |link| link.query(limit, &statement, &values).await) {
                Err(failure) if !failure.cause.passes() => {}
                answer => return answer,
            }
        }
        let statement = read("NULL::integer, false");
        let rows = server.ask(async |link| link.query(limit, &statement, &[(key, Type::TEXT)]).await)?;
        // A server that only speaks like PostgreSQL.
        self.has_lines = false;
        Ok(rows)
    }

    /// Whether the session is ours alone; see [`session`].
    fn is_own_session(&self) -> bool {
        let link = self.server.link.as_ref();
        self.process.is_some() && link.is_some_and(|link| link.is_open() && link.process() == self.process)
    }

    fn place(&self) -> Option<Place> {
        self.server.link.as_ref().filter(|link| link.is_open())?.place
    }

    /// Takes a place in line, and returns whether there was one; `None` where there are no lines.
    fn line_up(&mut self) -> Option<bool> {
        if !self.has_lines || !self.is_own_session() {
            return None;
        }
        let Self { line, server, .. } = self;
        let limit = server.options.answer_timeout;
        let taken = server.ask(async |link| {
            let rows = link.query(limit, line::TAKE, &[(line, Type::INT4)]).await?;
            let Some(row) = rows.first() else { return Ok(false) };
            let cannot = |error| failures::of(&error, false);
            link.place = Some(Place { line: row.try_get(0).map_err(cannot)?, ticket: row.try_get(1).map_err(cannot)? });
            Ok(true)
        });
        taken.inspect_err(|failure| self.without_line(failure)).ok()
    }

    /// Sleeps until it may be its turn.
    fn stand(&mut self, place: Place, ahead: i32, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let Server { runtime: Some(runtime), link: Some(link), .. } = &mut self.server else { return Ok(()) };
        if !link.is_standing() {
            link.stand(place, ahead, limit.min(wait::TOLD));
        }
        // It ends by itself; that takes a moment more.
        if let Err(failure) = wait::stand(runtime, link, limit + wait::ANSWERING, fds) {
            self.without_line(&failure);
        }
        Ok(())
    }

    /// There is no place, for this reason.
    fn without_line(&mut self, failure: &Failure) {
        tracing::debug!("no line before the lock: {}", failure.why);
        self.has_lines &= failure.cause.passes();
        self.server.disconnect();
    }

    /// Makes sure, the first time, that the server tells of changes, if it can; returns whether it does from now on.
    fn listen(&mut self) -> bool {
        let Self { channel, server, process, .. } = self;
        let limit = server.options.answer_timeout.min(wait::UNTOLD);
        let Some(link) = server.link.as_mut().filter(|link| link.is_open() && link.listens.is_none()) else { return false };
        link.listens = Some(false);
        if process.is_none() || link.process() != *process {
            tracing::debug!("a pooler lends out the sessions: looking for changes every second");
            return false;
        }
        let Ok(word) = random_token() else { return false };
        match server.ask(async |link| link.listen(limit, channel, &word).await) {
            Ok(listens) => {
                server.link.iter_mut().for_each(|link| link.listens = Some(listens));
                listens
            }
            Err(failure) => {
                tracing::debug!("the server does not tell of changes: {}", failure.why);
                false
            }
        }
    }
}

fn slept(slept: rustix::io::Result<()>) -> Result<(), Failure> {
    slept.map_err(|error| Failure::permanent(format!("cannot sleep: {}", plain(&error.into()))))
}
