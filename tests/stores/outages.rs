//! Stores that go and come back, or do not answer: a waiter goes on waiting and says why, a holder
//! keeps its lock as long as its lease allows, and no other process gets it before.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::faults::{
    Logged, SUCCESSOR, Server, WORK, assert_no_overlap, each, end, proxied, renewals, start,
    until_renewed,
};
use crate::support::servers::Options;
use crate::support::stores::Store;
use crate::support::{Shell, ended, first_line, proxy, until};

/// Does not end while a test runs.
const LONG: Duration = Duration::from_secs(600);

/// Outlasts a server that starts again, and is renewed every ten seconds, as by default.
const USUAL: Duration = Duration::from_secs(30);

/// Renewed every four seconds.
const RENEWED: Duration = Duration::from_secs(12);

/// Short enough to be waited for.
const SHORT: Duration = Duration::from_secs(6);

fn fifo(store: &Store) {
    assert_eq!(ended(Command::new("mkfifo").arg(store.locks.dir().join("go"))).code, 0);
}

fn go(store: &Store) {
    fs::write(store.locks.dir().join("go"), "on\n").expect("it is read");
}

/// A `run` with a command that waits for [`go`], and runs when this returns.
fn running(store: &Store) -> Child {
    fifo(store);
    let mut child = start(store, &["run", "sh", "-c", "echo runs; read -r line < go"]);
    assert_eq!(first_line(&mut child), "runs");
    child
}

/// Verbose message: a store has not released a lock, and is asked again.
const RELEASING_AGAIN: &str = "; trying again";

type Down = fn(&mut Server);
const DOWNS: [Down; 2] = [Server::kill, Server::stop];

#[test]
fn holders_outlast_a_server_that_is_killed_or_stopped_and_starts_again() {
    each(Server::all(), |mut server| {
        for down in DOWNS {
            let (lock, run) = (server.store(USUAL), server.store(USUAL));
            let mut owner = lock.shell();
            owner.lock();
            let child = running(&run);
            let before = (renewals(&lock), renewals(&run));
            down(&mut server);
            server.restart();
            until("they are not renewed", || {
                renewals(&lock) > before.0 && renewals(&run) > before.1
            });
            assert_eq!(lock.run(&["lock", "-n"]).code, 75);
            owner.unlock();
            go(&run);
            let ended = end(child);
            assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{}", server.url());
            assert_eq!((lock.state(), run.state()), ("free".to_owned(), "free".to_owned()));
        }
    });
}

#[test]
fn a_process_that_waits_says_that_the_server_is_gone_and_gets_the_lock_when_it_is_back() {
    each(Server::all(), |mut server| {
        for down in DOWNS {
            let store = server.store(USUAL);
            let mut owner = store.shell();
            owner.lock();
            let waiter = Logged::start(&store, &["run", "echo", "ran"]);
            waiter.until_said("waiting for `");
            down(&mut server);
            waiter.until_said("store unreachable, retrying: cannot read the lock");
            server.restart();
            owner.unlock();
            let (code, said) = waiter.end();
            assert_eq!(code, 0, "{said}");
            assert_eq!(store.state(), "free");
        }
    });
}

