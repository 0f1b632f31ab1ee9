//! `serializer status`

mod keys;
mod locks;
mod table;
mod watch;

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::cli::StatusArgs;
use crate::command::metrics::{self, Metric};
use crate::command::output::{print, to_json};
use crate::config::{ANY, Environment};
use crate::error::Error;
use crate::exit_code::DONE;
use crate::lock::Mutex;
use crate::lock::staleness::LocalLiveness;
use crate::store::seam::Kind;
use crate::store::{self, Location};
use crate::sys::text;
pub use locks::is_lock;
pub use table::{table, wrapped};
pub use watch::watch;

/// The version of `--json`. A new field leaves it as it is.
const SCHEMA: u32 = 1;

/// The exit code of `--exit-code` if something cannot be read.
const UNREAD: u8 = 4;

/// How locks or keys are shown: everything is made from the JSON of each.
struct View {
    /// The name of their list.
    all: &'static str,
    /// The JSON of one; `None` if a list of all does not have it.
    look: fn(&Location, &mut Mutex<'_>, bool) -> Result<Option<Value>, store::Error>,
    header: &'static [&'static str],
    /// The lines of the table, in full or one for each.
    lines: fn(&Value, bool) -> Vec<Vec<Option<String>>>,
    metrics: &'static [Metric],
}

/// The requested locks or keys, and the first error of those that cannot be read.
struct Report<'a> {
    view: &'a View,
    rows: Vec<Value>,
    /// Where they are.
    heading: String,
    is_in_full: bool,
    failure: Option<Error>,
}

pub fn run(args: &StatusArgs, environment: &Environment) -> Result<u8, Error> {
    let view = if args.once { &keys::VIEW } else { &locks::VIEW };
    if args.watch && args.json {
        return watch::changes(&|| Ok(look(view, args, environment)?.json())).map(|()| DONE);
    } else if args.watch {
        return watch(&mut || Ok(look(view, args, environment)?.text())).map(|()| DONE);
    }
    let report = look(view, args, environment)?;
    let failed = |failure: Error| {
        let code = if args.exit_code { UNREAD } else { failure.code };
        Err(failure.clone().or_if(failure.code, code))
    };
    if let ([_], Some(failure)) = (report.rows.as_slice(), &report.failure) {
        return failed(failure.clone());
    }
    if args.metrics {
        print(metrics::text(view.all, &report.rows, view.metrics).as_bytes())?;
    } else if args.json {
        print(to_json(&report.json())?.as_bytes())?;
    } else if !report.rows.is_empty() {
        print(report.text().as_bytes())?;
    } else if report.failure.is_none() {
        tracing::info!("{}", report.text().trim_end());
    }
    if !args.json && !args.metrics && !args.names.is_empty() {
        tell_names(&report, args, environment)?;
    }
    let codes = report.rows.iter().map(|row| match row["state"].as_str() {
        Some("held") => 1,
        Some("unknown") => 3,
        _ => DONE,
    });
    match report.failure {
        Some(failure) => failed(failure),
        None if args.exit_code => Ok(codes.max().unwrap_or(DONE)),
        None => Ok(DONE),
    }
}

/// Says which other names there are, if nothing was ever stored under a requested one.
fn tell_names(
    report: &Report<'_>,
    args: &StatusArgs,
    environment: &Environment,
) -> Result<(), Error> {
    let is_unused = |row: &&Value| row["state"].is_null() || row["is_used"] == false;
    let Some(unused) = report.rows.iter().find(is_unused) else { return Ok(()) };
    let all = environment.all(kind(args), &args.file.place).unwrap_or_default();
    let (rows, _) = rows(report.view, &all, &[], &judge(args, environment)?)?;
    let names: Vec<_> =
        rows.iter().filter_map(|row| Some(format!("`{}`", row["name"].as_str()?))).collect();
    if let (false, Some(name)) = (names.is_empty(), unused["name"].as_str()) {
        tracing::info!("`{name}` is not in use; {} in use: {}", report.view.all, names.join(", "));
    }
    Ok(())
}

fn kind(args: &StatusArgs) -> Kind {
    if args.once { Kind::Once } else { Kind::Lock }
}

fn judge(args: &StatusArgs, environment: &Environment) -> Result<LocalLiveness, Error> {
    Ok(LocalLiveness::here(environment.orphans(args.orphans)?))
}

