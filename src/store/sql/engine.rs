//! What differs between the engines, for the store that they share, and what their errors mean.

use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::{AssertSqlSafe, Database, Error, Executor, Row as _, raw_sql};

use super::Sql;
use super::address::{Address, PLAIN_HINT, ROOTS_HINT, Server};
use crate::store::failure::{Cause, Failure, Result};
use crate::store::network::{sentence, tls_error, tls_problem, unanswered};
use crate::store::seam::Fds;

/// Rows of texts; after a write, the number of rows that were changed.
#[derive(Default)]
pub struct Answer(pub Vec<Vec<Option<String>>>);

impl Answer {
    pub fn text(&self, row: usize, column: usize) -> Option<&str> {
        self.0.get(row)?.get(column)?.as_deref()
    }

    pub fn is_true(&self, row: usize, column: usize) -> bool {
        matches!(self.text(row, column), Some("t" | "1"))
    }
}

pub trait Engine: Sized + Send {
    type Session: Send;
    type Place: Send;

    /// The port and the host of an address that names none.
    const PORT: u16;
    const HOST: &'static str;
    /// The options of addresses that only this engine has.
    const OPTIONS: &'static str = "";
    /// Options with variables that give their values where the address leaves them out.
    const VARIABLES: &'static str = "";
    const EXAMPLE: &'static str;
    const SCHEMA: &'static str;
    /// The server's clock in milliseconds, read before the row.
    const NOW: &'static str;
    /// The end of an INSERT that does nothing if the row exists.
    const UNLESS_EXISTS: &'static str = "";
    /// What refusals mean, by the beginnings of their codes. The first that fits counts; others
    /// are permanent. With `?`, a write may have been done.
    const REFUSALS: &'static [(Cause, &'static str)];

    /// A text as a literal, in which nothing is escaped.
    fn literal(text: &str) -> String;

    /// Refuses an address of which this engine needs more, or less.
    fn check(_: &Address) -> Result<()> {
        Ok(())
    }

    /// Connects and logs in. A session to queue with `is_own`: no pooler lends it out.
    async fn connect(at: &Address, server: &Server, is_own: bool) -> Result<Self::Session, Error>;

    /// Sends statements, and waits for the answer for at most `limit`.
    async fn ask(on: &mut Self::Session, sql: String, phase: Phase, limit: Duration) -> Asked;

    async fn close(session: Self::Session);

    /// The code of a refusal, and whether it ends the session.
    fn code(error: &dyn DatabaseError) -> (String, bool);

    /// Warns of settings by which the server forgets what it has acknowledged.
    fn warn(_: &mut Sql<Self>) {}

    /// A column: whether others were queued before this process, or before a newcomer.
    fn are_others_first(sql: &Sql<Self>, name: &str) -> String;

    /// Takes a place in the queue, unless the server has no room for another waiter.
    fn enqueue(sql: &mut Sql<Self>, name: &str) -> Result<Option<Self::Place>>;

    /// Sleeps in the queue as [`Queue::wait`](crate::store::seam::Queue::wait) does.
    fn wait_in_line(sql: &mut Sql<Self>, limit: Duration, fds: Fds<'_>) -> Result<()>;

    /// Whether the end of the store's session ends a place in the queue.
    fn ends_with_session(_: &Self::Place) -> bool {
        true
    }

    /// The statement that gives up a place in the queue, if it needs one.
    fn leave(sql: &Sql<Self>, place: Self::Place, name: &str) -> Option<String>;

    /// Lists the waiters by label and address, in their order.
    fn waiters(sql: &Sql<Self>, name: &str) -> String;

    /// The statement that wakes waiters, in a server that can.
    fn wake(_name: &str) -> Option<String> {
        None
    }
}

pub type Asked = Result<Answer, Error>;

/// Sends statements. `changed` counts rows; `text` reads a column, which the protocol of simple
/// queries has as a text.
pub async fn send<'c, D: Database>(
    session: impl Executor<'c, Database = D>,
    statement: String,
    phase: Phase,
    changed: impl Fn(D::QueryResult) -> u64,
    text: impl Fn(&D::Row, usize) -> Result<Option<String>, Error>,
) -> Asked {
    let query = raw_sql(AssertSqlSafe(statement));
    if phase == Phase::Write {
        let changed = changed(query.execute(session).await?);
        return Ok(Answer(vec![vec![Some(changed.to_string())]]));
    }
    let texts = |row: &D::Row| (0..row.len()).map(|column| text(row, column)).collect();
    query.fetch_all(session).await?.iter().map(texts).collect::<Result<_, _>>().map(Answer)
}

