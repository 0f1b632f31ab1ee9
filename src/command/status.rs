//! `serializer status`

mod keys;
mod locks;
mod table;

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::StatusArgs;
use crate::command::metrics::{self, Metric};
use crate::config::Environment;
use crate::error::Error;
use crate::lock::Mutex;
use crate::lock::register::Register;
use crate::lock::staleness::LocalLiveness;
use crate::store::seam::Kind;
use crate::store::{self, Location};
use crate::sys::identity::HostIdentity;
use keys::Key;
use locks::Lock;
pub use table::table;

/// The poll interval of `--watch`.
const REFRESH: Duration = Duration::from_secs(1);

/// What is shown of one lock or key.
trait Row: Sized {
    const HEADER: &'static [&'static str];

    /// `None` if a list of all does not have it.
    fn look(
        location: &Location,
        mutex: &mut Mutex<'_>,
        is_named: bool,
    ) -> Result<Option<Self>, store::Error>;

    /// Stands for one that cannot be read.
    fn unreadable(_location: &Location, _error: &store::Error) -> Option<Self> {
        None
    }

    fn json(&self) -> Value;

    const METRICS: &'static [Metric];

    /// The lines of the table.
    fn lines(&self) -> Vec<Vec<Option<String>>>;
}

/// The requested locks or keys, and the first error of those that cannot be read.
struct Report {
    json: Vec<Value>,
    text: String,
    failure: Option<Error>,
}

pub fn run(args: &StatusArgs, environment: &Environment) -> Result<(), Error> {
    if args.watch {
        return watch(&mut || look(args, environment).map(|report| report.text));
    }
    let report = look(args, environment)?;
    if args.metrics {
        let (kind, label, metrics) =
            if args.once { ("key", "key", Key::METRICS) } else { ("lock", "path", Lock::METRICS) };
        super::print(metrics::text(kind, label, &report.json, metrics).as_bytes())?;
    } else if args.json {
        super::print(super::to_json(&json!({ what(args): report.json }))?.as_bytes())?;
    } else if !report.json.is_empty() {
        super::print(report.text.as_bytes())?;
    } else if report.failure.is_none() {
        tracing::info!("{}", report.text.trim_end());
    }
    report.failure.map_or(Ok(()), Err)
}

/// Shows the status again and again, until a signal ends it or its output is not read any more.
pub fn watch(look: &mut dyn FnMut() -> Result<String, Error>) -> Result<(), Error> {
    let clear = if stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
    let mut shown = String::new();
    loop {
        let text = match look() {
            Ok(text) => text,
            Err(error) if shown.is_empty() => return Err(error),
            // It may pass.
            Err(error) => format!("{error}\n"),
        };
        if text != shown && !super::is_read(format!("{clear}{text}").as_bytes())? {
            return Ok(());
        }
        shown = text;
        std::thread::sleep(REFRESH);
    }
}

fn what(args: &StatusArgs) -> &'static str {
    if args.once { "keys" } else { "locks" }
}

fn look(args: &StatusArgs, environment: &Environment) -> Result<Report, Error> {
    let judge = LocalLiveness::new(HostIdentity::here(), environment.orphans(args.orphans)?);
    let kind = if args.once { Kind::Once } else { Kind::Lock };
    let place = &args.file.place;
    let is_named = !(args.all || args.once && args.names.is_empty());
    let locations = if !is_named {
        environment.all(kind, place)?
    } else if args.once {
        args.names
            .iter()
            .map(|name| environment.key(kind, place, &name.to_string_lossy()))
            .collect::<Result<_, _>>()?
    } else {
        environment.locks(&args.file, &args.names)?
    };
    let mut report = if args.once {
        report::<Key>(&locations, &judge, is_named)?
    } else {
        report::<Lock>(&locations, &judge, is_named)?
    };
    if report.json.is_empty() {
        report.text =
            format!("there are no {} in `{}`\n", what(args), environment.place(kind, place)?);
    }
    Ok(report)
}

fn report<T: Row>(
    locations: &[Location],
    judge: &LocalLiveness,
    is_named: bool,
) -> Result<Report, Error> {
    let (mut rows, mut failure) = (Vec::new(), None);
    for location in locations {
        match T::look(location, &mut Mutex::new(Register::open(location)?, judge), is_named) {
            Ok(row) => rows.extend(row),
            Err(error) if is_named && locations.len() == 1 => return Err(error.into()),
            // It must not hide the others.
            Err(error) => {
                rows.extend(T::unreadable(location, &error));
                failure = failure.or(Some(error.into()));
            }
        }
    }
    let text = table(T::HEADER, rows.iter().flat_map(T::lines));
    Ok(Report { json: rows.iter().map(T::json).collect(), text, failure })
}
