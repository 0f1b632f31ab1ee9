//! What a record tells of a key that runs once.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::period::Period;

/// How long a store keeps a key that has expired.
const KEPT: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// The state of a key in its register, beside the entry of the last run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The key in full: a store may shorten names.
    pub key: String,
    /// The number of this run since the last success or the start of the period, from 1 on.
    #[serde(rename = "try")]
    pub number: u32,
    /// Begin of this run, in milliseconds since 1970 by the store's clock, or else the host's.
    pub began: u64,
    /// The rule of the caller that began this run.
    #[serde(default)]
    pub rule: Rule,
    /// The last ends of runs, the latest one last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<End>,
    /// Of a task on a schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Time in milliseconds, by the clock of [`Run::began`].
    pub at: u64,
    /// The number of the run.
    #[serde(rename = "try")]
    pub number: u32,
    /// How, for people.
    pub how: String,
    /// The exit code of its command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
}

/// The consequence of an interrupted run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Interrupted {
    /// The key runs again: at least once.
    #[default]
    Rerun,
    /// The key is given up: at most once.
    Stop,
}

/// How often a key runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rule {
    /// Once in each of these periods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per: Option<Period>,
    /// Again if the last success is older.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_for: Option<Duration>,
    /// The limit of runs without success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tries: Option<NonZeroU32>,
    /// The consequence of an interrupted run.
    pub interrupted: Interrupted,
}

/// What is stored about a task, beside its last run. Times are in milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The slot of the last run, or when the task was first seen. Only `resume` lowers it.
    pub slot: u64,
    /// The number of slots that were not run.
    #[serde(default)]
    pub skipped: u64,
    /// No run begins before this time.
    #[serde(default)]
    pub paused: u64,
    /// Whether the run is to be ended.
    #[serde(default)]
    pub is_stopped: bool,
    /// The hash of the definition by which the last run began.
    #[serde(default)]
    pub definition: u32,
}

impl Run {
    /// How long a store keeps an ended run; `None` without limit.
    pub fn keep(&self) -> Option<Duration> {
        let Rule { per, valid_for, .. } = self.rule;
        valid_for.or(per.map(|_| KEPT)).map(|valid_for| valid_for.max(KEPT))
    }
}
