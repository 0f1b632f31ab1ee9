//! Keys in MySQL and MariaDB: a row for each name. A read may be stale (Galera, a replica): the
//! write is then a conflict, or is refused.
//!
//! A connection counts rows that were found, not rows that were changed. So a row is inserted by a
//! plain `INSERT`, and a duplicate key is the conflict.

mod queue;

use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::mysql::{
    MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlQueryResult, MySqlRow,
    MySqlSslMode,
};
use sqlx::{ConnectOptions as _, Connection as _, Error, Row as _};

use self::queue::HostIdentity;
use super::failure::{Cause, Failure};
use super::network::sentence;
use super::sql::address::{Address, Server, Usual};
use super::sql::engine::{Answer, Engine, send};
use super::sql::failure::{Phase, hint};
use super::sql::tls::TlsMode;
use super::sql::{READ_ONLY, Sql, hex};

/// Codes of what passes, and was not done: full (disk, memory, tables), starting, waited too long,
/// read-only (a fail-over is under way).
const PASSING: [u16; 23] = [
    1021, 1037, 1038, 1041, 1077, 1079, 1080, 1114, 1135, 1152, 1184, 1205, 1206, 1290, 1412, 1436,
    1614, 1615, 1637, 1792, 1836, 3058, 3572,
];

/// MySQL or MariaDB, as one process uses it.
pub struct MySql {
    /// The database, which names are part of.
    database: String,
    place: HostIdentity,
}

/// A connection.
pub struct Session {
    connection: MySqlConnection,
    /// Whether a statement was answered.
    is_set_up: bool,
}

impl Engine for MySql {
    type Session = Session;

    const USUAL: Usual = Usual {
        port: 3306,
        host: "localhost",
        options: &[],
        variables: "",
        certificates: None,
        example: "`mysql://USER@HOST/DATABASE`",
        roots_hint: "`ssl_ca` names a file with the certificate of the authority that signed the \
                     server's; `ssl_mode=REQUIRED` encrypts without looking at it",
        plain_hint: "`?ssl_mode=DISABLED` at the end of the address does without encryption",
    };

