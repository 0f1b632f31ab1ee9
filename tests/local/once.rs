//! A key that runs once, as its users see it: exit codes, messages, variables, the state of a key,
//! and what is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::callers::run_each_key_once;
use crate::support::{
    Ended, Locks, Shell, Waiter, ended, lacks, legacy_plugin, rounds, skipped, until,
};

/// Waits for a line on the FIFO `go`, notes that it ran, and ends with the exit code that the line
/// tells.
const JOB: &str =
    r#"read -r code < "$SERIALIZER_DIR/go"; echo ran >> "$SERIALIZER_DIR/log"; exit "$code""#;

const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60 * MINUTE;

/// A directory of keys.
struct Keys(Locks);

impl Keys {
    fn new() -> Self {
        Self(Locks::durable())
    }

    fn run(&self, args: &[&str]) -> Ended {
        self.0.run(args)
    }

    /// `once KEY OPTIONS -- sh -c SCRIPT`; an empty SCRIPT must not run.
    fn once(&self, key: &str, options: &[&str], script: &str) -> Ended {
        let script = if script.is_empty() { r#"touch "$SERIALIZER_DIR/ran""# } else { script };
        let ended = self.run(&[&["once", key], options, &["--", "sh", "-c", script]].concat());
        assert!(!self.0.dir().join("ran").exists(), "it was run: {ended:?}");
        ended
    }

    fn file(&self, key: &str) -> PathBuf {
        self.0.dir().join(format!("once%2F{key}"))
    }

    fn record(&self, key: &str) -> String {
        fs::read_to_string(self.file(key)).expect("the record of the key")
    }

    /// The key in `status --once --json`.
    fn status(&self, key: &str) -> Value {
        let ended = self.run(&["status", "--once", "--json", key]);
        assert_eq!(ended.code, 0, "{ended:?}");
        let mut report: Value = serde_json::from_str(&ended.stdout).expect("status prints JSON");
        report["keys"][0].take()
    }

    /// Its state and the number of its last run.
    fn state(&self, key: &str) -> (String, u64) {
        let status = self.status(key);
        (
            status["state"].as_str().unwrap_or("never run").to_owned(),
            status["try"].as_u64().unwrap_or(0),
        )
    }

    /// Makes all that is remembered of the key so many milliseconds older.
    fn age(&self, key: &str, milliseconds: i64) {
        let older =
            |value: &mut Value| *value = (value.as_i64().expect("a time") - milliseconds).into();
        let record = self.record(key);
        let lines = record.lines().map(|line| {
            let Some(run) = line.strip_prefix("once=") else { return format!("{line}\n") };
            let mut run: Value = serde_json::from_str(run).expect("JSON");
            older(&mut run["began"]);
            let ends = run.get_mut("ends").and_then(Value::as_array_mut);
            ends.into_iter().flatten().for_each(|end| older(&mut end["at"]));
            format!("once={run}\n")
        });
        let text: String = lines.collect();
        fs::write(self.file(key), text).expect("the record can be written");
    }
}

/// Keys, and jobs that end when they are told to.
struct Scene {
    keys: Keys,
    shell: Shell,
}

impl Scene {
    fn new() -> Self {
        let keys = Keys::new();
        let mut shell = Shell::start(&keys.0);
        // Both ends stay open, so that neither side waits for the other to open it.
        assert_eq!(shell.run(r#"mkfifo "$SERIALIZER_DIR/go" && exec 9<> "$SERIALIZER_DIR/go""#), 0);
        Self { keys, shell }
    }

    fn job(&self, key: &str, options: &[&str]) -> Command {
        self.keys.0.serializer(&[&["once", key], options, &["--", "bash", "-c", JOB]].concat())
    }

    /// A job that runs. Its process is that of `once`.
    fn started(&self, key: &str) -> Child {
        let child = self.job(key, &[]).stderr(Stdio::null()).spawn().expect("it starts");
        until("the key runs", || self.keys.state(key).0 == "running");
        child
    }

    fn finish(&mut self, code: u8) {
        assert_eq!(self.shell.run(&format!("echo {code} >&9")), 0);
    }

    fn times_run(&self) -> usize {
        fs::read_to_string(self.keys.0.dir().join("log")).map_or(0, |log| log.lines().count())
    }
}

fn code(mut child: Child) -> i32 {
    child.wait().expect("it ends").code().expect("an exit code")
}

#[track_caller]
fn refused(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!((ended.code, ended.stderr.lines().count()), (code, 1), "{ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "`{part}` is not in {ended:?}");
    }
}

// What becomes of a key.

#[test]
fn a_key_runs_until_its_command_has_succeeded_and_is_skipped_after_that() {
    let keys = Keys::new();
    let failed = keys.once("load", &[], "exit 3");
    assert_eq!((failed.code, failed.stderr.as_str()), (3, ""));
    assert_eq!(keys.state("load"), ("failed".to_owned(), 1));
    assert_eq!(keys.once("load", &[], "exit 0").code, 0);
    assert_eq!(keys.state("load"), ("done".to_owned(), 2));
    for (options, code) in
        [(&[][..], 0), (&["--skipped-exit-code", "9"], 9), (&["-n", "--tries", "1"], 0)]
    {
        let skipped = keys.once("load", options, "");
        refused(&skipped, code, &["serializer: skipped `sh -c touch ", ": `load` was done at 2"]);
    }
    refused(&keys.run(&["lock", "--once", "load"]), 79, &["did not lock", "`load` was done at 2"]);
    assert_eq!(keys.state("load"), ("done".to_owned(), 2));
    // Another key has a life of its own.
    assert_eq!(keys.once("load2", &[], "exit 0").code, 0);
}

#[test]
fn a_command_finds_its_key_and_its_try_in_its_environment() {
    let keys = Keys::new();
    let script = r#"echo "$SERIALIZER_ONCE_KEY $SERIALIZER_TRY ${SERIALIZER_FENCING_TOKEN-none}"; exit $SERIALIZER_TRY"#;
    for number in 1..=3 {
        let ended = keys.once("übung 1/2 'x'", &[], script);
        assert_eq!((ended.code, ended.stdout), (number, format!("übung 1/2 'x' {number} none\n")));
    }
}

#[test]
fn a_command_that_cannot_be_run_or_dies_of_a_signal_has_failed() {
    let keys = Keys::new();
    assert_eq!(keys.run(&["once", "load", "--", "/nowhere/command"]).code, 127);
    assert_eq!(keys.state("load"), ("never run".to_owned(), 0));
    assert_eq!(keys.once("load", &[], "kill -TERM $$").code, 143);
    assert_eq!(keys.status("load")["exit_code"], 143);
    assert_eq!(keys.state("load"), ("failed".to_owned(), 1));
}

#[test]
fn a_caller_waits_for_the_run_and_skips_what_that_has_done() {
    let mut scene = Scene::new();
    let first = scene.started("load");
    let waiters: Vec<Waiter> =
        (0..3).map(|_| Waiter::start(scene.job("load", &["--skipped-exit-code", "9"]))).collect();
    for options in
        [&["-n"][..], &["--timeout", "1ms"], &["--max-attempts", "2", "--sleep-seconds", "0.01"]]
    {
        let busy = scene.keys.once("load", options, "");
        assert!(busy.code == 75 && busy.last_line().contains(" by pid "), "{busy:?}");
    }
    assert_eq!(scene.keys.once("load", &["-n", "-E", "5"], "").code, 5);
    assert_eq!(scene.keys.run(&["lock", "--once", "load", "-n"]).code, 75);
    waiters.iter().for_each(Waiter::asleep);
    scene.finish(0);
    assert_eq!(code(first), 0);
    for waiter in waiters {
        let skipped = waiter.end();
        assert!(
            skipped.code == 9 && skipped.last_line().contains("skipped `bash -c"),
            "{skipped:?}"
        );
    }
    assert_eq!(scene.times_run(), 1);
    let names = scene.keys.0.names();
    assert!(!names.iter().any(|name| name.ends_with(".queue")), "no queue is left: {names:?}");
}

#[test]
fn of_two_callers_that_waited_for_a_failure_one_runs_the_next_try_and_the_other_skips_it() {
    let mut scene = Scene::new();
    let first = scene.started("load");
    let waiters = [(); 2].map(|()| Waiter::start(scene.job("load", &["--skipped-exit-code", "9"])));
    scene.finish(3);
    scene.finish(0);
    assert_eq!(code(first), 3);
    let mut codes = waiters.map(|waiter| waiter.end().code);
    codes.sort_unstable();
    assert_eq!((codes, scene.times_run()), ([0, 9], 2));
    assert_eq!(scene.keys.state("load"), ("done".to_owned(), 2));
}

#[test]
fn the_success_of_a_command_is_unconfirmed_if_its_once_was_killed() {
    let mut scene = Scene::new();
    let mut first = scene.started("load");
    first.kill().and_then(|()| first.wait()).expect("it dies");
    // The command goes on, and holds the key.
    assert_eq!(scene.keys.once("load", &["-n"], "").code, 75);
    scene.finish(0);
    until("the command ends", || scene.keys.state("load").0 == "interrupted");
    assert_eq!(scene.times_run(), 1);
    let stopped = scene.keys.once("load", &["--interrupted", "stop"], "");
    refused(
        &stopped,
        80,
        &["`serializer forget ", "given up: tried once; the last run was interrupted: "],
    );
    assert_eq!(
        scene.keys.state("load"),
        ("interrupted".to_owned(), 1),
        "it is given up by the one caller alone"
    );
    let again = scene.keys.once("load", &[], "exit $SERIALIZER_TRY");
    assert!(again.code == 2 && again.stderr.contains("taken over from pid "), "{again:?}");
    let ends = scene.keys.status("load")["ends"].take();
    assert_eq!((&ends[0]["try"], &ends[1]["how"]), (&json!(1), &json!("ended with 2")));
    assert!(ends[0]["how"].as_str().expect("a text").starts_with("interrupted: "), "{ends}");
}

#[test]
fn a_command_that_was_killed_has_failed_and_is_no_interruption() {
    let mut scene = Scene::new();
    let first = scene.started("load");
    let pid = scene.keys.status("load")["pid"].as_u64().expect("a pid");
    assert_eq!(scene.shell.run(&format!("kill -KILL {pid}")), 0);
    assert_eq!(code(first), 137);
    assert_eq!(scene.keys.state("load"), ("failed".to_owned(), 1));
    assert_eq!(scene.keys.once("load", &["--interrupted", "stop"], "exit 0").code, 0);
}

#[test]
fn a_key_without_tries_left_is_given_up_until_it_is_forgotten() {
    let keys = Keys::new();
    for _ in 0..3 {
        assert_eq!(keys.once("load", &["--tries", "3"], "exit 1").code, 1);
    }
    assert_eq!(keys.state("load"), ("given-up".to_owned(), 3));
    let before = keys.record("load");
    let parts =
        ["given up: tried 3 times; the last run ended with 1 at 2", "(hint: `serializer forget "];
    for tries in ["3", "2", "1"] {
        refused(&keys.once("load", &["--tries", tries], ""), 80, &parts);
        refused(&keys.run(&["lock", "--once", "load", "--tries", tries]), 80, &parts);
    }
    assert_eq!(keys.record("load"), before);
    assert_eq!(keys.run(&["forget", "load"]).code, 0);
    assert_eq!(keys.once("load", &["--tries", "1"], "exit 0").code, 0);
    assert_eq!(keys.state("load"), ("done".to_owned(), 1));
    // Done is done, whatever the number of tries.
    assert_eq!(keys.once("load", &["--tries", "1"], "").code, 0);
}

#[test]
fn the_callers_tries_count_and_not_those_of_the_run_before() {
    let keys = Keys::new();
    assert_eq!(keys.once("load", &["--tries", "1"], "exit 1").code, 1);
    assert_eq!(keys.once("load", &["--tries", "1"], "").code, 80);
    assert_eq!(keys.once("load", &["--tries", "3"], "exit $SERIALIZER_TRY").code, 2);
    assert_eq!(keys.once("load", &[], "exit $SERIALIZER_TRY").code, 3);
    assert_eq!(keys.once("load", &["--tries", "3"], "").code, 80);
}

#[test]
fn a_key_runs_once_in_each_period() {
    let keys = Keys::new();
    for (per, period) in [("hour", DAY / 24), ("day", DAY), ("week", 7 * DAY), ("month", 31 * DAY)]
    {
        assert_eq!(keys.once(per, &["--per", per], "exit 0").code, 0);
        // Begun a little later, by another host's clock: a period that begins just now does not
        // matter.
        keys.age(per, -MINUTE);
        assert_eq!(keys.state(per).0, "done");
        refused(&keys.once(per, &["--per", per], ""), 0, &["skipped"]);
        keys.age(per, MINUTE + period);
        assert_eq!(keys.state(per).0, "expired", "{per}");
        assert_eq!(
            keys.once(per, &["--per", per, "--tries", "1"], "exit $SERIALIZER_TRY").code,
            1,
            "{per}"
        );
        // For a caller without a period, no success is too old.
        assert_eq!(keys.once(per, &[], "exit 0").code, 0);
        keys.age(per, 9 * period);
        assert_eq!((keys.state(per).0, keys.once(per, &[], "").code), ("done".to_owned(), 0));
    }
}

#[test]
fn tries_are_counted_anew_in_each_period() {
    let keys = Keys::new();
    let options = ["--per", "month", "--tries", "2"];
    for number in [1, 2] {
        assert_eq!(keys.once("load", &options, "exit $SERIALIZER_TRY").code, number);
    }
    assert_eq!(keys.once("load", &options, "").code, 80);
    keys.age("load", 32 * DAY);
    assert_eq!(keys.once("load", &options, "exit $SERIALIZER_TRY").code, 1);
    assert_eq!(
        keys.status("load")["ends"].as_array().map(Vec::len),
        Some(3),
        "ends are remembered over periods"
    );
    // Without periods, a failure never grows old.
    keys.age("load", 400 * DAY);
    assert_eq!(keys.once("load", &[], "exit $SERIALIZER_TRY").code, 2);
}

#[test]
fn a_success_counts_for_as_long_as_it_is_valid() {
    let keys = Keys::new();
    let options = ["--valid-for", "20m"];
    assert_eq!(keys.once("load", &options, "exit 0").code, 0);
    keys.age("load", 19 * MINUTE);
    refused(&keys.once("load", &options, ""), 0, &["skipped"]);
    assert_eq!(keys.state("load").0, "done");
    keys.age("load", 2 * MINUTE);
    assert_eq!(keys.state("load").0, "expired");
    assert_eq!(keys.once("load", &["--valid-for", "90d"], "").code, 0);
    assert_eq!(
        keys.once("load", &["--valid-for", "20m", "--tries", "1"], "exit $SERIALIZER_TRY").code,
        1
    );
}

#[test]
fn the_last_five_ends_are_remembered() {
    let keys = Keys::new();
    for _ in 0..7 {
        keys.once("load", &[], "exit $SERIALIZER_TRY");
    }
    let status = keys.status("load");
    let ends: Vec<_> = status["ends"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|end| (&end["try"], &end["code"]))
        .collect();
    let expected: Vec<Value> = (3..=7).map(Value::from).collect();
    assert_eq!(ends, expected.iter().map(|number| (number, number)).collect::<Vec<_>>());
    assert!(keys.record("load").len() < 1024, "{}", keys.record("load"));
}

/// With a factor of 250, a hundred thousand callers for a thousand keys.
#[test]
fn many_callers_run_each_key_once_although_some_are_killed() {
    let keys = Keys::new();
    let names: Vec<String> = (0..rounds(4)).map(|number| number.to_string()).collect();
    run_each_key_once(&names, 100, keys.0.dir(), &|args| keys.0.serializer(args), &|key| {
        keys.status(key)
    });
}

// A run that a script begins and ends.

#[test]
fn a_script_begins_a_run_and_ends_it_once() {
    let keys = Keys::new();
    let mut owner = Shell::start(&keys.0);
    assert_eq!(owner.run(r#""$S" lock --once load 2>&1"#), 0);
    assert_eq!(keys.state("load"), ("running".to_owned(), 1));
    assert_eq!(keys.status("load")["pid"], owner.pid());
    assert_eq!(keys.once("load", &["-n"], "").code, 75);
    let (code, said) = owner.output(r#""$S" lock --once load -n 2>&1"#);
    assert!(code == 0 && said.contains(" is already locked by "), "{said}");
    // Another's.
    refused(&keys.run(&["unlock", "--once", "load"]), 77, &["cannot unlock", "held by pid "]);
    let (code, said) = owner.output(r#""$S" unlock --once load 2>&1"#);
    assert!(code == 0 && said.contains("unlocked `load`, which is done"), "{said}");
    assert_eq!(keys.state("load"), ("done".to_owned(), 1));
    let before = keys.record("load");
    for args in ["load", "load --failed", "other"] {
        let (code, said) = owner.output(&format!(r#""$S" unlock --once {args} 2>&1"#));
        assert!(code == 1 && said.contains("no run of the key is under way"), "{said}");
    }
    assert_eq!(owner.run(r#""$S" lock --once load 2>&1"#), 79);
    assert_eq!(keys.record("load"), before);
}

#[test]
fn a_script_says_that_its_run_has_failed_and_how() {
    let keys = Keys::new();
    let mut owner = Shell::start(&keys.0);
    owner.run(r#""$S" lock --once load 2>&1"#);
    assert_eq!(
        owner.run(r#""$S" unlock --once load --failed --note $'no rows\n\e[31m in é' 2>&1"#),
        0
    );
    assert_eq!(keys.state("load"), ("failed".to_owned(), 1));
    let how = keys.status("load")["ends"][0]["how"].take();
    let how = how.as_str().expect("a text");
    assert!(
        how.starts_with("no rows") && how.ends_with("in é") && !how.contains(char::is_control),
        "{how:?}"
    );
    let (code, said) = owner.output(r#""$S" lock --once load --tries 1 2>&1"#);
    assert!(code == 80 && said.contains("the last run failed at "), "{said}");
    assert!(said.contains(": no rows"), "{said}");
    assert_eq!(owner.run(r#""$S" lock --once load 2>&1"#), 0);
    let long = "x".repeat(5000);
    assert_eq!(owner.run(&format!(r#""$S" unlock --once load --note {long} 2>&1"#)), 0);
    assert_eq!(keys.state("load"), ("done".to_owned(), 2));
    assert!(keys.record("load").len() < 1024);
}

#[test]
fn the_run_of_a_script_that_dies_is_interrupted() {
    let keys = Keys::new();
    let mut owner = Shell::start(&keys.0);
    owner.run(r#""$S" lock --once load 2>&1"#);
    owner.reap();
    assert_eq!(keys.state("load"), ("interrupted".to_owned(), 1));
    refused(&keys.run(&["unlock", "--once", "load"]), 1, &["no run of the key is under way"]);
    assert_eq!(keys.state("load"), ("interrupted".to_owned(), 1));
    assert_eq!(keys.once("load", &["--tries", "1"], "").code, 80);
    assert_eq!(keys.once("load", &["--tries", "2"], "exit $SERIALIZER_TRY").code, 2);
}

#[test]
fn a_script_is_told_at_the_end_of_its_run_that_it_was_forgotten_by_force() {
    let keys = Keys::new();
    let mut owner = Shell::start(&keys.0);
    owner.run(r#""$S" lock --once load 2>&1"#);
    let forced = keys.run(&["forget", "--force", "load"]);
    refused(&forced, 0, &["forgot ", "which was running"]);
    assert_eq!(keys.state("load").0, "never run");
    let (code, said) = owner.output(r#""$S" unlock --once load 2>&1"#);
    assert!(code == 76 && said.contains("was broken"), "{code} {said}");
    // It is told once.
    assert_eq!(owner.run(r#""$S" unlock --once load 2>&1"#), 1);
    assert_eq!(keys.once("load", &[], "exit $SERIALIZER_TRY").code, 1);
}

#[test]
fn a_command_with_a_key_forgotten_by_force_meanwhile_may_not_have_run_alone() {
    let mut scene = Scene::new();
    let child = scene.job("load", &[]).stderr(Stdio::piped()).spawn().expect("it starts");
    until("the key runs", || scene.keys.state("load").0 == "running");
    assert_eq!(scene.keys.run(&["forget", "--force", "load"]).code, 0);
    assert_eq!(scene.keys.once("load", &[], "exit 0").code, 0);
    scene.finish(0);
    let ended = Ended::from(child.wait_with_output().expect("it ends"));
    refused(&ended, 76, &["lost `", "it was broken"]);
    assert_eq!(scene.keys.state("load"), ("done".to_owned(), 1), "that of the other");
}

#[test]
fn a_run_that_is_broken_is_interrupted_and_its_success_does_not_count() {
    for lease in ["", "2"] {
        let Scene { keys: Keys(locks), mut shell } = Scene::new();
        if !lease.is_empty() {
            if lacks("record locks of open files") {
                return;
            }
            locks.is_shared();
        }
        let keys =
            |args: &[&str]| ended(locks.serializer(args).env("SERIALIZER_LEASE_SECONDS", lease));
        let row = || {
            let report: Value =
                serde_json::from_str(&keys(&["status", "--once", "--json", "load"]).stdout)
                    .expect("JSON");
            report["keys"][0].clone()
        };
        let mut job =
            locks.serializer(&["once", "load", "--on-lost", "warn", "--", "bash", "-c", JOB]);
        let child = job
            .env("SERIALIZER_LEASE_SECONDS", lease)
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        until("the key runs", || row()["state"] == "running");
        // What the refusal says breaks exactly this run.
        let refused = keys(&["unlock", "--once", "load"]);
        let token = row()["token"].as_str().expect("a token").to_owned();
        assert!(
            refused.code == 77 && refused.stderr.contains(&format!("--once load --token {token}`")),
            "{refused:?}"
        );
        assert_eq!(keys(&["break", "--once", "load", "--token", "another"]).code, 77);
        assert_eq!(keys(&["break", "--once", "load", "--token", &token]).code, 0);
        assert_eq!(
            (&row()["state"], &row()["ends"][0]["how"]),
            (&"interrupted".into(), &"interrupted: broken".into())
        );
        let next = keys(&["once", "load", "--", "bash", "-c", "exit $SERIALIZER_TRY"]);
        assert_eq!(next.code, 2, "it remembers the run: {next:?}");
        assert_eq!(shell.run("echo 0 >&9"), 0);
        let ended = Ended::from(child.wait_with_output().expect("it ends"));
        assert!(ended.code == 76 && ended.last_line().contains("lost `"), "{ended:?}");
        assert_eq!((&row()["state"], &row()["ends"][1]["code"]), (&"failed".into(), &2.into()));
    }
}

#[test]
fn an_interrupted_run_that_is_broken_stays_interrupted() {
    let Scene { keys: Keys(locks), mut shell } = Scene::new();
    let keys = |args: &[&str]| ended(&mut locks.serializer(args));
    assert_eq!(shell.run(r#""$S" lock --once load --interrupted stop 2> /dev/null"#), 0);
    drop(shell);
    let row = || {
        let status = keys(&["status", "--once", "--json", "load"]);
        serde_json::from_str::<Value>(&status.stdout).expect("JSON")["keys"][0].clone()
    };
    until("its owner ends", || row()["state"] != "running");
    let token = row()["token"].as_str().expect("a token").to_owned();
    let once = ["once", "--interrupted", "stop", "load", "--", "true"];
    assert_eq!(keys(&once).code, 80);
    assert_eq!(keys(&["break", "--once", "load", "--token", &token]).code, 0);
    let again = keys(&once);
    assert!(again.code == 80 && row()["ends"][0]["how"] == "interrupted: broken", "{again:?}");
    assert_eq!(keys(&["forget", "load"]).code, 0);
    assert_eq!(keys(&once).code, 0, "only that forgets it");
}

// Waiting.

#[test]
fn a_waiter_ends_when_all_keys_are_done() {
    let mut scene = Scene::new();
    assert_eq!(scene.keys.once("a", &[], "exit 0").code, 0);
    assert_eq!(scene.keys.run(&["wait", "--once", "a"]).code, 0);
    let mut waiter = scene
        .keys
        .0
        .serializer(&["wait", "--once", "a", "b", "c", "--timeout", "2m"])
        .spawn()
        .expect("it starts");
    // One after the other: of two readers, each might take a part of the word.
    for key in ["b", "c"] {
        let run = scene.started(key);
        assert!(waiter.try_wait().expect("it can be asked").is_none());
        scene.finish(0);
        assert_eq!(code(run), 0);
    }
    assert!(waiter.wait().expect("it ends").success());
}

#[test]
fn a_waiter_ends_with_the_first_key_that_is_given_up_although_others_still_run() {
    let mut scene = Scene::new();
    let running = scene.started("runs");
    let mut waiter =
        scene.keys.0.serializer(&["wait", "--once", "runs", "fails", "never", "--timeout", "2m"]);
    let waiter = waiter.stderr(Stdio::piped()).spawn().expect("it starts");
    assert_eq!(scene.keys.once("fails", &["--tries", "2"], "exit 1").code, 1);
    assert_eq!(scene.keys.once("fails", &["--tries", "2"], "exit 1").code, 1);
    let ended = Ended::from(waiter.wait_with_output().expect("it ends"));
    refused(&ended, 1, &["fails` is given up"]);
    assert_eq!(scene.keys.state("runs").0, "running");
    scene.finish(0);
    assert_eq!(code(running), 0);
}

#[test]
fn a_waiter_out_of_time_says_what_it_waited_for() {
    let keys = Keys::new();
    assert_eq!(keys.once("done", &[], "exit 0").code, 0);
    assert_eq!(keys.once("failed", &[], "exit 1").code, 1);
    assert_eq!(keys.once("old", &["--valid-for", "1m"], "exit 0").code, 0);
    keys.age("old", 2 * MINUTE);
    let waits: [&[&str]; 3] =
        [&["-n"], &["--timeout", "1ms"], &["--max-attempts", "2", "--sleep-seconds", "0.01"]];
    for (options, (key, state)) in waits.into_iter().zip([
        ("failed", "is not done yet: failed"),
        ("never", "never run"),
        ("old", "expired"),
    ]) {
        let ended = keys.run(&[&["wait", "--once", "done", key], options].concat());
        refused(&ended, 75, &[key, state]);
    }
    assert_eq!(keys.run(&["wait", "--once", "never", "-n", "-E", "5"]).code, 5);
    assert_eq!(keys.run(&["wait", "--once", "done", "-n"]).code, 0);
}

// Forgetting.

#[test]
fn a_key_is_forgotten_unless_it_runs() {
    let mut scene = Scene::new();
    let running = scene.started("runs");
    let before = scene.keys.record("runs");
    refused(&scene.keys.run(&["forget", "runs"]), 77, &["cannot forget", "held by pid "]);
    assert_eq!(scene.keys.record("runs"), before);
    assert_eq!(scene.keys.once("done", &[], "exit 0").code, 0);
    let dry = scene.keys.run(&["forget", "--dry-run", "done", "runs", "never"]);
    assert!(
        dry.code == 0
            && dry.stderr.contains("would forget ")
            && dry.stderr.contains("which is done\n"),
        "{dry:?}"
    );
    assert_eq!(scene.keys.state("done").0, "done");
    refused(&scene.keys.run(&["forget", "done"]), 0, &["forgot ", "which was done"]);
    refused(&scene.keys.run(&["forget", "done"]), 0, &["nothing to forget: "]);
    scene.finish(0);
    assert_eq!(code(running), 0);
    assert_eq!(scene.keys.run(&["forget", "runs"]).code, 0);
    assert_eq!(scene.keys.0.names(), ["go", "log"]);
}

#[test]
fn keys_that_were_done_long_ago_are_forgotten_and_no_others() {
    let keys = Keys::new();
    let all = [
        ("old", "exit 0", 91),
        ("older", "exit 0", 400),
        ("young", "exit 0", 89),
        ("failed", "exit 1", 400),
    ];
    for (key, script, days) in all {
        keys.once(key, &[], script);
        keys.age(key, days * DAY);
    }
    let mut owner = Shell::start(&keys.0);
    owner.run(r#""$S" lock --once runs 2>&1"#);
    keys.age("runs", 400 * DAY);
    let long = "x".repeat(1000);
    keys.once(&long, &[], "exit 0");
    let names = keys.0.names();
    let dry = keys.run(&["forget", "--done-before", "90d", "--dry-run"]);
    assert!(dry.code == 0 && dry.stderr.matches("would forget ").count() == 2, "{dry:?}");
    assert_eq!(keys.0.names(), names);
    let forgot = keys.run(&["forget", "--done-before", "90d"]);
    assert!(forgot.code == 0 && forgot.stderr.matches("forgot ").count() == 2, "{forgot:?}");
    let states = ["old", "older", "young", "failed", "runs", &long].map(|key| keys.state(key).0);
    assert_eq!(states, ["never run", "never run", "done", "failed", "running", "done"]);
    assert_eq!(keys.run(&["forget", "--done-before", "0s"]).code, 0);
    let states = ["young", "failed", "runs", &long].map(|key| keys.state(key).0);
    assert_eq!(states, ["never run", "failed", "running", "never run"]);
}

// The state, for people and programs.

/// A record as it is written: the entry, how it ended, and the run.
fn record(released: &str, run: &str) -> String {
    let place = "host=etl1\nmachine=m\nboot=b\npidns=7\nstart=8\npidfd=9\nuid=10\n";
    format!(
        "4121\n2026-11-29 \
         03:00:00\nv=3\n{place}since=2026-11-29T03:00:00Z\ntoken=t\ncommand=./load.sh\n{released}once={run}\n"
    )
}

/// 2026-11-29, 03:00 UTC.
const BEGAN: i64 = 1_795_921_200_000;

#[test]
fn the_state_of_keys_is_a_table_or_json() {
    let keys = Keys::new();
    let done = json!({
        "key": "2026-11-29", "try": 2, "began": BEGAN, "rule": {"tries": 3, "interrupted": "rerun"},
        "ends": [
            {"at": BEGAN - 5000, "try": 1, "how": "interrupted: the machine has rebooted"},
            {"at": BEGAN + 130_250, "try": 2, "how": "ended with 0", "code": 0},
        ],
    });
    fs::write(keys.file("2026-11-29"), record("released=succeeded\n", &done.to_string()))
        .expect("a file");
    let failed = json!({
        "key": "b", "try": 1, "began": BEGAN, "rule": {"valid_for": {"secs": 60, "nanos": 0}, "tries": 1, "interrupted": "stop"},
        "ends": [{"at": BEGAN + 1000, "try": 1, "how": "ended with 7", "code": 7}],
    });
    fs::write(keys.file("b"), record("released=failed\n", &failed.to_string())).expect("a file");
    let mut table = keys.0.serializer(&["status", "--once"]);
    let table = ended(table.env("TZ", "UTC"));
    let expected = format!(
        "{}\nKEY         STATE     TRY  SINCE                FOR    HOST  LAST END\n2026-11-29  \
         done      2    2026-11-29 03:00:00  2m10s  etl1  ended with 0, 2026-11-29 03:02:10\nb           \
         given up  1    2026-11-29 03:00:00  1s     etl1  ended with 7, 2026-11-29 03:00:01\n",
        keys.0.dir().display()
    );
    assert_eq!((table.code, table.stdout), (0, expected));
    let report = keys.run(&["status", "--once", "--json"]);
    let report: Value = serde_json::from_str(&report.stdout).expect("JSON");
    let path = keys.0.dir().display().to_string();
    let expected = json!({"schema": 1, "keys": [
        {
            "key": "2026-11-29", "name": "2026-11-29", "path": path, "store": null, "state": "done", "try": 2, "since": BEGAN, "seconds": 130.25, "exit_code": 0, "pid": 4121,
            "command": "./load.sh", "reason": null, "host": "etl1", "token": "t", "fencing_token": null, "ends": done["ends"],
        },
        {
            "key": "b", "name": "b", "path": path, "store": null, "state": "given-up", "try": 1, "since": BEGAN, "seconds": 1.0, "exit_code": 7, "pid": 4121,
            "command": "./load.sh", "reason": null, "host": "etl1", "token": "t", "fencing_token": null, "ends": failed["ends"],
        },
    ]});
    assert_eq!(report, expected);
    assert_eq!(keys.status("never")["state"], Value::Null);
    // The record stays unchanged, whatever reads it.
    assert_eq!(keys.record("b"), record("released=failed\n", &failed.to_string()));
}

#[test]
fn a_listing_has_the_keys_that_were_run_and_nothing_else() {
    let scene = Scene::new();
    let long = "é".repeat(500);
    let names = ["a/b", "ü x", "100%", "..", &long];
    for name in names {
        assert_eq!(scene.keys.once(name, &[], "exit 0").code, 0, "{name}");
    }
    scene.keys.once("gone", &[], "exit 0");
    scene.keys.run(&["forget", "gone"]);
    // Of this one, a notice is left for its owner.
    let mut owner = Shell::start(&scene.keys.0);
    owner.run(r#""$S" lock --once broken 2>&1"#);
    scene.keys.run(&["forget", "--force", "broken"]);
    // A lock is not a key.
    owner.run(r#""$S" lock 2>&1"#);
    let listed = scene.keys.run(&["status", "--once", "--json"]);
    let report: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let mut keys: Vec<_> =
        report["keys"].as_array().expect("a list").iter().map(|key| key["key"].as_str()).collect();
    keys.sort_unstable();
    let mut expected = names.map(Some);
    expected.sort_unstable();
    assert_eq!(keys, expected);
    let none = Keys::new().run(&["status", "--once"]);
    assert!(none.stdout.is_empty() && none.stderr.contains("no keys in `"), "{none:?}");
}

// What is refused.

#[test]
fn bad_input_is_refused_in_one_line_and_changes_nothing() {
    let keys = Keys::new();
    let long = "x".repeat(1001);
    let run =
        |options: &[&'static str]| [&["once", "load"], options, &["--", "touch", "ran"]].concat();
    let all: Vec<(Vec<&str>, &str)> = vec![
        (vec!["once", "", "--", "touch", "ran"], "the key ``"),
        (vec!["once", &long, "--", "touch", "ran"], "1 to 1000 bytes"),
        (vec!["once", "a\nb", "--", "touch", "ran"], "control characters"),
        (vec!["once", "a\x1b[2J", "--", "touch", "ran"], "control characters"),
        (vec!["once", "load"], "<CMD>"),
        (run(&["--slots", "2"]), "--slots"),
        (run(&["--shared"]), "--shared"),
        (run(&["--wait-and-skip"]), "--wait-and-skip"),
        (run(&["--hold-at-least", "5s"]), "--hold-at-least"),
        (run(&["--file-name", "x"]), "--file-name"),
        (run(&["--per", "fortnight"]), "hour, day, week, month"),
        (run(&["--per", "day", "--valid-for", "20m"]), "--valid-for"),
        (run(&["--valid-for", "soon"]), "expected a duration"),
        (run(&["--tries", "0"]), "expected a whole number from 1"),
        (run(&["--tries", "-1"]), "expected a whole number from 1"),
        (run(&["--interrupted", "never"]), "rerun, stop"),
        (run(&["--skipped-exit-code", "256"]), "256"),
        (run(&["--store", "ftp://x"]), "--store"),
        (vec!["lock", "--once", "load", "--detached"], "needs a store"),
        (vec!["lock", "--once", "load", "--print-token"], "needs a store"),
        (vec!["lock", "--once", "load", "--slots", "2"], "--slots"),
        (vec!["lock", "--once", "load", "--shared"], "--shared"),
        (vec!["lock", "--once", "load", "--hold-at-least", "5s"], "--hold-at-least"),
        (vec!["lock", "--once", ""], "the key ``"),
        (vec!["lock", "--per", "day"], "--once"),
        (vec!["lock", "--tries", "2"], "--once"),
        (vec!["lock", "--detached"], "--once"),
        (vec!["unlock", "--token", "7"], "--once"),
        (vec!["unlock", "--failed"], "--once"),
        (vec!["unlock", "--note", "x"], "--once"),
        (vec!["unlock", "--once", "load", "--force"], "--force"),
        (vec!["unlock", "--once", "a\tb"], "control characters"),
        (vec!["run", "--once", "load", "--", "touch", "ran"], "--once"),
        (vec!["wait", "--once"], "<NAME>"),
        (vec!["wait", "--once", "a\tb"], "control characters"),
        (vec!["forget"], "<KEY>"),
        (vec!["forget", &long], "1 to 1000 bytes"),
        (vec!["forget", "load", "--done-before", "90d"], "--done-before"),
        (vec!["forget", "--done-before", "soon"], "expected a duration"),
        (vec!["forget", "--done-before", "1h", "--force"], "--force"),
        (vec!["status", "--once", "a\tb"], "control characters"),
    ];
    for (args, part) in all {
        let mut command = keys.0.serializer(&args);
        let ended = ended(command.current_dir(keys.0.dir()));
        refused(&ended, 2, &["serializer: ", part]);
        assert!(ended.stdout.is_empty() && ended.stderr.len() < 1000, "{ended:?}");
        assert_eq!(keys.0.names(), [""; 0], "{args:?}");
    }
}

/// `once load -- sh -c SCRIPT` without a directory in its environment.
fn without_directory(keys: &Keys, variables: &[(&str, &Path)]) -> Ended {
    let mut command = keys.0.serializer(&["once", "load", "--", "true"]);
    command.env_remove("SERIALIZER_DIR").envs(variables.iter().copied());
    ended(&mut command)
}

#[test]
fn keys_are_kept_in_the_project_or_at_home_and_not_in_tmp() {
    let keys = Keys::new();
    let dir = keys.0.dir();
    let (home, state, project) = (dir.join("home"), dir.join("state"), dir.join("project"));
    refused(
        &without_directory(&keys, &[]),
        2,
        &["no directory for keys: `HOME` is not set (hint: "],
    );
    let all: [&[(&str, &Path)]; 3] = [
        &[("HOME", &home)],
        &[("HOME", &home), ("XDG_STATE_HOME", &state)],
        &[("HOME", &home), ("XDG_STATE_HOME", &state), ("MELTANO_PROJECT_ROOT", &project)],
    ];
    let places = [
        home.join(".local/state/serializer"),
        state.join("serializer"),
        project.join(".meltano/serializer"),
    ];
    for (variables, place) in all.into_iter().zip(places) {
        let ended = without_directory(&keys, variables);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
        assert!(place.join("once%2Fload").exists(), "{}", place.display());
    }
    // One that was named is not made.
    let nowhere = dir.join("nowhere");
    let mut command = keys.0.serializer(&["once", "load", "--", "true"]);
    let ended = ended(command.env("SERIALIZER_DIR", &nowhere));
    assert!(ended.code == 1 && !nowhere.exists(), "{ended:?}");
}

#[test]
fn a_directory_in_memory_is_refused() {
    let in_memory = Path::new("/dev/shm");
    if !fs::read_to_string("/proc/self/mounts")
        .expect("mounts")
        .lines()
        .any(|line| line.starts_with("tmpfs /dev/shm "))
    {
        return skipped("/dev/shm is not a tmpfs");
    }
    let dir = tempfile::tempdir_in(in_memory).expect("a directory");
    let path = dir.path().to_str().expect("UTF-8");
    let keys = Keys::new();
    for command in [
        "once load -- touch ran",
        "lock --once load",
        "unlock --once load",
        "wait --once load -n",
        "forget load",
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        let args = [&words[..1], &["--dir", path], &words[1..]].concat();
        refused(&keys.run(&args), 2, &["cannot keep keys in `/dev/shm/", "in memory", "(hint: "]);
    }
    assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0);
}

#[test]
fn what_is_not_the_record_of_a_key_is_neither_run_nor_changed() {
    let run = r#"{"key":"load","try":1,"began":1,"rule":{"interrupted":"rerun"}}"#;
    let ours = record("released=failed\n", run);
    let without_run =
        ours.lines().filter(|line| !line.starts_with("once=")).collect::<Vec<_>>().join("\n")
            + "\n";
    let cannot: [(&str, String); 7] = [
        ("text", "garbage\n".to_owned()),
        ("of the Python plugin", "99999999\n2026-11-29 03:00:00\n".to_owned()),
        ("a released lock", without_run.replace("v=3", "v=2")),
        (
            "a lock of a dead process",
            without_run.replace("v=3", "v=1").replace("released=failed\n", ""),
        ),
        ("without a run", without_run),
        (
            "with a run of another kind",
            record("released=failed\n", r#"{"key":"load","try":"first"}"#),
        ),
        ("with half a run", record("released=failed\n", &run[..30])),
    ];
    for (what, text) in cannot {
        let keys = Keys::new();
        fs::write(keys.file("load"), &text).expect("a file");
        let commands = [
            "once load -n -- touch ran",
            "lock --once load -n",
            "unlock --once load",
            "wait --once load -n",
            "forget load",
        ];
        for command in commands.into_iter().chain(["forget --done-before 0s", "status --once load"])
        {
            let args: Vec<&str> = command.split(' ').collect();
            let ended = ended(keys.0.serializer(&args).current_dir(keys.0.dir()));
            assert!(
                [1, 75, 77].contains(&ended.code) && ended.stderr.lines().count() == 1,
                "{what}, {command}: {ended:?}"
            );
            assert_eq!(keys.record("load"), text, "{what}, {command}");
            assert_eq!(keys.0.names(), ["once%2Fload"], "{what}, {command}");
        }
    }
}

#[test]
fn the_record_of_a_newer_version_counts_as_running() {
    let keys = Keys::new();
    let run = r#"{"key":"load","try":1,"began":1,"rule":{"interrupted":"rerun"},"more":[1]}"#;
    let text = record("released=succeeded\nmore=than we know\n", run).replace("v=3", "v=4");
    fs::write(keys.file("load"), &text).expect("a file");
    for (args, code) in [
        (&["once", "load", "-n", "--", "touch", "ran"][..], 75),
        (&["lock", "--once", "load", "-n"], 75),
        (&["unlock", "--once", "load"], 77),
        (&["wait", "--once", "load", "-n"], 75),
        (&["forget", "load"], 77),
    ] {
        let ended = ended(keys.0.serializer(args).current_dir(keys.0.dir()));
        assert!(ended.code == code && ended.stderr.lines().count() == 1, "{args:?}: {ended:?}");
        assert_eq!((keys.record("load"), keys.0.names().len()), (text.clone(), 1), "{args:?}");
    }
    // What is added to a record without a new version is ignored.
    fs::write(keys.file("load"), text.replace("v=4", "v=3")).expect("a file");
    assert_eq!(keys.state("load"), ("done".to_owned(), 1));
}

#[test]
fn one_key_that_cannot_be_read_does_not_hide_the_others() {
    let keys = Keys::new();
    assert_eq!(keys.once("done", &[], "exit 0").code, 0);
    keys.age("done", DAY);
    fs::write(keys.file("bad"), "garbage\n").expect("a file");
    let listed = keys.run(&["status", "--once"]);
    assert!(listed.code == 1 && listed.stdout.contains("done "), "{listed:?}");
    let forgot = keys.run(&["forget", "--done-before", "1h"]);
    assert!(forgot.code == 1 && forgot.stderr.contains("forgot "), "{forgot:?}");
    assert_eq!(keys.0.names(), ["once%2Fbad"]);
}

#[test]
fn a_lock_of_the_same_name_is_not_a_key() {
    let keys = Keys::new();
    assert_eq!(keys.once("serializer.lck", &[], "exit 0").code, 0);
    assert_eq!(keys.run(&["run", "-n", "--", "sh", "-c", "exit 3"]).code, 3);
    assert_eq!(keys.state("serializer.lck"), ("done".to_owned(), 1));
    // Nor is a key a lock that is named as its file.
    let before = keys.record("serializer.lck");
    for args in [
        &["lock", "-n"][..],
        &["run", "-n", "touch", "ran"],
        &["unlock"],
        &["unlock", "--force"],
        &["status"],
    ] {
        let ended =
            keys.run(&[&args[..1], &["--file-name", "once%2Fserializer.lck"], &args[1..]].concat());
        refused(&ended, 1, &["is not a lock file: it tells of the run of a key"]);
        assert_eq!(keys.record("serializer.lck"), before, "{args:?}");
    }
}

#[test]
fn a_python_plugin_is_not_waited_for() {
    if lacks("signalfd") {
        return;
    }
    let keys = Keys::new();
    let mut plugin = legacy_plugin(&keys.0, "print(attempt(), flush=True); sys.stdin.read()");
    let mut plugin =
        plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    assert_eq!(crate::support::first_line(&mut plugin), "True");
    let trace = keys.0.dir().join("trace");
    for script in ["exit 1", "exit 1", "exit 0"] {
        let mut command = keys.0.command("strace");
        command.args(["-f", "-qq", "-e", "trace=clock_nanosleep", "-o"]).arg(&trace);
        command.args([crate::support::PROGRAM, "once", "load", "--", "bash", "-c", script]);
        ended(&mut command);
        let slept = fs::read_to_string(&trace).expect("a trace");
        assert!(!slept.contains("nanosleep"), "{slept}");
    }
    assert_eq!(keys.state("load"), ("done".to_owned(), 3));
    drop(plugin.stdin.take());
    plugin.wait().expect("it ends");
}
