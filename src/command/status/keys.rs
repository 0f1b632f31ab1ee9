//! What `status --once` shows of a key.

use std::time::Duration;

use serde::Serialize;

use super::{Row, table};
use crate::backend::retry::since_1970;
use crate::backend::{self, Location};
use crate::local_time::short;
use crate::mutex::Mutex;
use crate::once::{End, Run, State, shown};
use crate::printable;

/// A key in JSON: its last run and the process of that run. Times are in milliseconds since 1970.
#[derive(Serialize)]
pub struct Key {
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

impl Row for Key {
    fn look(location: &Location, mutex: &mut Mutex<'_>, is_named: bool) -> Result<Option<Self>, backend::Error> {
        let inspected = mutex.inspect()?;
        if inspected.is_none() && !is_named {
            // Empty, or only a mark of a run that was forgotten.
            return Ok(None);
        }
        let state = inspected.as_ref().map(|it| it.state);
        let (run, process) = inspected.map(|it| (it.run, it.process)).unzip();
        let end = run.as_ref().and_then(Run::end);
        let until = end.map(|end| end.at).or((state == Some(State::Running)).then(since_1970));
        let entry = process.as_ref().and_then(|process| process.entry.as_ref());
        let name = || location.key().name.to_string_lossy().into_owned();
        Ok(Some(Self {
            key: run.as_ref().map_or_else(name, |run| run.key.clone()),
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
        }))
    }

    fn unreadable(_location: &Location, _error: &backend::Error) -> Option<Self> {
        None
    }
}

/// A line for each key.
pub fn table(keys: &[Key]) -> String {
    let row = |key: &Key| {
        [
            Some(printable::field(&key.key)),
            Some(key.state.map_or("never run".to_owned(), |state| state.to_string())),
            key.number.map(|number| number.to_string()),
            key.since.map(shown),
            key.seconds.map(|seconds| short(Duration::from_secs_f64(seconds))),
            key.host.clone(),
            key.ends.last().map(|end| format!("{}, {}", end.how, shown(end.at))),
        ]
    };
    let header = ["KEY", "STATE", "TRY", "SINCE", "FOR", "HOST", "LAST END"];
    table::table(header, keys.iter().map(row).collect())
}
