//! `serializer schedule status` and `next`

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::catalog::Source;
use super::control::milliseconds;
use super::work::{OVERDUE, TaskStore, shown_slot, time_of};
use crate::cli::{NextArgs, ScheduleStatusArgs};
use crate::command::metrics::{self, Metric, is, seconds};
use crate::command::output::{print, to_json};
use crate::command::status::{table, watch};
use crate::config::Environment;
use crate::error::Error;
use crate::exit_code::{DONE, FAILED};
use crate::lock::Mutex;
use crate::lock::key::Inspected;
use crate::lock::once::State;
use crate::lock::staleness::{LocalLiveness, Orphans, Verdict};
use crate::record::run::Run;
use crate::schedule::definition::Definition;
use crate::schedule::plan::{Plan, Seen};
use crate::store::seam::Kind;
use crate::sys::local_time::{short, zone};
use crate::sys::text;

/// The values of `status` that count as failures.
const BAD: [&str; 3] = ["failed", "interrupted", "overdue"];

const HEADER: [&str; 8] =
    ["TASK", "SCHEDULE", "ENABLED", "STATUS", "LAST RUN", "RESULT", "NEXT IN", "HOST"];

const METRICS: [Metric; 9] = [
    ("running", "Whether the task is running.", |row| is(row, "status", &["running"])),
    ("paused", "Whether the task is paused.", |row| {
        Some(f64::from(!row["paused_until"].is_null()))
    }),
    ("overdue", "Whether a slot has been due for a minute, and has not started.", |row| {
        is(row, "status", &["overdue"])
    }),
    ("failed", "Whether the last run failed or was interrupted.", |row| {
        is(row, "status", &BAD[..2])
    }),
    ("last_run_timestamp_seconds", "Start of the last run.", |row| seconds(row, "last_run")),
    ("last_success_timestamp_seconds", "End of the last successful run.", |row| {
        seconds(row, "last_success")
    }),
    (
        "last_duration_seconds",
        "Duration of the last run, in seconds; so far, if it is running.",
        |row| row["seconds"].as_f64(),
    ),
    ("next_timestamp_seconds", "Start of the next run.", |row| seconds(row, "next")),
    ("skipped_total", "Number of skipped slots.", |row| row["skipped"].as_f64()),
];

/// The tasks that are defined in this host's file or stored.
struct Tasks<'a> {
    args: &'a ScheduleStatusArgs,
    store: TaskStore<'a>,
    /// They know what they saw before.
    mutexes: BTreeMap<String, Mutex<'a>>,
    /// Whether a lease may have expired.
    is_unproved: bool,
    /// The time of the store.
    now: u64,
}

pub fn run(args: &ScheduleStatusArgs, environment: &Environment) -> Result<u8, Error> {
    let judge = LocalLiveness::here(Orphans::Ignore);
    let store = TaskStore::open(&args.catalog, environment, &judge)?;
    let mut tasks = Tasks { args, store, mutexes: BTreeMap::new(), is_unproved: false, now: 0 };
    if args.watch {
        return watch(false, &mut || {
            let (rows, _) = tasks.look()?;
            Ok(text(&rows, tasks.now))
        })
        .map(|()| DONE);
    }
    let (mut rows, mut failure) = tasks.look()?;
    if args.check && tasks.is_unproved {
        let seen: Vec<_> = tasks.mutexes.values_mut().map(Mutex::inspect).collect();
        // A damaged record was reported.
        for (mutex, seen) in tasks.mutexes.values_mut().zip(seen) {
            seen.map_or(Ok(None), |seen| mutex.prove(seen))?;
        }
        (rows, failure) = tasks.look()?;
    }
    let is_bad = |row: &Value| row["status"].as_str().is_some_and(|status| BAD.contains(&status));
    let code = if args.check && rows.iter().any(is_bad) { FAILED } else { DONE };
    let text = if args.json {
        to_json(&json!({ "tasks": rows }))?
    } else if args.metrics {
        metrics::text("tasks", &rows, &METRICS)
    } else {
        text(&rows, tasks.now)
    };
    print(text.as_bytes())?;
    failure.map_or(Ok(code), Err)
}

impl Tasks<'_> {
    /// A row for each task, for programs, and the first error.
    fn look(&mut self) -> Result<(Vec<Value>, Option<Error>), Error> {
        let defined = Source::read_if_any(&self.args.catalog)?.tasks;
        let stored = self.store.place.all(Kind::Schedule)?;
        let stored =
            stored.iter().map(|location| location.key().name.to_string_lossy().into_owned());
        let names: BTreeSet<String> = defined.keys().cloned().chain(stored).collect();
        let (mut rows, mut failure) = (Vec::new(), None);
        self.is_unproved = false;
        for name in names {
            let new = || self.store.mutex(&name);
            let mutex = self.mutexes.entry(name.clone()).or_insert_with(new);
            let seen = match mutex.inspect() {
                // One damaged record does not hide the other tasks.
                Err(error) if !error.cause.passes() => {
                    failure = failure.or(Some(error.into()));
                    continue;
                }
                seen => seen?,
            };
            self.is_unproved |= seen.as_ref().and_then(Inspected::unproved_lease).is_some();
            self.now = mutex.register.time();
            rows.push(row(&name, defined.get(&name), seen, self.now));
        }
        Ok((rows, failure))
    }
}

