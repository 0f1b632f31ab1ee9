//! Hosts with clocks hours apart, from each other and from the store's: no lease ends sooner or
//! later for that.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::cluster::Cluster;
use crate::support::stores::{Kind, of_each};
use crate::support::{self, Shell, Waiter, servers, until};

/// Renewed every two seconds.
const LEASE: Duration = Duration::from_secs(6);

/// Of the two hosts: more hours apart than a lease may last.
const CLOCKS: [&str; 2] = ["+19h", "-18h"];

/// `program` on a host, by its clock.
fn command(cluster: &Cluster, host: usize, program: &str) -> Command {
    let mut command = cluster.command(host, program);
    command.env("LD_PRELOAD", servers::faketime_library()).env("FAKETIME", CLOCKS[host]);
    // Only the calendar's clock is another one, not that for timeouts.
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    command
}

fn shell(cluster: &Cluster, host: usize) -> Shell {
    Shell::start_with(command(cluster, host, "bash"))
}

/// The hour in which the host thinks that it is, in hours since 1970.
fn hour(cluster: &Cluster, host: usize) -> i64 {
    let said = command(cluster, host, "date").arg("+%s").output().expect("it runs").stdout;
    String::from_utf8_lossy(&said).trim().parse::<i64>().expect("seconds") / 3600
}

of_each! { databases:
a_lock_is_held_as_long_as_it_is_renewed_and_no_longer_whatever_hosts_think_what_time_it_is,
counting_by_hosts_with_clocks_of_their_own_loses_nothing,
=> Postgres, MariaDb }

fn a_lock_is_held_as_long_as_it_is_renewed_and_no_longer_whatever_hosts_think_what_time_it_is(
    kind: Kind,
) {
    let cluster = Cluster::new(kind, LEASE);
    assert!(
        (36..=38).contains(&(hour(&cluster, 0) - hour(&cluster, 1))),
        "the hosts have clocks of their own"
    );
    for (holder, other) in [(0, 1), (1, 0)] {
        let mut owner = shell(&cluster, holder);
        owner.lock();
        let mut waiting = command(&cluster, other, "sh");
        waiting.args(["-c", r#"exec "$S" run -v -- true"#]);
        let waiter = Waiter::start(waiting);
        let renewals =
            || cluster.report(0)["holder"]["lease_renewals"].as_u64().expect("it is held");
        until("it is not renewed", || renewals() >= 4);
        let report = cluster.report(0);
        assert_eq!(
            owner.output("echo $$").1.trim(),
            report["holder"]["pid"].to_string(),
            "{kind:?}: {report}"
        );
        // Its keeper is killed with it, so the lock is not released.
        let keeper = report["holder"]["keeper_pid"].as_u64().expect("a PID");
        owner.send(&format!("kill -KILL {keeper} $$"));
        let waited = waiter.end();
        assert!(
            waited.code == 0 && waited.stderr.contains("its lease has expired"),
            "{kind:?}: {waited:?}"
        );
    }
}

fn counting_by_hosts_with_clocks_of_their_own_loses_nothing(kind: Kind) {
    let count =
        "read -r n < count; echo $((n + 1)) > count; echo $SERIALIZER_FENCING_TOKEN >> tokens";
    let rounds = support::rounds(4);
    let worker = format!(
        r#"for i in {{1..{rounds}}}; do "$S" run -- bash -c '{count}' || echo "$?" >> failures; done"#
    );
    let cluster = Cluster::new(kind, Duration::from_secs(600));
    fs::write(cluster.locks.dir().join("count"), "0\n").expect("a file");
    let start = |number: usize| {
        command(&cluster, number % 2, "bash").args(["-c", &worker]).stderr(Stdio::null()).spawn()
    };
    let workers: Vec<_> = (0..6).map(start).collect();
    for worker in workers {
        assert!(worker.expect("it starts").wait().expect("it ends").success());
    }
    assert_eq!(
        [cluster.read("count"), cluster.read("failures")],
        [format!("{}\n", 6 * rounds), String::new()],
        "{kind:?}"
    );
    let tokens = cluster.read("tokens");
    let tokens: Vec<u64> = tokens.lines().map(|token| token.parse().expect("a number")).collect();
    assert!(tokens.is_sorted_by(|one, next| one < next), "{kind:?}: {tokens:?}");
}