/// A part of the failure of a write that a read-only server refuses.
pub const READ_ONLY: &str = "read-only";

/// The codes of such refusals.
const OF_READ_ONLY: &str = "25006 1290 1792 1836";

/// What to do about refusals: in each line, their codes, and the hint.
const HINTS: &str = "\
28P01 1045 1698: check user and password: of the address, the file `SERIALIZER_PASSWORD_FILE`, and \
    for PostgreSQL `PGPASSWORD` or `~/.pgpass`
28000: check the user's name; the server's `pg_hba.conf` says which users may connect from where, \
    and whether encrypted (`?sslmode=require`) or not (`?sslmode=disable`)
3159: leave `ssl_mode=DISABLED` out of the address
3D000 1044 1049: create the database, and let the user in; or name another one in the address
42501 1142 1143 1227: `serializer initialize --print-sql` prints the statements for an \
    administrator, with the rights that a user needs
3F000 42703 42883 1054 1364 1406: another program's table may be called `serializer_locks`; name \
    another database or schema (PostgreSQL: `?options=-csearch_path%3DSCHEMA`)
25006 1290 1792 1836: if the server is a standby, name the primary in the address; otherwise, \
    `read_only` or `default_transaction_read_only` is set for the server, the database or the user";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Connect,
    Read,
    Write,
}

/// What an error of `server` means. Only a server's refusal is definite: once there is a
/// connection, a statement that was not sent and one without an answer look alike.
pub fn of<E: Engine>(error: &Error, phase: Phase, server: &str) -> Failure {
    let failure = match error {
        Error::Database(error) => return refusal::<E>(&**error, phase),
        _ if let Some(error) = tls_error(error) => {
            // Others are refused although their issuer does not matter.
            let is_about_trust = matches!(error, rustls::Error::InvalidCertificate(of)
                if !["CertVersion", "BadEncoding", "CriticalExtension"]
                    .iter()
                    .any(|word| format!("{of:?}").contains(word)));
            let hint = if is_about_trust { ROOTS_HINT } else { PLAIN_HINT };
            Failure::refused(tls_problem(error), hint)
        }
        Error::Io(error) => unanswered(error, server),
        Error::Tls(error) if error.to_string().contains("not support TLS") => {
            Failure::refused("the server does not encrypt connections", PLAIN_HINT)
        }
        Error::PoolTimedOut => no_answer(phase),
        Error::Tls(_) | Error::Configuration(_) => Failure::permanent(sentence(&error.to_string())),
        // The server speaks, but not this protocol, or wants a password in an unknown way.
        Error::Protocol(text) if phase == Phase::Connect => {
            Failure::permanent(format!("cannot log in: {}", sentence(text)))
        }
        other => Failure::transient(sentence(&other.to_string())),
    };
    Failure { is_indefinite: phase == Phase::Write, ..failure }
}

fn refusal<E: Engine>(error: &dyn DatabaseError, phase: Phase) -> Failure {
    let ((code, is_fatal), said) = (E::code(error), error.message());
    let fits = |start: &&str| code.starts_with(start.trim_end_matches('?'));
    let known =
        |(cause, codes): &(Cause, &'static str)| Some((*cause, codes.split(' ').find(fits)?));
    let known = E::REFUSALS.iter().find_map(known);
    let (mut cause, start) = known.unwrap_or((Cause::Permanent, ""));
    // PgBouncer has one code for settings that it does not know, and for its limits.
    if phase == Phase::Connect && said.contains("startup parameter") {
        cause = Cause::Permanent;
    } else if said.contains("no more connections") {
        cause = Cause::Full;
    }
    let is_in = |codes: &str| codes.split(' ').any(|other| other == code);
    let why = match code.as_str() {
        // The server's own time limit, which ends what would otherwise go on without us.
        "57014" => no_answer(phase).why,
        // In any language.
        _ if is_in(OF_READ_ONLY) => format!("the server is {READ_ONLY} (error {code})"),
        _ => format!("{} (error {code})", sentence(said)),
    };
    let mut hints = HINTS.lines().filter_map(|line| line.split_once(": "));
    let hint = hints.find(|(codes, _)| is_in(codes)).map(|(_, hint)| hint.to_owned());
    let is_indefinite = phase == Phase::Write && (is_fatal || start.ends_with('?'));
    Failure { cause, hint, is_indefinite, ..Failure::permanent(why) }
}

pub fn no_answer(phase: Phase) -> Failure {
    let failure = Failure::transient("the server does not answer in time");
    Failure { is_indefinite: phase == Phase::Write, ..failure }
}
