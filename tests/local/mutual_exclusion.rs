//! Two never hold the lock at once: real shells, real kills, and the Python plugin's algorithm
//! among them.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use crate::support::{Locks, Shell, legacy_plugin, rounds, until};

/// One worker: it locks, reads the counter, yields, writes the counter, and logs when it held the
/// lock.
const WORKER: &str = r#"
count() {
    "$S" lock 2>> "$LOG.err" || exit 1
    local from=$EPOCHREALTIME value
    value=$(< "$COUNTER")
    "$S" status > /dev/null
    echo $((value + 1)) > "$COUNTER"
    echo "$from $EPOCHREALTIME" >> "$LOG"
    "$S" unlock 2>> "$LOG.err" || exit 2
}
"#;

fn worker(locks: &Locks, script: &str) -> Command {
    let mut command = in_worker_environment(locks.command("bash"), locks);
    command.args(["-c", &format!("{WORKER}\n{script}")]);
    command
}

fn in_worker_environment(mut command: Command, locks: &Locks) -> Command {
    command.env("SERIALIZER_SLEEP_SECONDS", "0.01");
    command.env("COUNTER", locks.dir().join("counter")).env("LOG", locks.dir().join("log"));
    command
}

fn counter(locks: &Locks) -> usize {
    let text = fs::read_to_string(locks.dir().join("counter")).expect("the counter");
    text.trim().parse().expect("a number")
}

/// Fails if two of the logged holds overlap. Returns how many there are.
fn assert_no_overlap(log: &Path) -> usize {
    let text = fs::read_to_string(log).expect("the log");
    let hold = |line: &str| {
        let mut fields = line.split(' ').map(|field| field.parse::<f64>().expect("a number"));
        (fields.next().expect("from"), fields.next().expect("until"))
    };
    let mut holds: Vec<(f64, f64)> = text.lines().map(hold).collect();
    holds.sort_by(|one, two| one.0.total_cmp(&two.0));
    for pair in holds.windows(2) {
        assert!(pair[1].0 >= pair[0].1, "{:?} and {:?} overlap", pair[0], pair[1]);
    }
    holds.len()
}

#[test]
fn eight_shells_never_lose_an_increment() {
    const SHELLS: usize = 8;
    let shell_rounds = rounds(25);
    let locks = Locks::new();
    fs::write(locks.dir().join("counter"), "0\n").expect("the counter");
    let script = format!("for _ in {{1..{shell_rounds}}}; do count; done");
    let children: Vec<Child> =
        (0..SHELLS).map(|_| worker(&locks, &script).spawn().expect("a shell")).collect();
    for mut child in children {
        assert!(
            child.wait().expect("it ends").success(),
            "{:?}",
            fs::read_to_string(locks.dir().join("log.err"))
        );
    }
    assert_eq!(counter(&locks), SHELLS * shell_rounds);
    assert_eq!(assert_no_overlap(&locks.dir().join("log")), SHELLS * shell_rounds);
    assert!(!locks.file().exists(), "the last one has unlocked");
}

#[test]
fn holders_that_are_killed_at_random_do_not_let_two_in() {
    const SHELLS: usize = 6;
    let locks = Locks::new();
    fs::write(locks.dir().join("counter"), "0\n").expect("the counter");
    // Each hold is logged by its beginning and its end; of a killed one the end is missing.
    let script = r#"
        while :; do
            "$S" lock 2> /dev/null || exit 1
            echo "begin $BASHPID" >> "$LOG"
            "$S" status > /dev/null
            echo "end $BASHPID" >> "$LOG"
            "$S" unlock 2> /dev/null || exit 2
        done"#;
    let mut seed: u64 = 0x5eed;
    let mut shells: Vec<Child> =
        (0..SHELLS).map(|_| worker(&locks, script).spawn().expect("a shell")).collect();
    let log = locks.dir().join("log");
    let lines = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
    for _ in 0..rounds(60) {
        // Whatever the shells are doing now is what the kill meets; progress in between keeps the
        // kills apart.
        let before = lines();
        until("they go on", || lines() >= before + 3);
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let victim = (seed >> 33) as usize % SHELLS;
        shells[victim].kill().expect("a kill");
        shells[victim].wait().expect("it ends");
        shells[victim] = worker(&locks, script).spawn().expect("a shell");
    }
    for shell in &mut shells {
        shell.kill().expect("a kill");
        shell.wait().expect("it ends");
    }
    let text = fs::read_to_string(&log).expect("the log");
    let mut holder: Option<&str> = None;
    for line in text.lines() {
        let (what, pid) = line.split_once(' ').expect("two words");
        match what {
            // A worker that began before without an end was killed: only its death can have let
            // this one in.
            "begin" => holder = Some(pid),
            _ => assert_eq!(holder.take(), Some(pid), "another one began while it held the lock"),
        }
    }
    let mut next = Shell::start(&locks);
    next.lock();
    next.unlock();
}

#[test]
fn the_python_plugin_and_this_program_exclude_each_other() {
    let each = rounds(20);
    let locks = Locks::new();
    fs::write(locks.dir().join("counter"), "0\n").expect("the counter");
    let legacy = format!(
        r#"
for _ in range({each}):
    while not attempt():
        time.sleep(0.003)
    begin = time.time()
    with open(os.environ["COUNTER"]) as file:
        value = int(file.read())
    time.sleep(0.005)
    with open(os.environ["COUNTER"], "w") as file:
        file.write(f"{{value + 1}}\n")
    with open(os.environ["LOG"], "a") as file:
        file.write(f"{{begin}} {{time.time()}}\n")
    os.remove(path)
"#
    );
    let mut children = Vec::new();
    for _ in 0..3 {
        let ours = format!("for _ in {{1..{each}}}; do count; done");
        children.push(worker(&locks, &ours).spawn().expect("a shell"));
        children.push(
            in_worker_environment(legacy_plugin(&locks, &legacy), &locks).spawn().expect("python3"),
        );
    }
    for mut child in children {
        assert!(
            child.wait().expect("it ends").success(),
            "{:?}",
            fs::read_to_string(locks.dir().join("log.err"))
        );
    }
    assert_eq!(counter(&locks), 6 * each);
    assert_eq!(assert_no_overlap(&locks.dir().join("log")), 6 * each);
}