fn look<'a>(
    view: &'a View,
    args: &StatusArgs,
    environment: &Environment,
) -> Result<Report<'a>, Error> {
    let (kind, place) = (kind(args), &args.file.place);
    let key = |name: &PathBuf| environment.key(kind, place, &name.to_string_lossy());
    let named: Vec<Location> = match kind {
        Kind::Once => args.names.iter().map(key).collect::<Result<_, _>>()?,
        _ if args.all => Vec::new(),
        _ => environment.locks(&args.file, &args.names)?,
    };
    let is_in_full = !args.names.is_empty()
        || kind == Kind::Lock
            && !args.all
            && (args.file.file_name.is_some() || environment.is_set("FILE_NAME"));
    // The lock that is set up stands first, also if it is free.
    let (mut all, mut failure) = (named.clone(), None);
    if !is_in_full {
        match environment.all(kind, place) {
            Ok(found) => all.extend(found.into_iter().filter(|location| !named.contains(location))),
            Err(error) if named.is_empty() => return Err(error),
            Err(error) => failure = Some(error),
        }
    }
    let heading = match all.as_slice() {
        [] => environment.key(kind, place, ANY)?.shown_place(),
        [first, others @ ..] if others.iter().all(|it| it.shown_place() == first.shown_place()) => {
            first.shown_place()
        }
        _ => String::new(),
    };
    let (rows, unread) = rows(view, &all, &named, &judge(args, environment)?)?;
    Ok(Report { view, rows, heading, is_in_full, failure: unread.or(failure) })
}

/// What is shown of these, and the first error of those that cannot be read.
fn rows(
    view: &View,
    all: &[Location],
    named: &[Location],
    judge: &LocalLiveness,
) -> Result<(Vec<Value>, Option<Error>), Error> {
    let (mut rows, mut failure) = (Vec::new(), None);
    for location in all {
        let mut mutex = Mutex::open(location, judge)?;
        let looked = exists(location)
            .and_then(|()| Ok((view.look)(location, &mut mutex, named.contains(location))?));
        match looked {
            Ok(row) => rows.extend(row),
            // It must not hide the others.
            Err(error) => {
                rows.push(identity(
                    location,
                    &json!({ "state": "error", "why": error.to_string() }),
                ));
                failure = failure.or(Some(error));
            }
        }
    }
    Ok((rows, failure))
}

/// Refuses a lock in a directory that does not exist, which may be mistyped. Keys make theirs.
fn exists(location: &Location) -> Result<(), Error> {
    match location {
        Location::File(directory, key) if key.kind == Kind::Lock && !directory.exists() => {
            let why = format!("the lock directory `{}` does not exist", text::path(directory));
            let hint = "`serializer initialize` creates it; or check `--dir` and `SERIALIZER_DIR`";
            Err(Error::failed(why).with_hint(hint))
        }
        _ => Ok(()),
    }
}

/// Adds to the JSON of a register what it is called and where it is.
fn identity(location: &Location, more: &Value) -> Value {
    let (path, store) = match location {
        // The file of a key has another name.
        Location::File(directory, key) if key.kind != Kind::Lock => {
            (Some(text::path(directory)), None)
        }
        Location::File(..) => (Some(location.printable()), None),
        Location::Store(settings, _) => (None, Some(settings.url.to_string())),
    };
    let mut row = json!({ "name": location.name(), "path": path, "store": store });
    if let (Value::Object(row), Value::Object(more)) = (&mut row, more) {
        row.extend(more.clone());
    }
    if location.key().kind == Kind::Once && row["key"].is_null() {
        row["key"] = row["name"].clone();
    }
    row
}

impl Report<'_> {
    fn json(&self) -> Value {
        json!({ "schema": SCHEMA, self.view.all: self.rows })
    }

    fn text(&self) -> String {
        if self.rows.is_empty() {
            return format!("no {} in `{}`\n", self.view.all, self.heading);
        }
        let mut rows = self.rows.clone();
        for row in rows.iter_mut().filter(|_| self.heading.is_empty()) {
            row["name"] = row["path"].clone();
        }
        let heading =
            if self.heading.is_empty() { String::new() } else { self.heading.clone() + "\n" };
        heading
            + &table(
                self.view.header,
                rows.iter().flat_map(|row| (self.view.lines)(row, self.is_in_full)),
            )
    }
}
