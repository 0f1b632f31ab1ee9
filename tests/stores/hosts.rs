//! Several hosts share locks in a store, and lose their power, their network or their time.

use std::io::BufReader;
use std::process::Stdio;
use std::time::Duration;

use crate::support::cluster::{Cluster, KINDS, end};
use crate::support::faults::{self, SUCCESSOR, WORK};
use crate::support::hosts::Host;
use crate::support::servers::{shared_mariadb, shared_postgres};
use crate::support::stores::{Kind, of_each};
use crate::support::{self, Shell, ended, next_line, until};

/// Does not end while a test runs.
const LONG: Duration = Duration::from_secs(600);

/// Short enough to be waited for, and long enough for a slow machine to renew it in time.
const SHORT: Duration = Duration::from_secs(6);

/// Checks that [`WORK`] had ended when [`SUCCESSOR`] began.
fn assert_no_overlap(cluster: &Cluster) {
    faults::assert_no_overlap(cluster.locks.dir(), &format!("{:?}", cluster.kind));
}

/// A shell that waits for the lock, and is known to do so; [`Shell::answer`] tells what came of it.
fn wait_for_lock(cluster: &Cluster, shell: &mut Shell, file: &str) {
    shell.send(&format!(r#""$S" lock 2> {file}"#));
    until("it waits", || cluster.read(file).contains("waiting for"));
}

of_each! { hosts:
what_one_host_holds_the_other_finds_held_and_gets_when_it_is_released,
counting_on_two_hosts_loses_nothing,
a_host_that_loses_its_power_frees_its_lock_with_its_lease_and_not_before,
a_command_that_is_cut_off_has_ended_before_its_lock_is_another_hosts,
an_owner_that_was_cut_off_is_told_that_its_lock_was_lost,
being_cut_off_for_less_than_the_lease_harms_no_process,
a_host_that_slept_through_its_lease_stops_what_it_ran_and_says_so,
a_lock_of_another_host_is_shown_awaited_and_broken,
slots_and_shared_locks_are_shared_by_hosts,
what_one_host_has_done_the_other_skips,
a_command_is_the_same_lock_on_every_host,
=> Postgres, MariaDb, DynamoDb, S3 }

of_each! { databases:
hosts_that_cannot_be_told_apart_take_nothing_from_each_other,
=> Postgres, MariaDb }

fn what_one_host_holds_the_other_finds_held_and_gets_when_it_is_released(kind: Kind) {
    let cluster = Cluster::new(kind, LONG);
    let mut shells = [cluster.shell(0), cluster.shell(1)];
    shells[0].lock();
    for turn in 0..4 {
        let (holder, other) = (turn % 2, (turn + 1) % 2);
        let name = ["one", "two"][holder];
        let (code, said) = shells[other].output(r#""$S" lock -n 2>&1"#);
        assert!(code == 75 && said.contains(&format!("on {name},")), "{kind:?}: {code} {said}");
        let file = format!("waiting.{turn}");
        wait_for_lock(&cluster, &mut shells[other], &file);
        assert!(
            cluster.read(&file).contains(&format!(" on {name}; free in ")),
            "{}",
            cluster.read(&file)
        );
        shells[holder].unlock();
        assert_eq!(shells[other].answer().0, 0, "{}", cluster.read(&file));
        assert!(!cluster.read(&file).contains("taken over"), "{}", cluster.read(&file));
    }
    shells[0].unlock();
}

fn counting_on_two_hosts_loses_nothing(kind: Kind) {
    // No other process is there, and none comes between reading and writing.
    let count = r#"mkdir alone || echo >> overlaps; read -r n < count; echo $((n + 1)) > count; rmdir alone"#;
    let rounds = support::rounds(4);
    let worker = format!(
        r#"for i in {{1..{rounds}}}; do "$S" run -- bash -c '{count}' || echo "$?" >> failures; done"#
    );
    let cluster = Cluster::new(kind, LONG);
    std::fs::write(cluster.locks.dir().join("count"), "0\n").expect("a file");
    let workers: Vec<_> = (0..8)
        .map(|number| {
            cluster.command(number % 2, "bash").args(["-c", &worker]).stderr(Stdio::null()).spawn()
        })
        .collect();
    for worker in workers {
        assert!(worker.expect("it starts").wait().expect("it ends").success());
    }
    let told = ["count", "overlaps", "failures"].map(|file| cluster.read(file));
    assert_eq!(told, [format!("{}\n", 8 * rounds), String::new(), String::new()], "{kind:?}");
}

/// When the holder's lease is over at the earliest, by the store's clock, in milliseconds since
/// 1970: when the record says, or for a waiter that has watched it, so long after it was written.
fn lease_end(cluster: &Cluster) -> u64 {
    let from = format!("FROM serializer_locks WHERE name = '{}'", cluster.name);
    let (record, written) = match cluster.kind {
        Kind::Postgres => {
            let ask = |what: &str| shared_postgres().psql(&format!("SELECT {what} {from}"));
            (ask("record"), ask("floor(extract(epoch FROM changed) * 1000)::bigint"))
        }
        Kind::MariaDb => {
            // Without tables the client writes line breaks as `\n`.
            let ask = |what: &str| {
                shared_mariadb().sql(&format!("SELECT {what} {from}")).replace("\\n", "\n")
            };
            (ask("record"), ask("FLOOR(UNIX_TIMESTAMP(changed) * 1000)"))
        }
        _ => panic!("it has no clock"),
    };
    let written: u64 = written.trim().parse().expect("milliseconds");
    let lease = record.lines().find_map(|line| line.strip_prefix("lease="));
    // How long it is, when it ends, and how often it was renewed.
    let number = |index| lease.and_then(|lease| lease.split(' ').nth(index)?.parse::<u64>().ok());
    let ends = number(0).zip(number(1)).map(|(duration, end)| end.min(written + duration));
    ends.unwrap_or_else(|| panic!("no end in {record}"))
}

fn a_host_that_loses_its_power_frees_its_lock_with_its_lease_and_not_before(kind: Kind) {
    let cluster = Cluster::new(kind, SHORT);
    let holder = cluster.running(0, &[], WORK);
    let script = format!("date +%s%3N > clock; {SUCCESSOR}");
    let waiter = cluster.waiter(1, &["run", "--", "bash", "-c", &script]);
    cluster.hosts[0].lose_power();
    let over = KINDS.contains(&kind).then(|| lease_end(&cluster));
    let waited = waiter.end();
    assert!(
        waited.code == 0 && waited.stderr.contains("its lease has expired"),
        "{kind:?}: {waited:?}"
    );
    assert_no_overlap(&cluster);
    // Where the store has a clock, it is that of this machine.
    let clock: u64 = cluster.read("clock").trim().parse().expect("milliseconds");
    assert!(over.is_none_or(|over| clock >= over), "{kind:?}: taken too early: {clock} {over:?}");
    drop(end(holder));
}

fn a_command_that_is_cut_off_has_ended_before_its_lock_is_another_hosts(kind: Kind) {
    let cluster = Cluster::new(kind, SHORT);
    let holder = cluster.running(0, &[], WORK);
    let waiter = cluster.waiter(1, &["run", "--", "bash", "-c", SUCCESSOR]);
    cluster.hosts[0].link_down();
    let waited = waiter.end();
    assert!(
        waited.code == 0 && waited.stderr.contains("its lease has expired"),
        "{kind:?}: {waited:?}"
    );
    assert_no_overlap(&cluster);
    cluster.hosts[0].link_up();
    let ended = end(holder);
    assert!(
        ended.code == 76 && ended.stderr.contains("its lease could not be renewed in time"),
        "{kind:?}: {ended:?}"
    );
}

fn an_owner_that_was_cut_off_is_told_that_its_lock_was_lost(kind: Kind) {
    let cluster = Cluster::new(kind, SHORT);
    let (mut owner, mut other) = (cluster.shell(0), cluster.shell(1));
    owner.lock();
    cluster.hosts[0].link_down();
    other.lock();
    cluster.hosts[0].link_up();
    let (code, said) = owner.output(r#""$S" unlock 2>&1"#);
    assert!(code == 76 && said.contains("on two,"), "{kind:?}: {code} {said}");
    other.unlock();
    assert_eq!(cluster.state(0), "free");
}

fn being_cut_off_for_less_than_the_lease_harms_no_process(kind: Kind) {
    // Missing a renewal takes a third of it and two seconds, giving up three quarters.
    let cluster = Cluster::new(kind, Duration::from_secs(16));
    cluster.make_fifo("go");
    let args = [
        "--log-level",
        "debug",
        "run",
        "--",
        "bash",
        "-c",
        "echo begun; read -r code < go; exit $code",
    ];
    let mut command = cluster.serializer(0, &args);
    let mut run = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut messages = BufReader::new(run.stderr.take().expect("a pipe"));
    let mut until_said = |what: &str| {
        let mut line = String::new();
        while !line.contains(what) {
            line = next_line(&mut messages);
            assert_ne!(line, "", "{what} was not said");
            assert!(!line.contains("lost `"), "{line}");
        }
    };
    until_said("locked `");
    cluster.hosts[0].link_down();
    until_said("cannot renew the lease");
    cluster.hosts[0].link_up();
    until_said("renewed the lease");
    assert_eq!(cluster.run(1, &["run", "-n", "true"]).code, 75);
    cluster.tell("go", "5");
    std::io::copy(&mut messages, &mut std::io::sink()).expect("it ends");
    assert_eq!(end(run).code, 5, "{kind:?}");
}

fn a_host_that_slept_through_its_lease_stops_what_it_ran_and_says_so(kind: Kind) {
    let cluster = Cluster::new(kind, SHORT);
    let run = cluster.running(0, &[], WORK);
    let mut other = cluster.shell(1);
    cluster.hosts[0].suspend();
    other.lock();
    cluster.hosts[0].resume(&[run.id()]);
    let ended = end(run);
    assert_eq!(ended.code, 76, "{kind:?}: {ended:?}");
    let at_work = cluster.read("first");
    assert_eq!(support::ended(cluster.command(0, "pgrep").args(["-f", "/proc/uptime"])).code, 1);
    assert_eq!(cluster.read("first"), at_work);
    other.unlock();

    let mut owner = cluster.shell(0);
    owner.lock();
    cluster.hosts[0].suspend();
    other.lock();
    cluster.hosts[0].resume(&[owner.pid()]);
    let (code, said) = owner.output(r#""$S" unlock 2>&1"#);
    assert!(code == 76 && said.contains("on two,"), "{kind:?}: {code} {said}");
    assert_eq!(cluster.report(0)["holder"]["host"], "two");
    other.unlock();
}

fn a_lock_of_another_host_is_shown_awaited_and_broken(kind: Kind) {
    let cluster = Cluster::new(kind, LONG);
    let mut owner = cluster.shell(0);
    owner.lock();
    let report = cluster.report(1);
    let holder = &report["holder"];
    assert_eq!((&report["state"], &holder["host"]), (&"held".into(), &"one".into()), "{report}");
    assert_eq!(holder["lease_seconds"].as_f64(), Some(600.0), "{report}");
    assert!(
        report["why"].as_str().is_some_and(|why| why.ends_with("unless its lease is renewed")),
        "{report}"
    );
    let waiter = cluster.waiter(1, &["wait", &cluster.name]);
    assert_eq!(cluster.run(1, &["wait", "-n", &cluster.name]).code, 75);
    owner.unlock();
    assert_eq!(waiter.end().code, 0);

    owner.lock();
    let token = cluster.report(1)["holder"]["token"].as_str().expect("a token").to_owned();
    assert_eq!(cluster.run(1, &["break", &cluster.name, "--token", "0123456789abcdef"]).code, 77);
    let broken = cluster.run(1, &["break", &cluster.name, "--token", &token]);
    assert!(broken.code == 0 && broken.stderr.contains("on one,"), "{broken:?}");
    assert_eq!(cluster.state(1), "free");
    assert_eq!(owner.run(r#""$S" unlock 2> /dev/null"#), 76);
}

fn slots_and_shared_locks_are_shared_by_hosts(kind: Kind) {
    let cluster = Cluster::new(kind, LONG);
    let mut shells = [cluster.shell(0), cluster.shell(1)];
    for flags in ["--slots 2", "--shared"] {
        let take = format!(r#""$S" lock -n {flags} 2> /dev/null"#);
        let third = match flags {
            "--shared" => ["run", "-n", "--exclusive", "--", "true"].to_vec(),
            _ => ["run", "-n", "--slots", "2", "true"].to_vec(),
        };
        shells.iter_mut().for_each(|shell| assert_eq!(shell.run(&take), 0, "{kind:?} {flags}"));
        let names: Vec<_> = cluster.report(0)["holders"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|one| one["host"].clone())
            .collect();
        assert_eq!(names, ["one", "two"]);
        assert_eq!([0, 1].map(|host| cluster.run(host, &third).code), [75, 75], "{kind:?} {flags}");
        shells[0].unlock();
        assert_eq!(
            cluster.run(0, &third).code,
            if flags == "--shared" { 75 } else { 0 },
            "{kind:?} {flags}"
        );
        shells[1].unlock();
        assert_eq!(cluster.run(0, &third).code, 0, "{kind:?} {flags}");
    }
}

fn what_one_host_has_done_the_other_skips(kind: Kind) {
    let cluster = Cluster::new(kind, LONG);
    cluster.make_fifo("go");
    for (first, second) in [("0", 205), ("1", 9)] {
        let run =
            cluster.running(0, &["--wait-and-skip"], "echo begun; read -r code < go; exit $code");
        let args =
            ["run", "--wait-and-skip", "--skipped-exit-code", "205", "--", "bash", "-c", "exit 9"];
        let waiter = cluster.waiter(1, &args);
        cluster.tell("go", first);
        assert_eq!(end(run).code.to_string(), first);
        assert_eq!(waiter.end().code, second, "{kind:?}");
    }
    // There was no run to wait for.
    assert_eq!(
        cluster.run(1, &["run", "--wait-and-skip", "--", "bash", "-c", "exit 9"]).code,
        9,
        "{kind:?}"
    );
}

fn a_command_is_the_same_lock_on_every_host(kind: Kind) {
    let cluster = Cluster::new(kind, LONG);
    ["go", "other"].iter().for_each(|fifo| cluster.make_fifo(fifo));
    // With an argument that no other test has.
    let script = "echo begun; read -r code < ${1#*/}; exit $code";
    let command = |host: usize, args: &[&str], fifo: &str| {
        let last = format!("{}/{fifo}", cluster.name);
        cluster.serializer(
            host,
            &[&["run", "--name-from-command"], args, &["--", "bash", "-c", script, "bash", &last]]
                .concat(),
        )
    };
    let mut first = command(0, &[], "go")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    assert_eq!(support::first_line(&mut first), "begun");
    let refused = ended(&mut command(1, &["-n"], "go"));
    assert!(refused.code == 75 && refused.stderr.contains("on one,"), "{kind:?}: {refused:?}");
    let other = command(1, &["-n"], "other").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut other = other.expect("it starts");
    assert_eq!(support::first_line(&mut other), "begun");
    cluster.tell("other", "4");
    cluster.tell("go", "3");
    assert_eq!([end(first).code, end(other).code], [3, 4], "{kind:?}");
}

fn shell_with_pid(cluster: &Cluster, host: usize, pid: u32) -> Shell {
    let set = format!("echo {} > /proc/sys/kernel/ns_last_pid", pid - 1);
    assert_eq!(ended(cluster.command(host, "bash").args(["-c", &set])).code, 0);
    let mut shell = cluster.shell(host);
    assert_eq!(shell.output("echo $$").1, format!("{pid}\n"));
    shell
}

fn hosts_that_cannot_be_told_apart_take_nothing_from_each_other(kind: Kind) {
    for is_same_boot in [false, true] {
        let one = Host::new("etl");
        let two = if is_same_boot { Host::copy_of(&one) } else { Host::like(&one) };
        let cluster = Cluster::of(kind, SHORT, [one, two]);
        let what = "cat /etc/machine-id; hostname";
        let told =
            [0, 1].map(|host| ended(cluster.command(host, "bash").args(["-c", what])).stdout);
        assert_eq!(told[0], told[1]);
        // Even their PIDs are equal.
        let (mut owner, mut other) =
            (shell_with_pid(&cluster, 0, 4000), shell_with_pid(&cluster, 1, 4000));
        owner.lock();
        let (code, said) = other.output(r#""$S" lock -n 2>&1"#);
        assert!(
            code == 75 && said.contains("unless its lease is renewed"),
            "{kind:?} {is_same_boot}: {code} {said}"
        );
        assert_eq!(other.run(r#""$S" unlock 2> /dev/null"#), 77, "{kind:?} {is_same_boot}");
        assert_eq!(cluster.state(1), "held");
        // Nor what is told to one of them.
        cluster.hosts[0].suspend();
        other.lock();
        cluster.hosts[0].resume(&[owner.pid()]);
        for code in [76, 75] {
            // The first time, it is told that it has lost the lock.
            let (is, said) = owner.output(r#""$S" lock -n 2>&1"#);
            assert_eq!(is, code, "{kind:?} {is_same_boot}: {said}");
        }
        assert_eq!(cluster.state(1), "held");
        other.unlock();
    }
}
