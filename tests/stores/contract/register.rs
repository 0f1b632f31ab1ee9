//! What a register has to promise.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use serializer::lock::Stored;
use serializer::lock::register::{Register, Write};
use serializer::record::owner::Owner;
use serializer::record::{Entry, MAX_BYTES, Record};
use serializer::sys::identity::{HostIdentity, ProcessIdentity};
use serializer::sys::process::parse_pid;

use super::subject::Subject;
use crate::support::{self, rounds};

fn record(pid: i32) -> Record {
    let owner = Owner {
        pid: parse_pid(&pid.to_string()).expect("a pid"),
        uid: None,
        place: HostIdentity { host: Some("elsewhere".to_owned()), ..HostIdentity::default() },
        instance: ProcessIdentity::default(),
    };
    Record::of(vec![
        Entry::new(owner, None, Some("é – ☃ 'x' \"y\" \\ %s".to_owned())).expect("an entry"),
    ])
    .expect("a record")
}

/// Creates, given that the place for it may have to be made first.
fn create(backend: &mut Register, record: &Record) -> Write {
    for _ in 0..3 {
        let is_there = backend.load().expect("it can be loaded").is_some();
        let write = backend.put(None, Some(record)).expect("it can be created");
        if is_there || write == Write::Done {
            return write;
        }
    }
    Write::Conflict
}

fn load(backend: &mut Register) -> Option<Stored> {
    backend.load().expect("it can be loaded")
}

fn stored(backend: &mut Register) -> Stored {
    load(backend).expect("something is stored")
}

fn pid_in(backend: &mut Register) -> Option<i32> {
    let stored = load(backend)?;
    Some(stored.record.as_ref().expect("a record").entries()[0].owner.pid.as_raw_pid())
}

pub fn what_is_created_is_loaded_and_is_created_once(subject: &Subject) {
    let (mut one, mut other) = (subject.open("x"), subject.open("x"));
    assert!(load(&mut one).is_none());
    let record = record(1);
    assert_eq!(create(&mut one, &record), Write::Done);
    assert_eq!(stored(&mut other).record.as_ref(), Some(&record));
    assert_eq!(create(&mut other, &self::record(2)), Write::Conflict);
    assert_eq!(pid_in(&mut one), Some(1));
}

pub fn only_what_was_seen_is_replaced(subject: &Subject) {
    let (mut one, mut other) = (subject.open("x"), subject.open("x"));
    assert_eq!(create(&mut one, &record(1)), Write::Done);
    let (seen, also_seen) = (stored(&mut one), stored(&mut other));
    assert_eq!(seen.state.version, also_seen.state.version);
    assert_eq!(one.put(Some(&seen), Some(&record(2))).expect("an answer"), Write::Done);
    assert_eq!(other.put(Some(&also_seen), Some(&record(3))).expect("an answer"), Write::Conflict);
    assert_eq!(one.put(Some(&seen), Some(&record(4))).expect("an answer"), Write::Conflict);
    assert_eq!(pid_in(&mut other), Some(2));
    // What was there before is another state when it is there again.
    let seen = stored(&mut one);
    assert_eq!(one.put(Some(&seen), None).expect("an answer"), Write::Done);
    let same = seen.record.as_ref().expect("a record").clone();
    assert_eq!(create(&mut one, &same), Write::Done);
    let _ = other.load();
    assert_eq!(other.put(Some(&seen), Some(&record(5))).expect("an answer"), Write::Conflict);
}

pub fn only_what_was_seen_is_deleted(subject: &Subject) {
    let (mut one, mut other) = (subject.open("x"), subject.open("x"));
    assert_eq!(create(&mut one, &record(1)), Write::Done);
    let (seen, also_seen) = (stored(&mut one), stored(&mut other));
    assert_eq!(one.put(Some(&seen), Some(&record(2))).expect("an answer"), Write::Done);
    assert_eq!(other.put(Some(&also_seen), None).expect("an answer"), Write::Conflict);
    let seen = stored(&mut other);
    assert_eq!(other.put(Some(&seen), None).expect("an answer"), Write::Done);
    assert!(load(&mut one).is_none());
    assert_eq!(one.put(Some(&seen), None).expect("an answer"), Write::Conflict);
    assert_eq!(one.put(Some(&seen), Some(&record(3))).expect("an answer"), Write::Conflict);
    assert!(load(&mut other).is_none());
    assert_eq!(create(&mut other, &record(4)), Write::Done);
}

