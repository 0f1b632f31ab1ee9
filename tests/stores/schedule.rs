//! Tasks on a schedule, on several hosts: their state is in a store.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::cluster::Cluster;
use crate::support::faults::{Logged, proxied};
use crate::support::stores::{Kind, Store, of_each};
use crate::support::tasks::{Line, Tasks, assert_each_is_run_once};
use crate::support::{ended, rounds, until};

/// Does not end while a test runs.
pub const LONG: Duration = Duration::from_secs(600);

/// Is waited for, and long enough for a slow machine to renew it in time.
pub const SHORT: Duration = Duration::from_secs(6);

/// Runs each second, and each slot.
pub const EACH: &str = "every = '1s'\ncatch_up = 'all'\n";

// The contract tests the stores; here, each store represents its kind: with and without a clock,
// polled or not.
of_each! { hammers:
no_slot_is_lost_or_run_twice_by_several_schedulers,
=> Postgres, MariaDb, DynamoDb, S3, Directory }

of_each! { hosts:
a_task_of_a_host_that_has_died_is_run_by_another_one,
=> Postgres, Azure, Directory }

of_each! { controls:
a_task_is_stopped_and_paused_from_another_host,
=> MariaDb, DynamoDb }

of_each! { projects:
the_taps_of_a_project_run_on_two_servers_and_are_stopped_from_the_other_one,
=> Directory }

of_each! { kills:
a_slot_is_run_to_its_end_wherever_its_statements_are_cut_off,
=> Postgres }

of_each! { sleepers:
a_host_that_slept_through_a_lease_ends_the_task_that_another_host_has_begun,
=> Postgres, S3 }

of_each! { runners:
a_run_ends_with_its_killed_runner_and_is_repeated,
=> Postgres, Directory }

of_each! { over_networks:
slots_are_caught_up_after_an_outage_in_which_the_store_is_asked_now_and_then,
a_scheduler_without_work_asks_the_store_for_nothing,
=> Postgres, DynamoDb }

of_each! { latencies:
tasks_that_are_due_together_run_however_slowly_the_store_answers,
=> Postgres, S3 }

/// Tasks of a cluster; `NAME` in the text is the part of their names that no other test has.
fn tasks<'a>(cluster: &'a Cluster, text: &str) -> Tasks<'a> {
    let make = |host: usize, args: &[&str]| cluster.serializer(host % 2, args);
    Tasks::new(cluster.locks.dir().to_owned(), &text.replace("NAME", &cluster.name), Box::new(make))
}

/// The only child of a process: of a scheduler its runner, and of one that has entered a host the
/// scheduler.
pub fn pid_of(scheduler: &Logged) -> Pid {
    let pid = scheduler.pid();
    let mut children = String::new();
    until("it does not start", || {
        children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
        !children.is_empty()
    });
    Pid::from_raw(children.trim().parse().expect("one child")).expect("a PID")
}

fn stop(schedulers: Vec<Logged>) {
    schedulers
        .iter()
        .for_each(|scheduler| kill_process(pid_of(scheduler), Signal::TERM).expect("it runs"));
    for scheduler in schedulers {
        let (code, said) = scheduler.end();
        assert_eq!(code, 0, "{said}");
    }
}

/// With a factor of 10: 8 schedulers, 200 tasks, a minute. A machine that falls behind by more than
/// 100 seconds fails that: no more slots are caught up.
fn no_slot_is_lost_or_run_twice_by_several_schedulers(kind: Kind) {
    let cluster = Cluster::new(kind, LONG);
    let (nodes, count, slots) = if rounds(1) > 1 { (8, rounds(20), 60) } else { (3, 4, 4) };
    let names: Vec<_> = (0..count).map(|number| format!("{}{number}", cluster.name)).collect();
    let text = names.iter().map(|name| format!("[tasks.{name}]\n{EACH}run = '. ./tell'\n"));
    let tasks = tasks(&cluster, &text.collect::<String>());
    let schedulers: Vec<_> = (0..nodes).map(|node| tasks.start(node, &[])).collect();
    names.iter().for_each(|name| tasks.until_lines(name, 0, slots));
    stop(schedulers);
    let lines: Vec<Vec<Line>> = names.iter().map(|name| tasks.lines(name)).collect();
    lines.iter().for_each(|lines| assert_each_is_run_once(lines));
    let of =
        |node: usize| lines.iter().flatten().filter(|line| line.node == node.to_string()).count();
    let shares: Vec<_> = (0..nodes).map(of).collect();
    println!("{kind:?}: {} runs, {shares:?} of them by a node each", shares.iter().sum::<usize>());
}

