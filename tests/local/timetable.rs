//! When a task is due: cron expressions in their zones, also where clocks are set, and intervals.

use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serializer::schedule::timetable::{Timetable, zone};

use crate::support::ended;
use crate::support::namespace::in_pid_namespaces;

const BERLIN: &str = "Europe/Berlin";
const LORD_HOWE: &str = "Australia/Lord_Howe";
const TROLL: &str = "Antarctica/Troll";
const APIA: &str = "Pacific/Apia";

fn cron(text: &str, zone_name: &str) -> Timetable {
    Timetable::cron(text, zone(zone_name).expect(zone_name)).expect(text)
}

/// Milliseconds of a time such as `2026-03-29 02:30 +0100`.
pub fn time(text: &str) -> u64 {
    let time = Timestamp::strptime("%Y-%m-%d %H:%M %z", text).expect(text);
    u64::try_from(time.as_millisecond()).expect("a time after 1970")
}

/// The next slots in the expression's zone, from the begin of a UTC day on, as `29 02:30 +01`.
fn next(text: &str, zone_name: &str, day: &str, count: usize) -> Vec<String> {
    let (timetable, zone) = (cron(text, zone_name), zone(zone_name).expect(zone_name));
    let begin = time(&format!("{day} 00:00 +0000"));
    let slots = std::iter::successors(timetable.after(begin - 1), |slot| timetable.after(*slot));
    let shown = |slot| {
        let slot = i64::try_from(slot).ok().and_then(|slot| Timestamp::from_millisecond(slot).ok());
        slot.expect("a time").to_zoned(zone.clone()).strftime("%d %H:%M %:::z").to_string()
    };
    slots.take(count).map(shown).collect()
}

#[test]
fn expressions_mean_what_they_mean_in_cron() {
    // From Thursday, 2026-01-01, on.
    let cases: &[(&str, &[&str])] = &[
        ("*/20 * * * *", &["01 00:00", "01 00:20", "01 00:40", "01 01:00"]),
        ("5/25 0 * * *", &["01 00:05", "01 00:30", "01 00:55", "02 00:05"]),
        ("7-20/6,59 0 * * *", &["01 00:07", "01 00:13", "01 00:19", "01 00:59", "02 00:07"]),
        ("0 22-2/2 * * *", &["01 00:00", "01 02:00", "01 22:00", "02 00:00"]),
        ("0 0 * * fri-mon", &["02 00:00", "03 00:00", "04 00:00", "05 00:00", "09 00:00"]),
        ("0 0 * * 5-0", &["02 00:00", "03 00:00", "04 00:00", "09 00:00"]),
        ("0 0 * * 7", &["04 00:00", "11 00:00"]),
        ("0 0 * * 7-2", &["04 00:00", "05 00:00", "06 00:00", "11 00:00"]),
        ("0 0 * * SUN,Wed", &["04 00:00", "07 00:00"]),
        ("0 0 30-2 dec-Jan *", &["01 00:00", "02 00:00", "30 00:00", "31 00:00", "01 00:00"]),
        ("0 0 5 FEB,mar *", &["05 00:00", "05 00:00"]),
        ("05 09 * * *", &["01 09:05"]),
        ("\t0  0 * *   * ", &["01 00:00", "02 00:00"]),
        // Either day, if neither field begins with a star; otherwise both.
        ("0 0 13 * 5", &["02 00:00", "09 00:00", "13 00:00", "16 00:00"]),
        ("0 0 */2 * mon", &["05 00:00", "19 00:00", "09 00:00", "23 00:00"]),
        ("0 0 10,20 * */2", &["10 00:00", "20 00:00", "10 00:00", "10 00:00"]),
        ("0 0 1-31 * 1", &["01 00:00", "02 00:00"]),
        ("@hourly", &["01 00:00", "01 01:00"]),
        ("@Daily", &["01 00:00", "02 00:00"]),
        ("@midnight", &["01 00:00", "02 00:00"]),
        ("@WEEKLY", &["04 00:00", "11 00:00"]),
        ("@monthly", &["01 00:00", "01 00:00"]),
    ];
    for (text, expected) in cases {
        let expected: Vec<_> = expected.iter().map(|slot| format!("{slot} +00")).collect();
        assert_eq!(next(text, "UTC", "2026-01-01", expected.len()), expected, "{text}");
    }
    let begin_of = |year| time(&format!("{year}-01-01 00:00 +0000"));
    for text in ["@yearly", "@annually", "0 0 1 1 *"] {
        assert_eq!(cron(text, "UTC").after(begin_of(2026)), Some(begin_of(2027)), "{text}");
    }
}