    const SCHEMA: &'static str = "\
-- Locks of `serializer`: a row for each name. Rows stay when a lock is released.
-- Its users need (with the database's and the user's name):
--   GRANT SELECT, INSERT, UPDATE, DELETE ON my_database.serializer_locks TO 'my_user'@'%';
CREATE TABLE IF NOT EXISTS serializer_locks (
  name VARBINARY(255) NOT NULL PRIMARY KEY,
  version BIGINT UNSIGNED NOT NULL,                                  -- the number of the state; never goes back
  record MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,  -- what is stored; NULL when a lock is free
  changed TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),  -- for people
  format SMALLINT NOT NULL DEFAULT 1 CHECK (format = 1)              -- what the columns mean
) ENGINE = InnoDB;
";

    /// From UTC, because `UNIX_TIMESTAMP` of a local time repeats itself when summer time ends. It
    /// is the time at which the statement began.
    const NOW: &'static str =
        "TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6)) DIV 1000";
    const RECORD: &'static str = "CAST(record AS BINARY)";
    const IS: &'static str = "<=>";
    const UNLESS_EXISTS: &'static str = "";

    fn literal(text: &str) -> String {
        format!("X'{}'", hex(text.as_bytes()))
    }

    fn new(address: &Address) -> Result<Self, Failure> {
        if address.servers.len() > 1 {
            let failure = Failure::permanent("the address names several servers");
            return Err(failure.with_hint("name one, or a proxy before them"));
        }
        let no_database =
            || Failure::permanent("the address names no database").with_hint(Self::USUAL.example);
        Ok(Self {
            database: address.database().ok_or_else(no_database)?,
            place: HostIdentity::None,
        })
    }

    async fn connect(&self, address: &Address, server: &Server) -> Result<Session, Error> {
        let (host, port) = server;
        let is_socket = host.starts_with('/');
        let mode = match address.tls.mode {
            // A socket of this machine is as good.
            TlsMode::Prefer if is_socket => MySqlSslMode::Disabled,
            TlsMode::Disable => MySqlSslMode::Disabled,
            TlsMode::Prefer => MySqlSslMode::Preferred,
            TlsMode::Require => MySqlSslMode::Required,
            TlsMode::VerifyCa | TlsMode::VerifyFull => MySqlSslMode::VerifyIdentity,
        };
        let mut options = MySqlConnectOptions::new()
            .username(&address.user)
            .database(&self.database)
            .ssl_mode(mode);
        options = if is_socket { options.socket(host) } else { options.host(host).port(*port) };
        if let Some(password) = &address.password {
            options = options.password(password);
        }
        if let Some(roots) = &address.tls.roots {
            options = options.ssl_ca(roots);
        }
        if let Some((certificate, key)) = &address.tls.own {
            options = options.ssl_client_cert(certificate).ssl_client_key(key);
        }
        // Without the statement that it sends after each login.
        options = options
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .timezone(None)
            .set_names(false);
        options = options.statement_cache_capacity(0).disable_statement_logging();
        Ok(Session { connection: MySqlConnection::connect_with(&options).await?, is_set_up: false })
    }

    async fn ask(
        session: &mut Session,
        statement: String,
        phase: Phase,
        limit: Duration,
    ) -> Result<Answer, Error> {
        // Each statement must be its own transaction, whatever `init_connect` says. A statement
        // that waits for a lock ends before the time limit for its answer: a statement that is
        // given up here must not be done by the server later.
        let bound = (limit.as_secs() / 2).max(1);
        let setup = format!(
            "SET autocommit = 1, lock_wait_timeout = {bound}, innodb_lock_wait_timeout = {bound}; "
        );
        let statement = if session.is_set_up { statement } else { setup + &statement };
        let changed = |done: MySqlQueryResult| done.rows_affected();
        let text = |row: &MySqlRow, column| {
            let bytes = row.try_get_unchecked::<Option<Vec<u8>>, usize>(column)?;
            Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
        };
        let answer = send(&mut session.connection, statement, phase, changed, text).await?;
        // A refused statement may not have set anything.
        session.is_set_up = true;
        Ok(answer)
    }

    async fn close(session: Session) {
        // Best effort.
        let _ = session.connection.close().await;
    }

    fn refusal(error: &dyn DatabaseError, phase: Phase) -> Failure {
        let error = error.downcast_ref::<MySqlDatabaseError>();
        let code = error.number();
        let why = match code {
            // In any language.
            1290 | 1792 | 1836 => format!("the server is {READ_ONLY} (error {code})"),
            _ => format!("{} (error {code})", sentence(error.message())),
        };
        let is_indefinite = phase == Phase::Write && may_be_done(code);
        Failure {
            why,
            cause: cause(code),
            hint: hint(&code.to_string()),
            is_indefinite,
            action: None,
        }
    }

    fn are_others_first(sql: &Sql<Self>, name: &str) -> String {
        format!("IS_USED_LOCK('{}') IS NOT NULL", sql.engine.queue_name(name))
    }

    fn is_session_queued(&self) -> bool {
        matches!(self.place, HostIdentity::Queued(_))
    }

    fn forget(&mut self) {
        self.place = HostIdentity::None;
    }

    fn advice(sql: &mut Sql<Self>) -> Option<String> {
        let answer = sql.ask("SELECT @@innodb_flush_log_at_trx_commit", Phase::Read).ok()?;
        let flushed = answer.text(0, 0).filter(|flushed| *flushed != "1")?;
        Some(format!(
            "the server runs with `innodb_flush_log_at_trx_commit = {flushed}`: after a crash of \
             its machine, a lock that was granted within the last second may be granted again; set \
             it to 1"
        ))
    }
}

fn cause(code: u16) -> Cause {
    match code {
        1146 => Cause::NotPrepared,
        1040 | 1203 | 1226 => Cause::Full,
        code if may_be_done(code) || PASSING.contains(&code) => Cause::Transient,
        _ => Cause::Permanent,
    }
}

/// Whether a server may have done, or yet do, what it says has failed. A node of a cluster (Galera,
/// group replication) that loses the others while it commits does not know whether they have it (a
/// deadlock, too), a session that is ended may be ended after its commit, and a proxy may lose a
/// server that has done it, which it tells in the words of clients or in its own (ProxySQL,
/// MaxScale).
fn may_be_done(code: u16) -> bool {
    matches!(code, 1047 | 1053 | 1158..=1161 | 1180 | 1213 | 1317 | 1927 | 1969 | 3024 | 3100 | 3101 | 4031 | 2000..3000 | 9000..10000)
}
