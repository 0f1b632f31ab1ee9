//! How late and how fast tasks on a schedule run, beside cron, graphile-worker (npm) and xargs in
//! the same run, with state in PostgreSQL: `cargo bench --features full --bench schedule`, or a
//! part of it: `… -- lateness`. Needs root, cron, node with npm, and pgbench.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use support::servers::shared_postgres;
use support::stores::{Kind, Store};
use support::tasks::Tasks;
use support::until;

const NODES: usize = 4;
const TASKS: usize = 100;
const CALLS: usize = 500;

/// Processes that end with this value.
struct Group(Vec<Child>);

impl Drop for Group {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Not by SIGTERM, which `unshare --fork` ignores.
            let _ = child.kill().and_then(|()| child.wait());
        }
    }
}

/// Tasks with equal definitions, and schedulers for them.
struct Cluster {
    tasks: Tasks<'static>,
    dir: PathBuf,
}

impl Cluster {
    fn new(count: usize, lease: Duration, task: &str) -> Self {
        let _ =
            shared_postgres().try_psql("DELETE FROM serializer_locks WHERE name LIKE 'schedule/%'");
        let store = Store::of(Kind::Postgres, lease);
        let dir = store.locks.dir().to_owned();
        let text = (0..count).map(|number| format!("[tasks.t{number}]\n{task}\n"));
        let make = move |_: usize, args: &[&str]| store.serializer(args);
        Self { tasks: Tasks::new(dir.clone(), &text.collect::<String>(), Box::new(make)), dir }
    }

    /// Schedulers on hosts with names of their own; their logs are `log.NODE`.
    fn start(&self, nodes: impl IntoIterator<Item = usize>, jobs: usize, more: &[&str]) -> Group {
        let start = |node: usize| {
            let within = [
                &["unshare", "--uts"],
                more,
                &["sh", "-c", "hostname \"n$NODE\"; exec \"$@\"", "sh"],
            ]
            .concat();
            let mut command = self.tasks.within(&within, &["start", "--jobs", &jobs.to_string()]);
            let log = fs::File::create(self.dir.join(format!("log.{node}"))).expect("a file");
            command.env("NODE", node.to_string()).process_group(0).stdin(Stdio::null());
            command
                .stdout(log.try_clone().expect("a file"))
                .stderr(log)
                .spawn()
                .expect("unshare starts")
        };
        Group(nodes.into_iter().map(start).collect())
    }
}

fn main() {
    let only = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let parts: [(&str, fn()); 5] = [
        ("lateness", lateness),
        ("throughput", throughput),
        ("fail_over", fail_over),
        ("idle", idle),
        ("balance", balance),
    ];
    parts
        .iter()
        .filter(|(name, _)| only.as_ref().is_none_or(|only| only == name))
        .for_each(|(_, part)| part());
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time")
}

/// Returns the start of the next minute, which is at least ten seconds away.
fn next_minute() -> Duration {
    if now().as_secs() % 60 > 50 {
        sleep(Duration::from_secs(10));
    }
    Duration::from_secs((now().as_secs() / 60 + 1) * 60)
}

