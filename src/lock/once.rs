//! A key that runs once: a lock that remembers how its last run ended. This module has the rules of
//! `once`; the lock does the rest. `docs/protocol.md`, "A key that runs once", has the argument.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::lock::staleness::{Stale, Verdict};
use crate::record::run::{End, Interrupted, Rule, Run, Task};
use crate::record::{Entry, Outcome};
use crate::sys::local_time::local_time;
use crate::sys::text;

const MAX_ENDS: usize = 5;

/// The longest text about an end, in characters.
const MAX_HOW: usize = 80;

/// How often a slot is run after interruptions, beside its tries: it may bring hosts down.
const INTERRUPTIONS: u32 = 10;

/// The report of a run's end.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    /// The outcome that counts.
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

/// The state of a key, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
        let all = ["running", "done", "failed", "interrupted", "given up", "expired"];
        f.write_str(all[*self as usize])
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Ended {
    Succeeded,
    Failed,
    /// Its end was not reported; the lock is stale for this reason.
    Interrupted(Stale),
}

impl Ended {
    /// The end of the run of this entry; `None` while it runs.
    pub fn of(entry: &Entry, verdict: &Verdict) -> Option<Self> {
        match (entry.released, verdict) {
            // Also a released entry: a newer version's entry may mean something else.
            (_, Verdict::Held(_)) => None,
            (Some(Outcome::Succeeded), _) => Some(Self::Succeeded),
            (Some(Outcome::Failed), _) => Some(Self::Failed),
            (_, Verdict::Stale(why)) => Some(Self::Interrupted(*why)),
        }
    }
}

/// The next step for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Next {
    Skip,
    Run(Run),
    /// For this reason.
    GiveUp(String),
}

impl Run {
    /// The slot and the number of this run.
    pub fn of_slot(&self) -> (u64, u32) {
        (self.task.as_ref().map_or(0, |task| task.slot), self.number)
    }

    /// What a claim names of this run, which is in this state.
    pub fn seen(&self, state: State) -> (u64, u32, State) {
        (self.of_slot().0, self.number, state)
    }

    /// The time of the last end; 0 before the first one.
    pub fn ended(&self) -> u64 {
        self.ends.last().map_or(0, |end| end.at)
    }

    /// A message with the time of its success.
    pub fn is_done(&self) -> String {
        format!("`{}` was done at {}", text::field(&self.key), shown(self.ended()))
    }

    /// The end of this run, if it was reported.
    pub fn end(&self) -> Option<&End> {
        self.ends.last().filter(|end| end.number == self.number && end.at >= self.began)
    }

    /// This run with one more end.
    pub fn with_end(&self, at: u64, how: &str, code: Option<u8>) -> Self {
        let how = how.chars().take(MAX_HOW).collect();
        // Another host's clock may be behind, and a store's answer is slightly old.
        let at = at.max(self.began);
        let mut run = self.clone();
        run.ends.push(End { at, number: self.number, how, code });
        if run.ends.len() > MAX_ENDS {
            // The last success stays.
            let mut successes = run.ends.iter().map(|end| end.code == Some(0));
            let is_kept = successes.next() == Some(true) && !successes.any(|it| it);
            run.ends.remove(usize::from(is_kept));
        }
        run
    }

    /// The ends of runs with that of this one, also if that was not reported.
    fn ends_with(&self, ended: Ended, now: u64) -> Vec<End> {
        match ended {
            Ended::Interrupted(why) if self.end().is_none() => {
                self.with_end(now, &format!("interrupted: {why}"), None).ends
            }
            _ => self.ends.clone(),
        }
    }

    /// Whether the slot before `slot`, or all remembered tries of `slot`, have failed.
    pub fn has_failed_before(&self, slot: u64) -> bool {
        let has_ended = slot > self.of_slot().0
            || self.rule.tries.is_some_and(|tries| self.number >= tries.get());
        let of_this_slot = if has_ended { 0 } else { self.number as usize };
        self.ends.iter().rev().nth(of_this_slot).is_some_and(|end| end.code != Some(0))
    }

