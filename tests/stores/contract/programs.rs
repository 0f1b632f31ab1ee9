//! What whole programs get.

use std::fs;
use std::process::{Child, Stdio};

use super::subject::Subject;
use crate::support::{self, PROGRAM, ended, rounds};

pub fn of_sixteen_programs_one_gets_the_lock(subject: &Subject) {
    for _ in 0..rounds(3) {
        // Each is the only command of a shell that then says how it went, and lives until all have
        // said so.
        let script = r#""$S" lock -n 2>> "$SAID"; echo $?; read -r end; "$S" unlock 2> /dev/null"#;
        let said = subject.locks.dir().join("said");
        let start = || -> Child {
            let mut command = subject.command("bash");
            command
                .args(["-c", script])
                .env("SAID", &said)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("bash starts")
        };
        let mut children: Vec<Child> = (0..16).map(|_| start()).collect();
        let codes: Vec<String> = children.iter_mut().map(support::first_line).collect();
        assert_eq!(codes.iter().filter(|code| *code == "0").count(), 1, "{codes:?}");
        let refused = codes.iter().filter(|code| *code == "75").count();
        assert_eq!(refused, 15, "{}", fs::read_to_string(&said).expect("it was written"));
        for child in &mut children {
            drop(child.stdin.take());
            child.wait().expect("it ends");
        }
    }
}

/// Read, pause, write: two processes at once lose counts. Starts only the program and bash, some
/// thousand times.
pub fn a_counter_is_counted_by_one_at_a_time(subject: &Subject) {
    let (workers, each) = (8, rounds(100));
    let counter = subject.locks.dir().join("counter");
    fs::write(&counter, "0").expect("it can be written");
    assert_eq!(ended(subject.locks.command("mkfifo").arg(counter.with_file_name("pause"))).code, 0);
    let count = r#"read -r n < counter; read -rt 0.001 <> pause; echo $((n + 1)) > counter"#;
    let script = |worker: usize| match worker % 2 {
        0 => format!(
            r#"for i in $(seq {each}); do "$S" lock && {{ {count}; "$S" unlock; }} || exit 1; done"#
        ),
        _ => format!(r#"for i in $(seq {each}); do "$S" run -- bash -c '{count}' || exit 1; done"#),
    };
    let start = |worker| {
        let mut command = subject.command("bash");
        command
            .env("LOG_LEVEL", "error")
            .current_dir(subject.locks.dir())
            .args(["-c", &script(worker)]);
        command.spawn().expect("bash starts")
    };
    let children: Vec<Child> = (0..workers).map(start).collect();
    for mut child in children {
        assert!(child.wait().expect("it ends").success());
    }
    assert_eq!(
        fs::read_to_string(&counter).expect("the counter").trim(),
        (workers * each).to_string()
    );
}

pub fn names_of_every_kind_are_names_of_locks(subject: &Subject) {
    let long = "x".repeat(subject.longest_name() - 100);
    for name in ["a b", "ä ☃", "'\"`;--", "%_\\", &long] {
        let name = subject.name(name);
        let run = |script: &str| {
            ended(subject.command("bash").env("N", &name).env("S", PROGRAM).args(["-c", script]))
        };
        let script = r#""$S" lock --file-name "$N" && "$S" status --json "$N" && "$S" unlock --file-name "$N""#;
        let ended = run(script);
        assert_eq!(ended.code, 0, "{name:?}: {ended:?}");
        assert!(ended.stdout.contains(r#""state": "held""#), "{name:?}: {ended:?}");
    }
}
