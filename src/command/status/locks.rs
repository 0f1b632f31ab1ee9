//! What `status` shows of a lock.

use serde_json::{Value, json};

use super::Row;
use crate::command::metrics::{Metric, is};
use crate::lock::Mutex;
use crate::lock::staleness::{Held, Judged, Stale, Verdict};
use crate::record::mode::Mode;
use crate::store::waiter::Waiter;
use crate::store::{self, Cause, Location};
use crate::sys::local_time::{local_time, short};

const UNKNOWN: &str = "unknown";

pub struct Lock {
    path: String,
    /// That of the holder that counts, or why it is free.
    state: &'static str,
    reason: Option<String>,
    holders: Vec<Judged<Verdict>>,
    waiters: Vec<Waiter>,
    /// By the store's clock, in milliseconds since 1970.
    now: u64,
}

fn state(verdict: &Verdict) -> (&'static str, String) {
    match verdict {
        Verdict::Held(held @ Held::Unknown(_)) => (UNKNOWN, held.to_string()),
        Verdict::Held(held) => ("held", held.to_string()),
        Verdict::Stale(why) => ("stale", why.to_string()),
    }
}

fn holder(holder: &Judged<Verdict>, now: u64) -> Value {
    let (state, reason) = state(&holder.verdict);
    let entry = holder.entry.as_ref();
    let lease = entry.and_then(|entry| entry.lease);
    json!({
        "state": state,
        "reason": reason,
        "mode": entry.map(|entry| entry.mode.to_string()),
        "pid": entry.map(|entry| entry.owner.pid.as_raw_pid()),
        "command": holder.command(),
        "host": entry.and_then(|entry| entry.owner.place.host.as_ref()),
        "uid": entry.and_then(|entry| entry.owner.uid),
        "since": holder.since().map(|since| since.to_string()),
        "held_seconds": holder.held_for().map(|duration| duration.as_secs()),
        "run": entry.and_then(|entry| entry.run.as_ref()),
        "token": entry.and_then(|entry| entry.token.as_ref()),
        "fencing_token": entry.and_then(|entry| entry.fencing),
        "lease_seconds": lease.map(|lease| lease.duration.as_secs_f64()),
        "lease_left_seconds": lease.and_then(|lease| Some(lease.expires?.saturating_sub(now) as f64 / 1000.0)),
        "lease_renewals": lease.map(|lease| lease.renewals),
        // The process that renews the lease, or releases the lock when the command has ended.
        "keeper_pid": entry.and_then(|entry| entry.keeper).map(|(pid, _)| pid.as_raw_pid()),
    })
}

impl Row for Lock {
    const HEADER: &'static [&'static str] =
        &["LOCK", "STATE", "PID", "COMMAND", "HOST", "SINCE", "FOR", "WHY"];

    fn look(
        location: &Location,
        mutex: &mut Mutex<'_>,
        is_named: bool,
    ) -> Result<Option<Self>, store::Error> {
        let mut holders = match mutex.look() {
            // flock(1) leaves empty files, and other programs keep files of that name.
            Ok(Some((stored, _))) if !is_named && stored.record.is_none() => return Ok(None),
            Err(error) if !is_named && error.cause == Cause::NotALock => return Ok(None),
            looked => looked?.map(|(_, judged)| judged).unwrap_or_default(),
        };
        // A notice of a release is not a holder.
        holders.retain(|judged| !matches!(judged.verdict, Verdict::Stale(Stale::Released)));
        // A live holder counts, wherever in the record it stands.
        let states = holders.iter().map(|holder| state(&holder.verdict));
        let first = states
            .min_by_key(|(state, _)| ["held", UNKNOWN, "stale"].iter().position(|it| it == state));
        // A name whose directory is missing may be mistyped.
        let is_nowhere = matches!(location, Location::File(directory, _) if !directory.is_dir());
        let free = || ("free", is_nowhere.then(|| "its directory does not exist".to_owned()));
        let (state, reason) = first.map_or_else(free, |(state, reason)| (state, Some(reason)));
        Ok(Some(Self {
            path: location.printable(),
            state,
            reason,
            holders,
            waiters: mutex.waiters(),
            now: mutex.time(),
        }))
    }

    fn unreadable(location: &Location, error: &store::Error) -> Option<Self> {
        let (holders, waiters, now) = Default::default();
        Some(Self {
            path: location.printable(),
            state: UNKNOWN,
            reason: Some(error.to_string()),
            holders,
            waiters,
            now,
        })
    }

    fn json(&self) -> Value {
        let holders: Vec<_> = self.holders.iter().map(|it| holder(it, self.now)).collect();
        json!({
            "path": self.path,
            "state": self.state,
            "reason": self.reason,
            // The one that counts, for programs that know plain mutexes only.
            "holder": holders.iter().find(|holder| holder["state"] == self.state),
            "holders": holders,
            "waiters": self.waiters,
        })
    }

    const METRICS: &'static [Metric] = &[
        ("held", "gauge", "Whether the lock is held.", |row| is(row, "state", &["held", UNKNOWN])),
        ("held_seconds", "gauge", "For how long it has been held.", |row| {
            row["holder"]["held_seconds"].as_f64()
        }),
        ("holders", "gauge", "How many processes hold it.", |row| {
            Some(row["holders"].as_array()?.len() as f64)
        }),
        ("waiters", "gauge", "How many processes wait for it.", |row| {
            Some(row["waiters"].as_array()?.len() as f64)
        }),
        ("lease_left_seconds", "gauge", "The rest of its lease.", |row| {
            row["holder"]["lease_left_seconds"].as_f64()
        }),
    ];

    /// A line for each holder, and for each waiter.
    fn lines(&self) -> Vec<Vec<Option<String>>> {
        let line = |state: &str, rest: [Option<String>; 6]| {
            [Some(self.path.clone()), Some(state.to_owned())].into_iter().chain(rest).collect()
        };
        let holder = |holder: &Judged<Verdict>| {
            let (state, mut why) = state(&holder.verdict);
            let entry = holder.entry.as_ref();
            if let Some(entry) = entry.filter(|entry| entry.mode != Mode::EXCLUSIVE) {
                why = format!("{why}; {}", entry.mode);
            }
            let pid = entry.map(|entry| entry.owner.pid.to_string());
            let host = entry.and_then(|entry| entry.owner.place.host.clone());
            let since = holder.since().map(|since| local_time(since).to_string());
            line(
                state,
                [pid, holder.command(), host, since, holder.held_for().map(short), Some(why)],
            )
        };
        let waiter = |(place, waiter): (usize, &Waiter)| {
            let place = match place {
                0 => "next".to_owned(),
                place => format!("behind {place} other{}", if place == 1 { "" } else { "s" }),
            };
            let pid = waiter.pid.map(|pid| pid.to_string());
            line(
                "waits",
                [pid, waiter.command.clone(), waiter.host.clone(), None, None, Some(place)],
            )
        };
        let free = self
            .holders
            .is_empty()
            .then(|| line(self.state, [None, None, None, None, None, self.reason.clone()]));
        free.into_iter()
            .chain(self.holders.iter().map(holder))
            .chain(self.waiters.iter().enumerate().map(waiter))
            .collect()
    }
}
