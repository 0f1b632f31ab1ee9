//! What locking in a store costs, as ratios against the engines' own client libraries in the same
//! run: `cargo bench --features full --bench stores`, or a part of it: `… -- callers_of_a_key`.
//! Needs libpq-dev and libmariadb-dev, and the servers that the tests need.

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use support::servers::{Options, PASSWORD, Postgres, shared_mariadb, url_at};
use support::stores::Store;

const PAIR_ROUNDS: usize = 200;
const HAND_OFF_ROUNDS: usize = 60;

/// A store, and what locks by its own client library.
struct Engine {
    name: &'static str,
    store: Store,
    peer: PathBuf,
    arguments: Vec<String>,
    /// All statements that the server has been asked so far.
    statements: fn() -> u64,
}

/// A part of the figures, and its name.
type Part = (&'static str, fn(&Engine));

fn main() {
    let dir = tempfile::TempDir::with_prefix("serializer-bench-").expect("a temporary directory");
    let only = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let parts: [Part; 4] = [
        ("pairs", pairs),
        ("hand_offs", hand_offs),
        ("waiting", waiting),
        ("callers_of_a_key", callers_of_a_key),
    ];
    for engine in [postgres(dir.path()), mariadb(dir.path())] {
        parts
            .iter()
            .filter(|(name, _)| only.as_ref().is_none_or(|only| only == name))
            .for_each(|(_, part)| part(&engine));
    }
}

fn compile(dir: &Path, name: &str, flags: &[&str]) -> PathBuf {
    let program = dir.join(name);
    let source =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(name).with_extension("c");
    let mut compiler = Command::new("cc");
    let status = compiler
        .args(["-O2", "-o"])
        .arg(&program)
        .arg(source)
        .args(flags)
        .status()
        .expect("cc runs");
    assert!(status.success(), "install libpq-dev and libmariadb-dev");
    program
}

/// Has room for all waiters, each of which has a connection of its own.
fn roomy_postgres() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        Postgres::start_with(Options {
            settings: &[("max_connections", "300")],
            ..Options::default()
        })
    })
}

fn postgres(dir: &Path) -> Engine {
    let server = roomy_postgres();
    // As many rounds of its hash as users have.
    server.psql(&format!("ALTER ROLE meltano PASSWORD '{PASSWORD}'"));
    server.psql(
        "CREATE TABLE peer (held boolean); INSERT INTO peer VALUES (false); GRANT ALL ON peer TO \
         meltano",
    );
    Engine {
        name: "PostgreSQL",
        store: Store::at(&server.url()),
        peer: compile(dir, "postgres", &["-I/usr/include/postgresql", "-lpq"]),
        arguments: vec![url_at(server.address())],
        statements: || {
            let count = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = \
                         'meltano'";
            roomy_postgres().psql(count).trim().parse().expect("a number")
        },
    }
}

fn mariadb(dir: &Path) -> Engine {
    let server = shared_mariadb();
    server.sql("CREATE TABLE peer (held bool); INSERT INTO peer VALUES (0)");
    Engine {
        name: "MariaDB",
        store: Store::at(&server.url()),
        peer: compile(dir, "mariadb", &["-I/usr/include/mariadb", "-lmariadb"]),
        arguments: vec![server.port().to_string(), PASSWORD.to_owned()],
        statements: || {
            let count = "SHOW GLOBAL STATUS LIKE 'Questions'";
            shared_mariadb()
                .sql(count)
                .split_whitespace()
                .last()
                .and_then(|count| count.parse().ok())
                .expect("a number")
        },
    }
}

