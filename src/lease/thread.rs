//! Keeping a lease by a thread of the process that holds the lock, or of its keeper.

use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, getpid};

use super::{LONG, LeaseGrant};
use crate::lease::OnLost;
use crate::lock::register::Connection;
use crate::lock::staleness::{LocalLiveness, Orphans};
use crate::lock::{Error, Lost, Mutex};
use crate::store::Location;
use crate::sys::clock::{millis, since_boot};
use crate::sys::identity::HostIdentity;
use crate::sys::locked;
use crate::sys::poll::{self, is_readable};
use crate::sys::process;
use crate::sys::text::io_message;
use crate::sys::timer::Timer;

/// How long the connection that acquired the lock stays open: a command that ends before that needs
/// no second login.
const IDLE: Duration = Duration::from_secs(1);

/// After this time, in milliseconds, the record names a process that keeps the lease of another
/// one's acquisition.
const NAMED: u64 = 1000;

/// The lease that this process keeps; there is one at a time.
static CURRENT: StdMutex<Option<Arc<Renewal>>> = StdMutex::new(None);

/// A lease that is renewed as long as this value lives.
pub struct Renewing {
    renewal: Arc<Renewal>,
    _stop: PipeWriter,
}

impl Drop for Renewing {
    fn drop(&mut self) {
        *locked(&CURRENT) = None;
    }
}

/// What the thread works with, and what it reports.
pub(crate) struct Renewal {
    location: Location,
    on_lost: OnLost,
    /// Expires when the lease is lost; with `OnLost::Terminate`, already when it is given up.
    timer: Timer,
    status: StdMutex<Status>,
    /// Ends what runs under the lock.
    pub at_worst: Box<dyn Fn() + Send + Sync>,
}

struct Status {
    charge: LeaseGrant,
    trouble: Option<String>,
    lost: Option<(String, Option<Lost>)>,
}

impl Renewing {
    /// Begins to renew. `idle` stays open for a second, for a command that ends before that. With
    /// `OnLost::Warn`, the thread reports a loss. `at_worst` ends what runs under the lock when
    /// this process cannot continue.
    pub fn start(
        location: &Location,
        charge: LeaseGrant,
        idle: Option<Connection>,
        on_lost: OnLost,
        at_worst: Box<dyn Fn() + Send + Sync>,
    ) -> io::Result<Self> {
        let (stopped, stop) = io::pipe()?;
        let status = StdMutex::new(Status { charge: charge.clone(), trouble: None, lost: None });
        let renewal = Arc::new(Renewal {
            location: location.clone(),
            on_lost,
            timer: Timer::new()?,
            status,
            at_worst,
        });
        renewal.set_charge(charge)?;
        let renewing = Self { renewal: renewal.clone(), _stop: stop };
        *locked(&CURRENT) = Some(renewal.clone());
        // Not joined in the end: it holds nothing, and its last write is conditional on the lock
        // being held.
        thread::Builder::new()
            .name("lease".to_owned())
            .spawn(move || renewal.run(idle, stopped.as_fd()))?;
        Ok(renewing)
    }

    /// Becomes readable when the lock is lost; with `OnLost::Terminate`, already when the work
    /// under it must end.
    pub fn lost_fd(&self) -> BorrowedFd<'_> {
        self.renewal.timer.fd()
    }

    /// Whether the work under this lock must end.
    pub fn is_given_up(&self) -> bool {
        let status = self.renewal.status();
        status.lost.is_some() || status.charge.is_given_up()
    }

    /// Whether no other process can have had the lock yet, unless it was broken.
    pub fn is_good(&self) -> bool {
        since_boot() < self.renewal.status().charge.after(1, 1)
    }

    /// When to kill the work under this lock, in milliseconds since boot, if it is asked to end
    /// now: after a grace period, but a twelfth of the lease before its end, for a busy host.
    pub fn kill_at(&self) -> u64 {
        let charge = &self.renewal.status().charge;
        (since_boot() + charge.grace()).min(charge.after(11, 12))
    }

    /// Whether the store did not answer the last renewal.
    pub fn is_unanswered(&self) -> bool {
        self.renewal.status().trouble.is_some()
    }

    /// Why the lock was lost.
    pub fn why(&self) -> String {
        match &*self.renewal.status() {
            Status { lost: Some((why, _)), .. } => why.clone(),
            Status { trouble, .. } => {
                let why = trouble.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
                format!("its lease could not be renewed in time{why}")
            }
        }
    }

    /// Whether the store does not mention it any more, not even as lost: it was released.
    pub fn is_released(&self) -> bool {
        matches!(self.renewal.status().lost, Some((_, Some(Lost::Gone))))
    }
}

