//! Keeping a lease: renewing it while whoever holds the lock lives.
//!
//! ```text
//! 0            ⅓                      ¾            11/12    1   of the lease, from before the last renewal was sent
//! renewed      is renewed again       given up     killed   others may take the lock
//!              (again and again, if the store does not answer)
//! ```
//!
//! All of it is measured by a clock of this host that goes on while the host sleeps (`CLOCK_BOOTTIME`), and that nobody sets.
//! Giving up means that what holds the lock is ended, if that is wanted. Renewing is tried all the same as long as the store
//! does not say that the lease is lost: what takes long to end is better under the lock.
//!
//! `run` keeps its lease by a thread ([`thread`]). `lock` ends at once, and leaves a process behind that does it ([`process`]).

pub mod claimant;
pub mod process;
pub mod thread;
pub mod timer;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime};

use timer::Timer;

use crate::backend;
use crate::claimant::Claimant;
use crate::mutex::{Error, Grant, Mutex};
use crate::process::since_boot;
use crate::record::{Entry, Record};

/// What is to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// What was granted.
    pub grant: Grant,
    /// For how long it holds.
    pub lease: Duration,
}

/// What a keeper has come to.
#[derive(Debug)]
pub enum Kept {
    /// One of the descriptors is readable.
    Interrupted,
    /// The store says that the lock is lost.
    Lost(Error),
    /// There was no renewal for too long. This is told once.
    GivenUp,
}

impl Charge {
    /// When to renew it.
    fn due(&self) -> u64 {
        self.after(1, 3)
    }

    /// When to end what holds the lock.
    pub fn given_up(&self) -> u64 {
        self.after(3, 4)
    }

    /// How long that may take before it is killed.
    pub fn grace(&self) -> Duration {
        self.lease / 6
    }

    /// In milliseconds since boot.
    fn after(&self, numerator: u64, denominator: u64) -> u64 {
        let lease = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX / 8);
        self.grant.leased_at + lease * numerator / denominator
    }

    /// Between two tries of which the first has failed.
    fn pause(&self) -> u64 {
        u64::try_from(self.lease.as_millis() / 24).unwrap_or(u64::MAX / 8).clamp(50, 2000)
    }
}

/// Renews until something happens. `has_given_up` tells whether it was told already that there was no renewal for too long; each
/// renewal is told to `renewed`.
///
/// # Errors
/// When it cannot sleep.
pub fn keep(
    mutex: &mut Mutex<'_>,
    charge: &mut Charge,
    has_given_up: &mut bool,
    fds: &[BorrowedFd<'_>],
    renewed: &mut dyn FnMut(&Charge) -> io::Result<()>,
) -> io::Result<Kept> {
    let mut next = charge.due();
    let timer = Timer::new()?;
    // Ends when one of the descriptors is readable, or the lease is lost, which it is once the store answers.
    loop {
        let until = if *has_given_up { next } else { next.min(charge.given_up()) };
        timer.set(until)?;
        let all: Vec<_> = fds.iter().copied().chain([timer.fd()]).collect();
        backend::sleep(Duration::MAX.min(Duration::from_secs(3600)), &all)?;
        if is_any_readable(fds)? {
            return Ok(Kept::Interrupted);
        }
        if !*has_given_up && since_boot() >= charge.given_up() {
            *has_given_up = true;
            return Ok(Kept::GivenUp);
        }
        if since_boot() < next {
            continue;
        }
        match mutex.renew(&charge.grant.token) {
            Ok(grant) => {
                tracing::debug!("renewed the lease of `{}`", mutex.location());
                charge.grant = grant;
                next = charge.due();
                *has_given_up = false;
                renewed(charge)?;
            }
            Err(lost @ Error::Lost(..)) => return Ok(Kept::Lost(lost)),
            // Whatever it is, it may be over soon, and nobody has said yet that the lock is lost.
            Err(error) => {
                tracing::debug!("cannot renew the lease: {error}");
                next = since_boot() + charge.pause();
            }
        }
        // Who only keeps a connection for its next renewal keeps it from others.
        mutex.disconnect();
    }
}

fn is_any_readable(fds: &[BorrowedFd<'_>]) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&now)))? > 0)
}

/// Whoever has the token of an acquisition, and acts for its holder.
pub struct TokenHolder<'a>(pub &'a str);

impl Claimant for TokenHolder<'_> {
    fn entry(&self) -> io::Result<Entry> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn transient_entry(&self) -> io::Result<Entry> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn owns(&self, _record: &Record, entry: &Entry, _written: Option<SystemTime>) -> bool {
        entry.token.as_deref() == Some(self.0)
    }

    fn is_present(&self) -> bool {
        true
    }

    fn absence_fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}