fn a_task_of_a_host_that_has_died_is_run_by_another_one(kind: Kind) {
    let cluster = Cluster::new(kind, SHORT);
    let tasks = tasks(
        &cluster,
        &format!("[tasks.NAME]\n{EACH}run = '. ./tell; [ $NODE = 1 ] || exec sleep 600'\n"),
    );
    let first = tasks.start(0, &[]);
    tasks.until_lines(&cluster.name, 0, 1);
    let second = tasks.start(1, &[]);
    cluster.hosts[0].lose_power();
    tasks.until_lines(&cluster.name, 1, 2);
    stop(vec![second]);
    let mut lines = tasks.lines(&cluster.name);
    let again = Line { number: 2, node: "1".to_owned(), ..lines.remove(0) };
    assert_eq!(lines[0], again, "{kind:?}: {lines:?}");
    lines[0].number = 1;
    assert_each_is_run_once(&lines);
    drop(first);
}

fn a_task_is_stopped_and_paused_from_another_host(kind: Kind) {
    let cluster = Cluster::new(kind, SHORT);
    let tasks = tasks(&cluster, &format!("[tasks.NAME]\n{EACH}run = '. ./tell; exec sleep 600'\n"));
    let scheduler = tasks.start(0, &["--stop-timeout", "0s"]);
    tasks.until_lines(&cluster.name, 0, 1);
    let control = |verb: &str| {
        let ended = ended(&mut tasks.command(1, &[verb, &cluster.name]));
        assert_eq!(ended.code, 0, "{kind:?}: {ended:?}");
        ended.stderr
    };
    control("pause");
    let said = control("stop");
    assert!(said.contains("stopped `"), "{kind:?}: {said}");
    scheduler.until_said(": stopped\n");
    let state = || tasks.state(&cluster.name).0;
    assert_eq!((state().as_str(), tasks.lines(&cluster.name).len()), ("paused", 1), "{kind:?}");
    control("resume");
    tasks.until_lines(&cluster.name, 1, 1);
    let lines = tasks.lines(&cluster.name);
    assert!(
        lines[1].number == 1 && lines[1].time() > lines[0].time() + 1000,
        "{kind:?}: {lines:?}"
    );
    stop(vec![scheduler]);
    assert_eq!(state(), "interrupted", "{kind:?}");
}

/// Stands for PipelineWise.
const PIPELINEWISE: &str = "#!/bin/sh\n. ./tell\n[ $3 != web ] || exec sleep 600\n";

fn the_taps_of_a_project_run_on_two_servers_and_are_stopped_from_the_other_one(kind: Kind) {
    let cluster = Cluster::new(kind, SHORT);
    let taps = ["crm", "erp", "fx", "hr", "web"];
    let task = |tap| {
        let run = format!("./pipelinewise run_tap --tap {tap} --target snowflake");
        format!("[tasks.{tap}]\n{EACH}limit = 'snowflake'\nrun = '{run}'\n")
    };
    let tasks = tasks(&cluster, &format!("[limits]\nsnowflake = 2\n{}", taps.map(task).concat()));
    let program = tasks.dir().join("pipelinewise");
    fs::write(&program, PIPELINEWISE).expect("a file");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let start = |host| tasks.start(host, &["--jobs", "2", "--stop-timeout", "0s"]);
    let schedulers = vec![start(0), start(1)];
    taps.iter().for_each(|tap| tasks.until_lines(tap, 0, if *tap == "web" { 1 } else { 2 }));
    let table = ended(&mut tasks.command(1, &["status"])).stdout;
    let row = |tap: &&str| table.lines().find(|line| line.starts_with(&format!("{tap} ")));
    let web = row(&"web").expect("a row");
    assert!(taps.iter().all(|tap| row(tap).is_some()) && web.contains("running"), "{table}");
    let other = usize::from(web.ends_with("one"));
    let stopped = ended(&mut tasks.command(other, &["stop", "web"]));
    assert!(stopped.code == 0 && stopped.stderr.contains("stopped `web`"), "{stopped:?}");
    tasks.until_lines("web", 1, 1);
    stop(schedulers);
    let lines = tasks.lines("web");
    assert!(lines[1].number == 1 && lines[1].time() == lines[0].time() + 1000, "{lines:?}");
    taps[..4].iter().for_each(|tap| assert_each_is_run_once(&tasks.lines(tap)));
}

