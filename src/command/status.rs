//! `serializer status`

mod keys;
mod locks;
mod table;
mod watch;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::cli::StatusArgs;
use crate::command::metrics::{self, Metric};
use crate::command::output::{print, to_json};
use crate::config::{ANY, Environment, state_directory};
use crate::error::Error;
use crate::exit_code::DONE;
use crate::lock::Mutex;
use crate::lock::register::Register;
use crate::lock::staleness::LocalLiveness;
use crate::store::seam::{Key, Kind};
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
    kind: Kind,
    /// The name of their list.
    all: &'static str,
    /// The JSON of one; `None` if a list of all does not have it.
    look: fn(&Location, &mut Mutex<'_>, bool) -> Result<Option<Value>, store::Error>,
    header: &'static [&'static str],
    /// The lines of the table, in full or one for each.
    lines: fn(&Value, bool) -> Vec<Vec<Option<String>>>,
    metrics: &'static [Metric],
}

/// The locks or keys that were looked at: what is kept between two looks shows leases that are not
/// renewed.
struct Looks<'j> {
    judge: &'j LocalLiveness,
    /// By place and key. Each place has one connection.
    all: BTreeMap<(PathBuf, Key), Mutex<'j>>,
}

/// The requested locks or keys, and the first error of those that cannot be read.
struct Report<'a> {
    args: &'a StatusArgs,
    environment: &'a Environment,
    view: &'static View,
    rows: Vec<Value>,
    /// Where they are, if all are at the same place.
    heading: Option<String>,
    is_in_full: bool,
    failure: Option<Error>,
}

impl<'j> Looks<'j> {
    fn at(&mut self, location: &Location) -> Result<&mut Mutex<'j>, Error> {
        let place = match location {
            Location::File(directory, _) => directory.clone(),
            Location::Store(settings, _) => settings.url.rest.clone().into(),
        };
        let same = self.all.iter().find(|((other, _), _)| *other == place);
        let same = same.map(|(_, mutex)| mutex.register.sibling(location));
        Ok(match self.all.entry((place, location.key().clone())) {
            Entry::Occupied(kept) => kept.into_mut(),
            Entry::Vacant(new) => {
                let register = same.map_or_else(|| Register::open(location), Ok)?;
                new.insert(Mutex::new(register, self.judge))
            }
        })
    }
}

pub fn run(args: &StatusArgs, environment: &Environment) -> Result<u8, Error> {
    let judge = LocalLiveness::here(environment.orphans(args.orphans)?);
    let mut looks = Looks { judge: &judge, all: BTreeMap::new() };
    if args.watch {
        let text = |report: Report<'_>| {
            if args.json { format!("{}\n", report.json()) } else { report.text() }
        };
        let mut look = || look(args, environment, &mut looks).map(text);
        return watch(args.json, &mut look).map(|()| DONE);
    }
    let report = look(args, environment, &mut looks)?;
    let mut failure = report.failure.clone();
    failure.iter_mut().filter(|_| args.exit_code).for_each(|failure| failure.code = UNREAD);
    match &failure {
        Some(failure) if report.rows.len() == 1 => return Err(failure.clone()),
        _ if args.metrics => {
            print(metrics::text(report.view.all, &report.rows, report.view.metrics))?;
        }
        _ if args.json => print(to_json(&report.json())?)?,
        None if report.rows.is_empty() => tracing::info!("{}", report.text().trim_end()),
        _ if report.rows.is_empty() => {}
        _ => print(report.text())?,
    }
    if !args.json && !args.metrics {
        report.tell_names(&mut looks)?;
    }
    let codes = report.rows.iter().map(|row| match row["state"].as_str() {
        Some("held") if args.exit_code => 1,
        Some("unknown") if args.exit_code => 3,
        _ => DONE,
    });
    failure.map_or(Ok(codes.max().unwrap_or(DONE)), Err)
}

