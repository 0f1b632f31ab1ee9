//! Keeping a lease by a thread of the process that holds the lock, or waits for what does.

use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::thread;

use super::timer::Timer;
use super::{Charge, Kept, keep};
use crate::backend::{self, Location};
use crate::config::OnLost;
use crate::mutex::Mutex;
use crate::owner::Place;
use crate::verdict::{LocalJudge, Orphans};

/// A lease that is being renewed as long as this lives.
#[derive(Debug)]
pub struct Renewing {
    charge: Charge,
    /// Runs out when the lease is given up or lost.
    timer: Timer,
    why: Arc<StdMutex<Option<String>>>,
    _stop: PipeWriter,
}

impl Renewing {
    /// Begins to renew it.
    ///
    /// # Errors
    /// When there cannot be a thread.
    pub fn start(location: &Location, charge: Charge, on_lost: OnLost) -> io::Result<Self> {
        let (stopped, stop) = io::pipe()?;
        let timer = Timer::new()?;
        timer.set(charge.given_up())?;
        let why = Arc::new(StdMutex::new(None));
        let keeper =
            Keeper { location: location.clone(), charge: charge.clone(), on_lost, timer: timer.try_clone()?, why: why.clone() };
        // It is not waited for in the end: it holds nothing, and what it may yet write is conditional on the lock being held.
        thread::Builder::new().name("lease".to_owned()).spawn(move || keeper.run(stopped.as_fd()))?;
        Ok(Self { charge, timer, why, _stop: stop })
    }

    /// Becomes readable when the lock is lost, or so close to it that what runs under it has to end.
    pub fn lost_fd(&self) -> BorrowedFd<'_> {
        self.timer.fd()
    }

    /// How long that may take.
    pub fn grace(&self) -> std::time::Duration {
        self.charge.grace()
    }

    /// What has become of it.
    pub fn why(&self) -> String {
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        why.clone().unwrap_or_else(|| "its lease could not be renewed in time".to_owned())
    }
}

struct Keeper {
    location: Location,
    charge: Charge,
    on_lost: OnLost,
    timer: Timer,
    why: Arc<StdMutex<Option<String>>>,
}

impl Keeper {
    fn run(mut self, stopped: BorrowedFd<'_>) {
        let error = match self.keep(stopped) {
            Ok(None) => return,
            Ok(Some(lost)) => lost,
            Err(error) => format!("it cannot be kept: {}", backend::plain(&error)),
        };
        if self.on_lost == OnLost::Warn {
            tracing::warn!("the lock `{}` is lost: {error}", self.location.printable());
        }
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        // If that fails, the timer still runs out when the last renewal is too old.
        let _ = self.timer.set(1);
    }

    fn keep(&mut self, stopped: BorrowedFd<'_>) -> io::Result<Option<String>> {
        let judge = LocalJudge::new(Place::default(), Orphans::Ignore);
        let backend = backend::open(&self.location).map_err(io::Error::other)?;
        let mut mutex = Mutex::new(backend, &judge);
        let timer = &self.timer;
        let mut has_given_up = false;
        // Ends when it is told to, or with the lease.
        loop {
            match keep(&mut mutex, &mut self.charge, &mut has_given_up, &[stopped], &mut |charge| timer.set(charge.given_up()))? {
                Kept::Interrupted => return Ok(None),
                Kept::Lost(error) => return Ok(Some(error.to_string())),
                // The timer has told it.
                Kept::GivenUp => {}
            }
        }
    }
}
