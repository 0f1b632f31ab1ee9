//! The steps from a scheduler's claim of a slot to the stored end of its run: at each, a side is
//! killed or stopped, or its message is lost. Requires strace.

use std::fs;
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Signal, kill_process};

use super::schedule::{EACH, LONG, SHORT, pid_of, tasks_in};
use crate::support::faults::{Logged, proxied};
use crate::support::stores::{Kind, Store};
use crate::support::tasks::{Tasks, assert_each_is_run_once};
use crate::support::{ended, until};

/// Exits with the code from `go`.
const GATE: &str = "run = '. ./tell; read -r code < go; exit $code'\n";

/// The disturbed system calls are not those of a client of a network store.
fn store(lease: Duration) -> Store {
    Store::of(Kind::Directory, lease)
}

/// A command of a scheduler, disturbed by strace.
fn disturbed(tasks: &Tasks<'_>, options: &[&str], args: &[&str]) -> Command {
    tasks.within(&[&["strace", "-D", "-o", "/dev/null", "-qq", "-e"], options].concat(), args)
}

/// A scheduler that ends when nothing is due, disturbed while the slot after `last` is due.
fn disturbed_tick(tasks: &Tasks<'_>, last: i64, options: &[&str]) -> String {
    until("no slot comes due", || Timestamp::now().as_millisecond() >= last + 1000);
    let ended = ended(&mut disturbed(tasks, options, &["tick"]));
    ended.stdout + &ended.stderr
}

/// A scheduler that is disturbed.
fn disturbed_start(tasks: &Tasks<'_>, options: &[&str]) -> Logged {
    let log = tasks.dir().join("disturbed");
    let mut command = disturbed(tasks, options, &["start"]);
    let file = fs::File::create(&log).expect("a file");
    command.stdout(file.try_clone().expect("it can be shared")).stderr(file);
    Logged::of(command, log)
}

fn stop(scheduler: Logged) {
    scheduler.signal(Signal::TERM);
    let (code, said) = scheduler.end();
    assert_eq!(code, 0, "{said}");
}

#[test]
fn a_slot_is_run_again_if_its_hand_over_is_cut_off() {
    let store = store(SHORT);
    let names = [0, 1].map(|number| format!("{}{number}", store.name));
    let text = names.iter().map(|name| format!("[tasks.{name}]\n{EACH}run = '. ./tell'\n"));
    let tasks = tasks_in(&store, &text.collect::<String>());
    assert_eq!(tasks.run(&["tick"]).code, 0);
    let slots = || names.each_ref().map(|name| tasks.status(name)["slot"].as_i64());
    // Stops the scheduler before it writes orders for the runner; then the other task's runner
    // before it reads them.
    let now = Timestamp::now().as_millisecond();
    disturbed_tick(&tasks, now, &["inject=memfd_create:signal=KILL:when=1"]);
    assert_eq!(slots().iter().flatten().count(), 1);
    disturbed_tick(&tasks, 0, &["inject=recvmsg:signal=KILL:when=1", "-f"]);
    let claimed = slots();
    assert_eq!((claimed.iter().flatten().count(), &*tasks.read("log")), (2, ""));
    let scheduler = tasks.start(0, &[]);
    names.iter().for_each(|name| tasks.until_lines(name, 0, 2));
    stop(scheduler);
    for (name, slot) in names.iter().zip(claimed) {
        let mut lines = tasks.lines(name);
        assert_eq!((Some(lines[0].time()), lines[0].number), (slot, 2), "{lines:?}");
        lines[0].number = 1;
        assert_each_is_run_once(&lines);
    }
}

#[test]
fn a_run_that_was_stopped_before_it_began_does_not_begin_beside_the_next_one() {
    let store = store(SHORT);
    let tasks =
        tasks_in(&store, &format!("[tasks.NAME]\n{EACH}run = '. ./tell; exec sleep 600'\n"));
    // Stops the scheduler after its claim, and its runner after it has read its orders.
    let first = disturbed_start(&tasks, &["inject=memfd_create:signal=STOP:when=1", "-f"]);
    until("it claims nothing", || tasks.state(&store.name).0 == "running");
    let second = tasks.start(1, &["--stop-timeout", "0s"]);
    tasks.until_lines(&store.name, 0, 1);
    first.signal(Signal::CONT);
    let runner = pid_of(&first);
    until("it does not end", || {
        // The process may not have stopped yet, or may have ended.
        let _ = kill_process(runner, Signal::CONT);
        first.said().contains("did not start `/bin/sh`: lost `")
    });
    let lines = tasks.lines(&store.name);
    assert_eq!((lines.len(), lines[0].number, &*lines[0].node), (1, 2, "1"), "{lines:?}");
    stop(first);
    stop(second);
}