pub fn names_are_independent_whatever_is_in_them(subject: &Subject) {
    let long = "x".repeat(subject.longest_name());
    let mut names: Vec<Vec<u8>> = [
        "a", "A", "a ", "ä", "a\u{308}", "%", "_", "'", "\"", "`", "\\", ";--", "☃", "a.b", "null",
        "NULL",
    ]
    .map(|name| name.as_bytes().to_vec())
    .to_vec();
    names.push(b"\xff\xfe".to_vec());
    names.push(b"\xff".to_vec());
    names.push(long.as_bytes().to_vec());
    names.push(long.as_bytes()[1..].to_vec());
    if subject.takes_slashes() {
        names.extend([
            b"/a/b".to_vec(),
            b"a/b".to_vec(),
            b"../a".to_vec(),
            b"\n".to_vec(),
            Vec::new(),
        ]);
    }
    for (number, name) in (1..).zip(&names) {
        let mut backend = subject.open(OsStr::from_bytes(name));
        assert!(load(&mut backend).is_none(), "{name:?}");
        assert_eq!(create(&mut backend, &record(number)), Write::Done, "{name:?}");
    }
    for (number, name) in (1..).zip(&names) {
        assert_eq!(pid_in(&mut subject.open(OsStr::from_bytes(name))), Some(number), "{name:?}");
    }
}

pub fn a_record_is_kept_whole(subject: &Subject) {
    let mut backend = subject.open("x");
    let entry = record(7).entries()[0].clone();
    let entries = |number: usize| vec![entry.clone(); number];
    let most =
        (1..).take_while(|number| Record::of(entries(*number)).is_some()).last().expect("one fits");
    let record = Record::of(entries(most)).expect("they fit");
    assert!(record.to_text().len() > MAX_BYTES - 1000);
    assert_eq!(create(&mut backend, &record), Write::Done);
    assert_eq!(stored(&mut subject.open("x")).record.as_ref(), Some(&record));
}

/// Lets so many do the same at the same time, each with a register of its own that it has looked
/// at; tells how many succeeded.
fn race(
    subject: &Subject,
    name: &str,
    number: i32,
    write: impl Fn(&mut Register, Option<Stored>, i32) -> Write + Sync,
) -> usize {
    let start = Barrier::new(usize::try_from(number).expect("some"));
    let look = || {
        let mut register = subject.open(name);
        let seen = load(&mut register);
        (register, seen)
    };
    thread::scope(|scope| {
        let racer = |number| {
            let (start, write, look) = (&start, &write, &look);
            scope.spawn(move || {
                // A racer that fails here must not keep the rest waiting.
                let looked = catch_unwind(AssertUnwindSafe(look));
                start.wait();
                let (mut register, seen) = looked.unwrap_or_else(|failure| resume_unwind(failure));
                write(&mut register, seen, number)
            })
        };
        let threads: Vec<_> = (1..=number).map(racer).collect();
        let ended = threads.into_iter().map(|thread| thread.join().expect("it ends"));
        ended.filter(|write| *write == Write::Done).count()
    })
}

pub fn of_many_that_create_one_succeeds(subject: &Subject) {
    // So that none of them has to make the place.
    let mut backend = subject.open("x");
    assert_eq!(create(&mut backend, &record(1)), Write::Done);
    for _ in 0..rounds(10) {
        let seen = stored(&mut backend);
        assert_eq!(backend.put(Some(&seen), None).expect("an answer"), Write::Done);
        let done = race(subject, "x", 16, |backend, seen, number| {
            assert!(seen.is_none());
            backend.put(None, Some(&record(number))).expect("an answer")
        });
        assert_eq!(done, 1);
    }
}

