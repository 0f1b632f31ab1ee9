//! `serializer lock`

use super::progress::Progress;
use crate::backend;
use crate::claimant::ProcessClaimant;
use crate::cli::LockArgs;
use crate::config::{Environment, OnLost};
use crate::error::Error;
use crate::holder::Holder;
use crate::keeper::claimant::KeptClaimant;
use crate::keeper::process::Keeper;
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
        // What is held already has the lease that it was acquired with.
        let lease = entry.lease.map_or(lease, |own| own.duration);
        mutex.refresh(&mut grant, lease).map_err(|error| Error::mutex("lock", &location, error))?;
        let charge = Charge { grant, lease };
        let begun = claimant.keeper().and_then(|keeper| keeper.keep(&lock, &entry, &charge, orphans, on_lost));
        let begun = match begun {
            // Whoever was stopped meanwhile, or has waited for long, may not have it any more.
            Ok(()) if charge.is_given_up() => match mutex.renew(&charge.grant.token, None) {
                Ok(_) => Ok(()),
                Err(mutex::Error::Lost(..)) => Err(Error::late(&location)),
                Err(error) => Err(Error::mutex("lock", &location, error)),
            },
            Err(_) if charge.is_given_up() => Err(Error::late(&location)),
            begun => {
                begun.map_err(|error| Error::failed(format!("cannot keep the lease of `{location}`: {}", backend::plain(&error))))
            }
        };
        if let Err(error) = begun {
            // Whatever orders it has had: nobody relies on the lock, so that nobody must keep it.
            let _ = claimant.keeper().map(Keeper::kill);
            let _ = mutex.release(&TokenHolder(&charge.grant.token), Whose::OwnAlone, Outcome::Unknown);
            return Err(error);
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
            let made = claimant.made(&grant.token).map_err(mutex::Error::Entry)?;
            Ok(made.map(|entry| (grant.clone(), entry)))
        }
        Acquired::AlreadyHeld(held) => {
            // Whoever kept it has been killed, or has been made just now, and has had no orders yet.
            let is_kept = |keeper| process::is_running(keeper) && !claimant.has_made(keeper);
            let Some(entry) = held.entry.as_ref().filter(|entry| entry.lease.is_some()) else { return Ok(None) };
            let Some(token) = &entry.token else { return Ok(None) };
            if entry.keeper.is_some_and(is_kept) {
                // What was only read may be older than it ought to be (of a node that lags behind). What is written is not.
                return mutex.renew(token, None).map(|_| None);
            }
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
