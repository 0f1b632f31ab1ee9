//! `serializer status --once`

use serde::Serialize;

use super::table::{new_table, rendered};
use crate::backend;
use crate::backend::retry::since_1970;
use crate::backend::seam::Kind;
use crate::cli::StatusArgs;
use crate::command::once;
use crate::config::Environment;
use crate::error::Error;
use crate::local_time::short;
use crate::mutex::Mutex;
use crate::mutex::key::Inspected;
use crate::once::{End, Run, State, shown};
use crate::owner::Place;
use crate::printable;
use crate::verdict::LocalJudge;

#[derive(Serialize)]
struct Report {
    keys: Vec<Key>,
}

/// A key in JSON: its last run and the process of that run. Times are in milliseconds since 1970.
#[derive(Serialize)]
struct Key {
    key: String,
    /// `None` for a key that was never run.
    state: Option<State>,
    #[serde(rename = "try")]
    number: Option<u32>,
    since: Option<u64>,
    seconds: Option<f64>,
    exit_code: Option<u8>,
    pid: Option<i32>,
    command: Option<String>,
    host: Option<String>,
    fencing_token: Option<u64>,
    ends: Vec<End>,
}

impl Key {
    fn new(name: String, inspected: Option<Inspected>) -> Self {
        let state = inspected.as_ref().map(|it| it.state);
        let (run, process) = inspected.map(|it| (it.run, it.process)).unzip();
        let end = run.as_ref().and_then(Run::end);
        let until = end.map(|end| end.at).or((state == Some(State::Running)).then(since_1970));
        let entry = process.as_ref().and_then(|process| process.entry.as_ref());
        Self {
            key: run.as_ref().map_or(name, |run| run.key.clone()),
            state,
            number: run.as_ref().map(|run| run.number),
            since: run.as_ref().map(|run| run.began),
            exit_code: end.and_then(|end| end.code),
            seconds: run.as_ref().and_then(|run| Some(until?.saturating_sub(run.began) as f64 / 1000.0)),
            pid: entry.map(|entry| entry.owner.pid.as_raw_pid()),
            command: entry.and_then(|entry| entry.command.clone()),
            host: entry.and_then(|entry| entry.owner.place.host.clone()),
            fencing_token: entry.and_then(|entry| entry.fencing),
            ends: run.map(|run| run.ends).unwrap_or_default(),
        }
    }
}

pub fn show(args: &StatusArgs, environment: &Environment) -> Result<(), Error> {
    let (keys, failure) = look(args, environment)?;
    let text = if args.json { crate::command::to_json(&Report { keys })? } else { table(keys) };
    crate::command::print(text.as_bytes())?;
    failure.map_or(Ok(()), Err)
}

/// A line for each key.
pub fn text(args: &StatusArgs, environment: &Environment) -> Result<String, Error> {
    look(args, environment).map(|(keys, _)| table(keys))
}

fn table(keys: Vec<Key>) -> String {
    let mut table = new_table(&["KEY", "STATE", "TRY", "SINCE", "FOR", "HOST", "LAST END"]);
    if keys.is_empty() {
        return "there are no keys\n".to_owned();
    }
    for key in keys {
        let end = key.ends.last().map(|end| format!("{}, {}", end.how, shown(end.at)));
        let cells = [
            Some(printable::field(&key.key)),
            Some(key.state.map_or("never run".to_owned(), |state| state.to_string())),
            key.number.map(|number| number.to_string()),
            key.since.map(shown),
            key.seconds.map(|seconds| short(std::time::Duration::from_secs_f64(seconds))),
            key.host,
            end,
        ];
        table.add_row(cells.map(|cell| cell.unwrap_or_else(|| "-".to_owned())));
    }
    rendered(table)
}

/// The requested keys, and the first error: an unreadable key must not hide the others.
fn look(args: &StatusArgs, environment: &Environment) -> Result<(Vec<Key>, Option<Error>), Error> {
    let judge = LocalJudge::new(Place::here(), environment.orphans(args.orphans)?);
    let place = &args.file.place;
    let locations = match args.names.as_slice() {
        [] => once::all(environment, place)?,
        names => {
            names.iter().map(|name| environment.key(Kind::Once, place, &name.to_string_lossy())).collect::<Result<_, _>>()?
        }
    };
    let (mut keys, mut failure) = (Vec::new(), None);
    for location in locations {
        let name = location.key().name.to_string_lossy().into_owned();
        match Mutex::new(backend::open(&location)?, &judge).inspect() {
            // Empty, or only a mark of a run that was forgotten.
            Ok(None) if args.names.is_empty() => {}
            Ok(inspected) => keys.push(Key::new(name, inspected)),
            Err(error) => failure = failure.or(Some(error.into())),
        }
    }
    if keys.is_empty()
        && let Some(error) = failure
    {
        Err(error)
    } else {
        Ok((keys, failure))
    }
}