#[test]
fn what_cron_does_not_know_is_refused_with_a_reason() {
    for (text, reason) in [
        ("", "five fields are required (minute"),
        ("0 0 * *", "not 4"),
        ("0 0 0 * * *", "seconds and years are unsupported), not 6"),
        ("60 * * * *", "`60` is not a minute (0-59)"),
        ("* 24 * * *", "`24` is not an hour (0-23)"),
        ("* * 0 * *", "`0` is not a day of the month (1-31)"),
        ("* * * 13 *", "`13` is not a month (1-12 or jan-dec)"),
        ("* * * mon *", "`mon` is not a month"),
        ("* * * * 8", "`8` is not a day of the week (0-7 or sun-sat)"),
        ("* * * * wednesday", "`wednesday` is not a day of the week"),
        ("* * * * tuesun", "`tuesun` is not"),
        ("+5 * * * *", "`+5` is not a minute (0-59)"),
        ("-5 * * * *", "`-5` lacks a value"),
        ("1,,2 * * * *", "`1,,2` lacks a value"),
        ("/10 * * * *", "`/10` lacks a value"),
        ("1- * * * *", "`1-` lacks a value"),
        ("1-2-3 * * * *", "`2-3` is not a minute"),
        ("*-5 * * * *", "`*` is not a minute"),
        ("*/0 * * * *", "the step of `*/0` is not a number above 0"),
        ("*/x * * * *", "the step of `*/x` is not a number above 0"),
        ("*/2/3 * * * *", "the step of `*/2/3` is not a number above 0"),
        ("0 0 L * *", "`L` is not a day of the month (1-31)"),
        ("0 0 15W * *", "is not a"),
        ("0 0 lw * *", "is not a"),
        ("0 0 * * friL", "is not a"),
        ("0 0 * * 5#2", "is not a"),
        ("0 0 ? * *", "is not a"),
        ("H * * * *", "is not a"),
        ("0~30 * * * *", "is not a"),
        ("0 0 1 * +1", "is not a"),
        ("0 0 30 2 *", "it never happens: no such day exists"),
        ("0 0 31 4,6,9,11 *", "it never happens"),
        ("@reboot", "`@reboot` is not a time; the aliases are @hourly, @daily"),
        ("@once", "`@once` is not a time"),
        ("@every 5m", "`@every 5m` is not a time"),
        ("\u{1b}[31m * * * *", "` [31m` is not a minute"),
    ] {
        let refused = Timetable::cron(text, TimeZone::UTC).expect_err(text);
        assert!(refused.contains(reason), "{text:?}: {refused}");
    }
    // Every 28 years: not within the horizon of five, yet it happens.
    let sunday = cron("0 0 29-29/1 2 *", "UTC");
    assert_eq!(sunday.after(time("2024-02-29 00:00 +0000")), Some(time("2028-02-29 00:00 +0000")));
    assert_eq!(sunday.after(time("2096-02-29 00:00 +0000")), None);
}

