//! When a task is due: cron expressions in their zones, also where clocks are set, and intervals.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use jiff::civil::{DateTime, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serializer::schedule::timetable::{Timetable, zone};

/// The system's time zones.
const ZONES: &str = "/usr/share/zoneinfo";

const HOUR: i64 = 60 * 60;

fn cron(text: &str, zone_name: &str) -> Timetable {
    Timetable::cron(text, zone(zone_name).expect(zone_name)).expect(text)
}

/// Milliseconds of a time such as `2026-03-29 02:30 +0100`.
fn time(text: &str) -> u64 {
    let time = Timestamp::strptime("%Y-%m-%d %H:%M %z", text).expect(text);
    u64::try_from(time.as_millisecond()).expect("a time after 1970")
}

/// Milliseconds of seconds.
fn ms(seconds: i64) -> u64 {
    u64::try_from(seconds).expect("a time after 1970") * 1000
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
    let next_year = time("2027-01-01 00:00 +0000");
    for text in ["@yearly", "@annually", "0 0 1 1 *"] {
        assert_eq!(cron(text, "UTC").after(time("2026-01-01 00:00 +0000")), Some(next_year), "{text}");
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
        ("+5 * * * *", "`+5` is unsupported"),
        ("-5 * * * *", "`-5` lacks a value"),
        ("1,,2 * * * *", "`1,,2` lacks a value"),
        ("/10 * * * *", "`/10` lacks a value"),
        ("1- * * * *", "`1-` lacks a value"),
        ("1-2-3 * * * *", "`2-3` is not a minute"),
        ("*-5 * * * *", "`*` is not a minute"),
        ("*/0 * * * *", "the step of `*/0` is not a number above 0"),
        ("*/x * * * *", "the step of `*/x` is not a number above 0"),
        ("*/2/3 * * * *", "the step of `*/2/3` is not a number above 0"),
        ("0 0 L * *", "`L` is unsupported: cron does not know `L` (the last day)"),
        ("0 0 15W * *", "cron does not know `W` (the nearest weekday)"),
        ("0 0 lw * *", "cron does not know `L`"),
        ("0 0 * * friL", "cron does not know `L`"),
        ("0 0 * * 5#2", "cron does not know `#` (the nth day of the week in a month)"),
        ("0 0 ? * *", "cron does not know `?` (any day)"),
        ("H * * * *", "cron does not know `H` (a value by hash)"),
        ("0~30 * * * *", "cron does not know `~` (a random value)"),
        ("0 0 1 * +1", "cron does not know `+` (both kinds of days)"),
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
    let cases: &[(&str, &str, &str, &[&str])] = &[
        ("30 2 * * *", "Europe/Berlin", "2026-03-28", &["28 02:30 +01", "29 03:00 +02", "30 02:30 +02"]),
        ("15,45 2,3 29 * *", "Europe/Berlin", "2026-03-29", &["29 03:00 +02", "29 03:15 +02", "29 03:45 +02"]),
        ("0 2,3 * * *", "Europe/Berlin", "2026-03-29", &["29 03:00 +02", "30 02:00 +02"]),
        ("30 */2 * * *", "Europe/Berlin", "2026-03-29", &["29 04:30 +02", "29 06:30 +02"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-03-29", &["30 02:00 +02", "30 02:30 +02"]),
        ("0 0-23 * * *", "Europe/Berlin", "2026-03-29", &["29 01:00 +01", "29 03:00 +02", "29 04:00 +02"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25", &["25 02:30 +02", "26 02:30 +01"]),
        ("0-59/30 2 * * *", "Europe/Berlin", "2026-10-25", &["25 02:00 +02", "25 02:30 +02", "26 02:00 +01"]),
        ("30 2,3 * * *", "Europe/Berlin", "2026-10-25", &["25 02:30 +02", "25 03:30 +01", "26 02:30 +01"]),
        ("30 * * * *", "Europe/Berlin", "2026-10-25", &["25 02:30 +02", "25 02:30 +01", "25 03:30 +01"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-10-25", &["25 02:00 +02", "25 02:30 +02", "25 02:00 +01", "25 02:30 +01"]),
        // Midnight is in the gap.
        ("@daily", "Africa/Cairo", "2026-04-23", &["24 01:00 +03", "25 00:00 +03"]),
        ("0 0 * * fri", "Africa/Cairo", "2026-04-23", &["24 01:00 +03", "01 00:00 +03"]),
        // Half an hour.
        ("10,40 2 * * *", "Australia/Lord_Howe", "2026-10-03", &["04 02:30 +11", "04 02:40 +11", "05 02:10 +11"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04", &["05 01:45 +11", "06 01:45 +10:30"]),
        (
            "*/15 1 * * *",
            "Australia/Lord_Howe",
            "2026-04-04",
            &["05 01:00 +11", "05 01:15 +11", "05 01:30 +11", "05 01:45 +11", "05 01:30 +10:30", "05 01:45 +10:30"],
        ),
        // Two hours.
        ("30 1,2 * * *", "Antarctica/Troll", "2026-03-29", &["29 03:00 +02", "30 01:30 +02"]),
        ("30 1,2 * * *", "Antarctica/Troll", "2026-10-24", &["24 02:30 +02", "25 01:30 +02", "25 02:30 +02", "26 01:30 +00"]),
        ("30 * * * *", "Antarctica/Troll", "2026-10-25", &["25 02:30 +02", "25 01:30 +00", "25 02:30 +00"]),
        // The whole of the 30th was left out: a correction.
        ("0 12 * * *", "Pacific/Apia", "2011-12-29", &["29 12:00 -10", "31 12:00 +14"]),
        ("0 12 30 12 *", "Pacific/Apia", "2011-12-29", &["30 12:00 +14"]),
        ("0 * * * *", "Pacific/Apia", "2011-12-30", &["29 14:00 -10"]),
        ("0 23,0 * * *", "Pacific/Apia", "2011-12-30", &["29 23:00 -10", "31 00:00 +14"]),
        // Three hours, which is a correction forwards only.
        ("0 2 * * *", "Antarctica/Casey", "2020-10-03", &["05 02:00 +11"]),
        ("0 1 * * *", "Antarctica/Casey", "2023-03-08", &["09 01:00 +11", "10 01:00 +08"]),
        ("30 1 * * *", "CET-1CEST,M3.5.0,M10.5.0/3", "2026-03-28", &["28 01:30 +01", "29 01:30 +01", "30 01:30 +02"]),
    ];
    for (text, zone_name, day, expected) in cases {
        assert_eq!(next(text, zone_name, day, expected.len()), *expected, "{text} in {zone_name}");
    }
}

/// A rule of its own kind: what [`Timetable`] says is compared with what it says minute by minute.
struct Rule {
    text: &'static str,
    is_fixed: bool,
    matches: fn(&DateTime) -> bool,
}

const RULES: [Rule; 7] = [
    Rule { text: "30 2 * * *", is_fixed: true, matches: |wall| (wall.hour(), wall.minute()) == (2, 30) },
    Rule { text: "30 1 * * *", is_fixed: true, matches: |wall| (wall.hour(), wall.minute()) == (1, 30) },
    Rule { text: "0,20 0-3 * * *", is_fixed: true, matches: |wall| wall.hour() < 4 && [0, 20].contains(&wall.minute()) },
    Rule { text: "0 * * * *", is_fixed: false, matches: |wall| wall.minute() == 0 },
    Rule { text: "*/15 * * * *", is_fixed: false, matches: |wall| wall.minute() % 15 == 0 },
    Rule {
        text: "0 0 * * 0",
        is_fixed: true,
        matches: |wall| (wall.hour(), wall.minute()) == (0, 0) && wall.weekday() == Weekday::Sunday,
    },
    Rule {
        text: "0 3 29 2 *",
        is_fixed: true,
        matches: |wall| (wall.month(), wall.day(), wall.hour(), wall.minute()) == (2, 29, 3, 0),
    },
];

impl Rule {
    /// The slots among these minutes, each with what clocks show then, as Vixie's cron finds them:
    /// it goes by what clocks have shown before.
    fn slots(&self, minutes: &[(u64, DateTime)]) -> Vec<u64> {
        let mut shown = minutes[0].1 - 1.minute();
        let is_slot = |(_, wall): &&(u64, DateTime)| {
            let ahead = wall.duration_since(shown).as_mins();
            if !self.is_fixed {
                return (self.matches)(wall);
            }
            if (-179..=0).contains(&ahead) {
                return false;
            }
            shown = *wall;
            let late = if ahead <= 180 { ahead } else { 1 };
            (self.matches)(wall) || (1..late).any(|ago| (self.matches)(&(*wall - ago.minutes())))
        };
        minutes.iter().filter(is_slot).map(|(slot, _)| *slot).collect()
    }

    /// Compares the timetable with the slots among the minutes of `begin` to `end`, in seconds.
    fn check(&self, timetable: &Timetable, minutes: &[(u64, DateTime)], context: &str) {
        let slots = self.slots(minutes);
        let (begin, end) = (minutes[0].0, minutes[minutes.len() - 1].0);
        let context = format!("{} in {context}", self.text);
        assert_eq!(timetable.between(begin - 1, end, usize::MAX), slots, "{context}");
        // At the middle, clocks are set.
        let middle = minutes[minutes.len() / 2].0;
        for time in [middle - 1, middle, middle + 3_600_000] {
            let after = slots.iter().copied().find(|slot| *slot > time);
            assert_eq!(timetable.after(time).filter(|slot| *slot <= end), after, "{context} after {time}");
            let last = slots.iter().copied().rfind(|slot| *slot <= time);
            assert_eq!(timetable.last(begin, time), last, "{context} until {time}");
        }
    }
}

/// The minutes up to `hours` before and after a time in seconds, and what clocks show then.
fn minutes_around(zone: &TimeZone, middle: i64, hours: i64) -> Vec<(u64, DateTime)> {
    let minutes = (middle - hours * HOUR..middle + hours * HOUR).step_by(60);
    let shown = |time| (ms(time), zone.to_datetime(Timestamp::from_second(time).expect("a time")));
    minutes.map(shown).collect()
}

/// The names of the system's zones, one for each content.
fn zones() -> Vec<String> {
    let (mut directories, mut zones, mut seen) = (vec![Path::new(ZONES).to_owned()], Vec::new(), HashSet::new());
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("time zones: tzdata is installed").flatten() {
            let (path, name) = (entry.path(), entry.path());
            let name = name.strip_prefix(ZONES).expect("a path below").to_str().expect("UTF-8").to_owned();
            if path.is_dir() {
                directories.extend(Some(path).filter(|_| !["posix", "right"].contains(&name.as_str())));
            } else if let Some(bytes) = fs::read(path).ok().filter(|bytes| bytes.starts_with(b"TZif"))
                && seen.insert(bytes)
            {
                zones.push(name);
            }
        }
    }
    zones
}

#[test]
fn slots_agree_with_a_walk_over_the_minutes_in_every_zone_from_2026_to_2030() {
    let day = |text| i64::try_from(time(text) / 1000).expect("a time");
    let (begin, end) = (day("2026-01-01 00:00 +0000"), day("2031-01-01 00:00 +0000"));
    let leap_day = day("2028-02-29 12:00 +0000");
    let zones = zones();
    assert!(zones.len() > 250, "{zones:?}");
    let mut changes = 0;
    for name in zones {
        let zone = zone(&name).expect(&name);
        let timetables = RULES.map(|rule| Timetable::cron(rule.text, zone.clone()).expect(rule.text));
        let check = |middle, hours| {
            let minutes = minutes_around(&zone, middle, hours);
            let context = format!("{name} around {}", Timestamp::from_second(middle).expect("a time"));
            RULES.iter().zip(&timetables).for_each(|(rule, timetable)| rule.check(timetable, &minutes, &context));
        };
        check(leap_day, 24);
        for change in zone.following(Timestamp::from_second(begin).expect("a time")) {
            let middle = change.timestamp().as_second();
            if middle >= end {
                break;
            }
            changes += 1;
            check(middle, 6);
        }
    }
    assert!(changes > 500, "{changes}");
}
