//! `serializer wait`

use super::progress::Progress;
use crate::backend;
use crate::child::Interruptions;
use crate::cli::WaitArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::exit_code::ExitCode;
use crate::mutex::Mutex;
use crate::owner::Place;
use crate::verdict::LocalJudge;

pub fn run(args: &WaitArgs, environment: &Environment) -> Result<ExitCode, Error> {
    let waiting = environment.waiting(&args.waiting)?;
    let judge = LocalJudge::new(Place::here(), environment.orphans(args.orphans)?);
    let started = std::time::Instant::now();
    for location in environment.locks(&args.file, &args.names)? {
        let mut mutex = Mutex::new(backend::open(&location)?, &judge);
        let location = mutex.location();
        // One deadline for all of them.
        let waiting = waiting.after(started.elapsed());
        let mut progress = Progress::new(waiting.max_attempts).interrupted_by(Interruptions::hold());
        let free = mutex.wait_until_free(&waiting, &mut progress);
        progress.clear();
        if let Some(signal) = progress.interruption() {
            return Ok(ExitCode::killed(signal));
        }
        free.map_err(|error| Error::mutex("wait for", &location, error).or_if_busy(args.waiting.conflict_exit_code))?;
    }
    Ok(ExitCode::Done)
}
