//! `serializer schedule status` and `next`

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;

use super::catalog::Source;
use super::work::{OVERDUE, shown_slot};
use super::{place_of, task_at};
use crate::backend::seam::Kind;
use crate::backend::{self, Location};
use crate::cli::{NextArgs, ScheduleStatusArgs};
use crate::command::status::{table, watch};
use crate::command::{print, to_json};
use crate::config::Environment;
use crate::error::Error;
use crate::exit_code::{DONE, FAILED};
use crate::local_time::local_time;
use crate::mutex::Mutex;
use crate::mutex::key::Inspected;
use crate::once::{State, shown};
use crate::owner::Place;
use crate::printable;
use crate::schedule::definition::{Catalog, Definition};
use crate::schedule::plan::{Plan, Seen};
use crate::schedule::timetable::Timetable;
use crate::verdict::{LocalJudge, Orphans};

/// A task for programs. Times are in milliseconds since 1970.
#[derive(Serialize)]
struct Row {
    task: String,
    /// As the file spells it; `None` for a task that is not in this host's file.
    schedule: Option<String>,
    enabled: bool,
    /// One of waiting, running, done, failed, interrupted, paused and overdue.
    status: &'static str,
    /// The slot of the last run, and when that began.
    slot: Option<u64>,
    last_run: Option<u64>,
    last_success: Option<u64>,
    seconds: Option<f64>,
    #[serde(rename = "try")]
    number: u32,
    result: Option<String>,
    exit_code: Option<u8>,
    /// When it runs next.
    next: Option<u64>,
    paused_until: Option<u64>,
    skipped: u64,
    host: Option<String>,
    pid: Option<i32>,
}

#[derive(Serialize)]
struct Report {
    tasks: Vec<Row>,
}

/// `serializer schedule status`
pub fn run(args: &ScheduleStatusArgs, environment: &Environment) -> Result<u8, Error> {
    if args.watch {
        return watch(&|| Ok(text(look(args, environment)?.0))).map(|()| DONE);
    }
    let (tasks, failure) = look(args, environment)?;
    let is_bad = |row: &Row| ["failed", "interrupted", "overdue"].contains(&row.status);
    let code = if args.check && tasks.iter().any(is_bad) { FAILED } else { DONE };
    let text = if args.json {
        to_json(&Report { tasks })?
    } else if args.metrics {
        metrics(&tasks)
    } else {
        text(tasks)
    };
    print(text.as_bytes())?;
    failure.map_or(Ok(code), Err)
}

