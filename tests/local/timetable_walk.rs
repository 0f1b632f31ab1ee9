//! Cron expressions against a walk over the minutes, in which each rule is applied naively.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use jiff::civil::{DateTime, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::{collection, option, prop_assert, prop_assert_eq, sample};
use serializer::schedule::timetable::{Timetable, zone};

use crate::timetable::time;

/// The system's time zones.
const ZONES: &str = "/usr/share/zoneinfo";

const HOUR: i64 = 60 * 60;

/// Milliseconds of seconds.
fn ms(seconds: i64) -> u64 {
    u64::try_from(seconds).expect("a time after 1970") * 1000
}

/// What a wall clock shows when the task is due.
type Matches = Box<dyn Fn(&DateTime) -> bool>;

/// An expression, and its meaning.
struct Rule {
    text: String,
    is_fixed: bool,
    matches: Matches,
}

/// Those that matter where clocks are set.
fn rules() -> [Rule; 7] {
    let at = |hour, minute| move |wall: &DateTime| (wall.hour(), wall.minute()) == (hour, minute);
    let rule = |text: &str, is_fixed, matches| Rule { text: text.to_owned(), is_fixed, matches };
    let leap_day = move |wall: &DateTime| (wall.month(), wall.day()) == (2, 29) && at(3, 0)(wall);
    let sunday = move |wall: &DateTime| wall.weekday() == Weekday::Sunday && at(0, 0)(wall);
    let early = |wall: &DateTime| wall.hour() < 4 && [0, 20].contains(&wall.minute());
    [
        rule("30 2 * * *", true, Box::new(at(2, 30))),
        rule("30 1 * * *", true, Box::new(at(1, 30))),
        rule("0,20 0-3 * * *", true, Box::new(early)),
        rule("0 * * * *", false, Box::new(|wall| wall.minute() == 0)),
        rule("*/15 * * * *", false, Box::new(|wall| wall.minute() % 15 == 0)),
        rule("0 0 * * 0", true, Box::new(sunday)),
        rule("0 3 29 2 *", true, Box::new(leap_day)),
    ]
}

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
            let found = timetable.after(time).filter(|slot| *slot <= end);
            assert_eq!(found, after, "{context} after {time}");
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
    let mut directories = vec![Path::new(ZONES).to_owned()];
    let (mut zones, mut seen) = (Vec::new(), HashSet::new());
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("time zones: tzdata is installed").flatten() {
            let path = entry.path();
            let name = path.strip_prefix(ZONES).expect("a path below").display().to_string();
            if path.is_dir() {
                let is_copy = ["posix", "right"].contains(&name.as_str());
                directories.extend(Some(path).filter(|_| !is_copy));
                continue;
            }
            let bytes = fs::read(path).ok().filter(|bytes| bytes.starts_with(b"TZif"));
            if bytes.is_some_and(|bytes| seen.insert(bytes)) {
                zones.push(name);
            }
        }
    }
    zones
}

