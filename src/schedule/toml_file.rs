//! Reads tasks from a TOML file. An error is one line: the file, the key, the line, what is wrong.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::Deserialize;
use toml::Spanned;

use super::definition::{Catalog, CatchUp, Definition, ON_REQUEST, Overlap, check_name, nearest};
use super::timetable::{Timetable, zone};
use crate::config::parse_duration;
use crate::mode::MAX_SLOTS;
use crate::once::Interrupted;
use crate::printable;

type Text = Spanned<String>;
type Optional<T> = Result<Option<T>, Fault>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct File {
    time_zone: Option<Text>,
    #[serde(default)]
    limits: BTreeMap<Text, Spanned<i64>>,
    #[serde(default)]
    tasks: BTreeMap<Text, Task>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct Task {
    cron: Option<Text>,
    every: Option<Text>,
    time_zone: Option<Text>,
    run: Option<Text>,
    command: Option<Spanned<Vec<String>>>,
    directory: Option<PathBuf>,
    #[serde(default)]
    env: BTreeMap<Text, String>,
    #[serde(default)]
    catch_up: CatchUp,
    start_within: Option<Text>,
    overlap: Option<Spanned<Overlap>>,
    tries: Option<Spanned<i64>>,
    retry_after: Option<Text>,
    #[serde(default)]
    interrupted: Interrupted,
    timeout: Option<Text>,
    spread: Option<Text>,
    limit: Option<Text>,
    enabled: Option<bool>,
    #[serde(default)]
    notify: Vec<String>,
}

/// An invalid part of the file, its position, and the reason.
struct Fault {
    what: String,
    at: Range<usize>,
    why: String,
}

/// Reads one task.
struct Reader<'a> {
    name: &'a Text,
    task: &'a Task,
    default_zone: &'a TimeZone,
    limits: &'a BTreeMap<String, NonZeroU32>,
    /// The directory of the file.
    base: &'a Path,
}

/// Reads a file.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn read(path: &Path) -> Result<Catalog, String> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| format!("cannot read `{}`: {error}", printable::path(path)))?;
    parse(&text, path)
}

/// Reads the text of the file at `path`.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn parse(text: &str, path: &Path) -> Result<Catalog, String> {
    let file = toml::from_str(text).map_err(Fault::from);
    file.and_then(|file| catalog(&file, path)).map_err(|Fault { what, at, why }| {
        let line = 1 + text.bytes().take(at.start).filter(|byte| *byte == b'\n').count();
        format!("cannot use `{}`: {what} (line {line}): {why}", printable::path(path))
    })
}

fn catalog(file: &File, path: &Path) -> Result<Catalog, Fault> {
    let mut catalog = Catalog::default();
    for (name, number) in &file.limits {
        check_name(name.get_ref()).map_err(|why| Fault::new("`limits`", name, why))?;
        let limit = whole_number(&format!("limits.{}", name.get_ref()), number, MAX_SLOTS)?;
        catalog.limits.insert(name.get_ref().clone(), limit);
    }
    let default_zone = match &file.time_zone {
        Some(name) => zone(name.get_ref()).map_err(|why| Fault::new("`time_zone`", name, why))?,
        None => TimeZone::UTC,
    };
    let is_default = |task: &Task| task.cron.is_some() && task.time_zone.is_none();
    if file.time_zone.is_none() && file.tasks.values().any(is_default) {
        let path = printable::path(path);
        catalog.warnings.push(format!("`time_zone` is not set in `{path}`: `cron` is in UTC"));
    }
    let base = path.parent().unwrap_or(Path::new(""));
    for (name, task) in &file.tasks {
        check_name(name.get_ref()).map_err(|why| Fault::new("`tasks`", name, why))?;
        let limits = &catalog.limits;
        let definition = Reader { name, task, default_zone: &default_zone, limits, base }.read()?;
        catalog.tasks.insert(name.get_ref().clone(), definition);
    }
    Ok(catalog)
}

