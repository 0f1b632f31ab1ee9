//! `lock` and `unlock` in a directory that hosts share are killed at every system call that they
//! make. Every system call is made to fail, and calls on the lock's file fail in all the ways of a
//! file server. Afterwards the owner knows its state, the next process gets in, and two never hold
//! the lock. Requires strace.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Stdio;

use crate::support::calls::{calls_to_disturb, ends};
use crate::support::stores::Store;
use crate::support::{self, Shell};

/// What the command under test finds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    /// No file.
    Nothing,
    /// A file without a holder.
    Free,
    /// The owner holds the lock.
    Own,
}

/// How many calls of a name to disturb, from the first one on and back from the last one.
const MOST_OF_A_KIND: usize = 12;

/// What is done to the lock's file, and how often in an undisturbed `lock` or `unlock` of one that
/// is there: a look, and a write after what was there has been written again.
const CALLS: [(&str, usize); 5] =
    [("openat", 2), ("flock", 2), ("pread64", 4), ("pwrite64", 2), ("fdatasync", 2)];

struct Scene {
    store: Store,
    owner: Shell,
    other: Shell,
}

impl Scene {
    fn new() -> Self {
        let store = Store::in_a_directory();
        // bash reports each kill.
        let mut quiet = store.command("bash");
        quiet.stderr(Stdio::null());
        Self { owner: Shell::start_with(quiet), other: store.shell(), store }
    }

    fn prepare(&mut self, before: Before) {
        match before {
            Before::Nothing => {
                fs::remove_file(self.store.locks.dir().join(&self.store.name)).unwrap_or_default()
            }
            Before::Free => assert_eq!(self.store.run(&["run", "true"]).code, 0),
            Before::Own => self.owner.lock(),
        }
    }