impl Renewal {
    /// That of this process, if it keeps a lease.
    pub fn current() -> Option<Arc<Self>> {
        locked(&CURRENT).clone()
    }

    /// The lease counts as lost. The store is not asked again to release the lock.
    pub fn lose(&self, why: String) {
        self.status().trouble = Some(why.clone());
        self.set_lost(why, None);
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        locked(&self.status)
    }

    fn set_lost(&self, why: String, how: Option<Lost>) {
        self.status().lost = Some((why, how));
        // If this fails, the timer still expires when the last renewal is too old.
        let _ = self.timer.set(1);
    }

    fn set_charge(&self, charge: LeaseGrant) -> io::Result<()> {
        if self.on_lost == OnLost::Terminate {
            self.timer.set(charge.given_up())?;
        }
        let mut status = self.status();
        (status.charge, status.trouble) = (charge, None);
        Ok(())
    }

    fn run(&self, idle: Option<Connection>, stopped: BorrowedFd<'_>) {
        let (why, how) = match self.keep(idle, stopped) {
            Ok(None) => return,
            Ok(Some(how)) => (how.to_string(), Some(how)),
            Err(error) => (format!("it cannot be kept: {}", io_message(&error)), None),
        };
        if self.on_lost == OnLost::Warn {
            tracing::warn!("lost `{}`: {why}", self.location.name());
        }
        self.set_lost(why, how);
    }

    /// Renews until `stopped` is readable, or the store says that the lock is lost.
    fn keep(
        &self,
        mut idle: Option<Connection>,
        stopped: BorrowedFd<'_>,
    ) -> io::Result<Option<Lost>> {
        let judge = LocalLiveness::new(HostIdentity::default(), Orphans::Ignore);
        let mut mutex = Mutex::open(&self.location, &judge).map_err(io::Error::other)?;
        let mut charge = self.status().charge.clone();
        let itself = process::running(getpid()).filter(|_| charge.is_unnamed);
        let itself = itself.map(|process| (process.pid(), process.instance));
        let mut is_told = false;
        let timer = Timer::new()?;
        // `schedule stop` signals a process that the record names.
        let soon = charge.is_unnamed.then(|| since_boot() + NAMED);
        timer.set(charge.after(1, 3).min(soon.unwrap_or(u64::MAX)))?;
        loop {
            poll::sleep(if idle.is_some() { IDLE } else { LONG }, &[stopped, timer.fd()])?;
            if is_readable(&stopped) {
                return Ok(None);
            }
            idle.take().iter().for_each(Connection::close);
            if !is_readable(&timer.fd()) {
                continue;
            }
            match mutex.renew(&charge.grant.token, itself) {
                Ok(grant) => {
                    tracing::debug!("renewed the lease of `{}`", self.location.name());
                    if grant.is_stopped {
                        rustix::process::kill_process(getpid(), Signal::TERM)?;
                    }
                    (charge.grant, is_told) = (grant, false);
                    self.set_charge(charge.clone())?;
                    timer.set(charge.after(1, 3))?;
                }
                // A lock that was released meanwhile is not lost.
                Err(Error::Lost(..)) if is_readable(&stopped) => return Ok(None),
                Err(Error::Lost(how, _)) => return Ok(Some(how)),
                // It may pass, and the store has not said that the lock is lost.
                Err(error) => {
                    tracing::debug!("cannot renew the lease: {error}");
                    self.status().trouble = Some(error.to_string());
                    // Nothing else is done about it, and it may last for long.
                    if self.on_lost == OnLost::Warn
                        && charge.is_given_up()
                        && !std::mem::replace(&mut is_told, true)
                    {
                        let name = self.location.name();
                        tracing::warn!(
                            "the lease of `{name}` could not be renewed in time: {error}"
                        );
                    }
                    timer.set(since_boot() + (millis(charge.lease) / 24).clamp(50, 2000))?;
                }
            }
            // The store's connections are for others until the next renewal.
            mutex.register.connection().close();
        }
    }
}
