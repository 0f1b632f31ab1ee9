//! What `status` tells about a lock.

use rustix::process::Pid;
use serde::Serialize;

use crate::backend::Location;
use crate::holder::Holder;
use crate::mutex::Looked;
use crate::verdict::{Held, Judged, Stale, Verdict};
use crate::waiter::Waiter;

pub const FREE: &str = "free";
pub const HELD: &str = "held";
pub const UNKNOWN: &str = "unknown";
pub const STALE: &str = "stale";

#[derive(Serialize)]
pub struct Report {
    pub locks: Vec<Lock>,
}

#[derive(Serialize)]
pub struct Lock {
    pub path: String,
    /// One of those above, as a holder's.
    pub state: &'static str,
    pub reason: Option<String>,
    /// The first of them, for programs that know plain mutexes only.
    pub holder: Option<HolderReport>,
    pub holders: Vec<HolderReport>,
    pub waiters: Vec<WaiterReport>,
}

#[derive(Clone, Serialize)]
pub struct HolderReport {
    pub state: &'static str,
    pub reason: String,
    pub mode: Option<String>,
    pub pid: Option<i32>,
    pub command: Option<String>,
    pub host: Option<String>,
    pub uid: Option<u32>,
    pub since: Option<String>,
    pub held_seconds: Option<u64>,
    pub run: Option<String>,
    pub token: Option<String>,
    pub fencing_token: Option<u64>,
    pub lease_seconds: Option<f64>,
    pub lease_renewals: Option<u64>,
    /// The process that renews the lease, or releases the lock when the command has ended.
    pub keeper_pid: Option<i32>,
    #[serde(skip)]
    pub holder: Holder,
}

#[derive(Serialize)]
pub struct WaiterReport {
    pub pid: Option<i32>,
    pub command: Option<String>,
    pub host: Option<String>,
}

impl Lock {
    /// A lock without holders.
    pub fn new(location: &Location, state: &'static str, reason: Option<String>) -> Self {
        Self { path: location.printable(), state, reason, holder: None, holders: Vec::new(), waiters: Vec::new() }
    }
}

pub fn report(location: &Location, found: Option<Looked>, waiters: Vec<Waiter>) -> Lock {
    let judged = found.map(|(_, judged)| judged).unwrap_or_default();
    // A notice of a release is not a holder.
    let is_left = |judged: &&Judged<Verdict>| !matches!(judged.verdict, Verdict::Stale(Stale::Released));
    let holders: Vec<_> = judged.iter().filter(is_left).map(holder).collect();
    // A name whose directory is missing may be mistyped.
    let is_nowhere = matches!(location, Location::File(directory, _) if !directory.is_dir());
    let mut lock = Lock::new(location, FREE, is_nowhere.then(|| "its directory does not exist".to_owned()));
    let waiter = |Waiter { pid, host, command }| WaiterReport { pid: pid.map(Pid::as_raw_pid), command, host };
    lock.waiters = waiters.into_iter().map(waiter).collect();
    // A live holder counts, wherever in the record it stands.
    let first = [HELD, UNKNOWN, STALE].iter().find_map(|state| holders.iter().find(|holder| holder.state == *state));
    if let Some(first) = first {
        (lock.state, lock.reason, lock.holder) = (first.state, Some(first.reason.clone()), Some(first.clone()));
    }
    Lock { holders, ..lock }
}

fn holder(judged: &Judged<Verdict>) -> HolderReport {
    let (state, reason) = match &judged.verdict {
        Verdict::Held(held @ Held::Unknown(_)) => (UNKNOWN, held.to_string()),
        Verdict::Held(held) => (HELD, held.to_string()),
        Verdict::Stale(why) => (STALE, why.to_string()),
    };
    let holder = Holder::new(judged);
    let entry = holder.entry.as_ref();
    let lease = entry.and_then(|entry| entry.lease);
    HolderReport {
        state,
        reason,
        mode: entry.map(|entry| entry.mode.to_string()),
        pid: entry.map(|entry| entry.owner.pid.as_raw_pid()),
        command: entry.and_then(|entry| entry.command.clone()),
        host: entry.and_then(|entry| entry.owner.place.host.clone()),
        uid: entry.and_then(|entry| entry.owner.uid),
        since: holder.since.map(|since| since.to_string()),
        held_seconds: holder.held_for().map(|duration| duration.as_secs()),
        run: entry.and_then(|entry| entry.run.clone()),
        token: entry.and_then(|entry| entry.token.clone()),
        fencing_token: entry.and_then(|entry| entry.fencing),
        lease_seconds: lease.map(|lease| lease.duration.as_secs_f64()),
        lease_renewals: lease.map(|lease| lease.renewals),
        keeper_pid: entry.and_then(|entry| entry.keeper).map(|(pid, _)| pid.as_raw_pid()),
        holder,
    }
}
