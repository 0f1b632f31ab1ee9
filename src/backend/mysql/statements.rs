//! What is said to the server. Each is one statement and one round trip. Values stand in it as hexadecimal literals, which mean the
//! same whatever `sql_mode` says, and leave nothing to escape.

use super::super::remote::Row;
use super::super::sql::FORMAT;

/// The statements that make the table.
pub const SCHEMA: &str = "\
-- Locks of `serializer`: one row for each name. Rows stay when a lock is released, so that the numbers never go back.
-- Whoever uses it needs (with the database's and the user's name):
--   GRANT SELECT, INSERT, UPDATE ON my_database.serializer_locks TO 'my_user'@'%';
CREATE TABLE IF NOT EXISTS serializer_locks (
  -- What the lock is called. Compared byte by byte.
  name VARBINARY(255) NOT NULL PRIMARY KEY,
  -- The number of the row's state; it only grows.
  version BIGINT UNSIGNED NOT NULL,
  -- Who holds the lock; NULL when nobody does.
  record MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
  -- When that was written. Only for people.
  changed TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
  -- What the columns mean: another number, something else.
  format SMALLINT NOT NULL DEFAULT 1 CHECK (format = 1)
) ENGINE = InnoDB;
";

/// Whether the table is there and can be read.
pub const LOOK: &str = "SELECT 1 FROM serializer_locks LIMIT 0";

/// The names of all locks that somebody holds.
pub const NAMES: &str = "SELECT name FROM serializer_locks WHERE record IS NOT NULL ORDER BY name";

/// The columns of [`read`].
pub mod column {
    pub const NOW: usize = 0;
    pub const VERSION: usize = 1;
    pub const RECORD: usize = 2;
    pub const FORMAT: usize = 3;
    pub const FIRST: usize = 4;
}

/// Bytes as the server's literal.
fn literal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(3 + 2 * bytes.len());
    text.push_str("X'");
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
        }
    }
    text.push('\'');
    text
}

/// The row, and always the clock, beside what `first` says about the line.
///
/// The clock is UTC arithmetic only: `UNIX_TIMESTAMP` of a local time repeats itself when summer time ends. It is that of the
/// statement's begin, before the row is read: so it never runs ahead of what was read, if the statement had to wait.
/// The record comes as bytes, which no setting of the session converts.
pub fn read(key: &str, first: &str) -> String {
    format!(
        "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6)) DIV 1000, l.version, \
         CAST(l.record AS BINARY), l.format, {first} \
         FROM (SELECT 1 AS one) AS o LEFT JOIN serializer_locks AS l ON l.name = {}",
        literal(key.as_bytes())
    )
}

/// Only the state's number.
pub fn version(key: &str) -> String {
    format!("SELECT version FROM serializer_locks WHERE name = {}", literal(key.as_bytes()))
}

/// Changes one row, or none if the state is not that of `seen` any more; fails if there is one against expectation.
pub fn write(key: &str, seen: &Row, next: u64, text: Option<&str>) -> String {
    let key = literal(key.as_bytes());
    let text = text.map_or_else(|| "NULL".to_owned(), |text| literal(text.as_bytes()));
    if seen.version.is_none() {
        return format!("INSERT INTO serializer_locks (name, version, record) VALUES ({key}, {next}, {text})");
    }
    format!(
        "UPDATE serializer_locks SET version = {next}, record = {text} \
         WHERE name = {key} AND version = {} AND CAST(record AS BINARY) <=> {} AND format = {FORMAT}",
        seen.number,
        // A server that has forgotten its last commits counts them again.
        seen.text.as_ref().map_or_else(|| "NULL".to_owned(), |text| literal(text.as_bytes()))
    )
}

/// Makes a statement give up a little before we do: what is given up here and done there is a mess. MariaDB takes that with the
/// statement, MySQL only sees a comment.
pub fn bounded(statement: &str, seconds: u64) -> String {
    format!("/*M!100104 SET STATEMENT lock_wait_timeout = {seconds}, innodb_lock_wait_timeout = {seconds} FOR */ {statement}")
}

/// The same for all statements of a session, for MySQL.
pub fn bounds(seconds: u64) -> String {
    format!("SET SESSION lock_wait_timeout = {seconds}, SESSION innodb_lock_wait_timeout = {seconds}")
}

#[cfg(test)]
mod tests {
    use super::{literal, write};
    use crate::backend::remote::Row;

    #[test]
    fn nothing_of_a_value_is_read_as_sql() {
        assert_eq!(literal(b"a'\\\xff"), "X'61275cff'");
        let statement = write("'; DROP TABLE x", &Row::default(), 7, Some("\"; --"));
        assert!(!statement.contains("DROP") && !statement.contains("--"), "{statement}");
    }

    #[test]
    fn every_write_has_its_condition() {
        let seen = Row { version: Some(b"6".to_vec()), number: 6, text: Some("b".to_owned()), ..Row::default() };
        assert!(
            write("a", &seen, 7, None)
                .ends_with("WHERE name = X'61' AND version = 6 AND CAST(record AS BINARY) <=> X'62' AND format = 1")
        );
        assert!(write("a", &Row::default(), 7, None).starts_with("INSERT INTO"));
    }
}
