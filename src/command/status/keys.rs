//! What `status --once` shows of a key.

use std::time::Duration;

use serde_json::{Value, json};

use super::Row;
use crate::command::metrics::{Metric, is, seconds};
use crate::lock::Mutex;
use crate::lock::key::Inspected;
use crate::lock::once::{State, shown};
use crate::record::run::Run;
use crate::store::{self, Location};
use crate::sys::clock::since_1970;
use crate::sys::local_time::short;
use crate::sys::text;

/// The name of a key, and its last run; `None` for a key that was never run.
pub struct Key(String, Option<Inspected>);

impl Key {
    /// For how long the last run has been running, or ran.
    fn seconds(&self) -> Option<f64> {
        let Inspected { run, state, .. } = self.1.as_ref()?;
        let until = run.end().map(|end| end.at).or((*state == State::Running).then(since_1970))?;
        Some(until.saturating_sub(run.began) as f64 / 1000.0)
    }

    fn host(&self) -> Option<String> {
        self.1.as_ref()?.process.entry.as_ref()?.owner.place.host.clone()
    }
}

impl Row for Key {
    const HEADER: &'static [&'static str] =
        &["KEY", "STATE", "TRY", "SINCE", "FOR", "HOST", "LAST END"];

    fn look(
        location: &Location,
        mutex: &mut Mutex<'_>,
        is_named: bool,
    ) -> Result<Option<Self>, store::Error> {
        let seen = mutex.inspect()?;
        let name = || location.key().name.to_string_lossy().into_owned();
        let key = seen.as_ref().map_or_else(name, |seen| seen.run.key.clone());
        // Empty, or only a mark of a run that was forgotten.
        let is_nothing = seen.is_none() && !is_named;
        Ok((!is_nothing).then_some(Self(key, seen)))
    }

    /// The last run and its process. Times are in milliseconds since 1970.
    fn json(&self) -> Value {
        let run = self.1.as_ref().map(|seen| &seen.run);
        let entry = self.1.as_ref().and_then(|seen| seen.process.entry.as_ref());
        json!({
            "key": self.0,
            "state": self.1.as_ref().map(|seen| seen.state),
            "try": run.map(|run| run.number),
            "since": run.map(|run| run.began),
            "seconds": self.seconds(),
            "exit_code": run.and_then(Run::end).and_then(|end| end.code),
            "pid": entry.map(|entry| entry.owner.pid.as_raw_pid()),
            "command": entry.and_then(|entry| entry.command.as_ref()),
            "host": self.host(),
            "fencing_token": entry.and_then(|entry| entry.fencing),
            "ends": run.map(|run| run.ends.as_slice()).unwrap_or_default(),
        })
    }

    const METRICS: &'static [Metric] = &[
        ("running", "gauge", "Whether the key is running.", |row| is(row, "state", &["running"])),
        ("failed", "gauge", "Whether its last run has failed or was interrupted.", |row| {
            is(row, "state", &["failed", "interrupted", "given-up"])
        }),
        ("last_success_timestamp_seconds", "gauge", "When it last succeeded.", |row| {
            seconds(row["ends"].as_array()?.iter().rfind(|end| end["code"] == 0)?, "at")
        }),
    ];

    fn lines(&self) -> Vec<Vec<Option<String>>> {
        let run = self.1.as_ref().map(|seen| &seen.run);
        vec![vec![
            Some(text::field(&self.0)),
            Some(self.1.as_ref().map_or("never run".to_owned(), |seen| seen.state.to_string())),
            run.map(|run| run.number.to_string()),
            run.map(|run| shown(run.began)),
            self.seconds().map(|seconds| short(Duration::from_secs_f64(seconds))),
            self.host(),
            run.and_then(|run| run.ends.last())
                .map(|end| format!("{}, {}", end.how, shown(end.at))),
        ]]
    }
}
