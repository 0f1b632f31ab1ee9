//! Reads the schedules of the surrounding Meltano project. Each runs in a Meltano of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::Value;

use super::definition::{Catalog, Definition, ON_REQUEST, check_name};
use super::timetable::Timetable;
use crate::run::lookup::look_up;
use crate::sys::text;

const NEVER: [&str; 3] = ["@once", "@manual", "@none"];

#[derive(Deserialize)]
struct Output {
    schedules: BTreeMap<String, Vec<Value>>,
}

/// One schedule. Meltano checks little of it.
#[derive(Deserialize)]
struct Schedule {
    name: String,
    interval: Option<String>,
    cron_interval: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, Value>,
    job: Option<Job>,
    elt_args: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Job {
    name: String,
}

/// Meltano, as `PATH` or else the project has it: `meltano invoke` does not put it into `PATH`.
pub fn program() -> String {
    let usual = "meltano".to_owned();
    let project = std::env::var("MELTANO_PROJECT_ROOT").unwrap_or_default();
    let link = Path::new(&project).join(".meltano/run/bin");
    let is_needed = look_up(usual.as_ref()).is_err() && !project.is_empty() && link.exists();
    if is_needed { link.to_string_lossy().into_owned() } else { usual }
}

/// Asks this Meltano, which has no arguments yet, for the schedules of its project.
pub fn ask(meltano: &mut Command) -> Result<Catalog, String> {
    let list = meltano.args(["schedule", "list", "--format=json"]).stdin(Stdio::null());
    let output = list.output().map_err(|error| format!("cannot run `meltano`: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        // Below the exception, Meltano offers its help.
        let error = said.lines().rfind(|line| line.contains("Error: "));
        let why = error.or_else(|| said.lines().last()).map(text::field).unwrap_or_default();
        return Err(format!("cannot read the schedules of Meltano ({}): {why}", output.status));
    }
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// Reads the answer of Meltano. A bad schedule is left out, with a warning.
pub fn parse(json: &str) -> Result<Catalog, String> {
    let output = serde_json::from_str(json);
    let Output { schedules } =
        output.map_err(|error| format!("cannot read the schedules of Meltano: {error}"))?;
    let mut catalog = Catalog::default();
    for value in schedules.into_values().rev().flatten() {
        let name = value["name"].as_str().unwrap_or("?").to_owned();
        let task = task(value).and_then(|task| match catalog.tasks.contains_key(&name) {
            true => Err("another schedule has the same name".to_owned()),
            false => Ok(task),
        });
        match task {
            Ok(task) => drop(catalog.tasks.insert(name, task)),
            Err(why) => {
                let name = text::field(&name);
                catalog.warnings.push(format!("left out Meltano's schedule `{name}`: {why}"));
            }
        }
    }
    Ok(catalog)
}

fn task(value: Value) -> Result<Definition, String> {
    let schedule: Schedule = serde_json::from_value(value).map_err(|error| error.to_string())?;
    check_name(&schedule.name)?;
    let arguments = match (schedule.job, schedule.elt_args) {
        (Some(job), _) => vec!["run".to_owned(), job.name],
        (None, Some(arguments)) => [vec!["elt".to_owned()], arguments].concat(),
        (None, None) => return Err("expected `job` or `elt_args`".to_owned()),
    };
    let env = schedule.env.into_iter().map(|(name, value)| match value {
        Value::String(text) => Ok((name, text)),
        Value::Number(_) | Value::Bool(_) => Ok((name, value.to_string())),
        _ => Err(format!("`env.{}` is not a text", text::field(&name))),
    });
    let mut env: BTreeMap<_, _> = env.collect::<Result<_, String>>()?;
    env.insert("MELTANO_JOB_TRIGGER".to_owned(), "serializer".to_owned());
    // Meltano replaces aliases in lower case only: `@Daily` and `@Once` are still there.
    let cron = schedule.cron_interval.map(|cron| cron.trim().to_lowercase());
    let cron = cron.filter(|cron| !NEVER.contains(&cron.as_str()));
    let timetable = cron.map(|cron| Timetable::cron(&cron, TimeZone::UTC)).transpose()?;
    let shown = schedule.interval.unwrap_or_else(|| ON_REQUEST.to_owned());
    let command = [vec![program()], arguments].concat();
    Ok(Definition { env, ..Definition::new(timetable, shown, command) })
}
