//! What an error of a connection means: of the network, of TLS, of the client. What a server
//! answers is the engine's to judge.
//!
//! Only a server's refusal is definite. Once there is a connection, a statement that was not sent
//! and one without an answer look alike.

use std::io::{self, ErrorKind};

use sqlx::Error;

use super::address::{Server, Usual};
use super::tls;
use crate::backend::failure::Failure;
use crate::backend::network::{sentence, tls_error};
use crate::backend::plain;
use crate::printable;

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

/// An error that is not a server's answer.
pub fn of(error: &Error, phase: Phase, usual: &Usual) -> Failure {
    let failure = match error {
        _ if let Some(error) = tls_error(error) => tls::failure(error, usual),
        Error::Io(error) => of_io(error),
        Error::Tls(error) if error.to_string().contains("not support TLS") => {
            Failure::permanent("the server does not encrypt connections").with_hint(usual.plain_hint)
        }
        Error::Tls(error) => Failure::permanent(format!("TLS: {}", sentence(&error.to_string()))),
        Error::PoolTimedOut => no_answer(),
        // The server speaks, but not this protocol, or wants a password in an unknown way.
        Error::Protocol(text) if phase == Phase::Connect => Failure::permanent(format!("cannot log in: {}", sentence(text))),
        Error::Configuration(error) => Failure::permanent(sentence(&error.to_string())),
        other => Failure::transient(sentence(&other.to_string())),
    };
    if phase == Phase::Write { failure.indefinite() } else { failure }
}

/// No answer within the time.
pub fn no_answer() -> Failure {
    Failure::transient("the server does not answer in time")
}

fn of_io(error: &io::Error) -> Failure {
    let why = plain(error).to_string();
    match error.kind() {
        // A socket file whose server lets no more in would block.
        ErrorKind::TimedOut | ErrorKind::WouldBlock => no_answer(),
        ErrorKind::UnexpectedEof => Failure::transient("the server closed the connection"),
        ErrorKind::PermissionDenied | ErrorKind::InvalidInput | ErrorKind::InvalidData => Failure::permanent(why),
        _ => Failure::transient(why),
    }
}

/// Why there is no connection to a server.
pub fn of_connecting(error: &Error, (host, port): &Server, usual: &Usual) -> Failure {
    let failure = of(error, Phase::Connect, usual);
    // `InvalidData` is about a certificate.
    if !matches!(error, Error::Io(error) if error.kind() != ErrorKind::InvalidData) {
        return failure;
    }
    // Only the text tells an unknown name from a resolver that fails.
    let said = failure.why.to_lowercase();
    let passes = said.contains("temporary") || said.contains("try again");
    let is_unknown = said.contains("failed to lookup address information") && !passes;
    let why = format!("cannot connect to `{}:{port}`: {}", printable::field(host), failure.why);
    if is_unknown { Failure::permanent(why) } else { Failure { why, ..failure } }
}

/// What to do about a server's refusal with this code.
pub fn hint(code: &str) -> Option<String> {
    let hint = match code {
        "28P01" | "1045" | "1698" => {
            "check user and password: that of the address, else the first line of `SERIALIZER_PASSWORD_FILE`; for PostgreSQL, else \
             `PGPASSWORD`, else that in `~/.pgpass`"
        }
        "28000" => {
            "check the user's name; the server's `pg_hba.conf` says which users may connect from where, and whether encrypted \
             (`?sslmode=require`) or not (`?sslmode=disable`)"
        }
        "3D000" | "1044" | "1049" => "create the database, and let the user in; or name another one at the end of the address",
        "42501" | "1142" | "1143" | "1227" => {
            "`serializer initialize --print-sql` prints the statements for an administrator, with the rights that a user needs"
        }
        "3F000" | "42703" | "42883" | "1054" | "1364" | "1406" => {
            "another program's table may be called `serializer_locks`; name another database or schema \
             (PostgreSQL: `?options=-csearch_path%3DSCHEMA`)"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}