#[test]
fn slots_agree_with_a_walk_over_the_minutes_in_every_zone_from_2026_to_2030() {
    let (begin, end) = (seconds("2026-01-01 00:00 +0000"), seconds("2031-01-01 00:00 +0000"));
    let leap_day = seconds("2028-02-29 12:00 +0000");
    let zones = zones();
    assert!(zones.len() > 250, "{zones:?}");
    let (rules, mut changes) = (rules(), 0);
    for name in zones {
        let zone = zone(&name).expect(&name);
        let timetable = |rule: &Rule| Timetable::cron(&rule.text, zone.clone()).expect(&rule.text);
        let timetables: Vec<_> = rules.iter().map(timetable).collect();
        let check = |middle, hours| {
            let minutes = minutes_around(&zone, middle, hours);
            for (rule, timetable) in rules.iter().zip(&timetables) {
                rule.check(timetable, &minutes, &name);
            }
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

/// A time such as `2026-03-29 02:30 +0100` in seconds.
fn seconds(text: &str) -> i64 {
    i64::try_from(time(text) / 1000).expect("a time")
}

/// A field's text and its values, from which the value of 7 is left out for days of the week.
type Field = (String, Vec<i8>);

/// Fields of these values, of which the last `extra` ones are other names of the first ones.
fn fields(lowest: i8, highest: i8, extra: i8) -> impl Strategy<Value = Field> {
    let count = highest - lowest + 1 - extra;
    let step = option::of(1..9_i8);
    let star = Just(("*".to_owned(), lowest, highest)).boxed();
    let range = (lowest..=highest - extra, lowest..=highest - extra);
    let range = range.prop_map(|(first, last)| (format!("{first}-{last}"), first, last));
    let value = (lowest..=highest - extra).prop_map(move |first| (first.to_string(), first, -1));
    let part =
        (prop_oneof![star, range, value], step).prop_map(move |((text, first, last), step)| {
            let last = match (last, step) {
                (-1, None) => first,
                (-1, Some(_)) => highest,
                _ => last,
            };
            let mut values = Vec::new();
            let mut at = first;
            for number in 0.. {
                if number % step.unwrap_or(1) == 0 {
                    values.push((at - lowest) % count + lowest);
                }
                if at == last {
                    break;
                }
                at = if first > last && at == highest - extra { lowest } else { at + 1 };
            }
            (step.map_or(text.clone(), |step| format!("{text}/{step}")), values)
        });
    collection::vec(part, 1..3).prop_map(|parts| {
        let (texts, values): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        (texts.join(","), values.concat())
    })
}

/// The fields of expressions with days and months that are often all.
fn expressions() -> impl Strategy<Value = [Field; 5]> {
    let all = |lowest, highest| Just(("*".to_owned(), (lowest..=highest).collect()));
    let days = prop_oneof![all(1, 31), fields(1, 31, 0)];
    let months = prop_oneof![3 => all(1, 12), 1 => fields(1, 12, 0)];
    let weekdays = prop_oneof![all(0, 6), fields(0, 7, 1)];
    let fields = (fields(0, 59, 0), fields(0, 23, 0), days, months, weekdays);
    fields.prop_map(<[Field; 5]>::from)
}

/// The expression of these fields.
fn rule_of(fields: [Field; 5]) -> Rule {
    let text = fields.each_ref().map(|(text, _)| text.as_str()).join(" ");
    let stars = fields.each_ref().map(|(text, _)| text.starts_with('*'));
    let matches = move |wall: &DateTime| {
        let weekday = wall.weekday().to_sunday_zero_offset();
        let shown = [wall.minute(), wall.hour(), wall.day(), wall.month(), weekday];
        let has = |field: usize| fields[field].1.contains(&shown[field]);
        let is_day = if stars[2] || stars[4] { has(2) && has(4) } else { has(2) || has(4) };
        has(0) && has(1) && has(3) && is_day
    };
    Rule { text, is_fixed: !stars[0] && !stars[1], matches: Box::new(matches) }
}

const SOME_ZONES: [&str; 5] = [
    "UTC",
    "Europe/Berlin",
    // At midnight.
    "Africa/Cairo",
    // Half an hour.
    "Australia/Lord_Howe",
    // Two hours.
    "Antarctica/Troll",
];

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(96)
    })]

    #[test]
    fn any_expression_agrees_with_a_walk_over_the_minutes(
        fields in expressions(),
        name in sample::select(&SOME_ZONES[..]),
        (day, second) in (0..5 * 365_i64, 0..24 * HOUR),
        is_at_change in any::<bool>(),
    ) {
        let zone = zone(name).expect(name);
        let is_late = fields[2].1.iter().all(|day| *day > 29);
        let rule = rule_of(fields);
        let timetable = match Timetable::cron(&rule.text, zone.clone()) {
            Ok(timetable) => timetable,
            Err(why) => {
                prop_assert!(why.contains("never happens"), "{}: {}", rule.text, why);
                prop_assert!(is_late, "{}", rule.text);
                return Ok(());
            }
        };
        // A walk cannot begin at a time that clocks show twice. In these zones, noon in UTC is not.
        let begin = seconds("2026-01-01 12:00 +0000") + day * 24 * HOUR;
        let change = zone.following(Timestamp::from_second(begin).expect("a time")).next();
        let change = change.filter(|_| is_at_change).map(|change| change.timestamp().as_second());
        rule.check(&timetable, &minutes_around(&zone, change.unwrap_or(begin), 24), name);

        let mut at = ms(begin + second);
        for _ in 0..20 {
            let Some(slot) = timetable.after(at) else { break };
            prop_assert!(slot > at);
            prop_assert_eq!(timetable.last(at, slot), Some(slot));
            prop_assert_eq!(timetable.last(at + 1, slot - 1), None);
            at = slot;
        }
    }
}
