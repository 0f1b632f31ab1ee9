//! A waiter wakes up when the lock is released or its owner ends, counts its attempts, and gives up
//! when its parent or its own owner is gone. Where a test says an hour between attempts, only an
//! early poll can make it end.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::time::Duration;

use serializer::store::backoff::PollBackoff;

use crate::support::{self, Locks, Shell, Waiter, rounds, until};

const HOUR: [&str; 2] = ["--sleep-seconds", "3600"];

fn waiter(locks: &Locks, args: &[&str]) -> Command {
    let mut command = locks.serializer(&["lock"]);
    command.args(args);
    command
}

#[test]
fn a_waiter_wakes_up_when_the_lock_is_released() {
    for _ in 0..rounds(20) {
        let locks = Locks::new();
        let mut holder = Shell::start(&locks);
        holder.lock();
        let waiter = Waiter::start(waiter(&locks, &HOUR));
        waiter.asleep();
        holder.unlock();
        let ended = waiter.end();
        assert_eq!(ended.code, 0, "{ended:?}");
    }
}

#[test]
fn a_waiter_wakes_up_when_the_holder_dies() {
    for _ in 0..rounds(20) {
        let locks = Locks::new();
        let mut holder = Shell::start(&locks);
        holder.lock();
        let waiter = Waiter::start(waiter(&locks, &HOUR));
        waiter.asleep();
        holder.kill();
        let ended = waiter.end();
        assert_eq!(ended.code, 0, "{ended:?}");
        assert!(
            ended.last_line().contains(&format!("taken over from pid {}", holder.pid())),
            "{ended:?}"
        );
    }
}

#[test]
fn one_waiter_after_another_gets_the_lock_of_a_dead_holder() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let mut shells: Vec<Shell> = (0..4).map(|_| Shell::start(&locks)).collect();
    for shell in &mut shells {
        shell.send(r#""$S" lock --sleep-seconds 0.01 2> /dev/null && "$S" unlock 2> /dev/null"#);
    }
    holder.reap();
    for shell in &mut shells {
        assert_eq!(shell.answer().0, 0, "one after another gets it");
    }
    assert_eq!(locks.names(), Vec::<String>::new(), "nothing is left behind");
}

#[test]
fn a_waiter_gives_up_after_its_attempts() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let ended = locks.run(&["lock", "--max-attempts", "3", "--sleep-seconds", "0.02"]);
    assert_eq!(ended.code, 75, "{ended:?}");
    assert!(ended.last_line().contains(&format!(" by pid {} (bash", holder.pid())), "{ended:?}");
    assert!(ended.stderr.contains("attempt 1 of 3"), "{ended:?}");
}

#[test]
fn a_single_attempt_does_not_wait() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    // An hour after the last attempt would be pointless.
    let ended = ended_lock(&locks, &["--max-attempts", "1", "--sleep-seconds", "3600"]);
    assert_eq!(ended.code, 75, "{ended:?}");
    assert!(!ended.stderr.contains("waiting"), "{ended:?}");
}

fn ended_lock(locks: &Locks, args: &[&str]) -> support::Ended {
    support::ended(&mut waiter(locks, args))
}

#[test]
fn forged_wake_ups_use_up_no_attempts() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let waiter = Waiter::start(waiter(&locks, &["--max-attempts", "2", "--sleep-seconds", "3600"]));
    let dir = fs::metadata(locks.dir()).expect("the directory");
    let name = format!("serializer:{:x}:{:x}:serializer.lck", dir.dev(), dir.ino());
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    let socket = UnixDatagram::unbound().expect("a socket");
    // It says that it waits before it listens.
    until("it listens", || socket.send_to_addr(b"!", &address).is_ok());
    for _ in 0..200 {
        // Blocks while the waiter's queue is full, so that it has looked many times when this ends.
        socket.send_to_addr(b"!", &address).expect("the waiter listens");
    }
    holder.unlock();
    let ended = waiter.end();
    assert_eq!(ended.code, 0, "{ended:?}");
}

