//! Of any number that find the same stale lock at the same time, exactly one gets it.

use std::fs;
use std::io::{BufReader, Write};
use std::process::{Child, Stdio};

use crate::support::namespace::in_pid_namespaces;
use crate::support::{self, Locks, Shell, legacy_plugin, rounds};
use serializer::sys::process::any_runs_python_script;

const STARTERS: usize = 8;

/// The record of a killed holder with a PID that is free again.
fn record_of_a_dead_holder(locks: &Locks) -> String {
    let mut holder = Shell::start(locks);
    holder.lock();
    holder.reap();
    locks.read()
}

/// What the Python plugin leaves of such a holder.
fn legacy_record_of_a_dead_holder(locks: &Locks) -> String {
    let record = record_of_a_dead_holder(locks);
    record.lines().take(2).map(|line| format!("{line}\n")).collect()
}

/// Lets all `shells` try once at the same time; returns the winners. All other shells must have
/// been told that it is busy.
fn race(shells: &mut [Shell]) -> Vec<usize> {
    for shell in shells.iter_mut() {
        shell.send(r#""$S" lock --max-attempts 1 2> /dev/null"#);
    }
    let codes: Vec<i32> = shells.iter_mut().map(|shell| shell.answer().0).collect();
    assert!(codes.iter().all(|code| [0, 75].contains(code)), "{codes:?}");
    (0..codes.len()).filter(|winner| codes[*winner] == 0).collect()
}

fn exactly_one_wins_each_round(locks: &Locks, stale: &str, rounds: usize) {
    let mut shells: Vec<Shell> = (0..STARTERS).map(|_| Shell::start(locks)).collect();
    for round in 0..rounds {
        locks.write(stale);
        let winners = race(&mut shells);
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        let pid = shells[winners[0]].pid().to_string();
        assert_eq!(locks.read().lines().next(), Some(pid.as_str()), "the file names the winner");
        shells[winners[0]].unlock();
        assert_eq!(locks.names(), Vec::<String>::new(), "nothing is left behind");
    }
}

in_pid_namespaces! {
    one_of_eight_takes_over_a_stale_lock: {
        let locks = Locks::new();
        let stale = record_of_a_dead_holder(&locks);
        exactly_one_wins_each_round(&locks, &stale, rounds(300));
    };

    one_of_eight_takes_over_a_stale_lock_of_the_python_plugin: {
        let locks = Locks::new();
        let stale = legacy_record_of_a_dead_holder(&locks);
        exactly_one_wins_each_round(&locks, &stale, rounds(100));
    };

    one_of_eight_gets_a_lock_that_was_left_empty: {
        let locks = Locks::new();
        let mut shells: Vec<Shell> = (0..STARTERS).map(|_| Shell::start(&locks)).collect();
        for round in 0..rounds(30) {
            let file = fs::File::create(locks.file()).expect("an empty file");
            let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(10);
            file.set_modified(long_ago).expect("its time can be set");
            let winners = race(&mut shells);
            assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
            shells[winners[0]].unlock();
        }
    };

    one_of_eight_gets_a_free_lock: {
        let locks = Locks::new();
        let mut shells: Vec<Shell> = (0..STARTERS).map(|_| Shell::start(&locks)).collect();
        for round in 0..rounds(200) {
            let winners = race(&mut shells);
            assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
            shells[winners[0]].unlock();
        }
    };
}

/// The Python plugin's algorithm as a process that tries whenever it is told to.
struct LegacyTaker {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl LegacyTaker {
    fn start(locks: &Locks) -> Self {
        let then =
            "for line in sys.stdin:\n    print('won' if attempt() else 'busy', flush=True)\n";
        let mut command = legacy_plugin(locks, then);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
        let answers = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, answers }
    }

    fn send(&mut self) {
        self.child.stdin.as_mut().expect("its input").write_all(b"go\n").expect("it reads");
    }

    fn has_won(&mut self) -> bool {
        let answer = support::next_line(&mut self.answers);
        match answer.trim() {
            "won" => true,
            "busy" => false,
            other => panic!("it said {other:?}"),
        }
    }
}

impl Drop for LegacyTaker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Races seven starters and a Python plugin, and returns the rounds in which not exactly one of
/// them won: the exit codes of the starters, whether the plugin won, and what the lock file says
/// then.
fn rounds_without_one_winner(
    locks: &Locks,
    stale: &str,
    rounds: usize,
) -> Vec<(Vec<i32>, bool, String)> {
    let mut shells: Vec<Shell> = (1..STARTERS).map(|_| Shell::start(locks)).collect();
    let mut legacy = LegacyTaker::start(locks);
    let mut bad = Vec::new();
    for round in 0..rounds {
        locks.write(stale);
        // The plugin comes now early, now late: before, among and after the other starters.
        for (position, shell) in shells.iter_mut().enumerate() {
            if position == round % STARTERS {
                legacy.send();
            }
            shell.send(r#""$S" lock --max-attempts 1 2> /dev/null"#);
        }
        if round % STARTERS == STARTERS - 1 {
            legacy.send();
        }
        let codes: Vec<i32> = shells.iter_mut().map(|shell| shell.answer().0).collect();
        let legacy_has_won = legacy.has_won();
        if codes.iter().filter(|code| **code == 0).count() + usize::from(legacy_has_won) != 1 {
            bad.push((codes, legacy_has_won, locks.read()));
        }
        fs::remove_file(locks.file()).expect("somebody holds it");
    }
    bad
}

in_pid_namespaces! {
    a_python_plugin_among_the_takers_of_its_own_stale_lock_excludes_them_or_is_excluded: {
        let locks = Locks::new();
        let stale = legacy_record_of_a_dead_holder(&locks);
        assert_eq!(rounds_without_one_winner(&locks, &stale, rounds(150)), []);
    };

    a_python_plugin_among_the_takers_of_our_stale_lock_excludes_them_or_is_excluded: {
        let locks = Locks::new();
        let stale = record_of_a_dead_holder(&locks);
        assert_eq!(rounds_without_one_winner(&locks, &stale, rounds(150)), []);
    };
}

#[test]
fn only_a_process_with_the_python_plugin_as_its_script_counts_as_one() {
    let locks = Locks::new();
    let script = locks.dir().join("a_plugin_of_this_test");
    fs::write(&script, "import sys; print(flush=True); sys.stdin.read()").expect("a script");
    let script = script.to_str().expect("UTF-8");
    let orchestrator = locks.dir().join("orchestrator.py");
    fs::copy(script, &orchestrator).expect("a script");
    let orchestrator = orchestrator.to_str().expect("UTF-8");
    for (args, is_plugin) in
        [(&[script, "lock"][..], true), (&[orchestrator, script, "lock"], false)]
    {
        let mut python = locks.command("python3");
        let mut python = python
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        support::first_line(&mut python);
        let is_found = || {
            any_runs_python_script("a_plugin_of_this_test").expect("the processes can be listed")
        };
        if is_plugin {
            assert!(is_found(), "{args:?}");
        } else {
            // A process that ends while it is looked at might have been one.
            support::until("an orchestrator counts", || !is_found());
        }
        drop(python.stdin.take());
        python.wait().expect("it ends");
    }
}
