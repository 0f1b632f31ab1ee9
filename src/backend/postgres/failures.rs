//! What an error of the server, or of the way to it, means.

use std::error::Error as _;
use std::io;

use tokio_postgres::Error;
use tokio_postgres::error::{DbError, Severity, SqlState};

use super::tls::WORDS;
use crate::backend::network::{sentence, tls};
use crate::backend::plain;
use crate::backend::remote::{Cause, Failure};

/// Classes of errors that pass: connections, transactions that were rolled back, resources, the operator, the system.
const PASSING: [&str; 5] = ["08", "40", "53", "57", "58"];

/// What is said of an error, which `was_write` if it answers a statement that was to change something.
pub fn of(error: &Error, was_write: bool) -> Failure {
    if let Some(error) = error.as_db_error() {
        return of_server(error, was_write);
    }
    let (mut innermost, mut in_between): (&dyn std::error::Error, _) = (error, error.source());
    // Ends with the innermost one.
    while let Some(source) = in_between {
        (innermost, in_between) = (source, source.source());
    }
    if let Some(error) = innermost.downcast_ref::<io::Error>() {
        let failure = of_system(error);
        return if was_write { Failure { is_indefinite: true, ..failure } } else { failure };
    }
    if let Some(error) = innermost.downcast_ref::<rustls::Error>() {
        return tls::failure(error, &WORDS);
    }
    let text = sentence(&innermost.to_string());
    if error.is_closed() {
        let closed = Failure::transient("the server closed the connection");
        return if was_write { closed.indefinite() } else { closed };
    }
    match text.as_str() {
        "password missing" => Failure::permanent("the server asks for a password")
            .with_hint("`SERIALIZER_PASSWORD_FILE` names a file with it; `PGPASSWORD` and `~/.pgpass` are read, too"),
        "server does not support TLS" => Failure::permanent("the server does not encrypt connections")
            .with_hint("`?sslmode=prefer` at the end of the address does without if it has to"),
        _ if was_write => Failure::permanent(text).indefinite(),
        _ => Failure::permanent(text),
    }
}

/// No answer within the time. What was sent may be done yet.
pub fn no_answer(was_write: bool) -> Failure {
    let failure = Failure::transient("the server does not answer in time");
    if was_write { failure.indefinite() } else { failure }
}

fn of_server(error: &DbError, was_write: bool) -> Failure {
    let why = sentence(error.message());
    let code = error.code();
    let cause = match code {
        &SqlState::UNDEFINED_TABLE => Cause::NotPrepared,
        &SqlState::READ_ONLY_SQL_TRANSACTION | &SqlState::LOCK_NOT_AVAILABLE | &SqlState::OBJECT_IN_USE => Cause::Transient,
        &SqlState::TOO_MANY_CONNECTIONS => Cause::Full,
        _ if PASSING.iter().any(|class| code.code().starts_with(class)) => Cause::Transient,
        _ => Cause::Permanent,
    };
    let hint = match code {
        &SqlState::INVALID_PASSWORD => Some(
            "the password is that of the address, else the first line of `SERIALIZER_PASSWORD_FILE`, else `PGPASSWORD`, else \
             that in `~/.pgpass`",
        ),
        &SqlState::INVALID_AUTHORIZATION_SPECIFICATION => Some(
            "check the user's name; the server's `pg_hba.conf` says who may connect from where, and whether encrypted (`?sslmode=require`)",
        ),
        &SqlState::INVALID_CATALOG_NAME => Some("create the database, or name another one at the end of the address"),
        &SqlState::INSUFFICIENT_PRIVILEGE => Some(
            "`serializer initialize --print-sql` prints what somebody who has the right to can run, who then lets you use the \
             table: `GRANT SELECT, INSERT, UPDATE ON serializer_locks TO …`",
        ),
        &SqlState::READ_ONLY_SQL_TRANSACTION => Some("the server, or the database, is read-only: a standby, perhaps"),
        &SqlState::INVALID_SCHEMA_NAME => {
            Some("the table is made in the first schema of the `search_path`; `?options=-csearch_path%3DSCHEMA` names one")
        }
        &SqlState::UNDEFINED_COLUMN | &SqlState::UNDEFINED_FUNCTION => {
            Some("there is another table `serializer_locks`; `?options=-csearch_path%3DSCHEMA` names a schema of its own")
        }
        _ => None,
    };
    // An ordinary error rolls back. But one of a connection may come from a pooler that has lost its own, and one that ends the
    // session may, for all that is promised, come after the end of the transaction.
    let is_fatal = error.parsed_severity().is_none_or(|severity| matches!(severity, Severity::Fatal | Severity::Panic));
    let is_unknown = code == &SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN || code.code().starts_with("08");
    Failure { why, cause, hint: hint.map(str::to_owned), is_indefinite: was_write && (is_fatal || is_unknown) }
}

/// What the system says about a connection, or an attempt to make one.
pub fn of_system(error: &io::Error) -> Failure {
    let why = plain(error).to_string();
    // rustls puts its own errors into such ones.
    if let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        return tls::failure(error, &WORDS);
    }
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => Failure::permanent(why),
        io::ErrorKind::UnexpectedEof => Failure::transient("the server closed the connection"),
        _ => Failure::transient(why),
    }
}