/// A task for programs. Times are in milliseconds since 1970.
fn row(name: &str, definition: Option<&Definition>, key: Option<Inspected>, now: u64) -> Value {
    let process = key.as_ref().map(|key| &key.process);
    let stale = process.and_then(|process| match &process.verdict {
        Verdict::Stale(why) => Some(why.to_string()),
        Verdict::Held(_) => None,
    });
    let entry = process.and_then(|process| process.entry.clone());
    let seen = key.map(|key| Seen::new(key, now));
    let is_overdue = definition.is_some_and(|definition| {
        matches!(definition.plan(name, seen.as_ref(), now, now), Plan::Run(claim)
            if claim.slot > claim.seen.0 && claim.slot + definition.delay(name) + OVERDUE < now)
    });
    let task = seen.as_ref().and_then(|seen| seen.run.task.clone()).unwrap_or_default();
    let paused_until = Some(task.paused).filter(|paused| *paused > now);
    // A task that was only introduced has a run without a number.
    let (run, state) =
        seen.filter(|seen| seen.run.number > 0).map(|seen| (seen.run, seen.state)).unzip();
    let (run, is_running) = (run.as_ref(), state == Some(State::Running));
    let owner = entry.filter(|_| run.is_some()).map(|entry| entry.owner);
    let end = run.and_then(Run::end);
    let success = run.and_then(|run| run.ends.iter().rfind(|end| end.code == Some(DONE)));
    let until = end.map(|end| end.at).or(is_running.then_some(now));
    let seconds = |run: &Run| Some(until?.saturating_sub(run.began) as f64 / 1000.0);
    let next = definition.filter(|_| paused_until.is_none());
    json!({
        "task": name,
        // As the file spells it; null for a task that is not in this host's file.
        "schedule": definition.map(|definition| &definition.schedule),
        "enabled": definition.is_some_and(Definition::is_enabled),
        "status": match state {
            Some(State::Running) => "running",
            _ if paused_until.is_some() => "paused",
            _ if is_overdue => "overdue",
            Some(State::Failed | State::GivenUp) => "failed",
            Some(State::Interrupted) => "interrupted",
            Some(State::Done | State::Expired) => "done",
            None => "waiting",
        },
        // Of the last run.
        "slot": run.map(|_| task.slot),
        "last_run": run.map(|run| run.began),
        // As far as it is remembered.
        "last_success": success.map(|end| end.at),
        "seconds": run.and_then(seconds),
        "try": run.map_or(0, |run| run.number),
        "result": end.map(|end| end.how.clone()).or(stale.filter(|_| run.is_some())),
        "exit_code": end.and_then(|end| end.code),
        "next": next.and_then(|definition| definition.next_start(name, now.max(task.slot))),
        "paused_until": paused_until,
        "skipped": task.skipped,
        "pid": owner.as_ref().filter(|_| is_running).map(|owner| owner.pid.as_raw_pid()),
        "host": owner.and_then(|owner| owner.place.host),
    })
}

fn text(rows: &[Value], now: u64) -> String {
    if rows.is_empty() {
        return "no tasks\n".to_owned();
    }
    // Not as times: tasks have zones of their own, and a line has 80 columns.
    let between = |from: u64, to: u64| short(Duration::from_millis(to.saturating_sub(from)));
    let lines = rows.iter().map(|row| {
        let text = |field: &str| row[field].as_str().map(text::field);
        let time = |field: &str| row[field].as_u64().filter(|time| *time < u64::MAX);
        let [task, schedule, status, result, host] =
            ["task", "schedule", "status", "result", "host"].map(text);
        let enabled = if row["enabled"] == true { "yes" } else { "no" };
        let enabled = schedule.as_ref().map(|_| enabled.to_owned());
        let next = time("next").or(time("paused_until")).map(|at| between(now, at));
        let last_run = time("last_run").map(|at| between(at, now) + " ago");
        vec![task, schedule, enabled, status, last_run, result, next, host]
    });
    table(&HEADER, lines)
}

pub fn next(args: &NextArgs) -> Result<(), Error> {
    let catalog = Source::new(&args.catalog).read()?;
    catalog.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let from = milliseconds(args.from.unwrap_or_else(Timestamp::now));
    let tasks: Vec<_> = match &args.task {
        Some(name) => vec![(name, catalog.find(name).map_err(Error::usage)?)],
        None => catalog.tasks.iter().collect(),
    };
    if tasks.is_empty() {
        return Err(Error::usage("no task is defined or stored"));
    }
    let mut lines = Vec::new();
    for (name, definition) in tasks {
        let mut add = |slot: String, utc: Option<String>| {
            let schedule = text::field(&definition.schedule);
            lines.push(vec![Some(name.clone()), Some(schedule), Some(slot), utc]);
        };
        let Some(timetable) = definition.schedule() else {
            add(if definition.is_enabled() { "on request" } else { "disabled" }.to_owned(), None);
            continue;
        };
        let zone = definition.zone().cloned().unwrap_or_else(zone);
        let slots = iter::successors(timetable.after(from), |slot| timetable.after(*slot));
        for slot in slots.take(args.number.into()) {
            let here = time_of(slot).to_zoned(zone.clone());
            add(here.strftime("%a %Y-%m-%d %H:%M:%S %:z").to_string(), Some(shown_slot(slot)));
        }
    }
    print(table(&["TASK", "SCHEDULE", "SLOT", "UTC"], lines.into_iter()).as_bytes())
}
