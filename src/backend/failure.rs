//! Why a store did not do what it was asked to.

use std::fmt;

use crate::store::Scheme;

/// Why a store did not do it.
#[derive(Debug)]
pub struct Failure {
    /// What it says, or what is in the way; without secrets, lower case.
    pub why: String,
    /// What kind of reason that is.
    pub cause: Cause,
    /// What the user can do about it.
    pub hint: Option<String>,
    /// Whether it may have been done all the same.
    pub is_indefinite: bool,
    /// What was tried, if that says more than the caller knows: take over the lock file …
    pub action: Option<&'static str>,
}

/// Kinds of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It may work soon: the connection broke, the store starts, a deadlock.
    Transient,
    /// It may work later: there is no connection to be had, and who asks again at once keeps others from one.
    Full,
    /// It will not work until somebody does something.
    Permanent,
    /// The schema does not exist yet.
    NotPrepared,
    /// Another process keeps the lock file flocked; nothing was changed.
    Contended,
    /// The path names something that is not a lock.
    NotALock,
    /// The settings cannot be used. Nothing was tried.
    Unusable,
}

impl Cause {
    /// Whether it may work by itself.
    pub fn passes(self) -> bool {
        matches!(self, Self::Transient | Self::Full)
    }
}

impl Failure {
    /// It may work soon, and nothing was done.
    pub fn transient(why: impl Into<String>) -> Self {
        Self { why: why.into(), cause: Cause::Transient, hint: None, is_indefinite: false, action: None }
    }

    /// It will not work, and nothing was done.
    pub fn permanent(why: impl Into<String>) -> Self {
        Self { cause: Cause::Permanent, ..Self::transient(why) }
    }

    /// Says what the user can do about it.
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// It happened during this.
    pub fn during_action(self, action: &'static str) -> Self {
        Self { action: Some(action), ..self }
    }

    /// It may have been done all the same.
    pub fn indefinite(self) -> Self {
        Self { is_indefinite: true, ..self }
    }

    /// This program was built without it.
    pub fn not_built(scheme: Scheme) -> Self {
        Self::permanent(format!("this program was built without the store `{}`", scheme.name()))
            .with_hint(format!("`cargo install … --features {}`, or a released wheel, which has all stores", scheme.feature()))
    }

    /// As an error of the lock at `location`.
    pub fn during(self, action: &'static str, location: String) -> Error {
        let Self { why, cause, hint, is_indefinite, action: known } = self;
        Error { action: known.unwrap_or(action), location, why, hint, cause, is_indefinite }
    }
}

/// A failure of one register, as a complete message: what could not be done, to what, and why.
#[derive(Debug)]
pub struct Error {
    /// What was tried, and with what: read the lock …
    pub action: &'static str,
    /// The lock, printable and without secrets.
    pub location: String,
    /// What the store says, or what is in the way.
    pub why: String,
    /// What the user can do about it.
    pub hint: Option<String>,
    /// What kind of reason that is.
    pub cause: Cause,
    /// Whether it may have been done all the same.
    pub is_indefinite: bool,
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { action, location, why, .. } = self;
        match self.cause {
            Cause::NotALock => write!(f, "`{location}` is not a lock file: {why}"),
            Cause::Contended => write!(f, "another process keeps the lock file `{location}` locked (flock)"),
            _ if self.is_indefinite => {
                write!(f, "cannot {action} `{location}`: {why}; the write may or may not have happened")
            }
            _ => write!(f, "cannot {action} `{location}`: {why}"),
        }
    }
}

impl Error {
    /// Whether it may work soon.
    pub fn is_transient(&self) -> bool {
        self.cause.passes()
    }

    /// Whether the store had no connection to spare, which holders need more than waiters.
    pub fn is_full(&self) -> bool {
        self.cause == Cause::Full
    }
}
