//! A key that runs once, on each store: for all hosts together, whatever dies, is frozen, or is
//! lost on the way.

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::lost_answers::{Loss, Marker};
use crate::support::callers::run_each_key_once;
use crate::support::calls::{ends, own_calls};
use crate::support::faults::{Logged, end, proxied};
use crate::support::stores::{Kind, Store, of_each};
use crate::support::{Ended, Shell, ended, first_line, rounds, until};
use rustix::process::{Pid, Signal, kill_process};

/// Does not end while a test runs.
const LONG: Duration = Duration::from_secs(600);

/// Is waited for.
const SHORT: Duration = Duration::from_secs(3);

of_each! { stores:
a_key_runs_until_its_command_has_succeeded_and_is_skipped_after_that,
a_run_that_was_killed_is_interrupted_when_its_lease_has_expired,
a_run_that_was_frozen_for_too_long_has_not_succeeded_whatever_its_command_has_done,
a_run_is_begun_by_one_process_and_ended_by_another,
many_callers_run_each_key_once_although_some_are_killed,
=> Postgres, MariaDb, DynamoDb, S3, Azure, Directory }

of_each! { over_networks:
a_key_runs_once_whatever_is_lost_of_its_begin_and_its_end,
=> Postgres, MariaDb, DynamoDb, S3, Azure }

/// `once KEY OPTIONS -- sh -c SCRIPT`; the key is named after the store's lock.
fn once(store: &Store, options: &[&str], script: &str) -> Ended {
    ended(&mut command(store, options, script))
}

fn command(store: &Store, options: &[&str], script: &str) -> Command {
    store.serializer(&[&["once", &store.name], options, &["--", "sh", "-c", script]].concat())
}