fn lines(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Waits for a line of each task, with its time in nanoseconds; how late they were, in
/// milliseconds, the earliest first.
fn late(file: &Path, count: usize, slot: Duration) -> Vec<f64> {
    until("not all tasks run", || lines(file).len() >= count);
    let time =
        |line: &String| line.parse::<f64>().expect("nanoseconds") / 1e6 - slot.as_millis() as f64;
    let mut late: Vec<f64> = lines(file).iter().take(count).map(time).collect();
    late.sort_by(f64::total_cmp);
    late
}

/// The same command, each minute, `TASKS` times: the schedulers, one after another.
fn lateness() {
    let shown = |name: &str, late: &[f64]| {
        let [median, p99] = [late.len() / 2, late.len() * 99 / 100].map(|place| late[place]);
        println!("{name:<24} {TASKS} tasks: median {median:6.1} ms late, p99 {p99:6.1} ms");
        (median, p99)
    };
    let cluster = Cluster::new(
        TASKS,
        Duration::from_secs(30),
        "cron = '* * * * *'\nrun = 'date +%s%N >> starts'",
    );
    let slot = next_minute();
    let nodes = cluster.start(0..NODES, TASKS, &[]);
    let ours = shown("serializer, 4 nodes", &late(&cluster.dir.join("starts"), TASKS, slot));
    drop(nodes);
    let starts = cluster.dir.join("cron");
    let crontab = format!("* * * * * date +\\%s\\%N >> {}\n", starts.display()).repeat(TASKS);
    fs::write(cluster.dir.join("crontab"), crontab).expect("a file");
    let slot = next_minute();
    let script = "for at in /run /var/spool/cron /etc/cron.d; do mount -t tmpfs none $at; done; \
mkdir /var/spool/cron/crontabs
        mount --bind /dev/null /etc/crontab; install -m 600 crontab /var/spool/cron/crontabs/root; exec cron -f";
    let mut cron = Command::new("unshare");
    cron.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", script])
        .current_dir(&cluster.dir);
    let cron = Group(vec![
        cron.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("unshare starts"),
    ]);
    let crons = shown("cron, 1 host", &late(&starts, TASKS, slot));
    drop(cron);
    let graphile = graphile(&cluster.dir);
    let slot = next_minute();
    let nodes = Group((0..NODES).map(|_| graphile().spawn().expect("it starts")).collect());
    let graphiles =
        shown("graphile-worker, 4 nodes", &late(&cluster.dir.join("graphile"), TASKS, slot));
    drop(nodes);
    for (name, peer) in [("cron", crons), ("graphile-worker", graphiles)] {
        println!(
            "serializer's median is {:.2} and its p99 {:.2} of those of {name}",
            ours.0 / peer.0,
            ours.1 / peer.1
        );
    }
}

/// Installs graphile-worker, with a function for each task; it starts no process for one.
fn graphile(dir: &Path) -> impl Fn() -> Command {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/graphile");
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-save", "--no-audit", "--no-fund", "--prefix"])
        .arg(&home)
        .arg("graphile-worker@0.16");
    assert!(npm.stdout(Stdio::null()).status().expect("npm runs").success());
    let file = dir.join("graphile");
    let append =
        format!("require('fs').appendFileSync('{}', Date.now() + '000000\\n')", file.display());
    fs::create_dir_all(dir.join("tasks")).expect("a directory");
    fs::write(dir.join("tasks/t.js"), format!("module.exports = () => {append};\n"))
        .expect("a file");
    let crontab = (0..TASKS).map(|number| format!("* * * * * t ?id=t{number}\n"));
    fs::write(dir.join("jobs"), crontab.collect::<String>()).expect("a file");
    shared_postgres().psql("GRANT CREATE ON DATABASE meltano TO meltano");
    let (dir, bin) = (dir.to_owned(), home.join("node_modules/.bin/graphile-worker"));
    let command = move || {
        let mut command = Command::new(&bin);
        command.current_dir(&dir).args([
            "--connection",
            &shared_postgres().url(),
            "--jobs",
            "25",
            "--crontab",
            "jobs",
        ]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    assert!(command().arg("--schema-only").status().expect("it runs").success());
    command
}

/// Claims, processes and ends a second, of commands that do nothing.
fn throughput() {
    let cluster =
        Cluster::new(CALLS, Duration::from_secs(30), "cron = '* * * * *'\ncommand = ['true']");
    let slot = next_minute();
    let node = cluster.start([0], 16, &[]);
    let done = || {
        lines(&cluster.dir.join("log.0"))
            .iter()
            .filter(|line| line.contains("is done after"))
            .count()
    };
    until("not all are done", || done() >= CALLS);
    let ours = CALLS as f64 / (now() - slot).as_secs_f64();
    drop(node);
    let begun = Instant::now();
    assert!(
        Command::new("sh")
            .args(["-c", &format!("seq {CALLS} | xargs -P 16 -n 1 true")])
            .status()
            .expect("sh runs")
            .success()
    );
    let xargs = CALLS as f64 / begun.elapsed().as_secs_f64();
    let claims = session_locks();
    println!(
        "{CALLS} times `true`: {ours:.0} a second, {:.2} of xargs -P ({xargs:.0})",
        ours / xargs
    );
    println!(
        "claims and ends: {ours:.0} a second, {:.2} of go-session-lock's statements ({claims:.0})",
        ours / claims
    );
}

/// Claims and ends a second by such statements as those of go-session-lock, which take ten tasks at
/// a time.
fn session_locks() -> f64 {
    shared_postgres().psql(
        "CREATE TABLE bench_lock (id int); INSERT INTO bench_lock VALUES (1);
        CREATE TABLE bench_session (id int PRIMARY KEY, expires timestamp);
        INSERT INTO bench_session SELECT id, now() + interval '1 hour' FROM generate_series(0, 3) id;
        CREATE TABLE bench_task (id serial PRIMARY KEY, session int, done boolean DEFAULT false);
        INSERT INTO bench_task (session) SELECT NULL FROM generate_series(1, 500);
        GRANT ALL ON bench_lock, bench_session, bench_task TO meltano",
    );
    let script = "BEGIN;
        SELECT 1 FROM bench_lock WHERE id = 1 FOR UPDATE;
        UPDATE bench_session SET expires = now() + interval '2 minutes' WHERE id = :client_id AND expires >= now();
        SELECT count(*) FROM bench_session WHERE expires >= now();
        SELECT count(*) FROM bench_task;
        SELECT count(*) FROM bench_task WHERE session = :client_id;
        UPDATE bench_task SET session = :client_id WHERE id = ANY (ARRAY(SELECT task.id FROM bench_task task
            LEFT JOIN bench_session session ON session.id = task.session
            WHERE task.session IS NULL OR session.expires < now() LIMIT 10));
        SELECT id FROM bench_task WHERE session = :client_id;
        END;
        UPDATE bench_task SET session = NULL, done = true WHERE session = :client_id;\n";
    let path = std::env::temp_dir().join("serializer-bench-script");
    fs::write(&path, script.replace("\n        ", " ").replace("; ", ";\n")).expect("a file");
    let mut pgbench = Command::new("pgbench");
    pgbench.args(["-n", "-c", "4", "-T", "10", "-f"]).arg(&path).arg(shared_postgres().url());
    let said = String::from_utf8(pgbench.output().expect("pgbench runs").stdout).expect("text");
    let rate = said
        .lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse::<f64>().ok());
    10.0 * rate.unwrap_or_else(|| panic!("{said}"))
}

/// How long after the death of a host another one runs its task.
fn fail_over() {
    let lease = Duration::from_secs(6);
    let cluster =
        Cluster::new(1, lease, "every = '1s'\nrun = 'date +%s%N >> starts; exec sleep 600'");
    let file = cluster.dir.join("starts");
    let isolated = ["--pid", "--fork", "--kill-child=KILL", "--mount-proc"];
    let mut first = cluster.start([0], 1, &isolated);
    until("it does not run", || lines(&file).len() == 1);
    let _second = cluster.start([1], 1, &isolated);
    sleep(Duration::from_secs(3));
    first.0[0].kill().expect("it dies");
    let begun = now();
    until("no other host runs it", || lines(&file).len() == 2);
    println!(
        "fail-over: {:.1} s after the death of a host, with a lease of {lease:?}",
        (now() - begun).as_secs_f64()
    );
}

/// What a scheduler costs that has nothing to do. The server counts statements ten seconds late.
fn idle() {
    let cluster = Cluster::new(10, Duration::from_secs(30), "every = '1000h'\ncommand = ['true']");
    let node = cluster.start([0], 4, &[]);
    sleep(Duration::from_secs(15));
    let count =
        "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'meltano'";
    let statements = || shared_postgres().psql(count).trim().parse::<u64>().expect("a number");
    let proc = Path::new("/proc").join(node.0[0].id().to_string());
    let ticks = || {
        let stat = fs::read_to_string(proc.join("stat")).expect("it runs");
        let fields: Vec<u64> = stat
            .rsplit(')')
            .next()
            .expect("fields")
            .split(' ')
            .filter_map(|it| it.parse().ok())
            .collect();
        fields[10] + fields[11]
    };
    let (asked, used) = (statements(), ticks());
    sleep(Duration::from_secs(60));
    let status = fs::read_to_string(proc.join("status")).expect("it runs");
    let memory =
        status.lines().find(|line| line.starts_with("VmRSS")).expect("its size").to_owned();
    let (asked, used) = (statements().saturating_sub(asked + 1), ticks() - used);
    println!(
        "idle: {} statements an hour, {used} ticks of processor time a minute, {memory}",
        asked * 60
    );
}

/// How equal tasks that are due at once spread over hosts.
fn balance() {
    let cluster = Cluster::new(
        40,
        Duration::from_secs(30),
        "cron = '* * * * *'\nrun = 'echo $NODE >> starts; exec sleep 5'",
    );
    let _nodes = cluster.start(0..NODES, 40, &[]);
    until("not all run", || lines(&cluster.dir.join("starts")).len() >= 40);
    let on = |node: usize| {
        lines(&cluster.dir.join("starts")).iter().filter(|line| **line == node.to_string()).count()
    };
    let shares: Vec<_> = (0..NODES).map(on).collect();
    let [most, least] =
        [shares.iter().max(), shares.iter().min()].map(|share| *share.expect("a node") as f64);
    println!("balance: 40 tasks on {NODES} nodes: {shares:?}, most / least {:.2}", most / least);
}
