//! Tasks on hosts with adjusted clocks, and in a store without a clock. A clock's time is in a
//! file, or fixed (libfaketime).

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::support::faults::Logged;
use crate::support::servers::faketime_library;
use crate::support::stores::Store;
use crate::support::tasks::Tasks;
use crate::support::{ended, until};

fn tasks<'a>(store: &'a Store, text: &str) -> Tasks<'a> {
    let make = |_: usize, args: &[&str]| store.serializer(args);
    Tasks::new(store.locks.dir().to_owned(), text, Box::new(make))
}

/// Lets a command see another time. Only the calendar's clock is another one.
fn with_a_clock<'a>(command: &'a mut Command, variable: &str, value: &str) -> &'a mut Command {
    command.env("LD_PRELOAD", faketime_library()).env("FAKETIME_NO_CACHE", "1");
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env(variable, value)
}

#[test]
fn a_clock_that_is_set_runs_no_slot_twice_and_resume_takes_back_where_it_was_ahead() {
    let store = Store::in_a_directory();
    let tasks = tasks(&store, "[tasks.a]\nevery = '30m'\nrun = '. ./tell'\n");
    let clock = tasks.dir().join("clock");
    let write = |time: &str| {
        // It stands still there.
        fs::write(tasks.dir().join("new"), format!("2030-01-01 {time}:00\n")).expect("a file");
        fs::rename(tasks.dir().join("new"), &clock).expect("the clock can be set");
    };
    let command = |args: &[&str]| {
        let mut command = tasks.command(0, args);
        with_a_clock(&mut command, "FAKETIME_TIMESTAMP_FILE", &clock.display().to_string());
        command.env("TZ", "UTC");
        command
    };
    write("10:10");
    let (mut scheduler, said) = (command(&["start"]), tasks.dir().join("said"));
    scheduler.stdout(Stdio::null()).stderr(fs::File::create(&said).expect("a file"));
    let scheduler = Logged::of(scheduler, said);
    // `status` shows a task that was never seen as one that waits, too.
    let stored = tasks.dir().join("schedule%2Fa");
    until("it does not see the task", || {
        fs::read_to_string(&stored).is_ok_and(|text| text.contains("once="))
    });
    let set = |time: &str| {
        write(time);
        // The kernel tells of a real clock at once.
        scheduler.signal(Signal::CHILD);
    };
    set("12:10");
    tasks.until_lines("a", 0, 1);
    until("it does not end", || tasks.state("a").0 == "done");

    // Back, and later: that time's slots were passed.
    set("10:10");
    set("11:25");
    assert_eq!(ended(&mut command(&["tick"])).code, 0);
    assert_eq!(tasks.lines("a").len(), 1, "{:?}", tasks.lines("a"));

    set("10:10");
    assert_eq!(ended(&mut command(&["resume", "a"])).code, 0);
    // Another time than before: the scheduler may have slept through the step between.
    set("11:20");
    tasks.until_lines("a", 1, 1);
    let slots: Vec<_> = tasks.lines("a").into_iter().map(|line| line.slot).collect();
    assert_eq!(slots, ["2030-01-01T12:00:00Z", "2030-01-01T11:00:00Z"]);
    scheduler.signal(Signal::TERM);
    assert_eq!(scheduler.end().0, 0);
}

#[test]
fn a_slot_that_no_host_has_started_is_overdue_and_then_notified() {
    let store = Store::in_a_directory();
    let notify = "notify = ['sh', '-c', 'echo $SERIALIZER_EVENT $SERIALIZER_SLOT >> told']";
    let tasks = tasks(&store, &format!("[tasks.a]\nevery = '1h'\nrun = '. ./tell'\n{notify}\n"));
    assert_eq!(tasks.run(&["tick"]).code, 0);
    // Two minutes after the second slot from now.
    let since = Timestamp::now().as_second() % 3600;
    let later = |args: &[&str]| {
        let mut command = tasks.command(0, args);
        ended(with_a_clock(&mut command, "FAKETIME", &format!("+{}", 2 * 3600 + 120 - since)))
    };
    let told = later(&["status", "--check"]);
    assert!(told.code == 1 && told.stdout.contains("overdue"), "{told:?}");
    assert!(
        later(&["status", "--metrics"]).stdout.contains("serializer_task_overdue{task=\"a\"} 1")
    );
    assert_eq!(tasks.run(&["status", "--check"]).code, 0);
    assert_eq!(later(&["tick"]).code, 0);
    let slot = &tasks.lines("a")[0].slot;
    assert_eq!(tasks.read("told"), format!("skipped {slot}\noverdue {slot}\n"));
    assert_eq!(later(&["status", "--check"]).code, 0);
}

#[test]
fn without_a_clock_in_the_store_check_watches_a_lease_to_its_end() {
    let store = Store { lease: "3".to_owned(), ..Store::in_a_directory() };
    let tasks = tasks(&store, "[tasks.a]\nrun = '. ./tell; exec sleep 600'\n");
    let mut runner = tasks.command(0, &["run", "a"]).process_group(0).spawn().expect("it starts");
    tasks.until_lines("a", 0, 1);
    let alive = tasks.run(&["status", "--check"]);
    assert!(alive.code == 0 && alive.stdout.contains("running"), "{alive:?}");
    // Nothing is left that could tell.
    kill_process_group(Pid::from_child(&runner), Signal::KILL).expect("it runs");
    runner.wait().expect("it has ended");
    assert_eq!(tasks.state("a").0, "running");
    let dead = tasks.run(&["status", "--check"]);
    assert!(dead.code == 1 && dead.stdout.contains("failed"), "{dead:?}");
    assert!(dead.stdout.contains("its lease has expired"), "{dead:?}");
    tasks.define("");
    let forgotten = tasks.run(&["forget", "a"]);
    assert_eq!(
        (forgotten.code, tasks.run(&["status"]).stdout.as_str()),
        (0, "no tasks\n"),
        "{forgotten:?}"
    );
}