/// What `status --once --json` says of it.
fn status(store: &Store) -> Value {
    let ended = store.run(&["status", "--once", "--json", &store.name]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let mut report: Value = serde_json::from_str(&ended.stdout).expect("status prints JSON");
    report["keys"][0].take()
}

/// The state of the key, and the number of its last run.
fn state(store: &Store) -> (String, u64) {
    let status = status(store);
    (
        status["state"].as_str().unwrap_or("never run").to_owned(),
        status["try"].as_u64().unwrap_or(0),
    )
}

fn is(state: &str, number: u64) -> (String, u64) {
    (state.to_owned(), number)
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    kill_process(pid, signal).expect("it can be signalled");
}

fn is_listed(store: &Store) -> bool {
    // Other tests use the same server, and keep values there that are not records: then the code is
    // 1.
    let listed = store.run(&["status", "--once", "--json"]);
    assert!(listed.code <= 1, "{listed:?}");
    let report: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    report["keys"].as_array().expect("a list").iter().any(|key| key["key"] == store.name.as_str())
}

fn a_key_runs_until_its_command_has_succeeded_and_is_skipped_after_that(kind: Kind) {
    let store = Store::of(kind, LONG);
    let script = r#"echo "$SERIALIZER_ONCE_KEY $SERIALIZER_TRY $SERIALIZER_FENCING_TOKEN"; exit $((5 - 2 * SERIALIZER_TRY))"#;
    let failed = once(&store, &["--tries", "2"], script);
    assert_eq!((failed.code, failed.stderr.as_str()), (3, ""), "{}", store.url);
    let words: Vec<_> = failed.stdout.split_whitespace().collect();
    assert_eq!(words[..2], [&store.name, "1"]);
    assert_eq!(state(&store), is("failed", 1));
    assert_eq!(store.run(&["wait", "--once", &store.name, "-n"]).code, 75);
    let given_up = once(&store, &["--tries", "1"], "exit 0");
    assert!(
        given_up.code == 80
            && given_up.stderr.contains("tried once; the last run ended with 3 at "),
        "{given_up:?}"
    );
    let next = once(&store, &[], r#"echo "$SERIALIZER_FENCING_TOKEN""#);
    let tokens =
        [words[2], next.stdout.trim()].map(|token| token.parse::<u64>().expect("a number"));
    assert!(next.code == 0 && tokens[0] < tokens[1], "{tokens:?}");
    assert_eq!(
        (state(&store), status(&store)["fencing_token"].as_u64()),
        (is("done", 2), Some(tokens[1]))
    );
    assert_eq!(once(&store, &["--skipped-exit-code", "9"], "exit 1").code, 9);
    assert_eq!(store.run(&["lock", "--once", &store.name]).code, 79);
    assert_eq!(store.run(&["wait", "--once", &store.name]).code, 0);
    assert!(is_listed(&store), "{}", store.url);
    // A lock of that name is another one.
    assert_eq!(store.run(&["run", "-n", "true"]).code, 0);
    assert_eq!(store.run(&["forget", &store.name]).code, 0);
    assert!(!is_listed(&store) && state(&store).0 == "never run", "{}", store.url);
    assert_eq!(once(&store, &[], "exit $SERIALIZER_TRY").code, 1);
}

/// A run after its command has said its PID; it works until it is told what to end with.
fn running(store: &Store) -> (Child, u32) {
    running_with(store, &[])
}

fn running_with(store: &Store, options: &[&str]) -> (Child, u32) {
    let go = store.locks.dir().join("go");
    if !go.exists() {
        assert_eq!(ended(Command::new("mkfifo").arg(&go)).code, 0);
    }
    let mut command = command(store, options, "echo $$; read -r code < go; exit $code");
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let pid = first_line(&mut child).parse().expect("a PID");
    (child, pid)
}

/// Tells the command of a run what to end with, as soon as it reads: until then, the file must stay
/// open.
#[must_use]
fn tell(store: &Store, code: &str) -> fs::File {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(store.locks.dir().join("go"))
        .expect("a FIFO");
    writeln!(&file, "{code}").expect("there is room");
    file
}

fn a_run_that_was_killed_is_interrupted_when_its_lease_has_expired(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let (mut child, pid) = running(&store);
    child.kill().and_then(|()| child.wait()).expect("it dies");
    // The command dies with it.
    until("the command goes on", || {
        !fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    });
    // All callers wait for the end of its lease, and then one runs it, or none does.
    let stopped = once(&store, &["--interrupted", "stop", "--timeout", "60s"], "exit 0");
    assert!(
        stopped.code == 80 && stopped.stderr.contains("interrupted: its lease has expired"),
        "{} {stopped:?}",
        store.url
    );
    let again = once(&store, &["--timeout", "60s"], "exit $SERIALIZER_TRY");
    assert_eq!(again.code, 2, "{} {again:?}", store.url);
    let ends = status(&store)["ends"].take();
    assert_eq!(
        (&ends[0]["try"], &ends[0]["how"]),
        (&1.into(), &"interrupted: its lease has expired".into()),
        "{ends}"
    );
}

fn a_run_that_was_frozen_for_too_long_has_not_succeeded_whatever_its_command_has_done(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let (child, pid) = running(&store);
    for pid in [pid, child.id()] {
        signal(pid, Signal::STOP);
    }
    let other = once(&store, &["--timeout", "60s"], "exit $((SERIALIZER_TRY - 2))");
    assert_eq!((other.code, state(&store)), (0, is("done", 2)), "{} {other:?}", store.url);
    // It succeeds as soon as it goes on.
    let _go = tell(&store, "0");
    for pid in [pid, child.id()] {
        signal(pid, Signal::CONT);
    }
    let frozen = end(child);
    assert_eq!(frozen.code, 76, "{} {frozen:?}", store.url);
    assert_eq!(
        (state(&store), status(&store)["ends"][1]["code"].as_u64()),
        (is("done", 2), Some(0))
    );
}

fn a_run_is_begun_by_one_process_and_ended_by_another(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let begin = |options: &[&str]| {
        let args =
            ["lock", "--once", &store.name, "--detached", "--print-token", "--timeout", "60s"];
        let begun = store.run(&[&args, options].concat());
        assert_eq!(begun.code, 0, "{} {begun:?}", store.url);
        begun.stdout.trim().to_owned()
    };
    // Another host knows nothing but the token.
    let elsewhere = store.through(&store.url);
    let unlock = |token: &str, options: &[&str]| {
        elsewhere.run(&[&["unlock", "--once", &store.name, "--token", token], options].concat())
    };
    let long = ["--lease-seconds", "600"];
    let token = begin(&long);
    assert_eq!(state(&store), is("running", 1));
    assert_eq!(once(&elsewhere, &["-n"], "exit 0").code, 75);
    assert_eq!(unlock("1", &[]).code, 77, "another's token");
    assert_eq!(
        elsewhere.shell().run(r#""$S" unlock --once "$SERIALIZER_FILE_NAME" 2> /dev/null"#),
        77,
        "it has no token"
    );
    let failed = unlock(&token, &["--failed", "--note", "no rows"]);
    assert_eq!((failed.code, state(&store)), (0, is("failed", 1)), "{} {failed:?}", store.url);
    assert_eq!(status(&store)["ends"][0]["how"], "no rows");
    assert_eq!(unlock(&token, &[]).code, 1, "it has ended");

    // One that takes longer than its lease has lapsed.
    let token = begin(&[]);
    until("the lease lasts", || {
        // Without a clock, only one that watches sees that.
        let watched = store.run(&["wait", "--once", &store.name, "--timeout", "4s"]);
        assert_eq!(watched.code, 75);
        watched.stderr.contains("interrupted") || state(&store).0 == "interrupted"
    });
    let late = unlock(&token, &[]);
    // An observer that does not watch cannot tell in a store without a clock; then it was in time.
    let has_clock = [Kind::Postgres, Kind::MariaDb].contains(&kind);
    assert!(late.code == 76 || late.code == 0 && !has_clock, "{} {late:?}", store.url);
    if late.code == 0 {
        return assert_eq!(state(&store), is("done", 2));
    }
    assert_eq!(state(&store), is("interrupted", 2));
    let token = begin(&long);
    assert_eq!((unlock(&token, &[]).code, state(&store)), (0, is("done", 3)));
    assert_eq!(store.run(&["lock", "--once", &store.name, "--detached"]).code, 79);
}

/// With a factor of 500, a hundred thousand callers for a thousand keys.
fn many_callers_run_each_key_once_although_some_are_killed(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let keys: Vec<String> =
        (0..rounds(2)).map(|number| format!("{}-{number}", store.name)).collect();
    let each = if keys.len() > 2 { 100 } else { 10 };
    let status = |key: &str| status(&Store { name: key.to_owned(), ..store.through(&store.url) });
    run_each_key_once(&keys, each, store.locks.dir(), &|args| store.serializer(args), &status);
}

/// Returns when the command of a key says that it has begun; it ends with what it is told.
fn begun(store: &Store, options: &[&str]) -> Child {
    let (child, _) = running_with(store, options);
    child
}

#[test]
fn a_success_that_cannot_be_reported_is_not_taken_for_one() {
    let store = Store::of(Kind::Postgres, LONG);
    let (proxy, through) = proxied(&store);
    let child = begun(&through, &[]);
    proxy.cut();
    let _go = tell(&through, "0");
    let ended = end(child);
    assert!(
        ended.code == 1 && ended.stderr.contains("has succeeded, but may run again"),
        "{ended:?}"
    );
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert_eq!(state(&store), is("running", 1));
}

of_each! { outages:
a_waiter_for_a_key_outlasts_an_outage,
=> Postgres, MariaDb, DynamoDb }

fn a_waiter_for_a_key_outlasts_an_outage(kind: Kind) {
    let store = Store::of(kind, LONG);
    assert_eq!(store.run(&["run", "true"]).code, 0);
    let child = begun(&store, &[]);
    let (proxy, through) = proxied(&store);
    let args = ["wait", "--once", &store.name, "--timeout", "90s", "--log-level", "debug"];
    let waiter = Logged::start(&through, &args);
    until("it does not look", || proxy.accepted() > 0);
    proxy.cut();
    waiter.until_said("cannot");
    proxy.mend();
    let _go = tell(&store, "0");
    assert_eq!(end(child).code, 0);
    let (code, said) = waiter.end();
    assert_eq!(code, 0, "{said}");
}

fn a_key_runs_once_whatever_is_lost_of_its_begin_and_its_end(kind: Kind) {
    let store = Store::of(kind, LONG);
    // The table and the bucket are made, and tried out.
    assert_eq!(store.run(&["run", "true"]).code, 0);
    for loss in Loss::BOTH {
        for marker in [Marker::Read, Marker::Insert, Marker::Update] {
            let store = Store {
                name: format!("{}-{loss:?}-{marker:?}", store.name),
                ..store.through(&store.url)
            };
            let (proxy, through) = proxied(&store);
            let through = Store { name: store.name.clone(), ..through };
            for number in 1..=2 {
                // First there is nothing yet.
                if number == 1 || !matches!(marker, Marker::Insert) {
                    loss.at(&proxy, marker.of(&store));
                }
                let ran = once(&through, &[], "echo ran; exit $((2 - SERIALIZER_TRY))");
                let expected = (2 - number, "ran\n", "");
                assert_eq!(
                    (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
                    expected,
                    "{loss:?} {marker:?} {}",
                    store.url
                );
                proxy.wait_until_hit();
                let expected = is(
                    if number == 1 { "failed" } else { "done" },
                    u64::try_from(number).expect("small"),
                );
                assert_eq!(state(&store), expected, "{loss:?} {marker:?} {}", store.url);
            }
            loss.at(&proxy, Marker::Read.of(&store));
            assert_eq!(
                once(&through, &["--skipped-exit-code", "9"], "echo ran").code,
                9,
                "{}",
                store.url
            );
        }
    }
}

/// What is done to the file of a key, in the order in which it is done.
const CALLS: [&str; 7] = ["openat", "flock", "pread64", "pwrite64", "fdatasync", "linkat", "fsync"];

/// A begin and an end in a shared directory are killed at every call to files.
#[test]
fn a_run_in_a_shared_directory_is_begun_or_not_and_ended_or_not_wherever_it_is_killed() {
    let store = Store::in_a_directory();
    let mut owner = {
        // bash reports each kill.
        let mut quiet = store.command("bash");
        quiet.stderr(Stdio::null()).env("KEY", &store.name);
        Shell::start_with(quiet)
    };
    let [begin, finish] = [r#""$S" lock --once "$KEY" -n"#, r#""$S" unlock --once "$KEY""#];
    let file = store.locks.dir().join(format!("once%2F{}", store.name));
    // Without a file, of a run that has failed, and of one that runs.
    for (before, command, number) in [("", begin, 1), ("failed", begin, 2), ("running", finish, 1)]
    {
        let prepare = |owner: &mut Shell| {
            owner.run(r#""$S" forget --force "$KEY""#);
            fs::remove_file(&file).unwrap_or_default();
            match before {
                "failed" => assert_eq!(once(&store, &[], "exit 1").code, 1),
                "running" => assert_eq!(owner.run(begin), 0),
                _ => {}
            }
        };
        prepare(&mut owner);
        assert_eq!(owner.run(&format!("strace -D -qq -o trace {command}")), 0);
        let trace = store.locks.dir().join("trace");
        // strace may still be writing.
        until("the trace ends", || {
            fs::read_to_string(&trace).expect("a trace").contains("exit_group(")
        });
        let calls = own_calls(&fs::read_to_string(&trace).expect("a trace"));
        for (name, numbers) in calls.iter().filter(|(name, _)| CALLS.contains(&name.as_str())) {
            for ordinal in ends(numbers, 3) {
                owner.run(finish);
                prepare(&mut owner);
                let inject = format!("-e trace={name} -e inject={name}:signal=KILL:when={ordinal}");
                let code = owner.run(&format!("strace -D -qq -o trace {inject} {command}"));
                let what = format!("{before}, {command}, {inject}");
                assert!([0, 137].contains(&code), "{what}: {code}");
                if state(&store) != is("done", number) {
                    assert_eq!(owner.run(begin), 0, "{what}: the owner runs it");
                    assert_eq!(state(&store), is("running", number), "{what}");
                    assert_eq!(
                        once(&store, &["-n"], "exit 0").code,
                        75,
                        "{what}: another one runs it, too"
                    );
                    assert_eq!(owner.run(finish), 0, "{what}: the owner ends it");
                }
                assert_eq!(state(&store), is("done", number), "{what}");
            }
        }
    }
}
