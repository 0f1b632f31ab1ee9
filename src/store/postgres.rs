//! Keys in PostgreSQL: docs/protocol.md, "Databases".

use std::io;
use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgListener, PgPool};
use sqlx::postgres::{PgPoolOptions, PgQueryResult, PgRow, PgSeverity};
use sqlx::{ConnectOptions as _, Connection as _, Error, Row as _};
use url::Url;

use super::failure::{Cause, Result};
use super::network::variable;
use super::seam::{Fds, Kind};
use super::sql::address::{Address, Server};
use super::sql::engine::{Asked, Engine, Phase, READ_ONLY, send};
use super::sql::{Sql, hex};
use crate::store::waiter::Waiter;
use crate::sys::random::{jittered, random_token};

/// How long the first waiter sleeps without a notification, which can be lost with a server.
const FIRST_POLL: Duration = Duration::from_secs(10);

/// Whether there is room for one more waiter: they use three quarters of the connections, and
/// holders need the rest. The kind of others' sessions is hidden, but not their database.
const ROOM: &str = "(\
SELECT count(*) * 4 < 3 * (current_setting('max_connections')::integer
                           - current_setting('superuser_reserved_connections')::integer)
   AND (min(datconnlimit) < 0
        OR count(*) FILTER (WHERE client.datid = base.oid) * 4 < 3 * min(datconnlimit))
   AND (min(rolconnlimit) < 0
        OR count(*) FILTER (WHERE client.usesysid = role.oid) * 4 < 3 * min(rolconnlimit))
FROM pg_catalog.pg_stat_activity client, pg_catalog.pg_database base, pg_catalog.pg_roles role
WHERE client.datid IS NOT NULL AND base.datname = current_database() AND rolname = session_user)";

pub struct Postgres;

pub enum Session {
    Plain(PgConnection),
    /// One that also gets notifications.
    Own(PgListener, PgPool),
}

impl Engine for Postgres {
    type Session = Session;
    /// A ticket, which the session holds.
    type Place = u32;

    const PORT: u16 = 5432;
    // The directory of its socket.
    const HOST: &'static str = "/var/run/postgresql";
    const OPTIONS: &'static str = "application_name options";
    // PGPASSWORD, PGPASSFILE and PGOPTIONS are read by sqlx.
    const VARIABLES: &'static str = "host port hostaddr user database service sslmode requiressl \
                                     sslrootcert sslcert sslkey sslnegotiation sslcertmode sslcrl \
                                     sslcrldir ssl_min_protocol_version ssl_max_protocol_version \
                                     channel_binding require_auth requirepeer gssencmode \
                                     target_session_attrs";
    const EXAMPLE: &'static str = "`postgres://USER@HOST/DATABASE`";

    const SCHEMA: &'static str = "\
-- Locks of `serializer`: a row for each name. Rows stay when a lock is released.
CREATE TABLE IF NOT EXISTS serializer_locks (
    name    text COLLATE \"C\" PRIMARY KEY,
    version bigint NOT NULL,                                 -- the number of the state; grows
    record  text,                                            -- NULL when a lock is free
    changed timestamptz NOT NULL DEFAULT clock_timestamp(),  -- for people
    format  smallint NOT NULL DEFAULT 1 CHECK (format = 1)   -- what the columns mean
);
-- For each role that is to use it (DELETE is for names that go out of use):
-- GRANT SELECT, INSERT, UPDATE, DELETE ON serializer_locks TO ...;
";

    const NOW: &'static str = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint";
    const UNLESS_EXISTS: &'static str = " ON CONFLICT DO NOTHING";

