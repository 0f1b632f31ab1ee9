//! What holds in a world: rules for each plan, for each stored state after the one before, and for
//! the end.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serializer::lock::once::Claim;
use serializer::record::run::{Interrupted, Run, Task};
use serializer::record::{Entry, Outcome};
use serializer::schedule::definition::{CatchUp, Overlap};
use serializer::schedule::plan::Plan;

use super::NAME;
use super::cases::{Kinds, STEP};

/// How many slots `catch_up = "all"` runs late.
const CAUGHT_UP: u64 = 100;

/// How often a slot runs again after interruptions, beside its tries.
const INTERRUPTIONS: u32 = 10;

pub struct Rules {
    kinds: Kinds,
    late: u64,
    retry_after: u64,
    /// How much of the history of the store is checked, and its last state.
    pub checked: usize,
    last: Option<Entry>,
    /// When the task was introduced.
    since: u64,
    /// The successes of each slot, and those since it was last forced.
    succeeded: BTreeMap<u64, (u32, u32)>,
    skipped: BTreeSet<u64>,
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).expect("a short time")
}

fn task(run: &Run) -> &Task {
    run.task.as_ref().expect("a task")
}

impl Rules {
    pub fn new(kinds: Kinds) -> Self {
        let late = kinds.definition.delay(NAME);
        let retry_after = millis(kinds.definition.retry_after());
        let (checked, last, since, succeeded, skipped) = Default::default();
        Self { kinds, late, retry_after, checked, last, since, succeeded, skipped }
    }

    /// The slots that are after `after` and not after `until`.
    fn slots(&self, after: u64, until: u64) -> Vec<u64> {
        let every = self.kinds.every;
        (after / every + 1..=until / every).map(|number| number * every).collect()
    }

    /// Their number.
    fn count(&self, after: u64, until: u64) -> u64 {
        (until / self.kinds.every).saturating_sub(after / self.kinds.every)
    }

    /// Whether it is too late for a slot when the slots up to `past` have come due.
    fn is_overdue(&self, slot: u64, past: u64) -> bool {
        let limit = self.kinds.definition.start_within.map(millis);
        limit.is_some_and(|limit| slot + limit < past)
    }

    fn skips_overlaps(&self) -> bool {
        self.kinds.definition.overlap != Some(Overlap::Queue)
            && self.kinds.definition.catch_up != CatchUp::All
    }

    /// Whether a slot came due during a reported run, and is not to be run. Other hosts' clocks
    /// tell other times.
    fn is_overlap(&self, slot: u64, run: &Run) -> bool {
        let due = slot + self.late;
        let is_during =
            run.end().is_some() && run.number > 0 && run.began < due && due <= run.ended();
        is_during && self.skips_overlaps() && self.kinds.has_clock
    }

    /// What a scheduler that runs since `up_since` wants to do `now`.
    pub fn check_plan(
        &self,
        plan: &Plan,
        seen: Option<&Run>,
        (now, up_since): (u64, u64),
    ) -> Result<(), String> {
        let (Plan::Run(claim), Some(run)) = (plan, seen) else { return Ok(()) };
        let (catch_up, past) = (self.kinds.definition.catch_up, now - self.late);
        let is_wrong = if claim.slot == run.of_slot().0 {
            claim.skipped != 0
        } else {
            let is_last = self.count(claim.slot, past) == 0;
            let is_missed = catch_up == CatchUp::None && claim.slot < up_since;
            let is_in_pause = claim.slot <= task(run).paused;
            let is_wanted = (is_last || catch_up == CatchUp::All)
                && !self.is_overlap(claim.slot, run)
                && !is_in_pause;
            claim.slot > past || self.is_overdue(claim.slot, past) || is_missed || !is_wanted
        };
        if is_wrong {
            Err(format!("at {now}, since {up_since}, {claim:?} is planned after {run:?}"))
        } else {
            Ok(())
        }
    }

    /// All that was stored since the last time.
    pub fn check(
        &mut self,
        history: Vec<Option<Entry>>,
        claims: &HashMap<i32, Claim>,
    ) -> Result<(), String> {
        self.checked += history.len();
        for seen in history {
            let last = std::mem::replace(&mut self.last, seen);
            self.check_next(last.as_ref(), claims)
                .map_err(|error| format!("{error}: {last:?}, then {:?}", self.last))?;
        }
        Ok(())
    }

