//! A run of a task whose processes are killed at every system call of its claim and its end, one after another: the slot is run
//! again or it is done, it is never lost, and never run twice at a time. Needs strace.

use std::fs;

use crate::schedule::tasks;
use crate::support::calls::{ends, own_calls};
use crate::support::tasks::Tasks;
use crate::support::{ended, rounds, until};

const FILE: &str = "[tasks.a]\nevery = '1h'\ntries = 100\nretry_after = '0s'\n\
                    run = '. ./tell; echo \"$SERIALIZER_SLOT $SERIALIZER_TRY\" >> ends'\n";

/// Slots that do not come due, a second each.
fn slot(number: usize) -> String {
    format!("2100-01-01T{:02}:{:02}:{:02}Z", number / 3600, number / 60 % 60, number % 60)
}

fn traced(tasks: &Tasks<'_>, options: &[&str], slot: &str) {
    let strace = [&["strace", "-D", "-f", "-qq"], options].concat();
    ended(&mut tasks.within(&strace, &["run", "a", "--slot", slot]));
}

/// Runs the slot until it is done, and checks that its command has run to its end then.
fn finish(tasks: &Tasks<'_>, slot: &str, what: &str) {
    let wanted = slot.parse::<jiff::Timestamp>().expect("a time").as_millisecond();
    let mut row = tasks.status("a");
    until(&format!("{what}: it is not done"), || {
        row = tasks.status("a");
        if row["slot"] != wanted {
            // It was killed before it had claimed anything.
            let code = tasks.run(&["run", "a", "--slot", slot]).code;
            assert!([0, 75].contains(&code), "{what}: {code}");
        } else if row["status"] != "done" {
            assert_eq!(tasks.run(&["tick"]).code, 0, "{what}");
        }
        row["slot"] == wanted && row["status"] == "done"
    });
    let end = format!("{slot} {}\n", row["try"]);
    assert!(tasks.read("ends").contains(&end), "{what}: `{end}` is not in {}", tasks.read("ends"));
    // None is there twice.
    assert!(tasks.lines("a").iter().any(|line| line.slot == slot), "{what}");
}

#[test]
fn a_slot_is_run_to_its_end_wherever_its_processes_are_killed_and_never_twice_at_a_time() {
    let tasks = tasks(FILE);
    traced(&tasks, &["-o", "trace"], &slot(0));
    finish(&tasks, &slot(0), "undisturbed");
    until("the trace does not end", || tasks.read("trace").matches("exit_group(").count() >= 3);
    let trace = tasks.read("trace");
    let runner = trace.lines().find(|line| line.contains("\"run-task\"")).and_then(|line| line.split(' ').next());
    let runner = runner.expect("a runner");
    let lines: Vec<_> = trace.lines().filter(|line| line.starts_with(&format!("{runner} "))).collect();
    let first = lines.iter().position(|line| line.contains("schedule%2Fa")).expect("the file of the task");
    let mut calls = own_calls(&lines.join("\n"));
    for (name, numbers) in own_calls(&lines[..first].join("\n")) {
        calls.entry(name).or_default().retain(|number| !numbers.contains(number));
    }
    let mut count = 0;
    for (name, numbers) in &calls {
        for ordinal in ends(numbers, rounds(2)) {
            count += 1;
            let inject = format!("inject={name}:signal=KILL:when={ordinal}");
            let _ = fs::remove_file(tasks.dir().join("trace"));
            traced(&tasks, &["-o", "trace", "-e", &format!("trace={name}"), "-e", &inject], &slot(count));
            finish(&tasks, &slot(count), &inject);
        }
    }
    assert!(count > 20, "{calls:?}");
    let killed = tasks.lines("a").iter().filter(|line| line.number > 1).count();
    assert!(killed > 3, "{killed} runs were interrupted: {calls:?}");
}
