//! The holder's own processes keep a lock that is held across hosts, and no other process does.

use std::fs;
use std::io::BufReader;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::support::faults::end;
use crate::support::stores::{Kind, Store, of_each};
use crate::support::{self, next_line, servers, until};
use rustix::process::{Pid, Signal, kill_process};

/// Does not end while a test runs, unless it is ended.
const LONG: Duration = Duration::from_secs(600);

/// Short enough to be waited for, and long enough for a busy machine to renew it in time.
const SHORT: Duration = Duration::from_secs(6);

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    kill_process(pid, signal).expect("it can be signalled");
}

fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn until_gone(pid: u32) {
    until("it has ended", || !runs(pid));
}

/// A `run` after its command has said the PIDs of itself and of the processes that it has started.
fn running(store: &Store, args: &[&str], script: &str) -> (Child, Vec<u32>) {
    let mut command = store.serializer(&[&["run"], args, &["bash", "-c", script]].concat());
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut output = BufReader::with_capacity(1, child.stdout.as_mut().expect("a pipe"));
    let line = next_line(&mut output);
    let pids = line.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect();
    (child, pids)
}

of_each! { stores:
a_killed_owner_frees_its_lock_although_its_lease_goes_on,
the_keeper_ends_with_the_lock,
a_lock_is_held_for_longer_than_its_lease,
without_its_keeper_a_lock_lapses_and_unlock_says_so,
a_process_that_locks_again_gets_a_new_keeper_if_the_old_one_was_killed,
the_keeper_has_none_of_the_files_of_lock,
a_run_that_goes_on_without_its_owner_keeps_the_lock,
a_command_that_lost_its_lock_is_ended_with_all_that_it_has_started,
a_command_that_does_not_heed_its_end_is_killed,
a_process_that_only_wants_a_warning_runs_on_and_is_told_at_the_end,
an_owner_that_asked_for_it_is_ended_when_its_lock_is_lost,
a_command_dies_with_the_run_that_renews_its_lease,
a_process_that_slept_through_its_lease_stops_what_it_ran_when_it_wakes,
each_acquisition_has_a_larger_number_than_those_before,
a_process_that_waits_for_another_run_need_not_do_it_again,
a_command_runs_for_longer_than_its_lease,
an_owner_that_has_unlocked_is_not_ended,
an_owner_that_asked_for_it_is_ended_with_all_that_it_has_started,
a_process_that_is_told_to_end_does_not_go_on_by_starting_others,
a_process_that_locks_again_after_a_loss_is_told_of_it_once,
a_process_that_locks_again_keeps_the_lease_that_is_there,
what_runs_under_a_lease_does_not_go_on_while_no_process_can_renew_it,
=> Postgres, MariaDb, DynamoDb, S3, Azure, Directory }

of_each! { databases:
an_owner_with_a_lease_that_no_process_has_taken_is_told_all_the_same,
a_keeper_that_cannot_ask_the_store_is_not_relied_on,
=> Postgres, MariaDb }

fn a_killed_owner_frees_its_lock_although_its_lease_goes_on(kind: Kind) {
    let store = Store::of(kind, LONG);
    let mut owner = store.shell();
    owner.lock();
    let keeper = store.keeper();
    let waiter = store.waiter(&["lock"]);
    owner.kill();
    assert_eq!(waiter.end().code, 0, "{}", store.url);
    until_gone(keeper);
}

fn the_keeper_ends_with_the_lock(kind: Kind) {
    let store = Store::of(kind, LONG);
    let mut owner = store.shell();
    owner.lock();
    let keeper = store.keeper();
    assert!(runs(keeper));
    owner.unlock();
    until_gone(keeper);
    assert_eq!(store.state(), "free");
}

fn a_lock_is_held_for_longer_than_its_lease(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let mut owner = store.shell();
    owner.lock();
    let renewals = || store.holder("lease_renewals").as_u64().expect("a number");
    until("three leases have passed", || {
        assert_eq!(store.run(&["lock", "-n"]).code, 75);
        renewals() >= 9
    });
    owner.unlock();
}

