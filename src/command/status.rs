//! `serializer status`

mod keys;
mod locks;
mod table;

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use serde::Serialize;

use crate::backend::seam::Kind;
use crate::backend::{self, Location};
use crate::cli::StatusArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::mutex::Mutex;
use crate::owner::Place;
use crate::verdict::LocalJudge;
use keys::Key;
use locks::Lock;

/// The poll interval of `--watch`.
const REFRESH: Duration = Duration::from_secs(1);

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Report {
    Locks(Vec<Lock>),
    Keys(Vec<Key>),
}

/// What is shown of one lock or key.
trait Row: Sized {
    /// `None` if a list of all does not have it.
    fn look(location: &Location, mutex: &mut Mutex<'_>, is_named: bool) -> Result<Option<Self>, backend::Error>;

    /// Stands for one that cannot be read.
    fn unreadable(location: &Location, error: &backend::Error) -> Option<Self>;
}

pub fn run(args: &StatusArgs, environment: &Environment) -> Result<(), Error> {
    if args.watch {
        return watch(args, environment);
    }
    let (report, failure) = look(args, environment)?;
    if args.json {
        super::print(super::to_json(&report)?.as_bytes())?;
    } else if !report.is_empty() {
        super::print(report.table().as_bytes())?;
    } else if failure.is_none() {
        tracing::info!("{}", none(args, environment)?);
    }
    failure.map_or(Ok(()), Err)
}

/// Shows the status again and again, until a signal ends it or its output is not read any more.
fn watch(args: &StatusArgs, environment: &Environment) -> Result<(), Error> {
    let is_terminal = stdout().is_terminal();
    let mut shown = String::new();
    loop {
        let text = match look(args, environment) {
            Ok((report, _)) if report.is_empty() => none(args, environment)? + "\n",
            Ok((report, _)) => report.table(),
            Err(error) if shown.is_empty() => return Err(error),
            // It may pass.
            Err(error) => format!("{error}\n"),
        };
        let is_read = if is_terminal {
            // From the top, over the text before, and then nothing.
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

impl Report {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Locks(locks) if locks.is_empty()) || matches!(self, Self::Keys(keys) if keys.is_empty())
    }

    fn table(&self) -> String {
        match self {
            Self::Locks(locks) => locks::table(locks),
            Self::Keys(keys) => keys::table(keys),
        }
    }
}

fn kind(args: &StatusArgs) -> Kind {
    if args.once { Kind::Once } else { Kind::Lock }
}

fn none(args: &StatusArgs, environment: &Environment) -> Result<String, Error> {
    let what = if args.once { "keys" } else { "locks" };
    Ok(format!("there are no {what} in `{}`", environment.place(kind(args), &args.file.place)?))
}

/// The requested locks or keys, and the first error of those that cannot be read.
fn look(args: &StatusArgs, environment: &Environment) -> Result<(Report, Option<Error>), Error> {
    let judge = LocalJudge::new(Place::here(), environment.orphans(args.orphans)?);
    let place = &args.file.place;
    let is_named = !args.all && !(args.once && args.names.is_empty());
    let locations = if !is_named {
        environment.all(kind(args), place)?
    } else if args.once {
        args.names.iter().map(|name| environment.key(place, &name.to_string_lossy())).collect::<Result<_, _>>()?
    } else {
        environment.locks(&args.file, &args.names)?
    };
    Ok(if args.once {
        let (keys, failure) = rows(&locations, &judge, is_named)?;
        (Report::Keys(keys), failure)
    } else {
        let (locks, failure) = rows(&locations, &judge, is_named)?;
        (Report::Locks(locks), failure)
    })
}

fn rows<T: Row>(locations: &[Location], judge: &LocalJudge, is_named: bool) -> Result<(Vec<T>, Option<Error>), Error> {
    let (mut rows, mut failure) = (Vec::new(), None);
    for location in locations {
        match T::look(location, &mut Mutex::new(backend::open(location)?, judge), is_named) {
            Ok(row) => rows.extend(row),
            Err(error) if is_named && locations.len() == 1 => return Err(error.into()),
            // It must not hide the others.
            Err(error) => {
                rows.extend(T::unreadable(location, &error));
                failure = failure.or(Some(error.into()));
            }
        }
    }
    Ok((rows, failure))
}
