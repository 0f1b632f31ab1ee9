//! `serializer unlock` and `serializer break`

use std::time::Duration;

use super::once;
use crate::backend;
use crate::claimant::ProcessClaimant;
use crate::cli::{BreakArgs, UnlockArgs};
use crate::config::Environment;
use crate::error::Error;
use crate::holder::Holder;
use crate::keeper;
use crate::local_time::short;
use crate::mutex::{self, Mutex, Released, Whose};
use crate::owner::Place;
use crate::record::Outcome;
use crate::verdict::LocalJudge;

pub fn run(args: &UnlockArgs, environment: &Environment) -> Result<(), Error> {
    if let Some(key) = &args.once {
        return once::unlock(args, key, environment);
    }
    let lock = environment.lock(&args.file, None)?;
    let here = Place::here();
    let claimant = ProcessClaimant::discover(&here, environment.owner_pid(args.owner.owner_pid)?, false);
    let judge = LocalJudge::new(here.clone(), environment.orphans(args.owner.orphans)?);

    let mut mutex = Mutex::new(backend::open(&lock)?, &judge);
    let location = lock.printable();
    let whose = if args.force { Whose::Anybodys } else { Whose::Own };
    let released = mutex.release(&claimant, whose, Outcome::Unknown);
    let released = released.map_err(|error| Error::mutex("unlock", &location, error))?;
    if let Released::Own { was, .. } = &released {
        was.iter().for_each(|entry| keeper::process::dismiss(entry, &here));
    }
    report(&location, released);
    Ok(())
}

pub fn run_break(args: &BreakArgs, environment: &Environment) -> Result<(), Error> {
    let lock = environment.lock(&args.file, args.name.as_deref())?;
    let here = Place::here();
    // Only the token counts, for a lock of this process as well.
    let claimant = ProcessClaimant::discover(&here, None, false);
    let judge = LocalJudge::new(here, environment.orphans(None)?);
    let released = Mutex::new(backend::open(&lock)?, &judge).release(&claimant, Whose::Of(&args.token), Outcome::Unknown);
    let location = lock.printable();
    let hint = "the token is not that of a holder: the lock has changed hands, or this is a fencing token; \
                `serializer status --json` shows both";
    let released = released.map_err(|error| match error {
        mutex::Error::NotOurs(_) => Error::mutex("break", &location, error).with_hint(hint),
        error => Error::mutex("break", &location, error),
    })?;
    report(&location, released);
    Ok(())
}

/// What is said about an own lock that was released.
pub fn unlocked(location: &str, stays: Option<Duration>) -> String {
    let rest = stays.map(|stays| format!("; it stays reserved for {} (`--hold-at-least`)", short(stays)));
    format!("unlocked `{location}`{}", rest.unwrap_or_default())
}

/// Tells what was released.
fn report(location: &str, released: Released) {
    match released {
        Released::Own { stays, .. } => tracing::info!("{}", unlocked(location, stays)),
        Released::Stale(former) => {
            // Perhaps its owner ended too early.
            tracing::warn!("removed stale lock `{location}` of {}: {}", Holder::new(&former), former.verdict);
        }
        Released::Forced(holders) => {
            for holding in holders {
                tracing::warn!("broke lock `{location}` of {}: {}", Holder::new(&holding), holding.verdict);
            }
        }
    }
}
