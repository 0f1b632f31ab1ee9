//! The SQL of `docs/fencing.md`, as it stands there, against writers that come too late.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::support::cluster::{Cluster, end};
use crate::support::servers::{PASSWORD, psql_at, shared_postgres, url_at};
use crate::support::session::{Session, session_at};
use crate::support::stores::{Kind, of_each};
use crate::support::{self, ended, until};

const FENCING: &str = include_str!("../../docs/fencing.md");

/// The snippet behind `<!-- fencing: NAME -->`.
fn snippet(name: &str) -> &'static str {
    let found =
        FENCING.split_once(&format!("<!-- fencing: {name} -->\n```")).and_then(|(_, rest)| {
            let (_language, rest) = rest.split_once('\n')?;
            Some(rest.split_once("```")?.0)
        });
    found.unwrap_or_else(|| panic!("no snippet {name}"))
}

/// A database of its own, with what is written to.
struct Target {
    name: String,
}

impl Target {
    fn new() -> Self {
        let name =
            format!("target_{}", serializer::sys::random::random_token().expect("random numbers"));
        shared_postgres().psql(&format!("CREATE DATABASE {name} OWNER meltano"));
        let target = Self { name };
        target.psql("CREATE TABLE sales (total int); INSERT INTO sales VALUES (0)");
        target.psql(snippet("schema"));
        target
    }

    fn url(&self, url: &str) -> String {
        let (server, _database) = url.rsplit_once('/').expect("a database");
        format!("{server}/{}", self.name)
    }

    fn here(&self) -> String {
        self.url(&shared_postgres().url())
    }

    fn psql(&self, sql: &str) -> String {
        let ended = ended(&mut psql_at(&self.here(), sql));
        assert_eq!(ended.code, 0, "{ended:?}");
        ended.stdout
    }

    fn total(&self) -> String {
        self.psql("SELECT total FROM sales").trim().to_owned()
    }

    /// A client in the middle of its transaction, up to a line of the snippet that begins so.
    fn writer(&self, token: u64, up_to: &str) -> Writer {
        let mut command = session_at(&self.here());
        command.args(["-v", &format!("token={token}")]);
        let mut writer =
            Writer { session: Session::start(command), lines: snippet("write").lines() };
        writer.go_on(up_to);
        writer
    }

    /// Returns when a transaction waits for another one.
    fn until_blocked(&self) {
        let waiting = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = \
             '{}'",
            self.name
        );
        until("nobody waits", || shared_postgres().psql(&waiting) == "1\n");
    }
}

struct Writer {
    session: Session,
    lines: std::str::Lines<'static>,
}

impl Writer {
    /// Sends up to and including the line that begins so.
    fn go_on(&mut self, up_to: &str) {
        let mut sql = Vec::new();
        let line = self.lines.by_ref().find(|line| {
            sql.push(*line);
            line.starts_with(up_to)
        });
        assert!(line.is_some(), "{up_to}");
        self.session.send(sql.join("\n").trim_end_matches(';'));
    }

    /// Returns when all that was sent has been answered.
    fn until_answered(&mut self) {
        self.session.send(r"SELECT 'answered'");
        loop {
            let answer = self.session.answer();
            assert_ne!(answer, "", "it has ended");
            if answer == "answered\n" {
                return;
            }
        }
    }

    /// Exit code of psql when all is sent: 3 if something was refused.
    fn end(self) -> Option<i32> {
        self.session.code()
    }
}

/// Writes as the document says, in a host, when it is told to; without the fence if it is told
/// that.
const LATE: &str = r#"echo begun; read -r how < go; "$@" -v token=$SERIALIZER_FENCING_TOKEN -f $how.sql; echo $? > code.$1"#;

of_each! { databases:
a_host_that_has_slept_through_its_lease_cannot_write_any_more,
=> Postgres, MariaDb }

fn a_host_that_has_slept_through_its_lease_cannot_write_any_more(kind: Kind) {
    for is_fenced in [true, false] {
        let cluster = Cluster::new(kind, Duration::from_secs(6));
        let target = Target::new();
        let write = snippet("write");
        let unfenced: String = write
            .lines()
            .filter(|line| !line.contains("fence("))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_ne!(unfenced, write);
        for (name, sql) in [("fenced.sql", write), ("unfenced.sql", &unfenced)] {
            fs::write(cluster.locks.dir().join(name), sql).expect("a file");
        }
        cluster.make_fifo("go");
        let how = if is_fenced { "fenced" } else { "unfenced" };

        let writer = |host: usize, script: &str| {
            let address = cluster.hosts[host].address_of_server(shared_postgres().port());
            let psql = client(&target.url(&url_at(address)));
            format!("set -- {psql}; {}", script.replace("code.$1", &format!("code.{host}")))
        };
        // It is not ended when it wakes up, so that nothing but the target stops it.
        let late = cluster.running(0, &["--on-lost", "warn"], &writer(0, LATE));
        cluster.hosts[0].suspend();
        let script = writer(1, &LATE.replace("read -r how < go", &format!("how={how}")));
        let successor = cluster.run(1, &["run", "--", "bash", "-c", &script]);
        assert_eq!((successor.code, cluster.read("code.1").as_str()), (0, "0\n"), "{successor:?}");
        assert!(successor.stderr.contains("its lease has expired"), "{successor:?}");
        assert_eq!(target.total(), "1");
        cluster.hosts[0].resume(&[late.id()]);
        cluster.tell("go", how);
        let late = end(late);
        assert_eq!(late.code, 76, "{late:?}");
        let refused = late.stderr.contains("is not the newest any more: the lock was lost");
        let expected = if is_fenced { ("1", "3\n", true) } else { ("2", "0\n", false) };
        let code = cluster.read("code.0");
        assert_eq!(
            (target.total().as_str(), code.as_str(), refused),
            expected,
            "{kind:?} {late:?}"
        );
    }
}

