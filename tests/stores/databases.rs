//! What a server of databases is asked for, and what is left behind in it.

use std::time::Duration;

use crate::support::faults::{self, Logged};
use crate::support::servers::{
    MariaDb, Options, PgBouncer, Postgres, shared_mariadb, shared_postgres,
};
use crate::support::stores::Store;
use crate::support::{Waiter, until};

#[test]
fn a_granted_lock_outlasts_a_crash_of_a_server_that_does_not_wait_for_its_log() {
    let settings = [("synchronous_commit", "off"), ("wal_writer_delay", "10000")];
    let mut server = Postgres::start_with(Options { settings: &settings, ..Options::default() });
    server.psql("ALTER ROLE meltano SET synchronous_commit = off");
    let store = Store::at(&server.url());
    assert_eq!(store.run(&["run", "true"]).code, 0);
    let mut owner = store.shell();
    owner.lock();
    server.kill();
    server.restart();
    assert_eq!(store.run(&["lock", "-n"]).code, 75, "it is granted twice");
    assert_eq!(store.holder("pid").as_u64(), Some(u64::from(owner.pid())));
    owner.unlock();
}

#[test]
fn a_database_with_an_encoding_that_lacks_a_character_of_a_command_keeps_its_lock() {
    let server = Postgres::start();
    server.psql(
        "CREATE DATABASE latin OWNER meltano ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' \
         TEMPLATE template0",
    );
    let store =
        Store::at(&server.url().replace("/meltano", "/latin").replace("//latin:", "//meltano:"));
    let command = "test \"$1\" # Łódź, é, ☃";
    for _ in 0..2 {
        let run = store.run(&["run", "sh", "-c", command, "sh", "x"]);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{run:?}");
    }
    let command = "sleep 600 # Łódź, é, ☃, \\u{41}";
    let mut holder = faults::start(&store, &["run", "sh", "-c", command]);
    until("it is not held", || store.state() == "held");
    assert!(
        store.holder("command").as_str().is_some_and(|told| told.contains("Łódź, é, ☃, \\u{41}"))
    );
    assert_eq!(store.run(&["lock", "-n"]).code, 75);
    holder.kill().expect("it can be killed");
    holder.wait().expect("it ends");
    assert_eq!(store.run(&["unlock", "--force"]).code, 0);
    assert_eq!(store.state(), "free");
    // Nor is a row touched that a newer version has written.
    server.psql_in(
        "latin",
        "ALTER TABLE serializer_locks DROP CONSTRAINT serializer_locks_format_check; \
         UPDATE serializer_locks SET format = 2",
    );
    let newer = store.run(&["run", "true"]);
    assert!(newer.code == 1 && newer.stderr.contains("a newer version"), "{newer:?}");
}

#[test]
fn a_server_is_told_goodbye() {
    // With notes about connections that end otherwise.
    let server =
        MariaDb::start_with(Options { settings: &[("log-warnings", "9")], ..Options::default() });
    let store = Store::at(&server.url());
    let mut owner = store.shell();
    for _ in 0..2 {
        assert_eq!(store.run(&["run", "true"]).code, 0);
        owner.lock();
        owner.unlock();
        assert_eq!(store.run(&["status", "--all"]).code, 0);
    }
    // It tells of such an end before it has forgotten the connection.
    let connected = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'meltano'";
    until("connections are left", || server.sql(connected) == "0\n");
    assert!(!server.log().contains("Aborted connection"), "{}", server.log());
}

#[test]
fn a_short_command_needs_one_login_and_a_long_one_keeps_no_connection() {
    let server = MariaDb::start();
    let store = Store::at(&server.url());
    assert_eq!(store.run(&["run", "true"]).code, 0);
    // Each of these is itself one.
    let logins = || -> u32 {
        let told = server.sql("SHOW GLOBAL STATUS LIKE 'Connections'");
        told.trim().rsplit('\t').next().expect("a number").parse().expect("a number")
    };
    let before = logins();
    assert_eq!(store.run(&["run", "true"]).code, 0);
    assert_eq!(logins() - before, 2);
    let mut holder = faults::start(&store, &["run", "sleep", "600"]);
    until("it is held", || store.state() == "held");
    let connected = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'meltano'";
    until("its connection is closed", || server.sql(connected) == "0\n");
    holder.kill().expect("it can be killed");
    holder.wait().expect("it ends");
}

