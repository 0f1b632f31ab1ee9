//! What to do about a task: a table for each option. Times are in minutes since midnight, slots are
//! the full hours.

use std::num::NonZeroU32;
use std::time::Duration;

use serializer::lock::once::{Claim, Ended, Next, State};
use serializer::lock::staleness::Stale;
use serializer::record::run::{End, Interrupted, Rule, Run, Task};
use serializer::schedule::definition::{CatchUp, Definition, Overlap};
use serializer::schedule::plan::{Plan, Seen, introduced};
use serializer::schedule::timetable::Timetable;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60;

fn at(minutes: u64) -> u64 {
    1_800_057_600_000 + minutes * MINUTE
}

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

fn hourly() -> Definition {
    Definition::new(
        Some(Timetable::Every(minutes(HOUR))),
        "every 1h".to_owned(),
        vec!["true".to_owned()],
    )
}

/// Run `number` of the slot at `slot`, which has ended in `state` at `ended`.
fn run(slot: u64, number: u32, (state, ended): (State, u64)) -> Seen {
    let task = Some(Task { slot: at(slot), ..Task::default() });
    let (key, began) = ("shop".to_owned(), at(slot));
    let ends = vec![End { at: at(ended), number, how: "ended".to_owned(), code: None }];
    let run = Run { key, number, began, rule: Rule::default(), ends, task };
    Seen { run, state, look_again: at(ended) }
}

fn done(slot: u64, ended: u64) -> Seen {
    run(slot, 1, (State::Done, ended))
}

/// The plan in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Short {
    /// Run this slot after so many skipped ones.
    Run(u64, u64),
    Wait(u64),
}

use Short::{Run as Runs, Wait as Waits};

fn plan_since(up_since: u64, definition: &Definition, seen: &Seen, now: u64) -> Short {
    match definition.plan("shop", Some(seen), at(now), at(up_since)) {
        Plan::Run(claim) => {
            let (slot, number) = seen.run.of_slot();
            assert_eq!((claim.seen, claim.is_forced), ((slot, number, seen.state), false));
            assert_eq!(claim.definition, definition.number());
            Runs((claim.slot - at(0)) / MINUTE, claim.skipped)
        }
        Plan::Wait(time) => Waits((time.expect("a time") - at(0)) / MINUTE),
        Plan::Introduce => panic!("it is introduced"),
    }
}

fn plan(definition: &Definition, seen: &Seen, now: u64) -> Short {
    plan_since(0, definition, seen, now)
}

#[test]
fn a_new_task_is_introduced_and_runs_from_its_next_slot_on() {
    assert_eq!(hourly().plan("shop", None, at(90), at(0)), Plan::Introduce);
    let new = Seen {
        run: introduced(None, "shop", at(90)).expect("a new task"),
        state: State::Done,
        look_again: 0,
    };
    assert_eq!(
        [119, 120, 130].map(|now| plan(&hourly(), &new, now)),
        [Waits(120), Runs(120, 0), Runs(120, 0)]
    );
    // In the very moment of a slot, too: it may have been introduced for that.
    let new = Seen {
        run: introduced(None, "shop", at(60)).expect("a new task"),
        state: State::Done,
        look_again: 0,
    };
    assert_eq!(plan(&hourly(), &new, 60), Waits(120));
}

#[test]
fn a_task_that_is_disabled_or_on_request_waits_without_an_end() {
    let mut disabled = hourly();
    disabled.enabled = Some(false);
    let on_request = Definition::new(None, "on request".to_owned(), Vec::new());
    for definition in [disabled, on_request] {
        for state in [State::Done, State::Failed, State::Interrupted, State::GivenUp] {
            assert_eq!(
                definition.plan("shop", Some(&run(0, 1, (state, 10))), at(200), at(0)),
                Plan::Wait(None)
            );
        }
    }
    // A key that is not a task is left alone.
    let mut foreign = done(0, 10);
    foreign.run.task = None;
    assert_eq!(hourly().plan("shop", Some(&foreign), at(200), at(0)), Plan::Wait(None));
}

