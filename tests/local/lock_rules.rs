//! The rules by which a requester decides about a lock: `src/lock/decision.rs`, a test for each.

use std::num::NonZeroU32;
use std::time::Duration;

use serializer::lock::decision::{Bid, Decision};
use serializer::lock::staleness::{Held, Judged, Stale, Unknown, Verdict};
use serializer::lock::{Acquired, Error, Grant, Request, Requester, Stored};
use serializer::record::mode::Mode;
use serializer::record::owner::Owner;
use serializer::record::run::{Rule, Run};
use serializer::record::{Entry, Outcome, Record};
use serializer::store::seam::{Key, Kind, Next, State, Store};
use serializer::sys::identity::{HostIdentity, ProcessIdentity};
use serializer::sys::process::parse_pid;

use crate::support::memory::Memory;
use crate::support::simulated::register;

const OURS: &str = "10";
const ANOTHER: &str = "20";

/// The process with the PID [`OURS`].
struct Us;

impl Requester for Us {
    fn owns(&self, _stored: &Stored, entry: &Entry) -> bool {
        entry.owner.pid.to_string() == OURS
    }
}

/// The entry of a process, with its PID as its token.
fn entry(pid: &str) -> Entry {
    let owner = Owner {
        pid: parse_pid(pid).expect("a pid"),
        uid: None,
        place: HostIdentity::default(),
        instance: ProcessIdentity::default(),
    };
    let new = Entry::new(owner, None, None).expect("random numbers");
    Entry { token: Some(pid.to_owned()), ..new }
}

fn released(pid: &str, outcome: Outcome) -> Entry {
    Entry { released: Some(outcome), ..entry(pid) }
}

/// The entry of the last run of a key.
fn run(pid: &str, outcome: Option<Outcome>) -> Entry {
    let begun = Run {
        key: "key".to_owned(),
        number: 1,
        began: 1000,
        rule: Rule::default(),
        ends: Vec::new(),
        task: None,
    };
    let code = Some(u8::from(outcome != Some(Outcome::Succeeded)));
    let ended = begun.with_end(2000, "ended", code);
    Entry {
        released: outcome,
        once: Some(if outcome.is_some() { ended } else { begun }),
        ..entry(pid)
    }
}

fn held() -> Verdict {
    Verdict::Held(Held::Alive(None))
}

fn stale() -> Verdict {
    Verdict::Stale(Stale::Released)
}

/// The decision of [`Us`] at the time 3000, in a word or two.
fn decide(stored: Vec<(Entry, Verdict)>, bid: &Bid<'_>) -> String {
    let (entries, verdicts): (Vec<_>, Vec<_>) = stored.into_iter().unzip();
    let judged = entries.iter().cloned().zip(verdicts);
    let judged =
        judged.map(|(entry, verdict)| Judged { entry: Some(entry), written: None, verdict });
    let stored = Stored { record: Record::of(entries.clone()), state: State::default() };
    match bid.decide(&stored, judged.collect(), ("key", 3000)) {
        Err(Error::HeldOtherwise(mode)) => format!("held otherwise: {mode}"),
        Err(Error::Busy(..)) => "of an earlier period".to_owned(),
        Err(Error::GivenUp(_)) => "given up".to_owned(),
        Err(error) => format!("{error:?}"),
        Ok(Decision::Done(Acquired::Granted(grant, None))) => format!("confirmed {}", grant.token),
        Ok(Decision::Done(Acquired::AlreadyHeld(_))) => "already held".to_owned(),
        Ok(Decision::Done(Acquired::NotNeeded(run))) => {
            format!("not needed{}", run.map_or("", |_| ": done"))
        }
        Ok(Decision::Done(acquired)) => format!("{acquired:?}"),
        Ok(Decision::Lost(left, held)) => format!("lost, {} stay, {} hold", left.len(), held.len()),
        Ok(Decision::Busy(holders)) => format!("busy with {}", holders.len()),
        Ok(Decision::Free(held, former, run)) => {
            let run = run.map(|run| format!(", run {}", run.number)).unwrap_or_default();
            format!("free beside {}, for {}{run}", held.len(), former.len())
        }
    }
}

/// The decision of a new request.
fn at_first(request: &Request, stored: Vec<(Entry, Verdict)>) -> String {
    decide(stored, &Bid::new(&Us, request))
}

#[test]
fn a_lock_without_holders_is_free_whatever_is_stale_in_it() {
    let request = Request::default();
    assert_eq!(at_first(&request, Vec::new()), "free beside 0, for 0");
    let gone = vec![(entry(ANOTHER), Verdict::Stale(Stale::Expired))];
    assert_eq!(at_first(&request, gone), "free beside 0, for 1");
}

#[test]
fn a_holder_excludes_what_its_mode_excludes_and_what_is_not_understood_excludes_all() {
    let by_another = |verdict| vec![(entry(ANOTHER), verdict)];
    let request = Request::default();
    assert_eq!(at_first(&request, by_another(held())), "busy with 1");
    let shared = |mode| Request { mode, ..Request::default() };
    let sharer = || vec![(Entry { mode: Mode::Shared, ..entry(ANOTHER) }, held())];
    assert_eq!(at_first(&shared(Mode::Shared), sharer()), "free beside 1, for 0");
    assert_eq!(at_first(&request, sharer()), "busy with 1");
    let newer = Verdict::Held(Held::Unknown(Unknown::NewerVersion));
    assert_eq!(at_first(&shared(Mode::Shared), by_another(newer)), "busy with 1");
}