    /// Runs `serializer COMMAND` as the owner's child, under strace; `-D` keeps strace from being
    /// its parent.
    fn trace(&mut self, options: &str, command: &str) -> i32 {
        self.owner.run(&format!(r#"strace -D -qq -o trace {options} "$S" {command} 2> said"#))
    }

    /// What the command has said.
    fn said(&self) -> String {
        fs::read_to_string(self.store.locks.dir().join("said")).expect("it can be read")
    }

    /// The system calls of an undisturbed run.
    fn system_calls(
        &mut self,
        before: Before,
        command: &str,
        injection: &str,
    ) -> BTreeMap<String, BTreeSet<usize>> {
        self.prepare(before);
        assert_eq!(self.trace("", command), 0);
        let file = self.store.locks.dir().join("trace");
        // strace may still be writing.
        support::until("the trace ends", || {
            fs::read_to_string(&file).expect("a trace").contains("exit_group(")
        });
        let calls = calls_to_disturb(&fs::read_to_string(&file).expect("a trace"), injection);
        assert!(calls.contains_key("fdatasync"), "{calls:?}");
        if command.starts_with("lock") {
            self.owner.unlock();
        }
        calls
    }

    fn is_owners(&self) -> bool {
        self.store.holder("pid").as_u64() == Some(u64::from(self.owner.pid()))
    }

    /// Whatever happened to the command, given that it said `code`.
    fn check(&mut self, what: &str, is_lock: bool, code: i32) {
        let what = format!("{what}: {code} {}", self.said());
        let other = |scene: &mut Self| scene.other.run(r#""$S" lock -n 2> /dev/null"#);
        if code == 0 {
            assert_eq!(self.is_owners(), is_lock, "{what}: it said what is not true");
        }
        if self.is_owners() {
            assert_eq!(other(self), 75, "{what}: another gets it, too");
        }
        // Whether the owner has it or not: the owner gets it at once, and then is the only holder.
        assert_eq!(self.owner.run(r#""$S" lock -n 2> /dev/null"#), 0, "{what}: the owner gets it");
        assert!(self.is_owners(), "{what}: the owner has it");
        assert_eq!(other(self), 75, "{what}: a second one gets it, too");
        assert_eq!(
            self.owner.run(r#""$S" unlock 2> /dev/null"#),
            0,
            "{what}: the owner releases it"
        );
        assert_eq!(other(self), 0, "{what}: the next one gets it");
        self.other.unlock();
        let left: Vec<_> = self.store.locks.names();
        let ours = [".serializer-shared", "said", "trace", &self.store.name];
        assert!(left.iter().all(|name| ours.contains(&name.as_str())), "{what}: {left:?} is left");
    }
}

fn at_every_system_call(before: Before, command: &str, injection: &str) {
    let mut scene = Scene::new();
    for (name, numbers) in scene.system_calls(before, command, injection) {
        // Nothing makes an exit fail.
        if name == "exit_group" && injection.starts_with("error") {
            continue;
        }
        for ordinal in ends(&numbers, MOST_OF_A_KIND) {
            scene.prepare(before);
            let code = scene.trace(
                &format!("-e trace={name} -e inject={name}:{injection}:when={ordinal}"),
                command,
            );
            let what = format!("{before:?}, {command}, {injection} at {name} {ordinal}");
            // How much there is to read differs.
            let is_certain =
                numbers.len() <= MOST_OF_A_KIND && !["read", "pread64"].contains(&name.as_str());
            assert!(
                !injection.starts_with("signal") || code == 137 || !is_certain,
                "{what}: it is killed"
            );
            scene.check(&what, command.starts_with("lock"), code);
        }
    }
}

/// Every call to the lock's file fails, once or so often that it is not tried again at once.
fn whatever_a_file_server_says(before: Before, command: &str) {
    let mut scene = Scene::new();
    let file = scene.store.locks.dir().join(&scene.store.name).display().to_string();
    for (call, count) in CALLS {
        for error in ["EIO", "ESTALE", "ETIMEDOUT", "ENOSPC", "EDQUOT"] {
            let is_full = ["ENOSPC", "EDQUOT"].contains(&error);
            if is_full && !["pwrite64", "fdatasync"].contains(&call) {
                continue;
            }
            for ordinal in 1..=count {
                for times in [1, 4] {
                    scene.prepare(before);
                    let was_owners = scene.is_owners();
                    let inject = format!(
                        "inject={call}:error={error}:when={ordinal}..{}",
                        ordinal + times - 1
                    );
                    let code =
                        scene.trace(&format!("-P {file} -e trace={call} -e {inject}"), command);
                    let what = format!("{before:?}, {command}, {inject}: {code} {}", scene.said());
                    // What is over soon is tried again at once, and nothing is said about it.
                    assert!(code == 0 || is_full || times > 1, "{what}");
                    // `unlock` has more patience.
                    assert!(
                        code == i32::from(is_full || times > 1) || command == "unlock" && code <= 1,
                        "{what}"
                    );
                    if code == 1 && !scene.said().contains("the write may or may not have happened")
                    {
                        assert_eq!(scene.is_owners(), was_owners, "{what}: it was changed");
                    }
                    scene.check(&what, command.starts_with("lock"), code);
                }
            }
        }
    }
}

#[test]
fn the_first_lock_that_is_killed_at_any_system_call_lets_the_next_one_in() {
    at_every_system_call(Before::Nothing, "lock -n", "signal=KILL");
}

#[test]
fn a_lock_that_is_killed_at_any_system_call_lets_the_next_one_in() {
    at_every_system_call(Before::Free, "lock -n", "signal=KILL");
}

#[test]
fn a_renewal_that_is_killed_at_any_system_call_lets_the_next_one_in() {
    // A second one renews.
    at_every_system_call(Before::Own, "lock -n", "signal=KILL");
}

#[test]
fn an_unlock_that_is_killed_at_any_system_call_lets_the_next_one_in() {
    at_every_system_call(Before::Own, "unlock", "signal=KILL");
}

#[test]
fn a_lock_says_the_truth_whichever_system_call_fails() {
    at_every_system_call(Before::Free, "lock -n", "error=EIO");
}

#[test]
fn an_unlock_says_the_truth_whichever_system_call_fails() {
    at_every_system_call(Before::Own, "unlock", "error=EIO");
}

#[test]
fn a_lock_says_the_truth_whatever_a_file_server_says() {
    whatever_a_file_server_says(Before::Free, "lock -n");
}

#[test]
fn a_renewal_says_the_truth_whatever_a_file_server_says() {
    whatever_a_file_server_says(Before::Own, "lock -n");
}

#[test]
fn an_unlock_says_the_truth_whatever_a_file_server_says() {
    whatever_a_file_server_says(Before::Own, "unlock");
}
