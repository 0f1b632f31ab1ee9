//! The processes of a task's run are killed at every system call of its claim and its end, one
//! after another: a scheduler runs the slot again, or it is done; it is never lost, and never runs
//! twice at a time. Requires strace.

use std::collections::HashMap;
use std::fs;

use jiff::Timestamp;

use crate::schedule::tasks;
use crate::support::calls::{ends, own_calls};
use crate::support::tasks::Tasks;
use crate::support::{ended, rounds, until};

const FILE: &str = "[tasks.a]\nevery = '1s'\ncatch_up = 'all'\ntries = 100\nretry_after = \
                    '0s'\nrun = '. ./tell; echo \"$SERIALIZER_SLOT $SERIALIZER_TRY\" >> ends'\n";

/// A scheduler that ends when nothing is due, while something is.
fn traced(tasks: &Tasks<'_>, options: &[&str]) {
    let last = tasks.status("a")["slot"].as_i64().unwrap_or(0);
    until("no slot comes due", || Timestamp::now().as_millisecond() >= last + 1000);
    let strace = [&["strace", "-D", "-f", "-qq"], options].concat();
    ended(&mut tasks.within(&strace, &["tick"]));
}

/// Lets schedulers finish what was killed. Its command has run to its end then.
fn finish(tasks: &Tasks<'_>, what: &str) {
    let mut row = tasks.status("a");
    until(&format!("{what}: it is not done"), || {
        assert_eq!(tasks.run(&["tick"]).code, 0, "{what}");
        row = tasks.status("a");
        row["status"] == "done"
    });
    let slot = Timestamp::from_millisecond(row["slot"].as_i64().expect("a slot")).expect("a time");
    let end = format!("{slot} {}\n", row["try"]);
    assert!(tasks.read("ends").contains(&end), "{what}: `{end}` is not in {}", tasks.read("ends"));
}

#[test]
fn a_slot_is_run_to_its_end_wherever_its_processes_are_killed_and_never_twice_at_a_time() {
    let tasks = tasks(FILE);
    assert_eq!(tasks.run(&["tick"]).code, 0);
    // The first slots.
    until("no slot is run", || tasks.run(&["tick"]).code == 0 && !tasks.lines("a").is_empty());
    traced(&tasks, &["-o", "trace"]);
    finish(&tasks, "undisturbed");
    until("the trace does not end", || tasks.read("trace").matches("exit_group(").count() >= 3);
    let trace = tasks.read("trace");
    let runner = trace
        .lines()
        .find(|line| line.contains("\"run-task\""))
        .and_then(|line| line.split(' ').next());
    let runner = runner.expect("a runner");
    let lines: Vec<_> =
        trace.lines().filter(|line| line.starts_with(&format!("{runner} "))).collect();
    let first =
        lines.iter().position(|line| line.contains("schedule%2Fa")).expect("the file of the task");
    let mut calls = own_calls(&lines.join("\n"));
    for (name, numbers) in own_calls(&lines[..first].join("\n")) {
        calls.entry(name).or_default().retain(|number| !numbers.contains(number));
    }
    let mut count = 0;
    for (name, numbers) in &calls {
        for ordinal in ends(numbers, rounds(1)) {
            count += 1;
            let inject = format!("inject={name}:signal=KILL:when={ordinal}");
            let _ = fs::remove_file(tasks.dir().join("trace"));
            traced(&tasks, &["-o", "trace", "-e", &format!("trace={name}"), "-e", &inject]);
            finish(&tasks, &inject);
        }
    }
    assert!(count > 20, "{calls:?}");
    // Each slot from the first to the last one; the tries of one follow each other.
    let mut tries: HashMap<i64, Vec<u32>> = HashMap::new();
    for line in tasks.lines("a") {
        tries.entry(line.time()).or_default().push(line.number);
    }
    let (first, last) = (tries.keys().min().expect("a slot"), tries.keys().max().expect("a slot"));
    assert_eq!(
        i64::try_from(tries.len()).expect("a number"),
        (last - first) / 1000 + 1,
        "{tries:?}"
    );
    assert!(tries.values().all(|numbers| numbers.is_sorted()), "{tries:?}");
    let again = tries.values().filter(|numbers| numbers.len() > 1).count();
    assert!(again > 3, "{again} slots were run again: {calls:?}");
}