    const REFUSALS: &'static [(Cause, &'static str)] = &[
        (Cause::NotPrepared, "42P01"),
        (Cause::Full, "53300"),
        // Connections (also of a pooler), the end of a transaction, resources, the operator, the
        // system; read-only, waited too long, in use.
        (Cause::Transient, "08? 40003? 40 53 57 58? 25006 55P03 55006"),
        (Cause::Permanent, "XX?"),
    ];

    fn literal(text: &str) -> String {
        format!("convert_from(decode('{}', 'hex'), 'UTF8')", hex(text.as_bytes()))
    }

    async fn connect(at: &Address, server: &Server, is_own: bool) -> Result<Session, Error> {
        // Behind a pooler, each change of it costs a statement. A server cuts off a longer one.
        let label = if is_own { Waiter::label(63) } else { "serializer".to_owned() };
        let options = for_sqlx(at, server, label)?;
        let mut session = match is_own {
            true => own(options, at.timeout).await?,
            false => Session::Plain(PgConnection::connect_with(&options).await?),
        };
        // Of several servers, the writable one is used.
        if at.servers.len() > 1 {
            let asked = "SELECT current_setting('transaction_read_only') = 'on'".to_owned();
            if Self::ask(&mut session, asked, Phase::Read, at.timeout).await?.is_true(0, 0) {
                let why = format!("the server is {READ_ONLY}");
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, why).into());
            }
        }
        Ok(session)
    }

    async fn ask(on: &mut Session, sql: String, phase: Phase, limit: Duration) -> Asked {
        // The server must not do it after it was given up here, and a crash right after the answer
        // to a write must not undo it.
        let bound = (limit * 3 / 4).as_millis().max(1);
        let mut bounded = format!("SET LOCAL statement_timeout = {bound}; ");
        if phase == Phase::Write {
            bounded += "SET LOCAL synchronous_commit = on; ";
        }
        let sql = bounded + &sql;
        let changed = |done: PgQueryResult| done.rows_affected();
        let text = |row: &PgRow, column| row.try_get_unchecked(column);
        match on {
            Session::Plain(connection) => send(connection, sql, phase, changed, text).await,
            Session::Own(listener, _) => send(listener, sql, phase, changed, text).await,
        }
    }

    async fn close(session: Session) {
        match session {
            Session::Plain(connection) => drop(connection.close().await),
            Session::Own(listener, pool) => {
                drop(listener);
                pool.close().await;
            }
        }
    }

    fn code(error: &dyn DatabaseError) -> (String, bool) {
        let error = error.downcast_ref::<PgDatabaseError>();
        (error.code().to_owned(), !matches!(error.severity(), PgSeverity::Error))
    }

    /// Whether tickets before this one are taken; before a new one, where it is none.
    fn are_others_first(sql: &Sql<Self>, name: &str) -> String {
        let ticket = sql.place.map_or(i64::MAX, i64::from);
        format!("EXISTS (SELECT FROM {} AND taken.objid::bigint < {ticket})", tickets(name))
    }

    fn enqueue(sql: &mut Sql<Self>, name: &str) -> Result<Option<u32>> {
        // Before it opens a session, so that looking for room takes none.
        if !sql.ask(format!("SELECT {ROOM}"), Phase::Read)?.is_true(0, 0) {
            return Ok(None);
        }
        // The other session makes room for it.
        sql.close_session();
        sql.session = Some(sql.connect(true)?);
        // Several waiters at the same time get different tickets.
        let take = format!(
            "SELECT ticket, pg_backend_pid() FROM (SELECT coalesce(max(taken.objid::bigint), 0) AS \
             number FROM {}) AS last, LATERAL generate_series(last.number + 1, last.number + 100) \
             AS ticket WHERE {ROOM} AND pg_try_advisory_lock({}, ticket::integer) LIMIT 1",
            tickets(name),
            line(name)
        );
        let taken = sql.ask(take, Phase::Read)?;
        let Some((number, pid)) = taken.text(0, 0).zip(taken.text(0, 1)) else { return Ok(None) };
        sql.ask(format!("LISTEN serializer_{pid}"), Phase::Read)?;
        // The row is to be read once more before it sleeps: a release before was told to others.
        sql.are_others_first = false;
        Ok(number.parse().ok())
    }

    fn wait_in_line(sql: &mut Sql<Self>, limit: Duration, fds: Fds<'_>) -> Result<()> {
        let limit = if sql.are_others_first { limit } else { limit.min(jittered(FIRST_POLL)) };
        let Some(Session::Own(listener, _)) = &mut sql.session else { return Ok(()) };
        let told = sql.runtime.wait(listener.try_recv(), limit, fds)?;
        if matches!(told, Some(Ok(None) | Err(_))) {
            tracing::debug!("the place in the queue is lost");
            sql.place = None;
            sql.close_session();
        }
        Ok(())
    }

    fn leave(_: &Sql<Self>, ticket: u32, name: &str) -> Option<String> {
        let unlock = format!("SELECT pg_advisory_unlock({}, {ticket})", line(name));
        Some(format!("{unlock}; {}", Self::wake(name)?))
    }

    fn waiters(_: &Sql<Self>, name: &str) -> String {
        format!(
            "SELECT client.application_name, host(client.client_addr) FROM (SELECT taken.pid, \
             taken.objid::bigint FROM {}) AS taken LEFT JOIN pg_catalog.pg_stat_activity AS client \
             ON client.pid = taken.pid ORDER BY taken.objid",
            tickets(name)
        )
    }

    /// Wakes the first waiter. The end of a run that happens once concerns all of them.
    fn wake(name: &str) -> Option<String> {
        let most = if name.starts_with(Kind::Once.prefix()) { u32::MAX } else { 1 };
        let first = format!("{} ORDER BY taken.objid::bigint LIMIT {most}", tickets(name));
        let first = format!("(SELECT taken.pid FROM {first}) AS first");
        Some(format!("SELECT pg_notify('serializer_' || pid, '') FROM {first}"))
    }
}

