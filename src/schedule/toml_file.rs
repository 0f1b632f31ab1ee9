//! Reads tasks from a TOML file. An error is one line: the file, the key, what is wrong; and the
//! number of the line, unless several keys are at fault.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::Deserialize;

use super::definition::{Catalog, CatchUp, Definition, ON_REQUEST, Overlap, check_name, nearest};
use super::timetable::{Timetable, zone};
use crate::record::mode::MAX_SLOTS;
use crate::record::run::Interrupted;
use crate::sys::text;
use crate::values::parse_duration;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct File {
    time_zone: Option<String>,
    #[serde(default)]
    limits: BTreeMap<String, NonZeroU32>,
    #[serde(default)]
    tasks: BTreeMap<String, Task>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct Task {
    cron: Option<String>,
    every: Option<Time<1000>>,
    time_zone: Option<String>,
    run: Option<String>,
    command: Option<Vec<String>>,
    directory: Option<PathBuf>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    catch_up: CatchUp,
    start_within: Option<Time<1>>,
    overlap: Option<Overlap>,
    tries: Option<NonZeroU32>,
    retry_after: Option<Time<0>>,
    #[serde(default)]
    interrupted: Interrupted,
    timeout: Option<Time<1>>,
    spread: Option<Time<0>>,
    limit: Option<String>,
    enabled: Option<bool>,
    #[serde(default)]
    notify: Vec<String>,
}

/// A duration of at least so many milliseconds, and its text.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Time<const LEAST: u64>(Duration, String);

impl<const LEAST: u64> TryFrom<String> for Time<LEAST> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (time, least) = (parse_duration(&text)?, Duration::from_millis(LEAST));
        (time >= least)
            .then_some(Self(time, text))
            .ok_or_else(|| format!("expected at least {least:?}"))
    }
}

/// Reads a file.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn read(path: &Path) -> Result<Catalog, String> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| format!("cannot read `{}`: {error}", text::path(path)))?;
    parse(&text, path)
}

/// Reads the text of the file at `path`.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn parse(text: &str, path: &Path) -> Result<Catalog, String> {
    let file = toml::from_str(text).map_err(|error| explain(error, text));
    file.and_then(|file| catalog(file, path))
        .map_err(|why| format!("cannot use `{}`: {why}", text::path(path)))
}

fn catalog(file: File, path: &Path) -> Result<Catalog, String> {
    let mut catalog = Catalog::default();
    for (name, slots) in &file.limits {
        let is_valid = check_name(name).and_then(|()| match slots.get() {
            0..=MAX_SLOTS => Ok(()),
            _ => Err(format!("expected a whole number from 1 to {MAX_SLOTS}")),
        });
        is_valid.map_err(|why| format!("`limits.{}`: {why}", text::field(name)))?;
    }
    let default_zone = file.time_zone.as_deref().map_or(Ok(TimeZone::UTC), zone);
    let default_zone = default_zone.map_err(|why| format!("`time_zone`: {why}"))?;
    let is_default = |task: &Task| task.cron.is_some() && task.time_zone.is_none();
    if file.time_zone.is_none() && file.tasks.values().any(is_default) {
        let path = text::path(path);
        catalog.warnings.push(format!("`time_zone` is not set in `{path}`: `cron` is in UTC"));
    }
    let base = path.parent().unwrap_or(Path::new(""));
    for (name, task) in file.tasks {
        let definition =
            check_name(&name).and_then(|()| task.read(&default_zone, &file.limits, base));
        let definition =
            definition.map_err(|why| format!("`tasks.{}`: {why}", text::field(&name)))?;
        catalog.tasks.insert(name, definition);
    }
    Ok(catalog)
}

impl Task {
    /// Directories are relative to `base`.
    fn read(
        self,
        zone: &TimeZone,
        limits: &BTreeMap<String, NonZeroU32>,
        base: &Path,
    ) -> Result<Definition, String> {
        self.check()?;
        let (timetable, schedule) = self.timetable(zone)?;
        let usual = Definition::new(timetable, schedule, self.command()?);
        let directory = self.directory.map(|directory| base.join(directory));
        let limit = match self.limit {
            None => None,
            Some(name) => match limits.get(&name) {
                Some(slots) => Some((name, *slots)),
                None => {
                    let known = nearest(&name, limits.keys().map(String::as_str));
                    return Err(format!("no such `limit`, `{}`: {known}", text::field(&name)));
                }
            },
        };
        Ok(Definition {
            directory: directory.map(|path| std::path::absolute(&path).unwrap_or(path)),
            env: self.env,
            catch_up: self.catch_up,
            start_within: self.start_within.map(|time| time.0),
            overlap: self.overlap.unwrap_or_default(),
            tries: self.tries.unwrap_or(usual.tries),
            retry_after: self.retry_after.map_or(usual.retry_after, |time| time.0),
            interrupted: self.interrupted,
            timeout: self.timeout.map(|time| time.0),
            spread: self.spread.map_or(usual.spread, |time| time.0),
            limit,
            enabled: self.enabled.unwrap_or(usual.enabled),
            notify: self.notify,
            ..usual
        })
    }

