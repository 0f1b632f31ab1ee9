//! Cron expressions against Debian's cron, with a clock that leaps over the times between
//! (`cron/clock.c`): it is to start each job at the slots of its timetable.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use jiff::Timestamp;
use jiff::civil::DateTime;
use serializer::schedule::timetable::{Timetable, zone};
use tempfile::TempDir;

use crate::support::{Ended, ended};

/// Expressions that matter where clocks are set. Debian's cron lacks ranges that wrap around, and
/// `n/step`.
const TIMES: [&str; 21] = [
    "0 * * * *",
    "*/15 * * * *",
    "*/90 * * * *",
    "30 2 * * *",
    "30 1 * * *",
    "0 0 * * *",
    "0 3 * * *",
    "0,30 2,3 * * *",
    "15,45 0-3 * * *",
    "0-59/20 1-2 * * *",
    "*/30 2 * * *",
    "*,30 2 * * *",
    "30,*/10 2 * * *",
    "0 */2 * * *",
    "30 */3 * * *",
    "20 1-23/2 * * *",
    "30 *,2 * * *",
    "0 12 * * *",
    "@hourly",
    "@daily",
    "@midnight",
];

/// Expressions that choose days.
const DAYS: [&str; 26] = [
    "5 4 * * 0",
    "5 4 * * 7",
    "5 4 * * sun",
    "0 22 * * 1-5",
    "0 22 * * mon-fri",
    "0 22 * * 5-7",
    "0 22 * * 0-7",
    "0 22 * * Sun,WED",
    "0 22 * * */2",
    "0 22 * * */7",
    "0 22 * * 1-7/2",
    "15 14 1 * *",
    "0 6 1,15 * *",
    "0 6 1-7 * 1",
    "0 6 13 * 5",
    "0 6 */2 * mon",
    "0 6 10,20 * */2",
    "0 6 1-31 * 1",
    "0 6 *,5 * 1",
    "0 6 5,* * 1",
    "0 6 * 2 *",
    "0 6 1 jan,Feb *",
    "0 6 1-10/3 1-12/3 *",
    "@weekly",
    "@monthly",
    "59 23 31 * *",
];

/// Changes of clocks: the zone, and half a day before.
const CHANGES: [(&str, &str); 12] = [
    ("Europe/Berlin", "2026-03-28T18:00"),
    ("Europe/Berlin", "2026-10-24T18:00"),
    ("America/New_York", "2026-03-07T18:00"),
    ("Australia/Lord_Howe", "2026-10-03T18:00"),
    ("Australia/Lord_Howe", "2026-04-04T18:00"),
    ("Antarctica/Troll", "2026-03-28T18:00"),
    ("Antarctica/Troll", "2026-10-24T18:00"),
    ("Africa/Cairo", "2026-04-23T18:00"),
    ("Africa/Cairo", "2026-10-29T18:00"),
    // Three hours.
    ("Antarctica/Casey", "2020-10-03T18:00"),
    ("Antarctica/Casey", "2023-03-08T18:00"),
    // A day.
    ("Pacific/Apia", "2011-12-29T18:00"),
];

pub fn clock(directory: &Path) -> PathBuf {
    let clock = directory.join("clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/alone/cron/clock.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-w", "-o"]).arg(&clock).arg(source);
    assert_eq!(ended(&mut cc).code, 0, "a C compiler builds {source}");
    clock
}

pub fn run(clock: &Path, crontab: &str, zone: &str, [begin, end]: [i64; 2]) -> Ended {
    let directory = TempDir::with_prefix("serializer-test-").expect("a temporary directory");
    let file = directory.path().join("crontab");
    fs::write(&file, crontab).expect("it can be written");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]);
    command.args(["bash", "-euc"]).arg(
        "for directory in /run /var/spool/cron /etc/cron.d; do mount -t tmpfs none $directory; done
        touch /run/none
        [ ! -e /etc/crontab ] || mount --bind /run/none /etc/crontab
        mkdir /var/spool/cron/crontabs
        install -m 600 \"$0\" /var/spool/cron/crontabs/root
        LD_PRELOAD=$1 exec cron -f 9>&1",
    );
    command.arg(file).arg(clock).env_clear().env("PATH", "/usr/bin:/usr/sbin:/bin:/sbin");
    command.env("TZ", zone).env("BEGIN", begin.to_string()).env("END", end.to_string());
    let ended = ended(&mut command);
    assert_eq!(ended.code, 0, "Debian's cron is installed: {}", ended.stderr);
    ended
}

