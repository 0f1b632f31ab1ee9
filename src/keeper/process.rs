//! The process that `lock` leaves behind: it renews the lease while the owner lives, or what goes on for it, and then releases the
//! lock.
//!
//! It is made before the lock is acquired, so that the record names it, and told what to keep afterwards. If whoever made it dies in
//! between, its connection is closed, and it ends. The address of the store is not on its command line, where everybody
//! could read it.
//!
//! It has a session of its own, and none of the files that `lock` was given: a pipe that it kept open would never end for who reads
//! it.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{Pid, Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::thread::Renewing;
use super::{Charge, LONG, TokenHolder, is_readable};
use crate::backend::{self, Content, Location, Stored, Version};
use crate::child::helper::{self, not_by_hand};
use crate::child::termination::end_tree;
use crate::config::OnLost;
use crate::mutex::{Grant, Mutex, Whose};
use crate::owner::{Instance, Place};
use crate::process::{self, Observation, since_boot};
use crate::record::{Entry, Outcome, Record};
use crate::store::{StoreSettings, StoreUrl};
use crate::verdict::{Held, Judge, LocalJudge, Orphans, Verdict};

/// What this process is called on its command line.
const NAME: &str = "keep-lease";

/// The largest message: a record of one holder, and an address.
const MAX_MESSAGE: usize = 64 * 1024;

/// What it says when it has begun; anything else is why it cannot.
const BEGUN: &[u8] = b"+";

/// More than what it says.
const MAX_ANSWER: usize = 4096;

/// How long to wait for the new process to say that it is there. It only has to start.
const START: Duration = Duration::from_secs(10);

/// How often to look at an owner whose end nobody tells.
const UNHEARD: Duration = Duration::from_secs(1);

/// The process, as who makes it sees it.
#[derive(Debug)]
pub struct Keeper {
    pid: Pid,
    instance: Instance,
    channel: OwnedFd,
}

/// What it has to do.
#[derive(Serialize, Deserialize)]
struct Orders {
    url: String,
    password_file: Option<PathBuf>,
    timeout_ms: u64,
    name: Vec<u8>,
    /// The record of this one holder.
    record: String,
    lease_ms: u64,
    leased_at: u64,
    ignores_orphans: bool,
    terminates: bool,
}

