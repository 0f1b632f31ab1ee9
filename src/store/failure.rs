//! Why an operation of a store failed, as a complete message: cannot `action` `location`: reason.

use std::fmt;

/// What a store answers.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why an operation failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The obstacle; without secrets, in lower case.
    pub why: String,
    /// The kind of reason.
    pub cause: Cause,
    /// What the user can do about it.
    pub hint: Option<String>,
    /// Whether the operation may have been done nevertheless.
    pub is_indefinite: bool,
    /// The operation.
    pub action: Option<String>,
    /// The place, printable and without secrets.
    pub location: Option<String>,
}

/// Kinds of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It may work soon.
    Transient,
    /// No connection is free, and an immediate retry keeps other processes from one.
    Full,
    /// It will not work until the user or an administrator acts.
    Permanent,
    /// The schema does not exist yet.
    NotPrepared,
    /// Another process holds a flock on the lock file; nothing was changed.
    Contended,
    /// The path names something that is not a lock.
    NotALock,
    /// The settings cannot be used.
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
        let (why, cause) = (why.into(), Cause::Transient);
        Self { why, cause, hint: None, is_indefinite: false, action: None, location: None }
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
        let why = "a newer version of this program has written it";
        Self::permanent(why).with_hint("use that version here, too")
    }

    /// The same failure, with what the user can do about it.
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The same failure, during this action.
    pub fn during_action(self, action: &str) -> Self {
        Self { action: Some(action.to_owned()), ..self }
    }

    /// The same failure, of an operation that may have been done nevertheless.
    pub fn indefinite(self) -> Self {
        Self { is_indefinite: true, ..self }
    }

    /// The same failure, at `location`, during this action if it has none that says more.
    pub fn during(self, action: &str, location: String) -> Self {
        Self {
            action: self.action.or_else(|| Some(action.to_owned())),
            location: Some(location),
            ..self
        }
    }
}

/// A failure with a place.
pub type Error = Failure;

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { why, is_indefinite, action, location, .. } = self;
        let (action, location) =
            (action.as_deref().unwrap_or("use"), location.as_deref().unwrap_or("…"));
        let more = if *is_indefinite { "; the write may or may not have happened" } else { "" };
        match self.cause {
            Cause::NotALock => write!(f, "`{location}` is not a lock file: {why}"),
            _ => write!(f, "cannot {action} `{location}`: {why}{more}"),
        }
    }
}
