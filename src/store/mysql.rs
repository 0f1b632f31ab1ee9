//! Keys and order in MySQL and MariaDB: docs/protocol.md, "Databases".

use std::pin::Pin;
use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::error::DatabaseError;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlDatabaseError};
use sqlx::mysql::{MySqlQueryResult, MySqlRow, MySqlSslMode};
use sqlx::{ConnectOptions as _, Connection as _, Error, Row as _};

use super::backoff::PollBackoff;
use super::failure::{Cause, Failure, Result};
use super::network::tls_error;
use super::seam::{Fds, Queue as _};
use super::sql::address::{Address, Server, TlsMode};
use super::sql::engine::{Answer, Asked, Engine, Phase, of, send};
use super::sql::{Sql, hex};
use crate::store::waiter::Waiter;

/// How often the first waiter polls the row at first, and in the end.
const POLLS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// For how long one statement waits in the queue, in seconds. The next one is behind all others.
const STANDING: u32 = 6 * 3600;

const MAX_LABEL: usize = 120;

/// How many connections there are; how many there may be, how many this user may have (0 for any
/// number), and how many it has.
const ROOM: &str = "SHOW GLOBAL STATUS LIKE 'Threads_connected'; SELECT @@max_connections, \
                    @@max_user_connections, COUNT(*) FROM information_schema.processlist WHERE \
                    user = SUBSTRING_INDEX(USER(), '@', 1)";

pub struct MySql;

pub struct Session {
    connection: MySqlConnection,
    /// Whether a statement was answered.
    is_set_up: bool,
}

pub enum Place {
    /// A statement that waits, in a session that comes back with its answer.
    Queued(Pin<Box<dyn Future<Output = (Session, Asked)> + Send>>),
    /// The store's session has the server's lock.
    First(PollBackoff),
}

impl Engine for MySql {
    type Session = Session;
    type Place = Place;

    const PORT: u16 = 3306;
    const HOST: &'static str = "localhost";
    const EXAMPLE: &'static str = "`mysql://USER@HOST/DATABASE`";

    const SCHEMA: &'static str = "\
-- Locks of `serializer`: a row for each name. Rows stay when a lock is released.
-- Its users need this (DELETE is for names that go out of use):
--   GRANT SELECT, INSERT, UPDATE, DELETE ON my_database.serializer_locks TO 'my_user'@'%';
CREATE TABLE IF NOT EXISTS serializer_locks (
  name VARBINARY(255) NOT NULL PRIMARY KEY,
  version BIGINT UNSIGNED NOT NULL,                      -- the number of the state; grows
  record MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,  -- NULL when a lock is free
  -- For people:
  changed TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
  format SMALLINT NOT NULL DEFAULT 1 CHECK (format = 1)  -- what the columns mean
) ENGINE = InnoDB;
";

    /// From UTC, because `UNIX_TIMESTAMP` of a local time repeats itself when summer time ends.
    const NOW: &'static str =
        "TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6)) DIV 1000";

