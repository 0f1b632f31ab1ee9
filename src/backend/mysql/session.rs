//! A connection to MySQL or MariaDB, and what it is asked and answers.

use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, Error, Row as _, raw_sql};

use crate::backend::failure::Failure;
use crate::backend::sql::failure::Phase;
use crate::backend::sql::hex;

/// A connection.
pub struct Link {
    /// The connection.
    pub connection: MySqlConnection,
    /// What its first statement begins with.
    pub setup: Option<String>,
}

/// What a statement is answered with.
#[derive(Default)]
pub struct Answer {
    /// Of all its statements.
    pub rows: Vec<MySqlRow>,
    /// How many rows were found to be changed.
    pub changed: u64,
}

impl Answer {
    /// A column that is a number.
    pub fn number(&self, row: usize, column: usize) -> Option<u64> {
        number(self.rows.get(row)?, column)
    }
}

/// A column that is a number. The types of functions differ between MySQL and MariaDB.
pub fn number(row: &MySqlRow, column: usize) -> Option<u64> {
    row.try_get_unchecked::<Option<u64>, _>(column).ok().flatten()
}

/// A column that is a text.
pub fn text(row: &MySqlRow, column: usize) -> Option<String> {
    let bytes = row.try_get_unchecked::<Option<Vec<u8>>, _>(column).ok().flatten()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A literal, which means the same whatever `sql_mode` says, and leaves nothing to escape.
pub fn literal(text: &str) -> String {
    format!("X'{}'", hex(text.as_bytes()))
}

/// A literal, or NULL.
pub fn literal_or_null(text: Option<&str>) -> String {
    text.map_or_else(|| "NULL".to_owned(), literal)
}

impl Link {
    /// Asks something; the answer to a write is how many rows were changed.
    pub async fn ask(&mut self, statement: &str, phase: Phase) -> Result<Answer, Error> {
        // Until it is answered: a refused statement may not have set anything.
        let statement = format!("{}{statement}", self.setup.as_deref().unwrap_or_default());
        let query = raw_sql(AssertSqlSafe(statement));
        let answer = if phase == Phase::Write {
            Answer { rows: Vec::new(), changed: query.execute(&mut self.connection).await?.rows_affected() }
        } else {
            Answer { rows: query.fetch_all(&mut self.connection).await?, changed: 0 }
        };
        self.setup = None;
        Ok(answer)
    }
}

/// Why a statement has no answer, or a refusal.
pub struct Trouble {
    /// The server's code for its refusal.
    pub code: Option<u16>,
    /// What it means.
    pub failure: Failure,
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self { code: None, failure }
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        trouble.failure
    }
}
