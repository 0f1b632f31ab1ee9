//! Several processes hold one lock together: as many as it has slots, or any number of sharers.
//! They exclude all other requests.

use crate::support::{Ended, Locks, Shell, Waiter, ended, until};

const SLOTS_2: &str = r#""$S" lock --slots 2 -n 2>&1"#;
const SLOTS_3: &str = r#""$S" lock --slots 3 -n 2>&1"#;
const SHARED: &str = r#""$S" lock --shared -n 2>&1"#;
const PLAIN: &str = r#""$S" lock -n 2>&1"#;

/// Shells that each run a line, which must succeed.
fn shells<const N: usize>(locks: &Locks, lines: [&str; N]) -> [Shell; N] {
    lines.map(|line| {
        let mut shell = Shell::start(locks);
        assert_eq!(shell.output(line).0, 0, "{line}");
        shell
    })
}

fn pids(shells: &[&Shell]) -> Vec<u32> {
    shells.iter().map(|shell| shell.pid()).collect()
}

/// A shell of its own runs the line, and ends.
fn somebody(locks: &Locks, line: &str) -> Ended {
    locks.script(&format!("{line}; exit $?"))
}

/// Begins to wait, and is in line when this returns.
fn wait_in_line(locks: &Locks, line: &str) -> Shell {
    let before = locks.pids("waiters").len();
    let mut shell = Shell::start(locks);
    shell.send(&line.replace(" -n ", " --sleep-seconds 3600 "));
    until("it is in line", || locks.pids("waiters").len() > before);
    shell
}

#[test]
fn as_many_get_in_as_there_are_slots() {
    let locks = Locks::new();
    let [mut one, mut two, mut three] = shells(&locks, [SLOTS_3; 3]);
    assert_eq!(locks.pids("holders"), pids(&[&one, &two, &three]));
    let refused = somebody(&locks, SLOTS_3);
    assert_eq!(refused.code, 75, "{refused:?}");
    let whom = format!("held by pid {} (bash", one.pid());
    assert!(
        refused.stdout.contains(&whom) && refused.stdout.contains(", and 2 more"),
        "{refused:?}"
    );
    two.unlock();
    assert_eq!(locks.pids("holders"), pids(&[&one, &three]));
    let [mut four] = shells(&locks, [SLOTS_3]);
    assert_eq!(somebody(&locks, SLOTS_3).code, 75);
    for shell in [&mut three, &mut one, &mut four] {
        shell.unlock();
    }
    assert_eq!(locks.names(), Vec::<String>::new());
}

#[test]
fn a_slot_that_is_released_is_had_by_the_next_in_line() {
    let locks = Locks::new();
    let [mut one, two] = shells(&locks, [SLOTS_2; 2]);
    let mut third = wait_in_line(&locks, SLOTS_2);
    let mut fourth = wait_in_line(&locks, SLOTS_2);
    one.unlock();
    assert_eq!(third.answer().0, 0);
    assert_eq!(locks.pids("holders"), pids(&[&two, &third]));
    // The one that is first now hears the death of a holder.
    two.reap();
    assert_eq!(fourth.answer().0, 0);
    assert_eq!(locks.pids("holders"), pids(&[&third, &fourth]));
}

#[test]
fn all_that_may_hold_it_together_come_in_one_after_the_other() {
    for (line, count) in [(SLOTS_3, 3), (SHARED, 6)] {
        let locks = Locks::new();
        let [mut holder] = shells(&locks, [PLAIN]);
        let mut waiting: Vec<Shell> = (0..count).map(|_| wait_in_line(&locks, line)).collect();
        holder.unlock();
        for shell in &mut waiting {
            assert_eq!(shell.answer().0, 0, "{line}");
        }
        assert_eq!(locks.pids("holders"), pids(&waiting.iter().collect::<Vec<_>>()), "{line}");
    }
}

