//! `serializer wait`

use std::os::fd::BorrowedFd;

use super::once;
use super::progress::Progress;
use crate::cli::WaitArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::exit_code::BUSY;
use crate::lock::Mutex;
use crate::lock::requester::Requester;
use crate::lock::staleness::LocalLiveness;
use crate::lock::waiting::Waiting;
use crate::run::Signals;

pub fn run(args: &WaitArgs, environment: &Environment) -> Result<(), Error> {
    let waited = if args.once { once::wait(args, environment) } else { wait(args, environment) };
    waited.map_err(|error| error.or_if(BUSY, args.waiting.conflict_exit_code))
}

fn wait(args: &WaitArgs, environment: &Environment) -> Result<(), Error> {
    let waiting = environment.waiting(&args.waiting)?;
    let judge = LocalLiveness::here(environment.orphans(None)?);
    let signals = Signals::hold_as_init();
    let started = std::time::Instant::now();
    for location in environment.locks(&args.file, &args.names)? {
        let mut mutex = Mutex::open(&location, &judge)?;
        // One deadline for all of them.
        let timeout = waiting.timeout.map(|timeout| timeout.saturating_sub(started.elapsed()));
        let waiting = Waiting { timeout, ..waiting };
        let mut progress = Progress::new(&location, &waiting, false);
        let free = mutex.wait_until_free(&signals, &waiting, &mut progress);
        let after = progress.end();
        signals.iter().for_each(Signals::die);
        free.map_err(|error| Error::mutex("wait for", &location, error))?;
        after.iter().for_each(|after| tracing::info!("`{}` is free{after}", location.name()));
    }
    Ok(())
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