    fn check_next(
        &mut self,
        last: Option<&Entry>,
        claims: &HashMap<i32, Claim>,
    ) -> Result<(), &'static str> {
        let entry = self.last.clone().ok_or("the task is forgotten")?;
        let run = entry.once.as_ref().ok_or("it is not a task")?;
        let Some(last) = last else {
            self.since = task(run).slot;
            return if run.number == 0 { Ok(()) } else { Err("it was not introduced") };
        };
        let before = last.once.as_ref().ok_or("it was not a task")?;
        let claim = claims.get(&entry.owner.pid.as_raw_pid());
        if entry.token != last.token {
            return self.check_begin(
                (last, before),
                (&entry, run),
                claim.ok_or("there was no claim")?,
            );
        }
        let is_same =
            (run.of_slot(), run.began, &run.rule) == (before.of_slot(), before.began, &before.rule);
        let is_kept = task(run).skipped == task(before).skipped
            && task(run).is_stopped >= task(before).is_stopped;
        if !is_same || !is_kept || (last.released.is_some() && last.released != entry.released) {
            return Err("more has changed than the end and the marks of a run");
        }
        if last.released.is_none() && entry.released == Some(Outcome::Succeeded) {
            let (all, own) = self.succeeded.entry(task(run).slot).or_default();
            (*all, *own) = (*all + 1, *own + 1);
            if *own > 1 {
                return Err("a slot has succeeded twice");
            }
        }
        Ok(())
    }

    fn check_begin(
        &mut self,
        (last, before): (&Entry, &Run),
        (entry, run): (&Entry, &Run),
        claim: &Claim,
    ) -> Result<(), &'static str> {
        let (slot, old, has_clock) = (task(run).slot, task(before).slot, self.kinds.has_clock);
        let is_expired =
            last.lease.and_then(|lease| lease.expires).is_some_and(|expires| expires <= run.began);
        if entry.released.is_some() || (has_clock && last.released.is_none() && !is_expired) {
            return Err("it begins during a run");
        }
        if run.of_slot() <= before.of_slot()
            || task(run).is_stopped
            || task(run).paused != task(before).paused
        {
            return Err("the number does not grow, or a mark is not what it was");
        }
        if (claim.seen.0, claim.seen.1) != before.of_slot() {
            return Err("the run before is not the one that was seen");
        }
        let skipped = self.slots(old, slot - 1);
        let counted = task(run).skipped - task(before).skipped;
        self.skipped.extend(&skipped);
        if claim.is_forced {
            // If it does not succeed, it is tried again as any other run.
            self.succeeded.entry(slot).or_default().1 = 0;
            return if counted == 0 { Ok(()) } else { Err("a forced run counts slots as skipped") };
        }
        if task(before).paused > run.began {
            return Err("it begins in a pause");
        }
        let (has_succeeded, is_given_up) =
            (last.released == Some(Outcome::Succeeded), self.is_given_up(last, before));
        if slot == old {
            // Each process adds other milliseconds of real time to the grid.
            let is_early = last.released == Some(Outcome::Failed)
                && run.began + STEP / 2 < before.ended() + self.retry_after;
            return match () {
                () if has_succeeded || is_given_up => Err("a slot that is over begins again"),
                () if is_early && has_clock => Err("a slot is tried again too early"),
                () => Ok(()),
            };
        }
        if slot + self.late > run.began || !slot.is_multiple_of(self.kinds.every) {
            return Err("it is not due");
        }
        if counted != u64::try_from(skipped.len()).expect("a number") {
            return Err("skipped slots are not counted");
        }
        // One without success may have been reported since, when its lease had expired.
        if matches!(last.released, Some(Outcome::Succeeded | Outcome::Failed))
            && self.is_overlap(slot, before)
        {
            return Err("a slot begins that came due during a run");
        }
        if self.kinds.definition.catch_up == CatchUp::All {
            let past = run.began - self.late;
            let may_skip = |slot: &u64| {
                *slot <= task(before).paused
                    || self.is_overdue(*slot, past)
                    || self.count(*slot, past) >= CAUGHT_UP
            };
            if !has_succeeded && !is_given_up || (has_clock && !skipped.iter().all(may_skip)) {
                return Err("a slot is left that is to be caught up");
            }
        }
        Ok(())
    }

    fn is_given_up(&self, last: &Entry, run: &Run) -> bool {
        let (tries, interrupted) =
            (self.kinds.definition.tries().get(), self.kinds.definition.interrupted);
        match last.released {
            Some(Outcome::Succeeded) => false,
            Some(Outcome::Failed) => task(run).is_stopped || run.number >= tries,
            _ => {
                task(run).is_stopped
                    || interrupted == Interrupted::Stop
                    || run.number >= tries + INTERRUPTIONS
            }
        }
    }

    /// Whether the last run is to be followed by another one of its slot.
    pub fn is_unfinished(&self, now: u64) -> bool {
        let last = self.last.as_ref().and_then(|entry| Some((entry, entry.once.as_ref()?)));
        last.is_some_and(|(entry, run)| {
            let is_over =
                entry.released == Some(Outcome::Succeeded) || self.is_given_up(entry, run);
            !is_over && task(run).paused <= now
        })
    }

    /// When nothing is left to do for a scheduler that runs since `up_since`.
    pub fn check_rest(&self, now: u64, up_since: u64) -> Result<(), String> {
        let last = self.last.as_ref().and_then(|entry| entry.once.as_ref());
        let run = last.ok_or("it is not introduced")?;
        let past = now - self.late;
        let due = past / self.kinds.every * self.kinds.every;
        let may_be_left = due <= task(run).slot.max(task(run).paused)
            || (self.skips_overlaps() && due + self.late <= run.ended())
            || self.is_overdue(due, past)
            || (self.kinds.definition.catch_up == CatchUp::None && due < up_since);
        if !may_be_left {
            return Err(format!("at {now}, {due} was not run: {run:?}"));
        }
        let is_over = |slot: &u64| {
            self.skipped.contains(slot) || self.succeeded.get(slot).is_some_and(|(all, _)| *all > 0)
        };
        let is_paused = |slot: &u64| task(run).paused > now && *slot == task(run).slot;
        let all = self.slots(self.since, task(run).slot);
        match all.iter().find(|slot| self.kinds.is_complete && !is_over(slot) && !is_paused(slot)) {
            Some(slot) => Err(format!("{slot} has not succeeded: {run:?}")),
            None => Ok(()),
        }
    }
}
