//! `serializer status`

mod keys;
mod report;
mod table;

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use report::{Lock, Report, UNKNOWN, report};
use table::table;
pub use table::{new_table, rendered};

use crate::backend::seam::Kind;
use crate::backend::{self, Cause, file};
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
        return watch(&|| if args.once { keys::text(args, environment) } else { text(args, environment) });
    }
    if args.once {
        return keys::show(args, environment);
    }
    let (locks, failure) = look(args, environment)?;
    if args.json {
        super::print(super::to_json(&Report { locks })?.as_bytes())?;
    } else if locks.is_empty() {
        tracing::info!("{}", none(args, environment)?);
    } else {
        super::print(table(&locks).as_bytes())?;
    }
    failure.map_or(Ok(()), |error| Err(error.into()))
}

/// Looks again and again, until a signal ends it or its output is not read any more.
pub fn watch(look: &dyn Fn() -> Result<String, Error>) -> Result<(), Error> {
    let is_terminal = stdout().is_terminal();
    let mut shown = String::new();
    loop {
        let text = match look() {
            Ok(text) => text,
            Err(error) if shown.is_empty() => return Err(error),
            // It may be over soon.
            Err(error) => format!("{error}\n"),
        };
        let is_read = if is_terminal {
            // From the top, over what was there, and then nothing.
            let clear = if shown.is_empty() { "\x1b[2J" } else { "" };
            super::is_read(format!("{clear}\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")).as_bytes())?
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

/// What `--watch` shows.
fn text(args: &StatusArgs, environment: &Environment) -> Result<String, Error> {
    let (locks, _) = look(args, environment)?;
    Ok(if locks.is_empty() { none(args, environment)? + "\n" } else { table(&locks) })
}

fn none(args: &StatusArgs, environment: &Environment) -> Result<String, Error> {
    let place = match environment.store(Kind::Lock, &args.file.place, None)? {
        Some(store) => store.url.to_string(),
        None => printable::path(&environment.directory(Kind::Lock, &args.file.place)?),
    };
    Ok(format!("there are no locks in `{place}`"))
}

/// All that was asked for, and the first error of those that cannot be looked at.
fn look(args: &StatusArgs, environment: &Environment) -> Result<(Vec<Lock>, Option<backend::Error>), Error> {
    let judge = LocalJudge::new(Place::here(), environment.orphans(args.orphans)?);
    let (mut locks, mut failure) = (Vec::new(), None);
    let place = &args.file.place;
    let locations = match environment.store(Kind::Lock, place, None)? {
        _ if !args.all => environment.locks(&args.file, &args.names)?,
        Some(store) => backend::all_in(&store, Kind::Lock)?,
        None => file::all_in(&environment.directory(Kind::Lock, place)?, Kind::Lock)?,
    };
    let is_one_of_several = args.all || locations.len() > 1;
    for location in locations {
        let mut mutex = Mutex::new(backend::open(&location)?, &judge);
        match mutex.look() {
            // flock(1) leaves empty files.
            Ok(Some((stored, _))) if args.all && stored.record.is_none() => {}
            Ok(found) => locks.push(report(&location, found, mutex.waiters())),
            // Other programs keep files of that name, too.
            Err(error) if args.all && error.cause == Cause::NotALock => tracing::debug!("{error}"),
            // One that cannot be read must not hide the others.
            Err(error) if is_one_of_several => {
                locks.push(Lock::new(&location, UNKNOWN, Some(error.to_string())));
                failure = failure.or(Some(error));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok((locks, failure))
}
