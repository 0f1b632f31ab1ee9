//! A run of a task whose processes are killed at every system call of its claim and its end, one after another: the slot is run
//! again or it is done, and it is never run twice at a time. Needs strace.

use std::fs;

use serde_json::Value;

use crate::schedule::tasks;
use crate::support::calls::{ends, own_calls};
use crate::support::tasks::Tasks;
use crate::support::{ended, rounds, until};

const FILE: &str = "[tasks.a]\nevery = '1000h'\ntries = 100000\nretry_after = '0s'\n\
                    run = '. ./tell; echo \"<$SERIALIZER_TRY>\" >> ends'\n";

fn traced(tasks: &Tasks<'_>, options: &[&str]) {
    let strace = [&["strace", "-D", "-f", "-qq"], options].concat();
    ended(&mut tasks.within(&strace, &["run", "a"]));
}

/// Runs the task until a run after `before` is done, and checks that its command has run to its end then. Returns its number.
fn finish(tasks: &Tasks<'_>, before: u64, what: &str) -> u64 {
    let (mut number, mut row) = (before, Value::Null);
    until(&format!("{what}: it is not done"), || {
        row = tasks.status("a");
        number = row["try"].as_u64().expect("a number");
        let is_done = number > before && row["status"] == "done";
        if !is_done {
            // Nothing was claimed, or it has not ended well, or it still runs.
            let code = tasks.run(&["run", "a"]).code;
            assert!([0, 75].contains(&code), "{what}: {code}");
        }
        is_done
    });
    let end = format!("<{number}>\n");
    assert!(tasks.read("ends").contains(&end), "{what}: `{end}` is not in {}", tasks.read("ends"));
    // None is there twice.
    assert!(tasks.lines("a").iter().any(|line| u64::from(line.number) == number), "{what}");
    number
}

#[test]
fn a_slot_is_run_to_its_end_wherever_its_processes_are_killed_and_never_twice_at_a_time() {
    let tasks = tasks(FILE);
    traced(&tasks, &["-o", "trace"]);
    let mut number = finish(&tasks, 0, "undisturbed");
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
    let mut count: u64 = 0;
    for (name, numbers) in &calls {
        for ordinal in ends(numbers, rounds(2)) {
            count += 1;
            let inject = format!("inject={name}:signal=KILL:when={ordinal}");
            let _ = fs::remove_file(tasks.dir().join("trace"));
            traced(&tasks, &["-o", "trace", "-e", &format!("trace={name}"), "-e", &inject]);
            number = finish(&tasks, number, &inject);
        }
    }
    assert!(count > 20, "{calls:?}");
    let killed = number - 1 - count;
    assert!(killed > 3, "{killed} runs were interrupted: {calls:?}");
}
