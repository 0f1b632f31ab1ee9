//! Sessions with PostgreSQL: making one, asking it, and what a refusal means.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgListener, PgPool, PgPoolOptions, PgRow, PgSeverity};
use sqlx::{AssertSqlSafe, Connection as _, Error, Row as _, raw_sql};
use tokio::time::timeout;

use super::READ_ONLY;
use super::options::{HINTS, Options, Server};
use crate::backend::failure::{Cause, Failure};
use crate::backend::network::sentence;
use crate::backend::sql::failure::{Phase, no_answer, of, of_connecting};

/// Classes of errors that pass: connections, rolled back transactions, resources, the operator, the
/// system.
const PASSING: [&str; 5] = ["08", "40", "53", "57", "58"];

/// A session, of the kind that its use needs.
pub enum Link {
    Plain(PgConnection),
    /// One of our own, which also gets notifications.
    Own(PgListener, PgPool),
}

/// Rows, or how many were changed.
pub struct Answer {
    pub rows: Vec<PgRow>,
    pub changed: u64,
}

impl Link {
    pub async fn ask(&mut self, statement: String, phase: Phase) -> Result<Answer, Error> {
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

    pub async fn close(self) {
        match self {
            Self::Plain(link) => drop(link.close().await),
            Self::Own(link, pool) => {
                drop(link);
                pool.close().await;
            }
        }
    }
}

/// A column of a row.
pub fn column<'r, T>(row: &'r PgRow, index: usize) -> Result<T, Failure>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(index).map_err(|error| of(&error, Phase::Read, &HINTS))
}

/// A session with the first server that grants one. Nothing was sent if there is none. One of its
/// own begins with `session`.
pub async fn connect(options: &Options, limit: Duration, session: Option<&(String, String)>) -> Result<Link, Failure> {
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
            Some(_) => own(way, options.connect_timeout).await,
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

/// A session that gets notifications.
async fn own(options: PgConnectOptions, limit: Duration) -> Result<Link, Error> {
    // A listener takes its session from a pool. It is to keep it.
    let pool = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
    let pool = pool.test_before_acquire(false).acquire_timeout(limit).connect_lazy_with(options);
    let mut listener = PgListener::connect_with(&pool).await?;
    // Another session would not have the ticket.
    listener.eager_reconnect(false);
    listener.ignore_pool_close_event(true);
    Ok(Link::Own(listener, pool))
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
pub fn refusal(error: &PgDatabaseError, phase: Phase) -> Failure {
    let code = error.code();
    let cause = match code {
        "42P01" => Cause::NotPrepared,
        // Read-only, a lock that was waited for too long, an object in use.
        "25006" | "55P03" | "55006" => Cause::Transient,
        "53300" => Cause::Full,
        // PgBouncer says everything by this code: of settings that it does not know, and of its limits.
        "08P01" if phase == Phase::Connect && error.message().contains("startup parameter") => Cause::Permanent,
        "08P01" if error.message().contains("no more connections") => Cause::Full,
        _ if PASSING.iter().any(|class| code.starts_with(class)) => Cause::Transient,
        _ => Cause::Permanent,
    };
    // Its own limit, which ends what would otherwise go on without us.
    let why = match code {
        "57014" => no_answer().why,
        // In any language.
        "25006" => format!("the server is {READ_ONLY}"),
        _ => sentence(error.message()),
    };
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
    // An ordinary error rolls back. But a pooler may have lost its server, and an error that ends
    // the session may come after the end of the transaction.
    let is_fatal = !matches!(error.severity(), PgSeverity::Error);
    let is_unknown = code == "40003" || ["08", "58", "XX"].iter().any(|class| code.starts_with(class));
    let is_indefinite = phase == Phase::Write && (is_fatal || is_unknown);
    Failure { why, cause, hint: hint.map(str::to_owned), is_indefinite, action: None }
}
