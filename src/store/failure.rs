//! Why an operation of a store failed.

use std::fmt;
use std::ops::Deref;

/// Why an operation failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The store's message, or the obstacle; without secrets, in lower case.
    pub why: String,
    /// The kind of reason.
    pub cause: Cause,
    /// What the user can do about it.
    pub hint: Option<String>,
    /// Whether the operation may have been done nevertheless.
    pub is_indefinite: bool,
    /// The operation, if this says more than the caller knows: take over the lock file …
    pub action: Option<&'static str>,
}

/// Kinds of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It may work soon: the connection broke, the store is starting, or there was a deadlock.
    Transient,
    /// It may work later: no connection is free, and an immediate retry keeps other processes from
    /// one.
    Full,
    /// It will not work until the user or an administrator acts.
    Permanent,
    /// The schema does not exist yet.
    NotPrepared,
    /// Another process holds a flock on the lock file; nothing was changed.
    Contended,
    /// The path names something that is not a lock.
    NotALock,
    /// The settings cannot be used. Nothing was tried.
    Unusable,
}

impl Cause {
    /// Whether it may work later, without any action.
    pub fn passes(self) -> bool {
        matches!(self, Self::Transient | Self::Full)
    }
}

impl Failure {
    /// A failure that may pass soon; nothing was done.
    pub fn transient(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            cause: Cause::Transient,
            hint: None,
            is_indefinite: false,
            action: None,
        }
    }

    /// A failure that does not pass; nothing was done.
    pub fn permanent(why: impl Into<String>) -> Self {
        Self { cause: Cause::Permanent, ..Self::transient(why) }
    }

    /// A failure that does not pass, and what the user can do about it; nothing was done.
    pub fn refused(why: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::permanent(why).with_hint(hint)
    }

    /// What is stored has a format that is not known yet.
    pub fn of_newer_version() -> Self {
        Self::permanent("a newer version of this program has written it")
            .with_hint("use that version here, too")
    }

    /// The same failure, with what the user can do about it.
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The same failure, during this action.
    pub fn during_action(self, action: &'static str) -> Self {
        Self { action: Some(action), ..self }
    }

    /// The same failure, of an operation that may have been done nevertheless.
    pub fn indefinite(self) -> Self {
        Self { is_indefinite: true, ..self }
    }

    /// The failure as an error of the lock at `location`.
    pub fn during(self, action: &str, location: String) -> Error {
        Error { action: self.action.unwrap_or(action).to_owned(), location, failure: self }
    }
}

/// A failure of one register, as a complete message: the action, the lock, and the reason.
#[derive(Debug)]
pub struct Error {
    /// The action that failed: read the lock …
    pub action: String,
    /// The lock, printable and without secrets.
    pub location: String,
    /// The reason.
    pub failure: Failure,
}

impl std::error::Error for Error {}

impl Deref for Error {
    type Target = Failure;

    fn deref(&self) -> &Failure {
        &self.failure
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { action, location, failure: Failure { why, cause, is_indefinite, .. } } = self;
        match cause {
            Cause::NotALock => write!(f, "`{location}` is not a lock file: {why}"),
            Cause::Contended => {
                write!(f, "another process keeps the lock file `{location}` locked (flock)")
            }
            _ if *is_indefinite => write!(
                f,
                "cannot {action} `{location}`: {why}; the write may or may not have happened"
            ),
            _ => write!(f, "cannot {action} `{location}`: {why}"),
        }
    }
}
