//! Keeping a lease: renewing it while whoever holds the lock lives.
//!
//! ```text
//! 0            ⅓                      ¾            11/12    1   of the lease, from before the last renewal was sent
//! renewed      is renewed again       given up     killed   others may take the lock
//!              (again and again, if the store does not answer)
//! ```
//!
//! Giving up is measured by a timer of its own, because a renewal may hang for some time. All of it is measured by a clock of this host that goes on while the host sleeps (`CLOCK_BOOTTIME`), and that nobody sets.
//! Giving up means that what holds the lock is ended, if that is wanted. Renewing is tried all the same as long as the store
//! does not say that the lease is lost: what takes long to end is better under the lock.
//!
//! `run` keeps its lease by a thread ([`thread`]). `lock` ends at once, and leaves a process behind that does it ([`process`]).

pub mod claimant;
pub mod process;
pub mod thread;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime};

use crate::backend;
use crate::claimant::Claimant;
use crate::mutex::{Error, Grant, Mutex};
use crate::process::since_boot;
use crate::record::{Entry, Record};
use crate::timer::Timer;

/// As long as nothing happens.
const LONG: Duration = Duration::from_secs(3600);

/// What is to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// What was granted.
    pub grant: Grant,
    /// For how long it holds.
    pub lease: Duration,
}

/// The longest time that a command has to end in.
const MAX_GRACE: Duration = Duration::from_secs(10);

impl Charge {
    /// When to renew it.
    fn due(&self) -> u64 {
        self.after(1, 3)
    }

    /// When to end what holds the lock.
    pub fn given_up(&self) -> u64 {
        self.after(3, 4)
    }

    /// Whether that should have been done.
    pub fn is_given_up(&self) -> bool {
        since_boot() >= self.given_up()
    }

    /// How long that may take before it is killed.
    pub fn grace(&self) -> Duration {
        (self.lease / 6).min(MAX_GRACE)
    }

    /// When others may take the lock, as far as is known here.
    pub fn over(&self) -> u64 {
        self.after(1, 1)
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

/// Renews until `stopped` is readable, which answers nothing, or the store says that the lock is lost. Each renewal is told to `tell`,
/// and why there was none.
///
/// # Errors
/// When it cannot sleep.
fn keep(
    mutex: &mut Mutex<'_>,
    charge: &mut Charge,
    stopped: BorrowedFd<'_>,
    tell: &mut dyn FnMut(Result<&Charge, &Error>) -> io::Result<()>,
) -> io::Result<Option<Error>> {
    let timer = Timer::new()?;
    timer.set(charge.due())?;
    // Ends when it is told to, or with the lease, which the store calls lost then, once it answers.
    loop {
        backend::sleep(LONG, &[stopped, timer.fd()])?;
        if is_readable(stopped)? {
            return Ok(None);
        }
        if !is_readable(timer.fd())? {
            continue;
        }
        let next = match mutex.renew(&charge.grant.token, None) {
            Ok(grant) => {
                tracing::debug!("renewed the lease of `{}`", mutex.location());
                charge.grant = grant;
                tell(Ok(charge))?;
                charge.due()
            }
            // What was released meanwhile is not lost.
            Err(Error::Lost(..)) if is_readable(stopped)? => return Ok(None),
            Err(lost @ Error::Lost(..)) => return Ok(Some(lost)),
            // Whatever it is, it may be over soon, and nobody has said yet that the lock is lost.
            Err(error) => {
                tracing::debug!("cannot renew the lease: {error}");
                tell(Err(&error))?;
                since_boot() + charge.pause()
            }
        };
        // Who only keeps a connection for its next renewal keeps it from others.
        mutex.disconnect();
        timer.set(next)?;
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
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
