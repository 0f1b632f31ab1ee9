//! What `status` shows of a lock.

use serde::Serialize;

use super::{Row, table};
use crate::backend::{self, Cause, Location};
use crate::holder::Holder;
use crate::local_time::{local_time, short};
use crate::mode::Mode;
use crate::mutex::Mutex;
use crate::verdict::{Held, Judged, Stale, Verdict};
use crate::waiter::Waiter;

const FREE: &str = "free";
const HELD: &str = "held";
const UNKNOWN: &str = "unknown";
const STALE: &str = "stale";

#[derive(Serialize)]
pub struct Lock {
    path: String,
    /// One of those above, as a holder's.
    state: &'static str,
    reason: Option<String>,
    /// The first of them, for programs that know plain mutexes only.
    holder: Option<HolderReport>,
    holders: Vec<HolderReport>,
    waiters: Vec<Waiter>,
}

#[derive(Clone, Serialize)]
struct HolderReport {
    state: &'static str,
    reason: String,
    mode: Option<String>,
    pid: Option<i32>,
    command: Option<String>,
    host: Option<String>,
    uid: Option<u32>,
    since: Option<String>,
    held_seconds: Option<u64>,
    run: Option<String>,
    token: Option<String>,
    fencing_token: Option<u64>,
    lease_seconds: Option<f64>,
    lease_renewals: Option<u64>,
    /// The process that renews the lease, or releases the lock when the command has ended.
    keeper_pid: Option<i32>,
    #[serde(skip)]
    holder: Holder,
}

impl Lock {
    /// A lock without holders.
    fn new(location: &Location, state: &'static str, reason: Option<String>) -> Self {
        let (holder, holders, waiters) = Default::default();
        Self { path: location.printable(), state, reason, holder, holders, waiters }
    }
}

impl Row for Lock {
    fn look(location: &Location, mutex: &mut Mutex<'_>, is_named: bool) -> Result<Option<Self>, backend::Error> {
        let judged = match mutex.look() {
            // flock(1) leaves empty files, and other programs keep files of that name.
            Ok(Some((stored, _))) if !is_named && stored.record.is_none() => return Ok(None),
            Err(error) if !is_named && error.cause == Cause::NotALock => return Ok(None),
            looked => looked?.map(|(_, judged)| judged).unwrap_or_default(),
        };
        // A notice of a release is not a holder.
        let is_left = |judged: &&Judged<Verdict>| !matches!(judged.verdict, Verdict::Stale(Stale::Released));
        let holders: Vec<_> = judged.iter().filter(is_left).map(HolderReport::new).collect();
        // A name whose directory is missing may be mistyped.
        let is_nowhere = matches!(location, Location::File(directory, _) if !directory.is_dir());
        let mut lock = Self::new(location, FREE, is_nowhere.then(|| "its directory does not exist".to_owned()));
        lock.waiters = mutex.waiters();
        // A live holder counts, wherever in the record it stands.
        let first = [HELD, UNKNOWN, STALE].iter().find_map(|state| holders.iter().find(|holder| holder.state == *state));
        if let Some(first) = first {
            (lock.state, lock.reason, lock.holder) = (first.state, Some(first.reason.clone()), Some(first.clone()));
        }
        Ok(Some(Self { holders, ..lock }))
    }

    fn unreadable(location: &Location, error: &backend::Error) -> Option<Self> {
        Some(Self::new(location, UNKNOWN, Some(error.to_string())))
    }
}

impl HolderReport {
    fn new(judged: &Judged<Verdict>) -> Self {
        let (state, reason) = match &judged.verdict {
            Verdict::Held(held @ Held::Unknown(_)) => (UNKNOWN, held.to_string()),
            Verdict::Held(held) => (HELD, held.to_string()),
            Verdict::Stale(why) => (STALE, why.to_string()),
        };
        let holder = Holder::new(judged);
        let entry = holder.entry.as_ref();
        let lease = entry.and_then(|entry| entry.lease);
        Self {
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
}

/// A line for each holder, and for each waiter.
pub fn table(locks: &[Lock]) -> String {
    let mut rows = Vec::new();
    let number = |number: Option<i32>| number.map(|number| number.to_string());
    for lock in locks {
        let mut add = |state: &str, [pid, command, host, since, held_for, why]: [Option<String>; 6]| {
            rows.push([Some(lock.path.clone()), Some(state.to_owned()), pid, command, host, since, held_for, why]);
        };
        if lock.holders.is_empty() {
            add(lock.state, [None, None, None, None, None, lock.reason.clone()]);
        }
        for holder in &lock.holders {
            let mode = holder.mode.as_ref().filter(|mode| **mode != Mode::EXCLUSIVE.to_string());
            let since = holder.holder.since.map(|since| local_time(since).to_string());
            let held_for = holder.holder.held_for().map(short);
            let why = holder.reason.clone() + &mode.map(|mode| format!("; {mode}")).unwrap_or_default();
            add(holder.state, [number(holder.pid), holder.command.clone(), holder.host.clone(), since, held_for, Some(why)]);
        }
        for (place, waiter) in lock.waiters.iter().enumerate() {
            let place = match place {
                0 => "next".to_owned(),
                place => format!("behind {place} other{}", if place == 1 { "" } else { "s" }),
            };
            add("waits", [number(waiter.pid), waiter.command.clone(), waiter.host.clone(), None, None, Some(place)]);
        }
    }
    table::table(["LOCK", "STATE", "PID", "COMMAND", "HOST", "SINCE", "FOR", "WHY"], rows)
}