#[test]
fn a_name_that_another_program_has_taken_only_makes_a_waiter_look_by_itself() {
    let locks = Locks::new();
    let dir = fs::metadata(locks.dir()).expect("the directory");
    let name = format!("serializer:{:x}:{:x}:serializer.lck", dir.dev(), dir.ino());
    let _thief = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).expect("a name"))
        .expect("the name is free");
    let mut holder = Shell::start(&locks);
    holder.lock();
    let waiter = Waiter::start(waiter(&locks, &["--sleep-seconds", "3600"]));
    holder.unlock();
    let ended = waiter.end();
    assert_eq!(ended.code, 0, "{ended:?}");
}

#[test]
fn a_waiter_with_a_dead_parent_never_acquires() {
    for signal in ["TERM", "KILL", "INT", "HUP"] {
        let locks = Locks::new();
        let mut holder = Shell::start(&locks);
        holder.lock();
        // The waiter's own messages show that it waits, and their end that it has ended. The parent
        // of the tests may have them ignore some signals, as a shell does in the background.
        let mut parent = locks.command("env");
        parent.args([
            "--default-signal",
            "bash",
            "-c",
            r#""$S" lock --sleep-seconds 3600; echo not reached"#,
        ]);
        let parent = Waiter::start(parent);
        let killed = Command::new("bash")
            .args(["-c", &format!("kill -s {signal} {}", parent.pid())])
            .status();
        assert!(killed.expect("kill runs").success());
        // SIGINT does not end a shell that waits for a child; Ctrl-C signals both.
        if signal == "INT" {
            // Unless it was not waiting yet: then it has ended, and has no child any more.
            let waiters =
                Command::new("pkill").args(["-INT", "-P", &parent.pid().to_string()]).status();
            waiters.expect("pkill runs");
        }
        let ended = parent.end();
        assert_ne!(ended.code, 0, "{ended:?}");
        assert!(
            locks.read().starts_with(&format!("{}\n", holder.pid())),
            "the holder has the lock"
        );
        holder.unlock();
        assert_eq!(
            locks.names(),
            Vec::<String>::new(),
            "nobody takes it, and nothing is left behind"
        );
    }
}

#[test]
fn an_orphaned_waiter_says_why_it_gives_up() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let mut parent = locks.command("bash");
    parent.args(["-c", r#""$S" lock --sleep-seconds 3600; echo not reached"#]);
    let mut parent = Waiter::start(parent);
    parent.kill();
    let ended = parent.end();
    assert!(ended.last_line().contains("the process it was for has exited"), "{ended:?}");
}

#[test]
fn a_waiter_gives_up_when_the_owner_that_it_waits_for_dies() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let mut owner = Shell::start(&locks);
    let waiter = Waiter::start(waiter(
        &locks,
        &["--sleep-seconds", "3600", "--owner-pid", &owner.pid().to_string()],
    ));
    waiter.asleep();
    owner.kill();
    let ended = waiter.end();
    assert_eq!(ended.code, 1, "{ended:?}");
    holder.unlock();
    assert_eq!(locks.names(), Vec::<String>::new());
}

#[test]
fn a_killed_waiter_leaves_nothing_behind() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let mut waiter = Waiter::start(waiter(&locks, &HOUR));
    waiter.kill();
    assert_eq!(waiter.end().code, 137);
    holder.unlock();
    assert_eq!(locks.names(), Vec::<String>::new());
}

