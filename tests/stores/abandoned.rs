//! A server that cannot answer, because another session keeps it waiting, does not collect
//! abandoned processes: one more for each request, until it has none left for any client.

use std::fs;

use crate::support::faults::Logged;
use crate::support::servers::{Options, PgBouncer, Postgres};
use crate::support::session::{Session, session_at};
use crate::support::stores::Store;
use crate::support::until;

const WAITERS: usize = 3;

/// How often answers were waited for in vain, before it matters how many processes wait.
const TRIES: usize = 30;

/// A connection for each waiter and its newest request, and the one that is about to end.
const HANDFUL: usize = 2 * WAITERS + 1;

/// Waited for in vain after half a second.
fn store(url: &str) -> Store {
    let store = Store { lease: "3".to_owned(), ..Store::at(url) };
    assert_eq!(store.run(&["run", "true"]).code, 0);
    store
}

/// Server processes that wait for a lock of another session.
fn waiting(postgres: &Postgres) -> usize {
    let count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'meltano' AND \
                 wait_event_type = 'Lock'";
    postgres.psql(count).trim().parse().expect("a number")
}

/// Processes that ask for a lock, again and again.
struct Waiters(Vec<(Logged, Store)>);

impl Waiters {
    /// Returns when they have waited for answers in vain often enough.
    fn start(store: &Store) -> Self {
        let args = ["run", "--log-level", "debug", "--sleep-seconds", "0.1", "touch", "ran"];
        let stores = (0..WAITERS).map(|_| store.through(&store.url));
        let waiters = Self(stores.map(|store| (Logged::start(&store, &args), store)).collect());
        let tries = |waiter: &Logged| waiter.said().matches("does not answer in time").count();
        until("they do not try again", || {
            waiters.0.iter().map(|(waiter, _)| tries(waiter)).sum::<usize>() >= TRIES
        });
        waiters
    }

    fn get_it(self) {
        for (waiter, store) in self.0 {
            let (code, said) = waiter.end();
            assert!(
                code == 0 && fs::exists(store.locks.dir().join("ran")).expect("it can be seen"),
                "{said}"
            );
        }
    }
}

/// While another session has locked with `statement` what all need, few processes of the server
/// wait for that; afterwards all goes on.
fn few_wait(postgres: &Postgres, store: &Store, statement: &str) {
    let mut other = Session::start(session_at(&postgres.url()));
    other.send(&format!("BEGIN; {statement}; SELECT 'locked'"));
    until("it is not locked", || other.answer() == "locked\n");
    let waiters = Waiters::start(store);
    // Abandoned processes would only become more.
    until("processes wait for nobody", || waiting(postgres) <= HANDFUL);
    other.send("COMMIT");
    waiters.get_it();
    assert_eq!(store.state(), "free");
}

const LOCK_TABLE: &str = "LOCK TABLE serializer_locks";

#[test]
fn a_locked_table_does_not_use_up_the_server() {
    let postgres = Postgres::start();
    few_wait(&postgres, &store(&postgres.url()), LOCK_TABLE);
}

#[test]
fn a_locked_row_does_not_use_up_the_server() {
    let postgres = Postgres::start();
    few_wait(&postgres, &store(&postgres.url()), "SELECT FROM serializer_locks FOR UPDATE");
}

#[test]
fn a_locked_table_does_not_use_up_the_server_that_is_reached_by_its_socket() {
    let postgres = Postgres::start();
    let url = format!(
        "postgresql://meltano@/meltano?host={}&port={}",
        postgres.dir().display(),
        postgres.port()
    );
    few_wait(&postgres, &store(&url), LOCK_TABLE);
}

#[test]
fn a_locked_table_does_not_use_up_the_server_that_wants_tls() {
    let postgres = Postgres::start_with(Options { is_tls: true, ..Options::default() });
    let url =
        format!("{}?sslmode=verify-full&sslrootcert={}", postgres.url(), postgres.certificate());
    few_wait(&postgres, &store(&url), LOCK_TABLE);
}

#[test]
fn a_locked_table_does_not_use_up_the_server_behind_a_pool() {
    let postgres = Postgres::start();
    let pool = PgBouncer::start(&postgres, 3);
    few_wait(&postgres, &store(&pool.url()), LOCK_TABLE);
}

#[test]
fn a_pool_outlasts_that_its_server_cannot_be_told_to_cancel_anything() {
    let postgres = Postgres::start();
    let pool = PgBouncer::start(&postgres, 3);
    let store = store(&pool.url());
    postgres.pause();
    let waiters = Waiters::start(&store);
    postgres.resume();
    waiters.get_it();
    assert_eq!(store.state(), "free");
    assert!(!pool.log().contains("FATAL"), "{}", pool.log());
}

#[test]
fn a_write_that_waits_for_a_standby_is_not_shown_to_others_before() {
    let postgres = Postgres::start();
    let store = store(&postgres.url());
    let standby = |name: &str| {
        postgres.psql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'"));
        postgres.psql("SELECT pg_reload_conf()");
        let shown = || postgres.psql("SHOW synchronous_standby_names").trim() == name;
        until("it is not known", shown);
    };
    standby("nowhere");
    let ended = store.run(&["run", "-n", "touch", "ran"]);
    assert!(
        ended.code == 1 && ended.stderr.contains("the write may or may not have happened"),
        "{ended:?}"
    );
    assert!(!fs::exists(store.locks.dir().join("ran")).expect("it can be seen"));
    assert_eq!(store.state(), "free", "a failover would forget what was shown");
    standby("");
    // It was done, and has no keeper.
    assert_eq!(store.run(&["run", "true"]).code, 0);
}
