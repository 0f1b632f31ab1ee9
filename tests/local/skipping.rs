//! `run --wait-and-skip`: the first does the work; a later one waits until it is done, and does not
//! do it again; but failed work does not count as done. And `run --name-from-command`, which often
//! starts such jobs.

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::support::{self, Ended, Locks, Shell, Waiter, rounds, until};

/// Waits for a line on the FIFO `go`, notes that it ran, and ends with the exit code that the line
/// tells.
const JOB: &str =
    r#"read -r code < "$SERIALIZER_DIR/go"; echo ran >> "$SERIALIZER_DIR/log"; exit "$code""#;

struct Scene {
    locks: Locks,
    shell: Shell,
}

impl Scene {
    fn new() -> Self {
        let locks = Locks::new();
        let mut shell = Shell::start(&locks);
        // Both ends stay open, so that neither side waits for the other to open it.
        assert_eq!(shell.run(r#"mkfifo "$SERIALIZER_DIR/go" && exec 9<> "$SERIALIZER_DIR/go""#), 0);
        Self { locks, shell }
    }

    fn job(&self) -> Command {
        self.locks.serializer(&[
            "run",
            "--wait-and-skip",
            "--skipped-exit-code",
            "9",
            "--",
            "bash",
            "-c",
            JOB,
        ])
    }

    /// The first one, which has the lock.
    fn first(&self) -> Child {
        let child = self.job().stderr(Stdio::null()).spawn().expect("it starts");
        until("it holds the lock", || self.locks.file().exists());
        child
    }

    fn finish(&mut self, code: u8) {
        assert_eq!(self.shell.run(&format!("echo {code} >&9")), 0);
    }

    fn times_run(&self) -> usize {
        fs::read_to_string(self.locks.dir().join("log")).map_or(0, |log| log.lines().count())
    }

    fn assert_nothing_is_left(&self) {
        let names = self.locks.names();
        assert!(names.iter().all(|name| ["go", "log"].contains(&name.as_str())), "{names:?}");
    }
}

fn code(mut child: Child) -> i32 {
    child.wait().expect("it ends").code().expect("an exit code")
}

#[test]
fn a_process_that_waited_for_a_success_skips_the_command() {
    let mut scene = Scene::new();
    let first = scene.first();
    let others: Vec<Waiter> = (0..4).map(|_| Waiter::start(scene.job())).collect();
    scene.finish(0);
    assert_eq!(code(first), 0);
    for other in others {
        let ended = other.end();
        assert_eq!(ended.code, 9, "{ended:?}");
        assert!(ended.last_line().contains("skipped `bash -c"), "{ended:?}");
    }
    assert_eq!(scene.times_run(), 1);
    scene.assert_nothing_is_left();
}

#[test]
fn skipping_is_a_success_unless_another_code_is_asked_for() {
    let mut scene = Scene::new();
    let first = scene.first();
    let other = Waiter::start(scene.locks.serializer(&["run", "--wait-and-skip", "--", "false"]));
    scene.finish(0);
    assert_eq!((code(first), other.end().code), (0, 0));
}

#[test]
fn a_process_that_waited_for_a_failure_runs_the_command_and_reports_its_end() {
    let mut scene = Scene::new();
    let first = scene.first();
    let (one, two) = (Waiter::start(scene.job()), Waiter::start(scene.job()));
    scene.finish(3);
    assert_eq!(code(first), 3);
    // One of the two takes its place, and the other one waits for that, unless it polls after the
    // end of that run: then it does the work, too.
    scene.finish(0);
    scene.finish(0);
    let codes = [one.end().code, two.end().code];
    assert!(codes.contains(&0) && codes.iter().all(|code| [0, 9].contains(code)), "{codes:?}");
    assert_eq!(scene.times_run(), 1 + codes.iter().filter(|code| **code == 0).count());
    scene.assert_nothing_is_left();
}

#[test]
fn a_command_that_is_killed_has_not_succeeded() {
    let mut scene = Scene::new();
    let first = scene.first();
    let other = Waiter::start(scene.job());
    let pid = scene.locks.read().lines().next().expect("a pid").to_owned();
    assert_eq!(scene.shell.run(&format!("kill -KILL {pid}")), 0);
    assert_eq!(code(first), 137);
    scene.finish(0);
    assert_eq!(other.end().code, 0);
    assert_eq!(scene.times_run(), 1);
}

#[test]
fn a_run_that_is_killed_has_not_succeeded_whatever_its_command_does() {
    let mut scene = Scene::new();
    let mut first = scene.first();
    let other = Waiter::start(scene.job());
    first.kill().expect("it dies");
    first.wait().expect("it is dead");
    // The command goes on, with the lock, and succeeds; but its reporter is gone.
    scene.finish(0);
    scene.finish(0);
    assert_eq!(other.end().code, 0);
    assert_eq!(scene.times_run(), 2);
    scene.assert_nothing_is_left();
}

#[test]
fn the_end_of_a_plain_lock_is_no_success() {
    let mut scene = Scene::new();
    scene.shell.lock();
    let other = Waiter::start(scene.job());
    scene.shell.unlock();
    scene.finish(0);
    assert_eq!(other.end().code, 0);
    assert_eq!(scene.times_run(), 1);
}

#[test]
fn a_process_that_comes_after_the_end_runs_the_command() {
    let mut scene = Scene::new();
    for round in 1..=3 {
        let first = scene.first();
        scene.finish(0);
        assert_eq!(code(first), 0);
        assert_eq!(scene.times_run(), round);
        scene.assert_nothing_is_left();
    }
}

#[test]
fn a_success_that_no_process_came_to_hear_of_disturbs_nothing() {
    let mut scene = Scene::new();
    let first = scene.first();
    let mut other = Waiter::start(scene.job());
    // Stopped, it cannot look while the first one ends; killed, it never will.
    assert_eq!(scene.shell.run(&format!("kill -STOP {}", other.pid())), 0);
    scene.finish(0);
    assert_eq!(code(first), 0);
    assert!(scene.locks.file().exists(), "it is told how it went");
    assert_eq!(scene.locks.state().0, "free");
    other.kill();
    drop(other);
    let ended: Ended = scene.locks.run(&["unlock"]);
    assert_eq!(ended.code, 1, "nobody holds it: {ended:?}");
    scene.shell.lock();
    scene.shell.unlock();
    scene.assert_nothing_is_left();
}

#[test]
fn a_waiter_hears_of_a_success_although_another_has_the_lock_by_then() {
    let mut scene = Scene::new();
    let first = scene.first();
    let other = Waiter::start(scene.job());
    assert_eq!(scene.shell.run(&format!("kill -STOP {}", other.pid())), 0);
    scene.finish(0);
    assert_eq!(code(first), 0);
    scene.shell.lock();
    assert_eq!(scene.shell.run(&format!("kill -CONT {}", other.pid())), 0);
    assert_eq!(other.end().code, 9);
    scene.shell.unlock();
    assert_eq!(scene.times_run(), 1);
    scene.assert_nothing_is_left();
}

#[test]
fn of_many_that_come_together_one_runs_the_command_for_all_that_waited() {
    const MANY: usize = 6;
    let locks = Locks::new();
    for round in 0..rounds(10) {
        let log = locks.dir().join("log");
        let _ = fs::remove_file(&log);
        let start = |_| {
            let job = r#"echo ran >> "$SERIALIZER_DIR/log""#;
            let mut command = locks.serializer(&[
                "run",
                "--wait-and-skip",
                "--skipped-exit-code=9",
                "--",
                "bash",
                "-c",
                job,
            ]);
            command.stderr(Stdio::null()).spawn().expect("it starts")
        };
        let children: Vec<Child> = (0..MANY).map(start).collect();
        let codes: Vec<i32> = children.into_iter().map(code).collect();
        let ran = codes.iter().filter(|code| **code == 0).count();
        let times = fs::read_to_string(&log).expect("a log").lines().count();
        // A process that came after an end had reason to do it again. The exit code 0 stands for
        // exactly the work that was done.
        assert_eq!(times, ran, "round {round}: {codes:?}");
        assert!(codes.iter().all(|code| [0, 9].contains(code)), "round {round}: {codes:?}");
        assert_eq!(locks.names(), ["log"], "round {round}");
    }
}

#[test]
fn what_has_just_succeeded_and_is_held_on_for_a_time_is_not_done_again() {
    let locks = Locks::new();
    let job = [
        "run",
        "--wait-and-skip",
        "--skipped-exit-code=9",
        "--hold-at-least=1h",
        "-n",
        "--",
        "true",
    ];
    assert_eq!(locks.run(&job).code, 0);
    assert_eq!(locks.run(&job).code, 9);
    // A process with another command is told for how long the lock is held.
    let ended = locks.run(&["run", "-n", "--", "true"]);
    assert_eq!(ended.code, 75, "{ended:?}");
    assert!(ended.last_line().contains("to be held for another"), "{ended:?}");
}

#[test]
fn skipping_does_not_go_together_with_several_holders() {
    let locks = Locks::new();
    for args in [
        ["--wait-and-skip", "--shared"],
        ["--wait-and-skip", "--slots=2"],
        ["--skipped-exit-code=9", "--verbose"],
    ] {
        let mut all = vec!["run"];
        all.extend(args);
        all.extend(["--", "touch", "ran"]);
        assert_eq!(locks.run(&all).code, 2, "{args:?}");
    }
    assert_eq!(locks.names(), [""; 0]);
}

// The lock's name.

#[test]
fn equal_command_lines_exclude_each_other_and_others_do_not() {
    let mut scene = Scene::new();
    let named = |args: &[&str]| {
        let mut all = vec!["run", "--name-from-command", "--no-wait", "--"];
        all.extend(args);
        scene.locks.serializer(&all)
    };
    let mut first = named(&["bash", "-c", JOB]).spawn().expect("it starts");
    until("it holds the lock", || scene.locks.names().len() >= 2);
    assert_eq!(support::ended(&mut named(&["bash", "-c", JOB])).code, 75);
    for other in
        [&["bash", "-c", "exit 4"][..], &["bash", "-c", "exit 4", ""], &["bash", "-c exit 4"]]
    {
        assert_ne!(support::ended(&mut named(other)).code, 75, "{other:?}");
    }
    assert_eq!(scene.shell.run("echo 0 >&9"), 0);
    assert!(first.wait().expect("it ends").success());
    scene.assert_nothing_is_left();
}

#[test]
fn the_name_of_a_command_is_the_same_for_ever() {
    let locks = Locks::new();
    let list = r#"ls "$SERIALIZER_DIR""#;
    let ended = locks.run(&["run", "--name-from-command", "--", "sh", "-c", list]);
    // The first 128 bits of the SHA-256 of `sh`, `-c` and the script, each followed by a zero byte.
    assert_eq!(ended.stdout, "sh-80ba9727dac7cc5d0b82cd98fd7b7293.lck\n");
}
