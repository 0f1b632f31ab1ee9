//! Many processes at once, in all modes, some of them killed: a lock is held together only in modes
//! that allow it, and each process gets the lock in the end.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use crate::support::{self, Locks, Shell, rounds};

/// Locks as `$1` says, yields, unlocks. Its log entries lie between the lock and the unlock.
const WORKER: &str = r#"
hold() {
    "$S" lock $1 --sleep-seconds 3600 2>> "$LOG.err" || exit 1
    echo "begin $BASHPID ${1:-alone}" >> "$LOG"
    "$S" status > /dev/null
    echo "end $BASHPID ${1:-alone}" >> "$LOG"
    "$S" unlock 2>> "$LOG.err" || exit 2
}
"#;

fn worker(locks: &Locks, script: &str) -> Child {
    let mut command: Command = locks.command("bash");
    command.env("LOG", locks.dir().join("log")).args(["-c", &format!("{WORKER}\n{script}")]);
    command.spawn().expect("a shell")
}

fn may_be_together(modes: &[&str]) -> bool {
    let all = |mode: &str| modes.iter().all(|other| *other == mode);
    modes.len() <= 1 || all("--shared") || (all("--slots=3") && modes.len() <= 3)
}

/// Fails if two logged holds overlap that must not. Returns the number of holds, and the largest
/// number at once. The hold of a killed worker has no end, because its time is unknown.
fn check(log: &Path) -> (usize, usize) {
    let text = fs::read_to_string(log).expect("the log");
    let lines: Vec<(&str, &str, &str)> = text
        .lines()
        .map(|line| {
            let mut words = line.split(' ');
            let mut word = || words.next().expect("three words");
            (word(), word(), word())
        })
        .collect();
    let mut active: HashMap<&str, &str> = HashMap::new();
    let (mut count, mut most) = (0, 0);
    for (number, (what, pid, mode)) in lines.iter().enumerate() {
        if *what == "end" {
            active.remove(pid);
            continue;
        }
        let next = lines[number + 1..].iter().find(|(_, other, _)| other == pid);
        if next.is_none_or(|(what, ..)| *what != "end") {
            continue;
        }
        active.insert(pid, mode);
        count += 1;
        most = most.max(active.len());
        let modes: Vec<&str> = active.values().copied().collect();
        assert!(may_be_together(&modes), "line {}: {active:?}", number + 1);
    }
    (count, most)
}

fn work(modes: &[&str], each: usize) -> usize {
    let locks = Locks::new();
    let script = |mode: &&str| format!("for _ in {{1..{each}}}; do hold {mode}; done");
    let workers: Vec<Child> = modes.iter().map(|mode| worker(&locks, &script(mode))).collect();
    let log = locks.dir().join("log");
    for mut worker in workers {
        assert!(
            worker.wait().expect("it ends").success(),
            "{:?}",
            fs::read_to_string(locks.dir().join("log.err"))
        );
    }
    let (count, most) = check(&log);
    assert_eq!(count, modes.len() * each);
    assert_eq!(locks.names(), ["log", "log.err"]);
    most
}

#[test]
fn three_slots_are_held_by_three_at_most_and_by_several() {
    let most = work(&["--slots=3"; 6], rounds(20));
    assert!(most >= 2, "one at a time");
}

#[test]
fn sharers_share_and_those_that_do_not_are_alone() {
    let most = work(&["--shared", "--shared", "--shared", "--shared", "", ""], rounds(20));
    assert!(most >= 2, "one at a time");
}

#[test]
fn a_process_that_waits_gets_it_in_any_mode() {
    work(&["--shared", "--slots=3", "", "--shared", "--slots=3", "--slots=3"], rounds(15));
}

#[test]
fn holders_and_waiters_that_are_killed_at_random_let_no_process_in_that_must_wait() {
    const MODES: [&str; 8] =
        ["--shared", "--slots=3", "", "--shared", "--slots=3", "--shared", "--slots=3", ""];
    let locks = Locks::new();
    let start = |mode: &str| worker(&locks, &format!("while :; do hold {mode}; done"));
    let mut workers: Vec<Child> = MODES.iter().map(|mode| start(mode)).collect();
    let log = locks.dir().join("log");
    let lines = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
    let mut seed: u64 = 0x7124;
    for _ in 0..rounds(60) {
        // Whatever they are doing now is what the kill meets; progress in between keeps the kills
        // apart.
        let before = lines();
        support::until("they go on", || lines() >= before + 3);
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let victim = (seed >> 33) as usize % MODES.len();
        workers[victim].kill().expect("a kill");
        workers[victim].wait().expect("it ends");
        workers[victim] = start(MODES[victim]);
    }
    for worker in &mut workers {
        worker.kill().expect("a kill");
        worker.wait().expect("it ends");
    }
    check(&log);
    let mut next = Shell::start(&locks);
    next.lock();
    next.unlock();
    // The last orphans of killed parents may still be about to leave.
    support::until("nothing is left behind", || locks.names() == ["log", "log.err"]);
}
