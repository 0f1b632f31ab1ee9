//! Definitions of tasks: what the files say, and what is wrong with them.

mod crontabs;
mod schedules;

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use serializer::record::run::Interrupted;
use serializer::schedule::definition::{Catalog, CatchUp, Definition, Overlap};
use serializer::schedule::timetable::Timetable;
use serializer::schedule::toml_file;

const FILE: &str = "/etc/tasks.toml";

/// The tasks of a TOML file with this text.
fn toml(text: &str) -> Result<Catalog, String> {
    toml_file::parse(text, Path::new(FILE))
}

/// The task of a TOML file that has one, called `a`.
fn toml_task(keys: &str) -> Definition {
    let catalog = toml(&format!("[tasks.a]\n{keys}"));
    catalog.unwrap_or_else(|error| panic!("{keys}: {error}")).tasks.remove("a").expect("the task")
}

fn zone_of(definition: &Definition) -> String {
    match &definition.timetable {
        Some(Timetable::Cron(_, zone)) => zone.iana_name().unwrap_or("EST5").to_owned(),
        other => panic!("{other:?} is not a cron expression"),
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_task_of_a_toml_file_has_all_that_the_file_says() {
    let catalog = toml(
        r#"
        time_zone = "Europe/Berlin"
        [limits]
        warehouse = 3
        [tasks.shop]
        cron = "*/15 6-22 * * 1-5"
        run = "meltano run tap-shop target-dwh dbt:run"
        catch_up = "none"
        start_within = "2h"
        overlap = "queue"
        tries = 2
        retry_after = "5m"
        interrupted = "stop"
        timeout = "2h30m"
        spread = "10m"
        limit = "warehouse"
        env = { REGION = "north", EMPTY = "" }
        enabled = false
        notify = ["./tell.sh", "x"]
        directory = "shop"
        [tasks."b.c_d-9"]
        command = ["true", ""]
        "#,
    )
    .expect("a valid file");
    assert_eq!(catalog.warnings, Vec::<String>::new());
    assert_eq!(catalog.tasks.keys().collect::<Vec<_>>(), ["b.c_d-9", "shop"]);
    let shop = &catalog.tasks["shop"];
    assert_eq!(zone_of(shop), "Europe/Berlin");
    assert_eq!(shop.schedule, "*/15 6-22 * * 1-5");
    assert_eq!(shop.command, ["/bin/sh", "-c", "meltano run tap-shop target-dwh dbt:run"]);
    assert_eq!(shop.directory.as_deref(), Some(Path::new("/etc/shop")));
    let env: Vec<_> = shop.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(env, ["EMPTY=", "REGION=north"]);
    assert_eq!((shop.catch_up, shop.overlap), (CatchUp::None, Some(Overlap::Queue)));
    assert_eq!(shop.interrupted, Interrupted::Stop);
    assert_eq!(
        (shop.tries().get(), shop.retry_after(), shop.spread),
        (2, seconds(300), seconds(600))
    );
    assert_eq!((shop.start_within, shop.timeout), (Some(seconds(7200)), Some(seconds(9000))));
    assert_eq!(
        (shop.limit.clone(), shop.is_enabled()),
        (NonZeroU32::new(3).map(|slots| ("warehouse".to_owned(), slots)), false)
    );
    assert_eq!(shop.notify, ["./tell.sh", "x"]);
}

#[test]
fn a_task_with_nothing_but_a_command_has_the_defaults() {
    let task = toml_task("command = ['true', 'a b']");
    assert!(task.timetable.is_none(), "{:?}", task.timetable);
    assert_eq!((task.schedule.as_str(), task.command.join("|")), ("on request", "true|a b".into()));
    assert_eq!((&task.directory, &task.stdin, task.env.len()), (&None, &None, 0));
    assert_eq!((task.catch_up, task.overlap), (CatchUp::Last, None));
    assert_eq!(task.interrupted, Interrupted::Rerun);
    assert_eq!(
        (task.tries().get(), task.retry_after(), task.spread),
        (1, seconds(60), Duration::ZERO)
    );
    assert_eq!((task.start_within, task.timeout), (None, None));
    assert_eq!((task.is_enabled(), task.limit), (true, None));
    assert_eq!(task.notify, Vec::<String>::new());
}

#[test]
fn an_interval_is_read_as_a_duration() {
    for (text, expected) in [("15m", 900), ("1s", 1), ("1h 30m", 5400), ("90d", 7_776_000)] {
        let task = toml_task(&format!("every = '{text}'\nrun = 'x'"));
        let Some(Timetable::Every(every)) = task.timetable else { panic!("{text}: {task:?}") };
        assert_eq!(every, seconds(expected), "{text}");
        assert_eq!(task.schedule, format!("every {text}"));
    }
}

#[test]
fn a_schedule_is_in_utc_unless_a_zone_is_named_and_a_warning_says_so() {
    let warning = "`time_zone` is not set in `/etc/tasks.toml`: `cron` is in UTC";
    let cron = "[tasks.a]\nrun = 'x'\ncron = '0 3 * * *'\n";
    let (berlin, other) = ("time_zone = 'Europe/Berlin'\n", cron.replace("tasks.a", "tasks.b"));
    for (text, zone, warnings) in [
        (cron.to_owned(), "UTC", warning),
        (format!("{cron}{berlin}"), "Europe/Berlin", ""),
        (format!("{berlin}{cron}"), "Europe/Berlin", ""),
        (format!("{berlin}{cron}time_zone = 'UTC'"), "UTC", ""),
        (format!("{cron}{berlin}{other}"), "Europe/Berlin", warning),
    ] {
        let catalog = toml(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(zone_of(&catalog.tasks["a"]), zone, "{text}");
        assert_eq!(catalog.warnings.join("|"), warnings, "{text}");
    }
    let every = toml("[tasks.a]\nrun = 'x'\nevery = '1h'").expect("a valid file");
    assert_eq!(every.warnings, Vec::<String>::new());
}

/// Keys of a task, and the end of the message.
const BAD_KEYS: [(&str, &str); 30] = [
    ("cronn = '@daily'", " (line 3): unknown key `cronn`: did you mean `cron`?"),
    ("\n\nretries = 3", " (line 5): unknown key `retries`: did you mean `tries`?"),
    ("timezone = 'UTC'", " (line 3): unknown key `timezone`: did you mean `time_zone`?"),
    (
        "xyz = 1",
        " (line 3): unknown key `xyz`: expected `cron`, `every`, `time_zone`, `run`, `command`, \
         `directory`, `env`, `catch_up`, `start_within`, `overlap`, `tries`, `retry_after`, \
         `interrupted`, `timeout`, `spread`, `limit`, `enabled`, `notify`",
    ),
    ("catch_up = 'lst'", ".catch_up (line 3): unknown value `lst`: did you mean `last`?"),
    ("overlap = 'x'", ".overlap (line 3): unknown value `x`: expected `skip`, `queue`"),
    ("interrupted = 'x'", ".interrupted (line 3): unknown value `x`: expected `rerun`, `stop`"),
    ("command = ['x']", ": `run` is unsupported with `command`"),
    ("cron = '@daily'\nevery = '1h'", ": `every` is unsupported with `cron`"),
    ("cron = '60 * * * *'", ": `cron`: `60` is not a minute (0-59)"),
    ("every = '999ms'", ".every (line 3): expected at least 1s"),
    ("every = 15", ".every (line 3): expected a string"),
    ("timeout = '0s'", ".timeout (line 3): expected at least 1ms"),
    ("start_within = '0s'", ".start_within (line 3): expected at least 1ms"),
    (
        "spread = 'x'",
        ".spread (line 3): expected a duration up to a year, in seconds or such as 90s, 1h30m or \
         90d",
    ),
    ("tries = 0", ".tries (line 3): expected a whole number above 0"),
    ("tries = '2'", ".tries (line 3): expected a whole number above 0"),
    ("retry_after = '5m'", ": `retry_after` requires `tries` of at least 2"),
    ("retry_after = '5m'\ntries = 1", ": `retry_after` requires `tries` of at least 2"),
    (
        "catch_up = 'all'\noverlap = 'skip'",
        ": `overlap` is unsupported with `catch_up = \"all\"`, which runs each slot",
    ),
    ("limit = 'x'", ": no such `limit`, `x`: none is defined"),
    (
        "limit = 'wharehouse'\n[limits]\nwarehouse = 1",
        ": no such `limit`, `wharehouse`: did you mean `warehouse`?",
    ),
    ("time_zone = 'UTC'", ": `time_zone` requires `cron`"),
    ("env = { A = 1 }", ".env.A (line 3): expected a string"),
    ("env = { 'A=' = '1' }", ": expected names without `=` in `env`"),
    ("env = { A = [] }", ".env.A (line 3): expected a string"),
    ("run = {}", "invalid TOML (line 3): duplicate key"),
    ("env = 'A=1'", ".env (line 3): expected a table"),
    ("notify = './tell.sh'", ".notify (line 3): expected a list"),
    ("enabled = 'no'", ".enabled (line 3): expected a boolean"),
];

#[test]
fn a_bad_key_of_a_task_is_named_with_its_line() {
    for (keys, expected) in BAD_KEYS {
        let text = format!("[tasks.a]\nrun = 'x'\n{keys}\n");
        let error = error_of(&text).replace('`', "");
        assert_eq!(
            error.strip_prefix("tasks.a").unwrap_or(&error),
            expected.replace('`', ""),
            "{text}"
        );
    }
}

/// What is wrong with the text of a TOML file, without the file.
fn error_of(text: &str) -> String {
    let error = toml(text).expect_err(text);
    let what = error.strip_prefix("cannot use `/etc/tasks.toml`: ");
    what.unwrap_or_else(|| panic!("{error}")).to_owned()
}

#[test]
fn a_bad_line_of_a_toml_file_is_named() {
    let nothing = "requires `run` (a script) or `command` (a program and its arguments)";
    let zone = "`Europe/Berli` is not a time zone; `ls /usr/share/zoneinfo` shows which there are";
    for (text, what, why) in [
        (
            "[task.a]\nrun = 'x'",
            "invalid TOML (line 1)",
            "unknown key `task`: did you mean `tasks`?",
        ),
        ("\n[tasks.a]\nevery = '1h'", "`tasks.a`", nothing),
        ("[tasks.a]\nrun = ' '", "`tasks.a`", nothing),
        ("[tasks.a]\ncommand = []", "`tasks.a`", nothing),
        ("[tasks.a]\ncommand = ['']", "`tasks.a`", nothing),
        ("[tasks.a]\ncommand = 'x'", "`tasks.a.command` (line 2)", "expected a list"),
        ("[limits]\na = 0", "`limits.a` (line 2)", "expected a whole number above 0"),
        ("[limits]\na = 101", "`limits.a`", "expected a whole number from 1 to 100"),
        ("[limits]\na = '1'", "`limits.a` (line 2)", "expected a whole number above 0"),
        ("limits = 1", "`limits` (line 1)", "expected a table"),
        ("tasks.a = 1", "`tasks.a` (line 1)", "expected a table"),
        ("\ntime_zone = 'Europe/Berli'", "`time_zone`", zone),
        ("\n\ntasks", "invalid TOML (line 3)", "key with no value, expected `=`"),
    ] {
        assert_eq!(error_of(text), format!("{what}: {why}"), "{text}");
    }
}

#[test]
fn a_name_has_1_to_100_letters_digits_dots_underscores_and_hyphens() {
    let (longest, long) = ("a".repeat(100), "a".repeat(101));
    for name in [&longest, "a", "0", ".", "A_b-c.9"] {
        let catalog = toml(&format!(
            "[tasks.'{name}']\nrun = 'x'\nlimit = '{name}'\n[limits]\n'{name}' = 100"
        ));
        let catalog = catalog.unwrap_or_else(|error| panic!("{error}"));
        assert!(catalog.tasks[name].limit.is_some(), "{name}");
    }
    for name in [&long, "", "a b", "ä", "a/b", "a:b"] {
        let expected = "expected a name of 1 to 100 letters, digits, `.`, `_` and `-`";
        let task = error_of(&format!("[tasks.'{name}']\nrun = 'x'"));
        assert_eq!(task, format!("`tasks.{name}`: {expected}"), "{name}");
        let limit = error_of(&format!("[limits]\n'{name}' = 1"));
        assert_eq!(limit, format!("`limits.{name}`: {expected}"), "{name}");
    }
}

#[test]
fn tasks_are_found_by_their_names_and_the_nearest_name_is_told() {
    let catalog = toml("[tasks.shop]\nrun = 'x'\n[tasks.mail]\nrun = 'y'").expect("a valid file");
    let find = |name| catalog.find(name).map(|task| task.command[2].clone());
    assert_eq!(["shop", "mail"].map(find), ["x", "y"].map(|run| Ok(run.to_owned())));
    assert_eq!(find("shp"), Err("no such task `shp`: did you mean `shop`?".to_owned()));
    assert_eq!(find("load"), Err("no such task `load`: expected `mail`, `shop`".to_owned()));
}

#[test]
fn a_hash_differs_with_what_a_task_does_and_not_with_where_its_file_is() {
    let keys = "cron = '0 3 * * *'\nrun = 'x'\n";
    let hash = |more: &str| toml_task(&format!("{keys}{more}")).number();
    let plain = hash("");
    let same = ["catch_up = 'last'", "tries = 1", "enabled = true"];
    for same in same.into_iter().chain(["time_zone = 'UTC'", "directory = 'x'", "notify = ['x']"]) {
        assert_eq!(hash(same), plain, "{same}");
    }
    let others = [
        "time_zone = 'Europe/Berlin'",
        "env = { A = '1' }",
        "env = { A = '2' }",
        "catch_up = 'none'",
        "start_within = '1h'",
        "overlap = 'queue'",
        "tries = 2",
        "tries = 2\nretry_after = '2m'",
        "interrupted = 'stop'",
        "timeout = '1h'",
        "spread = '1h'",
        "limit = 'a'\n[limits]\na = 1",
        "enabled = false",
    ];
    let mut hashes: Vec<_> = others.iter().map(|more| hash(more)).collect();
    for task in ["run = 'x'", "run = 'y'", "command = ['x']", "every = '1h'\nrun = 'x'"] {
        hashes.push(toml_task(task).number());
    }
    let stdin = Definition { stdin: Some("x".to_owned()), ..toml_task(keys) };
    hashes.extend([plain, stdin.number()]);
    let all = hashes.len();
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), all, "{hashes:?}");
}
