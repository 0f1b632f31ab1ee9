//! How a command ended, and what that means for its lock.

use std::time::Duration;

use crate::error::Error;
use crate::exit_code::{DONE, LOST};
use crate::lock::staleness::rounded_up;
use crate::lock::{self, Lost, Request};
use crate::record::Outcome;

const NOT_ALONE: &str = ", so that it may not have run alone";

/// How a command ended.
pub struct Ran {
    pub code: u8,
    pub how: String,
    /// The number of the run of a key.
    pub number: Option<u32>,
}

/// How the run of a task ended that its scheduler ended.
pub const INTERRUPTED: &str = "interrupted: its scheduler has ended";

/// The exit code of a command that was stopped and says that all is well: 128 + SIGTERM.
pub const STOPPED: u8 = 143;

/// What counts of the end of a command that kept its lock.
pub fn outcome(request: &Request, code: u8, is_stopped: bool, how: &str) -> Outcome {
    match code {
        // Another scheduler runs it again.
        _ if how == INTERRUPTED => Outcome::Unknown,
        // A command may end with 0 when it is told to end.
        DONE if is_stopped => Outcome::Failed,
        DONE if request.skip_if_done || request.once.is_some() => Outcome::Succeeded,
        _ if request.once.is_some() => Outcome::Failed,
        _ => Outcome::Unknown,
    }
}

/// Why a lock could not be given back, and whether the command has certainly run alone all the
/// same. `was_good`, of a lease, says that it had not expired when the command ended.
pub fn not_released(location: &str, error: lock::Error, was_good: Option<bool>) -> (bool, Error) {
    let is_taken = match &error {
        lock::Error::NotLocked
        | lock::Error::Lost(Lost::TakenOver | Lost::Broken | Lost::Gone, _) => true,
        // No holders: it has changed all the time.
        lock::Error::NotOurs(holders) => !holders.is_empty(),
        _ => false,
    };
    match was_good {
        _ if is_taken => (
            false,
            Error::new(
                LOST,
                format!(
                    "`{location}` was not locked by the command any more when it ended{NOT_ALONE}"
                ),
            ),
        ),
        Some(false) => (
            false,
            Error::new(
                LOST,
                format!(
                    "the lease of `{location}` was over when the command ended{NOT_ALONE}: {error}"
                ),
            ),
        ),
        // A lease that is not renewed expires.
        Some(true) | None => (was_good.is_some(), Error::mutex("unlock", location, error)),
    }
}

/// What is said about an own lock that was released.
pub fn unlocked(location: &str, stays: Option<Duration>) -> String {
    let rest = stays
        .map(|stays| format!("; it stays reserved for {} (`--hold-at-least`)", rounded_up(&stays)));
    format!("unlocked `{location}`{}", rest.unwrap_or_default())
}