#[test]
fn fixed_times_are_due_once_where_clocks_are_set_and_others_by_real_time() {
    let cases: &[(&str, &str, &str, &str)] = &[
        ("30 2 * * *", BERLIN, "2026-03-28", "28 02:30 +01, 29 03:00 +02, 30 02:30 +02"),
        ("15,45 2,3 29 * *", BERLIN, "2026-03-29", "29 03:00 +02, 29 03:15 +02, 29 03:45 +02"),
        ("0 2,3 * * *", BERLIN, "2026-03-29", "29 03:00 +02, 30 02:00 +02"),
        ("30 */2 * * *", BERLIN, "2026-03-29", "29 04:30 +02, 29 06:30 +02"),
        ("*/30 2 * * *", BERLIN, "2026-03-29", "30 02:00 +02, 30 02:30 +02"),
        ("0 0-23 * * *", BERLIN, "2026-03-29", "29 01:00 +01, 29 03:00 +02, 29 04:00 +02"),
        ("30 2 * * *", BERLIN, "2026-10-25", "25 02:30 +02, 26 02:30 +01"),
        ("0-59/30 2 * * *", BERLIN, "2026-10-25", "25 02:00 +02, 25 02:30 +02, 26 02:00 +01"),
        ("30 2,3 * * *", BERLIN, "2026-10-25", "25 02:30 +02, 25 03:30 +01, 26 02:30 +01"),
        ("30 * * * *", BERLIN, "2026-10-25", "25 02:30 +02, 25 02:30 +01, 25 03:30 +01"),
        ("*/30 2 * * *", BERLIN, "2026-10-25", "25 02:00 +02, 25 02:30 +02, 25 02:00 +01"),
        // Midnight is in the gap.
        ("@daily", "Africa/Cairo", "2026-04-23", "24 01:00 +03, 25 00:00 +03"),
        ("0 0 * * fri", "Africa/Cairo", "2026-04-23", "24 01:00 +03, 01 00:00 +03"),
        // Half an hour.
        ("10,40 2 * * *", LORD_HOWE, "2026-10-03", "04 02:30 +11, 04 02:40 +11, 05 02:10 +11"),
        ("45 1 * * *", LORD_HOWE, "2026-04-04", "05 01:45 +11, 06 01:45 +10:30"),
        ("*/30 1 * * *", LORD_HOWE, "2026-04-04", "05 01:00 +11, 05 01:30 +11, 05 01:30 +10:30"),
        // Two hours.
        ("30 1,2 * * *", TROLL, "2026-03-29", "29 03:00 +02, 30 01:30 +02"),
        ("30 1,2 25 * *", TROLL, "2026-10-24", "25 01:30 +02, 25 02:30 +02, 25 01:30 +00"),
        ("30 * * * *", TROLL, "2026-10-25", "25 02:30 +02, 25 01:30 +00, 25 02:30 +00"),
        // The whole of the 30th was left out: a correction.
        ("0 12 * * *", APIA, "2011-12-29", "29 12:00 -10, 31 12:00 +14"),
        ("0 12 30 12 *", APIA, "2011-12-29", "30 12:00 +14"),
        ("0 * * * *", APIA, "2011-12-30", "29 14:00 -10"),
        ("0 23,0 * * *", APIA, "2011-12-30", "29 23:00 -10, 31 00:00 +14"),
        // Three hours, which is a correction forwards only.
        ("0 2 * * *", "Antarctica/Casey", "2020-10-03", "05 02:00 +11"),
        ("0 1 * * *", "Antarctica/Casey", "2023-03-08", "09 01:00 +11, 10 01:00 +08"),
        ("30 2 * * *", "CET-1CEST,M3.5.0,M10.5.0/3", "2026-03-28", "28 02:30 +01, 29 03:00 +02"),
    ];
    for (text, zone_name, day, expected) in cases {
        let slots = next(text, zone_name, day, expected.split(", ").count());
        assert_eq!(slots.join(", "), *expected, "{text} in {zone_name}");
    }
    // Nothing is due in an empty time at the end of a gap.
    let end = time("2026-03-29 03:00 +0200");
    assert_eq!(cron("30 2 * * *", BERLIN).last(end, end), Some(end));
    assert_eq!(cron("30 2 * * *", BERLIN).last(end, end - 1), None);
    assert_eq!(cron("30 2 * * *", BERLIN).last(end + 1, end + 1), None);
}

