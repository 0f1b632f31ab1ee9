//! Messages about a lock that was acquired, released or lost; the end of a command, and its meaning
//! for the lock.

use std::time::{Duration, Instant};

use serde_json::json;

use super::job::Job;
use crate::error::Error;
use crate::events::emit;
use crate::exit_code::{DONE, LOST};
use crate::lock::staleness::{Holding, StaleHolder, rounded_up};
use crate::lock::{self, Lost};
use crate::store::Location;

/// The hint after a loss that an outage has caused.
pub const LONGER: &str = "a longer `SERIALIZER_LEASE_SECONDS` survives longer outages";

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

/// Reports the release of a lock after its command has ended with `code`. Fails if the command has
/// succeeded, but perhaps not alone. `was_good`, of a lease, says that it had not expired then.
pub fn settle(
    (lock, job): (&Location, &Job),
    command: &str,
    code: u8,
    released: Result<Option<Duration>, lock::Error>,
    was_good: Option<bool>,
) -> Result<(), Error> {
    let lost = |why: &str, holders: &[Holding]| (false, Error::lost(lock, why, holders));
    let gone = format!("it was not held any more when `{command}` ended");
    let (is_harmless, error) = match released {
        Ok(stays) => {
            emit("release", lock, json!({ "command": command, "exit_code": code }));
            say(job.is_verbose, &unlocked(lock, stays));
            return Ok(());
        }
        Err(lock::Error::NotLocked) => lost(&gone, &[]),
        Err(lock::Error::Lost(how, holders)) if how != Lost::Expired => {
            lost(&how.to_string(), &holders)
        }
        // Without holders, the lock kept changing.
        Err(lock::Error::NotOurs(holders)) if !holders.is_empty() => lost(&gone, &holders),
        Err(error) if was_good == Some(false) => {
            lost(&format!("its lease expired before `{command}` ended: {error}"), &[])
        }
        // A lease that is not renewed expires.
        Err(error) => (was_good.is_some(), Error::mutex("unlock", lock, error)),
    };
    if code == DONE && error.code != LOST && job.request.once.is_some() {
        let again = format!("`{command}` has succeeded, but may run again");
        return Err(error.during(&again));
    }
    if code == DONE && !is_harmless {
        return Err(error);
    }
    tracing::warn!("{error}");
    Ok(())
}

/// The loss of a lease that was not renewed in time.
pub fn expired(lock: &Location) -> Error {
    Error::lost(lock, "its lease expired before it could be renewed", &[]).with_hint(LONGER)
}

/// Logs a message that only `--verbose` shows.
pub fn say(is_verbose: bool, message: &str) {
    match is_verbose {
        true => tracing::info!("{message}"),
        false => tracing::debug!("{message}"),
    }
}

/// The message about a lock that was acquired for `owner`, perhaps after a wait or from a former
/// holder. Also writes the event.
pub fn locked(
    lock: &Location,
    owner: &str,
    (begun, after): (Instant, &str),
    from: Option<&StaleHolder>,
) -> String {
    let (event, from) = match from {
        Some(from) => ("takeover", format!(", taken over from {from}: {}", from.verdict)),
        None => ("acquire", String::new()),
    };
    emit(event, lock, json!({ "waited_seconds": begun.elapsed().as_secs_f64() }));
    format!("locked `{}` for {owner}{after}{from}", lock.name())
}

/// The message about an own lock that was released.
pub fn unlocked(lock: &Location, stays: Option<Duration>) -> String {
    let rest = stays
        .map(|stays| format!("; it stays reserved for {} (`--hold-at-least`)", rounded_up(&stays)));
    format!("unlocked `{}`{}", lock.name(), rest.unwrap_or_default())
}
