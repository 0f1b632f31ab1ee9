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
    let location = match &args.name {
        Some(name) => environment.lock(&args.file, Some(name))?,
        None => environment.lock(&args.file, None)?,
    };
    let here = Place::here();
    // Only the token counts, for a lock of this process as well.
    let claimant = ProcessClaimant::discover(&here, None);
    let judge = LocalJudge::new(here, environment.orphans(None)?);
    let mut mutex = Mutex::new(backend::open(&location)?, &judge);
    let location = mutex.location();
    let released = mutex.release(&claimant, Whose::Of(&args.token), Outcome::Unknown);
    unlock::report(&location, released.map_err(|error| cannot(&location, error))?);
    Ok(())
}

fn cannot(location: &str, error: mutex::Error) -> Error {
    let is_anothers = matches!(error, mutex::Error::NotOurs(_));
    let error = Error::mutex("break", location, error);
    let hint =
        "no holder has this token: the lock has changed hands, or it is a fencing token; `serializer status --json` shows both";
    if is_anothers { error.with_hint(hint) } else { error }
}