#[test]
fn a_server_that_was_set_read_only_is_said_to_be_with_what_to_do_at_first() {
    for is_postgres in [true, false] {
        let (postgres, mariadb);
        let store = if is_postgres {
            postgres = Postgres::start();
            let store = Store::at(&postgres.url());
            assert_eq!(store.run(&["run", "true"]).code, 0);
            postgres.psql("ALTER ROLE meltano SET default_transaction_read_only = on");
            store
        } else {
            mariadb = MariaDb::start();
            let store = Store::at(&mariadb.url());
            assert_eq!(store.run(&["run", "true"]).code, 0);
            mariadb.sql("SET GLOBAL read_only = 1");
            store
        };
        let waiter = Logged::start(&store, &["run", "true"]);
        waiter.until_said("read-only");
        let said = waiter.said();
        let first = said.lines().find(|line| line.contains("read-only")).expect("a line");
        assert!(first.contains("(hint: ") && first.contains("read_only"), "{said}");
    }
}

#[test]
fn a_server_without_tls_is_not_used_where_tls_is_asked_for_in_any_spelling() {
    let (postgres, mariadb) = (shared_postgres().url(), shared_mariadb().url());
    let of =
        |url: &str, query: &str| Store::at(&format!("{url}?{query}")).run(&["run", "-n", "true"]);
    for query in [
        "sslmode=require",
        "ssl=true",
        "ssl=verify-full",
        "sslMode=VERIFY_FULL",
        "requiressl=1",
        "sslrootcert=system",
    ] {
        let run = of(&postgres, query);
        assert!(run.code == 1 && run.stderr.contains("does not encrypt"), "{query}: {run:?}");
    }
    for query in [
        "ssl=true",
        "requireSSL=true",
        "ssl_verify_identity=true",
        "ssl_mode=REQUIRED",
        "ssl-mode=REQUIRED",
        "sslMode=REQUIRED",
        "ssl_mode=VERIFY_IDENTITY",
        "ssl_mode=VERIFY_CA",
    ] {
        let run = of(&mariadb, query);
        assert!(run.code == 1 && run.stderr.contains("does not encrypt"), "{query}: {run:?}");
    }
    for query in
        ["ssl_capath=/etc/ssl", "ssl_ca=/nonexistent/ca.pem", "sslmod=x", "tls=true", "useSSL=true"]
    {
        let run = of(&mariadb, query);
        let name = query.split('=').next().expect("a name").to_ascii_lowercase();
        assert!(run.code == 2 && run.stderr.contains(&name), "{query}: {run:?}");
    }
}

/// So many wait in each of the tests below.
const WAITERS: usize = 40;

/// For how long statements are counted.
const WINDOW: Duration = Duration::from_secs(20);

/// How many statements a second a server is asked while nothing happens. `count` tells how many
/// there were.
fn asked(url: &str, are_waiting: impl Fn() -> bool, count: impl Fn() -> u64) -> f64 {
    let store = Store::at(url);
    let mut holder = store.shell();
    holder.lock();
    let waiters: Vec<Waiter> = (0..WAITERS).map(|_| store.waiter(&["run", "true"])).collect();
    until("they do not wait", are_waiting);
    let before = count();
    std::thread::sleep(WINDOW);
    let statements = count() - before;
    drop(waiters);
    #[allow(clippy::cast_precision_loss, reason = "there are not so many")]
    let statements = statements as f64;
    statements / WINDOW.as_secs_f64()
}

fn transactions(server: &Postgres) -> u64 {
    let count =
        "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'meltano'";
    server.psql(count).trim().parse().expect("a number")
}

#[test]
fn waiters_ask_postgres_little() {
    let server = Postgres::start();
    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = \
                   'ExclusiveLock' AND granted";
    let are_waiting = || server.psql(waiting).trim() == WAITERS.to_string();
    let asked = asked(&server.url(), are_waiting, || transactions(&server));
    assert!(asked < 10.0, "{asked} statements a second");
}

#[test]
fn waiters_behind_a_pooler_ask_once_every_two_seconds_at_most() {
    let server = Postgres::start();
    let pool = PgBouncer::start(&server, 3);
    let begun = transactions(&server);
    // Each has looked often enough to know that it has no session of its own.
    let are_waiting = || transactions(&server) > begun + 15 * WAITERS as u64;
    let asked = asked(&pool.url(), are_waiting, || transactions(&server));
    #[allow(clippy::cast_precision_loss, reason = "there are not so many")]
    let most = WAITERS as f64 / 2.0;
    assert!(asked < most, "{asked} statements a second");
}

#[test]
fn waiters_ask_mariadb_little() {
    let server = MariaDb::start();
    let waiting =
        "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT GET_LOCK%'";
    let are_waiting =
        || server.sql(waiting).trim().parse::<usize>().expect("a number") >= WAITERS - 1;
    let questions = || {
        let answer = server.sql("SHOW GLOBAL STATUS LIKE 'Questions'");
        answer.trim().rsplit('\t').next().and_then(|count| count.parse().ok()).expect("a number")
    };
    let asked = asked(&server.url(), are_waiting, questions);
    assert!(asked < 10.0, "{asked} statements a second");
}
