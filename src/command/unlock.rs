//! `serializer unlock` and `serializer break`

use std::time::Duration;

use rustix::process::Pid;
use serde_json::json;

use super::once;
use crate::cli::{BreakArgs, UnlockArgs};
use crate::command::ended::unlocked;
use crate::command::requester::ProcessRequester;
use crate::config::Environment;
use crate::error::Error;
use crate::events::emit;
use crate::exit_code::REFUSED;
use crate::lease;
use crate::lock::register::Register;
use crate::lock::staleness::{LocalLiveness, Orphans};
use crate::lock::{Mutex, ReleaseScope, Released};
use crate::record::Outcome;
use crate::store::Location;
use crate::sys::identity::HostIdentity;

pub fn run(args: &UnlockArgs, environment: &Environment) -> Result<(), Error> {
    if let Some(key) = &args.once {
        return once::unlock(args, key, environment);
    }
    let lock = environment.lock(&args.lock.file, args.lock.name.as_deref())?;
    let owner_pid = environment.owner_pid(args.owner.owner_pid)?;
    let scope = if args.force { ReleaseScope::Force } else { ReleaseScope::OwnOrStale };
    release("unlock", &lock, owner_pid, environment.orphans(args.owner.orphans)?, scope)
}

pub fn run_break(args: &BreakArgs, environment: &Environment) -> Result<(), Error> {
    let lock = environment.lock(&args.lock.file, args.lock.name.as_deref())?;
    // Only the token counts, for a lock of this process as well.
    let released =
        release("break", &lock, None, environment.orphans(None)?, ReleaseScope::Token(&args.token));
    let hint = "the lock may have changed hands, or this is a fencing token; `serializer status \
                --json` shows both";
    released.map_err(|error| if error.code == REFUSED { error.with_hint(hint) } else { error })
}

fn release(
    verb: &str,
    lock: &Location,
    owner_pid: Option<Pid>,
    orphans: Orphans,
    scope: ReleaseScope<'_>,
) -> Result<(), Error> {
    let here = HostIdentity::here();
    let requester = ProcessRequester::discover(&here, owner_pid, false);
    let judge = LocalLiveness::new(here.clone(), orphans);
    let location = lock.printable();
    let released =
        Mutex::new(Register::open(lock)?, &judge).release(&requester, scope, Outcome::Unknown);
    match released.map_err(|error| Error::mutex(verb, &location, error))? {
        Released::Own { stays, was } => {
            was.iter().for_each(|entry| lease::process::dismiss(entry, &here));
            emit("release", &location, json!({}));
            tracing::info!("{}", unlocked(&location, stays));
        }
        // Perhaps its owner ended too early.
        Released::Stale(former) => {
            tracing::warn!("removed stale lock `{location}` of {}: {}", former, former.verdict);
        }
        Released::Forced(holders) => {
            emit("break", &location, json!({}));
            for holding in holders {
                tracing::warn!("broke lock `{location}` of {}: {}", holding, holding.verdict);
            }
        }
    }
    Ok(())
}
