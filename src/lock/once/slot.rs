//! A key with slots as its periods: a task on a schedule.

use serde::{Deserialize, Serialize};

use super::{Ended, Next, State};
use crate::record::run::{Rule, Run, Task};

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

impl Run {
    /// The slot and the number of this run.
    pub fn of_slot(&self) -> (u64, u32) {
        (self.task.as_ref().map_or(0, |task| task.slot), self.number)
    }

    /// What a claim names of this run, which is in this state.
    pub fn seen(&self, state: State) -> (u64, u32, State) {
        (self.of_slot().0, self.number, state)
    }
}

impl Claim {
    /// The next step of a scheduler for the task `key`, which does not run: the wanted run, if the
    /// last run is still the one that was seen, in the same state: a success that was on its way
    /// may have been stored since.
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
