//! Everything that can end a command, as one line for people, with an exit code and a hint.

use crate::backend;
use crate::claimant::NoOwner;
use crate::exit_code::ExitCode;
use crate::holder::in_full;
use crate::mutex::{self, Lost};
use crate::verdict::{Held, Holding, Unknown};

/// Why a command failed. The message is complete.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    message: String,
    hint: Option<String>,
    code: ExitCode,
}

impl Error {
    /// A wrong command line or setting.
    pub fn usage(message: impl Into<String>, hint: Option<String>) -> Self {
        Self { message: message.into(), hint, code: ExitCode::Usage }
    }

    /// Something else that could not be done.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: ExitCode::Failed }
    }

    /// A command that could not be run.
    pub fn command(message: impl Into<String>, code: ExitCode) -> Self {
        Self { message: message.into(), hint: None, code }
    }

    /// The lock at `location` was not the command's any more when that ended.
    pub fn lost(location: &str) -> Self {
        let message =
            format!("`{location}` was not locked by the command any more when it ended, so that it may not have run alone");
        Self { message, hint: None, code: ExitCode::Lost }
    }

    /// The lease of the lock at `location` was over when the command ended, and for this reason nobody knows who has had it since.
    pub fn not_kept(location: &str, error: &mutex::Error) -> Self {
        let message =
            format!("the lease of `{location}` was over when the command ended, so that it may not have run alone: {error}");
        Self { message, hint: None, code: ExitCode::Lost }
    }

    /// `command` was ended because the lock at `location` was lost, for this reason.
    pub fn ended(location: &str, command: &str, why: &str) -> Self {
        let message = format!("ended `{command}`, because its lock `{location}` was lost: {why}");
        let hint =
            "it may not have run alone, if it did not end in time; a longer `SERIALIZER_LEASE_SECONDS` outlasts longer outages";
        Self { message, hint: Some(hint.into()), code: ExitCode::Lost }
    }

    /// The lease of the lock at `location` was over, or nearly so, before it was kept.
    pub fn late(location: &str) -> Self {
        let message = format!("cannot lock `{location}`: its lease was over before anybody kept it");
        let hint = "a longer `SERIALIZER_LEASE_SECONDS` leaves more time";
        Self { message, hint: Some(hint.into()), code: ExitCode::Lost }
    }

    /// `command` was not begun, because the lock at `location` was lost before that.
    pub fn lost_before(location: &str, command: &str) -> Self {
        let message = format!("cannot run `{command}`: its lock `{location}` was lost before it began");
        Self { message, hint: None, code: ExitCode::Lost }
    }

    /// Says what the user can do about it.
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// There is nobody to own the lock at `location`.
    pub fn no_owner(location: &str, error: &NoOwner) -> Self {
        let code = if error.has_ended { ExitCode::Failed } else { ExitCode::Usage };
        Self { message: format!("cannot lock `{location}`: {error}"), hint: Some(error.hint.to_owned()), code }
    }

    /// A mutex's answer to `verb` (lock, unlock) on `location`.
    pub fn mutex(verb: &str, location: &str, error: mutex::Error) -> Self {
        let message = format!("cannot {verb} `{location}`");
        match error {
            mutex::Error::Busy(attempts, holders) => Self {
                message: format!(
                    "{message}: gave up after {attempts} attempt{}, held by {}",
                    if attempts == 1 { "" } else { "s" },
                    in_full(&holders)
                ),
                hint: holders.iter().find_map(hint_for),
                code: ExitCode::Busy,
            },
            mutex::Error::NotOurs(holders) => Self {
                message: format!("{message}: held by {}", in_full(&holders)),
                hint: holders
                    .iter()
                    .find_map(hint_for)
                    .or_else(|| Some("the process that locked must unlock; `--force` takes the lock away from it".into())),
                code: ExitCode::Refused,
            },
            error @ mutex::Error::HeldOtherwise(_) => Self {
                message: format!("{message}: {error}"),
                hint: Some("`serializer unlock` first".into()),
                code: ExitCode::Failed,
            },
            error @ mutex::Error::NoClock => Self::usage(
                format!("{message}: {error}"),
                Some("`--hold-at-least` works with PostgreSQL, MySQL and MariaDB, and on one machine".into()),
            ),
            mutex::Error::Lost(how, holders) => Self {
                message: match (how, holders.is_empty()) {
                    (Lost::Broken, true) => format!("your lock on `{location}` was broken"),
                    (Lost::Broken, false) => format!("your lock on `{location}` was broken; held now by {}", in_full(&holders)),
                    (_, true) => format!("{message}, because the lock was lost: {how}"),
                    (_, false) => format!("{message}, because the lock was lost: {how}; held now by {}", in_full(&holders)),
                },
                hint: Some(match verb {
                    "lock" => {
                        "what has run since it was locked the last time may not have run alone; it can be locked again".into()
                    }
                    _ => "what ran under it may not have run alone".into(),
                }),
                code: ExitCode::Lost,
            },
            mutex::Error::Backend(error) => error.into(),
            error @ mutex::Error::NotLocked if location.contains("://") => Self::failed(format!("{message}: {error}")).with_hint(
                "a lock is released when its owner ends, by default the process that has started `lock`: `--owner-pid $$`",
            ),
            error @ (mutex::Error::Absent | mutex::Error::NotLocked | mutex::Error::Entry(_)) => {
                Self::failed(format!("{message}: {error}"))
            }
        }
    }

    /// Ends with the exit code `code` if the lock was held.
    pub fn or_if_busy(self, code: u8) -> Self {
        if self.code == ExitCode::Busy { Self { code: ExitCode::Conflict(code), ..self } } else { self }
    }

    /// Ends with the exit code `code` if it failed for no more special reason.
    pub fn or_if_failed(self, code: u8) -> Self {
        if self.code == ExitCode::Failed { Self { code: ExitCode::Command(code), ..self } } else { self }
    }

    /// Whether the program fails because of it: `-E 0` makes a busy lock a success.
    pub fn is_failure(&self) -> bool {
        self.code != ExitCode::Conflict(0)
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// How the program is to end.
    pub fn exit_code(&self) -> ExitCode {
        self.code
    }
}

impl From<backend::Error> for Error {
    fn from(error: backend::Error) -> Self {
        let code = if error.cause == backend::Cause::Unusable { ExitCode::Usage } else { ExitCode::Failed };
        Self { message: error.to_string(), hint: error.failure.hint, code }
    }
}

fn hint_for(holding: &Holding) -> Option<String> {
    match holding.verdict {
        Held::RunGoesOn { .. } => Some("`SERIALIZER_ORPHANS=ignore` does not wait for such processes".into()),
        Held::Unknown(Unknown::OtherPidNamespace) => Some(
            "containers that share a PID namespace see each other's processes (`docker run --pid=host`, \
             `shareProcessNamespace: true`); when you are certain that it has ended, `serializer unlock --force`"
                .into(),
        ),
        // Where there is no clock, only who watches for so long can tell.
        Held::Leased(remaining)
            if holding.entry.as_ref().and_then(|entry| entry.lease).is_some_and(|lease| lease.expires.is_none()) =>
        {
            Some(format!(
                "whether it is still renewed is seen by whoever waits for longer, as with `--timeout {}s`",
                remaining.as_secs() + 5
            ))
        }
        Held::Unknown(Unknown::OtherHost | Unknown::OtherBoot) => {
            Some("when you are certain that it has ended, `serializer unlock --force`".into())
        }
        _ => None,
    }
}
