//! `serializer schedule status` and `next`

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use super::catalog::Source;
use super::work::{OVERDUE, shown_slot, time_of};
use super::{place_of, task_at};
use crate::cli::{NextArgs, ScheduleStatusArgs};
use crate::command::status::{table, watch};
use crate::command::{print, to_json};
use crate::config::Environment;
use crate::error::Error;
use crate::exit_code::{DONE, FAILED};
use crate::lock::Mutex;
use crate::lock::key::Inspected;
use crate::lock::once::{State, shown};
use crate::lock::register::Register;
use crate::lock::staleness::{LocalLiveness, Orphans};
use crate::record::run::Run;
use crate::schedule::definition::{Catalog, Definition};
use crate::schedule::plan::{Plan, Seen};
use crate::schedule::timetable::Timetable;
use crate::store::seam::Kind;
use crate::store::{self, Location};
use crate::sys::identity::HostIdentity;
use crate::sys::local_time::local_time;
use crate::sys::text;

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

/// `serializer schedule status`
pub fn run(args: &ScheduleStatusArgs, environment: &Environment) -> Result<u8, Error> {
    if args.watch {
        return watch(&|| Ok(text(look(args, environment)?.0))).map(|()| DONE);
    }
    let (tasks, failure) = look(args, environment)?;
    let is_bad = |row: &Row| ["failed", "interrupted", "overdue"].contains(&row.status);
    let code = if args.check && tasks.iter().any(is_bad) { FAILED } else { DONE };
    let text = if args.json {
        to_json(&json!({ "tasks": tasks }))?
    } else if args.metrics {
        metrics(&tasks)
    } else {
        text(tasks)
    };
    print(text.as_bytes())?;
    failure.map_or(Ok(code), Err)
}