fn a_host_that_slept_through_a_lease_ends_the_task_that_another_host_has_begun(kind: Kind) {
    let cluster = Cluster::new(kind, SHORT);
    // Without a lock on a file, which a sleeper would keep.
    let line = "echo \"$SERIALIZER_TASK $SERIALIZER_SLOT $SERIALIZER_TRY $NODE\" >> log";
    // The sleeper's place within a limit becomes free, too.
    let task = format!("{EACH}limit = 'dwh'\nrun = '{line}; exec sleep 600'\n");
    let tasks = tasks(&cluster, &format!("[limits]\ndwh = 1\n[tasks.NAME]\n{task}"));
    let first = tasks.start(0, &[]);
    tasks.until_lines(&cluster.name, 0, 1);
    cluster.hosts[0].suspend();
    let second = tasks.start(1, &[]);
    tasks.until_lines(&cluster.name, 1, 1);
    cluster.hosts[0].resume(&[first.pid()]);
    let is_asleep = || ended(cluster.hosts[0].command("pgrep").args(["-x", "sleep"])).code == 0;
    until("the first run does not end", || !is_asleep());
    first.until_said("lost `");
    let (lines, row) = (tasks.lines(&cluster.name), tasks.status(&cluster.name));
    let again = (&lines[0].slot, 2, "1");
    assert_eq!((&lines[1].slot, lines[1].number, &*lines[1].node), again, "{kind:?}: {lines:?}");
    assert_eq!(
        (lines.len(), &row["status"], &row["host"]),
        (2, &"running".into(), &"two".into()),
        "{kind:?}: {row}"
    );
    drop(second);
}

#[test]
fn two_versions_of_a_file_are_told_and_run_no_slot_twice() {
    let kind = Kind::Postgres;
    let cluster = Cluster::new(kind, LONG);
    // Each is first for some of them.
    let file = |version: u8| {
        let task = |number| {
            format!("[tasks.NAME{number}]\n{EACH}env = {{ V = '{version}' }}\nrun = '. ./tell'\n")
        };
        (0..12).map(task).collect::<String>()
    };
    let tasks = tasks(&cluster, &file(1));
    fs::write(tasks.dir().join("other.toml"), file(2).replace("NAME", &cluster.name))
        .expect("a file");
    let schedulers = vec![tasks.start(0, &[]), tasks.start(1, &["--file", "other.toml"])];
    schedulers
        .iter()
        .for_each(|scheduler| scheduler.until_said("a different definition than this one"));
    let name = format!("{}0", cluster.name);
    tasks.until_lines(&name, 0, 3);
    stop(schedulers);
    assert_each_is_run_once(&tasks.lines(&name));
}

/// Tasks of a store without hosts.
pub fn tasks_in<'a>(store: &'a Store, text: &str) -> Tasks<'a> {
    let make = |_: usize, args: &[&str]| store.serializer(args);
    Tasks::new(store.locks.dir().to_owned(), &text.replace("NAME", &store.name), Box::new(make))
}

fn slots_are_caught_up_after_an_outage_in_which_the_store_is_asked_now_and_then(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let (proxy, through) = proxied(&store);
    let task = |number| format!("[tasks.NAME{number}]\n{EACH}run = '. ./tell'\n");
    let tasks = tasks_in(&through, &(0..4).map(task).collect::<String>());
    let scheduler = tasks.start(0, &[]);
    let name = format!("{}0", store.name);
    tasks.until_lines(&name, 0, 1);
    proxy.cut();
    scheduler.until_said("cannot inspect the tasks");
    // Each attempt is counted, and comes to nothing.
    proxy.lead_to("127.0.0.1:1".parse().expect("an address"));
    proxy.mend();
    let (before, then) = (proxy.accepted(), Timestamp::now());
    until("time does not pass", || Timestamp::now() > then + Duration::from_secs(5));
    let attempts = proxy.accepted() - before;
    assert!(attempts < 200, "{kind:?}: {attempts} attempts");
    proxy.lead_to(store.address().parse().expect("an address"));
    tasks.until_more(&name, 7);
    scheduler.signal(Signal::TERM);
    let (code, said) = scheduler.end();
    assert_eq!(code, 0, "{kind:?}: {said}");
    let mut lines = tasks.lines(&name);
    // One that was under way could not store its end, and is repeated.
    lines.retain(|line| line.number == 1);
    assert_each_is_run_once(&lines);
}

fn tasks_that_are_due_together_run_however_slowly_the_store_answers(kind: Kind) {
    let store = Store::of(kind, LONG);
    let (proxy, through) = proxied(&store);
    let names: Vec<_> = (0..5).map(|number| format!("{}{number}", store.name)).collect();
    let text = names.iter().map(|name| format!("[tasks.{name}]\n{EACH}run = '. ./tell'\n"));
    let tasks = tasks_in(&through, &text.collect::<String>());
    // Longer than a scheduler claims without a look at signals.
    proxy.delay(Duration::from_millis(15));
    let scheduler = tasks.start(0, &["--jobs", "5"]);
    names.iter().for_each(|name| tasks.until_lines(name, 0, 1));
    scheduler.signal(Signal::TERM);
    let (code, said) = scheduler.end();
    assert_eq!(code, 0, "{kind:?}: {said}");
    names.iter().for_each(|name| assert_each_is_run_once(&tasks.lines(name)));
}

