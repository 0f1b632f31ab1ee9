//! `serializer unlock`

use crate::backend;
use crate::claimant::ProcessClaimant;
use crate::cli::UnlockArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::holder::Holder;
use crate::mutex::{Mutex, Released};
use crate::owner::Place;
use crate::verdict::LocalJudge;

pub fn run(args: &UnlockArgs, environment: &Environment) -> Result<(), Error> {
    let path = environment.lock_file(&args.file)?;
    let here = Place::here();
    let claimant = ProcessClaimant::discover(&here, environment.owner_pid(&args.owner)?);
    let judge = LocalJudge { here, orphans: environment.orphans(args.owner.orphans)? };

    let mut mutex = Mutex::new(backend::open(&path), &judge);
    let location = mutex.location();
    match mutex.release(&claimant, args.force).map_err(|error| Error::mutex("unlock", &location, error))? {
        Released::Own(_) => tracing::info!("unlocked `{location}`"),
        Released::Stale(stored, why) => {
            // Perhaps nobody wanted it any more; but perhaps the owner of a lock that was relied on ended too early.
            tracing::warn!("removed the stale lock `{location}` of {}: {why}", Holder::new(&stored));
        }
        Released::Forced(stored, held) => {
            tracing::warn!("took the lock `{location}` away from {}: {held}", Holder::new(&stored));
        }
    }
    Ok(())
}
