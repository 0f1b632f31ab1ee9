//! `serializer lock`

use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid};

use super::ended::{LONGER, locked};
use super::once;
use super::progress::Progress;
use crate::cli::LockArgs;
use crate::command::output::print;
use crate::command::requester::ProcessRequester;
use crate::command::requester::other_than_us;
use crate::config::Environment;
use crate::error::Error;
use crate::exit_code::{ALREADY_DONE, BUSY};
use crate::lease::process::send_signal;
use crate::lease::{LeaseGrant, OnLost, TokenHolder};
use crate::lock::requester::Requester;
use crate::lock::staleness::{LocalLiveness, Orphans};
use crate::lock::{self, Acquired, Grant, Mutex, ReleaseScope};
use crate::record::{Entry, Outcome};
use crate::store::Location;
use crate::sys::process;

pub fn run(args: &LockArgs, environment: &Environment) -> Result<(), Error> {
    let place = &args.lock.file.place;
    let lock = match &args.once {
        Some(key) => once::open(environment, place, key)?,
        None => environment.lock(&args.lock.file, args.lock.name.as_deref())?,
    };
    let request = match args.once {
        Some(_) => environment.once(&args.rule, place, &lock)?,
        None => environment.request(&args.request, place, &lock)?,
    };
    let waiting = environment.waiting(&args.waiting)?;
    let orphans = environment.orphans(args.owner.orphans)?;
    let on_lost = environment.on_lost(args.request.on_lost, OnLost::Warn)?;
    check_store(args, &lock)?;
    // A detached run has no owner that lives on; this process stands for it.
    let owner_pid =
        other_than_us(environment.owner_pid(args.owner.owner_pid)?)?.or(args.detached.then(getpid));
    let needs_keeper = request.lease.is_some() && !args.detached;
    let mut requester = ProcessRequester::discover(owner_pid, needs_keeper);
    requester.reason = environment.reason(args.request.reason.as_deref())?;
    let judge = LocalLiveness::here(orphans);
    let mut mutex = Mutex::open(&lock, &judge)?;
    let cannot = |error| Error::mutex("lock", &lock, error);
    let unfit = |error: Error| error.during(&format!("cannot lock `{}`", lock.printable()));
    let described = requester.describe().map_err(unfit)?;
    let mut progress = Progress::new(&lock, &waiting, false);
    let begun = Instant::now();
    let acquired = mutex.acquire(&requester, &request, &waiting, &mut progress);
    let after = progress.end().unwrap_or_default();
    let acquired =
        acquired.map_err(|error| cannot(error).or_if(BUSY, args.waiting.conflict_exit_code))?;
    if needs_keeper
        && let Some(unkept) = unkept(&mut mutex, &requester, &acquired).map_err(cannot)?
    {
        keep(
            &lock,
            &mut mutex,
            &requester,
            unkept,
            request.lease.unwrap_or_default(),
            orphans,
            on_lost,
        )?;
    }
    let fencing = tell(&lock, &described, (begun, &after), &acquired)?;
    match fencing.filter(|_| args.print_token) {
        Some(fencing) => print(format!("{fencing}\n").as_bytes()),
        None => Ok(()),
    }
}

/// Says how the lock was acquired; returns its fencing token.
fn tell(
    lock: &Location,
    owner: &str,
    time: (Instant, &str),
    acquired: &Acquired,
) -> Result<Option<u64>, Error> {
    let name = lock.name();
    Ok(match acquired {
        Acquired::Granted(grant, from) => {
            tracing::info!("{}", locked(lock, owner, time, from.as_deref()));
            grant.fencing
        }
        Acquired::AlreadyHeld(held) => {
            tracing::warn!("`{name}` is already locked by this process ({held}); nothing to do");
            held.entry.as_ref().and_then(|entry| entry.fencing)
        }
        Acquired::NotNeeded(run) => {
            let why = run.as_ref().map(|run| run.is_done()).unwrap_or_default();
            return Err(Error::new(ALREADY_DONE, format!("did not lock `{name}`: {why}")));
        }
    })
}

/// Refuses options that need a store.
fn check_store(args: &LockArgs, lock: &Location) -> Result<(), Error> {
    if (args.print_token || args.detached) && !lock.is_shared() {
        let option = if args.print_token { "--print-token" } else { "--detached" };
        let why = format!("`{option}` needs a store: lock files have no fencing tokens");
        return Err(Error::usage(why).with_hint("name one with `--store` or `SERIALIZER_STORE`"));
    }
    Ok(())
}

/// The grant and its entry, if it has a lease without a keeper.
fn unkept(
    mutex: &mut Mutex<'_>,
    requester: &ProcessRequester,
    acquired: &Acquired,
) -> Result<Option<(Grant, Entry)>, lock::Error> {
    let held = match acquired {
        Acquired::Granted(grant, _) => {
            return Ok(Some((grant.clone(), requester.entry().map_err(lock::Error::Entry)?)));
        }
        Acquired::AlreadyHeld(held) => held.entry.as_ref().filter(|entry| entry.lease.is_some()),
        Acquired::NotNeeded(_) => None,
    };
    let Some((entry, token)) = held.and_then(|entry| Some((entry, entry.token.as_ref()?))) else {
        return Ok(None);
    };
    // A keeper that was made just now has not begun yet; another one may have been killed.
    if entry
        .keeper
        .is_some_and(|keeper| process::is_running(keeper) && !requester.has_started(keeper))
    {
        // What was only read may be out of date (a node that lags behind). What is written is not.
        return mutex.renew(token, None).map(|_| None);
    }
    let keeper = requester.keeper().map_err(lock::Error::Entry)?.identity;
    Ok(Some((mutex.renew(token, Some(keeper))?, entry.clone())))
}

/// Lets the keeper renew the lease. If it cannot, the lock is released.
fn keep(
    lock: &Location,
    mutex: &mut Mutex<'_>,
    requester: &ProcessRequester,
    (mut grant, entry): (Grant, Entry),
    lease: Duration,
    orphans: Orphans,
    on_lost: OnLost,
) -> Result<(), Error> {
    let cannot = |error| Error::mutex("lock", lock, error);
    // A lock that is held already has the lease that it was acquired with.
    let lease = entry.lease.map_or(lease, |own| own.duration);
    mutex.refresh(&mut grant, lease).map_err(cannot)?;
    let charge = LeaseGrant { grant, lease, is_unnamed: false };
    let begun =
        requester.keeper().and_then(|keeper| keeper.keep(lock, &entry, &charge, orphans, on_lost));
    let error = match begun {
        // If this process was stopped meanwhile, the lock may be lost.
        Ok(()) if charge.is_given_up() => match mutex.renew(&charge.grant.token, None) {
            Ok(_) => return Ok(()),
            Err(error) => cannot(error),
        },
        Ok(()) => return Ok(()),
        Err(_) if charge.is_given_up() => {
            Error::lost(lock, "its lease expired before it could be renewed", &[]).with_hint(LONGER)
        }
        Err(error) => Error::io(format!("cannot keep the lease of `{}`", lock.name()), &error),
    };
    // The keeper may have started nevertheless.
    let _ = requester.keeper().map(|keeper| send_signal(keeper.identity, Signal::KILL));
    let _ = mutex.release(&TokenHolder(&charge.grant.token), ReleaseScope::Own, Outcome::Unknown);
    Err(error)
}
