//! What `status` shows of a lock.

use std::path::Path;
use std::time::Duration;

use clap::Parser;
use jiff::Timestamp;
use rustix::process::Pid;
use serde_json::{Value, json};

use super::View;
use crate::cli::{Cli, Command};
use crate::command::metrics::is;
use crate::command::progress::ordinal;
use crate::lock::register::Register;
use crate::lock::staleness::{Held, Judged, Stale, Verdict};
use crate::lock::{Mutex, Stored};
use crate::record::Entry;
use crate::record::mode::Mode;
use crate::store::seam::Kind;
use crate::store::waiter::Waiter;
use crate::store::{self, Cause, Location};
use crate::sys::identity::HostIdentity;
use crate::sys::local_time::short;
use crate::sys::process;

/// What goes without saying of a holder.
const RUNNING: &str = "its process is running";

pub const VIEW: View = View {
    kind: Kind::Lock,
    all: "locks",
    look,
    header: &["LOCK", "STATE", "FOR", "PID", "HOST", "WAITING", "COMMAND", "WHY"],
    lines,
    metrics: &[
        ("held", "Whether the lock is held.", |row| is(row, "state", &["held", "unknown"])),
        ("held_seconds", "For how long it has been held.", |row| {
            row["holder"]["held_seconds"].as_f64()
        }),
        ("holders", "How many processes hold it.", |row| {
            Some(row["holders"].as_array()?.len() as f64)
        }),
        ("waiters", "How many processes wait for it.", |row| {
            Some(row["waiters"].as_array()?.len() as f64)
        }),
        ("lease_left_seconds", "The rest of its lease.", |row| {
            row["holder"]["lease_left_seconds"].as_f64()
        }),
    ],
};

/// Whether the name alone says that it is a lock.
fn is_named_as_lock(location: &Location) -> bool {
    let end = Path::new(&location.key().name).extension();
    location.is_shared() || end.is_some_and(|end| end == "lck" || end == "lock")
}

/// Whether its name or its content says that it is a lock.
pub fn is_lock(location: &Location) -> bool {
    let load = || Register::open(location)?.load();
    let is_record = |stored: Stored| stored.record.is_some() && !stored.is_legacy();
    is_named_as_lock(location) || load().is_ok_and(|stored| stored.is_some_and(is_record))
}

fn look(
    location: &Location,
    mutex: &mut Mutex<'_>,
    is_named: bool,
) -> Result<Option<Value>, store::Error> {
    // Other programs keep files of any name, many begin with a PID, and flock(1) leaves empty ones.
    let is_odd = !is_named && !is_named_as_lock(location);
    let (stored, mut holders) = match mutex.look() {
        Err(error) if is_odd || !is_named && error.cause == Cause::NotALock => return Ok(None),
        looked => looked?,
    };
    let is_used = mutex.register.version().is_some();
    // A notice of a release is not a holder.
    holders.retain(|judged| !matches!(judged.verdict, Verdict::Stale(Stale::Released)));
    if !is_named && stored.record.is_none() || is_odd && (stored.is_legacy() || holders.is_empty())
    {
        return Ok(None);
    }
    let now = mutex.register.time();
    let holders: Vec<_> = holders.iter().map(|judged| holder(judged, now)).collect();
    // A live holder counts, wherever in the record it stands.
    let order = |holder: &&Value| {
        ["held", "unknown", "stale"].iter().position(|it| holder["state"] == **it)
    };
    let counts = holders.iter().min_by_key(order);
    let waiters = (1..)
        .zip(mutex.register.queue(|queue| queue.waiters()))
        .map(|(position, it)| waiter(position, &it.described()));
    Ok(Some(json!({
        "state": counts.map_or(&json!("free"), |holder| &holder["state"]),
        "why": counts.map(|holder| &holder["why"]),
        "is_used": is_used,
        // The one that counts, for programs that know plain mutexes only.
        "holder": counts,
        "holders": holders,
        "waiters": waiters.collect::<Vec<_>>(),
    })))
}

fn holder(holder: &Judged<Verdict>, now: u64) -> Value {
    let (state, why) = match &holder.verdict {
        Verdict::Held(held @ Held::Unknown(_)) => ("unknown", held.to_string()),
        Verdict::Held(held) => ("held", held.to_string()),
        Verdict::Stale(why) => ("stale", why.to_string()),
    };
    let entry = holder.entry.as_ref();
    let lease = entry.and_then(|entry| entry.lease);
    let left = lease.and_then(|lease| Some(lease.expires?.saturating_sub(now)));
    json!({
        "state": state,
        "why": why,
        "mode": entry.map(|entry| entry.mode.to_string()),
        "pid": entry.map(|entry| entry.owner.pid.as_raw_pid()),
        "command": holder.command(),
        "reason": entry.and_then(|entry| entry.reason.as_ref()),
        "host": entry.and_then(|entry| entry.owner.place.host.as_ref()),
        "user": entry.and_then(user),
        "uid": entry.and_then(|entry| entry.owner.uid),
        "since": holder.since().map(|since| since.to_string()),
        "held_seconds": holder.held_for().map(|duration| duration.as_secs()),
        "run": entry.and_then(|entry| entry.run.as_ref()),
        "token": entry.and_then(|entry| entry.token.as_ref()),
        "fencing_token": entry.and_then(|entry| entry.fencing),
        "lease_seconds": lease.map(|lease| lease.duration.as_secs_f64()),
        "lease_left_seconds": left.map(|left| left as f64 / 1000.0),
        "lease_renewals": lease.map(|lease| lease.renewals),
        // The process that renews the lease, or releases the lock when the command has ended.
        "keeper_pid": entry.and_then(|entry| entry.keeper).map(|(pid, _)| pid.as_raw_pid()),
    })
}

