//! `serializer lock`

use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid};

use super::job::{expired, locked};
use super::once;
use super::progress::Progress;
use crate::cli::LockArgs;
use crate::command::output::print;
use crate::command::requester::{ProcessRequester, other_than_us};
use crate::config::Environment;
use crate::error::Error;
use crate::exit_code::{ALREADY_DONE, BUSY};
use crate::lease::process::{Keeper, send_signal};
use crate::lease::{LeaseGrant, OnLost, TokenHolder};
use crate::lock::staleness::{LocalLiveness, Orphans};
use crate::lock::{self, Acquired, Grant, Mutex, ReleaseScope, Requester};
use crate::record::{Entry, Outcome};
use crate::store::Location;
use crate::sys::process;

struct Locking<'a> {
    lock: &'a Location,
    mutex: Mutex<'a>,
    requester: ProcessRequester,
    orphans: Orphans,
    on_lost: OnLost,
}

pub fn run(args: &LockArgs, environment: &Environment) -> Result<(), Error> {
    let place = &args.lock.file.place;
    let lock = match &args.once {
        Some(key) => once::open(environment, place, key)?,
        None => environment.lock(&args.lock.file, args.lock.name.as_deref())?,
    };
    let lease = environment.lease(place, &lock)?;
    let request = match args.once {
        Some(_) => environment.once(&args.rule, lease)?,
        None => environment.request(&args.request, lease)?,
    };
    let waiting = environment.waiting(&args.waiting)?;
    let orphans = environment.orphans(args.owner.orphans)?;
    let on_lost = environment.on_lost(args.request.on_lost, OnLost::Warn)?;
    if (args.print_token || args.detached) && !lock.is_shared() {
        let option = if args.print_token { "--print-token" } else { "--detached" };
        let why = format!("`{option}` needs a store: lock files have no fencing tokens");
        return Err(Error::usage(why).with_hint("name one with `--store` or `SERIALIZER_STORE`"));
    }
    // A detached run has no owner that lives on; this process stands for it.
    let owner_pid =
        other_than_us(environment.owner_pid(args.owner.owner_pid)?)?.or(args.detached.then(getpid));
    let needs_keeper = request.lease.is_some() && !args.detached;
    let mut requester = ProcessRequester::discover(owner_pid, needs_keeper);
    requester.reason = environment.reason(args.request.reason.as_deref())?;
    let judge = LocalLiveness::here(orphans);
    let mutex = Mutex::open(&lock, &judge)?;
    let unfit = |error: Error| error.during(&format!("cannot lock `{}`", lock.printable()));
    let owner = requester.describe().map_err(unfit)?;
    let mut locking = Locking { lock: &lock, mutex, requester, orphans, on_lost };
    let mut progress = Progress::new(&lock, &waiting, false);
    let begun = Instant::now();
    let acquired = locking.mutex.acquire(&locking.requester, &request, &waiting, &mut progress);
    let after = progress.end().unwrap_or_default();
    let cannot = |error| Error::mutex("lock", &lock, error);
    let acquired =
        acquired.map_err(|error| cannot(error).or_if(BUSY, args.waiting.conflict_exit_code))?;
    if let Some(lease) = request.lease.filter(|_| needs_keeper)
        && let Some(unkept) = locking.unkept(&acquired).map_err(cannot)?
    {
        locking.keep(unkept, lease)?;
    }
    let fencing = tell(&lock, &owner, (begun, &after), &acquired)?;
    let text = fencing.filter(|_| args.print_token).map(|fencing| format!("{fencing}\n"));
    text.map_or(Ok(()), print)
}

/// Says how the lock was acquired; returns its fencing token.
fn tell(
    lock: &Location,
    owner: &str,
    time: (Instant, &str),
    acquired: &Acquired,
) -> Result<Option<u64>, Error> {
    let name = lock.name();
    match acquired {
        Acquired::Granted(grant, from) => {
            tracing::info!("{}", locked(lock, owner, time, from.as_deref()));
            Ok(grant.fencing)
        }
        Acquired::AlreadyHeld(held) => {
            tracing::warn!("`{name}` is already locked by this process ({held}); nothing to do");
            Ok(held.entry.as_ref().and_then(|entry| entry.fencing))
        }
        Acquired::NotNeeded(run) => {
            let why = run.as_ref().map(|run| run.is_done()).unwrap_or_default();
            Err(Error::new(ALREADY_DONE, format!("did not lock `{name}`: {why}")))
        }
    }
}

impl Locking<'_> {
    /// The grant and its entry, if it has a lease without a keeper.
    fn unkept(&mut self, acquired: &Acquired) -> Result<Option<(Grant, Entry)>, lock::Error> {
        let held = match acquired {
            Acquired::Granted(grant, _) => {
                let entry = self.requester.entry().map_err(lock::Error::Entry)?;
                return Ok(Some((grant.clone(), entry)));
            }
            Acquired::AlreadyHeld(held) => held.entry.as_ref().filter(|it| it.lease.is_some()),
            Acquired::NotNeeded(_) => None,
        };
        let held = held.and_then(|entry| Some((entry, entry.token.as_ref()?)));
        let Some((entry, token)) = held else { return Ok(None) };
        // A keeper that was made just now has not begun yet; another one may have been killed.
        let is_kept = |keeper| process::is_running(keeper) && !self.requester.has_started(keeper);
        if entry.keeper.is_some_and(is_kept) {
            // What was only read may be out of date (a node that lags behind). What is written is
            // not.
            return self.mutex.renew(token, None).map(|_| None);
        }
        let keeper = self.requester.keeper().map_err(lock::Error::Entry)?.identity;
        Ok(Some((self.mutex.renew(token, Some(keeper))?, entry.clone())))
    }

    /// Lets the keeper renew the lease. If it cannot, the lock is released.
    fn keep(&mut self, (mut grant, entry): (Grant, Entry), lease: Duration) -> Result<(), Error> {
        let Self { lock, mutex, requester, orphans, on_lost } = self;
        let cannot = |error| Error::mutex("lock", lock, error);
        // A lock that is held already has the lease that it was acquired with.
        let lease = entry.lease.map_or(lease, |own| own.duration);
        mutex.refresh(&mut grant, lease).map_err(cannot)?;
        let charge = LeaseGrant { grant, lease, is_unnamed: false };
        let keep = |keeper: &Keeper| keeper.keep(lock, &entry, &charge, *orphans, *on_lost);
        let error = match requester.keeper().and_then(keep) {
            // If this process was stopped meanwhile, the lock may be lost.
            Ok(()) if charge.is_given_up() => match mutex.renew(&charge.grant.token, None) {
                Ok(_) => return Ok(()),
                Err(error) => cannot(error),
            },
            Ok(()) => return Ok(()),
            Err(_) if charge.is_given_up() => expired(lock),
            Err(error) => Error::io(format!("cannot keep the lease of `{}`", lock.name()), &error),
        };
        // The keeper may have started nevertheless.
        let _ = requester.keeper().map(|keeper| send_signal(keeper.identity, Signal::KILL));
        let holder = TokenHolder(&charge.grant.token);
        let _ = mutex.release(&holder, ReleaseScope::Own, Outcome::Unknown);
        Err(error)
    }
}