#[test]
fn a_requester_recognizes_what_it_holds_and_what_it_was_never_told_that_it_holds() {
    let request = Request::default();
    assert_eq!(at_first(&request, vec![(entry(OURS), held())]), "already held");
    let ours = Entry { mode: Mode::Shared, ..entry(OURS) };
    assert_eq!(at_first(&request, vec![(ours, held())]), "held otherwise: shared");
    // By the token alone: the entry may name another process.
    let mut bid = Bid::new(&Us, &request);
    let token = ANOTHER.to_owned();
    bid.unconfirmed =
        vec![Grant { token, fencing: None, leased_at: 0, run: None, is_stopped: false }];
    assert_eq!(decide(vec![(entry(ANOTHER), held())], &bid), "confirmed 20");
    // An acquisition that was never confirmed cannot be lost.
    let lost = vec![(released(ANOTHER, Outcome::Lost), stale())];
    assert_eq!(decide(lost, &bid), "free beside 0, for 1");
}

#[test]
fn a_requester_that_lost_the_lock_is_told_before_it_gets_it_again() {
    let request = Request::default();
    let mark = || (released(OURS, Outcome::Lost), stale());
    assert_eq!(at_first(&request, vec![mark(), (entry(ANOTHER), held())]), "lost, 1 stay, 1 hold");
    assert_eq!(at_first(&request, vec![mark()]), "lost, 0 stay, 0 hold");
    // The mark was removed, but the answer to that was lost.
    let mut bid = Bid::new(&Us, &request);
    bid.was_lost = true;
    assert_eq!(decide(vec![(entry(ANOTHER), held())], &bid), "lost, 1 stay, 1 hold");
    // Another process's mark is its own affair.
    let foreign = vec![(released(ANOTHER, Outcome::Lost), stale())];
    assert_eq!(at_first(&request, foreign), "free beside 0, for 1");
}

#[test]
fn a_requester_that_waits_for_a_success_needs_nothing_after_it() {
    let request = Request { skip_if_done: true, ..Request::default() };
    let mut bid = Bid::new(&Us, &request);
    bid.awaited = Some(ANOTHER.to_owned());
    let success = || released(ANOTHER, Outcome::Succeeded);
    assert_eq!(decide(vec![(success(), stale())], &bid), "not needed");
    let next = Entry { previous: Some(ANOTHER.to_owned()), ..entry("30") };
    assert_eq!(decide(vec![(next, held())], &bid), "not needed");
    let failure = released(ANOTHER, Outcome::Unknown);
    assert_eq!(decide(vec![(failure, stale())], &bid), "free beside 0, for 1");
    // A holder that has succeeded, and stays for a time, was not seen before.
    let stays = Verdict::Held(Held::AtLeast(Duration::from_secs(1)));
    assert_eq!(at_first(&request, vec![(success(), stays)]), "not needed");
    assert_eq!(at_first(&request, vec![(success(), stale())]), "free beside 0, for 1");
}

#[test]
fn a_key_runs_by_how_its_last_run_ended() {
    let tries = NonZeroU32::new(1);
    let request = Request { once: Some(Rule { tries, ..Rule::default() }), ..Request::default() };
    let last = |outcome, verdict| at_first(&request, vec![(run(ANOTHER, outcome), verdict)]);
    assert_eq!(at_first(&request, Vec::new()), "free beside 0, for 0, run 1");
    assert_eq!(last(None, held()), "busy with 1");
    assert_eq!(last(Some(Outcome::Succeeded), stale()), "not needed: done");
    assert_eq!(last(Some(Outcome::Failed), stale()), "given up");
    let without_limit = Request { once: Some(Rule::default()), ..Request::default() };
    let failed = vec![(run(ANOTHER, Some(Outcome::Failed)), stale())];
    assert_eq!(at_first(&without_limit, failed), "free beside 0, for 1, run 2");
    // What was lost tells nothing of the key.
    let lost = || (released(ANOTHER, Outcome::Lost), stale());
    let done = (run("30", Some(Outcome::Succeeded)), stale());
    assert_eq!(at_first(&request, vec![done, lost()]), "not needed: done");
    // A run for an earlier period would wait for itself.
    let mut bid = Bid::new(&Us, &request);
    bid.since = Some(1500);
    assert_eq!(decide(vec![(run(OURS, None), held())], &bid), "of an earlier period");
}

#[test]
fn a_record_without_a_run_is_not_that_of_a_key() {
    let (key, mut store) = (Key { kind: Kind::Once, name: "key".into() }, Memory::default());
    let text = Record::of(vec![entry(ANOTHER)]).expect("a record").to_text();
    let next = Next { number: 1, value: Some(&text), keep: None };
    store.put(&key, &State::default(), &next).expect("memory");
    let refused = register(store, key).load().expect_err("no run").to_string();
    assert!(refused.ends_with("it does not tell of a run"), "{refused}");
}
