//! Tasks on a schedule, on one host: their state is in files.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::faults::Logged;
use crate::support::tasks::{Tasks, assert_none_is_lost};
use crate::support::{Locks, ended, until};

/// Runs each second, and each slot.
const EACH: &str = "every = '1s'\ncatch_up = 'all'\n";

/// Ends with what it is told.
const GATE: &str = "run = '. ./tell; read -r code < go; exit $code'\n";

/// Writes down its processes, which do not end by themselves; one of them is not in its process group.
const FAMILY: &str = "run = '''. ./tell
    setsid sleep 600 & echo $! >> pids; sleep 600 & echo $! >> pids; echo $$ >> pids; wait'''\n";

/// For what has to have its time.
const PLAIN: &str = "[tasks.b]\nevery = '1s'\ncatch_up = 'all'\nrun = '. ./tell'\n";

pub fn tasks(text: &str) -> Tasks<'static> {
    let locks = Locks::durable();
    let dir = locks.dir().to_owned();
    let make = move |_: usize, args: &[&str]| {
        let mut command = locks.serializer(args);
        command.current_dir(locks.dir());
        command
    };
    Tasks::new(dir, text, Box::new(make))
}

fn is(status: &str, result: &str) -> (String, String) {
    (status.to_owned(), result.to_owned())
}

/// Ends a scheduler; its tasks end within that time.
fn stop(scheduler: Logged) {
    scheduler.signal(Signal::TERM);
    let (code, said) = scheduler.end();
    assert_eq!(code, 0, "{said}");
}

/// Ends a scheduler, and waits until it is gone. Its runners stay.
fn kill(scheduler: Logged) {
    drop(scheduler);
}

fn until_after(time: Timestamp) {
    until("time does not pass", || Timestamp::now() > time);
}

/// The runner that a scheduler has.
fn runner(scheduler: &Logged) -> Pid {
    let pid = scheduler.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
    Pid::from_raw(children.trim().parse().expect("one child")).expect("a PID")
}

fn code(mut child: Child) -> Option<i32> {
    until("it does not end", || child.try_wait().expect("it can be asked").is_some());
    child.wait().expect("it has ended").code()
}

#[test]
fn each_slot_is_run_once_by_two_schedulers_and_a_crontab_of_ticks() {
    let tasks = tasks(&format!("{PLAIN}[tasks.a]\n{EACH}run = '. ./tell'\n"));
    let schedulers = [tasks.start(0, &[]), tasks.start(1, &[])];
    until("they do not run", || {
        assert_eq!(ended(&mut tasks.command(2, &["tick"])).code, 0);
        ["a", "b"].iter().all(|task| tasks.lines(task).len() >= 6)
    });
    schedulers.into_iter().for_each(stop);
    ["a", "b"].iter().for_each(|task| assert_none_is_lost(&tasks.lines(task)));
}

#[test]
fn a_tick_runs_what_is_due_and_ends_when_that_has_ended() {
    let tasks = tasks("[tasks.a]\nevery = '1s'\nrun = '. ./tell; sleep 0.2; echo >> ends; exit 3'\n");
    until("it does not run", || {
        // That a task fails is not a failure of the tick.
        assert_eq!(tasks.run(&["tick"]).code, 0);
        !tasks.lines("a").is_empty()
    });
    let count = tasks.lines("a").len();
    assert_eq!(tasks.read("ends").lines().count(), count);
    assert_eq!(tasks.state("a"), is("failed", "ended with 3"));
    assert_eq!([tasks.run(&["pause", "a"]).code, tasks.run(&["tick"]).code], [0, 0]);
    assert_eq!(tasks.lines("a").len(), count, "nothing is due");
}

#[test]
fn status_shows_each_task_and_check_says_whether_one_has_failed() {
    let file = |code| {
        format!(
            "tasks.good = {{ every = '1h', run = 'true' }}\ntasks.bad = {{ every = '1h', run = 'exit {code}' }}\n\
             tasks.idle = {{ every = '1h', run = 'true' }}\ntasks.off = {{ every = '1h', run = 'true', enabled = false }}\n"
        )
    };
    let tasks = tasks(&file(3));
    assert_eq!((tasks.run(&["tick"]).code, tasks.run(&["status", "--check"]).code), (0, 0));
    // No slot comes due meanwhile.
    let run = |task| tasks.run(&["run", task, "--slot", "2100-01-01T00:00:00Z"]).code;
    assert_eq!(["good", "bad"].map(run), [0, 3]);
    assert_eq!(tasks.run(&["pause", "idle"]).code, 0);
    let table = tasks.run(&["status", "--check"]);
    assert_eq!(table.code, 1, "{table:?}");
    let rows: Vec<Vec<&str>> = table.stdout.lines().map(|line| line.split("  ").map(str::trim).collect()).collect();
    let row = |name: &str| rows.iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("{name}: {rows:?}")).join(" ");
    assert!(row("bad").contains("every 1h") && row("bad").contains("failed"), "{rows:?}");
    assert!(row("bad").contains("ended with 3") && row("good").contains("done"), "{rows:?}");
    assert!(row("idle").contains("paused") && row("off").contains("no"), "{rows:?}");
    let metrics = tasks.run(&["status", "--metrics"]).stdout;
    for line in ["failed{task=\"bad\"} 1", "failed{task=\"good\"} 0", "paused{task=\"idle\"} 1", "running{task=\"good\"} 0"] {
        assert!(metrics.lines().any(|known| known == format!("serializer_task_{line}")), "{line}: {metrics}");
    }
    tasks.define(&file(0));
    assert_eq!((run("bad"), tasks.run(&["status", "--check"]).code), (0, 0));
    assert_eq!(tasks.status("bad")["exit_code"], 0);
}

#[test]
fn next_shows_slots_in_their_zone_and_checks_the_file() {
    let tasks = tasks("[tasks.a]\ncron = '*/15 6-22 * * 1-5'\ntime_zone = 'Europe/Berlin'\nrun = 'true'\n");
    let next = tasks.run(&["next", "a", "-n", "2", "--from", "2026-12-04T21:40:00Z"]);
    let lines: Vec<_> = next.stdout.lines().skip(1).collect();
    assert!(next.code == 0 && lines.len() == 2, "{next:?}");
    assert!(lines[0].contains("2026-12-04 22:45:00") && lines[0].contains("2026-12-04T21:45:00Z"), "{next:?}");
    assert!(lines[1].contains("2026-12-07 06:00:00") && lines[1].contains("2026-12-07T05:00:00Z"), "{next:?}");
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
    let slot = "2030-01-01T00:00:00Z";
    let running = tasks.command(0, &["run", "a", "--slot", slot]).stdout(Stdio::null()).spawn().expect("it starts");
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
    let tasks = tasks("");
    for (args, code) in [(["run", "x"], 2), (["pause", "x"], 1), (["resume", "x"], 1), (["stop", "x"], 1), (["next", "x"], 2)] {
        let refused = tasks.run(&args);
        assert!(refused.code == code && refused.stderr.contains("`x`"), "{args:?}: {refused:?}");
        assert_eq!(refused.stderr.lines().count(), 1, "{args:?}: {refused:?}");
    }
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
fn a_run_of_another_scheduler_is_stopped_with_its_descendants_and_not_tried_again() {
    let tasks = tasks(&format!("[tasks.a]\n{EACH}tries = 3\n{FAMILY}"));
    let scheduler = tasks.start(0, &["--stop-timeout", "0s"]);
    until("it does not run", || tasks.read("pids").lines().count() == 3);
    let stopped = tasks.run(&["stop", "a"]);
    assert!(stopped.code == 0 && stopped.stderr.contains("stopped `a`"), "{stopped:?}");
    scheduler.until_said("failed after");
    assert!(scheduler.said().contains(": stopped\n"), "{}", scheduler.said());
    tasks.until_lines("a", 1, 1);
    let lines = tasks.lines("a");
    assert!(lines[1].number == 1 && lines[1].slot != lines[0].slot, "{lines:?}");
    stop(scheduler);
    tasks.are_gone("pids");
    assert!(tasks.run(&["stop", "a"]).stderr.contains("is not running"));
}

#[test]
fn a_scheduler_that_is_to_end_begins_nothing_and_waits_for_what_runs() {
    let tasks = tasks(&format!("{PLAIN}[tasks.a]\n{EACH}{GATE}"));
    let scheduler = tasks.start(0, &["--stop-timeout", "10m", "--jobs", "3"]);
    ["a", "b"].iter().for_each(|task| tasks.until_lines(task, 0, 1));
    scheduler.signal(Signal::TERM);
    scheduler.until_said("stopping: ");
    let then = Timestamp::now();
    until_after(then + Duration::from_secs(2));
    assert_eq!(tasks.state("a").0, "running");
    tasks.go("0");
    let (code, said) = scheduler.end();
    assert_eq!((code, tasks.state("a")), (0, is("done", "ended with 0")), "{said}");
    let late: Vec<_> = tasks.lines("b").into_iter().filter(|line| line.time() > then.as_millisecond()).collect();
    assert!(late.is_empty() && tasks.lines("a").len() == 1, "{late:?}");
}

#[test]
fn tasks_end_after_the_time_to_stop_with_all_their_processes_and_another_scheduler_runs_them_again() {
    let tasks = tasks(&format!("[tasks.a]\n{EACH}{FAMILY}"));
    let scheduler = tasks.start(0, &["--stop-timeout", "0s"]);
    until("it does not run", || tasks.read("pids").lines().count() == 3);
    stop(scheduler);
    tasks.are_gone("pids");
    assert_eq!(tasks.state("a"), is("interrupted", "interrupted: its scheduler has ended"));
    let scheduler = tasks.start(1, &["--stop-timeout", "0s"]);
    tasks.until_lines("a", 1, 1);
    let lines = tasks.lines("a");
    assert!(lines[1].number == 2 && lines[1].slot == lines[0].slot, "{lines:?}");
    stop(scheduler);
}

#[test]
fn a_run_goes_on_without_its_scheduler_and_ends_as_ever() {
    let tasks = tasks(&format!("{PLAIN}[tasks.a]\n{EACH}{GATE}"));
    let scheduler = tasks.start(0, &[]);
    tasks.until_lines("a", 0, 1);
    kill(scheduler);
    let scheduler = tasks.start(1, &["--jobs", "3"]);
    tasks.until_more("b", 2);
    assert_eq!((tasks.state("a").0.as_str(), tasks.lines("a").len()), ("running", 1));
    tasks.go("0");
    tasks.until_lines("a", 1, 1);
    let lines = tasks.lines("a");
    assert!(lines[1].number == 1 && lines[1].time() == lines[0].time() + 1000, "{lines:?}");
    assert!(!tasks.status("a")["last_success"].is_null());
    kill(scheduler);
    tasks.go("0");
    until("it does not end", || tasks.state("a").0 == "done");
}

#[test]
fn a_run_whose_runner_was_killed_is_repeated_when_its_command_has_ended() {
    let tasks = tasks(&format!("[tasks.a]\n{EACH}{GATE}"));
    let scheduler = tasks.start(0, &[]);
    tasks.until_lines("a", 0, 1);
    kill_process(runner(&scheduler), Signal::KILL).expect("it runs");
    tasks.go("0");
    tasks.until_lines("a", 1, 1);
    let lines = tasks.lines("a");
    assert!(lines[1].number == 2 && lines[1].slot == lines[0].slot, "{lines:?}");
    kill(scheduler);
    tasks.go("0");
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
fn a_run_that_takes_too_long_is_ended_with_its_descendants() {
    let tasks = tasks(&format!("[tasks.a]\ntimeout = '3s'\n{FAMILY}"));
    let ended = tasks.run(&["run", "a"]);
    assert!(ended.code != 0 && ended.stdout.contains(": timed out"), "{ended:?}");
    assert_eq!((tasks.state("a"), tasks.read("pids").lines().count()), (is("failed", "timed out"), 3));
    tasks.are_gone("pids");
}

#[test]
fn a_slot_is_tried_again_as_often_as_its_task_says_and_then_notified() {
    let file = |code| {
        format!(
            "{PLAIN}[tasks.a]\nevery = '1h'\ntries = 3\nretry_after = '0s'\nrun = '. ./tell; exit {code}'\n\
             notify = ['sh', '-c', 'echo $SERIALIZER_EVENT $SERIALIZER_TASK $SERIALIZER_SLOT $SERIALIZER_EXIT_CODE >> told']\n"
        )
    };
    let (tasks, slot) = (tasks(&file(3)), "2100-01-01T00:00:00Z");
    assert_eq!(tasks.run(&["run", "a", "--slot", slot]).code, 3);
    let scheduler = tasks.start(0, &[]);
    tasks.until_in("told", &format!("failed a {slot} 3\n"));
    tasks.until_more("b", 2);
    let numbers: Vec<_> = tasks.lines("a").iter().map(|line| line.number).collect();
    assert_eq!(numbers, [1, 2, 3]);
    stop(scheduler);
    tasks.define(&file(0));
    assert_eq!(tasks.run(&["run", "a", "--slot", slot]).code, 0);
    assert_eq!(tasks.read("told"), format!("failed a {slot} 3\nrecovered a {slot} 0\n"));
}

#[test]
fn slots_that_come_due_during_a_run_are_skipped_counted_and_notified() {
    let tasks = tasks(&format!(
        "[tasks.a]\nevery = '1s'\n{GATE}notify = ['sh', '-c', 'echo $SERIALIZER_EVENT $SERIALIZER_SKIPPED >> told']\n"
    ));
    let scheduler = tasks.start(0, &[]);
    tasks.until_lines("a", 0, 1);
    until_after(Timestamp::from_millisecond(tasks.lines("a")[0].time() + 3000).expect("a time"));
    tasks.go("0");
    tasks.until_lines("a", 1, 1);
    let lines = tasks.lines("a");
    let skipped = (lines[1].time() - lines[0].time()) / 1000 - 1;
    assert!(skipped >= 3 && tasks.status("a")["skipped"] == skipped, "{lines:?} {}", tasks.status("a"));
    tasks.go("0");
    tasks.until_in("told", &format!("skipped {skipped}\n"));
    kill(scheduler);
}

#[test]
fn tasks_with_a_limit_of_one_do_not_run_at_a_time() {
    let text = |name| {
        format!(
            "[tasks.{name}]\n{EACH}limit = 'one'\n\
             run = '. ./tell; mkdir alone || echo overlap >> log; sleep 0.1; rmdir alone'\n"
        )
    };
    let tasks = tasks(&format!("[limits]\none = 1\n{}{}", text("a"), text("c")));
    let schedulers = [tasks.start(0, &["--jobs", "4"]), tasks.start(1, &["--jobs", "4"])];
    ["a", "c"].iter().for_each(|task| tasks.until_lines(task, 0, 4));
    schedulers.into_iter().for_each(stop);
    ["a", "c"].iter().for_each(|task| assert_none_is_lost(&tasks.lines(task)));
}

#[test]
fn output_has_the_name_of_its_task_or_is_json() {
    let tasks = tasks("[tasks.a]\nevery = '1s'\nrun = 'echo out; echo err >&2; printf \"to the end\"'\n");
    let ran = tasks.run(&["run", "a"]);
    assert!(ran.stdout.starts_with("a | out\na | err\na | to the end\n"), "{ran:?}");
    let scheduler = tasks.start(0, &["--json"]);
    scheduler.until_said("to the end");
    let said = scheduler.said();
    let line = said.lines().find(|line| line.contains("to the end")).expect("a line");
    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
    assert!(line["task"] == "a" && line["line"] == "to the end", "{said}");
    let is_time = |key: &str| line[key].as_str().is_some_and(|time| time.parse::<Timestamp>().is_ok());
    assert!(is_time("slot") && is_time("timestamp"), "{said}");
    stop(scheduler);
}

#[test]
fn a_command_has_its_directory_its_variables_and_its_input() {
    let slot = "2030-01-01T00:00:00Z";
    let file = "[tasks.a]\ndirectory = 'sub'\nenv = { X = 'x' }\nrun = 'echo $X $SERIALIZER_TASK $SERIALIZER_SLOT > vars'\n";
    let tasks = tasks(file);
    let made = ended(Command::new("mkdir").arg("sub").current_dir(tasks.dir()));
    assert_eq!(made.code, 0);
    assert_eq!(tasks.run(&["run", "a", "--slot", slot]).code, 0);
    assert_eq!(tasks.read("sub/vars"), format!("x a {slot}\n"));
    let line = "* * * * * cat > got; echo $X $SERIALIZER_TRY $SERIALIZER_ONCE_KEY \\% > vars%one%two";
    fs::write(tasks.dir().join("crontab"), format!("X=y\nHOME={}/sub\n# name: c\n{line}\n", tasks.dir().display()))
        .expect("a file");
    let ran = tasks.run(&["run", "--crontab", "crontab", "c"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!([tasks.read("sub/vars"), tasks.read("sub/got")], ["y 1 c %\n", "one\ntwo\n"]);
}

#[test]
fn output_that_is_not_read_stops_nothing() {
    let tasks = tasks(&format!("[tasks.a]\n{EACH}run = '. ./tell; seq 10000; seq 10000 >&2'\n"));
    let shell = ["bash", "-c", r#"{ "$@" 2>&1 & echo $! > pid; } | head -1"#, "bash"];
    let first = ended(&mut tasks.within(&shell, &["start"]));
    assert!(first.stdout.contains("tasks to schedule: 1"), "{first:?}");
    tasks.until_lines("a", 0, 4);
    assert_none_is_lost(&tasks.lines("a"));
    let pid = Pid::from_raw(tasks.read("pid").trim().parse().expect("a PID")).expect("a PID");
    kill_process(pid, Signal::TERM).expect("it runs");
    tasks.are_gone("pid");
}
