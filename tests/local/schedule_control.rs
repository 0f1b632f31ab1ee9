//! What users do about tasks on a schedule, and what they are told, on one host.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::Signal;

use crate::schedule::{EACH, FAMILY, GATE, PLAIN, is, kill, stop, tasks, until_after};
use crate::support::{ended, until};

fn code(mut child: Child) -> Option<i32> {
    until("it does not end", || child.try_wait().expect("it can be asked").is_some());
    child.wait().expect("it has ended").code()
}

#[test]
fn status_shows_each_task_and_check_says_whether_one_has_failed() {
    let file = |code| {
        format!(
            "tasks.good = {{ every = '1000h', run = 'true' }}\ntasks.bad = {{ every = '1000h', run \
             = 'exit {code}' }}\ntasks.idle = {{ every = '1000h', run = 'true' }}\ntasks.off = {{ \
             every = '1000h', run = 'true', enabled = false }}\ntasks.far = {{ cron = '0 6 1 1 *', \
             time_zone = 'Asia/Tokyo', run = 'true' }}\n"
        )
    };
    let tasks = tasks(&file(3));
    assert_eq!((tasks.run(&["tick"]).code, tasks.run(&["status", "--check"]).code), (0, 0));
    let run = |task| tasks.run(&["run", task]).code;
    assert_eq!(["good", "bad"].map(run), [0, 3]);
    assert_eq!(tasks.run(&["pause", "idle"]).code, 0);
    let table = tasks.run(&["status", "--check"]);
    assert_eq!(table.code, 1, "{table:?}");
    let rows: Vec<Vec<&str>> =
        table.stdout.lines().map(|line| line.split("  ").map(str::trim).collect()).collect();
    let row = |name: &str| {
        rows.iter()
            .find(|row| row[0] == name)
            .unwrap_or_else(|| panic!("{name}: {rows:?}"))
            .join(" ")
    };
    assert!(row("bad").contains("every 1000h") && row("bad").contains("failed"), "{rows:?}");
    assert!(row("bad").contains("ended with 3") && row("good").contains("done"), "{rows:?}");
    assert!(row("idle").contains("paused") && row("off").contains("no"), "{rows:?}");
    // Whatever the zones of tasks, and within the lines of a terminal.
    assert!(row("good").contains(" ago") && !row("far").contains(':'), "{rows:?}");
    let without_host = |line: &str| line.rsplit_once("  ").map_or(0, |(rest, _)| rest.len());
    assert!(table.stdout.lines().all(|line| without_host(line) <= 75), "{table:?}");
    let metrics = tasks.run(&["status", "--metrics"]).stdout;
    for line in [
        "failed{task=\"bad\"} 1",
        "failed{task=\"good\"} 0",
        "paused{task=\"idle\"} 1",
        "running{task=\"good\"} 0",
    ] {
        assert!(
            metrics.lines().any(|known| known == format!("serializer_task_{line}")),
            "{line}: {metrics}"
        );
    }
    tasks.define(&file(0));
    assert_eq!((run("bad"), tasks.run(&["status", "--check"]).code), (0, 0));
    assert_eq!(tasks.status("bad")["exit_code"], 0);
}

#[test]
fn watch_shows_what_becomes_of_a_task() {
    let tasks = tasks("[tasks.a]\nrun = 'exit 3'\n");
    let out = fs::File::create(tasks.dir().join("out")).expect("a file");
    let mut watching =
        tasks.command(0, &["status", "--watch"]).stdout(out).spawn().expect("it starts");
    tasks.until_in("out", "waiting");
    assert_eq!(tasks.run(&["run", "a"]).code, 3);
    tasks.until_in("out", "failed");
    watching.kill().and_then(|()| watching.wait()).expect("it runs");
    assert!(!tasks.read("out").contains("done"), "{}", tasks.read("out"));
}

#[test]
fn next_shows_slots_in_their_zone_and_checks_the_file() {
    let tasks =
        tasks("[tasks.a]\ncron = '*/15 6-22 * * 1-5'\ntime_zone = 'Europe/Berlin'\nrun = 'true'\n");
    let next = tasks.run(&["next", "a", "-n", "2", "--from", "2026-12-04T21:40:00Z"]);
    let lines: Vec<_> = next.stdout.lines().skip(1).collect();
    assert!(next.code == 0 && lines.len() == 2, "{next:?}");
    assert!(
        lines[0].contains("2026-12-04 22:45:00") && lines[0].contains("2026-12-04T21:45:00Z"),
        "{next:?}"
    );
    assert!(
        lines[1].contains("2026-12-07 06:00:00") && lines[1].contains("2026-12-07T05:00:00Z"),
        "{next:?}"
    );
    assert_eq!(tasks.run(&["next", "b"]).code, 2);
    tasks.define("[tasks.a]\ncorn = '* * * * *'\nrun = 'true'\n");
    for args in [["next"], ["start"], ["tick"], ["status"]] {
        let bad = tasks.run(&args);
        assert!(bad.code == 2 && bad.stderr.lines().count() == 1, "{bad:?}");
        assert!(bad.stderr.contains("line 2") && bad.stderr.contains("`cron`"), "{bad:?}");
    }
}