pub fn of_many_that_are_the_first_one_succeeds(subject: &Subject) {
    // So that none of them has to make the place.
    assert_eq!(create(&mut subject.open("x"), &record(1)), Write::Done);
    for round in 0..rounds(10) {
        let done = race(subject, &format!("new {round}"), 16, |backend, seen, number| {
            assert!(seen.is_none());
            match backend.put(None, Some(&record(number))).expect("an answer") {
                Write::Done => Write::Done,
                // Where each name has a place of its own, it may only have been made.
                _ => create(backend, &record(number)),
            }
        });
        assert_eq!(done, 1);
    }
}

pub fn of_many_that_replace_one_succeeds(subject: &Subject) {
    let mut backend = subject.open("x");
    assert_eq!(create(&mut backend, &record(1)), Write::Done);
    for round in 0..rounds(10) {
        let done = race(subject, "x", 16, |backend, seen, number| {
            let seen = seen.expect("something is stored");
            match (round + usize::try_from(number).expect("some")) % 4 {
                0 => backend.put(Some(&seen), None).expect("an answer"),
                _ => backend.put(Some(&seen), Some(&record(number))).expect("an answer"),
            }
        });
        assert_eq!(done, 1);
        if load(&mut backend).is_none() {
            assert_eq!(create(&mut backend, &record(1)), Write::Done);
        }
    }
}

pub fn numbers_never_go_back(subject: &Subject) {
    let mut backend = subject.open("x");
    let mut last = None;
    for round in 0..20 {
        let seen = load(&mut backend);
        let number = backend.next_number();
        assert!(number.is_some() || !subject.has_numbers() || round == 0);
        assert!(number.is_none() || number > last, "{number:?} comes after {last:?}");
        let write = match &seen {
            None => backend.put(None, Some(&record(1))),
            Some(seen) if round % 3 == 0 => backend.put(Some(seen), None),
            Some(seen) => backend.put(Some(seen), Some(&record(2))),
        };
        // At first, the place may have to be made.
        if write.expect("an answer") == Write::Done {
            last = number.or(last);
        } else {
            assert_eq!(round, 0);
        }
    }
}

/// Where each name has a place of its own, the first write may only make it.
fn release(register: &mut Register) {
    let seen = stored(register);
    assert_eq!(register.put(Some(&seen), None).expect("an answer"), Write::Done);
}

pub fn a_name_that_is_not_used_any_more_is_removed_and_numbers_still_grow(subject: &Subject) {
    let (mut used, mut unused, mut held) =
        (subject.open("a"), subject.open("b"), subject.open("c"));
    for register in [&mut used, &mut unused, &mut held] {
        assert_eq!(create(register, &record(1)), Write::Done);
    }
    assert!(load(&mut unused).is_some());
    let number = unused.next_number();
    release(&mut unused);
    assert!(load(&mut unused).is_none());
    let was_there = unused.version().is_some();
    assert_eq!(was_there, subject.has_numbers());
    // Not before its time, and nothing that is held.
    used.remove_unused(Duration::from_secs(3600));
    assert!(load(&mut unused).is_none() && unused.version().is_some() == was_there);
    if !subject.removes_by_itself() {
        support::until("it is removed", || {
            // Other tests use the store, too: what is younger is theirs.
            used.remove_unused(Duration::from_secs(2));
            load(&mut unused).is_none() && unused.version().is_none()
        });
    }
    assert_eq!(pid_in(&mut held), Some(1));
    // An expectation from before is not met any more; a new write is.
    assert!(load(&mut unused).is_none());
    assert!(number.is_none() || unused.next_number() > number);
    assert_eq!(create(&mut unused, &record(2)), Write::Done);
    assert_eq!(pid_in(&mut unused), Some(2));
}
