//! A queued waiter is killed at every system call that it makes until it has the lock, and every
//! such call is made to fail: the waiters before it and behind it still get the lock. Requires
//! strace.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Stdio;

use crate::support::calls::{calls_to_disturb, ends};
use crate::support::namespace::in_pid_namespaces;
use crate::support::{Locks, Shell, until};

/// How many calls of a name to disturb, from the first one on and back from the last one.
const MOST_OF_A_KIND: usize = 12;

/// Locks, waiting in line, and unlocks.
const LOCK_AND_UNLOCK: &str =
    r#""$S" lock --sleep-seconds 3600 2> /dev/null && "$S" unlock 2> /dev/null"#;

struct Scene {
    locks: Locks,
    holder: Shell,
    before: Shell,
    owner: Shell,
    behind: Shell,
}

impl Scene {
    fn new() -> Self {
        let locks = Locks::new();
        // bash reports each kill.
        let mut quiet = locks.command("bash");
        quiet.stderr(Stdio::null());
        let owner = Shell::start_with(quiet);
        Self {
            holder: Shell::start(&locks),
            before: Shell::start(&locks),
            owner,
            behind: Shell::start(&locks),
            locks,
        }
    }

    /// One holds the lock, another one is first in line, and behind it a `lock` that is traced with
    /// these options. Then each releases. Returns how the traced one ended. Without a place in the
    /// line it may come before the first one.
    fn pass_on(&mut self, options: &str) -> i32 {
        let file = |name: &str| self.locks.dir().join(name);
        for name in ["ended", "messages"] {
            let _ = fs::remove_file(file(name));
        }
        self.holder.lock();
        self.before.send(LOCK_AND_UNLOCK);
        until("one is first", || self.locks.pids("waiters").len() == 1);
        let line = format!(
            r#"cd "$SERIALIZER_DIR"; strace -D -f -qq -o trace {options} "$S" lock --sleep-seconds 3600 2> messages; code=$?
            : > ended; (exit $code)"#
        );
        self.owner.send(&line.replace('\n', ";"));
        let has_ended = || file("ended").exists();
        let is_waiting = || {
            let says_so =
                fs::read_to_string(file("messages")).is_ok_and(|text| text.contains("waiting for"));
            says_so && self.locks.pids("waiters").len() == 2
        };
        // A waiter that cannot queue says that it waits, and then polls: it sleeps, or has ended.
        let sleeps = || {
            let child = std::process::Command::new("pgrep")
                .args(["-P", &self.owner.pid().to_string(), "-x", "serializer"])
                .output();
            let pid = String::from_utf8(child.expect("pgrep runs").stdout).expect("a number");
            fs::read_to_string(format!("/proc/{}/wchan", pid.trim()))
                .is_ok_and(|wchan| wchan.starts_with("poll"))
        };
        until("it waits or has ended", || has_ended() || is_waiting() || sleeps());
        self.behind.send(LOCK_AND_UNLOCK);
        self.holder.unlock();
        until(&format!("{options}: it ends"), has_ended);
        self.owner.answer().0
    }

    fn check(&mut self, what: &str, code: i32) {
        if code == 0 {
            assert_eq!(
                self.holder.run(r#""$S" lock -n 2> /dev/null"#),
                75,
                "{what}: it said that it is locked, and it is not"
            );
        }
        // Whether it has the lock or not, no other process relies on that. It cannot release a lock
        // that it does not hold.
        let has_it = self.locks.pids("holders") == [self.owner.pid()];
        assert!(has_it || code != 0, "{what}");
        assert!(
            !has_it || self.owner.run(r#""$S" unlock 2> /dev/null"#) == 0,
            "{what}: the owner releases it"
        );
        assert_eq!(self.before.answer().0, 0, "{what}: the one before it gets it");
        assert_eq!(self.behind.answer().0, 0, "{what}: the one behind it gets it");
        // A queue file that is left is removed by the next unlock.
        self.holder.lock();
        self.holder.unlock();
        let mut left = self.locks.names();
        left.retain(|name| !["trace", "ended", "messages"].contains(&name.as_str()));
        let are_temporary =
            left.iter().all(|name| name.starts_with(".serializer.") && name.ends_with(".tmp"));
        assert!(are_temporary, "{what}: {left:?} is left");
        for name in left {
            fs::remove_file(self.locks.dir().join(name)).expect("it can be removed");
        }
    }

    /// The system calls of an undisturbed run.
    fn system_calls(&mut self, injection: &str) -> BTreeMap<String, BTreeSet<usize>> {
        let code = self.pass_on("");
        assert_eq!(code, 0);
        self.check("undisturbed", code);
        let trace = fs::read_to_string(self.locks.dir().join("trace")).expect("a trace");
        let calls = calls_to_disturb(&trace, injection);
        assert!(calls.contains_key("flock") && calls.contains_key("linkat"), "{trace}");
        calls
    }
}

fn at_every_system_call(injection: &str) {
    let mut scene = Scene::new();
    for (name, numbers) in scene.system_calls(injection) {
        // Nothing makes an exit fail.
        if ["exit", "exit_group"].contains(&name.as_str()) && injection.starts_with("error") {
            continue;
        }
        for ordinal in ends(&numbers, MOST_OF_A_KIND) {
            let code = scene
                .pass_on(&format!("-e trace={name} -e inject={name}:{injection}:when={ordinal}"));
            scene.check(&format!("{injection} at {name} {ordinal}"), code);
        }
    }
}

in_pid_namespaces! {
    a_waiter_that_is_killed_at_any_system_call_lets_those_behind_it_in:
        at_every_system_call("signal=KILL");
    a_waiter_says_the_truth_whichever_system_call_fails: at_every_system_call("error=EIO");
}