#[test]
fn a_named_owner_holds_the_lock_as_long_as_it_lives() {
    let locks = Locks::new();
    let mut owner = Shell::start(&locks);
    let ended = locks.run(&["lock", "--owner-pid", &owner.pid().to_string()]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(locks.read().starts_with(&format!("{}\n", owner.pid())));
    // The test process, which is this unlock's parent, does not own it; the named owner does.
    assert_eq!(locks.run(&["unlock"]).code, 77);
    owner.unlock();
}

#[test]
fn locking_what_one_holds_already_succeeds_with_a_warning() {
    let locks = Locks::new();
    let ended = locks.script(r#""$S" lock && "$S" lock; code=$?; "$S" unlock; exit $code"#);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(
        ended.stderr.contains("warning: ") && ended.stderr.contains("already locked"),
        "{ended:?}"
    );
    assert_eq!(locks.names(), Vec::<String>::new());
}

#[test]
fn a_shell_that_replaces_itself_by_unlock_is_recognised() {
    let locks = Locks::new();
    // bash runs the last command of a list in its own process.
    let ended = locks.script(r#""$S" lock && "$S" unlock"#);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.last_line().contains("unlocked"), "{ended:?}");
    let ended = ended_dash(&locks);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(locks.names(), Vec::<String>::new());
}

fn ended_dash(locks: &Locks) -> support::Ended {
    support::ended(locks.command("sh").args(["-c", r#""$S" lock && true; exec "$S" unlock"#]))
}

#[test]
fn a_terminal_shows_live_what_it_waits_for() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    // script(1) runs a command on a terminal and copies what it shows.
    let mut terminal = locks.command("script");
    terminal.env("TERM", "xterm").args([
        "-qefc",
        r#"stty cols 80; "$S" lock --max-attempts 2 --sleep-seconds 1.5"#,
        "/dev/null",
    ]);
    let ended = support::ended(&mut terminal);
    assert_eq!(ended.code, 75, "{ended:?}");
    let lines: Vec<_> = ended.stdout.split("\r\x1b[K").collect();
    let holder = format!("s by pid {} (bash -c whi", holder.pid());
    let is_live = |line: &&&str| line.starts_with("waiting for `serializer.lck`: ");
    let live: Vec<_> = lines.iter().filter(is_live).collect();
    assert!(live.len() >= 2, "drawn again while it waits: {ended:?}");
    assert!(
        live.iter().all(|line| line.contains(&holder) && line.chars().count() <= 77),
        "a narrow line shows the holder: {live:?}"
    );
    assert!(
        ended.stdout.contains("\r\x1b[Kserializer: cannot lock"),
        "the live line makes room for the message: {ended:?}"
    );
}

#[test]
fn nothing_is_drawn_where_that_is_not_wanted() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    for (name, value, flag) in
        [("TERM", "dumb", ""), ("CI", "true", ""), ("LANG", "C", "--no-progress")]
    {
        let mut terminal = locks.command("script");
        let script = format!(r#""$S" {flag} lock --max-attempts 2 --sleep-seconds 0.01"#);
        terminal.env("TERM", "xterm").env(name, value).args(["-qefc", &script, "/dev/null"]);
        let ended = support::ended(&mut terminal);
        assert!(
            ended.stdout.starts_with("serializer: waiting for `serializer.lck`: 1st in line, "),
            "{ended:?}"
        );
        assert!(!ended.stdout.contains('\u{1b}'), "{ended:?}");
    }
}

#[test]
fn a_log_is_told_when_what_holds_the_lock_changes_and_when_it_is_acquired() {
    let locks = Locks::new();
    let mut command = locks.command("bash");
    command.env("MELTANO_PARENT_CONTEXT_UUID", "a-run");
    let mut holder = Shell::start_with(command);
    holder.lock();
    assert_eq!(holder.run("mkfifo \"$SERIALIZER_DIR/go\"; read -r < \"$SERIALIZER_DIR/go\" &"), 0);
    let said = locks.dir().join("said");
    let mut waiter = locks.serializer(&["run", "--sleep-seconds", "3600", "--", "true"]);
    let mut waiter =
        waiter.stderr(fs::File::create(&said).expect("a file")).spawn().expect("it starts");
    let said = || fs::read_to_string(&said).expect("a file");
    until("it does not say that it waits", || said().lines().count() == 1);
    holder.kill();
    until("it does not say what goes on", || said().ends_with(" of the same run goes on\n"));
    fs::write(locks.dir().join("go"), "on\n").expect("it is read");
    until("it does not end", || waiter.try_wait().expect("it can be asked").is_some());
    let said = said();
    assert!(
        said.lines().count() == 3 && said.lines().all(|line| line.contains("serializer.lck`")),
        "{said}"
    );
    assert!(said.lines().last().is_some_and(|line| line.contains(" for `true` after ")), "{said}");
}

#[test]
fn a_timeout_ends_the_waiting_however_long_the_sleep() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    // The variable would end it after one attempt, and the sleep after an hour.
    let mut command = waiter(&locks, &["--timeout", "50ms", "--sleep-seconds", "3600"]);
    let ended = support::ended(command.env("SERIALIZER_MAX_ATTEMPTS", "1"));
    assert_eq!(ended.code, 75, "{ended:?}");
    assert!(ended.stderr.contains("waiting for"), "{ended:?}");
}

#[test]
fn a_lock_that_is_released_within_the_timeout_is_had() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let waiter = Waiter::start(waiter(&locks, &["--timeout", "1h", "--sleep-seconds", "3600"]));
    waiter.asleep();
    holder.unlock();
    assert_eq!(waiter.end().code, 0);
}

#[test]
fn no_wait_tries_once() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    for flag in ["--no-wait", "-n"] {
        let mut command = waiter(&locks, &[flag, "--sleep-seconds", "3600"]);
        let ended = support::ended(command.env("SERIALIZER_MAX_ATTEMPTS", "0"));
        assert_eq!(ended.code, 75, "{ended:?}");
        assert!(!ended.stderr.contains("waiting"), "{ended:?}");
    }
    holder.unlock();
    assert_eq!(ended_lock(&locks, &["--no-wait"]).code, 0);
}

#[test]
fn the_exit_code_for_a_held_lock_can_be_chosen() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    assert_eq!(ended_lock(&locks, &["-n", "-E", "9"]).code, 9);
    assert_eq!(ended_lock(&locks, &["-n", "--conflict-exit-code", "0"]).code, 0);
    for bad in ["256", "-1", "x", ""] {
        assert_eq!(ended_lock(&locks, &["-n", "-E", bad]).code, 2, "{bad:?}");
    }
    // It stands for a held lock, and for nothing else.
    assert_eq!(ended_lock(&locks, &["-n", "-E", "9", "--file-name", "no/such/dir"]).code, 1);
}