fn a_scheduler_without_work_asks_the_store_for_nothing(kind: Kind) {
    let store = Store::of(kind, LONG);
    let (proxy, through) = proxied(&store);
    let task = |number| format!("[tasks.NAME{number}]\nevery = '1000h'\nrun = '. ./tell'\n");
    let tasks = tasks_in(&through, &(0..10).map(task).collect::<String>());
    assert_eq!(tasks.run(&["tick"]).code, 0);
    let before = proxy.client_bytes();
    let scheduler = tasks.start(0, &[]);
    until("it does not look", || proxy.client_bytes() > before);
    // Busy machines need a while for the first look.
    let now = Timestamp::now();
    until("time does not pass", || Timestamp::now() > now + Duration::from_secs(6));
    let (bytes, connections) = (proxy.client_bytes(), proxy.accepted());
    until("time does not pass", || Timestamp::now() > now + Duration::from_secs(16));
    assert_eq!((proxy.client_bytes(), proxy.accepted()), (bytes, connections), "{kind:?}");
    scheduler.signal(Signal::TERM);
    assert_eq!(scheduler.end().0, 0);
}

fn a_run_ends_with_its_killed_runner_and_is_repeated(kind: Kind) {
    let store = Store::of(kind, SHORT);
    let tasks =
        tasks_in(&store, &format!("[tasks.NAME]\n{EACH}run = '. ./tell; exec sleep 600'\n"));
    let scheduler = tasks.start(0, &["--stop-timeout", "0s"]);
    tasks.until_lines(&store.name, 0, 1);
    kill_process(pid_of(&scheduler), Signal::KILL).expect("it runs");
    tasks.until_lines(&store.name, 1, 1);
    let lines = tasks.lines(&store.name);
    assert_eq!((&lines[1].slot, lines[1].number), (&lines[0].slot, 2), "{kind:?}: {lines:?}");
    scheduler.signal(Signal::TERM);
    assert_eq!(scheduler.end().0, 0);
}

/// Needs strace.
fn a_slot_is_run_to_its_end_wherever_its_statements_are_cut_off(kind: Kind) {
    let store = Store::of(kind, Duration::from_secs(2));
    let tries = "tries = 100\nretry_after = '0s'\n";
    let tasks = tasks_in(&store, &format!("[tasks.NAME]\n{EACH}{tries}run = '. ./tell'\n"));
    let name = &store.name;
    until("no slot is run", || tasks.run(&["tick"]).code == 0 && !tasks.lines(name).is_empty());
    let tick = |options: &[&str]| {
        let last = tasks.status(name)["slot"].as_i64().unwrap_or(0);
        until("no slot comes due", || Timestamp::now().as_millisecond() >= last + 1000);
        let strace = ["strace", "-D", "-f", "-qq", "-o", "trace"];
        ended(&mut tasks.within(&[&strace, options].concat(), &["tick"]))
    };
    tick(&["-e", "trace=execve,sendto,exit_group"]);
    until("the trace does not end", || tasks.read("trace").matches("exit_group(").count() >= 3);
    let trace = tasks.read("trace");
    let scheduler = trace.lines().find(|line| line.contains("\"tick\""));
    let scheduler = scheduler.and_then(|line| line.split(' ').next()).expect("a scheduler");
    // Short PIDs are padded.
    let call = |line: &str| Some(line.strip_prefix(scheduler)?.trim_start().to_owned());
    let is_sent = |line: &&str| call(line).is_some_and(|call| call.starts_with("sendto("));
    let count = trace.lines().filter(is_sent).count();
    assert!(count > 4, "{trace}");
    // The last ones are those of the claim and the end.
    for number in count.saturating_sub(5)..=count {
        let inject = format!("inject=sendto:signal=KILL:when={number}");
        tick(&["-e", "trace=sendto", "-e", &inject]);
        until(&format!("{inject}: it is not done"), || {
            assert_eq!(tasks.run(&["tick"]).code, 0, "{inject}");
            tasks.state(name).0 == "done"
        });
    }
    let mut lines = tasks.lines(name);
    assert!(lines.iter().any(|line| line.number > 1), "{lines:?}");
    // A run that was cut off before its command has written nothing.
    lines.dedup_by_key(|line| line.time());
    assert!(lines.windows(2).all(|pair| pair[1].time() - pair[0].time() == 1000), "{lines:?}");
}
