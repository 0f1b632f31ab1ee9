//! `wait` returns when the locks are free, and takes none; `break` takes a lock from one certain
//! holder.

use crate::support::{Locks, Shell, Waiter, ended, until};

/// The token of the holder, and the command that breaks its hold.
fn token(locks: &Locks) -> String {
    let report: serde_json::Value =
        serde_json::from_str(&locks.run(&["status", "--json"]).stdout).expect("JSON");
    report["locks"][0]["holder"]["token"].as_str().expect("a token").to_owned()
}

#[test]
fn waiting_for_what_no_process_holds_returns_at_once_and_leaves_nothing() {
    let locks = Locks::new();
    let ended = locks.run(&["wait", "one.lck", "two.lck"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
    assert_eq!(locks.names(), [""; 0]);
}

#[test]
fn waiting_ends_when_the_lock_is_released() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let waiter = Waiter::start(locks.serializer(&["wait"]));
    holder.unlock();
    let ended = waiter.end();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(locks.names(), [""; 0], "nothing was taken, and nothing is left");
}

#[test]
fn waiting_ends_when_the_holder_dies_and_the_lock_is_not_touched() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let waiter = Waiter::start(locks.serializer(&["wait"]));
    let before = locks.read();
    holder.kill();
    assert_eq!(waiter.end().code, 0);
    assert_eq!(locks.read(), before);
}