#[test]
fn a_run_is_looked_at_again_and_nothing_else_is_done_meanwhile() {
    for catch_up in [CatchUp::None, CatchUp::Last, CatchUp::All] {
        let definition = Definition { catch_up, overlap: Some(Overlap::Queue), ..hourly() };
        let running = Seen { look_again: at(77), ..run(0, 1, (State::Running, 0)) };
        assert_eq!(plan(&definition, &running, 300), Waits(77));
    }
}

#[test]
fn what_was_missed_is_caught_up_as_asked_for() {
    for (catch_up, up_since, now, expected) in [
        // The last success was of midnight; slots are at 60, 120, 180 and 240.
        (CatchUp::None, 0, 250, Runs(240, 3)),
        (CatchUp::None, 240, 250, Runs(240, 3)),
        (CatchUp::None, 241, 250, Waits(300)),
        (CatchUp::None, 241, 300, Runs(300, 4)),
        (CatchUp::Last, 241, 250, Runs(240, 3)),
        (CatchUp::Last, 241, 59, Waits(60)),
        (CatchUp::All, 241, 250, Runs(60, 0)),
        (CatchUp::All, 241, 59, Waits(60)),
        // A hundred of them at most.
        (CatchUp::All, 0, 100 * HOUR, Runs(60, 0)),
        (CatchUp::All, 0, 101 * HOUR, Runs(120, 1)),
        (CatchUp::All, 0, 150 * HOUR + 59, Runs(51 * HOUR, 50)),
        (CatchUp::Last, 0, 150 * HOUR, Runs(150 * HOUR, 149)),
        // Counted up to a limit.
        (CatchUp::Last, 0, 20_000 * HOUR, Runs(20_000 * HOUR, 10_000)),
    ] {
        let definition = Definition { catch_up, ..hourly() };
        assert_eq!(
            plan_since(up_since, &definition, &done(0, 10), now),
            expected,
            "{catch_up:?} {up_since} {now}"
        );
    }
}

#[test]
fn a_slot_that_comes_due_during_a_run_is_skipped_or_queued() {
    for (catch_up, overlap, ended, now, expected) in [
        (CatchUp::Last, Overlap::Skip, 130, 130, Waits(180)),
        (CatchUp::Last, Overlap::Skip, 130, 180, Runs(180, 2)),
        (CatchUp::Last, Overlap::Skip, 120, 121, Waits(180)),
        (CatchUp::Last, Overlap::Skip, 119, 121, Runs(120, 1)),
        (CatchUp::Last, Overlap::Queue, 130, 130, Runs(120, 1)),
        (CatchUp::Last, Overlap::Queue, 59, 59, Waits(60)),
        (CatchUp::None, Overlap::Skip, 130, 130, Waits(180)),
        (CatchUp::None, Overlap::Queue, 130, 130, Runs(120, 1)),
        // Each slot is wanted.
        (CatchUp::All, Overlap::Skip, 130, 130, Runs(60, 0)),
        // The clock of the host on which it ran was ahead.
        (CatchUp::Last, Overlap::Skip, 500, 130, Waits(180)),
        (CatchUp::Last, Overlap::Skip, 500, 180, Waits(240)),
    ] {
        let definition = Definition { catch_up, overlap: Some(overlap), ..hourly() };
        assert_eq!(
            plan(&definition, &done(0, ended), now),
            expected,
            "{catch_up:?} {overlap:?} {ended} {now}"
        );
    }
}

