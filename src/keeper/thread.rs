//! Keeping a lease by a thread of the process that holds the lock, or looks after what does.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::{Charge, is_readable, keep};
use crate::backend::{self, Location};
use crate::config::OnLost;
use crate::mutex::{Error, Lost, Mutex};
use crate::owner::Place;
use crate::panics::{Kept, Registration};
use crate::process::since_boot;
use crate::timer::Timer;
use crate::verdict::{LocalJudge, Orphans};

/// A lease that is being renewed as long as this lives.
pub struct Renewing {
    grace: Duration,
    known: Arc<Known>,
    /// Has an end when the thread has.
    ended: PipeReader,
    _stop: PipeWriter,
    _panics: Registration,
}

/// What the thread tells.
struct Known {
    /// Runs out when the lease is given up or lost.
    timer: Timer,
    /// When others may take the lock, in milliseconds since boot.
    over: AtomicU64,
    /// Why it was not renewed, the last time that it was tried.
    trouble: StdMutex<Option<String>>,
    lost: StdMutex<Option<(String, Option<Lost>)>>,
    /// Closed when the thread has ended.
    end: StdMutex<Option<PipeWriter>>,
    at_worst: Box<dyn Fn() + Send + Sync>,
}

impl Known {
    fn set_lost(&self, why: String, how: Option<Lost>) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some((why, how));
        // If that fails, the timer still runs out when the last renewal is too old.
        let _ = self.timer.set(1);
    }

    fn set_ended(&self) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Kept for Known {
    fn lose(&self, why: &str) {
        // What has panicked is not asked again to release the lock.
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
        self.set_lost(why.to_owned(), None);
        self.set_ended();
    }

    fn end(&self) {
        (self.at_worst)();
    }
}

impl Renewing {
    /// Begins to renew it. A loss is said at once if nothing else is to be done about it. `at_worst` ends what runs under the lock when
    /// this process cannot go on.
    ///
    /// # Errors
    /// When there cannot be a thread.
    pub fn start(
        location: &Location,
        charge: Charge,
        on_lost: OnLost,
        at_worst: Box<dyn Fn() + Send + Sync>,
    ) -> io::Result<Self> {
        let (stopped, stop) = io::pipe()?;
        let (ended, end) = io::pipe()?;
        let timer = Timer::new()?;
        timer.set(charge.given_up())?;
        let known = Arc::new(Known {
            timer,
            over: AtomicU64::new(charge.over()),
            trouble: StdMutex::default(),
            lost: StdMutex::new(None),
            end: StdMutex::new(Some(end)),
            at_worst,
        });
        let panics = Registration::of(known.clone());
        let grace = charge.grace();
        let keeper = Keeper { location: location.clone(), charge, on_lost, known: known.clone() };
        // It is not waited for in the end: it holds nothing, and what it may yet write is conditional on the lock being held.
        thread::Builder::new().name("lease".to_owned()).spawn(move || keeper.run(stopped.as_fd()))?;
        Ok(Self { grace, known, ended, _stop: stop, _panics: panics })
    }

    /// Becomes readable when the lock is lost, or so close to it that what runs under it has to end.
    pub fn lost_fd(&self) -> BorrowedFd<'_> {
        self.known.timer.fd()
    }

    /// Becomes readable when nothing is renewed any more, because the lock is certainly lost.
    pub fn ended_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Whether what runs under it has to end.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn is_given_up(&self) -> io::Result<bool> {
        is_readable(self.lost_fd())
    }

    /// Whether nobody else can have had the lock yet, unless it was taken away.
    pub fn is_good(&self) -> bool {
        since_boot() < self.known.over.load(Ordering::Acquire)
    }

    /// What runs under it, and is told to end now, has to be killed then, in milliseconds since boot: after some time of grace, but not
    /// when others may have the lock already.
    pub fn kill_at(&self) -> u64 {
        let grace = u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX / 2);
        (since_boot() + grace).min(self.known.over.load(Ordering::Acquire))
    }

    /// Whether the store did not answer the last renewal.
    pub fn is_unanswered(&self) -> bool {
        self.known.trouble.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// What has become of it.
    pub fn why(&self) -> String {
        let lost = self.known.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((why, _)) = &*lost {
            return why.clone();
        }
        let trouble = self.known.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let why = trouble.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        format!("its lease could not be renewed in time{why}")
    }

    /// Whether nothing is left of it in the store, not even the word that it was lost: it was released.
    pub fn is_released(&self) -> bool {
        let lost = self.known.lost.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*lost, Some((_, Some(Lost::Gone))))
    }
}

