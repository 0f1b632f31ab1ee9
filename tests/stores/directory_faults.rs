//! File servers that fail, and hosts that stop, while locks in a directory that hosts share are
//! acquired, renewed and waited for: no lock is granted twice, or by a record that is not on disk.
//! Requires strace.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use crate::support::faults::{
    SUCCESSOR, WORK, assert_no_overlap, each, end, renewals, until_renewed,
};
use crate::support::stores::Store;
use crate::support::{Ended, Waiter, first_line, until};
use rustix::process::{Pid, Signal, kill_process};

/// Where the second state of a file stands.
const SECOND: u64 = 128 * 1024;

/// What a program did to the lock's file, and that it ran a command.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Done {
    /// At this offset.
    Written(u64),
    Synced,
    Failed,
    Ran,
}

/// strace, so that it writes down what is done to files, with the faults `inject`.
fn strace(store: &Store, inject: &[&str]) -> (String, PathBuf) {
    let trace = store.locks.dir().join("trace");
    let inject: String = inject.iter().map(|fault| format!(" -e inject={fault}")).collect();
    let strace = format!(
        "strace -f -qq -s 0 -o {} -e trace=pwrite64,fdatasync,execve{inject}",
        trace.display()
    );
    (strace, trace)
}

/// What the trace tells.
fn done(trace: &Path) -> Vec<Done> {
    let trace = fs::read_to_string(trace).expect("a trace");
    let mut begun = HashMap::new();
    let call = |line: &str| {
        let (pid, mut call) = line.split_once(' ')?;
        let whole;
        // Of two processes, the calls may overlap.
        if let Some(first) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(pid.to_owned(), first.to_owned());
            return None;
        } else if let Some((_, rest)) = call.split_once(" resumed>") {
            whole = begun.remove(pid)? + rest;
            call = &whole;
        }
        let (call, result) = call.rsplit_once(" = ")?;
        let has_failed = result.starts_with('-') || result.starts_with('?');
        match call.trim_start().split_once('(')? {
            ("pwrite64" | "fdatasync", _) if has_failed => Some(Done::Failed),
            ("pwrite64", arguments) => {
                let offset = arguments.rsplit_once(", ")?.1.trim_end_matches([')', ' ']);
                Some(Done::Written(offset.parse().expect("an offset")))
            }
            ("fdatasync", _) => Some(Done::Synced),
            ("execve", arguments) if arguments.contains("/echo\"") && !has_failed => {
                Some(Done::Ran)
            }
            _ => None,
        }
    };
    trace.lines().filter_map(call).collect()
}

/// The command ran once, and only after something was written and synced, with nothing behind it.
fn ran_on_what_was_synced(ended: &Ended, done: &[Done], what: &str) {
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "ran\n"), "{what}: {ended:?}");
    let ran = done.iter().position(|done| *done == Done::Ran).expect("the command is in the trace");
    let before = &done[..ran];
    assert!(matches!(before, [.., Done::Written(_), Done::Synced]), "{what}: {before:?}");
}

/// What strace has started: its one child.
fn traced(strace: &Child) -> Pid {
    let pid = strace.id();
    let traced = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
    traced.trim().parse().ok().and_then(Pid::from_raw).expect("a PID")
}

const RUN: &str = r#""$S" run --sleep-seconds 0.1 --timeout 60s -- echo ran"#;

#[test]
fn no_lock_is_granted_by_what_was_never_synced() {
    // A first write; or one after an earlier write, which is made durable first.
    for is_new in [true, false] {
        for first in 1..=3 {
            for failures in [1, 3, 4, 5, 8, 9] {
                let store = Store::in_a_directory();
                assert!(is_new || store.run(&["run", "true"]).code == 0);
                let (strace, trace) = strace(
                    &store,
                    &[&format!("fdatasync:error=EIO:when={first}..{}", first + failures - 1)],
                );
                let ended = store.script(&format!("{strace} {RUN}"));
                let what = format!("{is_new} {first} {failures}");
                ran_on_what_was_synced(&ended, &done(&trace), &what);
                assert_eq!(store.state(), "free", "{what}");
            }
        }
    }
}

#[test]
fn what_a_failed_sync_and_a_failed_write_leave_behind_is_synced_before_it_is_believed() {
    // What is found then is ours, and not what was tried last.
    for failures in [2, 3, 4] {
        let store = Store::in_a_directory();
        let writes = format!("pwrite64:error=EIO:when=2..{failures}");
        let (strace, trace) = strace(&store, &["fdatasync:error=EIO:when=1", &writes]);
        let ended = store.script(&format!("{strace} {RUN}"));
        ran_on_what_was_synced(&ended, &done(&trace), &failures.to_string());
    }
}