#[test]
fn a_killed_holder_frees_its_slot_only() {
    let locks = Locks::new();
    let [one, two] = shells(&locks, [SLOTS_2; 2]);
    let dead = one.pid();
    one.reap();
    let [mut three] = shells(&locks, [SLOTS_2]);
    assert_eq!(locks.pids("holders"), pids(&[&two, &three]), "{dead} is forgotten");
    assert_eq!(somebody(&locks, SLOTS_2).code, 75);
    three.unlock();
    assert_eq!(locks.pids("holders"), pids(&[&two]));
}

#[test]
fn all_dead_holders_are_taken_over_from() {
    let locks = Locks::new();
    for shell in shells(&locks, [SHARED; 3]) {
        shell.reap();
    }
    assert_eq!(locks.state().0, "stale");
    let [plain] = shells(&locks, [PLAIN]);
    assert_eq!(locks.pids("holders"), pids(&[&plain]));
    assert!(locks.read().contains("\nv=1\n"), "a plain mutex again: {}", locks.read());
}

#[test]
fn the_number_of_slots_is_taken_from_the_environment() {
    let locks = Locks::new();
    let lock = r#"SERIALIZER_SLOTS=2 "$S" lock -n 2>&1"#;
    let _holders = shells(&locks, [lock, lock]);
    assert_eq!(somebody(&locks, lock).code, 75);
    // A flag beats the variable.
    assert_eq!(
        somebody(&locks, &lock.replace("-n", "-n --slots 3")).code,
        75,
        "the smaller number counts"
    );
    let locks = Locks::new();
    let _holders = shells(&locks, [r#"SERIALIZER_SLOTS=1 "$S" lock -n --slots 2 2>&1"#, SLOTS_2]);
    let locks = Locks::new();
    let _holders = shells(&locks, [r#"SERIALIZER_SLOTS=1 "$S" lock -n --shared 2>&1"#, SHARED]);
}

#[test]
fn what_is_no_number_of_slots_is_refused() {
    for bad in ["0", "-1", "x", "101", "+1", "1.5"] {
        let locks = Locks::new();
        let flag = locks.run(&["lock", "--slots", bad]);
        let variable = ended(locks.serializer(&["lock"]).env("SERIALIZER_SLOTS", bad));
        for ended in [flag, variable] {
            assert_eq!(ended.code, 2, "{bad}: {ended:?}");
            assert!(ended.stderr.contains("expected a whole number from 1 to 100"), "{ended:?}");
        }
        assert_eq!(locks.names(), Vec::<String>::new());
    }
    let locks = Locks::new();
    assert_eq!(locks.run(&["lock", "--slots", "2", "--shared"]).code, 2);
    assert_eq!(locks.names(), Vec::<String>::new());
}

#[test]
fn different_modes_keep_each_other_out() {
    let modes = [PLAIN, SLOTS_2, SLOTS_3, SHARED];
    for first in modes {
        for second in modes {
            let locks = Locks::new();
            let _first = shells(&locks, [first]);
            let slots = |line| [SLOTS_2, SLOTS_3].contains(&line);
            let join = (slots(first) && slots(second)) || (first == SHARED && second == SHARED);
            assert_eq!(
                somebody(&locks, second).code,
                if join { 0 } else { 75 },
                "{second} after {first}"
            );
        }
    }
}

#[test]
fn the_smallest_number_of_slots_counts() {
    for (lines, refused) in [
        ([SLOTS_3, SLOTS_3], SLOTS_2),
        ([SLOTS_2, SLOTS_3], SLOTS_3),
        ([SLOTS_3, SLOTS_2], SLOTS_3),
    ] {
        let locks = Locks::new();
        let _holders = shells(&locks, lines);
        assert_eq!(somebody(&locks, refused).code, 75, "{refused} after {lines:?}");
    }
}

#[test]
fn later_sharers_do_not_starve_a_process_that_wants_it_alone() {
    let locks = Locks::new();
    let [mut one, mut two] = shells(&locks, [SHARED; 2]);
    let mut alone = wait_in_line(&locks, PLAIN);
    // They could come in as far as the holders are concerned, and wait behind the one that could
    // not.
    for _ in 0..3 {
        let refused = somebody(&locks, SHARED);
        assert_eq!(refused.code, 75, "{refused:?}");
        assert!(refused.stdout.contains("held by pid"), "{refused:?}");
    }
    let twice = SHARED.replace("-n", "--log-level debug --max-attempts 2 --sleep-seconds 0");
    let refused = somebody(&locks, &twice);
    assert!(refused.stdout.contains("gave up, attempts: 2\n"), "{refused:?}");
    assert!(refused.stdout.contains(" by pid "), "{refused:?}");
    let mut later = wait_in_line(&locks, SHARED);
    one.unlock();
    assert_eq!(locks.pids("holders"), pids(&[&two]));
    two.unlock();
    assert_eq!(alone.answer().0, 0);
    assert_eq!(locks.pids("holders"), pids(&[&alone]));
    alone.unlock();
    assert_eq!(later.answer().0, 0);
}

#[test]
fn a_stopped_waiter_does_not_keep_a_slot_free() {
    let locks = Locks::new();
    let [mut one, two] = shells(&locks, [SLOTS_2; 2]);
    let waiter =
        Waiter::start(locks.serializer(&["lock", "--slots", "2", "--sleep-seconds", "3600"]));
    waiter.asleep();
    assert!(
        std::process::Command::new("kill")
            .args(["-STOP", &waiter.pid().to_string()])
            .status()
            .expect("kill")
            .success()
    );
    one.unlock();
    let [three] = shells(&locks, [SLOTS_2]);
    assert_eq!(locks.pids("holders"), pids(&[&two, &three]));
}

#[test]
fn only_a_holder_can_unlock_and_only_for_itself() {
    let locks = Locks::new();
    let [mut one, two] = shells(&locks, [SHARED; 2]);
    let refused = somebody(&locks, r#""$S" unlock 2>&1"#);
    assert_eq!(refused.code, 77, "{refused:?}");
    assert!(refused.stdout.contains(&format!("held by pid {}", one.pid())), "{refused:?}");
    assert!(refused.stdout.contains(", and 1 more"), "{refused:?}");
    assert_eq!(locks.pids("holders"), pids(&[&one, &two]));
    one.unlock();
    assert_eq!(one.run(r#""$S" unlock 2> /dev/null"#), 77, "it holds no part any more");
    assert_eq!(locks.pids("holders"), pids(&[&two]));
}

#[test]
fn force_takes_the_lock_away_from_all_and_names_each() {
    let locks = Locks::new();
    let mut holders = shells(&locks, [SHARED; 3]);
    let forced = somebody(&locks, r#""$S" unlock --force 2>&1"#);
    assert_eq!(forced.code, 0, "{forced:?}");
    for holder in &holders {
        let whom = format!("broke lock `serializer.lck` of pid {} (bash", holder.pid());
        assert!(forced.stdout.contains(&whom), "{forced:?}");
    }
    assert!(!locks.file().exists(), "{:?}", locks.names());
    for holder in &mut holders {
        assert_eq!(
            holder.run(r#""$S" unlock 2> /dev/null"#),
            76,
            "each is told that its lock was broken"
        );
    }
    assert_eq!(locks.names(), Vec::<String>::new());
}

#[test]
fn a_process_that_holds_it_already_takes_no_second_slot() {
    for line in [SLOTS_2, SHARED] {
        let locks = Locks::new();
        let [mut one] = shells(&locks, [line]);
        let before = locks.read();
        let (code, output) = one.output(line);
        assert_eq!((code, output.contains("is already locked by")), (0, true), "{output}");
        assert_eq!(locks.read(), before);
        one.unlock();
        assert_eq!(locks.names(), Vec::<String>::new());
    }
}

#[test]
fn a_process_that_holds_it_in_another_mode_is_told_so() {
    for (first, second, mode) in [
        (SLOTS_2, PLAIN, "one of 2 slots"),
        (SLOTS_2, SLOTS_3, "one of 2 slots"),
        (SHARED, PLAIN, "shared"),
        (PLAIN, SHARED, "exclusive"),
    ] {
        let locks = Locks::new();
        let [mut one] = shells(&locks, [first]);
        let before = locks.read();
        let (code, output) = one.output(second);
        assert_eq!(code, 1, "{output}");
        assert!(
            output.contains(&format!("this process already holds it in another mode ({mode})")),
            "{output}"
        );
        assert_eq!(locks.read(), before);
    }
}

#[test]
fn status_lists_every_holder() {
    let locks = Locks::new();
    let [one, two, dead] = shells(&locks, [SLOTS_3; 3]);
    let expected = [(one.pid(), "held"), (two.pid(), "held"), (dead.pid(), "stale")];
    dead.reap();
    let report = locks.report();
    assert_eq!(
        (&report["state"], &report["holder"]["pid"]),
        (&"held".into(), &one.pid().into()),
        "{report}"
    );
    let table = locks.run(&["status", "serializer.lck"]).stdout;
    for (number, (pid, state)) in expected.into_iter().enumerate() {
        let holder = &report["holders"][number];
        assert_eq!((&holder["pid"], &holder["state"]), (&pid.into(), &state.into()), "{report}");
        assert_eq!(holder["mode"], "one of 3 slots");
        let row = table.lines().nth(number + 2).expect("a row for each");
        assert!(
            row.contains(&format!(" {state} ")) && row.contains(&format!(" {pid} ")),
            "{table}"
        );
        assert!(row.ends_with("one of 3 slots"), "{table}");
    }
    assert_eq!(report["holders"].as_array().map(Vec::len), Some(3));
}

#[test]
fn the_file_of_a_plain_mutex_is_what_it_was_before_there_were_others() {
    const KEYS: [&str; 11] = [
        "v", "host", "machine", "boot", "pidns", "start", "pidfd", "uid", "since", "token",
        "command",
    ];
    for lock in [PLAIN, r#""$S" lock -n --slots 1 2>&1"#, r#""$S" lock -n --hold-at-least 0s 2>&1"#]
    {
        let locks = Locks::new();
        let [holder] = shells(&locks, [lock]);
        let text = locks.read();
        assert_eq!(text.lines().next(), Some(holder.pid().to_string().as_str()), "{text}");
        let keys: Vec<&str> =
            text.lines().skip(2).map(|line| line.split_once('=').expect("key=value").0).collect();
        // A container may have no machine id, and an older kernel no pidfd.
        let expected: Vec<&str> = KEYS
            .into_iter()
            .filter(|key| !["machine", "pidfd"].contains(key) || keys.contains(key))
            .collect();
        assert_eq!(keys, expected, "{text}");
        assert!(text.contains("\nv=1\n"), "{text}");
    }
}

#[test]
fn the_last_of_several_holders_leaves_nothing_behind() {
    let locks = Locks::new();
    let [mut one, mut two] = shells(&locks, [SLOTS_2; 2]);
    one.unlock();
    // One that is alone, and open to another one.
    let text = locks.read();
    assert!(text.contains("\nv=2\nslots=2\n"), "{text}");
    two.unlock();
    assert_eq!(locks.names(), Vec::<String>::new());
}

#[test]
fn a_process_that_shares_a_lock_and_takes_it_away_by_force_takes_it_from_all() {
    let locks = Locks::new();
    let (mut one, mut two) = (Shell::start(&locks), Shell::start(&locks));
    let share = r#""$S" lock --shared 2> /dev/null"#;
    assert_eq!((one.run(share), two.run(share)), (0, 0));
    let (code, said) = one.output(r#""$S" unlock --force 2>&1"#);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains(&format!("broke lock `serializer.lck` of pid {}", two.pid())), "{said}");
    assert!(!locks.file().exists(), "{:?}", locks.names());
    let unlock = r#""$S" unlock 2> /dev/null"#;
    assert_eq!((one.run(unlock), two.run(unlock)), (1, 76), "only the other one has to be told");
    assert_eq!(locks.names(), [""; 0]);
}
