//! `serializer break`

use super::unlock;
use crate::backend;
use crate::claimant::ProcessClaimant;
use crate::cli::BreakArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::mutex::{self, Mutex, Whose};
use crate::owner::Place;
use crate::record::Outcome;
use crate::verdict::LocalJudge;

pub fn run(args: &BreakArgs, environment: &Environment) -> Result<(), Error> {
    let lock = environment.lock(&args.file, args.name.as_deref())?;
    let here = Place::here();
    // Only the token counts, for a lock of this process as well.
    let claimant = ProcessClaimant::discover(&here, None, false);
    let judge = LocalJudge::new(here, environment.orphans(None)?);
    let mut mutex = Mutex::new(backend::open(&lock)?, &judge);
    let location = lock.printable();
    let released = mutex.release(&claimant, Whose::Of(&args.token), Outcome::Unknown);
    let hint = "the token is not that of a holder: the lock has changed hands, or this is a fencing token; \
                `serializer status --json` shows both";
    let released = released.map_err(|error| match error {
        mutex::Error::NotOurs(_) => Error::mutex("break", &location, error).with_hint(hint),
        error => Error::mutex("break", &location, error),
    })?;
    unlock::report(&location, released);
    Ok(())
}