#[test]
fn a_slot_is_not_run_when_it_is_too_late() {
    for (catch_up, now, expected) in [
        (CatchUp::Last, 90, Runs(60, 0)),
        (CatchUp::Last, 91, Waits(120)),
        (CatchUp::Last, 120, Runs(120, 1)),
        (CatchUp::None, 90, Runs(60, 0)),
        (CatchUp::None, 91, Waits(120)),
        (CatchUp::All, 90, Runs(60, 0)),
        (CatchUp::All, 91, Waits(120)),
        (CatchUp::All, 200, Runs(180, 2)),
    ] {
        let definition = Definition { catch_up, start_within: Some(minutes(30)), ..hourly() };
        assert_eq!(plan(&definition, &done(0, 10), now), expected, "{catch_up:?} {now}");
    }
    let definition =
        Definition { catch_up: CatchUp::All, start_within: Some(minutes(150)), ..hourly() };
    assert_eq!(plan(&definition, &done(0, 10), 300), Runs(180, 2));
}

#[test]
fn a_failed_slot_is_tried_again_after_a_time_until_a_new_one_ends_its_tries() {
    for (catch_up, state, now, expected) in [
        (CatchUp::Last, State::Failed, 29, Waits(30)),
        (CatchUp::Last, State::Failed, 30, Runs(0, 0)),
        (CatchUp::Last, State::Failed, 60, Runs(60, 0)),
        (CatchUp::All, State::Failed, 29, Waits(30)),
        (CatchUp::All, State::Failed, 60, Runs(0, 0)),
        (CatchUp::Last, State::Interrupted, 20, Runs(0, 0)),
        (CatchUp::Last, State::Interrupted, 60, Runs(60, 0)),
        (CatchUp::All, State::Interrupted, 60, Runs(0, 0)),
        (CatchUp::Last, State::GivenUp, 30, Waits(60)),
        (CatchUp::Last, State::GivenUp, 60, Runs(60, 0)),
        (CatchUp::All, State::GivenUp, 60, Runs(60, 0)),
        (CatchUp::Last, State::Done, 30, Waits(60)),
    ] {
        let definition = Definition { catch_up, retry_after: Some(minutes(10)), ..hourly() };
        assert_eq!(
            plan(&definition, &run(0, 1, (state, 20)), now),
            expected,
            "{catch_up:?} {state:?} {now}"
        );
    }
    // The next slot comes before the next try.
    let definition = Definition { retry_after: Some(minutes(90)), ..hourly() };
    assert_eq!(plan(&definition, &run(0, 1, (State::Failed, 20)), 30), Waits(60));
}

#[test]
fn nothing_begins_in_a_pause_and_what_came_due_in_it_is_skipped() {
    for (catch_up, paused, now, expected) in [
        (CatchUp::Last, 130, 129, Waits(130)),
        (CatchUp::Last, 130, 130, Waits(180)),
        (CatchUp::Last, 130, 180, Runs(180, 2)),
        (CatchUp::All, 130, 180, Runs(180, 2)),
        (CatchUp::None, 130, 180, Runs(180, 2)),
        (CatchUp::Last, 120, 120, Waits(180)),
        (CatchUp::Last, 119, 120, Runs(120, 1)),
    ] {
        for state in [State::Done, State::GivenUp] {
            let definition = Definition { catch_up, ..hourly() };
            let mut seen = run(0, 1, (state, 10));
            seen.run.task.as_mut().expect("a task").paused = at(paused);
            assert_eq!(plan(&definition, &seen, now), expected, "{catch_up:?} {paused} {now}");
        }
    }
    // Nor is a slot tried again.
    let mut failed = run(0, 1, (State::Failed, 10));
    failed.run.task.as_mut().expect("a task").paused = at(40);
    assert_eq!([20, 40].map(|now| plan(&hourly(), &failed, now)), [Waits(40), Runs(0, 0)]);
}

