use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::super::table::FORMAT;
use super::{Item, VALID_FOR, attributes, read, state_of, written};
use crate::record::{Outcome, Record};
use crate::store::seam::State;

fn item(attributes: &[(&str, &str)]) -> Item {
    attributes
        .iter()
        .map(|(name, text)| ((*name).to_owned(), AttributeValue::S((*text).to_owned())))
        .collect()
}

fn ago(seconds: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_secs(seconds)
}

/// What is read of an item of the library that was updated so many seconds ago.
fn seen(status: &str, seconds: i64) -> (State, Record) {
    let (created, updated) = (written(ago(seconds + 7)), written(ago(seconds)));
    let item =
        item(&[("status_execution", status), ("created_at", &created), ("updated_at", &updated)]);
    let state = state_of("load\n2026", &item).expect(status);
    let record =
        Record::parse(state.value.as_deref().expect("a record").as_bytes()).expect("a record");
    (state, record)
}

#[test]
fn an_item_of_the_library_is_read_as_a_run() {
    for (status, age, released, is_expired) in [
        ("IN_PROGRESS", 0, None, false),
        ("IN_PROGRESS", 1195, None, false),
        ("IN_PROGRESS", 1201, None, true),
        ("IN_PROGRESS", -7200, None, false),
        ("LOADING", 1195, None, false),
        ("LOADING", 1201, None, true),
        ("FINISHED", 100_000, Some(Outcome::Succeeded), true),
        ("FINISHED", 1, Some(Outcome::Succeeded), false),
        ("FAILED", 1, Some(Outcome::Failed), false),
    ] {
        let (state, record) = seen(status, age);
        let (entry, run) = record.last_run().expect("a run");
        assert_eq!(
            (entry.released, record.is_newer(), record.is_legacy()),
            (released, false, false),
            "{status} {age}"
        );
        let lease = entry.lease.expect("a lease");
        let now = state.now.expect("a clock");
        assert_eq!(
            (lease.duration.as_millis(), lease.expires.is_none_or(|at| at <= now)),
            (u128::from(VALID_FOR), is_expired),
            "{status} {age}"
        );
        assert_eq!(
            (run.key.as_str(), run.number, run.ends.len()),
            ("load\n2026", 1, usize::from(released.is_some()))
        );
        let ended = released.map_or(run.began + 7000, |_| run.ended());
        assert!(run.began.abs_diff(ended).abs_diff(7000) <= 1 && run.ended() <= ended, "{run:?}");
        // What is stored for others says the same, or that the run is going on.
        let told = attributes(state.value.as_deref()).expect("a run");
        let expected = if status == "LOADING" { "IN_PROGRESS" } else { status };
        assert_eq!(told[0], ("status_execution", AttributeValue::S(expected.to_owned())));
    }
}

#[test]
fn an_item_that_is_neither_ours_nor_the_librarys_is_refused() {
    let now = written(Timestamp::now());
    let number = ("updated_at".to_owned(), AttributeValue::N("1".to_owned()));
    for (item, is_read) in [
        (item(&[("status_execution", "FINISHED"), ("updated_at", &now)]), true),
        (item(&[("status_execution", "FINISHED"), ("updated_at", "2026-11-29T08:00:00")]), true),
        (item(&[("status_execution", "FINISHED"), ("updated_at", "2026-11-29 08:00:00")]), true),
        (item(&[("status_execution", "FINISHED"), ("updated_at", "yesterday")]), false),
        (item(&[("status_execution", "FINISHED"), ("updated_at", "2026-11-29T08:00:00Z")]), false),
        (item(&[("status_execution", "FINISHED")]), false),
        (item(&[("status_execution", "FINISHED")]).into_iter().chain([number]).collect(), false),
        (item(&[("updated_at", &now)]), false),
        (item(&[]), false),
        // Of a newer version.
        (
            item(&[
                ("status_execution", "FINISHED"),
                ("updated_at", &now),
                ("format", "2"),
                ("version", "7"),
            ]),
            false,
        ),
    ] {
        assert_eq!(state_of("load", &item).is_ok(), is_read, "{item:?}");
    }
    let format = FORMAT.to_string();
    let ours = item(&[
        ("status_execution", "FAILED"),
        ("format", &format),
        ("version", "7"),
        ("record", "r"),
    ]);
    let state = state_of("load", &ours).expect("it is ours");
    assert_eq!((state.number, state.value.as_deref(), state.now), (7, Some("r"), None));
}

#[test]
fn the_library_is_told_how_a_run_goes() {
    let run = r#"once={"key":"load","try":2,"began":1796001906047}"#;
    let lost = "2\n\nv=3\nreleased=lost\n";
    for (record, status) in [
        (format!("1\n\nv=3\n{run}\n"), Some("IN_PROGRESS")),
        (format!("1\n\nv=3\nreleased=succeeded\n{run}\n"), Some("FINISHED")),
        (format!("1\n\nv=3\nreleased=failed\n{run}\n"), Some("FAILED")),
        (format!("1\n\nv=3\nreleased=unknown\n{run}\n"), Some("FAILED")),
        (format!("{lost}1\n\nv=3\n{run}\n{lost}"), Some("IN_PROGRESS")),
        (lost.to_owned(), None),
        ("1\n\nv=3\n".to_owned(), None),
    ] {
        let told = attributes(Some(&record));
        assert_eq!(told.is_some(), status.is_some(), "{record}");
        let Some([(_, word), (_, created), (_, updated)]) = told else { continue };
        let time = |value: AttributeValue| {
            read(value.as_s().expect("a text"), crate::sys::local_time::zone()).expect("a time")
        };
        assert_eq!(word.as_s().map(String::as_str), Ok(status.expect("a status")));
        assert_eq!(time(created).as_millisecond(), 1_796_001_906_047);
        let age = Duration::try_from(time(updated).duration_until(Timestamp::now()))
            .expect("a time that has come");
        assert!(age < Duration::from_secs(60), "{age:?}");
    }
    assert_eq!(attributes(None), None);
}

#[test]
fn a_time_has_six_digits_and_one_that_an_hour_has_twice_is_the_later_one() {
    assert!(
        written(Timestamp::from_second(1_796_001_906).expect("a time")).ends_with(":06.000000")
    );
    let now = ago(0).as_microsecond();
    let zone = crate::sys::local_time::zone;
    let text = written(Timestamp::from_microsecond(now).expect("a time"));
    assert_eq!(read(&text, zone()).map(Timestamp::as_microsecond), Some(now), "{text}");
    let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a zone");
    for (text, utc) in [
        ("2026-10-25T02:30:00.000001", "2026-10-25T01:30:00.000001Z"),
        ("2026-03-29T02:30:00", "2026-03-29T01:30:00Z"),
        ("2026-07-01T02:30:00", "2026-07-01T00:30:00Z"),
    ] {
        assert_eq!(read(text, berlin.clone()), utc.parse().ok(), "{text}");
    }
}