#[test]
fn a_claim_whose_answer_is_lost_is_found_and_run_at_once() {
    let store = Store::of(Kind::Postgres, LONG);
    let (proxy, through) = proxied(&store);
    let make = |host: usize, args: &[&str]| [&store, &through][host].serializer(args);
    let text = format!("[tasks.{}]\n{EACH}run = '. ./tell'\n", store.name);
    let dir = store.locks.dir().to_owned();
    let make = |host: usize, args: &[&str]| {
        let mut command = make(host, args);
        command.current_dir(&dir);
        command
    };
    let tasks = Tasks::new(dir.clone(), &text, Box::new(make));
    assert_eq!(tasks.run(&["tick"]).code, 0);
    proxy.swallow_answers_from(b"UPDATE serializer_locks");
    let scheduler = tasks.start(1, &[]);
    proxy.wait_until_hit();
    until("it is not claimed", || tasks.state(&store.name).0 == "running");
    proxy.cut();
    scheduler.until_said("cannot inspect the tasks");
    proxy.mend();
    // Long before the lease ends.
    tasks.until_lines(&store.name, 0, 2);
    stop(scheduler);
    assert_each_is_run_once(&tasks.lines(&store.name));
}

#[test]
fn a_slot_whose_runner_cannot_start_is_given_back_and_its_run_is_stopped_at_once() {
    let store = store(LONG);
    let tasks =
        tasks_in(&store, &format!("[tasks.NAME]\n{EACH}run = '. ./tell; exec sleep 600'\n"));
    let scheduler = disturbed_start(&tasks, &["inject=memfd_create:error=EMFILE:when=1"]);
    // Before the lease ends.
    tasks.until_lines(&store.name, 0, 1);
    assert_eq!(tasks.lines(&store.name)[0].number, 2, "{}", scheduler.said());
    // The record names the scheduler at first, and then the runner.
    assert_eq!(tasks.run(&["pause", &store.name]).code, 0);
    let stopped = tasks.run(&["stop", &store.name]);
    assert!(stopped.code == 0 && stopped.stderr.contains("stopped `"), "{stopped:?}");
    scheduler.until_said(": stopped\n");
    stop(scheduler);
}

#[test]
fn an_end_is_stored_by_its_runner_if_the_scheduler_does_not_confirm_it() {
    let store = store(LONG);
    let tasks = tasks_in(&store, &format!("[tasks.NAME]\n{EACH}{GATE}"));
    let name = &store.name;
    let first = tasks.start(0, &[]);
    tasks.until_lines(name, 0, 1);
    first.signal(Signal::STOP);
    tasks.go("0");
    until("its end is not stored", || tasks.status(name)["result"] == "ended with 0");
    // The scheduler finds the old report during the next run.
    let second = tasks.start(1, &[]);
    tasks.until_lines(name, 1, 1);
    first.signal(Signal::CONT);
    let children = format!("/proc/{0}/task/{0}/children", first.pid());
    until("it has not read it", || fs::read_to_string(&children).is_ok_and(|all| all.is_empty()));
    assert_eq!(tasks.state(name).0, "running");
    tasks.go("0");
    tasks.until_lines(name, 2, 1);
    let said = first.said() + &second.said();
    assert_eq!(said.matches("is done after").count(), 2, "{said}");
    // Its scheduler is killed while it runs.
    drop((first, second));
    tasks.go("0");
    until("its end is not stored", || tasks.state(name).0 == "done");
    // A scheduler that is killed after it has stored an end.
    let last = tasks.status(name)["slot"].as_i64().expect("a slot");
    tasks.define(&format!("[tasks.{name}]\n{EACH}run = '. ./tell'\n"));
    let said = disturbed_tick(&tasks, last, &["inject=sendto:signal=KILL:when=1"]);
    assert!(said.contains("is done after"), "{said}");
    assert_each_is_run_once(&tasks.lines(name));
}