#[test]
fn a_task_is_run_on_request_unless_it_is_running() {
    let tasks = tasks(&format!("[tasks.a]\n{GATE}"));
    let slot = "2020-01-01T00:00:00Z";
    let running = tasks
        .command(0, &["run", "a", "--slot", slot])
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    tasks.until_lines("a", 0, 1);
    assert_eq!(tasks.state("a").0, "running");
    let second = tasks.run(&["run", "a"]);
    assert!(second.code == 75 && second.stderr.contains("it is running"), "{second:?}");
    tasks.go("7");
    assert_eq!((code(running), tasks.state("a")), (Some(7), is("failed", "ended with 7")));
    let lines = tasks.lines("a");
    assert_eq!((lines.len(), lines[0].slot.as_str()), (1, slot));
}

#[test]
fn a_task_that_is_not_known_is_named() {
    let tasks = tasks("[tasks.xy]\nrun = 'true'\n");
    let verbs = [("run", 2), ("pause", 1), ("resume", 1), ("stop", 1), ("forget", 1), ("next", 2)];
    for (verb, code) in verbs {
        let refused = tasks.run(&[verb, "xyz"]);
        assert!(
            refused.code == code && refused.stderr.contains("did you mean `xy`?"),
            "{verb}: {refused:?}"
        );
        assert_eq!(refused.stderr.lines().count(), 1, "{verb}: {refused:?}");
    }
    assert!(tasks.run(&["run"]).stderr.contains("`serializer schedule run --help`"));
}

#[test]
fn a_task_that_was_never_seen_can_be_paused_and_does_not_run() {
    let tasks = tasks("[tasks.a]\nrun = 'true'\n");
    let stopped = tasks.run(&["stop", "a"]);
    assert!(stopped.code == 0 && stopped.stderr.contains("is not running"), "{stopped:?}");
    assert_eq!([tasks.run(&["pause", "a"]).code, tasks.run(&["tick"]).code], [0, 0]);
    assert_eq!(tasks.state("a").0, "paused");
}

#[test]
fn a_removed_task_is_forgotten_unless_it_runs() {
    let tasks = tasks(&format!("[tasks.a]\n{GATE}"));
    let running = tasks.command(0, &["run", "a"]).stdout(Stdio::null()).spawn().expect("it starts");
    tasks.until_lines("a", 0, 1);
    let refused = |why: &str| {
        let ended = tasks.run(&["forget", "a"]);
        assert!(ended.code == 77 && ended.stderr.contains(why), "{ended:?}");
    };
    refused("it is still defined");
    tasks.define("");
    refused("it is running");
    tasks.go("3");
    assert_eq!((code(running), tasks.run(&["status", "--check"]).code), (Some(3), 1));
    assert_eq!(tasks.run(&["forget", "a"]).code, 0);
    let left = tasks.run(&["status", "--check"]);
    assert_eq!((left.code, left.stdout.as_str()), (0, "no tasks\n"));
    assert_eq!(tasks.run(&["forget", "a"]).code, 1);
}

#[test]
fn a_directory_that_does_not_exist_is_named() {
    let tasks = tasks("[tasks.a]\ndirectory = 'absent'\nrun = 'true'\n");
    let refused = tasks.run(&["run", "a"]);
    let expected = format!("cannot run `a` in `{}/absent`: no such file", tasks.dir().display());
    assert!(refused.code == 1 && refused.stderr.contains(&expected), "{refused:?}");
    let refused = tasks.run(&["next", "--file", "absent.toml"]);
    assert!(
        refused.code == 2 && refused.stderr.contains("cannot read `absent.toml`: no such file"),
        "{refused:?}"
    );
    let refused = tasks.run(&["pause", "a", "--dir", "absent"]);
    assert!(refused.stderr.contains("cannot create the task file `"), "{refused:?}");
}