#[test]
fn of_many_missed_slots_the_last_ones_are_found_and_all_are_counted() {
    let (begin, end) = (time("2026-03-25 00:00 +0000"), time("2026-03-31 22:40 +0000"));
    let minutely = cron("* * * * *", BERLIN);
    let all = minutely.between(begin, end, usize::MAX);
    assert_eq!(all.len(), 10_000);
    assert_eq!((all[0], all[9_999]), (begin + 60_000, end));
    assert!(all.iter().is_sorted_by(|a, b| a < b));
    assert_eq!(minutely.between(begin, end, 100), all[9_900..]);
    assert!(minutely.between(begin, end, 0).is_empty());
    let count = |most| minutely.count(begin, end, most);
    assert_eq!([u64::MAX, 10_000, 7, 0].map(count), [10_000, 10_000, 7, 0]);
    let year_ago = time("2025-03-31 22:40 +0000");
    assert_eq!(minutely.last(year_ago, end + 59_999), Some(end));
    assert_eq!(minutely.count(year_ago, end, u64::MAX), 365 * 24 * 60);
    // `begin` is left out, `end` is not; `since` is not left out.
    let daily = cron("@daily", "UTC");
    let day = |number: u64| begin + number * 86_400_000;
    assert_eq!(daily.between(day(0), day(2), 9), [day(1), day(2)]);
    assert_eq!(daily.count(day(0), day(2), 9), 2);
    assert_eq!(daily.last(day(1), day(2) - 1), Some(day(1)));
    assert_eq!(daily.last(day(1) + 1, day(2) - 1), None);
    assert!(daily.between(day(2), day(1), 9).is_empty());
    assert_eq!(daily.last(day(2), day(1)), None);
}

#[test]
fn an_interval_is_due_at_its_multiples() {
    let every = Timetable::Every(Duration::from_millis(1500));
    let after = |time| every.after(time);
    assert_eq!([0, 1, 1499, 1500].map(after), [1500, 1500, 1500, 3000].map(Some));
    assert_eq!(every.last(0, 1499), Some(0));
    assert_eq!(every.last(1, 1499), None);
    assert_eq!(every.last(1500, 4500), Some(4500));
    assert_eq!(every.between(1500, 6000, 2), [4500, 6000]);
    assert_eq!(every.count(1500, 6000, 9), 3);
    let quarters = Timetable::Every(Duration::from_secs(900));
    let [now, due] = ["07", "15"].map(|minute| time(&format!("2026-01-01 10:{minute} +0000")));
    assert_eq!(quarters.after(now), Some(due));
}

#[test]
fn times_at_the_ends_of_time_are_answered() {
    for timetable in [cron("* * * * *", BERLIN), Timetable::Every(Duration::from_secs(60))] {
        assert_eq!(timetable.last(0, 0), Some(0));
        assert_eq!(timetable.after(0), Some(60_000));
    }
    let minutely = cron("* * * * *", "Asia/Tokyo");
    assert_eq!(minutely.after(u64::MAX), None);
    assert!(minutely.last(0, u64::MAX).is_some());
    assert_eq!(Timetable::Every(Duration::MAX).after(0), None);
    assert_eq!(Timetable::Every(Duration::ZERO).after(5), Some(6));
}

#[test]
fn a_zone_is_found_by_its_name_or_rule() {
    for name in ["UTC", BERLIN, "EST5EDT", "CET-1CEST,M3.5.0,M10.5.0/3"] {
        assert!(zone(name).is_ok(), "{name}");
    }
    for name in ["", "Mars/Olympus", "../../../etc/passwd", "Europe", "zone.tab"] {
        let refused = zone(name).expect_err(name);
        assert!(refused.starts_with(&format!("`{name}` is not a time zone")), "{refused}");
    }
}

in_pid_namespaces! {
    a_machine_without_time_zones_says_so: {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "none", "/usr/share/zoneinfo"]);
        assert_eq!(ended(&mut mount).code, 0);
        let refused = zone(BERLIN).expect_err("there are none");
        assert!(refused.contains("has no time zones; install tzdata, or use UTC"), "{refused}");
        assert!(zone("UTC").is_ok());
    };
}
