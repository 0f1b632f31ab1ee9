//! The process that `lock` leaves behind: it renews the lease while the owner lives, or what
//! continues for it, and then releases the lock.
//!
//! It is started before the lock is acquired, because the record names it, and gets its orders
//! afterwards. If `lock` dies in between, the connection closes, and the keeper ends. The address
//! of the store is not on its command line, which other users could read. It has a session of its
//! own, and none of the files of `lock`: a pipe would never end for its reader.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use super::thread::Renewing;
use super::{LONG, LeaseGrant, TokenHolder};
use crate::lease::OnLost;
use crate::lock::register::Register;
use crate::lock::staleness::{Held, LivenessCheck, LocalLiveness, Orphans, Verdict};
use crate::lock::{Mutex, ReleaseScope, Stored};
use crate::record::{Entry, Outcome, Record};
use crate::run::shim::spawn;
use crate::run::termination::end_tree;
use crate::store::Location;
use crate::store::seam::State;
use crate::sys::clock::since_boot;
use crate::sys::identity::{HostIdentity, ProcessIdentity};
use crate::sys::poll::{self, is_readable};
use crate::sys::{channel, process};

/// The argument that makes a process of this program a keeper.
const NAME: &str = "keep-lease";

/// The largest message: a record of one holder, and an address.
const MAX_MESSAGE: usize = 64 * 1024;

/// What the keeper answers when it has begun; anything else is why it cannot.
const BEGUN: &[u8] = b"+";

const MAX_ANSWER: usize = 4096;

/// How long to wait for the answer. The keeper only has to start.
const START: Duration = Duration::from_secs(10);

/// The keeper, as seen by the process that started it.
#[derive(Debug)]
pub struct Keeper {
    /// Which process it is.
    pub identity: (Pid, ProcessIdentity),
    channel: OwnedFd,
}

/// The lock that is kept. As a message, it holds the store's password.
#[derive(Serialize, Deserialize)]
struct KeptLock {
    location: Location,
    record: String,
    charge: LeaseGrant,
    orphans: Orphans,
    on_lost: OnLost,
}

impl Keeper {
    /// Starts the process; it does nothing yet.
    pub fn spawn() -> io::Result<Self> {
        // Inherited files must not stay open as long as the owner lives.
        close_fds::set_fds_cloexec(3, &[]);
        let (pid, channel) =
            spawn(NAME, |command| command.stdout(Stdio::null()).stderr(Stdio::null()))?;
        let instance = process::running(pid).ok_or_else(has_ended)?.instance;
        Ok(Self { identity: (pid, instance), channel })
    }

    /// Lets it keep the lease of `entry`. It has begun when this returns.
    pub fn keep(
        &self,
        location: &Location,
        entry: &Entry,
        charge: &LeaseGrant,
        orphans: Orphans,
        on_lost: OnLost,
    ) -> io::Result<()> {
        let record = Record::of(vec![entry.clone()]).ok_or(io::ErrorKind::FileTooLarge)?.to_text();
        let (location, charge) = (location.clone(), charge.clone());
        let kept = KeptLock { location, record, charge, orphans, on_lost };
        channel::send(&self.channel, &serde_json::to_vec(&kept)?)?;
        let rest = Duration::from_millis(kept.charge.given_up().saturating_sub(since_boot()));
        poll::sleep(START.min(rest), &[self.channel.as_fd()])?;
        match channel::receive_now(&self.channel, MAX_ANSWER) {
            Ok(answer) if answer.is_empty() => Err(has_ended()),
            Ok(answer) if answer == BEGUN => Ok(()),
            Ok(answer) => Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::Error::other("the process that keeps the lease does not answer"))
            }
            Err(error) => Err(error),
        }
    }
}

fn has_ended() -> io::Error {
    io::Error::other("the process that keeps the lease has ended")
}

/// Signals a process; not by the PID alone, which may have become another process's.
pub fn send_signal((pid, instance): (Pid, ProcessIdentity), signal: Signal) {
    if let Some(process) = process::running(pid)
        && instance.same_as(process.instance) == Some(true)
    {
        process.signal(signal);
    }
}

/// Ends the keeper of a released lock, if it is a process of this place. By itself, it would notice
/// the release only at its next renewal. SIGTERM may be ignored by a script, and so by its keeper.
pub fn dismiss(entry: &Entry) {
    if entry.lease.is_some() {
        signal_keeper(entry, NAME, Signal::KILL);
    }
}

