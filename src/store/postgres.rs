//! Keys in PostgreSQL: a row for each name. A request does not depend on the session's state,
//! except for the [`queue`], which has a session of this process alone.

mod queue;

use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::postgres::{
    PgConnectOptions, PgConnection, PgDatabaseError, PgListener, PgPool, PgPoolOptions,
    PgQueryResult, PgRow, PgSeverity,
};
use sqlx::{ConnectOptions as _, Connection as _, Error, Row as _};
use url::Url;

use super::failure::{Cause, Failure};
use super::network::sentence;
use super::seam::Kind;
use super::sql::address::{Address, Server, Usual};
use super::sql::engine::{Answer, Engine, send};
use super::sql::failure::{Phase, hint, no_answer};
use super::sql::tls::TlsMode;
use super::sql::{READ_ONLY, Sql, hex};
use crate::store::waiter::Waiter;

/// A server cuts off a longer name of a session.
const MAX_LABEL: usize = 63;

/// Classes of errors that pass: connections, rolled back transactions, resources, the operator, the
/// system.
const PASSING: [&str; 5] = ["08", "40", "53", "57", "58"];

/// PostgreSQL, as one process uses it.
pub struct Postgres {
    /// What the server calls the session in `pg_stat_activity`, if it has a name of its own.
    label: Option<String>,
    /// What the server sets for the session, as on its own command line.
    options: Option<String>,
    /// A word that makes the next session recognizable as one of our own.
    word: Option<String>,
    /// Whether a pooler lends out the sessions, as far as it is known.
    is_pooled: bool,
}

/// A session, of the kind that its use needs.
pub enum Session {
    Plain(PgConnection),
    /// One of our own, which also gets notifications, and its place in the queue.
    Own {
        listener: PgListener,
        pool: PgPool,
        ticket: Option<u32>,
    },
}

impl Engine for Postgres {
    type Session = Session;

    const USUAL: Usual = Usual {
        port: 5432,
        // The directory of its socket.
        host: "/var/run/postgresql",
        options: &["application_name", "options"],
        // PGPASSWORD, PGPASSFILE and PGOPTIONS are read by sqlx.
        variables: "PGHOST=host PGPORT=port PGHOSTADDR=hostaddr PGUSER=user PGDATABASE=dbname \
                    PGSERVICE=service PGAPPNAME=application_name PGSSLMODE=sslmode \
                    PGREQUIRESSL=requiressl PGSSLROOTCERT=sslrootcert PGSSLCERT=sslcert \
                    PGSSLKEY=sslkey PGSSLNEGOTIATION=sslnegotiation PGSSLCERTMODE=sslcertmode \
                    PGSSLCRL=sslcrl PGSSLCRLDIR=sslcrldir \
                    PGSSLMINPROTOCOLVERSION=ssl_min_protocol_version \
                    PGSSLMAXPROTOCOLVERSION=ssl_max_protocol_version \
                    PGCHANNELBINDING=channel_binding PGREQUIREAUTH=require_auth \
                    PGREQUIREPEER=requirepeer PGGSSENCMODE=gssencmode \
                    PGTARGETSESSIONATTRS=target_session_attrs",
        certificates: Some(".postgresql"),
        example: "`postgres://USER@HOST/DATABASE`",
        roots_hint: "`sslrootcert` names a file with the authority's certificate, or is `system`; \
                     the certificate's name is checked with `sslmode=verify-ca`, too",
        plain_hint: "`?sslmode=disable` at the end of the address does without encryption",
    };

    const SCHEMA: &'static str = "\
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

    const NOW: &'static str = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint";
    const RECORD: &'static str = "record";
    const IS: &'static str = "IS NOT DISTINCT FROM";
    const UNLESS_EXISTS: &'static str = " ON CONFLICT DO NOTHING";

    fn literal(text: &str) -> String {
        format!("convert_from(decode('{}', 'hex'), 'UTF8')", hex(text.as_bytes()))
    }

    fn new(address: &Address) -> Result<Self, Failure> {
        Ok(Self {
            label: address.given.option("application_name"),
            options: address.given.option("options"),
            word: None,
            is_pooled: false,
        })
    }

    async fn connect(&self, address: &Address, server: &Server) -> Result<Session, Error> {
        let options = self.for_sqlx(address, server)?;
        let mut session = if self.word.is_none() {
            Session::Plain(PgConnection::connect_with(&options).await?)
        } else {
            own(options, address.timeout).await?
        };
        // Of several servers, the writable one is used.
        if address.servers.len() > 1 {
            let asked = "SELECT current_setting('transaction_read_only') = 'on'".to_owned();
            if Self::ask(&mut session, asked, Phase::Read, address.timeout).await?.is_true(0, 0) {
                let why = format!("the server is {READ_ONLY}");
                return Err(Error::Io(std::io::Error::new(
                    std::io::ErrorKind::ConnectionRefused,
                    why,
                )));
            }
        }
        Ok(session)
    }

