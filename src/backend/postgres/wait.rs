//! Sleeping until something may have changed.

use std::future::poll_fn;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::link::Link;
use crate::backend::remote::Failure;
use crate::backend::sleep;

/// How long to sleep at most where the server tells of changes: against what it may have failed to tell.
pub const TOLD: Duration = Duration::from_secs(10);

/// How long to sleep at most where it does not.
pub const UNTOLD: Duration = Duration::from_secs(1);

/// How long a statement that ends by itself may take for that.
pub const ANSWERING: Duration = Duration::from_millis(100);

/// How long to listen to a session that says something, until that has come. It comes in one piece.
const LISTENING: Duration = Duration::from_millis(1);

/// Sleeps for `limit`, until one of `fds` is readable, or until the session says something, or ends. Nothing is lost before or
/// between: what the session has said by then was taken in by whoever asked it something, or is in its socket.
pub fn wait(runtime: &Runtime, link: &mut Link, limit: Duration, fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    if link.was_told() {
        return Ok(());
    }
    // By poll and not by the runtime, which would have to be trusted (`unsafe`) not to keep what is only lent.
    let all: Vec<_> = fds.iter().copied().chain([link.socket()]).collect();
    sleep(limit, &all)?;
    // However much has come is one event.
    let _ = runtime.block_on(async { timeout(LISTENING, poll_fn(|context| link.poll_told(context))).await });
    link.was_told();
    Ok(())
}

/// Sleeps in line for `limit`, or until one of `fds` is readable. Returns whether the session can be asked again: the one ahead has
/// left, or it has been long enough.
///
/// # Errors
/// When there is no such line.
pub fn stand(runtime: &Runtime, link: &mut Link, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<bool, Failure> {
    let deadline = Instant::now() + limit;
    // Ends with the deadline.
    loop {
        let heard = runtime.block_on(async { timeout(LISTENING, poll_fn(|context| link.poll_standing(context))).await });
        if let Ok(heard) = heard {
            return heard.map(|()| true);
        }
        let rest = deadline.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return Ok(false);
        }
        let socket = link.socket();
        let all = fds.iter().copied().chain([socket]);
        let mut all: Vec<_> = all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let rest = Timespec::try_from(rest).unwrap_or_default();
        let is_interrupted = match poll(&mut all, Some(&rest)) {
            Ok(_) => all.iter().take(fds.len()).any(|fd| !fd.revents().is_empty()),
            Err(Errno::INTR) => true,
            Err(error) => return Err(Failure::permanent(format!("cannot sleep: {}", crate::backend::plain(&error.into())))),
        };
        if is_interrupted {
            return Ok(false);
        }
    }
}
