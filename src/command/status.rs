//! `serializer status`

use std::ffi::OsStr;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use rustix::process::Pid;
use serde::Serialize;

use crate::backend::{self, Content, Location};
use crate::cli::StatusArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::holder::Holder;
use crate::local_time::{local_time, short};
use crate::mode::Mode;
use crate::mutex::{Looked, Mutex};
use crate::owner::Place;
use crate::verdict::{Held, Judged, LocalJudge, Stale, Verdict};
use crate::{printable, process};

#[derive(Serialize)]
struct Report {
    locks: Vec<Lock>,
}

#[derive(Default, Serialize)]
struct Lock {
    path: String,
    state: State,
    reason: Option<String>,
    /// The first of them, for whoever knows plain mutexes only.
    holder: Option<HolderReport>,
    holders: Vec<HolderReport>,
    waiters: Vec<WaiterReport>,
}

#[derive(Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    #[default]
    Free,
    Held,
    Stale,
    Unknown,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Held => "held",
            Self::Stale => "stale",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Clone, Serialize)]
struct HolderReport {
    state: State,
    reason: String,
    mode: Option<String>,
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

#[derive(Serialize)]
struct WaiterReport {
    pid: i32,
    command: String,
}

pub fn run(args: &StatusArgs, environment: &Environment) -> Result<(), Error> {
    let judge = LocalJudge::new(Place::here(), environment.orphans(args.orphans)?);
    let mut locks = Vec::new();
    let mut failure = None;
    let locations = locations(args, environment)?;
    let is_one_of_several = args.all || locations.len() > 1;
    for location in locations {
        let mut mutex = Mutex::new(backend::open(&location)?, &judge);
        match mutex.look() {
            // What flock(1) and others leave behind is no lock of ours.
            Ok(Some((stored, _))) if args.all && stored.content == Content::Empty => {}
            Ok(found) => locks.push(report(&location, found, mutex.waiters())),
            // Other programs keep files of that name, too.
            Err(error @ backend::Error::NotALock { .. }) if args.all => tracing::debug!("{error}"),
            // One that cannot be read must not hide the others.
            Err(error) if !is_one_of_several => return Err(error.into()),
            Err(error) => {
                locks.push(Lock {
                    path: location.printable(),
                    state: State::Unknown,
                    reason: Some(error.to_string()),
                    ..Lock::default()
                });
                failure = failure.or(Some(error));
            }
        }
    }
    if args.json {
        let json = serde_json::to_string_pretty(&Report { locks }).map_err(|error| Error::failed(error.to_string()))?;
        super::print(format!("{json}\n").as_bytes())?;
    } else if locks.is_empty() {
        let place = match environment.store(&args.file)? {
            Some(store) => store.url.to_string(),
            None => printable::path(&environment.directory(&args.file)?),
        };
        tracing::info!("there are no locks in `{place}`");
    } else {
        super::print(table(&locks).as_bytes())?;
    }
    failure.map_or(Ok(()), |error| Err(error.into()))
}

fn locations(args: &StatusArgs, environment: &Environment) -> Result<Vec<Location>, Error> {
    if !args.all {
        return environment.locks_named(&args.file, &args.names);
    }
    match environment.store(&args.file)? {
        Some(store) => Ok(backend::all_in(&store)?),
        None => Ok(all_in(&environment.directory(&args.file)?)?.into_iter().map(Location::File).collect()),
    }
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

fn report(location: &Location, found: Option<Looked>, waiters: Vec<Pid>) -> Lock {
    // Perhaps the name is mistyped.
    let is_nowhere = match location {
        Location::File(path) => path.parent().is_some_and(|directory| !directory.is_dir()),
        Location::Store(..) => false,
    };
    let path = location.printable();
    let waiters = waiters.into_iter().map(waiter).collect();
    let judged = found.map(|(_, judged)| judged).unwrap_or_default();
    // What only tells that it was released is nobody's.
    let is_left = |judged: &&Judged<Verdict>| !matches!(judged.verdict, Verdict::Stale(Stale::Released));
    let holders: Vec<_> = judged.iter().filter(is_left).map(holder).collect();
    // Whoever still holds it counts, wherever in the record it stands.
    let first = [State::Held, State::Unknown, State::Stale]
        .into_iter()
        .find_map(|state| holders.iter().find(|holder| holder.state == state))
        .cloned();
    let Some(first) = first else {
        let reason = is_nowhere.then(|| "its directory does not exist".to_owned());
        return Lock { path, reason, waiters, ..Lock::default() };
    };
    Lock { path, state: first.state, reason: Some(first.reason.clone()), holder: Some(first), holders, waiters }
}

fn holder(judged: &Judged<Verdict>) -> HolderReport {
    let (state, reason) = match &judged.verdict {
        Verdict::Held(held @ Held::Unknown(_)) => (State::Unknown, held.to_string()),
        Verdict::Held(held) => (State::Held, held.to_string()),
        Verdict::Stale(why) => (State::Stale, why.to_string()),
    };
    let holder = Holder::new(judged);
    let entry = holder.entry.as_ref();
    HolderReport {
        state,
        reason,
        mode: entry.map(|entry| entry.mode.to_string()),
        pid: entry.map(|entry| entry.owner.pid.as_raw_pid()),
        command: entry.and_then(|entry| entry.command.clone()),
        host: entry.and_then(|entry| entry.owner.place.host.clone()),
        uid: entry.and_then(|entry| entry.owner.uid),
        since: holder.since.map(|since| since.to_string()),
        held_seconds: holder.held_for().map(|duration| duration.as_secs()),
        run: entry.and_then(|entry| entry.run.clone()),
        token: entry.and_then(|entry| entry.token.clone()),
        holder,
    }
}

fn waiter(pid: Pid) -> WaiterReport {
    let arguments = process::arguments(pid);
    // `serializer lock` waits for its parent, and that is what people know.
    let is_lock = arguments.iter().skip(1).find(|argument| !argument.starts_with('-')).is_some_and(|word| word == "lock");
    let arguments = is_lock.then(|| process::parent(pid)).flatten().map_or(arguments, process::arguments);
    WaiterReport { pid: pid.as_raw_pid(), command: printable::command_line(&arguments) }
}

fn table(locks: &[Lock]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["LOCK", "STATE", "PID", "COMMAND", "HOST", "SINCE", "FOR", "WHY"]);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for lock in locks {
        if lock.holders.is_empty() {
            let mut row = vec![lock.path.clone(), lock.state.word().to_owned()];
            row.extend(std::iter::repeat_n("-".to_owned(), 5));
            row.push(or_dash(lock.reason.clone()));
            table.add_row(row);
        }
        for holder in &lock.holders {
            let mode = holder.mode.as_ref().filter(|mode| **mode != Mode::EXCLUSIVE.to_string());
            table.add_row([
                lock.path.clone(),
                holder.state.word().to_owned(),
                or_dash(holder.pid.map(|pid| pid.to_string())),
                or_dash(holder.command.clone()),
                or_dash(holder.host.clone()),
                or_dash(holder.holder.since.map(|since| local_time(since).to_string())),
                or_dash(holder.holder.held_for().map(short)),
                mode.map_or_else(|| holder.reason.clone(), |mode| format!("{}; {mode}", holder.reason)),
            ]);
        }
        for (place, waiter) in lock.waiters.iter().enumerate() {
            let place = match place {
                0 => "next".to_owned(),
                place => format!("behind {place} other{}", if place == 1 { "" } else { "s" }),
            };
            let row = [&lock.path, "waits", &waiter.pid.to_string(), &waiter.command, "-", "-", "-", &place];
            table.add_row(row.map(str::to_owned));
        }
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