/// Sends a signal to the keeper of an entry, if it is a process of this place that was started with
/// the argument `name`.
pub fn signal_keeper(entry: &Entry, name: &str, signal: Signal) {
    // Hosts are renamed, and that does not matter here.
    let (place, here) = (&entry.owner.place, HostIdentity::here());
    let is_here = place.boot.is_some()
        && (&place.boot, place.pid_namespace) == (&here.boot, here.pid_namespace);
    let Some(keeper) = entry.keeper.filter(|_| is_here) else { return };
    // The record may name any process.
    if process::arguments(keeper.0).get(1).is_some_and(|argument| argument == name) {
        send_signal(keeper, signal);
    }
}

/// Acts as a keeper, if this process was started as one. Must be called before anything else.
pub fn help() -> Option<ExitCode> {
    let is_keeper = std::env::args_os().nth(1)? == NAME;
    is_keeper.then(|| main().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
}

/// `None` if it cannot keep the lease.
fn main() -> Option<()> {
    // A search for work that continues must skip this process.
    process::set_name(c"serializer");
    let channel = io::stdin().as_fd().try_clone_to_owned().ok()?;
    // Without a message, the lock was not acquired.
    let message = channel::receive(&channel, MAX_MESSAGE).ok()?;
    let kept: KeptLock = serde_json::from_slice(&message).ok()?;
    let entry = kept.entry()?;
    // What `lock` could read may be gone (a password in a pipe). And a keeper that begins too late
    // must not end an owner that was never told that it has the lock.
    let begun = if kept.charge.is_given_up() {
        Err("its lease expired before it could be renewed".to_owned())
    } else {
        Register::open(&kept.location).map(drop).map_err(|error| error.to_string())
    };
    // Ctrl-C is meant for the owner.
    let _ = rustix::process::setsid();
    let answer =
        begun.as_ref().map_or_else(|why| &why.as_bytes()[..why.len().min(MAX_ANSWER)], |()| BEGUN);
    channel::send(&channel, answer).ok()?;
    begun.ok()?;
    drop(channel);
    kept.keep(&entry).ok()
}

impl KeptLock {
    fn entry(&self) -> Option<Entry> {
        let entry = Record::parse(self.record.as_bytes()).ok()?.entries().first()?.clone();
        // The keeper judges the owner by what is seen from here alone.
        Some(Entry { keeper: None, lease: None, until: None, ..entry })
    }

    fn keep(self, entry: &Entry) -> io::Result<()> {
        let judge = LocalLiveness::here(self.orphans);
        let (owner, grace) = (entry.owner.clone(), self.charge.grace());
        let ends_owner = self.on_lost == OnLost::Terminate;
        // When this process cannot continue.
        let at_worst = Box::new(move || {
            if ends_owner && process::is_running((owner.pid, owner.instance)) {
                let _ = end_tree(owner.pid, since_boot() + grace);
            }
        });
        let charge = self.charge.clone();
        let renewing = Renewing::start(&self.location, charge, None, self.on_lost, at_worst)?;
        let state = State { is_local: true, ..State::default() };
        let here = Stored { record: None, state };
        // Ends with the owner, or with the lease.
        loop {
            let Verdict::Held(held) = judge.judge(&here, entry) else {
                drop(renewing);
                let mut mutex = Mutex::open(&self.location, &judge).map_err(io::Error::other)?;
                let holder = TokenHolder(&self.charge.grant.token);
                // If this fails, the lease expires.
                let _ = mutex.release(&holder, ReleaseScope::Own, Outcome::Unknown);
                return Ok(());
            };
            let lost = renewing.lost_fd();
            let fds: Vec<_> = held.ended_fd().into_iter().chain([lost]).collect();
            poll::sleep(held.look_again_in().unwrap_or(LONG), &fds)?;
            // The PID of a process that has ended may be another process's.
            if held.ended_fd().is_some_and(|ended| is_readable(&ended)) {
                continue;
            }
            if is_readable(&lost) {
                // The owner may have unlocked without being able to tell us.
                if self.on_lost == OnLost::Terminate
                    && !renewing.is_released()
                    && let Held::Alive(Some(process)) | Held::RunGoesOn { process, .. } = &held
                    && !process.has_ended()
                {
                    end_tree(process.pid(), renewing.kill_at())?;
                }
                return Ok(());
            }
        }
    }
}
