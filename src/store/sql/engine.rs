//! What differs between the engines, for the store that they share.

use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::{AssertSqlSafe, Database, Error, Executor, Row as _, raw_sql};

use super::Sql;
use super::address::{Address, Server, Usual};
use super::failure::Phase;
use crate::store::failure::Failure;

/// Rows of texts, or how many rows were changed.
#[derive(Default)]
pub struct Answer {
    pub rows: Vec<Vec<Option<String>>>,
    pub changed: u64,
}

impl Answer {
    /// A value; `None` if it is NULL.
    pub fn text(&self, row: usize, column: usize) -> Option<&str> {
        self.rows.get(row)?.get(column)?.as_deref()
    }

    /// Whether a value is true.
    pub fn is_true(&self, row: usize, column: usize) -> bool {
        matches!(self.text(row, column), Some("t" | "1"))
    }
}

/// A kind of database.
pub trait Engine: Sized + Send {
    type Session: Send;

    const USUAL: Usual;
    /// The statements that create the table.
    const SCHEMA: &'static str;
    /// The server's clock in milliseconds, read before the row.
    const NOW: &'static str;
    /// The column `record`, converted by no setting.
    const RECORD: &'static str;
    /// Compares values that may be NULL.
    const IS: &'static str;
    /// The end of an INSERT that does nothing if the row exists.
    const UNLESS_EXISTS: &'static str;

    /// A text as a literal, in which nothing is escaped.
    fn literal(text: &str) -> String;

    /// Reads the options of this engine.
    fn new(address: &Address) -> Result<Self, Failure>;

    /// Connects and logs in.
    async fn connect(&self, address: &Address, server: &Server) -> Result<Self::Session, Error>;

    /// Sends statements whose answer is awaited for at most `limit`.
    async fn ask(
        session: &mut Self::Session,
        statement: String,
        phase: Phase,
        limit: Duration,
    ) -> Result<Answer, Error>;

    /// Ends a session politely.
    async fn close(session: Self::Session);

    /// The meaning of a server's refusal.
    fn refusal(error: &dyn DatabaseError, phase: Phase) -> Failure;

    /// A column: whether others were queued before this process, or a newcomer.
    fn are_others_first(sql: &Sql<Self>, name: &str) -> String;

    /// Wakes the first waiter. Best effort.
    fn notify(_: &mut Sql<Self>, _name: &str) {}

    /// Whether another session of this process is queued. Then one that was used is closed.
    fn is_session_queued(&self) -> bool {
        false
    }

    /// Gives up the place of that other session.
    fn forget(&mut self) {}

    /// What is wrong with the server's settings.
    fn advice(_: &mut Sql<Self>) -> Option<String> {
        None
    }
}

/// Sends statements. `changed` counts the rows that a write has changed; `text` reads a column,
/// which the protocol of simple queries has as a text.
pub async fn send<'c, D: Database>(
    session: impl Executor<'c, Database = D>,
    statement: String,
    phase: Phase,
    changed: impl Fn(D::QueryResult) -> u64,
    text: impl Fn(&D::Row, usize) -> Result<Option<String>, Error>,
) -> Result<Answer, Error> {
    let query = raw_sql(AssertSqlSafe(statement));
    if phase == Phase::Write {
        return Ok(Answer { rows: Vec::new(), changed: changed(query.execute(session).await?) });
    }
    let texts = |row: &D::Row| (0..row.len()).map(|column| text(row, column)).collect();
    let rows = query.fetch_all(session).await?.iter().map(texts).collect::<Result<_, _>>()?;
    Ok(Answer { rows, changed: 0 })
}
