//! The rules of a key that runs once: periods of the calendar, and what a caller does.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use serializer::lock::once::{Ended, Next, State};
use serializer::lock::staleness::Stale;
use serializer::record::period::Period;
use serializer::record::run::{Interrupted, Rule, Run};
use serializer::sys::process::Absence;

const HOUR: u64 = 60 * 60 * 1000;

/// The last run of a key, and how it ended.
type Last<'a> = Option<(&'a Run, Ended)>;

fn zone(name: &str) -> TimeZone {
    let bytes = std::fs::read(Path::new("/usr/share/zoneinfo").join(name))
        .expect("the zones are installed");
    TimeZone::tzif(name, &bytes).expect("a zone")
}

/// A time in UTC, in milliseconds since 1970.
fn utc(time: &str) -> u64 {
    let time: DateTime = time.parse().expect("a time");
    let time = time.to_zoned(TimeZone::UTC).expect("a time").timestamp();
    u64::try_from(time.as_millisecond()).expect("after 1970")
}

#[test]
fn a_period_begins_and_ends_with_the_calendar_of_its_zone() {
    use Period::{Day, Hour, Month, Week};
    for (zone_name, period, now, begin, end) in [
        ("UTC", Day, "2026-11-29T00:00:00", "2026-11-29T00:00:00", "2026-11-30T00:00:00"),
        ("UTC", Day, "2026-11-29T23:59:59.999", "2026-11-29T00:00:00", "2026-11-30T00:00:00"),
        ("UTC", Hour, "2026-11-29T23:59:59.999", "2026-11-29T23:00:00", "2026-11-30T00:00:00"),
        ("UTC", Week, "2026-11-29T12:00:00", "2026-11-23T00:00:00", "2026-11-30T00:00:00"),
        ("UTC", Week, "2026-11-30T00:00:00", "2026-11-30T00:00:00", "2026-12-07T00:00:00"),
        ("UTC", Month, "2026-12-31T23:59:59", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
        ("UTC", Month, "2028-02-29T12:00:00", "2028-02-01T00:00:00", "2028-03-01T00:00:00"),
        ("Europe/Berlin", Day, "2026-11-28T23:30:00", "2026-11-28T23:00:00", "2026-11-29T23:00:00"),
        // The days of 23 and of 25 hours.
        ("Europe/Berlin", Day, "2026-03-29T12:00:00", "2026-03-28T23:00:00", "2026-03-29T22:00:00"),
        ("Europe/Berlin", Day, "2026-10-25T12:00:00", "2026-10-24T22:00:00", "2026-10-25T23:00:00"),
        // The two hours that are called 2, and the one that is not there.
        (
            "Europe/Berlin",
            Hour,
            "2026-10-25T00:30:00",
            "2026-10-25T00:00:00",
            "2026-10-25T01:00:00",
        ),
        (
            "Europe/Berlin",
            Hour,
            "2026-10-25T01:30:00",
            "2026-10-25T01:00:00",
            "2026-10-25T02:00:00",
        ),
        (
            "Europe/Berlin",
            Hour,
            "2026-03-29T00:59:59",
            "2026-03-29T00:00:00",
            "2026-03-29T01:00:00",
        ),
        (
            "Europe/Berlin",
            Hour,
            "2026-03-29T01:00:00",
            "2026-03-29T01:00:00",
            "2026-03-29T02:00:00",
        ),
        // Half an hour is left out, or repeated.
        (
            "Australia/Lord_Howe",
            Day,
            "2026-10-04T00:00:00",
            "2026-10-03T13:30:00",
            "2026-10-04T13:00:00",
        ),
        (
            "Australia/Lord_Howe",
            Day,
            "2026-04-05T00:00:00",
            "2026-04-04T13:00:00",
            "2026-04-05T13:30:00",
        ),
        // 2011-12-30 was left out.
        ("Pacific/Apia", Day, "2011-12-30T09:59:59", "2011-12-29T10:00:00", "2011-12-30T10:00:00"),
        ("Pacific/Apia", Day, "2011-12-30T10:00:00", "2011-12-30T10:00:00", "2011-12-31T10:00:00"),
        ("Pacific/Apia", Week, "2011-12-31T00:00:00", "2011-12-26T10:00:00", "2012-01-01T10:00:00"),
        // Midnight is left out.
        (
            "America/Sao_Paulo",
            Day,
            "2018-11-04T12:00:00",
            "2018-11-04T03:00:00",
            "2018-11-05T02:00:00",
        ),
        // An hour has an hour, by the offset that is in force: of the one and a half that are
        // called 1, the second reaches back.
        (
            "Australia/Lord_Howe",
            Hour,
            "2026-04-04T14:45:00",
            "2026-04-04T14:00:00",
            "2026-04-04T15:00:00",
        ),
        (
            "Australia/Lord_Howe",
            Hour,
            "2026-04-04T15:15:00",
            "2026-04-04T14:30:00",
            "2026-04-04T15:30:00",
        ),
        (
            "Australia/Lord_Howe",
            Hour,
            "2026-10-03T15:45:00",
            "2026-10-03T15:00:00",
            "2026-10-03T16:00:00",
        ),
        // Hours do not begin with those of UTC.
        (
            "Asia/Kathmandu",
            Hour,
            "2026-11-29T12:20:00",
            "2026-11-29T12:15:00",
            "2026-11-29T13:15:00",
        ),
    ] {
        let begins = |now| period.begin_in(now, zone(zone_name));
        assert_eq!(begins(utc(now)), Some(utc(begin)), "{period:?} of {now} in {zone_name}");
        // Each of the two and a half hours at Lord Howe has its own begin.
        if zone_name != "Australia/Lord_Howe" || period != Hour {
            let (last, next) = (begins(utc(end) - 1), begins(utc(end)));
            assert_eq!(
                (last, next),
                (Some(utc(begin)), Some(utc(end))),
                "{period:?} of {now} in {zone_name}"
            );
        }
    }
    assert_eq!(Day.begin_in(u64::MAX, TimeZone::UTC), None);
}

#[test]
fn each_moment_is_in_one_period_which_does_not_depend_on_the_moment() {
    let periods = [Period::Hour, Period::Day, Period::Week, Period::Month];
    let changes = [
        ("Europe/Berlin", "2026-10-25T01:00:00"),
        ("Europe/Berlin", "2026-03-29T01:00:00"),
        ("Australia/Lord_Howe", "2026-04-04T15:00:00"),
        ("Australia/Lord_Howe", "2026-10-03T15:30:00"),
        ("America/Sao_Paulo", "2018-11-04T03:00:00"),
        ("Pacific/Apia", "2011-12-30T10:00:00"),
        ("UTC", "2026-12-31T23:00:00"),
    ];
    for (zone_name, change) in changes {
        let zone = zone(zone_name);
        for period in periods {
            let first = utc(change) - 30 * HOUR;
            let begin_of = |now| period.begin_in(now, zone.clone()).expect("a period");
            let mut current = begin_of(first);
            for now in (first..first + 60 * HOUR).step_by(5 * 60 * 1000) {
                let begin = begin_of(now);
                let what = format!(
                    "{period:?} at {now} around {change} in {zone_name}: {begin} after {current:?}"
                );
                assert!(begin <= now && begin >= current, "{what}");
                let is_whole = zone_name != "Australia/Lord_Howe" || period != Period::Hour;
                assert!(begin == current || begin == now || !is_whole, "{what}");
                current = begin;
            }
        }
    }
}

fn run(number: u32, began: u64) -> Run {
    Run { key: "k".to_owned(), number, began, rule: Rule::default(), ends: Vec::new(), task: None }
}

fn ended(run: &Run, at: u64) -> Run {
    run.with_end(at, "ended with 1", Some(1))
}

/// What a caller does: the number of the run, 0 to skip, -1 to give up.
fn next(rule: Rule, last: Last<'_>, since: u64, now: u64) -> i64 {
    match rule.next("k", last, since, now) {
        Next::Skip => 0,
        Next::Run(run) => run.number.into(),
        Next::GiveUp(_) => -1,
    }
}

#[test]
fn a_caller_does_what_the_table_says() {
    let always = Rule::default();
    let valid = Rule { valid_for: Some(Duration::from_secs(60)), ..always };
    let tries = |tries| Rule { tries: NonZeroU32::new(tries), ..always };
    let stop = Rule { interrupted: Interrupted::Stop, ..always };
    let gone = Ended::Interrupted(Stale::Absent(Absence::Gone));
    let (first, third) = (ended(&run(1, 1000), 2000), ended(&run(3, 1000), 2000));
    for (what, rule, last, since, now, expected) in [
        ("nothing", always, None, 0, 5000, 1),
        ("nothing", Rule { tries: NonZeroU32::new(1), ..stop }, None, 0, 5000, 1),
        ("done", always, Some((&first, Ended::Succeeded)), 0, u64::MAX, 0),
        ("done in this period", always, Some((&first, Ended::Succeeded)), 1000, 5000, 0),
        ("done in the period before", always, Some((&first, Ended::Succeeded)), 1001, 5000, 1),
        (
            "done in a later period, by another clock",
            always,
            Some((&first, Ended::Succeeded)),
            500,
            700,
            0,
        ),
        ("failed in the period before", tries(1), Some((&third, Ended::Failed)), 1001, 5000, 1),
        ("interrupted in the period before", stop, Some((&third, gone)), 1001, 5000, 1),
        ("just valid", valid, Some((&first, Ended::Succeeded)), 0, 62_000, 0),
        ("just not valid any more", valid, Some((&first, Ended::Succeeded)), 0, 62_001, 1),
        ("done later than now, by another clock", valid, Some((&first, Ended::Succeeded)), 0, 0, 0),
        ("failed", always, Some((&third, Ended::Failed)), 0, 5000, 4),
        ("failed, one try left", tries(4), Some((&third, Ended::Failed)), 0, 5000, 4),
        ("failed, no try left", tries(3), Some((&third, Ended::Failed)), 0, 5000, -1),
        (
            "failed, fewer tries than were made",
            tries(1),
            Some((&third, Ended::Failed)),
            0,
            5000,
            -1,
        ),
        ("failed, and interruptions count alone", stop, Some((&third, Ended::Failed)), 0, 5000, 4),
        ("interrupted", always, Some((&third, gone)), 0, 5000, 4),
        ("interrupted, to be stopped", stop, Some((&first, gone)), 0, 5000, -1),
        ("interrupted, no try left", tries(3), Some((&third, gone)), 0, 5000, -1),
        ("failed long ago", valid, Some((&third, Ended::Failed)), 0, u64::MAX, 4),
    ] {
        assert_eq!(next(rule, last, since, now), expected, "{what}");
    }
    assert_eq!(
        next(always, Some((&run(u32::MAX, 1), Ended::Failed)), 0, 5000),
        i64::from(u32::MAX)
    );
}

#[test]
fn two_hosts_with_different_clocks_run_a_key_once_a_day_between_them() {
    let daily = Rule { per: Some(Period::Day), ..Rule::default() };
    let begin = Period::Day.begin(1_800_000_000_000).expect("a day");
    let end = (1..=50)
        .find_map(|half| Some(begin + half * HOUR / 2).filter(|end| daily.since(*end) == *end))
        .expect("its end");
    let minute = 60 * 1000;
    // The one that is ahead begins the day; the one behind still has the day before, for which that
    // counts, and then this one.
    let Next::Run(ahead) = daily.next("k", None, daily.since(begin), begin) else {
        panic!("it is not run")
    };
    let done = ahead.with_end(begin + 10, "ended with 0", Some(0));
    for now in [begin - minute, begin, begin + minute, end - 1] {
        assert_eq!(next(daily, Some((&done, Ended::Succeeded)), daily.since(now), now), 0, "{now}");
    }
    assert_eq!(next(daily, Some((&done, Ended::Succeeded)), daily.since(end), end), 1);
    // The one behind runs the day before in time; the one that is ahead has a new day.
    let Next::Run(behind) = daily.next("k", None, daily.since(begin - 1), begin - 1) else {
        panic!("it is not run")
    };
    let done = behind.with_end(begin + minute, "ended with 0", Some(0));
    assert_eq!(next(daily, Some((&done, Ended::Succeeded)), daily.since(begin), begin), 1);
    // A caller of the day before that waited for it has what it came for, however late it is told.
    assert_eq!(
        next(
            daily,
            Some((&done, Ended::Succeeded)),
            daily.since(begin - minute),
            begin + 2 * minute
        ),
        0
    );
}

#[test]
fn the_state_of_a_key_is_that_by_the_rule_of_its_last_run() {
    let gone = Some(Ended::Interrupted(Stale::Absent(Absence::Gone)));
    let always = Rule::default();
    let once = Rule { tries: NonZeroU32::new(1), ..always };
    let stop = Rule { interrupted: Interrupted::Stop, ..always };
    let valid = Rule { valid_for: Some(Duration::from_secs(1)), ..always };
    let daily = Rule { per: Some(Period::Day), ..always };
    let with = |rule| Run { rule, ..ended(&run(1, 1000), 2000) };
    for (run, end, now, state) in [
        (with(always), None, 5000, State::Running),
        (with(always), Some(Ended::Succeeded), u64::MAX, State::Done),
        (with(daily), Some(Ended::Succeeded), 5000, State::Done),
        (with(daily), Some(Ended::Succeeded), 1000 + 50 * HOUR, State::Expired),
        (with(valid), Some(Ended::Succeeded), 3000, State::Done),
        (with(valid), Some(Ended::Succeeded), 3001, State::Expired),
        (with(stop), Some(Ended::Failed), 5000, State::Failed),
        (with(once), Some(Ended::Failed), 5000, State::GivenUp),
        (with(always), gone, 5000, State::Interrupted),
        (with(once), gone, 5000, State::GivenUp),
        (with(stop), gone, 5000, State::GivenUp),
    ] {
        assert_eq!(run.state(end, now), state, "{run:?} {end:?} {now}");
    }
}

#[test]
fn the_last_five_ends_are_kept_and_an_interruption_is_one_of_them() {
    let mut last = run(1, 1000);
    for number in 2..=8 {
        let Next::Run(next) = Rule::default().next(
            "k",
            Some((&last, Ended::Interrupted(Stale::Absent(Absence::Gone)))),
            0,
            1000 * number,
        ) else {
            panic!("it is not run")
        };
        last = next;
    }
    let ends: Vec<_> = last.ends.iter().map(|end| (end.number, end.at)).collect();
    assert_eq!(ends, [(3, 4000), (4, 5000), (5, 6000), (6, 7000), (7, 8000)]);
    // One that was noted when it happened is not noted again.
    let noted = last.with_end(9000, "interrupted", None);
    let Next::Run(next) =
        Rule::default().next("k", Some((&noted, Ended::Interrupted(Stale::Released))), 0, 9500)
    else {
        panic!("it is not run")
    };
    assert_eq!((next.ends, next.number), (noted.ends, 9));
    // A clock that is behind does not hide it.
    assert_eq!(
        run(1, 1000).with_end(999, "ended with 1", Some(1)).end().map(|end| (end.at, end.code)),
        Some((1000, Some(1)))
    );
    assert_eq!(run(1, 0).with_end(1, &"é".repeat(1000), None).ends[0].how.chars().count(), 80);
}
