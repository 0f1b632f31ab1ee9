//! Reads tasks from a TOML file. An error is one line: the file, the key, what is wrong; and the
//! number of the line, unless several keys are at fault.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::Path;

use jiff::tz::TimeZone;
use serde::Deserialize;

use super::definition::{Catalog, CatchUp, Definition, ON_REQUEST, Time, check_name, nearest};
use super::timetable::{Timetable, zone};
use crate::record::mode::MAX_SLOTS;
use crate::sys::text;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct File {
    time_zone: Option<String>,
    #[serde(default)]
    limits: BTreeMap<String, NonZeroU32>,
    #[serde(default)]
    tasks: BTreeMap<String, Definition>,
}

/// Reads the text of the file at `path`.
pub fn parse(text: &str, path: &Path) -> Result<Catalog, String> {
    let file = toml::from_str(text).map_err(|error| explain(error, text));
    file.and_then(|file| catalog(file, path))
        .map_err(|why| format!("cannot use `{}`: {why}", text::path(path)))
}

fn catalog(File { time_zone, limits, mut tasks }: File, path: &Path) -> Result<Catalog, String> {
    for (name, slots) in &limits {
        let is_valid = check_name(name).and_then(|()| match slots.get() {
            0..=MAX_SLOTS => Ok(()),
            _ => Err(format!("expected a whole number from 1 to {MAX_SLOTS}")),
        });
        is_valid.map_err(|why| format!("`limits.{}`: {why}", text::field(name)))?;
    }
    let default_zone = zone_or(&TimeZone::UTC, time_zone.as_deref())?;
    let mut is_default = tasks.values().map(|task| task.cron.is_some() && task.time_zone.is_none());
    let is_unset = time_zone.is_none() && is_default.any(|is_default| is_default);
    let unset = || format!("`time_zone` is not set in `{}`: `cron` is in UTC", text::path(path));
    let warnings = is_unset.then(unset).into_iter().collect();
    let base = path.parent().unwrap_or(Path::new(""));
    for (name, task) in &mut tasks {
        let is_valid = check_name(name).and_then(|()| task.complete(&default_zone, &limits, base));
        is_valid.map_err(|why| format!("`tasks.{}`: {why}", text::field(name)))?;
    }
    Ok(Catalog { tasks, warnings })
}

impl Definition {
    /// Makes of its keys what depends on several of them. Directories are relative to `base`.
    fn complete(
        &mut self,
        zone: &TimeZone,
        limits: &BTreeMap<String, NonZeroU32>,
        base: &Path,
    ) -> Result<(), String> {
        self.read_timetable(zone)?;
        let is_script = self.run.as_ref().is_some_and(|run| !run.trim().is_empty());
        let is_program = self.command.first().is_some_and(|program| !program.is_empty());
        let of_shell = |run| ["/bin/sh".to_owned(), "-c".to_owned(), run].into();
        match self.run.take() {
            Some(run) if is_script && self.command.is_empty() => self.command = of_shell(run),
            Some(_) if is_script => return Err("`run` is unsupported with `command`".to_owned()),
            None if is_program => {}
            _ => {
                let why = "requires `run` (a script) or `command` (a program and its arguments)";
                return Err(why.to_owned());
            }
        }
        if let Some((name, slots)) = &mut self.limit {
            *slots = *limits.get(name).ok_or_else(|| {
                let nearest = nearest(name, limits.keys().map(String::as_str));
                format!("no such `limit`, `{}`: {nearest}", text::field(name))
            })?;
        }
        let absolute = |path| std::path::absolute(base.join(&path)).unwrap_or(path);
        self.directory = self.directory.take().map(absolute);
        let is_wrong = [
            (self.tries() == NonZeroU32::MIN && self.retry_after.is_some())
                .then_some("`retry_after` requires `tries` of at least 2"),
            (self.overlap.is_some() && self.catch_up == CatchUp::All).then_some(
                "`overlap` is unsupported with `catch_up = \"all\"`, which runs each slot",
            ),
            (self.env.keys().any(|name| name.is_empty() || name.contains(['=', '\0'])))
                .then_some("expected names without `=` in `env`"),
        ];
        is_wrong.into_iter().flatten().next().map_or(Ok(()), |why| Err(why.to_owned()))
    }

    /// When it is due, for the timer and for people.
    fn read_timetable(&mut self, default_zone: &TimeZone) -> Result<(), String> {
        match (&self.cron, &self.every, &self.time_zone) {
            (Some(_), Some(_), _) => return Err("`every` is unsupported with `cron`".to_owned()),
            (None, _, Some(_)) => return Err("`time_zone` requires `cron`".to_owned()),
            (Some(cron), None, name) => {
                let timetable = Timetable::cron(cron, zone_or(default_zone, name.as_deref())?);
                self.timetable = Some(timetable.map_err(|why| format!("`cron`: {why}"))?);
                self.schedule.clone_from(cron);
            }
            (None, Some(Time(every, text)), None) => {
                (self.timetable, self.schedule) =
                    (Some(Timetable::Every(*every)), format!("every {text}"));
            }
            (None, None, None) => self.schedule = ON_REQUEST.to_owned(),
        }
        Ok(())
    }
}

/// The zone of a key `time_zone`, or else the default.
fn zone_or(default: &TimeZone, name: Option<&str>) -> Result<TimeZone, String> {
    name.map_or(Ok(default.clone()), zone).map_err(|why| format!("`time_zone`: {why}"))
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
            let nearest = nearest(name, known.iter().copied());
            format!("unknown {kind} `{}`: {nearest}", text::field(name))
        }
        (_, Some((_, "a nonzero u32"))) => "expected a whole number above 0".to_owned(),
        (_, Some((_, "a map"))) => "expected a table".to_owned(),
        (_, Some((_, "a sequence"))) => "expected a list".to_owned(),
        (_, Some((_, expected))) if is_type => format!("expected {expected}"),
        _ => message.to_owned(),
    };
    format!("{what} (line {line}): {why}")
}