#[test]
fn flags_that_say_how_long_to_wait_exclude_each_other() {
    let locks = Locks::new();
    for args in
        [["-n", "--max-attempts=2"], ["-n", "--timeout=1s"], ["--timeout=1s", "--max-attempts=2"]]
    {
        assert_eq!(ended_lock(&locks, &args).code, 2, "{args:?}");
    }
    assert_eq!(locks.names(), Vec::<String>::new());
}

#[test]
fn a_timeout_is_a_number_of_seconds_or_has_units() {
    let locks = Locks::new();
    for good in ["0", "0.5", "90s", "1h30m", "500ms", "90d"] {
        assert_eq!(locks.run(&["wait", "--timeout", good]).code, 0, "{good}");
    }
    for bad in ["", "-1", "-1s", "1s ago", "1 fortnight", "9999h9999h", "31536001", "400000h", "1y"]
    {
        let ended = locks.run(&["wait", &format!("--timeout={bad}")]);
        assert!(
            ended.code == 2 && ended.stderr.contains("expected a duration"),
            "{bad}: {ended:?}"
        );
    }
}

#[test]
fn waiting_for_a_store_costs_what_is_documented() {
    let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
    let paid = PollBackoff::new(Duration::from_millis(100), Duration::from_secs(10));
    let directory = PollBackoff::new(Duration::from_millis(50), second);
    for (pace, time, attempt, expected) in [
        (&paid, hour, 1, 3600..3650),
        (&directory, hour, 1, 3600..3650),
        (&paid, hour, 2, 1800..1850),
        (&paid, hour, 10, 360..450),
        // Longer attempts change nothing.
        (&paid, hour, 3600, 360..450),
        (&paid, second, 1, 8..15),
    ] {
        let (mut waited, mut due, mut count) = (Duration::ZERO, Duration::ZERO, 0);
        // Ends with the time: no pause is nothing.
        while waited < time {
            count += 1;
            if waited >= due {
                due = waited + Duration::from_secs(attempt);
            }
            let pause = pace.pause_after(waited, due - waited);
            assert!(pause <= due - waited, "{pause:?}");
            waited += pause;
        }
        assert!(expected.contains(&count), "{count} polls, with an attempt every {attempt} s");
    }
}