    /// Checks what keys say about each other.
    fn check(&self) -> Result<(), String> {
        if self.retry_after.is_some() && self.tries.is_none_or(|tries| tries.get() == 1) {
            return Err("`retry_after` requires `tries` of at least 2".to_owned());
        }
        if self.overlap.is_some() && self.catch_up == CatchUp::All {
            return Err("`overlap` is unsupported with `catch_up = \"all\"`, which runs each slot"
                .to_owned());
        }
        match self.env.keys().any(|name| name.is_empty() || name.contains(['=', '\0'])) {
            true => Err("expected names without `=` in `env`".to_owned()),
            false => Ok(()),
        }
    }

    /// When it is due, for the timer and for people.
    fn timetable(&self, default_zone: &TimeZone) -> Result<(Option<Timetable>, String), String> {
        match (&self.cron, &self.every, &self.time_zone) {
            (Some(_), Some(_), _) => Err("`every` is unsupported with `cron`".to_owned()),
            (None, _, Some(_)) => Err("`time_zone` requires `cron`".to_owned()),
            (Some(cron), None, name) => {
                let zone =
                    name.as_ref().map_or_else(|| Ok(default_zone.clone()), |name| zone(name));
                let timetable =
                    Timetable::cron(cron, zone.map_err(|why| format!("`time_zone`: {why}"))?);
                Ok((Some(timetable.map_err(|why| format!("`cron`: {why}"))?), cron.clone()))
            }
            (None, Some(Time(every, text)), None) => {
                Ok((Some(Timetable::Every(*every)), format!("every {text}")))
            }
            (None, None, None) => Ok((None, ON_REQUEST.to_owned())),
        }
    }

    fn command(&self) -> Result<Vec<String>, String> {
        let why = match (&self.run, &self.command) {
            (Some(run), None) if !run.trim().is_empty() => {
                return Ok(["/bin/sh", "-c", run].map(str::to_owned).into());
            }
            (None, Some(command)) if command.first().is_some_and(|program| !program.is_empty()) => {
                return Ok(command.clone());
            }
            (Some(_), Some(_)) => "`run` is unsupported with `command`",
            (Some(_), None) => {
                "`run`: expected a script, such as \"meltano run tap-shop target-dwh\""
            }
            (None, Some(_)) => "`command`: expected a program and its arguments",
            (None, None) => "requires `run` or `command`",
        };
        Err(why.to_owned())
    }
}

/// An error of TOML or serde in one line, without the value, which may be a secret.
fn explain(mut error: toml::de::Error, text: &str) -> String {
    let begin = error.span().unwrap_or_default().start;
    let line = 1 + text.bytes().take(begin).filter(|byte| *byte == b'\n').count();
    // Without the text, the last line that it shows is the path of the key.
    error.set_input(None);
    let shown = error.to_string();
    let key = shown.lines().last().and_then(|line| line.strip_prefix("in "));
    let what = key.map_or("invalid TOML".to_owned(), text::field);
    let message = error.message();
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let is_type = message.starts_with("invalid type: ") || message.starts_with("invalid value: ");
    let why = match (&names[..], message.rsplit_once(", expected ")) {
        ([name, known @ ..], _) if message.starts_with("unknown ") => {
            let kind = if message.starts_with("unknown field") { "key" } else { "value" };
            format!(
                "unknown {kind} `{}`: {}",
                text::field(name),
                nearest(name, known.iter().copied())
            )
        }
        (_, Some((_, "a nonzero u32"))) => "expected a whole number above 0".to_owned(),
        (_, Some((_, "a map"))) => "expected a table".to_owned(),
        (_, Some((_, "a sequence"))) => "expected a list".to_owned(),
        (_, Some((_, expected))) if is_type => format!("expected {expected}"),
        _ => message.to_owned(),
    };
    format!("{what} (line {line}): {why}")
}
