//! Decides the next step for a task. Pure: the inputs are its definition, its stored state and the
//! time. Times are in milliseconds since 1970.
//!
//! An error here cannot run a slot twice: a [`Claim`] is refused unless the stored state is the
//! one that was seen here.

use std::time::Duration;

use super::definition::{CatchUp, Definition, MAX_CATCH_UP, Overlap};
use super::timetable::Timetable;
use crate::lock::key::Inspected;
use crate::lock::once::{Claim, State};
use crate::record::run::{Run, Task};
use crate::sys::clock::millis;

/// Poll interval for a run without an observable end.
const UNHEARD: Duration = Duration::from_secs(1);

/// A lease is expired only after its end.
const MARGIN: Duration = Duration::from_millis(5);

/// How many skipped slots are counted at a time.
const MAX_COUNTED: u64 = 10_000;

/// The stored state of a task.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its last run.
    pub run: Run,
    /// The state of that run.
    pub state: State,
    /// When a running task may have changed its state without a notification.
    pub look_again: u64,
}

/// The next step for a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Store that it was seen now: slots count from now on.
    Introduce,
    /// Inspect the task again at this time; `None` if it is never due.
    Wait(Option<u64>),
    /// Run it.
    Run(Claim),
}

impl Seen {
    /// What was seen `now`, by the store's clock.
    pub fn new(key: Inspected, now: u64) -> Self {
        let again = key.look_again_in.unwrap_or(UNHEARD).saturating_add(MARGIN);
        Self { run: key.run, state: key.state, look_again: now.saturating_add(millis(again)) }
    }

    /// Whether its slot is given up because its run was interrupted.
    pub fn is_given_up(&self) -> bool {
        let is_stopped = self.run.task.as_ref().is_some_and(|task| task.is_stopped);
        let was_interrupted = self.run.end().is_none_or(|end| end.how.starts_with("interrupted"));
        self.state == State::GivenUp && was_interrupted && !is_stopped
    }
}

/// The state of a task that was never run, if nothing is stored: slots count from now on.
pub fn introduced(stored: Option<&Run>, name: &str, now: u64) -> Option<Run> {
    let task = Some(Task { slot: now, ..Task::default() });
    let run = Run { key: name.to_owned(), began: now, task, ..Run::default() };
    stored.is_none().then_some(run)
}

impl Definition {
    /// The next step for the task `name`, with `seen` as its stored state. The scheduler has run
    /// since `up_since`.
    pub fn plan(&self, name: &str, seen: Option<&Seen>, now: u64, up_since: u64) -> Plan {
        let Some(Seen { run, state, look_again }) = seen else { return Plan::Introduce };
        let Some(task) = &run.task else { return Plan::Wait(None) };
        if *state == State::Running {
            return Plan::Wait(Some(*look_again));
        }
        let Some(timetable) = self.schedule() else { return Plan::Wait(None) };
        let late = self.delay(name);
        let past = now.saturating_sub(late);
        let seen = run.seen(*state);
        let next = timetable.after(past).map(|slot| slot.saturating_add(late));
        let wait_until = |at| Plan::Wait(Some(next.map_or(at, |next: u64| next.min(at))));
        if task.paused > now {
            // It may be resumed before.
            return wait_until(task.paused);
        }
        let claim = |slot, skipped| {
            Plan::Run(Claim { seen, slot, skipped, definition: self.number(), is_forced: false })
        };
        let retry = match state {
            State::Failed => Some(run.ended().saturating_add(millis(self.retry_after()))),
            State::Interrupted => Some(now),
            _ => None,
        };
        let due = self.due(timetable, run, (now, late), up_since);
        // A new slot ends the tries of the one before it, unless each slot has to be run.
        match (retry, due) {
            (Some(at), due) if due.is_none() || self.catch_up == CatchUp::All => {
                if at <= now {
                    claim(task.slot, 0)
                } else {
                    wait_until(at)
                }
            }
            (_, Some(slot)) => {
                claim(slot, timetable.count(task.slot, slot.saturating_sub(1), MAX_COUNTED))
            }
            (_, None) => Plan::Wait(next),
        }
    }

    /// The slot that is due `now`, of a task that starts `late`.
    fn due(
        &self,
        timetable: &Timetable,
        run: &Run,
        (now, late): (u64, u64),
        up_since: u64,
    ) -> Option<u64> {
        let task = run.task.as_ref()?;
        let past = now.saturating_sub(late);
        let mut after = task.slot.max(task.paused);
        if self.overlap != Some(Overlap::Queue) && self.catch_up != CatchUp::All {
            after = after.max(run.ended().saturating_sub(late).min(past));
        }
        if let Some(limit) = self.start_within {
            after = after.max(past.saturating_sub(millis(limit)).saturating_sub(1));
        }
        if self.catch_up == CatchUp::None {
            after = after.max(up_since.saturating_sub(1));
        }
        match self.catch_up {
            CatchUp::All => timetable.between(after, past, MAX_CATCH_UP).first().copied(),
            CatchUp::Last | CatchUp::None => timetable.last(after.saturating_add(1), past),
        }
    }

    /// When the task starts next, at the earliest, by its schedule alone.
    pub fn next_start(&self, name: &str, now: u64) -> Option<u64> {
        let late = self.delay(name);
        Some(self.schedule()?.after(now.saturating_sub(late))?.saturating_add(late))
    }

    /// How long after its slots the task starts, in milliseconds, by its name.
    pub fn delay(&self, name: &str) -> u64 {
        match millis(self.spread) {
            0 => 0,
            spread => hash(&[name]) % spread,
        }
    }
}

/// The same number for the same words on each host.
pub fn hash(words: &[&str]) -> u64 {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(words.join("\0").as_bytes());
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}
