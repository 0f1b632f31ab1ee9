//! The begin and the end of a run are killed at every system call that they make, and every system
//! call is made to fail: afterwards the key runs or it does not, nothing in between, no run is
//! lost, and no end that was reported. Power is cut behind each of them. Needs strace.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::calls::{calls_to_disturb, ends};
use crate::support::namespace::in_pid_namespaces;
use crate::support::{Locks, PROGRAM, Shell, ended, skipped};

/// What the command under test finds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    Nothing,
    /// The key has failed once.
    Failed,
    /// The owner has begun it.
    Running,
}

/// How many calls of a name to disturb, from the first one on and back from the last one.
const MOST_OF_A_KIND: usize = 3;

const BEGIN: &str = "lock --once load -n";
const END: &str = "unlock --once load";

struct Scene {
    locks: Locks,
    owner: Shell,
    other: Shell,
}

impl Scene {
    fn new() -> Self {
        let locks = Locks::durable();
        // bash reports each kill.
        let mut quiet = locks.command("bash");
        quiet.stderr(Stdio::null()).current_dir(locks.dir());
        Self { owner: Shell::start_with(quiet), other: Shell::start(&locks), locks }
    }

    fn prepare(&mut self, before: Before) {
        fs::remove_file(self.locks.dir().join("once%2Fload")).unwrap_or_default();
        match before {
            Before::Nothing => {}
            Before::Failed => assert_eq!(self.locks.run(&["once", "load", "--", "false"]).code, 1),
            Before::Running => assert_eq!(self.owner.run(&format!(r#""$S" {BEGIN}"#)), 0),
        }
    }

    /// Runs `serializer COMMAND` as the owner's child, under strace; `-D` keeps strace from being
    /// its parent.
    fn trace(&mut self, options: &str, command: &str) -> i32 {
        self.owner.run(&format!(r#"strace -D -qq -o trace {options} "$S" {command}"#))
    }

    /// The system calls of an undisturbed run, from the first one to the key's file on: before
    /// that, nothing has happened.
    fn system_calls(
        &mut self,
        before: Before,
        command: &str,
        injection: &str,
    ) -> BTreeMap<String, BTreeSet<usize>> {
        self.prepare(before);
        assert_eq!(self.trace("", command), 0);
        let trace = fs::read_to_string(self.locks.dir().join("trace")).expect("a trace");
        let mut calls = calls_to_disturb(&trace, injection);
        let first =
            trace.lines().position(|line| line.contains("once%2Fload")).expect("the key's file");
        let start: Vec<&str> = trace.lines().take(first).collect();
        for (name, numbers) in calls_to_disturb(&start.join("\n"), injection) {
            calls.entry(name).or_default().retain(|number| !numbers.contains(number));
        }
        assert!(calls.contains_key("fdatasync") && calls.contains_key("fsync"), "{trace}");
        calls
    }

    /// The state of the key, and the number of its last run.
    fn state(&self) -> (String, u64) {
        let ended = self.locks.run(&["status", "--once", "--json", "load"]);
        assert_eq!(ended.code, 0, "{ended:?}");
        let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        let key = &report["keys"][0];
        (key["state"].as_str().unwrap_or("never run").to_owned(), key["try"].as_u64().unwrap_or(0))
    }

    /// Whatever happened to the command, given that it said `code`.
    fn check(&mut self, what: &str, before: Before, code: i32) {
        let number = if before == Before::Failed { 2 } else { 1 };
        let (state, _) = self.state();
        let (undone, done) = match before {
            Before::Nothing => ("never run", "running"),
            Before::Failed => ("failed", "running"),
            Before::Running => ("running", "done"),
        };
        assert!(state == done || state == undone && code != 0, "{what}: it is {state}");
        if state != "done" {
            // Whether it has begun or not: the owner has it now, and no other process.
            assert_eq!(self.owner.run(&format!(r#""$S" {BEGIN}"#)), 0, "{what}: the owner runs it");
            assert_eq!(
                self.other.run(&format!(r#""$S" {BEGIN} 2> /dev/null"#)),
                75,
                "{what}: a second one runs it, too"
            );
            assert_eq!(self.owner.run(&format!(r#""$S" {END}"#)), 0, "{what}: the owner ends it");
        }
        assert_eq!(self.state(), ("done".to_owned(), number), "{what}: it is done");
        assert_eq!(
            self.other.run(&format!(r#""$S" {BEGIN} 2> /dev/null"#)),
            79,
            "{what}: it is not run again"
        );
        for name in self
            .locks
            .names()
            .into_iter()
            .filter(|name| !["trace", "once%2Fload"].contains(&name.as_str()))
        {
            // A temporary file may stay when it cannot be removed any more.
            assert!(
                name.starts_with(".serializer.") && name.ends_with(".tmp"),
                "{what}: {name} is left"
            );
            fs::remove_file(self.locks.dir().join(name)).expect("it can be removed");
        }
    }
}

fn at_every_system_call(before: Before, command: &str, injection: &str) {
    let mut scene = Scene::new();
    for (name, numbers) in scene.system_calls(before, command, injection) {
        // Nothing makes these fail.
        if ["exit_group", "getppid"].contains(&name.as_str()) && injection.starts_with("error") {
            continue;
        }
        for ordinal in ends(&numbers, MOST_OF_A_KIND) {
            scene.prepare(before);
            let code = scene.trace(
                &format!("-e trace={name} -e inject={name}:{injection}:when={ordinal}"),
                command,
            );
            let is_certain = numbers.len() <= MOST_OF_A_KIND && name != "getdents64";
            let what = format!("{before:?}, {command}, {injection} at {name} {ordinal}");
            assert!(
                !injection.starts_with("signal=KILL") || code == 137 || !is_certain,
                "{what}: it is killed"
            );
            scene.check(&what, before, code);
        }
    }
}

in_pid_namespaces! {
    a_first_run_whose_begin_is_killed_at_any_system_call_is_begun_or_not:
        at_every_system_call(Before::Nothing, BEGIN, "signal=KILL");
    a_next_run_whose_begin_is_killed_at_any_system_call_is_begun_or_not:
        at_every_system_call(Before::Failed, BEGIN, "signal=KILL");
    a_run_whose_end_is_killed_at_any_system_call_is_done_or_runs:
        at_every_system_call(Before::Running, END, "signal=KILL");
    a_begin_says_the_truth_whichever_system_call_fails:
        at_every_system_call(Before::Failed, BEGIN, "error=EIO");
    an_end_says_the_truth_whichever_system_call_fails:
        at_every_system_call(Before::Running, END, "error=EIO");
}

/// The calls to files and the program's messages in a trace, in their order.
fn calls_to_files(locks: &Locks, args: &[&str]) -> Vec<String> {
    let trace = locks.dir().join("trace");
    let mut command = locks.command("strace");
    command.args([
        "-f",
        "-qq",
        "-y",
        "-e",
        "trace=openat,fdatasync,fsync,linkat,rename,renameat,renameat2,execve,write,exit_group",
    ]);
    let ended = ended(command.arg("-o").arg(&trace).arg(PROGRAM).args(args));
    assert_eq!(ended.code, 0, "{ended:?}");
    let text = fs::read_to_string(trace).expect("a trace");
    text.lines()
        .map(|line| line.trim_start_matches(|digit: char| digit.is_ascii_digit()).trim().to_owned())
        .collect()
}

/// Checks that the record which gets its name there is on the disk by then, and its name before
/// `until`.
fn is_durable(calls: &[String], nth: usize, until: &str) {
    let is_name = |call: &String| {
        (call.starts_with("rename") || call.starts_with("linkat")) && call.contains("once%2Fload")
    };
    let names: Vec<usize> = (0..calls.len()).filter(|at| is_name(&calls[*at])).collect();
    let name = *names
        .get(nth)
        .unwrap_or_else(|| panic!("there is no change {nth} of the name: {calls:#?}"));
    let synced = calls[..name]
        .iter()
        .rposition(|call| call.starts_with("fdatasync("))
        .expect("its text is synced");
    assert!(nth == 0 || synced > names[nth - 1], "an earlier text is synced: {calls:#?}");
    let after = calls[name..]
        .iter()
        .position(|call| call.contains("fsync") && call.ends_with("= 0"))
        .map(|at| name + at);
    let end = calls[name..].iter().position(|call| call.contains(until)).map(|at| name + at);
    assert!(
        after.is_some() && end.is_some() && after < end,
        "{after:?} is not before {end:?}: {calls:#?}"
    );
}

#[test]
fn a_run_is_on_the_disk_before_its_command_begins_and_its_end_before_that_is_reported() {
    let locks = Locks::durable();
    // The first record is linked, all later ones are renamed.
    for _ in 0..2 {
        let calls =
            calls_to_files(&locks, &["once", "load", "--valid-for", "0s", "--", "/bin/true"]);
        is_durable(&calls, 0, r#"execve("/bin/true""#);
        is_durable(&calls, 1, "exit_group(0)");
    }
}

/// A file system in a file, as its device has it: the power is cut when the file is copied.
struct Disk<'a> {
    dir: &'a Path,
}

impl Disk<'_> {
    fn mount(&self, image: &str) -> bool {
        let place = self.dir.join(format!("{image}.mounted"));
        fs::create_dir_all(&place).expect("a directory");
        let mut mount = Command::new("mount");
        // It would write by itself after five seconds.
        mount.args(["-o", "loop,commit=3600"]).arg(self.dir.join(image)).arg(place);
        ended(&mut mount).code == 0
    }

    fn unmount(&self, image: &str) {
        let mut unmount = Command::new("umount");
        assert_eq!(ended(unmount.arg(self.dir.join(format!("{image}.mounted")))).code, 0);
    }

    /// What is on the device after a power cut now: the state of the key, and the names in its
    /// directory.
    fn after_power_cut(&self, locks: &Locks) -> (Value, Vec<String>) {
        // A new file: a loop device that is still detaching would show the old one's blocks.
        let _ = fs::remove_file(self.dir.join("copy"));
        fs::copy(self.dir.join("disk"), self.dir.join("copy")).expect("it can be copied");
        assert!(self.mount("copy"), "what is left can be mounted");
        let dir = self.dir.join("copy.mounted/keys");
        let dir_name = dir.to_str().expect("UTF-8");
        let status = ended(
            &mut locks.serializer(&["status", "--once", "--json", "--dir", dir_name, "load"]),
        );
        let names = fs::read_dir(&dir)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned()).collect();
        self.unmount("copy");
        let mut report: Value = serde_json::from_str(&status.stdout).expect("JSON");
        (report["keys"][0].take(), names)
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        for image in ["copy", "disk"] {
            ended(
                Command::new("umount")
                    .args(["-q", "-l"])
                    .arg(self.dir.join(format!("{image}.mounted"))),
            );
        }
    }
}

#[test]
fn what_was_reported_is_there_after_a_power_cut() {
    let locks = Locks::durable();
    let disk = Disk { dir: locks.dir() };
    fs::File::create(locks.dir().join("disk"))
        .and_then(|file| file.set_len(16 << 20))
        .expect("a file");
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(locks.dir().join("disk")).status();
    if !made.is_ok_and(|status| status.success()) || !disk.mount("disk") {
        return skipped("no loop device can be mounted");
    }
    let keys = locks.dir().join("disk.mounted/keys");
    fs::create_dir(&keys).expect("a directory");
    let mut shell = locks.command("bash");
    shell.env("SERIALIZER_DIR", &keys);
    let mut owner = Shell::start_with(shell);
    for number in 1..=3 {
        assert_eq!(owner.run(r#""$S" lock --once load 2> /dev/null"#), 0);
        // What is not synced is lost.
        fs::write(keys.join("control"), "text").expect("it can be written");
        let (key, names) = disk.after_power_cut(&locks);
        assert_eq!(
            (key["state"].as_str(), key["try"].as_u64()),
            (Some("running"), Some(number)),
            "{key}"
        );
        assert_eq!(names, ["once%2Fload"]);
        fs::remove_file(keys.join("control")).expect("it is there");
        let (end, state) = if number < 3 { ("--failed", "failed") } else { ("", "done") };
        assert_eq!(owner.run(&format!(r#""$S" unlock --once load {end} 2> /dev/null"#)), 0);
        let (key, _) = disk.after_power_cut(&locks);
        assert_eq!(
            (key["state"].as_str(), key["try"].as_u64()),
            (Some(state), Some(number)),
            "{key}"
        );
    }
    assert_eq!(owner.run(r#""$S" forget load 2> /dev/null"#), 0);
    assert_eq!(disk.after_power_cut(&locks).0["state"], Value::Null, "nor does the key come back");
}
