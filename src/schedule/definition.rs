//! The tasks of a host, as its file defines them. Nothing of this is stored, except a hash.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::timetable::Timetable;
use crate::record::run::Interrupted;
use crate::sys::text;

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

/// One task. Its hash is that of what is serialized.
#[derive(Clone, Debug, Serialize)]
pub struct Definition {
    /// When it is due; `None` for a task that runs on request only.
    #[serde(skip)]
    pub timetable: Option<Timetable>,
    /// The schedule for people, as the file spells it.
    pub schedule: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The text that the command reads; `None` for none.
    pub stdin: Option<String>,
    /// The directory in which it runs; `None` for that of the scheduler.
    #[serde(skip)]
    pub directory: Option<PathBuf>,
    /// Variables of its environment, besides those of the scheduler.
    pub env: BTreeMap<String, String>,
    /// Which of the missed slots run late.
    pub catch_up: CatchUp,
    /// How long after its slot a run may start; `None`: until the next slot, or as `catch_up` says.
    pub start_within: Option<Duration>,
    /// The treatment of slots that come due during a run.
    pub overlap: Overlap,
    /// The limit of runs of one slot.
    pub tries: NonZeroU32,
    /// The time from a failure to the next try.
    pub retry_after: Duration,
    /// The consequence of an interrupted run.
    pub interrupted: Interrupted,
    /// The longest time of a run.
    pub timeout: Option<Duration>,
    /// Starts are delayed by up to this time, by a hash of the name.
    pub spread: Duration,
    /// The name of its limit, and how many tasks with it run at a time, on all hosts together.
    pub limit: Option<(String, NonZeroU32)>,
    /// Whether it runs on schedule.
    pub enabled: bool,
    /// Program and arguments to run when it fails, recovers, is skipped or is overdue.
    #[serde(skip)]
    pub notify: Vec<String>,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// They are skipped.
    #[default]
    Skip,
    /// The last one runs afterwards.
    Queue,
}

impl Definition {
    /// A task with the usual options.
    pub fn new(timetable: Option<Timetable>, schedule: String, command: Vec<String>) -> Self {
        let (stdin, directory, start_within, timeout, limit) = Default::default();
        Self {
            timetable,
            schedule,
            command,
            stdin,
            directory,
            env: BTreeMap::new(),
            catch_up: CatchUp::default(),
            start_within,
            overlap: Overlap::default(),
            tries: NonZeroU32::MIN,
            retry_after: Duration::from_secs(60),
            interrupted: Interrupted::default(),
            timeout,
            spread: Duration::ZERO,
            limit,
            enabled: true,
            notify: Vec::new(),
        }
    }
}

impl Catalog {
    /// The task of this name.
    ///
    /// # Errors
    /// The nearest name that is a task's, in one line.
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

/// Checks the name of a task or a limit.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if (1..=100).contains(&name.len()) && name.chars().all(is_valid) {
        return Ok(());
    }
    Err("expected a name of 1 to 100 letters, digits, `.`, `_` and `-`".to_owned())
}
