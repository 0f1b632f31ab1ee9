//! What `status` tells about a lock.

use rustix::process::Pid;
use serde::Serialize;

use crate::backend::Location;
use crate::holder::Holder;
use crate::mutex::Looked;
use crate::verdict::{Held, Judged, Stale, Verdict};
use crate::waiter::Waiter;

#[derive(Serialize)]
pub struct Report {
    pub locks: Vec<Lock>,
}

#[derive(Default, Serialize)]
pub struct Lock {
    pub path: String,
    pub state: State,
    pub reason: Option<String>,
    /// The first of them, for whoever knows plain mutexes only.
    pub holder: Option<HolderReport>,
    pub holders: Vec<HolderReport>,
    pub waiters: Vec<WaiterReport>,
}

#[derive(Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    #[default]
    Free,
    Held,
    Stale,
    Unknown,
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Held => "held",
            Self::Stale => "stale",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Clone, Serialize)]
pub struct HolderReport {
    pub state: State,
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
    /// What renews the lease, or releases the lock when the command has ended.
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

pub fn report(location: &Location, found: Option<Looked>, waiters: Vec<Waiter>) -> Lock {
    // Perhaps the name is mistyped.
    let is_nowhere = match location {
        Location::File(path) => path.parent().is_some_and(|directory| !directory.is_dir()),
        Location::Store(..) => false,
    };
    let path = location.printable();
    let waiter = |Waiter { pid, host, command }| WaiterReport { pid: pid.map(Pid::as_raw_pid), command, host };
    let waiters = waiters.into_iter().map(waiter).collect();
    let judged = found.map(|(_, judged)| judged).unwrap_or_default();
    // What only tells that it was released is nobody's.
    let is_left = |judged: &&Judged<Verdict>| !matches!(judged.verdict, Verdict::Stale(Stale::Released));
    let holders: Vec<_> = judged.iter().filter(is_left).map(holder).collect();
    // Whoever still holds it counts, wherever in the record it stands.
    let first = [State::Held, State::Unknown, State::Stale]
        .into_iter()
        .find_map(|state| holders.iter().find(|holder| holder.state == state))
        .cloned();
    let Some(first) = first else {
        let reason = is_nowhere.then(|| "its directory does not exist".to_owned());
        return Lock { path, reason, waiters, ..Lock::default() };
    };
    Lock { path, state: first.state, reason: Some(first.reason.clone()), holder: Some(first), holders, waiters }
}

fn holder(judged: &Judged<Verdict>) -> HolderReport {
    let (state, reason) = match &judged.verdict {
        Verdict::Held(held @ Held::Unknown(_)) => (State::Unknown, held.to_string()),
        Verdict::Held(held) => (State::Held, held.to_string()),
        Verdict::Stale(why) => (State::Stale, why.to_string()),
    };
    let holder = Holder::new(judged);
    let entry = holder.entry.as_ref();
    HolderReport {
        lease_renewals: entry.and_then(|entry| entry.lease).map(|lease| lease.renewals),
        keeper_pid: entry.and_then(|entry| entry.keeper).map(|(pid, _)| pid.as_raw_pid()),
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
        lease_seconds: entry.and_then(|entry| entry.lease).map(|lease| lease.duration.as_secs_f64()),
        holder,
    }
}