    /// The reason to give the key up after this end, if any.
    fn given_up(&self, ended: Ended, rule: &Rule) -> Option<String> {
        let last = self.end();
        let at = last.map(|end| format!(" at {}", shown(end.at))).unwrap_or_default();
        let (how, is_interrupted) = match ended {
            Ended::Succeeded => return None,
            Ended::Interrupted(why) => (format!("was interrupted{at}: {why}"), true),
            Ended::Failed => match last {
                Some(End { how, code: Some(_), .. }) => (format!("{how}{at}"), false),
                // The user's own words.
                Some(End { how, .. }) if how != "failed" => (format!("failed{at}: {how}"), false),
                _ => (format!("failed{at}"), false),
            },
        };
        let is_stopped = is_interrupted && rule.interrupted == Interrupted::Stop
            || self.task.as_ref().is_some_and(|task| task.is_stopped);
        let more = if is_interrupted && self.task.is_some() { INTERRUPTIONS } else { 0 };
        let has_tried = |tries: NonZeroU32| self.number >= tries.saturating_add(more).get();
        let times = match self.number {
            1 => "once".to_owned(),
            number => format!("{number} times"),
        };
        let is_over = is_stopped || rule.tries.is_some_and(has_tried);
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
}

impl Rule {
    /// Start of the period of a caller that arrives at `now`, in milliseconds; 0 without periods.
    pub fn since(&self, now: u64) -> u64 {
        self.per.and_then(|per| per.begin(now)).unwrap_or(0)
    }

    /// The next step of a caller for `key`. Its period began at `since`; `last` is the last run.
    pub fn next(&self, key: &str, last: Option<(&Run, Ended)>, since: u64, now: u64) -> Next {
        // Another host's clock may be in a later period already: its run counts for this period.
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
        let ends = last.map(|(run, ended)| run.ends_with(ended, now)).unwrap_or_default();
        Next::Run(Run { key: key.to_owned(), number, began: now, rule: *self, ends, task: None })
    }
}

/// What a scheduler wants to run, and what it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The slot and the number of the last run, and its state, as they were seen.
    pub seen: (u64, u32, State),
    /// The slot to run; that of the last run for another try.
    pub slot: u64,
    /// The number of slots before this one that are not run.
    pub skipped: u64,
    /// The hash of the definition.
    pub definition: u32,
    /// Whether a user asks for this run: a pause is ignored, and the stored slot stays.
    pub is_forced: bool,
}

impl Claim {
    /// The next step of a scheduler for the task `key`, which does not run: the wanted run, if the
    /// last run and its state are those that were seen. A success may have been stored since.
    pub fn next(&self, key: &str, rule: Rule, last: Option<(&Run, Ended)>, now: u64) -> Next {
        let Some((run, ended, task)) =
            last.and_then(|(run, ended)| Some((run, ended, run.task.as_ref()?)))
        else {
            return Next::Skip;
        };
        let is_paused = task.paused > now && !self.is_forced;
        if is_paused || run.seen(run.state(Some(ended), now)) != self.seen {
            return Next::Skip;
        }
        // A run on request leaves the schedule as it is.
        let slot = if self.is_forced { task.slot } else { self.slot.max(task.slot) };
        // So that no two runs have the same slot and number.
        let number = if slot == task.slot { run.number.saturating_add(1) } else { 1 };
        let skipped = task.skipped.saturating_add(self.skipped);
        let (definition, paused) = (self.definition, task.paused);
        let task = Task { slot, skipped, is_stopped: false, definition, paused };
        let (key, ends) = (key.to_owned(), run.ends_with(ended, now));
        Next::Run(Run { key, number, began: now, rule, ends, task: Some(task) })
    }
}

/// A time in milliseconds since 1970, for people.
pub fn shown(milliseconds: u64) -> String {
    let time = i64::try_from(milliseconds).ok();
    let time = time.and_then(|time| Timestamp::from_millisecond(time).ok());
    time.map_or_else(|| "an unknown time".to_owned(), |time| local_time(time).to_string())
}
