//! A lock that is to be held for some time at least is, whatever becomes of its owner meanwhile.

use crate::support::{Locks, Shell, Waiter};

const HOUR: &str = r#""$S" lock --hold-at-least 1h -n 2>&1"#;

fn holder(locks: &Locks, line: &str) -> Shell {
    let mut shell = Shell::start(locks);
    let (code, output) = shell.output(line);
    assert_eq!(code, 0, "{output}");
    shell
}

fn assert_held_for_an_hour(locks: &Locks) {
    let refused = locks.run(&["lock", "-n"]);
    assert_eq!(refused.code, 75, "{refused:?}");
    let time = refused.last_line().split("to be held for another ").nth(1).unwrap_or("");
    // A test does not take half an hour.
    assert!(time.starts_with("59m") || time.starts_with("1h"), "{refused:?}");
}

#[test]
fn a_lock_that_is_released_early_stays_held() {
    let locks = Locks::new();
    let mut shell = holder(&locks, HOUR);
    let (code, output) = shell.output(r#""$S" unlock 2>&1"#);
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("it stays reserved for "), "{output}");
    assert_held_for_an_hour(&locks);
    let (state, reason) = locks.state();
    assert_eq!(state, "held");
    assert!(reason.starts_with("to be held for another "), "{reason}");
    // The reserved time also binds the requester itself, and a second release fails.
    assert_eq!(shell.run(r#""$S" lock -n 2> /dev/null"#), 75);
    assert_eq!(shell.run(r#""$S" unlock 2> /dev/null"#), 77);
    shell.reap();
    assert_held_for_an_hour(&locks);
}

#[test]
fn the_rest_of_a_second_is_told_as_a_second() {
    let locks = Locks::new();
    let ended = locks.script(r#""$S" lock --hold-at-least 1s; "$S" unlock; exit $?"#);
    let line = "unlocked `serializer.lck`";
    let expected = [
        format!("serializer: {line}; it stays reserved for 1s (`--hold-at-least`)"),
        format!("serializer: {line}"),
    ];
    // The second one if the second was over.
    assert!(expected.iter().any(|line| line == ended.last_line()), "{ended:?}");
}

#[test]
fn a_lock_of_an_owner_killed_early_stays_held() {
    let locks = Locks::new();
    holder(&locks, HOUR).reap();
    assert_held_for_an_hour(&locks);
    assert_eq!(locks.state().0, "held");
    assert_eq!(locks.run(&["unlock"]).code, 77);
}

#[test]
fn an_owner_that_lives_longer_holds_it_longer() {
    let locks = Locks::new();
    let mut shell = holder(&locks, r#""$S" lock --hold-at-least 1ms 2>&1"#);
    assert_eq!(locks.run(&["lock", "--max-attempts", "2", "--sleep-seconds", "0.01"]).code, 75);
    assert_eq!(locks.state().0, "held");
    shell.unlock();
    assert_eq!(locks.names(), Vec::<String>::new(), "nothing is left of a time that is over");
}

#[test]
fn a_waiter_gets_it_when_the_time_is_over() {
    for is_killed in [false, true] {
        let locks = Locks::new();
        let mut shell = holder(&locks, r#""$S" lock --hold-at-least 1s 2>&1"#);
        let waiter = Waiter::start(locks.serializer(&["lock", "--sleep-seconds", "3600"]));
        if is_killed {
            shell.kill();
        } else {
            shell.unlock();
        }
        let ended = waiter.end();
        assert_eq!(ended.code, 0, "{ended:?}");
        assert_eq!(locks.run(&["unlock"]).code, 0);
        assert_eq!(locks.names(), Vec::<String>::new());
    }
}

#[test]
fn force_ends_it() {
    let locks = Locks::new();
    let mut shell = holder(&locks, HOUR);
    shell.unlock();
    let forced = locks.run(&["unlock", "--force"]);
    assert_eq!(forced.code, 0, "{forced:?}");
    assert!(
        forced
            .last_line()
            .contains(&format!("broke lock `serializer.lck` of pid {} (bash", shell.pid())),
        "{forced:?}"
    );
    assert_eq!(locks.names(), Vec::<String>::new());
}

#[test]
fn a_reboot_ends_it() {
    for is_released in [false, true] {
        let locks = Locks::new();
        let mut shell = holder(&locks, HOUR);
        if is_released {
            shell.unlock();
        }
        shell.reap();
        let text = locks.read();
        let boot = text.lines().find(|line| line.starts_with("boot=")).expect("a boot id");
        locks.write(text.replace(boot, "boot=00000000-0000-0000-0000-000000000000"));
        assert_eq!(locks.state(), ("stale".to_owned(), "the machine has rebooted".to_owned()));
        assert_eq!(locks.run(&["lock", "-n"]).code, 0);
    }
}

#[test]
fn a_slot_that_is_to_be_held_is_not_free() {
    let locks = Locks::new();
    let mut one = holder(&locks, r#""$S" lock --slots 2 --hold-at-least 1h 2>&1"#);
    let mut two = holder(&locks, r#""$S" lock --slots 2 2>&1"#);
    one.unlock();
    assert_eq!(locks.pids("holders"), [two.pid(), one.pid()]);
    assert_eq!(locks.run(&["lock", "--slots", "2", "-n"]).code, 75);
    two.unlock();
    assert_eq!(locks.pids("holders"), [one.pid()]);
    let _three = holder(&locks, r#""$S" lock --slots 2 -n 2>&1"#);
    assert_eq!(locks.run(&["lock", "--slots", "2", "-n"]).code, 75);
    // A sharer keeps plain requests out.
    let locks = Locks::new();
    let mut sharer = holder(&locks, r#""$S" lock --shared --hold-at-least 1h 2>&1"#);
    sharer.unlock();
    assert_eq!(locks.run(&["lock", "-n"]).code, 75);
    let _other = holder(&locks, r#""$S" lock --shared -n 2>&1"#);
}
