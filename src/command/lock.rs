//! `serializer lock`

use super::progress::Progress;
use crate::backend;
use crate::claimant::ProcessClaimant;
use crate::cli::LockArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::holder::Holder;
use crate::mutex::{Acquired, Mutex};
use crate::owner::Place;
use crate::verdict::LocalJudge;

pub fn run(args: &LockArgs, environment: &Environment) -> Result<(), Error> {
    let lock = environment.lock(&args.file)?;
    let waiting = environment.waiting(&args.waiting)?;
    let owner_pid = environment.owner_pid(&args.owner)?;
    let here = Place::here();
    let claimant = ProcessClaimant::discover(&here, owner_pid);
    let judge = LocalJudge::new(here, environment.orphans(args.owner.orphans)?);

    let mut mutex = Mutex::new(backend::open(&lock)?, &judge);
    let location = mutex.location();
    claimant.owner().map_err(|error| Error::no_owner(&location, &error))?;
    let mut progress = Progress::new(waiting.max_attempts);
    let acquired = mutex.acquire(&claimant, &environment.request(&args.request, &args.file, &lock)?, &waiting, &mut progress);
    progress.clear();
    let acquired = acquired.map_err(|error| Error::mutex("lock", &location, error).or_if_busy(args.waiting.conflict_exit_code));
    match acquired? {
        Acquired::Free(_) => tracing::info!("locked `{location}` for {}", claimant.describe()),
        Acquired::TakenOver(_, from) => {
            tracing::info!(
                "locked `{location}` for {}, taken over from {}: {}",
                claimant.describe(),
                Holder::new(&from),
                from.verdict
            );
        }
        // Nobody asks for that here.
        Acquired::NotNeeded => {}
        Acquired::AlreadyHeld(held) => {
            tracing::warn!("`{location}` was already locked by {}", Holder::new(&held));
        }
    }
    Ok(())
}
