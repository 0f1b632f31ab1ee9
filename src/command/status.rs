//! `serializer status`

use std::ffi::OsStr;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::backend::{self, Stored};
use crate::cli::StatusArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::holder::Holder;
use crate::local_time::{local_time, short};
use crate::mutex::Mutex;
use crate::owner::Place;
use crate::printable;
use crate::verdict::{Held, LocalJudge, Verdict};

#[derive(Serialize)]
struct Report {
    locks: Vec<Lock>,
}

#[derive(Serialize)]
struct Lock {
    path: String,
    state: State,
    reason: Option<String>,
    holder: Option<HolderReport>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Free,
    Held,
    Stale,
    Unknown,
}

#[derive(Serialize)]
struct HolderReport {
    pid: Option<i32>,
    command: Option<String>,
    host: Option<String>,
    uid: Option<u32>,
    since: Option<String>,
    held_seconds: Option<u64>,
    run: Option<String>,
    token: Option<String>,
    #[serde(skip)]
    holder: Holder,
}

pub fn run(args: &StatusArgs, environment: &Environment) -> Result<(), Error> {
    let judge = LocalJudge { here: Place::here(), orphans: environment.orphans(args.orphans)? };
    let mut locks = Vec::new();
    let mut failure = None;
    let paths = paths(args, environment)?;
    let is_one_of_several = args.all || paths.len() > 1;
    for path in paths {
        match Mutex::new(backend::open(&path), &judge).look() {
            Ok(found) => locks.push(report(&path, found)),
            // Other programs keep files of that name, too.
            Err(error @ backend::Error::NotALock { .. }) if args.all => tracing::debug!("{error}"),
            // One that cannot be read must not hide the others.
            Err(error) if !is_one_of_several => return Err(error.into()),
            Err(error) => {
                locks.push(Lock {
                    path: printable::path(&path),
                    state: State::Unknown,
                    reason: Some(error.to_string()),
                    holder: None,
                });
                failure = failure.or(Some(error));
            }
        }
    }
    if args.json {
        let json = serde_json::to_string_pretty(&Report { locks }).map_err(|error| Error::failed(error.to_string()))?;
        super::print(format!("{json}\n").as_bytes())?;
    } else if locks.is_empty() {
        let directory = printable::path(&environment.directory(&args.file)?);
        tracing::info!("there are no locks in `{directory}`");
    } else {
        super::print(table(&locks).as_bytes())?;
    }
    failure.map_or(Ok(()), |error| Err(error.into()))
}

fn paths(args: &StatusArgs, environment: &Environment) -> Result<Vec<PathBuf>, Error> {
    if args.all {
        return all_in(&environment.directory(&args.file)?);
    }
    if args.names.is_empty() {
        return Ok(vec![environment.lock_file(&args.file)?]);
    }
    args.names.iter().map(|name| environment.path_in_directory(&args.file, name)).collect()
}

fn all_in(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let cannot = |error| {
        let error = backend::plain(&error).to_string();
        Error::failed(format!("cannot list the lock directory `{}`: {error}", printable::path(directory)))
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let path = entry.path();
        let is_named_like_one =
            path.extension().is_some_and(|extension| [OsStr::new("lck"), OsStr::new("lock")].contains(&extension));
        if is_named_like_one && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn report(path: &Path, found: Option<(Stored, Verdict)>) -> Lock {
    // Perhaps the name is mistyped.
    let is_nowhere = path.parent().is_some_and(|directory| !directory.is_dir());
    let path = printable::path(path);
    let Some((stored, verdict)) = found else {
        let reason = is_nowhere.then(|| "its directory does not exist".to_owned());
        return Lock { path, state: State::Free, reason, holder: None };
    };
    let (state, reason) = match verdict {
        Verdict::Held(held @ Held::Unknown(_)) => (State::Unknown, held.to_string()),
        Verdict::Held(held) => (State::Held, held.to_string()),
        Verdict::Stale(why) => (State::Stale, why.to_string()),
    };
    let holder = Holder::new(&stored);
    let record = holder.record.as_ref();
    let report = HolderReport {
        pid: record.map(|record| record.owner.pid.as_raw_pid()),
        command: record.and_then(|record| record.command.clone()),
        host: record.and_then(|record| record.owner.place.host.clone()),
        uid: record.and_then(|record| record.owner.uid),
        since: holder.since.map(|since| since.to_string()),
        held_seconds: holder.held_for().map(|duration| duration.as_secs()),
        run: record.and_then(|record| record.run.clone()),
        token: record.and_then(|record| record.token.clone()),
        holder,
    };
    Lock { path, state, reason: Some(reason), holder: Some(report) }
}

fn table(locks: &[Lock]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["LOCK", "STATE", "PID", "COMMAND", "HOST", "SINCE", "FOR", "WHY"]);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for lock in locks {
        let state = match lock.state {
            State::Free => "free",
            State::Held => "held",
            State::Stale => "stale",
            State::Unknown => "unknown",
        };
        let holder = lock.holder.as_ref();
        table.add_row([
            lock.path.clone(),
            state.to_owned(),
            or_dash(holder.and_then(|holder| holder.pid).map(|pid| pid.to_string())),
            or_dash(holder.and_then(|holder| holder.command.clone())),
            or_dash(holder.and_then(|holder| holder.host.clone())),
            or_dash(holder.and_then(|holder| holder.holder.since).map(|since| local_time(since).to_string())),
            or_dash(holder.and_then(|holder| holder.holder.held_for()).map(short)),
            or_dash(lock.reason.clone()),
        ]);
    }
    if let Some(width) = terminal_width() {
        // What is long is folded; what is short, and read column by column, is not.
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        for column in [1, 2, 4, 5, 6] {
            if let Some(column) = table.column_mut(column) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
    }
    // The style puts a space before the first column, too.
    let unindented = |line: String| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned() + "\n";
    table.lines().map(unindented).collect()
}

fn terminal_width() -> Option<u16> {
    let stdout = std::io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok())?;
    size.map(|size| size.ws_col).filter(|width| *width > 0)
}
