//! A claim is made from what was seen a moment ago: the last run may have ended in another way
//! since.

use std::num::NonZeroU32;

use serializer::lock::once::{Claim, Ended, Next, State};
use serializer::record::run::{End, Rule, Run, Task};

const SLOT: u64 = 1_796_013_060_000;

fn last_run(code: u8, is_stopped: bool) -> Run {
    let end =
        End { at: SLOT + 2000, number: 1, how: format!("ended with {code}"), code: Some(code) };
    let task = Task { slot: SLOT, is_stopped, ..Task::default() };
    let key = "shop".to_owned();
    Run {
        key,
        number: 1,
        began: SLOT + 1000,
        rule: Rule::default(),
        ends: vec![end],
        task: Some(task),
    }
}

fn next_of_a_retry(tries: u32, seen: State, last: &Run, ended: Ended) -> Next {
    let rule = Rule { tries: NonZeroU32::new(tries), ..Rule::default() };
    let claim =
        Claim { seen: (SLOT, 1, seen), slot: SLOT, skipped: 0, definition: 0, is_forced: false };
    claim.next("shop", rule, Some((last, ended)), SLOT + 3000)
}

#[test]
fn a_slot_that_succeeded_after_it_was_seen_interrupted_is_not_run_again() {
    assert_eq!(
        next_of_a_retry(1, State::Interrupted, &last_run(0, false), Ended::Succeeded),
        Next::Skip
    );
}

#[test]
fn a_slot_without_tries_left_is_not_run_again() {
    assert_eq!(
        next_of_a_retry(1, State::Interrupted, &last_run(3, false), Ended::Failed),
        Next::Skip
    );
}

#[test]
fn a_slot_that_was_stopped_after_it_was_seen_failed_is_not_run_again() {
    assert_eq!(next_of_a_retry(3, State::Failed, &last_run(143, true), Ended::Failed), Next::Skip);
}