struct Keeper {
    location: Location,
    charge: Charge,
    on_lost: OnLost,
    known: Arc<Known>,
}

impl Keeper {
    fn run(mut self, stopped: BorrowedFd<'_>) {
        self.keep_and_tell(stopped);
        self.known.set_ended();
    }

    fn keep_and_tell(&mut self, stopped: BorrowedFd<'_>) {
        let (why, how) = match self.keep(stopped) {
            Ok(None) => return,
            Ok(Some(Error::Lost(how, _))) => (how.to_string(), Some(how)),
            Ok(Some(error)) => (error.to_string(), None),
            Err(error) => (format!("it cannot be kept: {}", backend::plain(&error)), None),
        };
        if self.on_lost == OnLost::Warn {
            tracing::warn!("the lock `{}` is lost: {why}", self.location.printable());
        }
        self.known.set_lost(why, how);
    }

    fn keep(&mut self, stopped: BorrowedFd<'_>) -> io::Result<Option<Error>> {
        let judge = LocalJudge::new(Place::default(), Orphans::Ignore);
        let backend = backend::open(&self.location).map_err(io::Error::other)?;
        let mut mutex = Mutex::new(backend, &judge);
        let (known, location, on_lost) = (&self.known, self.location.printable(), self.on_lost);
        let (mut given_up, mut is_told) = (self.charge.given_up(), false);
        keep(&mut mutex, &mut self.charge, stopped, &mut |renewed| {
            *known.trouble.lock().unwrap_or_else(PoisonError::into_inner) = renewed.err().map(ToString::to_string);
            let charge = match renewed {
                Ok(charge) => charge,
                Err(error) => {
                    // Nothing else is done about it, and it may go on for long.
                    if on_lost == OnLost::Warn && since_boot() >= given_up && !std::mem::replace(&mut is_told, true) {
                        tracing::warn!("the lease of `{location}` could not be renewed in time: {error}");
                    }
                    return Ok(());
                }
            };
            (given_up, is_told) = (charge.given_up(), false);
            known.over.store(charge.over(), Ordering::Release);
            known.timer.set(charge.given_up())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Kept, OnLost, Renewing, is_readable};
    use crate::backend::Location;
    use crate::keeper::Charge;
    use crate::mutex::Grant;
    use crate::process::since_boot;

    #[test]
    fn a_lease_whose_thread_has_panicked_is_lost_and_the_store_is_not_asked_again() {
        let grant = Grant { token: "t".to_owned(), fencing: None, leased_at: since_boot() };
        let charge = Charge { grant, lease: Duration::from_secs(3600) };
        let location = Location::File("/nonexistent".into());
        let renewing = Renewing::start(&location, charge, OnLost::Terminate, Box::new(|| {})).expect("a thread");
        assert!(!renewing.is_given_up().expect("it is told") && !renewing.is_unanswered());
        renewing.known.lose("internal error");
        assert!(renewing.is_given_up().expect("it is told"), "what runs under it is ended");
        assert!(is_readable(renewing.ended_fd()).expect("it is told"), "who only warns hears of it");
        assert!(renewing.is_unanswered() && !renewing.is_released());
        assert_eq!(renewing.why(), "internal error");
    }
}
