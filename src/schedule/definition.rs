//! The tasks of a host, as its file defines them. Nothing of this is stored, except a hash.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer, Serialize};

use super::plan::hash;
use super::timetable::Timetable;
use crate::record::run::Interrupted;
use crate::sys::text;
use crate::values::parse_duration;

/// The schedule of a task without a timetable.
pub(super) const ON_REQUEST: &str = "on request";

/// All tasks of a file.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// The tasks, by name.
    pub tasks: BTreeMap<String, Definition>,
    /// What to tell the user about the file.
    pub warnings: Vec<String>,
}

/// One task. Its fields are the keys of a TOML file ("Keys of a task" in `docs/schedule.md`), and
/// what is made of them. Its hash is that of what is serialized and of the defaults.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
#[expect(missing_docs, reason = "the page has the meaning of each key")]
pub struct Definition {
    /// When it is due; `None` for a task that runs on request only.
    #[serde(skip)]
    pub timetable: Option<Timetable>,
    /// The schedule for people, as the file spells it.
    #[serde(skip_deserializing)]
    pub schedule: String,
    #[serde(skip_serializing)]
    pub cron: Option<String>,
    #[serde(skip_serializing)]
    pub every: Option<Time<1000>>,
    #[serde(skip_serializing)]
    pub time_zone: Option<String>,
    #[serde(skip_serializing)]
    pub run: Option<String>,
    /// Program and arguments, perhaps made of `run`.
    pub command: Vec<String>,
    /// The text that the command reads; `None` for none.
    #[serde(skip_deserializing)]
    pub stdin: Option<String>,
    #[serde(skip_serializing)]
    pub directory: Option<PathBuf>,
    pub env: BTreeMap<String, String>,
    pub catch_up: CatchUp,
    #[serde(deserialize_with = "time::<1, _, _>")]
    pub start_within: Option<Duration>,
    pub overlap: Option<Overlap>,
    #[serde(skip_serializing)]
    pub tries: Option<NonZeroU32>,
    #[serde(skip_serializing, deserialize_with = "time::<0, _, _>")]
    pub retry_after: Option<Duration>,
    pub interrupted: Interrupted,
    #[serde(deserialize_with = "time::<1, _, _>")]
    pub timeout: Option<Duration>,
    #[serde(deserialize_with = "time::<0, _, _>")]
    pub spread: Duration,
    /// The name of its limit, and how many tasks with it run at a time, on all hosts together.
    #[serde(deserialize_with = "unknown_limit")]
    pub limit: Option<(String, NonZeroU32)>,
    #[serde(skip_serializing)]
    pub enabled: Option<bool>,
    #[serde(skip_serializing)]
    pub notify: Vec<String>,
}

/// A duration of at least so many milliseconds, and its text.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Time<const LEAST: u64>(pub Duration, pub String);

impl<const LEAST: u64> TryFrom<String> for Time<LEAST> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (time, least) = (parse_duration(&text)?, Duration::from_millis(LEAST));
        let is_enough = time >= least;
        is_enough.then_some(Self(time, text)).ok_or_else(|| format!("expected at least {least:?}"))
    }
}

fn time<'de, const LEAST: u64, T: From<Duration>, D: Deserializer<'de>>(
    value: D,
) -> Result<T, D::Error> {
    Time::<LEAST>::deserialize(value).map(|time| time.0.into())
}

/// The name of a limit, with a number that the table of limits is to replace.
fn unknown_limit<'de, D: Deserializer<'de>>(
    value: D,
) -> Result<Option<(String, NonZeroU32)>, D::Error> {
    String::deserialize(value).map(|name| Some((name, NonZeroU32::MAX)))
}

/// Which of the missed slots run late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CatchUp {
    /// Only slots that come due while a scheduler runs.
    None,
    /// The last one.
    #[default]
    Last,
    /// All, the oldest first, up to [`MAX_CATCH_UP`].
    All,
}

/// The most slots that [`CatchUp::All`] runs late; earlier ones are skipped.
pub const MAX_CATCH_UP: usize = 100;

/// The treatment of slots that come due during a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// They are skipped.
    Skip,
    /// The last one runs afterwards.
    Queue,
}

impl Definition {
    /// A task with the usual options.
    pub fn new(timetable: Option<Timetable>, schedule: String, command: Vec<String>) -> Self {
        Self { timetable, schedule, command, ..Self::default() }
    }

    /// How often a slot is run until it succeeds.
    pub fn tries(&self) -> NonZeroU32 {
        self.tries.unwrap_or(NonZeroU32::MIN)
    }

    /// The time from a failure to the next try.
    pub fn retry_after(&self) -> Duration {
        self.retry_after.unwrap_or(Duration::from_secs(60))
    }

    /// Whether it runs on schedule.
    pub fn is_enabled(&self) -> bool {
        self.enabled != Some(false)
    }

    /// Its times, unless it runs on request only.
    pub fn schedule(&self) -> Option<&Timetable> {
        self.timetable.as_ref().filter(|_| self.is_enabled())
    }

    /// The zone of its times; `None` for the local one.
    pub fn zone(&self) -> Option<&TimeZone> {
        let Some(Timetable::Cron(_, zone)) = &self.timetable else { return None };
        Some(zone)
    }

    /// A number that differs for definitions that differ in when or what they run. It is the same
    /// on all hosts.
    pub fn number(&self) -> u32 {
        let zone = self.zone().and_then(TimeZone::iana_name);
        let usual = (self.tries(), self.retry_after(), self.is_enabled());
        // Fails only for types that JSON does not have.
        let text = serde_json::to_string(&(self, zone, usual)).unwrap_or_default();
        (hash(&[&text]) >> 32) as u32
    }
}

impl Catalog {
    /// The task with this name. The error suggests the nearest name of a task.
    pub fn find(&self, name: &str) -> Result<&Definition, String> {
        let known = self.tasks.keys().map(String::as_str);
        let unknown = || format!("no such task `{}`: {}", text::field(name), nearest(name, known));
        self.tasks.get(name).ok_or_else(unknown)
    }
}

/// The end of a message about an unknown name: the known one that it resembles, or else all.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let rated = known.clone().map(|known| (strsim::jaro(name, known), known));
    let best = rated.filter(|(likeness, _)| *likeness > 0.75).max_by(|a, b| a.0.total_cmp(&b.0));
    let all: Vec<_> = known.map(|known| format!("`{known}`")).collect();
    match best {
        Some((_, known)) => format!("did you mean `{known}`?"),
        None if all.is_empty() => "none is defined".to_owned(),
        None => format!("expected {}", all.join(", ")),
    }
}

pub(super) fn check_name(name: &str) -> Result<(), String> {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if (1..=100).contains(&name.len()) && name.chars().all(is_valid) {
        return Ok(());
    }
    Err("expected a name of 1 to 100 letters, digits, `.`, `_` and `-`".to_owned())
}
