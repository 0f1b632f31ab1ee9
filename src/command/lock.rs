//! `serializer lock`

use super::progress::Progress;
use crate::backend;
use crate::claimant::ProcessClaimant;
use crate::cli::LockArgs;
use crate::config::{Environment, OnLost};
use crate::error::Error;
use crate::holder::Holder;
use crate::keeper::claimant::KeptClaimant;
use crate::keeper::{Charge, TokenHolder};
use crate::mutex::{self, Acquired, Grant, Mutex, Whose};
use crate::owner::Place;
use crate::process;
use crate::record::{Entry, Outcome};
use crate::verdict::LocalJudge;

pub fn run(args: &LockArgs, environment: &Environment) -> Result<(), Error> {
    let lock = environment.lock(&args.file)?;
    let waiting = environment.waiting(&args.waiting)?;
    let owner_pid = environment.owner_pid(&args.owner)?;
    let orphans = environment.orphans(args.owner.orphans)?;
    let on_lost = environment.on_lost(args.lost.on_lost)?.unwrap_or(OnLost::Warn);
    let request = environment.request(&args.request, &args.file, &lock)?;
    if args.print_token && !lock.is_shared() {
        let hint = "name one with `--store` or `SERIALIZER_STORE`; on one machine, the process that holds the lock is certain";
        return Err(Error::usage("cannot print a fencing token: only stores count", Some(hint.into())));
    }
    let here = Place::here();
    let owner = ProcessClaimant::discover(&here, owner_pid);
    let claimant = KeptClaimant::new(&owner, request.lease.is_some());
    let judge = LocalJudge::new(here, orphans);

    let mut mutex = Mutex::new(backend::open(&lock)?, &judge);
    let location = mutex.location();
    owner.owner().map_err(|error| Error::no_owner(&location, &error))?;
    let mut progress = Progress::new(waiting.max_attempts);
    let acquired = mutex.acquire(&claimant, &request, &waiting, &mut progress);
    progress.clear();
    let acquired =
        acquired.map_err(|error| Error::mutex("lock", &location, error).or_if_busy(args.waiting.conflict_exit_code))?;
    let entry = kept(&mut mutex, &claimant, &acquired).map_err(|error| Error::mutex("lock", &location, error))?;
    if let (Some((mut grant, entry)), Some(lease)) = (entry, request.lease) {
        mutex.refresh(&mut grant, lease).map_err(|error| Error::mutex("lock", &location, error))?;
        let charge = Charge { grant, lease };
        let begun = claimant.keeper().and_then(|keeper| keeper.keep(&lock, &entry, &charge, orphans, on_lost));
        if let Err(error) = begun {
            let _ = mutex.release(&TokenHolder(&charge.grant.token), Whose::OwnAlone, Outcome::Unknown);
            return Err(Error::failed(format!("cannot keep the lease of `{location}`: {}", backend::plain(&error))));
        }
    }
    report(&location, &owner.describe(), &acquired);
    match acquired.fencing().filter(|_| args.print_token) {
        Some(number) => super::print(format!("{number}\n").as_bytes()),
        None => Ok(()),
    }
}

/// What has to be kept, if it has to and nobody does.
fn kept(mutex: &mut Mutex<'_>, claimant: &KeptClaimant<'_>, acquired: &Acquired) -> Result<Option<(Grant, Entry)>, mutex::Error> {
    match acquired {
        Acquired::Free(grant) | Acquired::TakenOver(grant, _) => {
            Ok(claimant.made(&grant.token).map(|entry| (grant.clone(), entry)))
        }
        Acquired::AlreadyHeld(held) => {
            let is_unkept =
                |entry: &&Entry| entry.lease.is_some() && entry.keeper.is_none_or(|keeper| !process::is_running(keeper));
            // Whoever kept it has been killed.
            let Some(entry) = held.entry.as_ref().filter(is_unkept) else { return Ok(None) };
            let Some(token) = &entry.token else { return Ok(None) };
            let keeper = claimant.keeper().map_err(mutex::Error::Entry)?.identity();
            Ok(Some((mutex.renew(token, Some(keeper))?, entry.clone())))
        }
        Acquired::NotNeeded => Ok(None),
    }
}

fn report(location: &str, owner: &str, acquired: &Acquired) {
    match acquired {
        Acquired::Free(_) => tracing::info!("locked `{location}` for {owner}"),
        Acquired::TakenOver(_, from) => {
            tracing::info!("locked `{location}` for {owner}, taken over from {}: {}", Holder::new(from), from.verdict);
        }
        // Nobody asks for that here.
        Acquired::NotNeeded => {}
        Acquired::AlreadyHeld(held) => {
            tracing::warn!("`{location}` was already locked by {}", Holder::new(held));
        }
    }
}
