//! A key that runs once: a lock that remembers how its last run ended. The rules that only `once` has; all else is
//! that of a lock. `docs/protocol.md`, "A key that runs once", has the argument.

mod period;

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::period::Period;
use crate::local_time::local_time;
use crate::printable;
use crate::record::{Entry, Outcome};
use crate::verdict::{Stale, Verdict};

/// How many ends of runs are remembered.
const MAX_ENDS: usize = 5;

/// The longest text about an end, in characters.
const MAX_HOW: usize = 80;

/// How long a store keeps a key that has expired.
const KEPT: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// What a register remembers of its key, beside the entry of the last run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The key in full: a store may shorten names.
    pub key: String,
    /// The number of this run since the last success or the begin of the period, from 1 on.
    #[serde(rename = "try")]
    pub number: u32,
    /// When this run began, in milliseconds since 1970 by the store's clock, or else by the host's.
    pub began: u64,
    /// The rule that it was begun by.
    #[serde(default)]
    pub rule: Rule,
    /// The last ends of runs, the latest one last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<End>,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// When, in milliseconds, by the clock that [`Run::began`] has.
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

/// What the end of a run is reported as.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    /// How it counts.
    pub outcome: Outcome,
    /// How it ended, for people.
    pub how: &'a str,
    /// The exit code of its command.
    pub code: Option<u8>,
}

impl From<Outcome> for Ending<'_> {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, how: "interrupted", code: None }
    }
}

/// What an interrupted run means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Interrupted {
    /// It is run again: at least once.
    #[default]
    Rerun,
    /// The key is given up: at most once.
    Stop,
}

/// How often a key is to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rule {
    /// Once in each of these periods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per: Option<Period>,
    /// Again if the last success is older.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_for: Option<Duration>,
    /// How many runs without success there may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tries: Option<NonZeroU32>,
    /// What an interrupted run means.
    pub interrupted: Interrupted,
}

/// The state of a key, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum State {
    Running,
    Done,
    Failed,
    Interrupted,
    GivenUp,
    Expired,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["running", "done", "failed", "interrupted", "given up", "expired"][*self as usize])
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It has succeeded.
    Succeeded,
    /// It has failed.
    Failed,
    /// Its end was not reported, for this reason.
    Interrupted(Stale),
}

impl Ended {
    /// The end of the run of this entry; `None` while it runs.
    pub fn of(entry: &Entry, verdict: &Verdict) -> Option<Self> {
        match (entry.released, verdict) {
            // Also a released one: what a newer version has written may mean something else.
            (_, Verdict::Held(_)) => None,
            (Some(Outcome::Succeeded), _) => Some(Self::Succeeded),
            (Some(Outcome::Failed), _) => Some(Self::Failed),
            (_, Verdict::Stale(why)) => Some(Self::Interrupted(*why)),
        }
    }
}

/// What to do about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is done.
    Skip,
    /// To be run, as this run.
    Run(Run),
    /// It is not run any more, for this reason.
    GiveUp(String),
}

impl Run {
    /// The time of the last end; 0 before the first one.
    pub fn ended(&self) -> u64 {
        self.ends.last().map_or(0, |end| end.at)
    }

    /// Says that it is done, and since when.
    pub fn is_done(&self) -> String {
        format!("`{}` is done since {}", printable::field(&self.key), shown(self.ended()))
    }

    /// Its own end, if that was reported.
    pub fn end(&self) -> Option<&End> {
        self.ends.last().filter(|end| end.number == self.number && end.at >= self.began)
    }

    /// The same with another end.
    pub fn with_end(&self, at: u64, how: &str, code: Option<u8>) -> Self {
        let how = how.chars().take(MAX_HOW).collect();
        let mut ends = self.ends.clone();
        // Another clock may be behind, and each answer of a store is a little late.
        let at = at.max(self.began);
        ends.push(End { at, number: self.number, how, code });
        ends.drain(..ends.len().saturating_sub(MAX_ENDS));
        Self { ends, ..self.clone() }
    }

    /// Why it is given up after this end, if it is.
    fn given_up(&self, ended: Ended, rule: &Rule) -> Option<String> {
        let last = self.end();
        let at = last.map(|end| format!(" at {}", shown(end.at))).unwrap_or_default();
        let how = match ended {
            Ended::Succeeded => return None,
            Ended::Interrupted(why) => format!("was interrupted{at}: {why}"),
            Ended::Failed => format!("{}{at}", last.map_or("failed", |end| &end.how)),
        };
        let is_stopped = matches!(ended, Ended::Interrupted(_)) && rule.interrupted == Interrupted::Stop;
        let times = if self.number == 1 { "once".to_owned() } else { format!("{} times", self.number) };
        let is_over = is_stopped || rule.tries.is_some_and(|tries| self.number >= tries.get());
        is_over.then(|| format!("tried {times}; the last run {how}"))
    }

    /// The state of the key, by the run's own rule.
    pub fn state(&self, ended: Option<Ended>, now: u64) -> State {
        let Some(ended) = ended else { return State::Running };
        match (self.rule.next(&self.key, Some((self, ended)), self.rule.since(now), now), ended) {
            (Next::Skip, _) => State::Done,
            (Next::GiveUp(_), _) => State::GivenUp,
            (Next::Run(_), Ended::Succeeded) => State::Expired,
            (Next::Run(_), Ended::Failed) => State::Failed,
            (Next::Run(_), Ended::Interrupted(_)) => State::Interrupted,
        }
    }

    /// How long a store keeps what is stored about an ended run; `None` without limit.
    pub fn keep(&self) -> Option<Duration> {
        let Rule { per, valid_for, .. } = self.rule;
        valid_for.or(per.map(|_| KEPT)).map(|valid_for| valid_for.max(KEPT))
    }
}

impl Rule {
    /// The begin of the period in which a caller arrives at `now`, in milliseconds; 0 without periods.
    pub fn since(&self, now: u64) -> u64 {
        self.per.and_then(|per| per.begin(now)).unwrap_or(0)
    }

    /// What a caller does about `key`, which arrived in the period that began at `since`. `last` is the last run.
    pub fn next(&self, key: &str, last: Option<(&Run, Ended)>, since: u64, now: u64) -> Next {
        // By another host's clock, a later period may have begun already: it counts as this one.
        let of_period = last.filter(|(run, _)| run.began >= since);
        let is_old = |run: &Run| {
            let age = Duration::from_millis(now.saturating_sub(run.ended()));
            self.valid_for.is_some_and(|valid_for| age > valid_for)
        };
        let number = match of_period {
            Some((run, Ended::Succeeded)) if !is_old(run) => return Next::Skip,
            None | Some((_, Ended::Succeeded)) => 1,
            Some((run, ended)) => match run.given_up(ended, self) {
                Some(why) => return Next::GiveUp(why),
                None => run.number.saturating_add(1),
            },
        };
        let ends = last.map(|(run, ended)| match ended {
            Ended::Interrupted(why) if run.end().is_none() => run.with_end(now, &format!("interrupted: {why}"), None).ends,
            _ => run.ends.clone(),
        });
        Next::Run(Run { key: key.to_owned(), number, began: now, rule: *self, ends: ends.unwrap_or_default() })
    }
}

/// A time in milliseconds since 1970, for people.
pub fn shown(milliseconds: u64) -> String {
    let time = i64::try_from(milliseconds).ok().and_then(|time| Timestamp::from_millisecond(time).ok());
    time.map_or_else(|| "an unknown time".to_owned(), |time| local_time(time).to_string())
}