impl Reader<'_> {
    fn read(&self) -> Result<Definition, Fault> {
        let task = self.task;
        let (timetable, schedule) = self.timetable()?;
        let usual = Definition::new(timetable, schedule, self.command()?);
        let tries = match &task.tries {
            Some(tries) => whole_number(&self.key("tries"), tries, u32::MAX)?,
            None => usual.tries,
        };
        self.check(tries)?;
        let (zero, shortest) = (Duration::ZERO, Duration::from_millis(1));
        let retry_after = self.duration("retry_after", &task.retry_after, zero)?;
        let directory = task.directory.as_ref().map(|directory| self.base.join(directory));
        Ok(Definition {
            directory: directory.map(|path| std::path::absolute(&path).unwrap_or(path)),
            env: task.env.iter().map(|(name, value)| (name.to_string(), value.clone())).collect(),
            catch_up: task.catch_up,
            start_within: self.duration("start_within", &task.start_within, shortest)?,
            overlap: task.overlap.as_ref().map(|overlap| *overlap.get_ref()).unwrap_or_default(),
            tries,
            retry_after: retry_after.unwrap_or(usual.retry_after),
            interrupted: task.interrupted,
            timeout: self.duration("timeout", &task.timeout, shortest)?,
            spread: self.duration("spread", &task.spread, zero)?.unwrap_or_default(),
            limit: task.limit.as_ref().map(|limit| limit.get_ref().clone()),
            enabled: task.enabled.unwrap_or(true),
            notify: task.notify.clone(),
            ..usual
        })
    }

    /// Checks the keys against each other.
    fn check(&self, tries: NonZeroU32) -> Result<(), Fault> {
        let task = self.task;
        if let (Some(retry_after), NonZeroU32::MIN) = (&task.retry_after, tries) {
            return Err(self.fault("retry_after", retry_after, "requires `tries` of at least 2"));
        }
        if let (Some(overlap), CatchUp::All) = (&task.overlap, task.catch_up) {
            let why = "unsupported with `catch_up = \"all\"`, which runs each slot";
            return Err(self.fault("overlap", overlap, why));
        }
        let limit = task.limit.as_ref().map(|limit| (limit, limit.get_ref()));
        if let Some((limit, name)) = limit.filter(|(_, name)| !self.limits.contains_key(*name)) {
            let known = nearest(name, self.limits.keys().map(String::as_str));
            let why = format!("no such limit `{}`: {known}", printable::field(name));
            return Err(self.fault("limit", limit, why));
        }
        let is_bad = |name: &str| name.is_empty() || name.contains(['=', '\0']);
        match task.env.keys().find(|name| is_bad(name.get_ref())) {
            Some(name) => Err(self.fault("env", name, "expected names without `=`")),
            None => Ok(()),
        }
    }

    /// The timetable, for the timer and as text.
    fn timetable(&self) -> Result<(Option<Timetable>, String), Fault> {
        let Task { cron, every, time_zone, .. } = self.task;
        match (cron, every, time_zone) {
            (Some(_), Some(every), _) => Err(self.fault("every", every, "unsupported with `cron`")),
            (None, _, Some(zone)) => Err(self.fault("time_zone", zone, "requires `cron`")),
            (Some(cron), None, name) => {
                let own = name.as_ref().map(|name| (name, zone(name.get_ref())));
                let zone = match own {
                    Some((name, zone)) => zone.map_err(|why| self.fault("time_zone", name, why))?,
                    None => self.default_zone.clone(),
                };
                let timetable = Timetable::cron(cron.get_ref(), zone);
                let timetable = timetable.map_err(|why| self.fault("cron", cron, why))?;
                Ok((Some(timetable), cron.get_ref().clone()))
            }
            (None, every, None) => {
                let duration = self.duration("every", every, Duration::from_secs(1))?;
                let schedule = every.as_ref().map(|every| format!("every {}", every.get_ref()));
                let schedule = schedule.unwrap_or_else(|| ON_REQUEST.to_owned());
                Ok((duration.map(Timetable::Every), schedule))
            }
        }
    }

    fn command(&self) -> Result<Vec<String>, Fault> {
        let is_empty = |command: &[String]| command.first().is_none_or(String::is_empty);
        match (&self.task.run, &self.task.command) {
            (Some(run), Some(_)) => Err(self.fault("run", run, "unsupported with `command`")),
            (Some(run), None) if run.get_ref().trim().is_empty() => {
                let why = "expected a script, such as \"meltano run tap-shop target-dwh\"";
                Err(self.fault("run", run, why))
            }
            (Some(run), None) => Ok(["/bin/sh", "-c", run.get_ref()].map(str::to_owned).into()),
            (None, Some(command)) if is_empty(command.get_ref()) => {
                Err(self.fault("command", command, "expected a program and its arguments"))
            }
            (None, Some(command)) => Ok(command.get_ref().clone()),
            (None, None) => {
                let task = format!("`tasks.{}`", self.name.get_ref());
                Err(Fault::new(task, self.name, "requires `run` or `command`"))
            }
        }
    }

    fn duration(&self, key: &str, value: &Option<Text>, least: Duration) -> Optional<Duration> {
        let Some(value) = value else { return Ok(None) };
        let duration = parse_duration(value.get_ref()).map_err(|why| self.fault(key, value, why))?;
        if duration < least {
            return Err(self.fault(key, value, format!("expected at least {least:?}")));
        }
        Ok(Some(duration))
    }

    /// The path of a key.
    fn key(&self, key: &str) -> String {
        format!("tasks.{}.{key}", self.name.get_ref())
    }

    fn fault<T>(&self, key: &str, value: &Spanned<T>, why: impl Into<String>) -> Fault {
        Fault::new(format!("`{}`", self.key(key)), value, why)
    }
}