#[test]
fn a_slot_is_given_up_after_ten_interruptions_with_a_warning() {
    let tasks = tasks(&format!("[tasks.a]\n{EACH}run = '. ./tell; kill -KILL $PPID'\n"));
    let mut said = String::new();
    until("it is not given up", || {
        said = tasks.run(&["tick"]).stderr;
        tasks.lines("a").len() > 11
    });
    let lines = tasks.lines("a");
    assert_eq!((lines[10].number, lines[11].number), (11, 1), "{lines:?}");
    let warning = format!("gave up `a` of {}: its run was interrupted (try 11)", lines[0].slot);
    assert_eq!(said.matches(&warning).count(), 1, "{said}");
}

#[test]
fn runners_report_as_the_flags_of_their_scheduler_say() {
    let tasks =
        tasks(&format!("[tasks.a]\ndirectory = 'sub'\n{FAMILY}").replace("./tell", "../tell"));
    fs::create_dir(tasks.dir().join("sub")).expect("a directory");
    let mut run = tasks
        .command(0, &["run", "a", "--log-levels", "--log-level", "debug", "--events", "events"]);
    let out = fs::File::create(tasks.dir().join("out")).expect("a file");
    let running = run.stdout(out).spawn().expect("it starts");
    until("it does not run", || tasks.read("sub/pids").lines().count() == 3);
    assert_eq!(tasks.run(&["stop", "a", "--events", "events"]).code, 0);
    assert_eq!(code(running), Some(143));
    assert!(tasks.read("out").contains("debug: locked `"), "{}", tasks.read("out"));
    let names = tasks.events();
    assert_eq!(names, ["acquire", "stop", "release"], "{}", tasks.read("events"));
}

#[test]
fn a_paused_task_does_not_run_until_it_is_resumed_and_then_from_its_next_slot_on() {
    let tasks = tasks(&format!("{PLAIN}[tasks.a]\n{EACH}run = '. ./tell'\n"));
    let scheduler = tasks.start(0, &[]);
    tasks.until_lines("a", 0, 1);
    assert_eq!(tasks.run(&["pause", "a"]).code, 0);
    until("it runs", || tasks.state("a").0 == "paused");
    let count = tasks.lines("a").len();
    tasks.until_more("b", 3);
    assert_eq!(tasks.lines("a").len(), count);
    let missed = tasks.lines("b").pop().expect("a line").time();
    assert_eq!(tasks.run(&["resume", "a"]).code, 0);
    tasks.until_lines("a", count, 1);
    assert!(tasks.lines("a")[count].time() > missed, "{:?}", tasks.lines("a"));

    let end = Timestamp::now() + Duration::from_secs(5);
    assert_eq!(tasks.run(&["pause", "a", "--until", &end.to_string()]).code, 0);
    until("it runs", || tasks.state("a").0 == "paused");
    let count = tasks.lines("a").len();
    tasks.until_lines("a", count, 1);
    assert!(tasks.lines("a")[count].time() > end.as_millisecond(), "{:?}", tasks.lines("a"));
    assert_eq!(tasks.run(&["pause", "a", "--until", "2020-01-01T00:00:00Z"]).code, 2);
    stop(scheduler);
}

#[test]
fn a_changed_file_is_read_again_and_a_bad_one_changes_nothing() {
    let tasks = tasks(&format!("[tasks.a]\n{EACH}run = '. ./tell'\n"));
    let scheduler = tasks.start(0, &[]);
    tasks.until_lines("a", 0, 1);
    // The task has another name now.
    tasks.define(PLAIN);
    tasks.until_lines("b", 0, 2);
    let count = tasks.lines("a").len();
    tasks.define("[tasks.b]\nevery = 'often'\nrun = 'true'\n");
    scheduler.until_said("the tasks stay as they were");
    assert!(scheduler.said().contains("tasks.b.every"), "{}", scheduler.said());
    tasks.until_more("b", 2);
    assert_eq!(tasks.lines("a").len(), count);
    tasks.define(PLAIN);
    let times = || scheduler.said().matches("read the tasks again").count();
    until("it is not read", || times() == 2);
    scheduler.signal(Signal::HUP);
    until("it is not read", || times() == 3);
    stop(scheduler);
}

#[test]
fn the_run_of_a_removed_task_ends_and_is_its_last_one() {
    let tasks = tasks(&format!("[tasks.a]\n{EACH}{GATE}"));
    let scheduler = tasks.start(0, &["--jobs", "2"]);
    tasks.until_lines("a", 0, 1);
    tasks.define(PLAIN);
    scheduler.signal(Signal::HUP);
    tasks.until_lines("b", 0, 1);
    tasks.go("0");
    until("its end is not stored", || tasks.state("a").1 == "ended with 0");
    tasks.until_more("b", 2);
    assert_eq!(tasks.lines("a").len(), 1);
    stop(scheduler);
}

