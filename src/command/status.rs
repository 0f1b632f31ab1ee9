//! `serializer status`

mod report;
mod table;

use std::ffi::OsStr;
use std::fs;
use std::io::{IsTerminal, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;

use report::{Lock, Report, State, report};
use table::table;

use crate::backend::{self, Cause, Location};
use crate::cli::StatusArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::mutex::Mutex;
use crate::owner::Place;
use crate::printable;
use crate::verdict::LocalJudge;

/// How often `--watch` looks.
const REFRESH: Duration = Duration::from_secs(1);

pub fn run(args: &StatusArgs, environment: &Environment) -> Result<(), Error> {
    if args.watch {
        return watch(args, environment);
    }
    let (locks, failure) = look(args, environment)?;
    if args.json {
        let json = serde_json::to_string_pretty(&Report { locks }).map_err(|error| Error::failed(error.to_string()))?;
        super::print(format!("{json}\n").as_bytes())?;
    } else if locks.is_empty() {
        tracing::info!("{}", none(args, environment)?);
    } else {
        super::print(table(&locks).as_bytes())?;
    }
    failure.map_or(Ok(()), |error| Err(error.into()))
}

/// Looks again and again, until somebody ends it.
fn watch(args: &StatusArgs, environment: &Environment) -> Result<(), Error> {
    let is_terminal = stdout().is_terminal();
    let mut shown = String::new();
    // For ever: that is what it is for.
    loop {
        let text = match look(args, environment) {
            Ok((locks, _)) if locks.is_empty() => none(args, environment)? + "\n",
            Ok((locks, _)) => table(&locks),
            Err(error) if shown.is_empty() => return Err(error),
            // It may be over soon.
            Err(error) => format!("{error}\n"),
        };
        let is_read = if is_terminal {
            // From the top, over what was there, and then nothing.
            let text = text.replace('\n', "\x1b[K\n");
            let clear = if shown.is_empty() { "\x1b[2J" } else { "" };
            super::is_read(format!("{clear}\x1b[H{text}\x1b[J").as_bytes())?
        } else {
            text == shown || super::is_read(text.as_bytes())?
        };
        if !is_read {
            return Ok(());
        }
        shown = text;
        std::thread::sleep(REFRESH);
    }
}

fn none(args: &StatusArgs, environment: &Environment) -> Result<String, Error> {
    let place = match environment.store(&args.file)? {
        Some(store) => store.url.to_string(),
        None => printable::path(&environment.directory(&args.file)?),
    };
    Ok(format!("there are no locks in `{place}`"))
}

/// All that was asked for, and the first of them that could not be looked at.
fn look(args: &StatusArgs, environment: &Environment) -> Result<(Vec<Lock>, Option<backend::Error>), Error> {
    let judge = LocalJudge::new(Place::here(), environment.orphans(args.orphans)?);
    let mut locks = Vec::new();
    let mut failure = None;
    let locations = locations(args, environment)?;
    let is_one_of_several = args.all || locations.len() > 1;
    for location in locations {
        let mut mutex = Mutex::new(backend::open(&location)?, &judge);
        match mutex.look() {
            // What flock(1) and others leave behind is no lock of ours.
            Ok(Some((stored, _))) if args.all && stored.record.is_none() => {}
            Ok(found) => locks.push(report(&location, found, mutex.waiters())),
            // Other programs keep files of that name, too.
            Err(error) if args.all && error.cause == Cause::NotALock => tracing::debug!("{error}"),
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
    Ok((locks, failure))
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
