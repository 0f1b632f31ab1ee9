//! Definitions of tasks: what the files say, and what is wrong with them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serializer::once::Interrupted;
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

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_task_with_nothing_but_a_command_has_the_defaults() {
    let task = toml_task("command = ['true', 'a b']");
    assert!(task.timetable.is_none(), "{:?}", task.timetable);
    assert_eq!((task.schedule.as_str(), &task.command[..]), ("on request", &["true", "a b"].map(str::to_owned)[..]));
    assert_eq!((task.directory, task.stdin, task.env), (None, None, BTreeMap::new()));
    assert_eq!((task.catch_up, task.overlap, task.interrupted), (CatchUp::Last, Overlap::Skip, Interrupted::Rerun));
    assert_eq!((task.tries.get(), task.retry_after, task.spread), (1, seconds(60), Duration::ZERO));
    assert_eq!((task.start_within, task.timeout, task.limit, task.enabled), (None, None, None, true));
    assert_eq!(task.notify, Vec::<String>::new());
}

#[test]
fn an_interval_is_read_as_a_duration() {
    for (text, expected) in [("15m", 900), ("1s", 1), ("1h 30m", 5400), ("90d", 7_776_000)] {
        let task = toml_task(&format!("every = '{text}'\nrun = 'x'"));
        assert!(matches!(task.timetable, Some(Timetable::Every(every)) if every == seconds(expected)), "{text}");
        assert_eq!(task.schedule, format!("every {text}"));
    }
}

/// Keys of a task, and the end of the message.
const BAD_KEYS: [(&str, &str); 29] = [
    ("cronn = '@daily'", "unknown key `cronn` (line 3): did you mean `cron`?"),
    ("\n\nretries = 3", "unknown key `retries` (line 5): did you mean `tries`?"),
    ("timezone = 'UTC'", "unknown key `timezone` (line 3): did you mean `time_zone`?"),
    (
        "xyz = 1",
        "unknown key `xyz` (line 3): expected `cron`, `every`, `time_zone`, `run`, `command`, `directory`, `env`, \
         `catch_up`, `start_within`, `overlap`, `tries`, `retry_after`, `interrupted`, `timeout`, `spread`, `limit`, \
         `enabled`, `notify`",
    ),
    ("catch_up = 'lst'", "`tasks.a.catch_up` (line 3): unknown value `lst`: did you mean `last`?"),
    ("overlap = 'x'", "`tasks.a.overlap` (line 3): unknown value `x`: expected `skip`, `queue`"),
    ("interrupted = 'again'", "`tasks.a.interrupted` (line 3): unknown value `again`: expected `rerun`, `stop`"),
    ("command = ['x']", "`tasks.a.run` (line 2): unsupported with `command`"),
    ("cron = '@daily'\nevery = '1h'", "`tasks.a.every` (line 4): unsupported with `cron`"),
    ("every = '999ms'", "`tasks.a.every` (line 3): expected at least 1s"),
    ("every = '15'", "`tasks.a.every` (line 3): expected a duration with units up to a year, such as 90s, 1h30m or 90d"),
    ("every = 15", "`tasks.a.every` (line 3): invalid type: integer `15`, expected a string"),
    ("timeout = '0s'", "`tasks.a.timeout` (line 3): expected at least 1ms"),
    ("start_within = '0s'", "`tasks.a.start_within` (line 3): expected at least 1ms"),
    ("spread = 'x'", "`tasks.a.spread` (line 3): expected a duration with units up to a year, such as 90s, 1h30m or 90d"),
    ("tries = 0", "`tasks.a.tries` (line 3): expected a whole number from 1 to 4294967295"),
    ("tries = '2'", "`tasks.a.tries` (line 3): invalid type: string \"2\", expected a whole number"),
    ("retry_after = '5m'", "`tasks.a.retry_after` (line 3): requires `tries` of at least 2"),
    ("tries = 1\nretry_after = '5m'", "`tasks.a.retry_after` (line 4): requires `tries` of at least 2"),
    (
        "catch_up = 'all'\noverlap = 'skip'",
        "`tasks.a.overlap` (line 4): unsupported with `catch_up = \"all\"`, which runs each slot",
    ),
    ("limit = 'x'", "`tasks.a.limit` (line 3): no such limit `x`: none is defined"),
    (
        "limit = 'wharehouse'\n[limits]\nwarehouse = 1",
        "`tasks.a.limit` (line 3): no such limit `wharehouse`: did you mean `warehouse`?",
    ),
    ("time_zone = 'UTC'", "`tasks.a.time_zone` (line 3): requires `cron`"),
    ("env = { A = 1 }", "`tasks.a.env.A` (line 3): invalid type: integer `1`, expected a string"),
    ("env = { 'A=' = '1' }", "`tasks.a.env` (line 3): expected names without `=`"),
    ("env = 'A=1'", "`tasks.a.env` (line 3): invalid type: string \"A=1\", expected a table"),
    ("notify = './tell.sh'", "`tasks.a.notify` (line 3): invalid type: string \"./tell.sh\", expected a list"),
    ("enabled = 'no'", "`tasks.a.enabled` (line 3): invalid type: string \"no\", expected a boolean"),
    ("run = 'y'", "invalid TOML (line 3): duplicate key"),
];