/// The tasks that are defined in this host's file or stored, and the first error.
fn look(args: &ScheduleStatusArgs, environment: &Environment) -> Result<(Vec<Row>, Option<Error>), Error> {
    let catalog = Source::if_any(&args.catalog).map_or_else(|| Ok(Catalog::default()), |mut source| source.read())?;
    let place = place_of(environment, &args.catalog.place, args.catalog.meltano)?;
    let judge = LocalJudge::new(Place::here(), Orphans::Ignore);
    let any = backend::open(&place)?;
    let stored = match &place {
        Location::File(directory, _) => backend::file::all_in(directory, Kind::Schedule)?,
        Location::Store(settings, _) => backend::all_in(settings, Kind::Schedule)?,
    };
    let stored = stored.iter().map(|location| location.key().name.to_string_lossy().into_owned());
    let mut names: Vec<String> = catalog.tasks.keys().cloned().chain(stored).collect();
    names.sort();
    names.dedup();
    let (mut rows, mut failure) = (Vec::new(), None);
    for name in names {
        let location = task_at(&place, &name);
        let mut mutex = Mutex::new(any.sibling(location.key().clone(), location.printable()), &judge);
        match mutex.inspect() {
            Ok(seen) => rows.push(Row::new(name.clone(), catalog.tasks.get(&name), seen, mutex.time())),
            // One damaged record does not hide the other tasks.
            Err(error) if !error.cause.passes() => failure = failure.or(Some(error)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok((rows, failure.map(Error::from)))
}

impl Row {
    fn new(name: String, definition: Option<&Definition>, seen: Option<Inspected>, now: u64) -> Self {
        let entry = seen.as_ref().and_then(|key| key.process.entry.clone());
        let seen = seen.map(|key| Seen::new(key, now));
        let plan = definition.map(|definition| (definition.plan(&name, seen.as_ref(), now, now), definition.delay(&name)));
        let is_overdue =
            matches!(plan, Some((Plan::Run(claim), delay)) if claim.slot > claim.seen.0 && claim.slot + delay + OVERDUE < now);
        let run = seen.as_ref().map(|seen| &seen.run);
        let task = run.and_then(|run| run.task.as_ref());
        let stored_slot = task.map_or(0, |task| task.slot);
        let was_run = run.is_some_and(|run| run.number > 0);
        let paused_until = task.map(|task| task.paused).filter(|paused| *paused > now);
        let state = seen.as_ref().map(|seen| seen.state).filter(|_| was_run);
        let end = run.filter(|_| was_run).and_then(|run| run.end());
        let success = run.and_then(|run| run.ends.iter().rev().find(|end| end.code == Some(DONE)));
        let began = run.filter(|_| was_run).map(|run| run.began);
        let until = end.map(|end| end.at).or((state == Some(State::Running)).then_some(now));
        Self {
            schedule: definition.map(|definition| definition.schedule.clone()),
            enabled: definition.is_some_and(|definition| definition.enabled),
            status: match state {
                Some(State::Running) => "running",
                _ if paused_until.is_some() => "paused",
                _ if is_overdue => "overdue",
                Some(State::Failed | State::GivenUp) => "failed",
                Some(State::Interrupted) => "interrupted",
                Some(State::Done | State::Expired) => "done",
                None => "waiting",
            },
            slot: task.map(|task| task.slot).filter(|_| was_run),
            last_run: began,
            last_success: success.map(|end| end.at),
            seconds: until.zip(began).map(|(until, began)| until.saturating_sub(began) as f64 / 1000.0),
            number: run.map_or(0, |run| run.number),
            result: end.map(|end| end.how.clone()),
            exit_code: end.and_then(|end| end.code),
            next: definition
                .filter(|_| paused_until.is_none())
                .and_then(|definition| definition.next_start(&name, now.max(stored_slot))),
            paused_until,
            skipped: task.map_or(0, |task| task.skipped),
            host: entry.as_ref().filter(|_| was_run).and_then(|entry| entry.owner.place.host.clone()),
            pid: entry.filter(|_| state == Some(State::Running)).map(|entry| entry.owner.pid.as_raw_pid()),
            task: name,
        }
    }
}

fn text(rows: Vec<Row>) -> String {
    if rows.is_empty() {
        return "no tasks\n".to_owned();
    }
    let header = ["TASK", "SCHEDULE", "ENABLED", "STATUS", "LAST RUN", "RESULT", "NEXT", "HOST"];
    let lines = rows.into_iter().map(|row| {
        let forever = row.paused_until == Some(u64::MAX);
        vec![
            Some(printable::field(&row.task)),
            row.schedule.as_deref().map(printable::field),
            row.schedule.as_ref().map(|_| if row.enabled { "yes" } else { "no" }.to_owned()),
            Some(row.status.to_owned()),
            row.last_run.map(shown),
            row.result.as_deref().map(printable::field),
            row.next.map(shown).or(row.paused_until.filter(|_| !forever).map(shown)),
            row.host,
        ]
    });
    table(&header, lines)
}

/// A metric: its name, its type, its help text, and its value for a task.
type Metric = (&'static str, &'static str, &'static str, fn(&Row) -> Option<f64>);

const METRICS: [Metric; 9] = [
    ("running", "gauge", "Whether the task is running.", |row| Some(f64::from(row.status == "running"))),
    ("paused", "gauge", "Whether the task is paused.", |row| Some(f64::from(row.paused_until.is_some()))),
    ("overdue", "gauge", "Whether a slot has been due for a minute, and has not started.", |row| {
        Some(f64::from(row.status == "overdue"))
    }),
    ("failed", "gauge", "Whether the last run failed or was interrupted.", |row| {
        Some(f64::from(["failed", "interrupted"].contains(&row.status)))
    }),
    ("last_run_timestamp_seconds", "gauge", "Start of the last run.", |row| seconds(row.last_run)),
    ("last_success_timestamp_seconds", "gauge", "End of the last successful run.", |row| seconds(row.last_success)),
    ("last_duration_seconds", "gauge", "Duration of the last run, in seconds; so far, if it is running.", |row| row.seconds),
    ("next_timestamp_seconds", "gauge", "Start of the next run.", |row| seconds(row.next)),
    ("skipped_total", "counter", "Number of skipped slots.", |row| Some(row.skipped as f64)),
];

fn seconds(milliseconds: Option<u64>) -> Option<f64> {
    milliseconds.map(|milliseconds| milliseconds as f64 / 1000.0)
}

/// The format of Prometheus's text exposition, version 0.0.4.
fn metrics(rows: &[Row]) -> String {
    let mut text = String::new();
    for (name, kind, help, value) in METRICS {
        let _ = writeln!(text, "# HELP serializer_task_{name} {help}\n# TYPE serializer_task_{name} {kind}");
        for row in rows {
            let Some(value) = value(row) else { continue };
            let task = row.task.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = writeln!(text, "serializer_task_{name}{{task=\"{task}\"}} {value}");
        }
    }
    text
}

/// `serializer schedule next`
pub fn next(args: &NextArgs) -> Result<(), Error> {
    let catalog = Source::new(&args.catalog).read()?;
    catalog.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let from = args.from.unwrap_or_else(Timestamp::now);
    let is_wanted = |name: &String| args.task.as_ref().is_none_or(|task| task == name);
    if !catalog.tasks.keys().any(is_wanted) {
        let name = args.task.as_deref().map(printable::field).unwrap_or_default();
        let why = if name.is_empty() { "no tasks are defined".to_owned() } else { format!("no such task `{name}`") };
        return Err(Error::usage(why));
    }
    let mut lines = Vec::new();
    for (name, definition) in catalog.tasks.iter().filter(|(name, _)| is_wanted(name)) {
        let mut add = |slot: String, utc: Option<String>| {
            lines.push(vec![Some(name.clone()), Some(printable::field(&definition.schedule)), Some(slot), utc]);
        };
        let mut slot = u64::try_from(from.as_millisecond()).unwrap_or(0);
        let Some(timetable) = definition.timetable.as_ref().filter(|_| definition.enabled) else {
            add(if definition.enabled { "on request" } else { "disabled" }.to_owned(), None);
            continue;
        };
        for _ in 0..args.number {
            let Some(next) = timetable.after(slot) else { break };
            add(in_zone(timetable, next), Some(shown_slot(next)));
            slot = next;
        }
    }
    print(table(&["TASK", "SCHEDULE", "SLOT", "UTC"], lines.into_iter()).as_bytes())
}

/// A slot in the time zone of its task.
fn in_zone(timetable: &Timetable, slot: u64) -> String {
    let time = i64::try_from(slot).ok().and_then(|slot| Timestamp::from_millisecond(slot).ok()).unwrap_or_default();
    match timetable {
        Timetable::Cron(_, zone) => time.to_zoned(zone.clone()).strftime("%a %Y-%m-%d %H:%M:%S %:z").to_string(),
        Timetable::Every(_) => local_time(time).to_string(),
    }
}