/// The name of its user, which counts on its own machine.
fn user(entry: &Entry) -> Option<String> {
    let (place, here) = (&entry.owner.place, HostIdentity::here());
    let is_here = place.boot.is_some() && (&place.boot, &place.host) == (&here.boot, &here.host);
    let uid = nix::unistd::Uid::from_raw(entry.owner.uid.filter(|_| is_here)?);
    Some(nix::unistd::User::from_uid(uid).ok()??.name)
}

fn waiter(position: usize, waiter: &Waiter) -> Value {
    let since =
        waiter.since.and_then(|since| Timestamp::from_second(i64::try_from(since).ok()?).ok());
    // A process of this machine is asked.
    let asked = || {
        Some(mode_of(Pid::from_raw(waiter.pid.filter(|_| waiter.host.is_none())?)?)?.to_string())
    };
    json!({
        "position": position,
        "pid": waiter.pid,
        "command": waiter.command,
        "host": waiter.host.clone().or_else(|| HostIdentity::here().host),
        "since": since.map(|since| since.to_string()),
        "mode": waiter.mode.clone().or_else(asked),
    })
}

/// How a process of this program wants to hold a lock, by its command line.
fn mode_of(pid: Pid) -> Option<Mode> {
    let (is_shared, slots) = match Cli::try_parse_from(process::arguments(pid)).ok()?.command {
        Command::Run(args) => (args.request.shared, args.request.slots),
        Command::Lock(args) => (args.request.shared, args.request.slots),
        Command::Flock(args) => (args.shared, None),
        _ => return None,
    };
    Some(if is_shared { Mode::Shared } else { slots.map_or(Mode::EXCLUSIVE, Mode::Slots) })
}

fn field(row: &Value, name: &str) -> Option<String> {
    row[name].as_str().map(str::to_owned)
}

/// A line of the table: a free lock, a holder or a waiter. `more` counts further holders, and
/// `waiting` counts waiters.
fn line(lock: &Value, row: &Value, more: usize, waiting: usize) -> Vec<Option<String>> {
    let place = row["position"].as_u64().and_then(|number| usize::try_from(number).ok());
    let place = place.map(|place| format!("{} in line", ordinal(place)));
    let state = place.as_ref().map(|_| "waits".to_owned()).or_else(|| field(row, "state"));
    let waits = || {
        let since = row["since"].as_str().filter(|_| place.is_some())?.parse::<Timestamp>().ok()?;
        Timestamp::now().duration_since(since).try_into().ok()
    };
    let time = row["held_seconds"].as_u64().map(Duration::from_secs).or_else(waits);
    let more = if more > 0 { format!(" +{more}") } else { String::new() };
    let here = HostIdentity::here().host;
    let is_told = |host: &String| lock["path"].is_null() || Some(host) != here.as_ref();
    let why = field(row, "why").filter(|why| why != RUNNING);
    let mode = field(row, "mode").filter(|mode| *mode != Mode::EXCLUSIVE.to_string());
    let why: Vec<_> =
        place.into_iter().chain(field(row, "reason")).chain(why).chain(mode).collect();
    vec![
        field(lock, "name"),
        state,
        time.map(short),
        row["pid"].as_u64().map(|pid| format!("{pid}{more}")),
        field(row, "host").filter(is_told),
        (waiting > 0).then(|| waiting.to_string()),
        field(row, "command"),
        Some(why.join("; ")).filter(|why| !why.is_empty()),
    ]
}

/// A line for the lock; in full, one for each holder and for each waiter.
fn lines(lock: &Value, is_in_full: bool) -> Vec<Vec<Option<String>>> {
    let list = |field: &str| lock[field].as_array().map(Vec::as_slice).unwrap_or_default();
    let (holders, waiters) = (list("holders"), list("waiters"));
    let first = match holders {
        [] => Some(line(lock, lock, 0, waiters.len())),
        [_, others @ ..] if !is_in_full => {
            Some(line(lock, &lock["holder"], others.len(), waiters.len()))
        }
        _ => None,
    };
    let all = holders.iter().chain(waiters).filter(|_| is_in_full);
    first.into_iter().chain(all.map(|row| line(lock, row, 0, 0))).collect()
}