fn look<'a>(
    args: &'a StatusArgs,
    environment: &'a Environment,
    looks: &mut Looks<'_>,
) -> Result<Report<'a>, Error> {
    let view = if args.once { &keys::VIEW } else { &locks::VIEW };
    let (kind, place) = (view.kind, &args.file.place);
    let key = |name: &PathBuf| environment.key(kind, place, &name.to_string_lossy());
    let named: Vec<Location> = match kind {
        Kind::Once => args.names.iter().map(key).collect::<Result<_, _>>()?,
        _ if args.all => Vec::new(),
        _ => environment.locks(&args.file, &args.names)?,
    };
    let is_set = || args.file.file_name.is_some() || environment.is_set("FILE_NAME");
    let is_in_full = !args.names.is_empty() || kind == Kind::Lock && !args.all && is_set();
    let is_nowhere =
        |it: &Location| matches!(it, Location::File(directory, _) if !directory.is_dir());
    // The lock that is set up stands first, also if it is free.
    let (mut all, mut failure) = (named.clone(), None);
    if !is_in_full {
        match environment.all(kind, place) {
            Ok(found) => all.extend(found.into_iter().filter(|location| !named.contains(location))),
            Err(error) if named.is_empty() => return Err(error),
            // Of a place that is not a directory, the lock tells.
            Err(error) => failure = Some(error).filter(|_| !named.iter().any(is_nowhere)),
        }
    }
    let any = environment.key(kind, place, ANY);
    let heading = all.first().map_or_else(|| any, |first| Ok(first.clone()))?.shown_place();
    let heading =
        Some(heading).filter(|it| all.iter().all(|location| location.shown_place() == *it));
    let mut report =
        Report { args, environment, view, rows: Vec::new(), heading, is_in_full, failure };
    report.add(looks, &all, &named);
    Ok(report)
}

/// Refuses a directory that does not exist, which may be mistyped; keys make their usual one.
pub fn exists(location: &Location) -> Result<(), Error> {
    match location {
        Location::File(directory, key)
            if matches!(directory.try_exists(), Ok(false))
                && (key.kind == Kind::Lock
                    || state_directory().ok().as_ref() != Some(directory)) =>
        {
            let (shown, what) = (text::path(directory), key.kind.noun().trim_start_matches("the "));
            let why = format!("the {what} directory `{shown}` does not exist");
            let hint = format!(
                "`serializer initialize --dir {}` creates it; or check `--dir` and \
                 `SERIALIZER_DIR`",
                text::quoted(&shown)
            );
            Err(Error::failed(why).with_hint(hint))
        }
        _ => Ok(()),
    }
}

/// Adds to the JSON of a register what it is called and where it is.
fn identified(location: &Location, mut row: Value) -> Value {
    let kind = location.key().kind;
    let store = location.is_shared().then(|| location.shown_place());
    // The file of a key has another name.
    let path = if kind == Kind::Lock { location.printable() } else { location.shown_place() };
    row["name"] = location.name().into();
    row["path"] = Some(path).filter(|_| store.is_none()).into();
    row["store"] = store.into();
    if kind == Kind::Once && row["key"].is_null() {
        row["key"] = row["name"].clone();
    }
    row
}

impl Report<'_> {
    /// Adds what is shown of these, and the first error of those that cannot be read.
    fn add(&mut self, looks: &mut Looks<'_>, all: &[Location], named: &[Location]) {
        for location in all {
            let mut look = |()| {
                let mutex = looks.at(location)?;
                Ok((self.view.look)(location, mutex, named.contains(location))?)
            };
            let row = exists(location).and_then(&mut look).unwrap_or_else(|error| {
                // It must not hide the others.
                let row = json!({ "state": "error", "why": error.to_string() });
                self.failure.get_or_insert(error);
                Some(row)
            });
            self.rows.extend(row.map(|row| identified(location, row)));
        }
    }

    /// Says which other names there are, if nothing was ever stored under a requested one.
    fn tell_names(&self, looks: &mut Looks<'_>) -> Result<(), Error> {
        let is_unused = |row: &&Value| row["state"].is_null() || row["is_used"] == false;
        let unused = self.rows.iter().find(is_unused).filter(|_| !self.args.names.is_empty());
        let Some(unused) = unused else { return Ok(()) };
        let all = self.environment.all(self.view.kind, &self.args.file.place).unwrap_or_default();
        let mut used = Report { rows: Vec::new(), failure: None, heading: None, ..*self };
        used.add(looks, &all, &[]);
        let names: Vec<_> = used.rows.iter().filter_map(|row| row["name"].as_str()).collect();
        if let (false, Some(name)) = (names.is_empty(), unused["name"].as_str()) {
            let (all, names) = (self.view.all, names.join("`, `"));
            tracing::info!("`{name}` is not in use; {all} in use: `{names}`");
        }
        Ok(())
    }

    fn json(&self) -> Value {
        json!({ "schema": SCHEMA, self.view.all: self.rows })
    }

    fn text(&self) -> String {
        let heading = self.heading.as_deref().unwrap_or_default();
        if self.rows.is_empty() {
            return format!("no {} in `{heading}`\n", self.view.all);
        }
        let lines = self.rows.iter().flat_map(|row| {
            let mut row = row.clone();
            if self.heading.is_none() {
                row["name"] = row["path"].clone();
            }
            (self.view.lines)(&row, self.is_in_full)
        });
        let table = table(self.view.header, lines);
        if self.heading.is_some() { format!("{heading}\n{table}") } else { table }
    }
}
