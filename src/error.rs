//! Everything that can end a command, as one line for people, with an exit code and a hint.

use crate::backend;
use crate::claimant::NoOwner;
use crate::exit_code::ExitCode;
use crate::holder::in_full;
use crate::mutex::{self, Lost};
use crate::verdict::{Held, Holding, Unknown};

const NOT_ALONE: &str = ", so that it may not have run alone";

/// Why a command failed. The message is complete.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    message: String,
    hint: Option<String>,
    code: ExitCode,
}

impl Error {
    fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code }
    }

    /// A wrong command line or setting.
    pub fn usage(message: impl Into<String>, hint: Option<String>) -> Self {
        Self { hint, ..Self::new(ExitCode::Usage, message) }
    }

    /// Something else that could not be done.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Failed, message)
    }

    /// A command that could not be run.
    pub fn command(message: impl Into<String>, code: ExitCode) -> Self {
        Self::new(code, message)
    }

    /// The lock at `location` was not the command's any more when that ended.
    pub fn lost(location: &str) -> Self {
        let message = format!("`{location}` was not locked by the command any more when it ended");
        Self::new(ExitCode::Lost, message + NOT_ALONE)
    }

    /// The lease of the lock at `location` had expired when the command ended, and its later holders are unknown.
    pub fn not_kept(location: &str, error: &mutex::Error) -> Self {
        Self::new(ExitCode::Lost, format!("the lease of `{location}` was over when the command ended{NOT_ALONE}: {error}"))
    }

    /// `command` was ended because the lock at `location` was lost, for this reason.
    pub fn ended(location: &str, command: &str, why: &str) -> Self {
        Self::new(ExitCode::Lost, format!("ended `{command}`, because its lock `{location}` was lost: {why}")).with_hint(
            "it may not have run alone, if it did not end in time; a longer `SERIALIZER_LEASE_SECONDS` outlasts longer outages",
        )
    }

    /// The lease of the lock at `location` had expired, or nearly so, before it was kept.
    pub fn late(location: &str) -> Self {
        Self::new(ExitCode::Lost, format!("cannot lock `{location}`: its lease was over before anybody kept it"))
            .with_hint("a longer `SERIALIZER_LEASE_SECONDS` leaves more time")
    }

    /// `command` was not begun, because the lock at `location` was lost before that.
    pub fn lost_before(location: &str, command: &str) -> Self {
        Self::new(ExitCode::Lost, format!("cannot run `{command}`: its lock `{location}` was lost before it began"))
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
        use mutex::Error as E;
        let message = format!("cannot {verb} `{location}`");
        match error {
            E::Backend(error) => error.into(),
            E::Busy(attempts, holders) => {
                let s = if attempts == 1 { "" } else { "s" };
                let why = format!("gave up after {attempts} attempt{s}, held by {}", in_full(&holders));
                Self { hint: holders.iter().find_map(hint_for), ..Self::new(ExitCode::Busy, format!("{message}: {why}")) }
            }
            E::NotOurs(holders) => {
                let hint = holders.iter().find_map(hint_for);
                let hint =
                    hint.unwrap_or_else(|| "the process that locked must unlock; `--force` takes the lock away from it".into());
                Self::new(ExitCode::Refused, format!("{message}: held by {}", in_full(&holders))).with_hint(hint)
            }
            E::Lost(how, holders) => {
                let lost = match how {
                    Lost::Broken => format!("your lock on `{location}` was broken"),
                    how => format!("{message}, because the lock was lost: {how}"),
                };
                let now = if holders.is_empty() { String::new() } else { format!("; held now by {}", in_full(&holders)) };
                Self::new(ExitCode::Lost, lost + &now).with_hint(match verb {
                    "lock" => "what has run since it was locked the last time may not have run alone; it can be locked again",
                    _ => "what ran under it may not have run alone",
                })
            }
            E::HeldOtherwise(_) => Self::failed(format!("{message}: {error}")).with_hint("`serializer unlock` first"),
            E::NoClock => Self::new(ExitCode::Usage, format!("{message}: {error}"))
                .with_hint("`--hold-at-least` works with PostgreSQL, MySQL and MariaDB, and on one machine"),
            E::NotLocked if location.contains("://") => Self::failed(format!("{message}: {error}")).with_hint(
                "a lock is released when its owner ends, by default the process that has started `lock`: `--owner-pid $$`",
            ),
            E::Absent | E::NotLocked | E::Entry(_) => Self::failed(format!("{message}: {error}")),
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
    let lease = holding.entry.as_ref().and_then(|entry| entry.lease);
    Some(match holding.verdict {
        Held::RunGoesOn { .. } => "`SERIALIZER_ORPHANS=ignore` does not wait for such processes".to_owned(),
        Held::Unknown(Unknown::OtherPidNamespace) => {
            "containers that share a PID namespace see each other's processes (`docker run --pid=host`, \
             `shareProcessNamespace: true`); when you are certain that it has ended, `serializer unlock --force`"
                .to_owned()
        }
        // Where there is no clock, only a process that watches for so long can tell.
        Held::Leased(remaining) if lease.is_some_and(|lease| lease.expires.is_none()) => {
            format!("whether it is still renewed is seen by waiting for longer, as with `--timeout {}s`", remaining.as_secs() + 5)
        }
        Held::Unknown(Unknown::OtherHost | Unknown::OtherBoot) => {
            "when you are certain that it has ended, `serializer unlock --force`".to_owned()
        }
        _ => return None,
    })
}