/// The words of the client for a URL, for a shell.
fn client(url: &str) -> String {
    let mut words = vec![];
    let command: Command = psql_at(url, "");
    words.push(command.get_program().to_str().expect("UTF-8"));
    let args = command.get_args().map(|arg| arg.to_str().expect("UTF-8"));
    // What to do comes from a file.
    words.extend(args.take_while(|arg| *arg != "-c"));
    words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_newer_writer_waits_for_the_end_of_an_older_ones_transaction() {
    let target = Target::new();
    let mut older = target.writer(7, "UPDATE");
    older.until_answered();
    let mut newer = target.writer(8, "SELECT fence");
    target.until_blocked();
    assert_eq!(target.total(), "0");
    older.go_on("COMMIT");
    assert_eq!(older.end(), Some(0));
    newer.until_answered();
    newer.go_on("COMMIT");
    assert_eq!((newer.end(), target.total().as_str()), (Some(0), "2"));
    assert_eq!(target.writer(7, "COMMIT").end(), Some(3));
    assert_eq!(target.total(), "2");
}

#[test]
fn an_older_writer_is_refused_if_a_newer_ones_transaction_was_first() {
    for has_written_before in [false, true] {
        let target = Target::new();
        if has_written_before {
            assert_eq!(target.writer(7, "COMMIT").end(), Some(0));
        }
        let before: u32 = target.total().parse().expect("a number");
        let mut newer = target.writer(8, "UPDATE");
        newer.until_answered();
        let older = target.writer(7, "COMMIT");
        target.until_blocked();
        newer.go_on("COMMIT");
        assert_eq!((newer.end(), older.end()), (Some(0), Some(3)));
        assert_eq!(target.total(), (before + 1).to_string());
        // The newest may write again.
        assert_eq!(target.writer(8, "COMMIT").end(), Some(0));
    }
}

#[test]
fn a_stricter_transaction_that_has_waited_is_to_be_tried_again() {
    let target = Target::new();
    let mut older = target.writer(7, "UPDATE");
    older.until_answered();
    let mut newer = target.writer(8, "BEGIN");
    newer.session.send("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ");
    newer.go_on("COMMIT");
    target.until_blocked();
    older.go_on("COMMIT");
    assert_eq!((older.end(), newer.end()), (Some(0), Some(3)));
    let mut newer = target.writer(8, "BEGIN");
    newer.session.send("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ");
    newer.go_on("COMMIT");
    assert_eq!((newer.end(), target.total().as_str()), (Some(0), "2"));
}

#[test]
fn a_newer_holder_fences_from_its_first_call_on() {
    let target = Target::new();
    let mut newer = target.writer(8, "BEGIN");
    newer.session.send("SELECT total FROM sales");
    newer.until_answered();
    assert_eq!(target.writer(7, "COMMIT").end(), Some(0));
    newer.go_on("SELECT fence");
    newer.until_answered();
    let older = target.writer(7, "COMMIT");
    target.until_blocked();
    newer.go_on("COMMIT");
    assert_eq!((newer.end(), older.end(), target.total().as_str()), (Some(0), Some(3), "2"));
}

#[test]
fn the_command_of_the_document_writes_and_fails_where_it_is_refused() {
    let (locks, target) = (support::Locks::new(), Target::new());
    fs::create_dir(locks.dir().join("bin")).expect("a directory");
    std::os::unix::fs::symlink(support::PROGRAM, locks.dir().join("bin/serializer"))
        .expect("a link");
    fs::write(locks.dir().join("write.sql"), snippet("write")).expect("a file");
    let run = || {
        let path =
            format!("{}/bin:{}", locks.dir().display(), std::env::var("PATH").expect("UTF-8"));
        let mut command = locks.command("sh");
        command.args(["-c", snippet("call")]).current_dir(locks.dir()).env("PATH", path);
        command
            .env("SERIALIZER_STORE", shared_postgres().url())
            .env("SERIALIZER_FILE_NAME", &target.name);
        let port = shared_postgres().port().to_string();
        let client = [
            ("HOST", "127.0.0.1"),
            ("PORT", &port),
            ("USER", "meltano"),
            ("PASSWORD", PASSWORD),
            ("DATABASE", &target.name),
        ];
        command.envs(client.map(|(name, value)| (format!("PG{name}"), value)));
        ended(&mut command)
    };
    let first = run();
    assert_eq!((first.code, target.total().as_str()), (0, "1"), "{first:?}");
    target.psql("UPDATE fences SET token = 9223372036854775807");
    let second = run();
    assert!(second.code == 3 && second.stderr.contains("the lock was lost"), "{second:?}");
    assert_eq!(target.total(), "1");
}

#[test]
fn a_process_that_has_called_the_fence_and_not_committed_fences_no_process() {
    let target = Target::new();
    let mut newer = target.writer(8, "UPDATE");
    newer.until_answered();
    let older = target.writer(7, "COMMIT");
    target.until_blocked();
    // Its connection breaks.
    newer.session.child.kill().expect("it can be killed");
    assert_eq!(older.end(), Some(0));
    assert_eq!(target.total(), "1");
}
