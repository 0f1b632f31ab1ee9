//! `serializer wait`

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::once;
use super::progress::Progress;
use super::status::exists;
use crate::cli::WaitArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::exit_code::BUSY;
use crate::lock::once::State;
use crate::lock::staleness::LocalLiveness;
use crate::lock::waiting::{Attempts, Observer, Waiting};
use crate::lock::{Mutex, Requester};
use crate::run::Signals;
use crate::store::Location;

/// Poll interval for keys without a wake-up.
const WATCHED: Duration = Duration::from_secs(1);

pub fn run(args: &WaitArgs, environment: &Environment) -> Result<(), Error> {
    let waiting = environment.waiting(&args.waiting)?;
    let judge = LocalLiveness::here(environment.orphans(None)?);
    let open = |location: Location| {
        exists(&location)?;
        Ok((Mutex::open(&location, &judge)?, location))
    };
    let waited = if args.once {
        let key = |name| once::open(environment, &args.file.place, name);
        let all = args.names.iter().map(|name| open(key(name.to_str().unwrap_or(""))?));
        all.collect::<Result<Vec<_>, Error>>().and_then(|all| wait_for_keys(all, &waiting))
    } else {
        let all = environment.locks(&args.file, &args.names)?.into_iter().map(open);
        all.collect::<Result<Vec<_>, Error>>().and_then(|all| wait_for_locks(all, &waiting))
    };
    waited.map_err(|error| error.or_if(BUSY, args.waiting.conflict_exit_code))
}

fn wait_for_locks(all: Vec<(Mutex<'_>, Location)>, waiting: &Waiting) -> Result<(), Error> {
    let (signals, started) = (Signals::hold_as_init(), Instant::now());
    for (mut mutex, location) in all {
        // One deadline for all of them.
        let timeout = waiting.timeout.map(|timeout| timeout.saturating_sub(started.elapsed()));
        let waiting = Waiting { timeout, ..*waiting };
        let mut progress = Progress::new(&location, &waiting, false);
        let free = mutex.wait_until_free(&signals, &waiting, &mut progress);
        let after = progress.end();
        signals.iter().for_each(Signals::die);
        free.map_err(|error| Error::mutex("wait for", &location, error))?;
        after.iter().for_each(|after| tracing::info!("`{}` is free{after}", location.name()));
    }
    Ok(())
}

/// Waits until all keys are done, or one is given up.
fn wait_for_keys(mut all: Vec<(Mutex<'_>, Location)>, waiting: &Waiting) -> Result<(), Error> {
    let mut attempts = Attempts::new(waiting);
    let mut progress = all.first().map(|(_, key)| Progress::new(key, waiting, false));
    let signals = Signals::hold_as_init();
    // Ends with the attempts or, without a limit, with the runs.
    loop {
        attempts.count(Instant::now(), false);
        let (mut pending, mut failure) = (None, None);
        for (mutex, key) in &mut all {
            let inspected = match mutex.inspect() {
                Err(error) if error.cause.passes() => {
                    let made = attempts.made();
                    progress.iter_mut().for_each(|progress| progress.failing(&error, made));
                    failure = Some(error);
                    None
                }
                inspected => inspected?,
            };
            match inspected.as_ref().map(|key| key.state) {
                Some(State::Done) => {}
                Some(State::GivenUp) => {
                    return Err(Error::failed(format!("`{}` is given up", key.printable())));
                }
                _ => pending = pending.or(Some((mutex, inspected, &*key))),
            }
        }
        let Some((mutex, inspected, key)) = pending else { return Ok(()) };
        signals.iter().filter(|signals| signals.is_ending()).for_each(Signals::die);
        if attempts.are_over() {
            let state = inspected.map_or("never run".to_owned(), |key| key.state.to_string());
            let why = format!("`{}` is not done yet: {state}", key.printable());
            return Err(failure.map_or_else(|| Error::new(BUSY, why), Error::from));
        }
        let limit = attempts.next().saturating_duration_since(Instant::now()).min(WATCHED);
        mutex.watch(inspected, limit, &signals)?;
    }
}

/// This process only waits. Signals are held back for PID 1 alone, which they would not end.
impl Requester for Option<Signals> {
    fn is_alive(&self) -> bool {
        !self.as_ref().is_some_and(Signals::is_ending)
    }

    fn exit_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.iter().flat_map(Signals::fds).collect()
    }
}
