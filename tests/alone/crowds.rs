//! More processes wait for a lock than a server has connections: holders, and users of the server
//! outside the project, still get a connection.

use crate::support::servers::{MariaDb, Options, PASSWORD, Postgres, psql_at};
use crate::support::session::{Session, session_at};
use crate::support::stores::Store;
use crate::support::{ended, until};

/// More than the servers below have connections.
const WAITERS: usize = 30;

/// As often as a lease has to be renewed to be kept three times over.
const RENEWALS: u64 = 9;

/// The waiters that PostgreSQL knows.
const QUEUED: &str = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE \
                      usename = 'meltano' AND locktype = 'advisory' AND granted";

/// A lock that is held for long while many wait for it, where so many at most, and at least, stay
/// connected, as the statement `count` says.
fn is_kept_for_its_holder(
    url: &str,
    most: u64,
    least: u64,
    count: &str,
    ask: impl Fn(&str) -> Option<String>,
) {
    let store = Store { lease: "3".to_owned(), ..Store::at(url) };
    let mut holder = store.shell();
    holder.lock();
    // How soon each of them gets a connection in the end is another matter, of a slow machine above
    // all.
    let patient = Store { lease: "60".to_owned(), ..store.through(&store.url) };
    let waiters: Vec<_> = (0..WAITERS).map(|_| patient.waiter(&["run", "true"])).collect();
    // In the beginning, all come at once.
    let ask = |sql: &str| {
        let mut answer = None;
        until("the server has no room for anybody", || {
            answer = ask(sql);
            answer.is_some()
        });
        answer.expect("an answer")
    };
    let connected = || ask(count).trim().parse::<u64>().expect("a number");
    // How long it is, when it ends, and how often it was renewed.
    let renewals = || {
        let record = ask("SELECT record FROM serializer_locks WHERE record IS NOT NULL")
            .replace("\\n", "\n");
        let lease = record.lines().find_map(|line| line.strip_prefix("lease=")).map(str::to_owned);
        let renewals = lease.and_then(|lease| lease.split(' ').nth(2)?.parse::<u64>().ok());
        renewals.unwrap_or_else(|| panic!("no lease in {record}"))
    };
    until("those who have found no room have left", || connected() <= most);
    let before = renewals();
    until("it is kept", || renewals() >= before + RENEWALS);
    assert!(connected() >= least, "some wait in line");
    holder.unlock();
    for waiter in waiters {
        let ended = waiter.end();
        assert_eq!(ended.code, 0, "{ended:?}");
    }
}

#[test]
fn postgres_has_room_for_holders_however_many_wait() {
    let server = Postgres::start_with(Options {
        settings: &[("max_connections", "20")],
        ..Options::default()
    });
    is_kept_for_its_holder(&server.url(), 13, 4, QUEUED, |sql| server.try_psql(sql));
}

#[test]
fn connections_of_other_roles_count_although_they_are_not_shown() {
    let server = Postgres::start_with(Options {
        settings: &[("max_connections", "20")],
        ..Options::default()
    });
    server.psql(&format!("CREATE ROLE other LOGIN PASSWORD '{PASSWORD}'"));
    let url = server.url().replace("//meltano:", "//other:");
    let _others: Vec<_> = (0..9).map(|_| Session::start(session_at(&url))).collect();
    // Twelve are three quarters of the connections that are not reserved for superusers.
    is_kept_for_its_holder(&server.url(), 4, 0, QUEUED, |sql| server.try_psql(sql));
}

#[test]
fn a_role_that_may_have_few_connections_has_room_for_holders() {
    let server = Postgres::start();
    server.psql("ALTER ROLE meltano CONNECTION LIMIT 12");
    is_kept_for_its_holder(&server.url(), 9, 4, QUEUED, |sql| server.try_psql(sql));
    assert_eq!(ended(&mut psql_at(&server.url(), "SELECT 1")).code, 0);
}

#[test]
fn mariadb_has_room_for_holders_however_many_wait() {
    let server = MariaDb::start_with(Options {
        settings: &[("max_connections", "20")],
        ..Options::default()
    });
    let count =
        "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT GET_LOCK%'";
    is_kept_for_its_holder(&server.url(), 15, 4, count, |sql| server.try_sql(sql));
}

#[test]
fn a_user_that_may_have_few_connections_has_room_for_holders() {
    let server = MariaDb::start();
    server.sql("ALTER USER meltano WITH MAX_USER_CONNECTIONS 12");
    let count =
        "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT GET_LOCK%'";
    is_kept_for_its_holder(&server.url(), 9, 4, count, |sql| server.try_sql(sql));
}