/// Runs cron from a zone's time on, and compares the starts of jobs with their slots.
fn check(clock: &Path, expressions: &[&str], name: &str, from: &str, hours: i64) {
    let zone = zone(name).expect(name);
    let from: DateTime = from.parse().expect(from);
    let begin = from.to_zoned(zone.clone()).expect("a time").timestamp().as_second();
    let end = begin + hours * 3600;
    let line = |(number, text)| format!("{text} slot {number}\n");
    let crontab: String = expressions.iter().enumerate().map(line).collect();
    let ended = run(clock, &crontab, name, [begin, end]);
    assert!(!ended.stderr.contains("Error"), "{}", ended.stderr);
    // Cron starts a job for each fixed time in a gap: they are one slot.
    let mut started = vec![BTreeSet::new(); expressions.len()];
    for (minute, number) in ended.stdout.lines().filter_map(|line| line.split_once(" slot ")) {
        let number: usize = number.parse().expect("the number of an expression");
        started[number].insert(minute.parse::<u64>().expect("a minute") * 60_000);
    }
    assert!(started.iter().any(|slots| !slots.is_empty()), "{}", ended.stderr);
    let shown = |slot: &u64| {
        let time = Timestamp::from_second(i64::try_from(*slot / 1000).expect("a time"));
        time.expect("a time").to_zoned(zone.clone()).to_string()
    };
    let [begin, end] = [begin, end - 1].map(|time| u64::try_from(time).expect("a time") * 1000);
    for (text, started) in expressions.iter().zip(started) {
        let timetable = Timetable::cron(text, zone.clone()).expect(text);
        let slots: Vec<_> = timetable.between(begin, end, usize::MAX).iter().map(shown).collect();
        let started: Vec<_> = started.iter().map(shown).collect();
        assert_eq!(slots, started, "{text} in {name}");
    }
}

#[test]
fn debians_cron_starts_jobs_at_their_slots_where_clocks_are_set() {
    let directory = TempDir::with_prefix("serializer-test-").expect("a temporary directory");
    let clock = clock(directory.path());
    for (zone, from) in CHANGES {
        check(&clock, &TIMES, zone, from, 20);
    }
}

#[test]
fn debians_cron_starts_jobs_on_the_days_of_their_slots() {
    let directory = TempDir::with_prefix("serializer-test-").expect("a temporary directory");
    check(&clock(directory.path()), &DAYS, "UTC", "2026-01-01T00:00", 24 * 46);
}

#[test]
fn debians_cron_refuses_what_is_refused() {
    let directory = TempDir::with_prefix("serializer-test-").expect("a temporary directory");
    let clock = clock(directory.path());
    for text in [
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * 32 * *",
        "* * * 13 *",
        "* * * * 8",
        "* * * mon *",
        "* * * * tuesun",
        "* * * * wednesday",
        "+5 * * * *",
        "-5 * * * *",
        "1- * * * *",
        "1,,2 * * * *",
        "/10 * * * *",
        "*/0 * * * *",
        "*/x * * * *",
        "* * L * *",
        "* * 15W * *",
        "* * ? * *",
        "H * * * *",
        "@fortnightly",
    ] {
        let ended = run(&clock, &format!("{text} slot\n"), "UTC", [1_800_000_000, 1_800_000_120]);
        assert!(ended.stderr.contains("Error: bad "), "{text}: {}", ended.stderr);
        assert!(Timetable::cron(text, zone("UTC").expect("UTC")).is_err(), "{text}");
    }
}
