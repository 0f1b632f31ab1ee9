//! `lock` and `unlock` are killed at every system call that they make, and every system call is
//! made to fail: afterwards the owner knows where it stands, the next one gets in, and two never
//! hold the lock. Needs strace.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

use crate::support::calls::{calls_to_disturb, ends};
use crate::support::namespace::in_pid_namespaces;
use crate::support::{Locks, Shell};

/// What the command under test finds.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    /// No lock.
    Free,
    /// The record of a dead holder.
    Stale,
    /// The record that the Python plugin left of a dead holder.
    StaleLegacy,
    /// The owner holds the lock.
    Own,
    /// Another living process holds one of two slots.
    OneSlot,
    /// Another living process, and after it the owner, hold two slots.
    BothSlots,
}

/// Takes one of two slots.
const SLOT: &str = r#""$S" lock --slots 2 --max-attempts 1 2> /dev/null"#;

/// How many calls of a name to disturb, from the first one on and back from the last one.
const MOST_OF_A_KIND: usize = 16;

struct Scene {
    locks: Locks,
    owner: Shell,
    other: Shell,
    /// The one that holds a slot all the time.
    third: Shell,
    stale: String,
}

impl Scene {
    fn new() -> Self {
        let version = Command::new("strace").arg("-V").output();
        assert!(version.is_ok(), "these tests need `strace` (Debian: apt-get install strace)");
        let locks = Locks::new();
        let mut dead = Shell::start(&locks);
        dead.lock();
        dead.reap();
        let stale = locks.read();
        std::fs::remove_file(locks.file()).expect("the lock file is there");
        // bash reports each kill.
        let mut quiet = locks.command("bash");
        quiet.stderr(Stdio::null());
        Self {
            owner: Shell::start_with(quiet),
            other: Shell::start(&locks),
            third: Shell::start(&locks),
            locks,
            stale,
        }
    }

    fn prepare(&mut self, before: Before) {
        match before {
            Before::Free => {}
            Before::Stale => self.locks.write(&self.stale),
            Before::StaleLegacy => {
                self.locks.write(self.stale.lines().take(2).collect::<Vec<_>>().join("\n"))
            }
            Before::Own => self.owner.lock(),
            Before::OneSlot => assert_eq!(self.third.run(SLOT), 0),
            Before::BothSlots => assert_eq!((self.third.run(SLOT), self.owner.run(SLOT)), (0, 0)),
        }
    }