#[test]
fn a_process_that_cannot_sync_is_not_granted_what_it_reads() {
    let store = Store::in_a_directory();
    // The first one makes the file.
    let (strace, trace) = strace(&store, &["fdatasync:error=EIO:when=2+"]);
    let ended =
        store.script(&format!(r#"{strace} "$S" run --sleep-seconds 0.1 --timeout 3s -- echo ran"#));
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{ended:?}");
    assert!(ended.last_line().contains("the write may or may not have happened"), "{ended:?}");
    // It has looked after its first attempt, and found itself.
    assert!(
        done(&trace).iter().filter(|done| **done == Done::Failed).count() > 4,
        "{:?}",
        done(&trace)
    );
    assert_eq!(store.state(), "held");
}

#[test]
fn what_another_has_written_behind_a_failed_sync_is_synced_before_it_is_believed() {
    let store = Store::in_a_directory();
    let (one, trace) = strace(&store, &["fdatasync:error=EIO:when=1..4"]);
    let mut command = store.command("bash");
    let log = store.locks.dir().join("log");
    command.stdout(Stdio::piped()).stderr(fs::File::create(&log).expect("a file"));
    let script =
        format!(r#"exec {one} "$S" run --slots 2 --sleep-seconds 5 --timeout 60s -- echo ran"#);
    let child = command.args(["-c", &script]).spawn().expect("it starts");
    until("it has synced", || {
        fs::read_to_string(&log).expect("a file").contains("input/output error")
    });
    let pid = traced(&child);
    kill_process(pid, Signal::STOP).expect("it can be stopped");
    // The other one takes the second slot, after securing what it has read, and cannot sync that
    // either.
    let other = store.through(&store.url);
    let (two, others) = strace(&other, &["fdatasync:error=EIO:when=2+"]);
    let failed = other.script(&format!(r#"{two} "$S" run --slots 2 -n -- echo ran"#));
    assert_eq!((failed.code, failed.stdout.as_str()), (1, ""), "{failed:?}");
    assert!(matches!(
        done(&others)[..],
        [Done::Written(0), Done::Synced, Done::Written(SECOND), Done::Failed, ..]
    ));
    kill_process(pid, Signal::CONT).expect("it can go on");
    let ended = Ended::from(child.wait_with_output().expect("it ends"));
    ran_on_what_was_synced(&ended, &done(&trace), "with another");
    let settled =
        done(&trace).into_iter().skip_while(|done| *done != Done::Synced).collect::<Vec<_>>();
    // Which is the other one's state, and not its own.
    let before = done(&trace).len() - settled.len();
    assert_eq!(done(&trace)[before - 1], Done::Written(SECOND));
}

#[test]
fn what_a_writer_that_was_killed_has_not_synced_is_synced_before_the_state_before_it_is_written_over()
 {
    let store = Store { lease: "1".to_owned(), ..Store::in_a_directory() };
    assert_eq!(store.run(&["run", "true"]).code, 0);
    // The first one secures, the second one would be of the lock.
    let (strace_one, _) = strace(&store, &["fdatasync:signal=KILL:when=2"]);
    assert_eq!(store.script(&format!("{strace_one} {RUN}; exit $?")).code, 137);
    assert_eq!(store.state(), "held");
    let (strace_two, trace) = strace(&store, &[]);
    let ended = store.script(&format!("{strace_two} {RUN}"));
    let done = done(&trace);
    ran_on_what_was_synced(&ended, &done, "taken over");
    let [Done::Written(present), Done::Synced, Done::Written(next), Done::Synced, ..] = done[..]
    else {
        panic!("{done:?}")
    };
    assert_eq!(present + next, SECOND, "{done:?}");
}

/// In seconds; it is renewed every second.
const SHORT: &str = "3";

fn file(store: &Store) -> String {
    store.locks.dir().join(&store.name).display().to_string()
}

fn trace(store: &Store) -> String {
    fs::read_to_string(store.locks.dir().join("trace")).unwrap_or_default()
}

/// strace, so that these faults concern the second renewal, and what is done to the lock's file
/// after that: each thread's calls are counted, and neither acquiring nor a first renewal takes
/// more.
fn strace_renewals(store: &Store, call: &str, fault: &str, times: Option<u32>) -> String {
    let first = if call == "pread64" { 7 } else { 3 };
    let when = times.map_or(format!("{first}+"), |times| format!("{first}..{}", first + times - 1));
    // With this option, strace 6.1 stops processes only at these calls, but sends no signals.
    let only = if fault.starts_with("error=") { "--seccomp-bpf" } else { "" };
    format!(
        "strace -f {only} -qq -o trace -P {} -e trace={call} -e inject={call}:{fault}:when={when}",
        file(store)
    )
}

#[test]
fn a_lease_is_renewed_whatever_a_file_server_says_of_a_renewal() {
    let faults = [
        ("openat", "ESTALE"),
        ("openat", "ETIMEDOUT"),
        ("flock", "EIO"),
        ("pread64", "ESTALE"),
        ("pwrite64", "EIO"),
        ("pwrite64", "EDQUOT"),
        ("fdatasync", "EIO"),
        ("fdatasync", "ENOSPC"),
    ];
    each(faults, |(call, error)| {
        let store = Store { lease: "6".to_owned(), ..Store::in_a_directory() };
        assert_eq!(store.run(&["run", "true"]).code, 0);
        let mut owner = store.shell();
        // More than are made at once.
        let strace = strace_renewals(&store, call, &format!("error={error}"), Some(5))
            .replace("strace", "strace -D");
        assert_eq!(owner.run(&format!(r#"{strace} "$S" lock 2> /dev/null"#)), 0);
        until("the faults are over", || trace(&store).matches("INJECTED").count() == 5);
        until_renewed(&store);
        assert_eq!(store.holder("pid").as_u64(), Some(u64::from(owner.pid())), "{call} {error}");
        assert_eq!(store.run(&["lock", "-n"]).code, 75, "{call} {error}");
        owner.unlock();
        assert_eq!(store.state(), "free", "{call} {error}");
    });
}

#[test]
fn a_holder_that_cannot_renew_has_stopped_when_another_gets_the_lock() {
    each(
        [
            ("openat", "ETIMEDOUT"),
            ("flock", "ESTALE"),
            ("pwrite64", "EDQUOT"),
            ("fdatasync", "EIO"),
        ],
        |(call, error)| {
            // It is killed a twelfth of this before other processes may take it: time enough also
            // where strace has to be asked.
            let store = Store { lease: "9".to_owned(), ..Store::in_a_directory() };
            assert_eq!(store.run(&["run", "true"]).code, 0);
            let strace = strace_renewals(&store, call, &format!("error={error}"), None);
            let mut first = store.command("bash");
            let script = format!(r#"exec {strace} "$S" run bash -c "$0""#);
            first.args(["-c", &script, WORK]).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut first = first.spawn().expect("it starts");
            assert_eq!(first_line(&mut first), "begun");
            let second = store.waiter(&["run", "bash", "-c", SUCCESSOR]);
            let lost = end(first);
            assert!(
                lost.code == 76 && lost.stderr.contains("its lease could not be renewed in time"),
                "{call}: {lost:?}"
            );
            assert_eq!(second.end().code, 0);
            assert_no_overlap(store.locks.dir(), &format!("{call} {error}"));
        },
    );
}

#[test]
fn a_waiter_that_was_stopped_does_not_take_over_what_was_renewed_meanwhile() {
    // Before it has looked, and when it has, but has not made anything of that.
    each(["openat", "close"], |call| {
        let store = Store { lease: SHORT.to_owned(), ..Store::in_a_directory() };
        let mut holder = store.shell();
        holder.lock();
        let mut waiter = store.command("bash");
        let stop = format!(
            "strace -D -qq -o trace -P {} -e trace={call} -e inject={call}:signal=STOP:when=8",
            file(&store)
        );
        waiter.args(["-c", &format!(r#"exec {stop} "$S" lock"#)]);
        let mut waiter = Waiter::start(waiter);
        until("it is stopped", || trace(&store).contains("stopped by SIGSTOP"));
        // For longer than a lease: of so many renewals, the first and the last one are further
        // apart.
        let before = renewals(&store);
        until("it is renewed", || renewals(&store) > before + 4);
        let looks = || trace(&store).matches("= ").count();
        let looked = looks();
        let pid = i32::try_from(waiter.pid()).ok().and_then(Pid::from_raw).expect("a PID");
        kill_process(pid, Signal::CONT).expect("it can go on");
        until("it looks again", || looks() > looked + 2);
        assert!(waiter.is_waiting(), "{call}");
        assert_eq!(store.holder("pid").as_u64(), Some(u64::from(holder.pid())), "{call}");
        holder.unlock();
        let ended = waiter.end();
        assert!(ended.code == 0 && !ended.stderr.contains("taken over"), "{call}: {ended:?}");
        assert_eq!(store.run(&["unlock", "--force"]).code, 0);
    });
}

#[test]
fn a_holder_that_was_stopped_between_a_look_and_its_renewal_does_not_renew_what_another_has_taken()
{
    let store = Store { lease: SHORT.to_owned(), ..Store::in_a_directory() };
    assert_eq!(store.run(&["run", "true"]).code, 0);
    // The second renewal looks with the third one, and opens it to write with the fourth.
    let stop =
        strace_renewals(&store, "openat", "signal=STOP", Some(1)).replace("when=3..3", "when=4");
    let mut first = store.command("bash");
    let first = first
        .args(["-c", &format!(r#"exec {stop} "$S" run sleep 600"#)])
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut first = first.spawn().expect("it starts");
    until("it is stopped", || trace(&store).contains("stopped by SIGSTOP"));
    let mut other = store.shell();
    let (code, said) = other.output(r#""$S" lock 2>&1"#);
    assert!(code == 0 && said.contains("its lease has expired"), "{code} {said}");
    let stopped = traced(&first);
    until("it does not end", || {
        // The thread that tells how it ended may be stopped in the same way.
        let _ = kill_process(stopped, Signal::CONT);
        first.try_wait().expect("it can be asked").is_some()
    });
    let lost = end(first);
    assert!(lost.code == 76, "{lost:?}");
    assert_eq!(store.holder("pid").as_u64(), Some(u64::from(other.pid())));
    other.unlock();
}