#[test]
fn starts_are_spread_by_the_name_and_slots_are_not() {
    let definition = Definition { spread: minutes(30), ..hourly() };
    let late = definition.delay("shop");
    assert!(late < 30 * MINUTE && late != definition.delay("other"), "{late}");
    let plan = |now| definition.plan("shop", Some(&done(0, 10)), now, at(0));
    assert_eq!(plan(at(60) + late - 1), Plan::Wait(Some(at(60) + late)));
    assert!(
        matches!(plan(at(60) + late), Plan::Run(Claim { slot, skipped: 0, .. }) if slot == at(60))
    );
    // A slot with its start delayed until after a run has not come due in it.
    let overlap = |ended| {
        let mut seen = done(0, 0);
        seen.run.ends[0].at = ended;
        definition.plan("shop", Some(&seen), at(60) + late, at(0))
    };
    assert!(matches!(overlap(at(60) + late - 1), Plan::Run(Claim { slot, .. }) if slot == at(60)));
    assert_eq!(overlap(at(60) + late), Plan::Wait(Some(at(120) + late)));
}

/// What becomes of a claim of the next slot, made after `seen`, when a run with this end is stored.
fn claim(
    seen: State,
    stored: Ended,
    change: impl Fn(&mut Claim, &mut Task),
) -> Option<(u64, u32, Task)> {
    let rule =
        Rule { tries: NonZeroU32::new(2), interrupted: Interrupted::Rerun, ..Rule::default() };
    let mut run = run(60, 1, (seen, 70)).run;
    run.rule = rule;
    let mut claim = Claim {
        seen: (at(60), 1, seen),
        slot: at(60),
        skipped: 0,
        definition: 7,
        is_forced: false,
    };
    change(&mut claim, run.task.as_mut().expect("a task"));
    match claim.next("shop", rule, Some((&run, stored)), at(100)) {
        Next::Run(run) => {
            Some(((run.of_slot().0 - at(0)) / MINUTE, run.number, run.task.expect("a task")))
        }
        Next::Skip => None,
        Next::GiveUp(why) => panic!("{why}"),
    }
}

#[test]
fn a_claim_is_refused_unless_the_state_is_the_one_that_was_seen() {
    let interrupted = Ended::Interrupted(Stale::Expired);
    for (seen, stored, is_refused) in [
        (State::Failed, Ended::Failed, false),
        (State::Interrupted, interrupted, false),
        (State::Done, Ended::Succeeded, false),
        // A success was on its way.
        (State::Interrupted, Ended::Succeeded, true),
        (State::Failed, interrupted, true),
    ] {
        let claimed = claim(seen, stored, |claim, _| claim.slot = at(120));
        assert_eq!(claimed.is_none(), is_refused, "{seen:?} {stored:?}");
        let claimed = claim(seen, stored, |claim, _| claim.is_forced = true);
        assert_eq!(claimed.is_none(), is_refused, "{seen:?} {stored:?}, forced");
    }
    assert_eq!(claim(State::Failed, Ended::Failed, |claim, _| claim.seen.0 = at(0)), None);
    assert_eq!(claim(State::Failed, Ended::Failed, |claim, _| claim.seen.1 = 2), None);
    // It was stopped meanwhile.
    assert_eq!(claim(State::Failed, Ended::Failed, |_, task| task.is_stopped = true), None);
}

#[test]
fn a_claim_raises_slot_or_number_and_keeps_the_marks() {
    let claimed = |change: fn(&mut Claim, &mut Task)| {
        claim(State::Failed, Ended::Failed, change).expect("it is not refused")
    };
    let (slot, number, task) = claimed(|claim, _| claim.skipped = 0);
    assert_eq!((slot, number, task.definition), (60, 2, 7));
    let (slot, number, task) =
        claimed(|claim, task| (claim.slot, claim.skipped, task.skipped) = (at(240), 2, 3));
    assert_eq!((slot, number, task.skipped), (240, 1, 5));
    let (slot, number, task) =
        claimed(|claim, task| (claim.slot, claim.is_forced, task.paused) = (at(0), true, at(200)));
    assert_eq!((slot, number, task.paused), (60, 2, at(200)));
    assert_eq!(claim(State::Failed, Ended::Failed, |_, task| task.paused = at(101)), None);
    let (.., task) = claimed(|_, task| task.paused = at(100));
    assert_eq!(task.paused, at(100));
}
