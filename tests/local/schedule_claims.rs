//! A claim is made from what was seen a moment ago: the last run may have ended in another way
//! since.

use std::num::NonZeroU32;
use std::time::Duration;

use serializer::lock::once::{Claim, Ended, Next, State};
use serializer::lock::waiting::Waiting;
use serializer::lock::{Acquired, Mutex, Request, Requester};
use serializer::record::Entry;
use serializer::record::run::{End, Rule, Run, Task};
use serializer::store::Cause;
use serializer::store::seam::Key;

use crate::support::simulated::{
    Access, ByPid, Command, Fate, Process, Silent, Simulated, advance, register,
};

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

/// Recognises an acquisition only by its token.
struct Scheduler(Process);

impl Requester for Scheduler {
    fn entry(&self) -> std::io::Result<Entry> {
        self.0.entry()
    }
}

#[test]
fn an_acquisition_with_a_lost_answer_is_found_once_and_then_excludes_its_requester_too() {
    let (store, key) = (Simulated::new(), Key::lock("lock".as_ref()));
    let scheduler = Scheduler(Process { pid: 100, store: store.clone() });
    let access = Access { no_answer: Cause::Full, ..Access::shared(key.clone()) };
    let command = Command::start((&store, access), ((), 0), move |gated, ()| {
        let judge = ByPid(None);
        let mut mutex = Mutex::new(register(gated, key), &judge);
        let request = Request { lease: Some(Duration::from_secs(3600)), ..Request::default() };
        let waiting = Waiting {
            max_attempts: Some(NonZeroU32::MIN),
            sleep: Duration::ZERO,
            timeout: None,
            warn_after: None,
        };
        [(); 3].map(|()| {
            let acquired = mutex.acquire(&scheduler, &request, &waiting, &mut Silent);
            matches!(acquired, Ok(Acquired::Granted(_, None)))
        })
    });
    let (mut place, mut ended) = (Some(command), None);
    for fate in [Fate::Answered, Fate::AnswerLost, Fate::Answered, Fate::Answered] {
        let command = place.take().expect("it goes on");
        ended = advance(&mut place, command, fate);
    }
    assert_eq!(ended.expect("it ends").1, [false, true, false]);
}
