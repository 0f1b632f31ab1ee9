//! What an error of a connection means: of the network, of TLS, of the client. What a server
//! answers is the engine's to judge.
//!
//! Only a server's refusal is definite. Once there is a connection, a statement that was not sent
//! and one without an answer look alike.

use sqlx::Error;

use super::address::Usual;
use crate::store::failure::Failure;
use crate::store::network::{sentence, tls_error, tls_problem, unanswered};

/// What was going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connecting: nothing was sent.
    Connect,
    /// Reading.
    Read,
    /// Writing.
    Write,
}

/// An error that is not an answer of `server`.
pub fn of(error: &Error, phase: Phase, server: &str, usual: &Usual) -> Failure {
    let failure = match error {
        _ if let Some(error) = tls_error(error) => {
            let is_about_trust = matches!(error, rustls::Error::InvalidCertificate(_));
            let hint = if is_about_trust { usual.roots_hint } else { usual.plain_hint };
            Failure::permanent(tls_problem(error)).with_hint(hint)
        }
        Error::Io(error) => unanswered(error, server),
        Error::Tls(error) if error.to_string().contains("not support TLS") => {
            Failure::permanent("the server does not encrypt connections")
                .with_hint(usual.plain_hint)
        }
        Error::Tls(error) => Failure::permanent(format!("TLS: {}", sentence(&error.to_string()))),
        Error::PoolTimedOut => no_answer(),
        // The server speaks, but not this protocol, or wants a password in an unknown way.
        Error::Protocol(text) if phase == Phase::Connect => {
            Failure::permanent(format!("cannot log in: {}", sentence(text)))
        }
        Error::Configuration(error) => Failure::permanent(sentence(&error.to_string())),
        other => Failure::transient(sentence(&other.to_string())),
    };
    Failure { is_indefinite: phase == Phase::Write, ..failure }
}

/// No answer within the time.
pub fn no_answer() -> Failure {
    Failure::transient("the server does not answer in time")
}

/// What to do about a server's refusal with this code.
pub fn hint(code: &str) -> Option<String> {
    let hint = match code {
        "28P01" | "1045" | "1698" => {
            "check user and password: that of the address, else the first line of \
             `SERIALIZER_PASSWORD_FILE`; for PostgreSQL, else `PGPASSWORD`, else that in \
             `~/.pgpass`"
        }
        "28000" => {
            "check the user's name; the server's `pg_hba.conf` says which users may connect from \
             where, and whether encrypted (`?sslmode=require`) or not (`?sslmode=disable`)"
        }
        "3D000" | "1044" | "1049" => {
            "create the database, and let the user in; or name another one at the end of the \
             address"
        }
        "42501" | "1142" | "1143" | "1227" => {
            "`serializer initialize --print-sql` prints the statements for an administrator, with \
             the rights that a user needs"
        }
        "3F000" | "42703" | "42883" | "1054" | "1364" | "1406" => {
            "another program's table may be called `serializer_locks`; name another database or \
             schema (PostgreSQL: `?options=-csearch_path%3DSCHEMA`)"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}