    async fn ask(
        session: &mut Session,
        statement: String,
        phase: Phase,
        limit: Duration,
    ) -> Result<Answer, Error> {
        // A statement that has to wait ends before the time limit for its answer, also when this
        // process is gone. A crash right after the answer to a write must not undo it, whatever the
        // role's setting is.
        let bound = (limit * 3 / 4).as_millis().max(1);
        let durable =
            if phase == Phase::Write { "SET LOCAL synchronous_commit = on; " } else { "" };
        let statement = format!("SET LOCAL statement_timeout = {bound}; {durable}{statement}");
        let changed = |done: PgQueryResult| done.rows_affected();
        let text = |row: &PgRow, column| row.try_get_unchecked(column);
        match session {
            Session::Plain(connection) => send(connection, statement, phase, changed, text).await,
            Session::Own { listener, .. } => send(listener, statement, phase, changed, text).await,
        }
    }

    async fn close(session: Session) {
        match session {
            Session::Plain(connection) => drop(connection.close().await),
            Session::Own { listener, pool, .. } => {
                drop(listener);
                pool.close().await;
            }
        }
    }

    fn refusal(error: &dyn DatabaseError, phase: Phase) -> Failure {
        let error = error.downcast_ref::<PgDatabaseError>();
        let code = error.code();
        let cause = match code {
            "42P01" => Cause::NotPrepared,
            // Read-only, a lock that was waited for too long, an object in use.
            "25006" | "55P03" | "55006" => Cause::Transient,
            "53300" => Cause::Full,
            // PgBouncer says everything by this code: of settings that it does not know, and of its
            // limits.
            "08P01" if phase == Phase::Connect && error.message().contains("startup parameter") => {
                Cause::Permanent
            }
            "08P01" if error.message().contains("no more connections") => Cause::Full,
            _ if PASSING.iter().any(|class| code.starts_with(class)) => Cause::Transient,
            _ => Cause::Permanent,
        };
        let why = match code {
            // Its own limit, which ends what would otherwise go on without us.
            "57014" => no_answer().why,
            // In any language.
            "25006" => format!("the server is {READ_ONLY}"),
            _ => sentence(error.message()),
        };
        // An ordinary error rolls back. But a pooler may have lost its server, and an error that
        // ends the session may come after the end of the transaction.
        let is_fatal = !matches!(error.severity(), PgSeverity::Error);
        let is_unknown =
            code == "40003" || ["08", "58", "XX"].iter().any(|class| code.starts_with(class));
        let is_indefinite = phase == Phase::Write && (is_fatal || is_unknown);
        Failure { why, cause, hint: hint(code), is_indefinite, action: None }
    }

    fn are_others_first(sql: &Sql<Self>, name: &str) -> String {
        queue::are_others_first(name, sql.ticket())
    }

    fn notify(sql: &mut Sql<Self>, name: &str) {
        if sql.session.is_some() {
            // Waiters poll, too. The end of a run that happens once concerns all of them.
            let most = if name.starts_with(Kind::Once.prefix()) { u32::MAX } else { 1 };
            let _ = sql.ask(queue::wake(name, most), Phase::Read);
        }
    }
}

impl Postgres {
    /// The address as sqlx reads it. Nothing is left to its own defaults but the password.
    fn for_sqlx(
        &self,
        address: &Address,
        (host, port): &Server,
    ) -> Result<PgConnectOptions, Error> {
        let is_socket = host.starts_with('/');
        let mode = match address.tls.mode {
            // Sockets of this machine are not encrypted.
            _ if is_socket => "disable",
            TlsMode::Disable => "disable",
            TlsMode::Prefer => "prefer",
            TlsMode::Require => "require",
            TlsMode::VerifyCa | TlsMode::VerifyFull => "verify-full",
        };
        // Behind a pooler, each change of label costs a statement.
        let label =
            self.label.clone().or_else(|| (!self.is_pooled).then(|| Waiter::label(MAX_LABEL)));
        let port = port.to_string();
        let pairs = [
            // In `~/.pgpass`, sockets stand under this name.
            ("host", is_socket.then_some("localhost")),
            ("host", Some(host.as_str())),
            ("port", Some(&port)),
            ("user", Some(&address.user)),
            ("password", address.password.as_deref()),
            ("dbname", Some(&address.database().unwrap_or_else(|| address.user.clone()))),
            ("sslmode", Some(mode)),
            ("application_name", label.as_deref()),
            ("options", self.options.as_deref()),
        ];
        let mut url =
            Url::parse("postgres:").map_err(|error| Error::Configuration(error.into()))?;
        url.query_pairs_mut()
            .extend_pairs(pairs.into_iter().filter_map(|(name, value)| Some((name, value?))));
        let options = PgConnectOptions::from_url(&url)?;
        let mut options = match &address.tls.roots {
            Some(path) => options.ssl_root_cert(path),
            None => options.ssl_root_cert_from_pem(Vec::new()),
        };
        if let Some((certificate, key)) = &address.tls.own {
            options = options.ssl_client_cert(certificate).ssl_client_key(key);
        }
        if let Some(word) = &self.word {
            options = options.options([("serializer.session", word)]);
        }
        Ok(options.extra_float_digits(None).statement_cache_capacity(0).disable_statement_logging())
    }
}

/// A session that gets notifications.
async fn own(options: PgConnectOptions, limit: Duration) -> Result<Session, Error> {
    // A listener takes its session from a pool. It is to keep it.
    let pool = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
    let pool = pool.test_before_acquire(false).acquire_timeout(limit).connect_lazy_with(options);
    let mut listener = PgListener::connect_with(&pool).await?;
    // Another session would not have the ticket.
    listener.eager_reconnect(false);
    listener.ignore_pool_close_event(true);
    Ok(Session::Own { listener, pool, ticket: None })
}