impl Keeper {
    /// Makes it; it does nothing yet.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn spawn() -> io::Result<Self> {
        // Whatever else was inherited must not stay open as long as the owner lives.
        close_fds::set_fds_cloexec(3, &[]);
        let (pid, channel) = helper::spawn("serializer", NAME, |command| {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        })?;
        let Observation::Running(process) = process::observe(pid) else {
            return Err(io::Error::other("the process that keeps the lease has ended"));
        };
        Ok(Self { pid, instance: process.instance, channel })
    }

    /// Which process it is.
    pub fn identity(&self) -> (Pid, Instance) {
        (self.pid, self.instance)
    }

    /// Lets it keep what was granted for `entry`. It has begun when this returns.
    ///
    /// # Errors
    /// When it does not.
    pub fn keep(&self, location: &Location, entry: &Entry, charge: &Charge, orphans: Orphans, on_lost: OnLost) -> io::Result<()> {
        let Location::Store(settings, name) = location else { return Err(io::ErrorKind::Unsupported.into()) };
        let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let record = Record::of(vec![entry.clone()]).ok_or(io::ErrorKind::FileTooLarge)?;
        let orders = Orders {
            url: settings.url.secret(),
            password_file: settings.password_file.clone(),
            timeout_ms: milliseconds(settings.timeout),
            name: name.as_bytes().to_owned(),
            record: record.to_text(),
            lease_ms: milliseconds(charge.lease),
            leased_at: charge.grant.leased_at,
            ignores_orphans: orphans == Orphans::Ignore,
            terminates: on_lost == OnLost::Terminate,
        };
        send(&self.channel, &serde_json::to_vec(&orders)?, SendFlags::NOSIGNAL)?;
        // Nor longer than there is something to keep.
        let rest = Duration::from_millis(charge.given_up().saturating_sub(since_boot()));
        backend::sleep(START.min(rest), &[self.channel.as_fd()])?;
        let mut answer = [0; MAX_ANSWER];
        match recv(&self.channel, &mut answer, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => Err(io::Error::other("the process that keeps the lease has ended")),
            Ok((_, length)) if &answer[..length] == BEGUN => Ok(()),
            Ok((_, length)) => Err(io::Error::other(String::from_utf8_lossy(&answer[..length]).into_owned())),
            Err(Errno::AGAIN) => Err(io::Error::other("the process that keeps the lease does not answer")),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends it, whatever it does.
    pub fn kill(&self) {
        kill((self.pid, self.instance));
    }
}

/// By what it is and not by its number alone, which may have become another one's.
fn kill((pid, instance): (Pid, Instance)) {
    if let Observation::Running(process) = process::observe(pid)
        && instance.same_as(process.instance) == Some(true)
        && let Some(pidfd) = process.ended_fd()
    {
        // Not by SIGTERM, which a script may ignore, and its keeper with it.
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
}

/// Ends the keeper of a lock that was released, if it is a process of this place.
pub fn dismiss(entry: &Entry, here: &Place) {
    // Hosts are renamed, and that does not matter here.
    let is_here = |place: &Place| place.boot.is_some() && (&place.boot, place.pid_namespace) == (&here.boot, here.pid_namespace);
    let Some((pid, instance)) = entry.keeper.filter(|_| entry.lease.is_some() && is_here(&entry.owner.place)) else { return };
    // The keeper of a command is `run` itself.
    if process::arguments(pid).get(1).is_none_or(|name| name != NAME) {
        return;
    }
    // It would notice by itself when it renews the lease the next time.
    kill((pid, instance));
}

/// If this process was started as a keeper, is one. To be asked before anything else.
pub fn help() -> Option<ExitCode> {
    (std::env::args_os().nth(1)? == NAME).then(main)
}

fn main() -> ExitCode {
    // Who looks for work that goes on must know that this is none.
    let _ = rustix::thread::set_name(c"serializer");
    let Ok(channel) = io::stdin().as_fd().try_clone_to_owned() else { return not_by_hand(NAME) };
    let mut message = vec![0; MAX_MESSAGE];
    let orders = match rustix::io::retry_on_intr(|| recv(&channel, &mut message, RecvFlags::empty())) {
        // Whoever made it did not get the lock.
        Ok((_, 0)) => return ExitCode::FAILURE,
        Ok((_, length)) => serde_json::from_slice::<Orders>(&message[..length]),
        Err(_) => return not_by_hand(NAME),
    };
    let Some(ward) = orders.ok().and_then(Ward::of) else { return ExitCode::FAILURE };
    // What `lock` could read need not be there any more (a password in a pipe). And whoever begins too late must not end an owner that
    // was never told that it has the lock.
    let begun = if ward.charge.is_given_up() {
        Err("its lease is over".to_owned())
    } else {
        backend::open(&ward.location).map(drop).map_err(|error| error.to_string())
    };
    if let Err(why) = begun {
        let _ = send(&channel, &why.as_bytes()[..why.len().min(MAX_ANSWER)], SendFlags::NOSIGNAL);
        return ExitCode::FAILURE;
    }
    // Ctrl-C is meant for the owner.
    let _ = rustix::process::setsid();
    if send(&channel, BEGUN, SendFlags::NOSIGNAL).is_err() {
        return ExitCode::FAILURE;
    }
    drop(channel);
    match ward.keep() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Whose lock is kept.
struct Ward {
    location: Location,
    entry: Entry,
    charge: Charge,
    orphans: Orphans,
    on_lost: OnLost,
}

impl Ward {
    fn of(orders: Orders) -> Option<Self> {
        let settings = StoreSettings {
            url: StoreUrl::parse(&orders.url).ok()?,
            password_file: orders.password_file,
            timeout: Duration::from_millis(orders.timeout_ms),
        };
        let entry = Record::parse(orders.record.as_bytes()).ok()?.entries().first()?.clone();
        let grant = Grant { token: entry.token.clone()?, fencing: entry.fencing, leased_at: orders.leased_at };
        Some(Self {
            location: Location::Store(settings, OsString::from_vec(orders.name)),
            charge: Charge { grant, lease: Duration::from_millis(orders.lease_ms) },
            entry,
            orphans: if orders.ignores_orphans { Orphans::Ignore } else { Orphans::Wait },
            on_lost: if orders.terminates { OnLost::Terminate } else { OnLost::Warn },
        })
    }

    fn keep(self) -> io::Result<()> {
        let judge = LocalJudge::new(Place::here(), self.orphans);
        let token = self.charge.grant.token.clone();
        let renewing = Renewing::start(&self.location, self.charge.clone(), self.on_lost, self.at_worst())?;
        // Ends with the owner, or with the lease.
        loop {
            let Some(held) = self.judge_owner(&judge)? else {
                drop(renewing);
                let mut mutex = Mutex::new(backend::open(&self.location).map_err(io::Error::other)?, &judge);
                // If that cannot be done, the lease runs out.
                let _ = mutex.release(&TokenHolder(&token), Whose::OwnAlone, Outcome::Unknown);
                return Ok(());
            };
            let lost = match self.on_lost {
                OnLost::Terminate => renewing.lost_fd(),
                OnLost::Warn => renewing.ended_fd(),
            };
            // What nobody tells is looked at from time to time.
            let limit = held.look_again_in().or(held.ended_fd().is_none().then_some(UNHEARD)).unwrap_or(LONG);
            let fds: Vec<BorrowedFd<'_>> = held.ended_fd().into_iter().chain([lost]).collect();
            backend::sleep(limit, &fds)?;
            // Whoever has ended needs no end, and its number may have become another one's.
            if held.ended_fd().map(is_readable).transpose()? == Some(true) {
                continue;
            }
            if is_readable(lost)? {
                // The owner may have unlocked without being able to tell us.
                if self.on_lost == OnLost::Terminate
                    && !renewing.is_released()
                    && let Some(pid) = self.pid_of(&held)
                {
                    end_tree(pid, renewing.kill_at())?;
                }
                return Ok(());
            }
        }
    }

    /// What is done about the owner when this process cannot go on.
    fn at_worst(&self) -> Box<dyn Fn() + Send + Sync> {
        let (owner, grace) = (self.entry.owner.clone(), self.charge.grace());
        let ends_owner = self.on_lost == OnLost::Terminate;
        Box::new(move || {
            if ends_owner && process::is_running((owner.pid, owner.instance)) {
                let grace = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX / 2);
                // Nothing is left to be done where it fails.
                let _ = end_tree(owner.pid, since_boot() + grace);
            }
        })
    }

    /// Why the lock is to be held yet, if it is.
    fn judge_owner(&self, judge: &LocalJudge) -> io::Result<Option<Held>> {
        // By what is seen from here alone.
        let entry = Entry { keeper: None, lease: None, until: None, ..self.entry.clone() };
        let record = Record::of(vec![entry.clone()]).ok_or(io::ErrorKind::FileTooLarge)?;
        let content = Content::Record(Box::new(record.clone()));
        let stored = Stored { content, version: Version::default(), written: None, is_local: true, now: None };
        Ok(match judge.judge(&stored, &record, &entry) {
            Verdict::Held(held) => Some(held),
            Verdict::Stale(_) => None,
        })
    }

    /// The process that the lock is held for.
    fn pid_of(&self, held: &Held) -> Option<Pid> {
        match held {
            Held::Alive(_) => Some(self.entry.owner.pid),
            Held::RunGoesOn { relative, .. } => Some(relative.pid),
            _ => None,
        }
    }
}