#[test]
fn several_locks_are_waited_for() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    for name in ["one.lck", "two.lck"] {
        assert_eq!(holder.run(&format!(r#""$S" lock --file-name {name} 2>/dev/null"#)), 0);
    }
    let mut waiter = Waiter::start(locks.serializer(&["wait", "one.lck", "two.lck"]));
    assert_eq!(holder.run(r#""$S" unlock --file-name one.lck 2>/dev/null"#), 0);
    assert!(waiter.is_waiting());
    assert_eq!(holder.run(r#""$S" unlock --file-name two.lck 2>/dev/null"#), 0);
    assert_eq!(waiter.end().code, 0);
}

#[test]
fn a_process_that_waits_without_wanting_the_lock_disturbs_nothing() {
    if crate::support::lacks("a queue") {
        return;
    }
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let watcher = Waiter::start(locks.serializer(&["wait"]));
    let mut next = Shell::start(&locks);
    next.send(r#""$S" lock --sleep-seconds 3600 2>/dev/null"#);
    until("it waits", || locks.names() == ["serializer.lck", "serializer.lck.queue"]);
    holder.unlock();
    assert_eq!(next.answer().0, 0, "it is woken although another one waits, too");
    // The one that waits may have seen the moment between the two, or not; at the latest it ends
    // now.
    next.unlock();
    assert_eq!(watcher.end().code, 0);
    assert_eq!(locks.names(), [""; 0]);
}

#[test]
fn waiting_can_be_limited() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    for args in [
        &["wait", "--no-wait"][..],
        &["wait", "--timeout", "10ms"],
        &["wait", "--max-attempts=2", "--sleep-seconds=0"],
    ] {
        let ended = locks.run(args);
        assert_eq!(ended.code, 75, "{ended:?}");
        assert!(
            ended.last_line().contains(&format!("cannot wait for `{}`", locks.file().display())),
            "{ended:?}"
        );
        assert!(ended.last_line().contains(&format!(" by pid {}", holder.pid())), "{ended:?}");
    }
    assert_eq!(locks.run(&["wait", "-n", "-E", "9"]).code, 9);
}

#[test]
fn a_hold_is_broken_by_its_token_and_its_holder_is_named() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let ended = locks.run(&["break", "serializer.lck", "--token", &token(&locks)]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(
        ended
            .stderr
            .contains(&format!("broke lock `serializer.lck` of pid {} (bash", holder.pid())),
        "{ended:?}"
    );
    assert!(!locks.file().exists(), "{:?}", locks.names());
    // The stale holder learns of it.
    assert_eq!(holder.run(r#""$S" unlock 2>/dev/null"#), 76);
    assert_eq!(locks.names(), [""; 0]);
}

#[test]
fn a_terminal_shows_the_holders_and_asks() {
    let locks = Locks::new();
    let (mut one, mut two) = (Shell::start(&locks), Shell::start(&locks));
    let ask = |answer: &str| {
        let script = format!(r#"printf '{answer}\n' | script -qefc '"$S" break' /dev/null"#);
        ended(
            locks
                .command("bash")
                .args(["-c", &script])
                .env("TERM", "xterm")
                .env("SHELL", "/bin/bash"),
        )
    };
    one.lock();
    for answer in ["n", "", "1"] {
        let refused = ask(answer);
        assert!(
            refused.code == 1
                && refused.stdout.contains(&format!("is held by pid {} (bash", one.pid())),
            "{refused:?}"
        );
        assert!(locks.file().exists() && refused.stdout.contains("did not break"), "{refused:?}");
    }
    assert_eq!(ask("y").code, 0);
    assert_eq!(one.run(r#""$S" unlock 2>/dev/null"#), 76);
    let lock = r#""$S" lock --slots 2 2>/dev/null"#;
    assert_eq!((one.run(lock), two.run(lock)), (0, 0));
    assert_eq!((ask("y").code, ask("3").code, ask("2").code), (1, 1, 0));
    assert_eq!(locks.pids("holders"), [one.pid()]);
    one.unlock();
}

#[test]
fn a_process_that_has_got_the_lock_in_the_meantime_keeps_it() {
    let locks = Locks::new();
    let (mut one, mut two) = (Shell::start(&locks), Shell::start(&locks));
    one.lock();
    let old = token(&locks);
    one.unlock();
    two.lock();
    let before = locks.read();
    let ended = locks.run(&["break", "--token", &old]);
    assert_eq!(ended.code, 77, "{ended:?}");
    assert!(ended.last_line().contains(&format!("held by pid {}", two.pid())), "{ended:?}");
    assert!(ended.last_line().contains("the lock may have changed hands"), "{ended:?}");
    assert_eq!(locks.read(), before);
    two.unlock();
    let ended = locks.run(&["break", "--token", &old]);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.last_line().contains("it is not locked"), "{ended:?}");
}

#[test]
fn one_of_several_holds_is_broken() {
    let locks = Locks::new();
    let (mut one, mut two) = (Shell::start(&locks), Shell::start(&locks));
    let lock = r#""$S" lock --slots 2 2>/dev/null"#;
    assert_eq!((one.run(lock), two.run(lock)), (0, 0));
    let first = token(&locks);
    let ended = locks.run(&["break", "--token", &first]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(
        ended.stderr.contains(&format!("broke lock `serializer.lck` of pid {}", one.pid())),
        "{ended:?}"
    );
    assert_eq!(one.run(r#""$S" unlock 2>/dev/null"#), 76);
    two.unlock();
    assert_eq!(locks.names(), [""; 0]);
}

#[test]
fn a_process_that_breaks_a_hold_keeps_its_own() {
    let locks = Locks::new();
    let (mut one, mut two) = (Shell::start(&locks), Shell::start(&locks));
    let lock = r#""$S" lock --slots 2 2>/dev/null"#;
    assert_eq!((one.run(lock), two.run(lock)), (0, 0));
    let first = token(&locks);
    assert_eq!(two.run(&format!(r#""$S" break --token {first} 2>/dev/null"#)), 0);
    assert_eq!(
        two.run(&format!(r#""$S" break --token {first} 2>/dev/null"#)),
        77,
        "only its own is left"
    );
    two.unlock();
}

#[test]
fn the_stale_hold_of_another_acquisition_is_not_broken() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let right = token(&locks);
    holder.reap();
    assert_eq!(locks.run(&["break", "--token", "another"]).code, 1);
    assert!(locks.file().exists());
    assert_eq!(locks.run(&["break", "--token", &right]).code, 0);
    assert_eq!(locks.names(), [""; 0]);
}

#[test]
fn a_break_needs_a_token() {
    let locks = Locks::new();
    assert_eq!(locks.run(&["break"]).code, 2);
    assert_eq!(locks.run(&["break", "serializer.lck"]).code, 2);
}