fn without_its_keeper_a_lock_lapses_and_unlock_says_so(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let mut owner = store.shell();
    owner.lock();
    signal(store.keeper(), Signal::KILL);
    let mut other = store.shell();
    let (code, output) = other.output(r#""$S" lock 2>&1"#);
    assert!(code == 0 && output.contains("its lease has expired"), "{output}");
    let (code, output) = owner.output(r#""$S" unlock 2>&1"#);
    assert!(code == 76 && output.contains("held now by"), "{code} {output}");
    other.unlock();
}

fn an_owner_with_a_lease_that_no_process_has_taken_is_told_all_the_same(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let mut owner = store.shell();
    owner.lock();
    signal(store.keeper(), Signal::KILL);
    until("it has expired", || store.state() == "stale");
    let (code, output) = owner.output(r#""$S" unlock 2>&1"#);
    assert!(code == 76 && output.contains("no other process has held it since"), "{code} {output}");
    assert_eq!(store.state(), "free");
}

fn a_process_that_locks_again_gets_a_new_keeper_if_the_old_one_was_killed(kind: Kind) {
    let store = Store::of(kind, Duration::from_secs(6));
    let mut owner = store.shell();
    owner.lock();
    signal(store.keeper(), Signal::KILL);
    until_gone(store.keeper());
    let (code, output) = owner.output(r#""$S" lock 2>&1"#);
    assert!(code == 0 && output.contains("already locked"), "{output}");
    let renewals = || store.holder("lease_renewals").as_u64().expect("a number");
    let before = renewals();
    until("it is renewed again", || renewals() > before);
    owner.unlock();
}

fn the_keeper_has_none_of_the_files_of_lock(kind: Kind) {
    let store = Store::of(kind, LONG);
    // A pipe ends when its last holder ends; a flock, too.
    let script = r#"exec 9> file; flock 9; said=$("$S" lock --owner-pid $$ 2>&1) || exit 1; exec 9>&-
                    flock -n file true || exit 2; "$S" unlock --owner-pid $$"#;
    let ended = store.script(script);
    assert_eq!(ended.code, 0, "{ended:?}");
}

fn a_run_that_goes_on_without_its_owner_keeps_the_lock(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let run = [("MELTANO_PARENT_CONTEXT_UUID", store.name.as_str())];
    let mut owner = support::Shell::start_with({
        let mut bash = store.command("bash");
        bash.envs(run);
        bash
    });
    owner.lock();
    let mut relative = store.command("sleep").arg("600").envs(run).spawn().expect("it starts");
    let renewals = || store.holder("lease_renewals").as_u64().unwrap_or(0);
    owner.kill();
    let before = renewals();
    until("it is renewed for the one that goes on", || renewals() > before + 4);
    assert_eq!(store.run(&["lock", "-n"]).code, 75);
    relative.kill().expect("it can be killed");
    relative.wait().expect("it ends");
    until("it is released", || store.state() == "free");
}

fn a_command_that_lost_its_lock_is_ended_with_all_that_it_has_started(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let (child, pids) = running(&store, &[], "sleep 600 & echo $$ $!; wait; sleep 600");
    assert_eq!(store.run(&["unlock", "--force"]).code, 0);
    let ended = end(child);
    assert_eq!(ended.code, 76, "{ended:?}");
    assert!(
        ended.stderr.contains("stopped `bash`: lost `") && ended.stderr.lines().count() == 1,
        "{ended:?}"
    );
    pids.into_iter().for_each(|pid| assert!(!runs(pid)));
}

#[test]
fn a_command_that_lost_its_lock_is_ended_also_where_there_are_no_pidfds() {
    let store = Store::of(Kind::Directory, SHORT);
    let mut command = store.command("strace");
    command.args([
        "-D",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=pidfd_open",
        "-e",
        "inject=pidfd_open:error=ENOSYS",
    ]);
    command.args([support::PROGRAM, "run", "bash", "-c", "echo $$; exec sleep 600"]);
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let pid = support::first_line(&mut child).parse().expect("a pid");
    assert_eq!(store.run(&["unlock", "--force"]).code, 0);
    assert_eq!(end(child).code, 76);
    assert!(!runs(pid));
}

fn a_command_that_does_not_heed_its_end_is_killed(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let (child, pids) = running(
        &store,
        &[],
        "trap '' TERM; (trap '' TERM; sleep 600) & echo $$ $!; wait; sleep 600",
    );
    assert_eq!(store.run(&["unlock", "--force"]).code, 0);
    let ended = end(child);
    assert_eq!(ended.code, 76, "{ended:?}");
    assert!(ended.stderr.contains("killing the command"), "{ended:?}");
    pids.into_iter().for_each(|pid| assert!(!runs(pid)));
}

fn a_process_that_only_wants_a_warning_runs_on_and_is_told_at_the_end(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let go = store.locks.dir().join("go");
    support::ended(std::process::Command::new("mkfifo").arg(&go));
    let (mut child, _) = running(&store, &["--on-lost", "warn"], "echo; read -r line < go");
    let token = store.holder("token").as_str().expect("a token").to_owned();
    assert_eq!(store.run(&["break", &store.name, "--token", &token]).code, 0);
    let mut other = store.shell();
    other.lock();
    let mut messages = BufReader::with_capacity(1, child.stderr.as_mut().expect("a pipe"));
    let said = next_line(&mut messages);
    assert!(said.contains("lost `"), "{said}");
    // The command waits for that.
    fs::write(&go, "on\n").expect("it is read");
    let ended = end(child);
    assert_eq!(ended.code, 76, "{ended:?}");
    other.unlock();
}

fn an_owner_that_asked_for_it_is_ended_when_its_lock_is_lost(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let mut owner = store.shell();
    assert_eq!(owner.run(r#""$S" lock --on-lost terminate 2> /dev/null"#), 0);
    assert_eq!(store.run(&["unlock", "--force"]).code, 0);
    until_gone(owner.pid());
}

fn a_command_dies_with_the_run_that_renews_its_lease(kind: Kind) {
    let store = Store::of(kind, LONG);
    let (child, pids) = running(&store, &[], "echo $$; exec sleep 600");
    signal(child.id(), Signal::KILL);
    pids.into_iter().for_each(until_gone);
    drop(end(child));
}

fn a_process_that_slept_through_its_lease_stops_what_it_ran_when_it_wakes(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let (child, pids) = running(&store, &[], "echo $$; exec sleep 600");
    let sleepers = [pids.clone(), vec![child.id()]].concat();
    sleepers.iter().for_each(|pid| signal(*pid, Signal::STOP));
    let mut other = store.shell();
    assert_eq!(other.run(r#""$S" lock 2> /dev/null"#), 0);
    sleepers.iter().for_each(|pid| signal(*pid, Signal::CONT));
    let ended = end(child);
    // Another process has the lock, so there is no grace period.
    assert!(ended.code == 76 && ended.stderr.contains("killed `bash`: lost `"), "{ended:?}");
    pids.into_iter().for_each(|pid| assert!(!runs(pid)));
    other.unlock();

    let mut owner = store.shell();
    owner.lock();
    let sleepers = [store.keeper(), owner.pid()];
    sleepers.iter().for_each(|pid| signal(*pid, Signal::STOP));
    other.lock();
    sleepers.iter().for_each(|pid| signal(*pid, Signal::CONT));
    assert_eq!(owner.run(r#""$S" unlock 2> /dev/null"#), 76);
    until_gone(sleepers[0]);
    other.unlock();
}

fn each_acquisition_has_a_larger_number_than_those_before(kind: Kind) {
    let store = Store::of(kind, LONG);
    let script = r#"for i in 1 2 3; do "$S" lock --print-token || exit 1; "$S" status --json | jq .locks[0].holder.fencing_token
                    "$S" unlock; "$S" run -- sh -c 'echo $SERIALIZER_FENCING_TOKEN'; done 2> /dev/null"#;
    let ended = store.script(script);
    let numbers: Vec<u64> =
        ended.stdout.lines().map(|line| line.parse().expect("a number")).collect();
    assert_eq!(numbers.len(), 9, "{ended:?}");
    assert!(
        numbers.chunks(3).all(|round| round[0] == round[1] && round[1] < round[2]),
        "{numbers:?}"
    );
    assert!(numbers.chunks(3).is_sorted_by(|one, next| one[2] < next[0]), "{numbers:?}");
    let locks = support::Locks::new();
    let ended = locks.run(&["lock", "--print-token"]);
    assert!(
        ended.code == 2 && ended.stderr.contains("lock files have no fencing tokens"),
        "{ended:?}"
    );
}

fn a_process_that_waits_for_another_run_need_not_do_it_again(kind: Kind) {
    let store = Store::of(kind, LONG);
    let go = store.locks.dir().join("go");
    support::ended(std::process::Command::new("mkfifo").arg(&go));
    let (child, _) = running(&store, &["--wait-and-skip"], "echo; read -r line < go; exit $line");
    let waiters: Vec<_> = (0..3)
        .map(|_| store.waiter(&["run", "--wait-and-skip", "--skipped-exit-code", "7", "true"]))
        .collect();
    fs::write(&go, "0\n").expect("it is read");
    assert_eq!(end(child).code, 0);
    waiters.into_iter().for_each(|waiter| assert_eq!(waiter.end().code, 7));
    // This one does not require an earlier success.
    assert_eq!(store.run(&["run", "--wait-and-skip", "--skipped-exit-code", "7", "true"]).code, 0);

    let (child, _) = running(&store, &["--wait-and-skip"], "echo; read -r line < go; exit $line");
    let waiter =
        store.waiter(&["run", "--wait-and-skip", "--skipped-exit-code", "7", "sh", "-c", "exit 5"]);
    fs::write(&go, "1\n").expect("it is read");
    assert_eq!(end(child).code, 1);
    assert_eq!(waiter.end().code, 5);
}

fn a_command_runs_for_longer_than_its_lease(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let go = store.locks.dir().join("go");
    support::ended(std::process::Command::new("mkfifo").arg(&go));
    let (child, _) = running(&store, &[], "echo; read -r line < go; exit 3");
    let renewals = || store.holder("lease_renewals").as_u64().expect("a number");
    until("three leases have passed", || renewals() >= 9);
    fs::write(&go, "on\n").expect("it is read");
    let ended = end(child);
    assert_eq!((ended.code, ended.stderr.as_str()), (3, ""));
}

/// A process that has unlocked stops being an owner, whatever its keeper has heard of that.
fn an_owner_that_has_unlocked_is_not_ended(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let script = r#"trap '' TERM; "$S" lock --on-lost terminate; "$S" status --json | jq .locks[0].holder.keeper_pid > keeper
                    "$S" unlock; while kill -0 "$(cat keeper)"; do sleep 0.05; done 2> /dev/null; echo done"#;
    let ended = store.script(script);
    assert!(ended.stdout.ends_with("done\n"), "{ended:?}");
    // Nor one with a replaced keeper.
    let script = r#"keeper() { "$S" status --json | jq .locks[0].holder.keeper_pid; }
                    "$S" lock --on-lost terminate; first=$(keeper); kill -KILL "$first"
                    while kill -0 "$first"; do sleep 0.01; done 2> /dev/null; "$S" lock --on-lost terminate
                    second=$(keeper); test "$first" != "$second" || exit 1
                    "$S" unlock; while kill -0 "$second"; do sleep 0.05; done 2> /dev/null; echo done"#;
    let ended = store.script(script);
    assert!(ended.stdout.ends_with("done\n"), "{ended:?}");
}

fn an_owner_that_asked_for_it_is_ended_with_all_that_it_has_started(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let script = r#""$S" lock --on-lost terminate 2> /dev/null; (trap '' TERM; sleep 600) & echo $$ $!; wait; sleep 600"#;
    let mut bash = store.command("bash");
    let mut owner = bash.args(["-c", script]).stdout(Stdio::piped()).spawn().expect("bash starts");
    let pids: Vec<u32> =
        support::first_line(&mut owner).split(' ').map(|pid| pid.parse().expect("a pid")).collect();
    assert_eq!(store.run(&["unlock", "--force"]).code, 0);
    owner.wait().expect("it ends");
    pids.into_iter().for_each(until_gone);
}

fn a_process_that_is_told_to_end_does_not_go_on_by_starting_others(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let script = r#"trap : TERM; "$S" lock --on-lost terminate 2> /dev/null; echo $$
                    while :; do sleep 600 & echo $! >> workers; wait; done"#;
    let mut bash = store.command("bash");
    let mut owner = bash.args(["-c", script]).stdout(Stdio::piped()).spawn().expect("bash starts");
    assert_ne!(support::first_line(&mut owner), "");
    assert_eq!(store.run(&["unlock", "--force"]).code, 0);
    owner.wait().expect("it ends");
    let workers =
        fs::read_to_string(store.locks.dir().join("workers")).expect("it has started some");
    assert!(workers.lines().count() > 1, "it has gone on for a while: {workers}");
    workers.lines().for_each(|pid| until_gone(pid.parse().expect("a pid")));
}

fn a_process_that_locks_again_after_a_loss_is_told_of_it_once(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let (mut owner, mut other) = (store.shell(), store.shell());
    owner.lock();
    signal(store.keeper(), Signal::KILL);
    assert_eq!(other.run(r#""$S" lock 2> /dev/null"#), 0);
    other.unlock();
    let (code, said) = owner.output(r#""$S" lock 2>&1"#);
    assert!(code == 76 && said.contains("other processes may have held it since"), "{code} {said}");
    assert_eq!(store.state(), "free");
    owner.lock();
    owner.unlock();
}

fn a_process_that_locks_again_keeps_the_lease_that_is_there(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let mut owner = store.shell();
    owner.lock();
    signal(store.keeper(), Signal::KILL);
    until_gone(store.keeper());
    assert_eq!(owner.run(r#"SERIALIZER_LEASE_SECONDS=600 "$S" lock 2> /dev/null"#), 0);
    // The store knows the first one only.
    let renewals = || store.holder("lease_renewals").as_u64().unwrap_or(0);
    until("it is not renewed in time", || renewals() >= 6);
    assert_eq!(store.holder("pid").as_u64(), Some(u64::from(owner.pid())));
    owner.unlock();
}

fn a_keeper_that_cannot_ask_the_store_is_not_relied_on(kind: Kind) {
    let store = Store::of(kind, LONG);
    // The table exists: to make it takes another connection, and a pipe has the password once.
    assert_eq!(store.run(&["run", "true"]).code, 0);
    let (before, behind) = store.url.split_once("//meltano:").expect("a user");
    let without_password =
        format!("{before}//meltano@{}", behind.rsplit_once('@').expect("a host").1);
    let script = format!(r#"SERIALIZER_PASSWORD_FILE=<(echo '{}') "$S" lock"#, servers::PASSWORD);
    let ended = store.through(&without_password).script(&script);
    assert!(ended.code == 1 && ended.stderr.contains("cannot keep the lease of"), "{ended:?}");
    assert_eq!(store.state(), "free");
}

/// What a terminal does at Ctrl-Z, to a command that has left the group, as `timeout` does.
fn what_runs_under_a_lease_does_not_go_on_while_no_process_can_renew_it(kind: Kind) {
    let store = Store::of(kind, Duration::from_secs(600));
    let script = "set -m; (echo $BASHPID; exec sleep 600) & wait; kill -TSTP $$; sleep 600";
    let mut run = store.serializer(&["run", "bash", "-c", script]);
    let mut child = std::os::unix::process::CommandExt::process_group(&mut run, 0)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let escaped: u32 = support::first_line(&mut child).parse().expect("a pid");
    let state = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
        stat.rsplit_once(") ").expect("a state").1.chars().next()
    };
    // The shell inside waits for the one that has left; let it stop itself.
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("a pid");
    rustix::process::kill_process_group(pid, Signal::TSTP).expect("it can be signalled");
    until("all of it has stopped", || {
        state(child.id()) == Some('T') && state(escaped) == Some('T')
    });
    rustix::process::kill_process_group(pid, Signal::CONT).expect("it can be signalled");
    until("all of it goes on", || state(child.id()) != Some('T') && state(escaped) != Some('T'));
    signal(escaped, Signal::KILL);
    rustix::process::kill_process_group(pid, Signal::KILL).expect("it can be signalled");
    child.wait().expect("it ends");
}
