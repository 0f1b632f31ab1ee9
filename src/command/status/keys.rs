//! What `status --once` shows of a key.

use std::time::Duration;

use serde_json::{Value, json};

use super::View;
use crate::command::metrics::{is, seconds};
use crate::lock::Mutex;
use crate::lock::once::{State, shown};
use crate::record::run::Run;
use crate::store::seam::Kind;
use crate::store::{self, Location};
use crate::sys::clock::since_1970;
use crate::sys::local_time::short;
use crate::sys::text;

pub const VIEW: View = View {
    kind: Kind::Once,
    all: "keys",
    look,
    header: &["KEY", "STATE", "TRY", "SINCE", "FOR", "HOST", "LAST END", "WHY"],
    lines,
    metrics: &[
        ("running", "Whether the key is running.", |row| is(row, "state", &["running"])),
        ("failed", "Whether its last run has failed or was interrupted.", |row| {
            is(row, "state", &["failed", "interrupted", "given-up"])
        }),
        ("last_success_timestamp_seconds", "When it last succeeded.", |row| {
            seconds(row["ends"].as_array()?.iter().rfind(|end| end["code"] == 0)?, "at")
        }),
    ],
};

/// The last run of a key and its process. Times are in milliseconds since 1970.
fn look(
    _location: &Location,
    mutex: &mut Mutex<'_>,
    is_named: bool,
) -> Result<Option<Value>, store::Error> {
    let seen = mutex.inspect()?;
    let run = seen.as_ref().map(|seen| &seen.run);
    // Empty, or only a mark of a run that was forgotten.
    if run.is_none() && !is_named {
        return Ok(None);
    }
    let state = seen.as_ref().map(|seen| seen.state);
    let entry = seen.as_ref().and_then(|seen| seen.process.entry.as_ref());
    let end = run.and_then(Run::end);
    let until = end.map(|end| end.at).or((state == Some(State::Running)).then(since_1970));
    let took = run.zip(until).map(|(run, until)| until.saturating_sub(run.began));
    Ok(Some(json!({
        // A store may shorten names.
        "key": run.map(|run| &run.key),
        "state": state,
        "try": run.map(|run| run.number),
        "since": run.map(|run| run.began),
        "seconds": took.map(|took| took as f64 / 1000.0),
        "exit_code": end.and_then(|end| end.code),
        "pid": entry.map(|entry| entry.owner.pid.as_raw_pid()),
        "command": entry.and_then(|entry| entry.command.as_ref()),
        "reason": entry.and_then(|entry| entry.reason.as_ref()),
        "host": entry.and_then(|entry| entry.owner.place.host.as_ref()),
        "token": entry.and_then(|entry| entry.token.as_ref()),
        "fencing_token": entry.and_then(|entry| entry.fencing),
        "ends": run.map(|run| run.ends.as_slice()).unwrap_or_default(),
    })))
}

fn lines(row: &Value, _is_in_full: bool) -> Vec<Vec<Option<String>>> {
    let text = |field: &str| row[field].as_str().map(str::to_owned);
    let end = row["ends"].as_array().and_then(|ends| ends.last());
    let end = end
        .and_then(|end| Some(format!("{}, {}", end["how"].as_str()?, shown(end["at"].as_u64()?))));
    vec![vec![
        row["key"].as_str().or(row["name"].as_str()).map(text::field),
        text("state").map(|state| state.replace('-', " ")).or(Some("never run".to_owned())),
        row["try"].as_u64().map(|number| number.to_string()),
        row["since"].as_u64().map(shown),
        row["seconds"].as_f64().map(|seconds| short(Duration::from_secs_f64(seconds))),
        text("host"),
        end,
        text("why").or(text("reason").filter(|_| row["state"] == "running")),
    ]]
}