#[test]
fn a_slot_is_tried_again_as_often_as_its_task_says_and_then_notified() {
    let file = |code| {
        format!(
            "[tasks.a]\n{EACH}tries = 3\nretry_after = '0s'\nrun = '. ./tell; exit {code}'\nnotify \
             = ['sh', '-c', 'echo $SERIALIZER_EVENT $SERIALIZER_TASK $SERIALIZER_EXIT_CODE >> \
             told']\n"
        )
    };
    let tasks = tasks(&file(3));
    let scheduler = tasks.start(0, &[]);
    tasks.until_in("told", "failed a 3\n");
    tasks.until_lines("a", 3, 1);
    let lines = tasks.lines("a");
    let numbers: Vec<_> = lines[..4].iter().map(|line| line.number).collect();
    assert_eq!((numbers, lines[2].slot == lines[0].slot), (vec![1, 2, 3, 1], true), "{lines:?}");
    tasks.define(&file(0));
    tasks.until_in("told", "recovered a 0\n");
    stop(scheduler);
}

#[test]
fn slots_that_come_due_during_a_run_are_skipped_counted_and_notified() {
    let tasks = tasks(&format!(
        "[tasks.a]\nevery = '1s'\n{GATE}notify = ['sh', '-c', 'echo $SERIALIZER_EVENT \
         $SERIALIZER_SKIPPED >> told']\n"
    ));
    let scheduler = tasks.start(0, &[]);
    tasks.until_lines("a", 0, 1);
    until_after(Timestamp::from_millisecond(tasks.lines("a")[0].time() + 3000).expect("a time"));
    tasks.go("0");
    tasks.until_lines("a", 1, 1);
    let lines = tasks.lines("a");
    let skipped = (lines[1].time() - lines[0].time()) / 1000 - 1;
    assert!(
        skipped >= 3 && tasks.status("a")["skipped"] == skipped,
        "{lines:?} {}",
        tasks.status("a")
    );
    tasks.go("0");
    tasks.until_in("told", &format!("skipped {skipped}\n"));
    kill(scheduler);
}

#[test]
fn output_has_the_name_of_its_task_or_is_json() {
    let tasks =
        tasks("[tasks.a]\nevery = '1s'\nrun = 'echo out; echo err >&2; printf \"to the end\"'\n");
    let ran = tasks.run(&["run", "a"]);
    assert!(ran.stdout.starts_with("a | out\na | err\na | to the end\n"), "{ran:?}");
    let scheduler = tasks.start(0, &["--json"]);
    scheduler.until_said("to the end");
    let said = scheduler.said();
    let line = said.lines().find(|line| line.contains("to the end")).expect("a line");
    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
    assert!(line["task"] == "a" && line["line"] == "to the end", "{said}");
    let is_time =
        |key: &str| line[key].as_str().is_some_and(|time| time.parse::<Timestamp>().is_ok());
    assert!(is_time("slot") && is_time("timestamp"), "{said}");
    stop(scheduler);
}

#[test]
fn a_command_has_its_directory_its_variables_and_its_input() {
    let slot = "2020-01-01T00:00:00Z";
    let file = "[tasks.a]\ndirectory = 'sub'\nenv = { X = 'x' }\nrun = 'echo $X $SERIALIZER_TASK \
                $SERIALIZER_SLOT > vars'\n";
    let tasks = tasks(file);
    let made = ended(Command::new("mkdir").arg("sub").current_dir(tasks.dir()));
    assert_eq!(made.code, 0);
    assert_eq!(tasks.run(&["run", "a", "--slot", slot]).code, 0);
    assert_eq!(tasks.read("sub/vars"), format!("x a {slot}\n"));
    let line =
        "* * * * * cat > got; echo $X $SERIALIZER_TRY $SERIALIZER_ONCE_KEY \\% > vars%one%two";
    fs::write(
        tasks.dir().join("crontab"),
        format!("X=y\nHOME={}/sub\n# name: c\n{line}\n", tasks.dir().display()),
    )
    .expect("a file");
    let ran = tasks.run(&["run", "--crontab", "crontab", "c"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!([tasks.read("sub/vars"), tasks.read("sub/got")], ["y 1 c %\n", "one\ntwo\n"]);
    // The orders of its runner hold the store's password.
    tasks.define(
        "[limits]\none = 1\n[tasks.d]\nlimit = 'one'\nrun = 'cat /dev/stdin'\n[tasks.e]\nrun = \
         'cat /dev/stdin'\n",
    );
    for task in ["d", "e"] {
        let ran = tasks.run(&["run", task]);
        assert!(
            ran.code == 0 && ran.stdout.lines().count() == 1 && ran.stdout.contains("is done"),
            "{ran:?}"
        );
    }
}