/// The tasks that are defined in this host's file or stored, and the first error.
fn look(
    args: &ScheduleStatusArgs,
    environment: &Environment,
) -> Result<(Vec<Row>, Option<Error>), Error> {
    let catalog = Source::if_any(&args.catalog)
        .map_or_else(|| Ok(Catalog::default()), |mut source| source.read())?;
    let place = place_of(environment, &args.catalog.state)?;
    let judge = LocalLiveness::new(HostIdentity::here(), Orphans::Ignore);
    let any = Register::open(&place)?;
    let stored = match &place {
        Location::File(directory, _) => store::file::all_in(directory, Kind::Schedule)?,
        Location::Store(settings, _) => store::all_in(settings, Kind::Schedule)?,
    };
    let stored = stored.iter().map(|location| location.key().name.to_string_lossy().into_owned());
    let mut names: Vec<String> = catalog.tasks.keys().cloned().chain(stored).collect();
    names.sort();
    names.dedup();
    let (mut rows, mut failure) = (Vec::new(), None);
    for name in names {
        let location = task_at(&place, &name);
        let mut mutex =
            Mutex::new(any.sibling(location.key().clone(), location.printable()), &judge);
        match mutex.inspect() {
            Ok(seen) => {
                rows.push(Row::new(name.clone(), catalog.tasks.get(&name), seen, mutex.time()))
            }
            // One damaged record does not hide the other tasks.
            Err(error) if !error.cause.passes() => failure = failure.or(Some(error)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok((rows, failure.map(Error::from)))
}

impl Row {
    fn new(
        name: String,
        definition: Option<&Definition>,
        seen: Option<Inspected>,
        now: u64,
    ) -> Self {
        let entry = seen.as_ref().and_then(|key| key.process.entry.clone());
        let seen = seen.map(|key| Seen::new(key, now));
        let is_overdue = definition.is_some_and(|definition| {
            match definition.plan(&name, seen.as_ref(), now, now) {
                Plan::Run(claim) => {
                    claim.slot > claim.seen.0
                        && claim.slot + definition.delay(&name) + OVERDUE < now
                }
                Plan::Introduce | Plan::Wait(_) => false,
            }
        });
        let task = seen.as_ref().and_then(|seen| seen.run.task.clone()).unwrap_or_default();
        let paused_until = Some(task.paused).filter(|paused| *paused > now);
        // A task that was only introduced has a run without a number.
        let (run, state) =
            seen.filter(|seen| seen.run.number > 0).map(|seen| (seen.run, seen.state)).unzip();
        let (run, is_running) = (run.as_ref(), state == Some(State::Running));
        let entry = entry.filter(|_| run.is_some());
        let end = run.and_then(Run::end);
        let until = end.map(|end| end.at).or(is_running.then_some(now));
        let seconds = |run: &Run| Some(until?.saturating_sub(run.began) as f64 / 1000.0);
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
            slot: run.map(|_| task.slot),
            last_run: run.map(|run| run.began),
            last_success: run
                .and_then(|run| run.ends.iter().rfind(|end| end.code == Some(DONE)))
                .map(|end| end.at),
            seconds: run.and_then(seconds),
            number: run.map_or(0, |run| run.number),
            result: end.map(|end| end.how.clone()),
            exit_code: end.and_then(|end| end.code),
            next: definition
                .filter(|_| paused_until.is_none())
                .and_then(|definition| definition.next_start(&name, now.max(task.slot))),
            paused_until,
            skipped: task.skipped,
            pid: entry.as_ref().filter(|_| is_running).map(|entry| entry.owner.pid.as_raw_pid()),
            host: entry.and_then(|entry| entry.owner.place.host),
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
            Some(text::field(&row.task)),
            row.schedule.as_deref().map(text::field),
            row.schedule.as_ref().map(|_| if row.enabled { "yes" } else { "no" }.to_owned()),
            Some(row.status.to_owned()),
            row.last_run.map(shown),
            row.result.as_deref().map(text::field),
            row.next.map(shown).or(row.paused_until.filter(|_| !forever).map(shown)),
            row.host,
        ]
    });
    table(&header, lines)
}

/// A metric: its name, its type, its help text, and its value for a task.
type Metric = (&'static str, &'static str, &'static str, fn(&Row) -> Option<f64>);

const METRICS: [Metric; 9] = [
    ("running", "gauge", "Whether the task is running.", |row| {
        Some(f64::from(row.status == "running"))
    }),
    ("paused", "gauge", "Whether the task is paused.", |row| {
        Some(f64::from(row.paused_until.is_some()))
    }),
    ("overdue", "gauge", "Whether a slot has been due for a minute, and has not started.", |row| {
        Some(f64::from(row.status == "overdue"))
    }),
    ("failed", "gauge", "Whether the last run failed or was interrupted.", |row| {
        Some(f64::from(["failed", "interrupted"].contains(&row.status)))
    }),
    ("last_run_timestamp_seconds", "gauge", "Start of the last run.", |row| seconds(row.last_run)),
    ("last_success_timestamp_seconds", "gauge", "End of the last successful run.", |row| {
        seconds(row.last_success)
    }),
    (
        "last_duration_seconds",
        "gauge",
        "Duration of the last run, in seconds; so far, if it is running.",
        |row| row.seconds,
    ),
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
        let _ = writeln!(
            text,
            "# HELP serializer_task_{name} {help}\n# TYPE serializer_task_{name} {kind}"
        );
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
    let tasks: Vec<_> = match &args.task {
        Some(name) => vec![(name, catalog.find(name).map_err(Error::usage)?)],
        None => catalog.tasks.iter().collect(),
    };
    if tasks.is_empty() {
        return Err(Error::usage("there are no tasks"));
    }
    let mut lines = Vec::new();
    for (name, definition) in tasks {
        let mut add = |slot: String, utc: Option<String>| {
            lines.push(vec![
                Some(name.clone()),
                Some(text::field(&definition.schedule)),
                Some(slot),
                utc,
            ]);
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
    let time = time_of(slot);
    match timetable {
        Timetable::Cron(_, zone) => {
            time.to_zoned(zone.clone()).strftime("%a %Y-%m-%d %H:%M:%S %:z").to_string()
        }
        Timetable::Every(_) => local_time(time).to_string(),
    }
}