/// The number of a name's queue in the server, of which the table is a part. Two names with the
/// same number share a queue.
fn line(name: &str) -> String {
    let number = Sha256::digest(name)[..4].iter().fold(0, |sum, byte| sum << 8 | i32::from(*byte));
    format!("(({number}) # 'serializer_locks'::regclass::oid::integer)")
}

fn tickets(name: &str) -> String {
    format!(
        "pg_catalog.pg_locks AS taken WHERE taken.locktype = 'advisory' AND taken.objsubid = 2 AND \
         taken.granted AND taken.mode = 'ExclusiveLock' AND taken.classid = {}::oid AND \
         taken.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = \
         current_database())",
        line(name)
    )
}

/// The address as sqlx reads it. Nothing is left to its own defaults but the password.
fn for_sqlx(at: &Address, server: &Server, label: String) -> Result<PgConnectOptions, Error> {
    let (host, port) = (server.0.as_str(), server.1.to_string());
    let is_socket = host.starts_with('/');
    let modes = ["disable", "prefer", "require", "verify-full"];
    let named = at.given.option("application_name").or_else(|| variable("PGAPPNAME"));
    let (label, set) = (named.unwrap_or(label), at.given.option("options"));
    let pairs = [
        // In `~/.pgpass`, sockets stand under this name.
        ("host", is_socket.then_some("localhost")),
        ("host", Some(host)),
        ("port", Some(&port)),
        ("user", Some(&at.user)),
        ("password", at.password.as_deref()),
        ("dbname", Some(at.database.as_ref().unwrap_or(&at.user))),
        // Sockets of this machine are not encrypted.
        ("sslmode", Some(if is_socket { "disable" } else { modes[at.tls.mode as usize] })),
        ("sslrootcert", at.tls.roots.as_deref()),
        ("sslcert", at.tls.own.as_ref().map(|(certificate, _)| certificate.as_str())),
        ("sslkey", at.tls.own.as_ref().map(|(_, key)| key.as_str())),
        ("application_name", Some(&label)),
        ("options", set.as_deref()),
    ];
    let pairs = pairs.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let url = Url::parse_with_params("postgres:", pairs);
    let url = url.map_err(|error| Error::Configuration(error.into()))?;
    let options = PgConnectOptions::from_url(&url)?.extra_float_digits(None);
    let options = options.statement_cache_capacity(0).disable_statement_logging();
    // `PGSSLROOTCERT` may be the word `system`.
    Ok(if at.tls.roots.is_some() { options } else { options.ssl_root_cert_from_pem(Vec::new()) })
}

/// A session that gets notifications, and that no pooler lends out.
async fn own(options: PgConnectOptions, limit: Duration) -> Result<Session, Error> {
    // A server keeps a setting that a session begins with; a pooler refuses it, or forgets it. By
    // the others, the server also frees the place of a waiter on a host that vanishes.
    let word = random_token()?;
    let keepalives = ["idle", "interval", "count"].map(|name| format!("tcp_keepalives_{name}"));
    let options = options.options(keepalives.map(|name| (name, "5")));
    let options = options.options([("serializer.session", &word)]);
    // A listener takes its session from a pool. It is to keep it.
    let pool = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
    let pool = pool.test_before_acquire(false).acquire_timeout(limit).connect_lazy_with(options);
    let mut listener = PgListener::connect_with(&pool).await?;
    // Another session would not have the ticket.
    listener.eager_reconnect(false);
    listener.ignore_pool_close_event(true);
    let mut session = Session::Own(listener, pool);
    let asked = format!("SELECT current_setting('serializer.session', true) = '{word}'");
    if Postgres::ask(&mut session, asked, Phase::Read, limit).await?.is_true(0, 0) {
        return Ok(session);
    }
    Postgres::close(session).await;
    Err(Error::Protocol("a pooler lends out the sessions".to_owned()))
}
