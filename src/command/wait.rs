//! `serializer wait`

use super::progress::Progress;
use crate::backend;
use crate::child::Signals;
use crate::cli::WaitArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::mutex::Mutex;
use crate::owner::Place;
use crate::verdict::LocalJudge;

pub fn run(args: &WaitArgs, environment: &Environment) -> Result<(), Error> {
    let waiting = environment.waiting(&args.waiting)?;
    let judge = LocalJudge::new(Place::here(), environment.orphans(args.orphans)?);
    let started = std::time::Instant::now();
    for location in environment.locks(&args.file, &args.names)? {
        let mut mutex = Mutex::new(backend::open(&location)?, &judge);
        // One deadline for all of them.
        let waiting = waiting.after(started.elapsed());
        let mut progress = Progress::new(waiting.max_attempts, false);
        progress.signals = Signals::hold_as_init();
        let free = mutex.wait_until_free(&waiting, &mut progress);
        progress.clear();
        progress.signals.iter().for_each(Signals::die);
        let code = args.waiting.conflict_exit_code;
        free.map_err(|error| Error::mutex("wait for", &mutex.location(), error).or_if_busy(code))?;
    }
    Ok(())
}
