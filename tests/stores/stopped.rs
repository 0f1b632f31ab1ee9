//! `lock` is stopped at every call that reaches another process, for longer than its lease:
//! whatever has come of that, it never says that it has the lock while another process has it.
//! Requires strace.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use crate::support::stores::{Kind, Store, of_each};
use crate::support::{ended, first_line, until};
use rustix::process::{Pid, Signal, kill_process};

/// The calls that reach a server and the keeper.
const CALLS: [&str; 6] = ["connect", "sendto", "recvfrom", "write", "read", "poll"];

/// More are alike.
const MOST_OF_A_KIND: usize = 10;

/// Short, since it is waited for often; a connection may take a sixth of it.
const LEASE: Duration = Duration::from_secs(2);

/// What the shell waits for: the program under test.
fn child_of(shell: u32) -> Option<Pid> {
    let children =
        fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).expect("it runs");
    Pid::from_raw(children.split_ascii_whitespace().next()?.parse().expect("a PID"))
}

/// Stops `lock` at one of its calls; says whether it has come to that.
fn is_stopped_at(store: &Store, call: &str, number: usize) -> bool {
    let mut owner = store.shell();
    let trace = store.locks.dir().join("trace");
    // It may be there from the last time.
    let _ = fs::remove_file(&trace);
    owner.send(&format!(
        "strace -D -qq -o trace -e trace={call} -e inject={call}:signal=STOP:when={number} \"$S\" \
         lock -n 2> said; code=$?; echo done >> trace; (exit $code)"
    ));
    let traced = || fs::read_to_string(&trace).unwrap_or_default();
    until("it is neither stopped nor done", || {
        traced().contains("stopped by SIGSTOP") || traced().ends_with("done\n")
    });
    let Some(pid) = child_of(owner.pid()).filter(|_| traced().contains("stopped by SIGSTOP"))
    else {
        assert_eq!(owner.answer().0, 0, "{call} {number}: {}", traced());
        owner.unlock();
        return false;
    };
    let mut other =
        store.serializer(&["run", "--timeout", "6s", "sh", "-c", "echo held; read -r line < go"]);
    let mut other = other.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    let is_taken = first_line(&mut other) == "held";
    kill_process(pid, Signal::CONT).expect("it is stopped");
    let (code, _) = owner.answer();
    let said = fs::read_to_string(store.locks.dir().join("said")).expect("it can be read");
    if is_taken {
        // 1: its connection came too late.
        assert!([1, 75, 76].contains(&code), "{} {call} {number}: {code} {said}", store.url);
        fs::write(store.locks.dir().join("go"), "on\n").expect("it is read");
        assert!(other.wait().expect("it ends").success());
    } else {
        // The keeper has begun, and goes on while `lock` is stopped.
        assert!(
            code == 0 && other.wait().expect("it ends").code() == Some(75),
            "{} {call} {number}: {code} {said}",
            store.url
        );
        owner.unlock();
    }
    true
}

/// Delays `lock` at one of its calls; says whether it has come to that.
fn is_delayed_at(store: &Store, number: usize) -> bool {
    let mut owner = store.shell();
    let code = owner.run(&format!(
        "strace -D -qq -o trace -e trace=sendto -e inject=sendto:delay_enter=3000ms:when={number} \
         \"$S\" lock -n --on-lost terminate 2> said"
    ));
    let (alive, said) = (
        owner.run("true"),
        fs::read_to_string(store.locks.dir().join("said")).expect("it can be read"),
    );
    // 1: a connection or an answer came too late for it to say that it has the lock.
    assert!(alive == 0 && [0, 1, 76].contains(&code), "{} {number}: {code} {said}", store.url);
    if code == 0 {
        owner.unlock();
    }
    // A process does not keep a lock that it has not acquired.
    assert_eq!(
        store.run(&["run", "--timeout", "20s", "true"]).code,
        0,
        "{} {number}: {code} {said}",
        store.url
    );
    fs::read_to_string(store.locks.dir().join("trace"))
        .expect("it can be read")
        .contains("(DELAYED)")
}

of_each! { databases:
an_owner_that_was_never_told_that_it_has_the_lock_is_not_ended_when_that_is_lost,
a_process_that_is_stopped_while_it_locks_does_not_believe_that_it_has_what_another_has,
=> Postgres, MariaDb }

fn an_owner_that_was_never_told_that_it_has_the_lock_is_not_ended_when_that_is_lost(kind: Kind) {
    let store = Store::of(kind, LEASE);
    assert_eq!(store.run(&["run", "true"]).code, 0);
    let delays = (1..=MOST_OF_A_KIND).take_while(|number| is_delayed_at(&store, *number)).count();
    assert!(delays > 2, "{}: {delays}", store.url);
}

fn a_process_that_is_stopped_while_it_locks_does_not_believe_that_it_has_what_another_has(
    kind: Kind,
) {
    let store = Store::of(kind, LEASE);
    assert_eq!(store.run(&["run", "true"]).code, 0);
    assert_eq!(
        ended(std::process::Command::new("mkfifo").arg(store.locks.dir().join("go"))).code,
        0
    );
    let stops_at = |call| {
        (1..=MOST_OF_A_KIND).take_while(|number| is_stopped_at(&store, call, *number)).count()
    };
    let stops: usize = CALLS.into_iter().map(stops_at).sum();
    assert!(stops > 15, "it was stopped {stops} times only");
}