#[test]
fn unlock_waits_for_a_server_that_starts_again() {
    each(Server::all(), |mut server| {
        let store = server.store(USUAL);
        let mut owner = store.shell();
        owner.lock();
        server.kill();
        owner.send(r#""$S" unlock --log-level debug 2> said; cat said"#);
        let said = store.locks.dir().join("said");
        until("it does not try again", || {
            fs::read_to_string(&said).is_ok_and(|said| said.contains("retrying: "))
        });
        server.restart();
        let (code, said) = owner.answer();
        assert!(code == 0 && said.contains("unlocked `"), "{said}");
        assert_eq!(store.state(), "free");
    });
}

#[test]
fn a_server_that_does_not_answer_ends_a_waiter_within_their_attempts_with_the_reason() {
    each(Server::all_alone(), |server| {
        let store = server.store(SHORT);
        assert_eq!(store.run(&["run", "true"]).code, 0);
        server.pause();
        let all: [&[&str]; 8] = [
            &["lock", "-n"],
            &["lock", "--max-attempts", "2", "--sleep-seconds", "0.1"],
            &["lock", "--timeout", "2s"],
            &["run", "-n", "touch", "ran"],
            &["run", "--timeout", "1s", "touch", "ran"],
            &["wait", "--timeout", "1s"],
            &["wait", "-n"],
            &["status"],
        ];
        for args in all {
            let ended = store.run(args);
            let reason = ["does not answer in time", "no connection within"];
            assert!(
                ended.code == 1 && reason.iter().any(|reason| ended.last_line().contains(reason)),
                "{args:?} {ended:?}"
            );
            // It was not even asked to change anything.
            assert!(
                !ended.stderr.contains("not known") && !ended.stderr.contains("hunter2"),
                "{args:?} {ended:?}"
            );
        }
        assert!(!store.locks.dir().join("ran").exists());
        let waiter = Logged::start(&store, &["run", "touch", "ran"]);
        waiter.until_said("store unreachable, retrying: cannot read the lock");
        assert!(!store.locks.dir().join("ran").exists());
        server.resume();
        let (code, said) = waiter.end();
        assert!(code == 0 && store.locks.dir().join("ran").exists(), "{said}");
        assert_eq!(store.state(), "free");
    });
}

#[test]
fn unlock_tries_for_some_time_where_no_process_answers_and_then_says_why_it_failed() {
    let servers = Server::shared();
    let held: Vec<_> = servers
        .iter()
        .map(|server| {
            let store = server.store(LONG);
            let mut owner = store.shell();
            owner.lock();
            let (proxy, through) = proxied(&store);
            proxy.cut();
            (store, proxy, through, owner)
        })
        .collect();
    each(held, |(store, proxy, through, mut owner)| {
        let url = format!("SERIALIZER_STORE='{}'", through.url);
        let (code, said) = owner.output(&format!(r#"{url} "$S" unlock 2>&1"#));
        assert!(
            code == 1 && said.contains("cannot read the lock") && said.contains("refused"),
            "{code} {said}"
        );
        assert_eq!(store.state(), "held");
        proxy.mend();
        assert_eq!(owner.run(&format!(r#"{url} "$S" unlock 2> /dev/null"#)), 0);
        assert_eq!(store.state(), "free");
    });
}

#[test]
fn a_process_that_cannot_know_whether_it_was_done_says_so() {
    each(Server::shared(), |server| {
        let store = server.store(SHORT);
        assert_eq!(store.run(&["run", "true"]).code, 0);
        let (proxy, through) = proxied(&store);
        proxy.swallow_answers_from(store.markers()[2]);
        let ended = through.run(&["run", "-n", "touch", "ran"]);
        proxy.wait_until_hit();
        assert!(
            ended.code == 1 && ended.stderr.contains("the write may or may not have happened"),
            "{ended:?}"
        );
        assert!(!through.locks.dir().join("ran").exists());
        // It was done, and has no keeper.
        let next = store.run(&["run", "echo", "ran"]);
        assert_eq!((next.code, next.stdout.as_str()), (0, "ran\n"), "{next:?}");
    });
}

#[test]
fn an_outage_that_is_shorter_than_the_lease_harms_no_process() {
    each(Server::shared(), |server| {
        let (lock, run) = (server.store(RENEWED), server.store(RENEWED));
        let ((cut, lock_through), (hole, run_through)) = (proxied(&lock), proxied(&run));
        let mut owner = lock_through.shell();
        owner.lock();
        let child = running(&run_through);
        cut.cut();
        hole.black_hole();
        // It is noticed: there are new connections, which get nowhere.
        let before = hole.accepted();
        until("nobody tries to renew", || hole.accepted() > before);
        assert_eq!(run.run(&["lock", "-n"]).code, 75);
        cut.mend();
        hole.mend();
        until_renewed(&lock);
        until_renewed(&run);
        owner.unlock();
        go(&run_through);
        let ended = end(child);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{}", server.url());
    });
}

#[test]
fn a_holder_that_is_cut_off_has_stopped_when_another_gets_the_lock() {
    let breaks: [fn(&proxy::Proxy); 2] = [proxy::Proxy::cut, proxy::Proxy::black_hole];
    each(Server::shared(), |server| {
        each(breaks, |cut_off| {
            let store = server.store(SHORT);
            let (proxy, through) = proxied(&store);
            let run = ["run", "--log-level", "debug", "bash", "-c", WORK];
            let mut first = through.serializer(&run);
            first.current_dir(store.locks.dir()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut first = first.spawn().expect("it starts");
            assert_eq!(first_line(&mut first), "begun");
            let second = store.waiter(&["run", "bash", "-c", SUCCESSOR]);
            cut_off(&proxy);
            let lost = end(first);
            assert!(
                lost.code == 76 && lost.stderr.contains("its lease could not be renewed in time"),
                "{lost:?}"
            );
            assert!(!lost.stderr.contains(RELEASING_AGAIN), "it ends with its command: {lost:?}");
            assert_eq!(second.end().code, 0);
            assert_no_overlap(store.locks.dir(), &server.url());
        });
    });
}

#[test]
fn a_command_that_ends_after_its_lease_is_not_taken_to_have_run_alone() {
    each(Server::shared(), |server| {
        let store = server.store(SHORT);
        let (proxy, through) = proxied(&store);
        fifo(&through);
        let run = [
            "run",
            "--on-lost",
            "warn",
            "--log-level",
            "debug",
            "sh",
            "-c",
            "echo runs; read -r line < go",
        ];
        let mut child = start(&through, &run);
        assert_eq!(first_line(&mut child), "runs");
        proxy.cut();
        assert_eq!(store.run(&["run", "true"]).code, 0);
        // It cannot ask what has become of its lock.
        go(&through);
        let ended = end(child);
        assert!(
            ended.code == 76 && ended.stderr.contains("its lease expired before `sh` ended"),
            "{}: {ended:?}",
            server.url()
        );
        assert!(!ended.stderr.contains(RELEASING_AGAIN), "{}: {ended:?}", server.url());
    });
}

#[test]
fn an_owner_that_was_cut_off_for_too_long_is_told_when_it_unlocks() {
    each(Server::shared(), |server| {
        let store = server.store(SHORT);
        let (proxy, through) = proxied(&store);
        let (mut owner, mut other) = (through.shell(), store.shell());
        owner.lock();
        proxy.black_hole();
        let (code, said) = other.output(r#""$S" lock 2>&1"#);
        assert!(code == 0 && said.contains("its lease has expired"), "{said}");
        proxy.mend();
        let (code, said) = owner.output(r#""$S" unlock 2>&1"#);
        assert!(code == 76 && said.contains("held now by"), "{code} {said}");
        other.unlock();
    });
}

#[test]
fn an_owner_that_asked_for_it_is_ended_while_it_is_cut_off_before_another_gets_the_lock() {
    each(Server::shared(), |server| {
        let store = server.store(SHORT);
        let (proxy, through) = proxied(&store);
        let mut owner = through.shell();
        assert_eq!(owner.run(r#""$S" lock --on-lost terminate 2> /dev/null"#), 0);
        let waiter = store.waiter(&["lock"]);
        proxy.cut();
        assert_eq!(waiter.end().code, 0);
        assert!(has_ended(&owner), "{}", server.url());
    });
}

fn has_ended(shell: &Shell) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", shell.pid()))
        .is_ok_and(|stat| stat.contains(") Z "))
}

#[test]
fn a_server_with_a_clock_hours_apart_keeps_locks_as_long_as_any() {
    let by = |clock| {
        Server::both_with(Options { faketime: Some(clock), ..Options::default() })
            .map(|server| (clock, server))
    };
    each(["+5h", "-5h"].into_iter().flat_map(by), |(clock, server)| {
        let store = server.store(SHORT);
        let mut owner = store.shell();
        owner.lock();
        until_renewed(&store);
        assert_eq!(store.run(&["lock", "-n"]).code, 75);
        // Its keeper is killed, so that it is not renewed any more.
        let keeper = store.keeper();
        assert_eq!(ended(Command::new("kill").args(["-KILL", &keeper.to_string()])).code, 0);
        let mut other = store.shell();
        let (code, said) = other.output(r#""$S" lock 2>&1"#);
        assert!(code == 0 && said.contains("its lease has expired"), "{clock} {said}");
        other.unlock();

        let told = store.run(&["run", "--verbose", "--hold-at-least", "2s", "true"]);
        assert!(told.code == 0 && told.stderr.contains("it stays reserved for"), "{told:?}");
        assert_eq!(store.run(&["lock", "-n"]).code, 75);
        assert_eq!(store.run(&["run", "true"]).code, 0);
    });
}

#[test]
fn a_server_with_its_clock_set_forward_frees_a_lock_and_its_holder_ends_at_its_next_renewal() {
    each(Server::both_with(Options { faketime: Some("+0"), ..Options::default() }), |server| {
        let store = server.store(RENEWED);
        let child = running(&store);
        server.set_clock("+1h");
        let mut other = store.shell();
        other.lock();
        let lost = end(child);
        assert!(lost.code == 76 && lost.stderr.contains(": lost `"), "{lost:?}");
        // By the new time, all is as it was.
        until_renewed(&store);
        assert_eq!(store.run(&["lock", "-n"]).code, 75);
        other.unlock();
    });
}

#[test]
fn a_server_with_its_clock_set_back_keeps_a_lock_no_longer_than_its_lease() {
    each(Server::both_with(Options { faketime: Some("+1h"), ..Options::default() }), |server| {
        let store = server.store(SHORT);
        let mut owner = store.shell();
        owner.lock();
        server.set_clock("+0");
        until_renewed(&store);
        assert_eq!(store.run(&["lock", "-n"]).code, 75);
        // Without its keeper it is not renewed: by its clock, the last renewal expires in an hour.
        let keeper = store.keeper();
        assert_eq!(ended(Command::new("kill").args(["-KILL", &keeper.to_string()])).code, 0);
        server.set_clock("-1h");
        let mut other = store.shell();
        other.lock();
        other.unlock();
    });
}
