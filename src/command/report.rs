//! The end of a run, as its runner reports it to the scheduler. The scheduler stores it over its
//! own connection, because a login costs more than many a command. A runner without an answer
//! stores the end itself.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::lock::once::Ending;
use crate::lock::requester::Requester;
use crate::lock::{self, Grant, Mutex, ReleaseScope, Released};
use crate::record::Outcome;
use crate::sys::{channel, poll};

/// The answer of a scheduler that has stored the end.
const STORED: &[u8] = b"+";

/// How long to wait for the answer; at most a part of the lease, which is not renewed meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
const PART: u32 = 8;

const MAX_REPORT: usize = 4096;

/// The token of the run, and the fields of its [`Ending`].
pub type Report = (String, Outcome, String, Option<u8>);

/// What a scheduler has handed over: the acquisition, the duration of its lease, and the connection
/// to the scheduler.
pub type HandedOver = (Grant, Duration, OwnedFd);

/// Stores the end of a run, or lets its scheduler do it.
pub fn conclude(
    mutex: &mut Mutex<'_>,
    requester: &dyn Requester,
    handed_over: Option<&HandedOver>,
    ending: Ending<'_>,
) -> Result<Released, lock::Error> {
    let Some((grant, lease, scheduler)) = handed_over else {
        return mutex.release(requester, ReleaseScope::Own, ending);
    };
    if is_stored(scheduler, &grant.token, ending, *lease).unwrap_or(false) {
        return Ok(Released::Own { stays: None, was: Vec::new() });
    }
    // The scheduler may have stored the end, and its confirmation was lost.
    mutex.end_run(requester, &grant.token, ending)
}

/// Whether the scheduler confirms that it has stored the end.
fn is_stored(
    scheduler: &OwnedFd,
    token: &str,
    ending: Ending<'_>,
    lease: Duration,
) -> io::Result<bool> {
    let Ending { outcome, how, code } = ending;
    // Nothing else was sent, so this does not wait.
    channel::send(scheduler, &serde_json::to_vec(&(token, outcome, how, code))?)?;
    poll::sleep(PATIENCE.min(lease / PART), &[scheduler.as_fd()])?;
    Ok(channel::receive_now(scheduler, STORED.len())? == STORED)
}

/// The report that has come; `None` if the runner has ended without one.
pub fn receive_end(runner: &OwnedFd) -> Option<Report> {
    serde_json::from_slice(&channel::receive_now(runner, MAX_REPORT).ok()?).ok()
}

/// Tells the runner that its end is stored.
pub fn confirm_end(runner: &OwnedFd) {
    let _ = channel::send(runner, STORED);
}