fn whole_number(key: &str, number: &Spanned<i64>, max: u32) -> Result<NonZeroU32, Fault> {
    let value = u32::try_from(*number.get_ref()).ok().filter(|value| *value <= max);
    let why = format!("expected a whole number from 1 to {max}");
    value.and_then(NonZeroU32::new).ok_or_else(|| Fault::new(format!("`{key}`"), number, why))
}

impl Fault {
    fn new<T>(what: impl Into<String>, value: &Spanned<T>, why: impl Into<String>) -> Self {
        Self { what: what.into(), at: value.span(), why: why.into() }
    }
}

impl From<toml::de::Error> for Fault {
    fn from(mut error: toml::de::Error) -> Self {
        let at = error.span().unwrap_or_default();
        // Without the text, its lines are the message and the path of the key.
        error.set_input(None);
        let shown = error.to_string();
        let mut lines = shown.lines();
        let message = lines.next().unwrap_or_default();
        let key = lines.last().and_then(|line| line.strip_prefix("in "));
        let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        match (message.split_once(" `"), &names[..]) {
            (Some(("unknown field", _)), [name, known @ ..]) => {
                let why = nearest(name, known.iter().copied());
                Self { what: format!("unknown key `{}`", printable::field(name)), at, why }
            }
            (Some(("unknown variant", _)), [name, known @ ..]) => {
                let known = nearest(name, known.iter().copied());
                let why = format!("unknown value `{}`: {known}", printable::field(name));
                Self { what: key.map_or("a value".to_owned(), printable::field), at, why }
            }
            _ => {
                let what = key.map_or("invalid TOML".to_owned(), printable::field);
                Self { what, at, why: type_error(message).unwrap_or_else(|| message.to_owned()) }
            }
        }
    }
}

/// Translates serde's type names, without the value, which may be a secret.
fn type_error(message: &str) -> Option<String> {
    let (found, expected) = message.strip_prefix("invalid type: ")?.rsplit_once(", expected ")?;
    let expected = match expected {
        "i64" => "a whole number",
        "a map" => "a table",
        "a sequence" => "a list",
        other => other,
    };
    let found = match found.split(['"', '`']).next()?.trim_end() {
        "map" => "table",
        "sequence" => "list",
        other => other,
    };
    Some(format!("expected {expected}, found {found}"))
}