    const REFUSALS: &'static [(Cause, &'static str)] = &[
        (Cause::NotPrepared, "1146"),
        (Cause::Full, "1040 1203 1226"),
        // A cluster that breaks up during a commit (a deadlock, too), a session that is ended, and
        // a lost server in the words of clients (2000 to 2999), ProxySQL or MaxScale.
        (Cause::Transient, "1047? 1053? 1158? 1159? 1160? 1161? 1180? 1213? 1317? 1927? 1969?"),
        (Cause::Transient, "2? 3024? 3100? 3101? 4031? 9?"),
        // Full (disk, memory, tables), starting, waited too long, read-only.
        (Cause::Transient, "1021 1037 1038 1041 1077 1079 1080 1114 1135 1152 1184 1205 1206 1290"),
        (Cause::Transient, "1412 1436 1614 1615 1637 1792 1836 3058 3572"),
    ];

    fn literal(text: &str) -> String {
        format!("X'{}'", hex(text.as_bytes()))
    }

    fn check(address: &Address) -> Result<()> {
        let refused = |why: &str, hint| Err(Failure::refused(why, hint));
        match (address.servers.as_slice(), &address.database) {
            ([_, _, ..], _) => refused("the address names several servers", "name one, or a proxy"),
            (_, None) => refused("the address names no database", Self::EXAMPLE),
            _ => Ok(()),
        }
    }

    async fn connect(at: &Address, server: &Server, _is_own: bool) -> Result<Session, Error> {
        use MySqlSslMode::{Disabled, Preferred, Required, VerifyIdentity};
        let ((host, port), is_socket) = (server, server.0.starts_with('/'));
        // A socket is encrypted, too: sqlx sends a password as MySQL expects it over an encrypted
        // connection or over TCP, but not over a plain socket.
        let modes = [Disabled, Preferred, Required, VerifyIdentity];
        let mut options = MySqlConnectOptions::new().username(&at.user);
        options = options.database(at.database.as_deref().unwrap_or_default());
        options = options.ssl_mode(modes[at.tls.mode as usize]);
        // Without the statement that sqlx sends after each login.
        options = options.pipes_as_concat(false).no_engine_substitution(false).timezone(None);
        options = options.set_names(false).statement_cache_capacity(0).disable_statement_logging();
        options = if is_socket { options.socket(host) } else { options.host(host).port(*port) };
        if let Some(password) = &at.password {
            options = options.password(password);
        }
        if let Some(roots) = &at.tls.roots {
            options = options.ssl_ca(roots);
        }
        if let Some((certificate, key)) = &at.tls.own {
            options = options.ssl_client_cert(certificate).ssl_client_key(key);
        }
        let mut connected = MySqlConnection::connect_with(&options).await;
        // The TLS of some servers is too old. A password may need no encryption there.
        if is_socket
            && at.tls.mode == TlsMode::Prefer
            && connected.as_ref().is_err_and(|error| tls_error(error).is_some())
        {
            connected = MySqlConnection::connect_with(&options.ssl_mode(Disabled)).await;
        }
        Ok(Session { connection: connected?, is_set_up: false })
    }

    async fn ask(on: &mut Session, sql: String, phase: Phase, limit: Duration) -> Asked {
        // Each statement must be its own transaction, whatever `init_connect` says, and the server
        // must not do it after it was given up here.
        let bound = (limit.as_secs() / 2).max(1);
        let limits = format!("lock_wait_timeout = {bound}, innodb_lock_wait_timeout = {bound}");
        let sql = if on.is_set_up { sql } else { format!("SET autocommit = 1, {limits}; {sql}") };
        let changed = |done: MySqlQueryResult| done.rows_affected();
        let text = |row: &MySqlRow, column| {
            let bytes: Option<Vec<u8>> = row.try_get_unchecked(column)?;
            Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
        };
        let answer = match send(&mut on.connection, sql, phase, changed, text).await {
            // The row is there: nothing was changed.
            Err(Error::Database(error)) if error.is_unique_violation() => Answer::default(),
            answer => answer?,
        };
        on.is_set_up = true;
        Ok(answer)
    }

    async fn close(session: Session) {
        let _ = session.connection.close().await;
    }

    fn code(error: &dyn DatabaseError) -> (String, bool) {
        (error.downcast_ref::<MySqlDatabaseError>().number().to_string(), false)
    }

    fn warn(sql: &mut Sql<Self>) {
        let answer = sql.ask("SELECT @@innodb_flush_log_at_trx_commit", Phase::Read);
        let answer = answer.unwrap_or_default();
        if let Some(flushed) = answer.text(0, 0).filter(|flushed| *flushed != "1") {
            tracing::warn!(
                "the server runs with `innodb_flush_log_at_trx_commit = {flushed}`: after a crash \
                 of its machine, a lock that was granted within the last second may be granted \
                 again; set it to 1"
            );
        }
    }

    fn are_others_first(sql: &Sql<Self>, name: &str) -> String {
        format!("IS_USED_LOCK('{}') <> CONNECTION_ID()", queue_name(sql, name))
    }

    fn enqueue(sql: &mut Sql<Self>, name: &str) -> Result<Option<Place>> {
        if !has_room(&sql.ask(ROOM, Phase::Read)?) {
            return Ok(None);
        }
        let Some(mut session) = sql.session.take() else { return Ok(None) };
        // The list of processes shows the label to others.
        let (taken, label) = (queue_name(sql, name), Waiter::label(MAX_LABEL));
        let statement = format!("SELECT GET_LOCK('{taken}', {STANDING}) /* {label} */");
        let limit = sql.settings.timeout;
        // Until the answer.
        sql.are_others_first = true;
        Ok(Some(Place::Queued(Box::pin(async move {
            let answer = MySql::ask(&mut session, statement, Phase::Read, limit).await;
            (session, answer)
        }))))
    }

    fn wait_in_line(sql: &mut Sql<Self>, limit: Duration, fds: Fds<'_>) -> Result<()> {
        // A queued waiter reads the row over another session, which it does not keep.
        if matches!(sql.place, Some(Place::Queued(_))) {
            sql.close_session();
        }
        let answer = match &mut sql.place {
            None => return Ok(()),
            Some(Place::First(polls)) => return polls.wait(true, limit, fds),
            Some(Place::Queued(standing)) => sql.runtime.wait(standing, limit, fds)?,
        };
        let Some((session, answer)) = answer else { return Ok(()) };
        sql.session = Some(session);
        sql.are_others_first = !answer.as_ref().is_ok_and(|answer| answer.is_true(0, 0));
        sql.place = Some(Place::First(PollBackoff::new(POLLS.0, POLLS.1)));
        if let Err(error) = answer {
            let failure = of::<Self>(&error, Phase::Read, "the server");
            // Without such locks, others have no order, either.
            sql.has_queue = failure.cause.passes();
            sql.end();
        } else if sql.are_others_first {
            sql.place = None;
        }
        Ok(())
    }

    fn ends_with_session(place: &Place) -> bool {
        matches!(place, Place::First(_))
    }

    fn leave(sql: &Sql<Self>, place: Place, name: &str) -> Option<String> {
        // The end of a queued connection ends its place.
        let taken = queue_name(sql, name);
        matches!(place, Place::First(_)).then(|| format!("DO RELEASE_LOCK('{taken}')"))
    }

    /// The statements of waiters end with their labels as comments.
    fn waiters(sql: &Sql<Self>, name: &str) -> String {
        let taken = queue_name(sql, name);
        let first = format!("id = IS_USED_LOCK('{taken}')");
        // The first waiter's own statement, when it asks, is this one.
        let label = Waiter::label(MAX_LABEL);
        let own = format!("CONCAT('/* ', IF(id = CONNECTION_ID(), '{label} */', info))");
        format!(
            "SELECT SUBSTRING_INDEX(SUBSTRING_INDEX({own}, '/* ', -1), ' */', 1), \
             SUBSTRING_INDEX(host, ':', 1) FROM information_schema.processlist WHERE {first} OR \
             info LIKE 'SELECT GET_LOCK(''{taken}'', %' ORDER BY {first} DESC, time DESC, id"
        )
    }
}

/// The server's lock: at most 64 characters, and the same for all databases of a server.
fn queue_name(sql: &Sql<MySql>, key: &str) -> String {
    let hash = Sha256::digest(format!("{}\0{key}", sql.database));
    format!("serializer:{}", hex(&hash[..16]))
}

/// Whether there is room for one more waiter: they use three quarters of the connections, and
/// holders need the rest.
fn has_room(answer: &Answer) -> bool {
    let number = |row, column| answer.text(row, column).and_then(|text| text.parse::<u64>().ok());
    let has_room = |used: Option<u64>, most: Option<u64>| match (used, most) {
        (Some(used), Some(most @ 1..)) => used.saturating_mul(4) < most.saturating_mul(3),
        // A server that does not tell has room.
        _ => true,
    };
    has_room(number(0, 1), number(1, 0)) && has_room(number(1, 2), number(1, 1))
}