    /// Runs `serializer COMMAND` as the owner's child, under strace; `-D` keeps strace from being
    /// its parent.
    fn trace(&mut self, options: &str, command: &str) -> i32 {
        self.owner.run(&format!(r#"strace -D -qq -o trace {options} "$S" {command} 2> /dev/null"#))
    }

    /// The system calls of an undisturbed run.
    fn system_calls(
        &mut self,
        before: Before,
        command: &str,
        injection: &str,
    ) -> BTreeMap<String, BTreeSet<usize>> {
        self.prepare(before);
        assert_eq!(self.owner.run(&format!("cd {}", self.locks.dir().display())), 0);
        assert_eq!(self.trace("", command), 0);
        if matches!(before, Before::OneSlot | Before::BothSlots) {
            assert_eq!(self.third.run(r#""$S" unlock 2> /dev/null"#), 0);
        }
        self.back_to_nothing();
        let trace = std::fs::read_to_string(self.locks.dir().join("trace")).expect("a trace");
        let calls = calls_to_disturb(&trace, injection);
        let changes_names = |name: &String| name.contains("link") || name.contains("rename");
        assert!(calls.keys().any(changes_names), "{trace}");
        calls
    }

    fn back_to_nothing(&mut self) {
        let _ = std::fs::remove_file(self.locks.file());
    }

    /// Whatever happened to the command, given that it said `code`.
    fn check(&mut self, what: &str, is_lock: bool, code: i32) {
        let other =
            |scene: &mut Self| scene.other.run(r#""$S" lock --max-attempts 1 2> /dev/null"#);
        if code == 0 && is_lock {
            assert_eq!(other(self), 75, "{what}: it said that it is locked, and it is not");
        }
        if code == 0 && !is_lock {
            assert!(
                !self.locks.file().exists(),
                "{what}: it said that it is unlocked, and it is not"
            );
        }
        // Whether the owner has it or not: the owner gets it at once, and then is the only holder.
        assert_eq!(
            self.owner.run(r#""$S" lock --max-attempts 1 2> /dev/null"#),
            0,
            "{what}: the owner gets it"
        );
        assert_eq!(other(self), 75, "{what}: a second one gets it, too");
        assert_eq!(
            self.owner.run(r#""$S" unlock 2> /dev/null"#),
            0,
            "{what}: the owner releases it"
        );
        assert_eq!(other(self), 0, "{what}: the next one gets it");
        assert_eq!(self.other.run(r#""$S" unlock 2> /dev/null"#), 0);
        self.check_names(what);
    }

    /// The same where another process holds one of two slots, which must not be lost.
    fn check_slots(&mut self, what: &str, is_lock: bool, code: i32) {
        let holders = self.locks.pids("holders");
        assert!(holders.contains(&self.third.pid()), "{what}: another holder is lost");
        if code == 0 {
            assert_eq!(
                holders.contains(&self.owner.pid()),
                is_lock,
                "{what}: it said what is not true"
            );
        }
        assert_eq!(self.owner.run(SLOT), 0, "{what}: the owner gets it");
        assert_eq!(self.other.run(SLOT), 75, "{what}: a third one gets it, too");
        assert_eq!(
            self.owner.run(r#""$S" unlock 2> /dev/null"#),
            0,
            "{what}: the owner releases it"
        );
        assert_eq!(self.other.run(SLOT), 0, "{what}: the next one gets it");
        assert_eq!(self.other.run(r#""$S" unlock 2> /dev/null"#), 0);
        assert_eq!(
            self.third.run(r#""$S" unlock 2> /dev/null"#),
            0,
            "{what}: it has its slot until it releases it"
        );
        self.check_names(what);
    }

    fn check_names(&self, what: &str) {
        let names = self.locks.names();
        let left: Vec<_> = names.iter().filter(|name| *name != "trace").collect();
        // A temporary file may stay when it cannot be removed any more; docs/failures.md says so.
        let are_temporary =
            left.iter().all(|name| name.starts_with(".serializer.") && name.ends_with(".tmp"));
        assert!(are_temporary, "{what}: {left:?} is left");
        for name in left {
            std::fs::remove_file(self.locks.dir().join(name)).expect("it can be removed");
        }
    }
}

fn at_every_system_call(before: Before, command: &str, injection: &str) {
    let mut scene = Scene::new();
    for (name, numbers) in scene.system_calls(before, command, injection) {
        // Nothing makes an exit fail.
        if name == "exit_group" && injection.starts_with("error") {
            continue;
        }
        // A takeover inspects every process, each in the same way; only the calls before and after
        // that count.
        for ordinal in ends(&numbers, MOST_OF_A_KIND) {
            scene.prepare(before);
            let code = scene.trace(
                &format!("-e trace={name} -e inject={name}:{injection}:when={ordinal}"),
                command,
            );
            // There may be fewer processes to look at than before; then it was done before the
            // kill.
            let is_certain = numbers.len() <= MOST_OF_A_KIND && name != "getdents64";
            assert!(
                !injection.starts_with("signal=KILL") || code == 137 || !is_certain,
                "{name} {ordinal}: it is killed"
            );
            let what = format!("{command}, {injection} at {name} {ordinal}");
            let check = if matches!(before, Before::OneSlot | Before::BothSlots) {
                Scene::check_slots
            } else {
                Scene::check
            };
            check(&mut scene, &what, command.starts_with("lock"), code);
        }
    }
}

in_pid_namespaces! {
    a_lock_that_is_killed_at_any_system_call_lets_the_next_one_in:
        at_every_system_call(Before::Free, "lock --max-attempts 1", "signal=KILL");
    a_takeover_that_is_killed_at_any_system_call_lets_the_next_one_in:
        at_every_system_call(Before::Stale, "lock --max-attempts 1", "signal=KILL");
    a_takeover_from_the_python_plugin_that_is_killed_at_any_system_call_lets_the_next_one_in:
        at_every_system_call(Before::StaleLegacy, "lock --max-attempts 1", "signal=KILL");
    an_unlock_that_is_killed_at_any_system_call_lets_the_next_one_in:
        at_every_system_call(Before::Own, "unlock", "signal=KILL");
    a_lock_says_the_truth_whichever_system_call_fails:
        at_every_system_call(Before::Free, "lock --max-attempts 1", "error=EIO");
    a_takeover_says_the_truth_whichever_system_call_fails:
        at_every_system_call(Before::Stale, "lock --max-attempts 1", "error=ENOSPC");
    an_unlock_says_the_truth_whichever_system_call_fails:
        at_every_system_call(Before::Own, "unlock", "error=EIO");
    a_holder_that_joins_another_and_is_killed_at_any_system_call_takes_nothing_from_it:
        at_every_system_call(Before::OneSlot, "lock --slots 2 --max-attempts 1", "signal=KILL");
    a_holder_that_leaves_another_and_is_killed_at_any_system_call_takes_nothing_from_it:
        at_every_system_call(Before::BothSlots, "unlock", "signal=KILL");
    a_holder_that_joins_another_takes_nothing_from_it_whichever_system_call_fails:
        at_every_system_call(Before::OneSlot, "lock --slots 2 --max-attempts 1", "error=EIO");
    a_holder_that_leaves_another_takes_nothing_from_it_whichever_system_call_fails:
        at_every_system_call(Before::BothSlots, "unlock", "error=EIO");
}
