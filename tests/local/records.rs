//! What a record says, how modes join, and which attempts count.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use serializer::lock::register::number_after;
use serializer::lock::waiting::{Attempts, Waiting};
use serializer::record::mode::{MAX_SLOTS, Mode};
use serializer::record::{Entry, Lease, MAX_BYTES, Outcome, Record};
use serializer::store::seam::State;

const NO_PID: &str = "its first line is not a process id";
const NO_TIME: &str = "its second line is not a time";
const TOO_LARGE: &str = "it is larger than 64 KiB";

fn sample() -> Record {
    let text = "4121\n2026-11-22 \
                08:00:00\nv=1\nhost=a\nmachine=m\nboot=b\npidns=7\nstart=8\npidfd=9\nuid=10\nsince=2026-11-22T08:00:00Z\ntoken=t\nrun=r\ncommand=meltano \
                run x\nkeeper=41 - 9\n";
    Record::parse(text.as_bytes()).expect("the sample is a record")
}

#[test]
fn what_the_python_plugin_writes_is_a_legacy_record() {
    for text in ["4121\n2026-11-22 08:00:00\n", "4121\n2026-11-22 08:00:00", "4121"] {
        let record = Record::parse(text.as_bytes()).expect(text);
        assert!(
            record.is_legacy() && record.entries()[0].owner.pid.as_raw_pid() == 4121,
            "{text:?}"
        );
    }
}

#[test]
fn a_file_that_only_begins_like_a_lock_file_is_none() {
    for text in [
        "0",
        "-1",
        "+1",
        " 1",
        "2147483648",
        "100000000000000000000",
        "",
        "\n",
        "abc",
        "1x",
        "\0\0\0\0",
    ] {
        assert_eq!(Record::parse(text.as_bytes()), Err(NO_PID), "{text:?}");
    }
    for text in ["42\nis the answer\n", "42\n2026-11-22 08:00:00\nand more\n", "1\n2\n3\n"] {
        assert_eq!(Record::parse(text.as_bytes()), Err(NO_TIME), "{text:?}");
    }
    assert_eq!(Record::parse(&[b'1'; MAX_BYTES + 1]), Err(TOO_LARGE));
}

#[test]
fn an_older_program_understands_the_record_of_a_plain_mutex_and_takes_others_for_held() {
    let record = sample();
    let text = record.to_text();
    let new = ["mode", "slots", "until", "released", "previous", "lease", "fencing"];
    assert!(text.contains("\nv=1\n") && !new.iter().any(|key| text.contains(key)), "{text}");
    assert_eq!(Record::parse(text.as_bytes()), Ok(record));

    let plain = sample().entries()[0].clone();
    let lease = |expires| Some(Lease { duration: Duration::from_secs(30), expires, renewals: 3 });
    let others = [
        Entry { mode: Mode::Shared, ..plain.clone() },
        Entry { mode: Mode::Slots(NonZeroU32::new(3).expect("three")), ..plain.clone() },
        Entry { until: Some(7), ..plain.clone() },
        Entry { released: Some(Outcome::Succeeded), ..plain.clone() },
        Entry { released: Some(Outcome::Lost), lease: lease(Some(7)), ..plain.clone() },
        Entry { lease: lease(None), ..plain.clone() },
        Entry { fencing: Some(7), ..plain.clone() },
        Entry { previous: Some("t".to_owned()), ..plain.clone() },
    ];
    let records = others
        .iter()
        .map(|entry| vec![entry.clone()])
        .chain([others.to_vec(), vec![plain.clone(), plain]]);
    for entries in records {
        let record = Record::of(entries.clone()).expect("a record");
        let text = record.to_text();
        assert_eq!(text.matches("\nv=2\n").count(), entries.len(), "{text}");
        assert_eq!(Record::parse(text.as_bytes()), Ok(record));
    }
}

#[test]
fn a_record_never_outgrows_what_is_read() {
    let usual = sample().entries()[0].clone();
    let mut entry = usual.clone();
    let long = Some("é\n".repeat(5000));
    let place = &mut entry.owner.place;
    let fields = [
        &mut entry.command,
        &mut entry.run,
        &mut entry.token,
        &mut place.host,
        &mut place.machine,
        &mut place.boot,
    ];
    fields.into_iter().for_each(|field| field.clone_from(&long));
    assert!(Record::of(vec![entry.clone()]).is_some());
    assert_eq!(Record::of(vec![entry; 200]), None);
    assert!(Record::of(vec![usual; MAX_SLOTS as usize]).is_some());
    assert_eq!(Record::of(Vec::new()), None);
}

#[test]
fn the_smallest_number_of_slots_counts_and_sharers_exclude_all_others() {
    // By the number of slots; 0 is a sharer.
    let mode = |number| NonZeroU32::new(number).map_or(Mode::Shared, Mode::Slots);
    let joined: [(u32, &[u32]); 6] =
        [(1, &[]), (3, &[]), (0, &[]), (3, &[3, 3]), (0, &[0; 9]), (9, &[2])];
    let refused: [(u32, &[u32]); 10] = [
        (1, &[1]),
        (3, &[1]),
        (0, &[1]),
        (3, &[3; 3]),
        (2, &[3; 2]),
        (9, &[9, 2]),
        (9, &[0]),
        (0, &[9]),
        (1, &[0]),
        (1, &[3]),
    ];
    for (cases, joins) in [(joined.as_slice(), true), (refused.as_slice(), false)] {
        for (one, others) in cases {
            let others: Vec<_> = others.iter().copied().map(mode).collect();
            assert_eq!(mode(*one).joins(&others), joins, "{one} {others:?}");
        }
    }
}

#[test]
fn looks_are_counted_however_late_and_in_a_queue_the_attempts_that_were_slept_through() {
    let sleep = Duration::from_millis(10);
    let waiting =
        Waiting { max_attempts: NonZeroU32::new(7), sleep, timeout: None, warn_after: None };
    let mut attempts = Attempts::new(&waiting);
    let late = Instant::now() + 100 * sleep;
    attempts.count(late, false);
    assert_eq!((attempts.made(), attempts.next()), (1, late + sleep));
    attempts.count(late, true);
    assert_eq!(attempts.made(), 1, "a wake-up is not an attempt");
    attempts.count(late + 100 * sleep, false);
    assert_eq!(attempts.made(), 2, "a look, however late");
    attempts.count(late + 103 * sleep, true);
    assert_eq!(attempts.made(), 5);
    attempts.count(late + 200 * sleep, true);
    assert_eq!(attempts.made(), 7, "attempts end at their maximum");
    assert!(attempts.are_over());
}

#[test]
fn a_number_never_goes_back_whatever_is_restored() {
    // First use, a later use, a clock that was set back, a row of an older backup.
    for (number, now, next) in
        [(0, 1_000, 1_000), (1_000, 1_000, 1_001), (5_000, 1_000, 5_001), (1_000, 9_000, 9_000)]
    {
        assert_eq!(number_after(&State { number, now: Some(now), ..State::default() }), Some(next));
    }
    assert_eq!(number_after(&State { number: u64::MAX, ..State::default() }), None);
}