impl Engine {
    fn ours(&self, args: &[&str]) -> Command {
        let mut command = self.store.serializer(args);
        command.env("LOG_LEVEL", "warning").stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn peers(&self, what: &str) -> Command {
        let mut command = Command::new(&self.peer);
        command.args(&self.arguments).arg(what).stdout(Stdio::null());
        command
    }
}

fn run(mut command: Command) {
    let status = command.status().expect("it starts");
    assert!(status.success(), "{command:?} fails");
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn pairs(engine: &Engine) {
    let (mut ours, mut runs, mut peers, mut sera) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let has_get_lock = engine.name == "MariaDB";
    // The first one makes the table.
    run(engine.ours(&["initialize"]));
    for _ in 0..PAIR_ROUNDS {
        ours.push(time(|| {
            ["lock", "unlock"].into_iter().for_each(|what| run(engine.ours(&[what])))
        }));
        runs.push(time(|| run(engine.ours(&["run", "--", "true"]))));
        peers
            .push(time(|| ["lock", "unlock"].into_iter().for_each(|what| run(engine.peers(what)))));
        if has_get_lock {
            sera.push(time(|| run(engine.peers("get_lock"))));
        }
    }
    let (name, ours, runs, peers) = (engine.name, median(ours), median(runs), median(peers));
    println!("{name}: lock + unlock               {ours:7.2} ms");
    println!(
        "{name}: its client library, the same {peers:6.2} ms   ours is {:.2} of it",
        ours / peers
    );
    println!("{name}: run -- true                 {runs:7.2} ms");
    if has_get_lock {
        let sera = median(sera);
        println!(
            "{name}: GET_LOCK, RELEASE_LOCK      {sera:7.2} ms   run is {:.2} of it",
            runs / sera
        );
    }
}

fn owner(engine: &Engine) -> Child {
    let owner = Command::new("sleep").arg("3600").spawn().expect("sleep starts");
    run(engine.ours(&["lock", "--owner-pid", &owner.id().to_string()]));
    owner
}

fn hand_offs(engine: &Engine) {
    let (mut releases, mut deaths, mut sera) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..HAND_OFF_ROUNDS {
        for (times, is_release) in [(&mut releases, true), (&mut deaths, false)] {
            let mut owner = owner(engine);
            let mut waiting = engine.ours(&["run", "--", "true"]).spawn().expect("it starts");
            // Long enough to be asleep; a benchmark may guess where a test must not.
            std::thread::sleep(Duration::from_millis(100));
            times.push(time(|| {
                if is_release {
                    run(engine.ours(&["unlock", "--owner-pid", &owner.id().to_string()]));
                } else {
                    owner.kill().expect("it dies");
                }
                assert!(waiting.wait().expect("it ends").success());
            }));
            owner.kill().and_then(|()| owner.wait()).expect("it dies");
        }
        if engine.name == "MariaDB" {
            let mut holder = engine
                .peers("hold")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("it starts");
            assert_eq!(support::first_line(&mut holder), "held");
            let mut waiting = engine.peers("get_lock").spawn().expect("it starts");
            std::thread::sleep(Duration::from_millis(100));
            sera.push(time(|| {
                drop(holder.stdin.take());
                assert!(waiting.wait().expect("it ends").success());
            }));
            holder.wait().expect("it ends");
        }
    }
    let name = engine.name;
    if !sera.is_empty() {
        println!(
            "{name}: hand-off of GET_LOCK        {:7.2} ms   (no process to start)",
            median(sera)
        );
    }
    println!(
        "{name}: hand-off by unlock          {:7.2} ms   (its start included)",
        median(releases)
    );
    println!("{name}: hand-off by the owner's death {:5.2} ms   (by its keeper)", median(deaths));
}

/// What so many waiters ask of the server while nothing happens, and how fast the lock goes through
/// them.
fn waiting(engine: &Engine) {
    let waiters = 100;
    let mut owner = owner(engine);
    // With the reports of a usual log, which cost statements.
    let start = |_| {
        let mut waiter = engine.ours(&["run", "--", "true"]);
        waiter.env("LOG_LEVEL", "info").spawn().expect("it starts")
    };
    let mut waiting: Vec<Child> = (0..waiters).map(start).collect();
    // PostgreSQL counts the statements of an idle session ten seconds late.
    std::thread::sleep(Duration::from_secs(30));
    let before = (engine.statements)();
    // As long as between two reports of the last ones.
    let seconds = 60;
    std::thread::sleep(Duration::from_secs(seconds));
    // What counts counts as well.
    let asked = (engine.statements)().saturating_sub(before + 1);
    let took = time(|| {
        run(engine.ours(&["unlock", "--owner-pid", &owner.id().to_string()]));
        waiting.iter_mut().for_each(|one| assert!(one.wait().expect("it ends").success()));
    });
    let (name, each) = (engine.name, took.as_secs_f64() * 1e3 / waiters as f64);
    println!(
        "{name}: {waiters} that wait              {:7.1} statements/s, {each:.2} ms per hand-off",
        asked as f64 / seconds as f64
    );
    owner.kill().and_then(|()| owner.wait()).expect("it dies");
}

/// How long after the end of a run the last of many callers is told that its key is done.
fn callers_of_a_key(engine: &Engine) {
    let callers = 200;
    let fifo = engine.store.locks.dir().join("go");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo runs").success());
    let call = |_| {
        engine
            .ours(&["once", "key", "--skipped-exit-code", "9", "--", "sh", "-c", "read -r _ < go"])
            .spawn()
    };
    let mut first = call(0).expect("it starts");
    std::thread::sleep(Duration::from_millis(500));
    let mut others: Vec<Child> =
        (1..callers).map(|number| call(number).expect("it starts")).collect();
    // Long enough for all to wait; a benchmark may guess where a test must not.
    std::thread::sleep(Duration::from_secs(10));
    std::fs::write(&fifo, "on\n").expect("it is read");
    assert!(first.wait().expect("it ends").success());
    let took = time(|| {
        for other in &mut others {
            assert_eq!(other.wait().expect("it ends").code(), Some(9), "a run more");
        }
    });
    println!(
        "{}: {callers} callers of one key      {:7.1} ms until the last one was told",
        engine.name,
        took.as_secs_f64() * 1e3
    );
}