#[test]
fn a_bad_key_of_a_task_is_named_with_its_line() {
    for (keys, expected) in BAD_KEYS {
        let text = format!("[tasks.a]\nrun = 'x'\n{keys}\n");
        assert_eq!(error_of(&text), expected, "{text}");
    }
}

/// What is wrong with the text of a TOML file, without the file.
fn error_of(text: &str) -> String {
    let error = toml(text).expect_err(text);
    error.strip_prefix("cannot use `/etc/tasks.toml`: ").unwrap_or_else(|| panic!("{error}")).to_owned()
}

#[test]
fn a_bad_line_of_a_toml_file_is_named() {
    let long = "a".repeat(101);
    let name = "expected a name of 1 to 100 letters, digits, `.`, `_` and `-`";
    for (text, expected) in [
        ("[task.a]\nrun = 'x'", "unknown key `task` (line 1): did you mean `tasks`?".to_owned()),
        ("\n[tasks.a]\nevery = '1h'", "`tasks.a` (line 2): requires `run` or `command`".to_owned()),
        (
            "[tasks.a]\nrun = ' '",
            "`tasks.a.run` (line 2): expected a script for the shell, such as \"meltano run tap-shop target-dwh\"".to_owned(),
        ),
        ("[tasks.a]\ncommand = []", "`tasks.a.command` (line 2): expected a program and its arguments".to_owned()),
        ("[tasks.a]\ncommand = ['']", "`tasks.a.command` (line 2): expected a program and its arguments".to_owned()),
        ("[tasks.a]\ncommand = 'x'", "`tasks.a.command` (line 2): invalid type: string \"x\", expected a list".to_owned()),
        ("[tasks.'a b']\nrun = 'x'", format!("`tasks` (line 1): {name}")),
        ("[tasks.'']\nrun = 'x'", format!("`tasks` (line 1): {name}")),
        ("[tasks.'ä']\nrun = 'x'", format!("`tasks` (line 1): {name}")),
        ("\n\ntasks", "invalid TOML (line 3): key with no value, expected `=`".to_owned()),
        (&format!("[tasks.{long}]\nrun = 'x'"), format!("`tasks` (line 1): {name}")),
        ("[limits]\n'a b' = 1", format!("`limits` (line 2): {name}")),
        ("[limits]\na = 0", "`limits.a` (line 2): expected a whole number from 1 to 100".to_owned()),
        ("[limits]\na = 101", "`limits.a` (line 2): expected a whole number from 1 to 100".to_owned()),
        ("[limits]\na = '1'", "`limits.a` (line 2): invalid type: string \"1\", expected a whole number".to_owned()),
        ("limits = 1", "`limits` (line 1): invalid type: integer `1`, expected a table".to_owned()),
        ("tasks.a = 1", "`tasks.a` (line 1): invalid type: integer `1`, expected a table".to_owned()),
        ("\ntime_zone = 'Europe/Berli'", "`time_zone` (line 2): `Europe/Berli` is not a time zone".to_owned()),
    ] {
        assert_eq!(error_of(text), expected, "{text}");
    }
}
