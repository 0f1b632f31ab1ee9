//! Tasks on a schedule, on one host: their state is in files.

use std::fs;
use std::io::Read;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::faults::Logged;
use crate::support::tasks::{Tasks, assert_each_is_run_once};
use crate::support::{Locks, ended, until};

/// Runs each second, and each slot.
pub const EACH: &str = "every = '1s'\ncatch_up = 'all'\n";

/// Ends with what it is told.
pub const GATE: &str = "run = '. ./tell; read -r code < go; exit $code'\n";

/// Writes down its processes, which do not end by themselves; one of them is not in its process
/// group.
pub const FAMILY: &str = "run = '''. ./tell
    setsid sleep 600 & echo $! >> pids; sleep 600 & echo $! >> pids; echo $$ >> pids; wait'''\n";

/// For what has to have its time.
pub const PLAIN: &str = "[tasks.b]\nevery = '1s'\ncatch_up = 'all'\nrun = '. ./tell'\n";

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

pub fn is(status: &str, result: &str) -> (String, String) {
    (status.to_owned(), result.to_owned())
}

/// Ends a scheduler; its tasks end within that time.
pub fn stop(scheduler: Logged) {
    scheduler.signal(Signal::TERM);
    let (code, said) = scheduler.end();
    assert_eq!(code, 0, "{said}");
}

/// Ends a scheduler, and waits until it is gone. Its runners stay.
pub fn kill(scheduler: Logged) {
    drop(scheduler);
}

pub fn until_after(time: Timestamp) {
    until("time does not pass", || Timestamp::now() > time);
}

/// The runner that a scheduler has.
fn runner(scheduler: &Logged) -> Pid {
    let pid = scheduler.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
    Pid::from_raw(children.trim().parse().expect("one child")).expect("a PID")
}

#[test]
fn each_slot_is_run_once_by_two_schedulers_and_a_crontab_of_ticks() {
    let tasks = tasks(&format!("{PLAIN}[tasks.a]\n{EACH}run = '. ./tell'\n"));
    let schedulers = [tasks.start(0, &[]), tasks.start(1, &[])];
    // As if its host slept for some slots. A scheduler that is stopped during a write blocks the
    // file for other schedulers on its host: then it is stopped at another time.
    schedulers[0].until_said("tasks to schedule");
    until("they do not run beside a scheduler that is stopped", || {
        let counts = || ["a", "b"].map(|task| tasks.lines(task).len());
        let before = counts();
        let have_run = || (0..2).all(|task| counts()[task] >= before[task] + 3);
        schedulers[0].signal(Signal::STOP);
        let stopped = Instant::now();
        while stopped.elapsed() < Duration::from_secs(20) && !have_run() {
            sleep(Duration::from_millis(20));
        }
        schedulers[0].signal(Signal::CONT);
        have_run()
    });
    until("they do not run", || {
        assert_eq!(ended(&mut tasks.command(2, &["tick"])).code, 0);
        ["a", "b"].iter().all(|task| tasks.lines(task).len() >= 6)
    });
    schedulers.into_iter().for_each(stop);
    ["a", "b"].iter().for_each(|task| assert_each_is_run_once(&tasks.lines(task)));
}

#[test]
fn a_tick_runs_what_is_due_and_ends_when_that_has_ended() {
    let tasks =
        tasks("[tasks.a]\nevery = '1s'\nrun = '. ./tell; sleep 0.2; echo >> ends; exit 3'\n");
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
fn a_scheduler_with_sigchld_ignored_claims_nothing() {
    let tasks = tasks(PLAIN);
    let refused = ended(&mut tasks.within(&["env", "--ignore-signal=CHLD"], &["tick"]));
    assert!(refused.code == 1 && refused.stderr.contains("SIGCHLD is ignored"), "{refused:?}");
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
    let late: Vec<_> =
        tasks.lines("b").into_iter().filter(|line| line.time() > then.as_millisecond()).collect();
    assert!(late.is_empty() && tasks.lines("a").len() == 1, "{late:?}");
}

#[test]
fn a_scheduler_without_running_tasks_says_which_signal_has_ended_it() {
    let tasks = tasks("tasks.a = { every = '1000h', run = 'true' }\n");
    for (host, signal, name) in [(0, Signal::TERM, "SIGTERM"), (1, Signal::INT, "SIGINT")] {
        let scheduler = tasks.start(host, &[]);
        scheduler.until_said("tasks to schedule: 1");
        scheduler.signal(signal);
        let (code, said) = scheduler.end();
        assert!(code == 0 && said.ends_with(&format!(": stopped by {name}\n")), "{said}");
    }
}

#[test]
fn tasks_end_after_the_time_to_stop_with_all_their_processes_and_another_scheduler_runs_them_again()
{
    let tasks = tasks(&format!("[tasks.a]\n{EACH}{FAMILY}"));
    let scheduler = tasks.start(0, &["--stop-timeout", "0s", "--events", "events"]);
    until("it does not run", || tasks.read("pids").lines().count() == 3);
    stop(scheduler);
    tasks.are_gone("pids");
    assert_eq!(tasks.events(), ["acquire", "release", "interruption"], "{}", tasks.read("events"));
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
fn a_run_with_a_killed_runner_is_repeated_when_its_command_has_ended() {
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
fn a_run_that_takes_too_long_is_ended_with_its_descendants() {
    let tasks = tasks(&format!("[tasks.a]\ntimeout = '3s'\n{FAMILY}"));
    let ended = tasks.run(&["run", "a"]);
    assert!(ended.code != 0 && ended.stdout.contains(": timed out"), "{ended:?}");
    assert_eq!(
        (tasks.state("a"), tasks.read("pids").lines().count()),
        (is("failed", "timed out"), 3)
    );
    tasks.are_gone("pids");
}

#[test]
fn tasks_with_a_limit_of_one_do_not_run_at_a_time() {
    let text = |name| {
        format!(
            "[tasks.{name}]\n{EACH}limit = 'one'\nrun = '. ./tell; mkdir alone || echo overlap >> \
             log; sleep 0.1; rmdir alone'\n"
        )
    };
    let tasks = tasks(&format!("[limits]\none = 1\n{}{}", text("a"), text("c")));
    let schedulers = [tasks.start(0, &["--jobs", "4"]), tasks.start(1, &["--jobs", "4"])];
    ["a", "c"].iter().for_each(|task| tasks.until_lines(task, 0, 4));
    schedulers.into_iter().for_each(stop);
    ["a", "c"].iter().for_each(|task| assert_each_is_run_once(&tasks.lines(task)));
}

#[test]
fn output_that_is_not_read_stops_nothing() {
    let tasks = tasks(&format!(
        "[tasks.a]\n{EACH}run = '. ./tell; seq 10000 && seq 10000 >&2 && echo >> ends'\n"
    ));
    let shell = ["bash", "-c", r#"{ "$@" 2>&1 & echo $! > pid; } | head -1"#, "bash"];
    let first = ended(&mut tasks.within(&shell, &["start"]));
    assert!(first.stdout.contains("tasks to schedule: 1"), "{first:?}");
    until("its commands do not end", || tasks.read("ends").lines().count() >= 4);
    assert_each_is_run_once(&tasks.lines("a"));
    let pid = Pid::from_raw(tasks.read("pid").trim().parse().expect("a PID")).expect("a PID");
    kill_process(pid, Signal::TERM).expect("it runs");
    tasks.are_gone("pid");
}

#[test]
fn tasks_beyond_their_limit_take_no_job() {
    let text = |name| format!("[tasks.{name}]\n{EACH}limit = 'one'\n{GATE}");
    let limited = format!("[limits]\none = 1\n{}{}", text("a"), text("c"));
    let tasks = tasks(&limited);
    let scheduler = tasks.start(0, &["--jobs", "2"]);
    until("neither runs", || !tasks.read("log").is_empty());
    tasks.define(&format!("{limited}{PLAIN}"));
    tasks.until_lines("b", 0, 4);
    assert_eq!(tasks.lines("a").len() + tasks.lines("c").len(), 1);
    scheduler.signal(Signal::TERM);
    tasks.go("0");
    assert_eq!(scheduler.end().0, 0);
}

#[test]
fn all_output_of_a_command_is_written_for_a_reader_that_comes_late() {
    // As much as is in two pipes; and a line that is cut between the bytes of a character.
    let long = r#"printf "x%.0s" $(seq 8191); printf "ä%.0s" $(seq 2000); echo"#;
    let text = format!("run = '''. ./tell; seq 10000; {long}; echo LAST'''\n");
    let tasks = tasks(&format!("[tasks.a]\nevery = '1h'\n{text}"));
    let mut run = tasks.command(0, &["run", "a"]);
    let mut run = run.stdout(Stdio::piped()).spawn().expect("it starts");
    until("it does not end", || tasks.state("a").0 == "done");
    // Longer than it waits for output of processes that the command has left behind.
    sleep(Duration::from_secs(2));
    let mut output = String::new();
    run.stdout.take().expect("a pipe").read_to_string(&mut output).expect("UTF-8");
    assert_eq!(run.wait().expect("it ends").code(), Some(0));
    let is_there = |line: &str| output.lines().any(|it| it == format!("a | {line}"));
    assert!(is_there("10000") && is_there("LAST"), "{} bytes", output.len());
    assert_eq!(output.matches('ä').count(), 2000);
    assert!(output.lines().last().is_some_and(|last| last.contains("` of ")), "{output}");
}
