//! The servers that other tests use can be killed, stopped and paused, and leave nothing.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::servers::emulators::{Dynalite, Moto, dynamodb};
use crate::support::servers::{
    MariaDb, Options, PgBouncer, Postgres, mariadb_at, psql_at, shared_mariadb, shared_postgres,
};
use crate::support::session::{Session, session_at};
use crate::support::{ended, until};

#[test]
fn a_killed_postgres_comes_back_with_what_was_committed() {
    let mut postgres = Postgres::start();
    postgres.psql("CREATE TABLE kept AS SELECT 1");
    let mut session = Session::start(session_at(&postgres.url()));
    postgres.kill();
    session.send("SELECT 'alive'");
    assert_eq!((session.answer().as_str(), session.code()), ("", Some(2)));
    assert!(ended(&mut psql_at(&postgres.url(), "SELECT 1")).stderr.contains("Connection refused"));
    let url = postgres.url();
    postgres.restart();
    assert_eq!(postgres.url(), url);
    assert_eq!(postgres.psql("SELECT * FROM kept"), "1\n");
    assert!(
        postgres.log().contains("database system was not properly shut down"),
        "{}",
        postgres.log()
    );
}

#[test]
fn a_killed_mariadb_comes_back_with_what_was_committed() {
    let mut mariadb = MariaDb::start();
    mariadb.sql("CREATE TABLE kept AS SELECT 1");
    // A table is made durable in any case, and not what is put into it.
    mariadb.sql("INSERT INTO kept VALUES (2)");
    mariadb.kill();
    assert_ne!(ended(&mut mariadb_at(mariadb.address(), "SELECT 1")).code, 0);
    mariadb.restart();
    assert_eq!(mariadb.sql("SELECT * FROM kept"), "1\n2\n");
    assert!(mariadb.log().contains("Starting crash recovery"), "{}", mariadb.log());
}

const TABLE: &str = r#"{"TableName": "kept", "BillingMode": "PAY_PER_REQUEST",
    "AttributeDefinitions": [{"AttributeName": "name", "AttributeType": "S"}],
    "KeySchema": [{"AttributeName": "name", "KeyType": "HASH"}]}"#;

#[test]
fn a_killed_dynalite_comes_back_with_what_it_had() {
    let mut dynalite = Dynalite::start();
    let made = dynamodb(dynalite.address(), "CreateTable", TABLE);
    assert!(made.contains("200 OK"), "{made}");
    dynalite.kill();
    dynalite.restart();
    assert!(dynamodb(dynalite.address(), "ListTables", "{}").contains(r#"["kept"]"#));
}

#[test]
fn a_killed_moto_comes_back_empty() {
    let mut moto = Moto::start();
    let made = dynamodb(moto.address(), "CreateTable", TABLE);
    assert!(made.contains("200 OK"), "{made}");
    assert!(dynamodb(moto.address(), "ListTables", "{}").contains(r#"["kept"]"#));
    moto.kill();
    moto.restart();
    assert!(dynamodb(moto.address(), "ListTables", "{}").contains("[]"));
}

#[test]
fn servers_that_are_stopped_have_shut_down_in_an_orderly_way_and_can_be_started_again() {
    let mut postgres = Postgres::start();
    let mut session = Session::start(session_at(&postgres.url()));
    postgres.stop();
    session.send("SELECT 'alive'");
    assert_eq!((session.answer().as_str(), session.code()), ("", Some(2)));
    assert!(
        postgres.log().trim_end().ends_with("database system is shut down"),
        "{}",
        postgres.log()
    );
    postgres.restart();
    assert_eq!(ended(&mut psql_at(&postgres.url(), "SELECT 1")).stdout, "1\n");

    let mut mariadb = MariaDb::start();
    mariadb.stop();
    assert!(mariadb.log().trim_end().ends_with("Shutdown complete"), "{}", mariadb.log());
    mariadb.restart();
    assert_eq!(ended(&mut mariadb_at(mariadb.address(), "SELECT 1")).stdout, "1\n");

    let mut pool = PgBouncer::start(&postgres, 1);
    pool.stop();
    assert_eq!(ended(&mut psql_at(&pool.url(), "SELECT 1")).code, 2);
    pool.restart();
    assert_eq!(ended(&mut psql_at(&pool.url(), "SELECT 1")).stdout, "1\n");
}

/// What runs with the path of a server's directory on its command line, and for what its states
/// begin with.
fn states(dir: &Path) -> Vec<char> {
    let processes =
        fs::read_dir("/proc").expect("there are processes").flatten().map(|entry| entry.path());
    let read =
        |path: PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let ours = processes
        .filter(|process| read(process.join("cmdline")).contains(dir.to_str().expect("UTF-8")));
    // What waits for the first process is not the server's.
    let ours = ours.filter(|process| read(process.join("comm")) != "unshare\n");
    ours.filter_map(|process| read(process.join("stat")).rsplit_once(") ")?.1.chars().next())
        .collect()
}

#[test]
fn a_paused_server_does_nothing_until_it_goes_on_and_can_be_killed_meanwhile() {
    let (mut postgres, mut mariadb) = (Postgres::start(), MariaDb::start());
    let mut session = Session::start(session_at(&postgres.url()));
    postgres.pause();
    mariadb.pause();
    assert_eq!((states(postgres.dir()), states(mariadb.dir())), (vec!['T'], vec!['T']));
    session.send("SELECT 'answered'");
    postgres.resume();
    mariadb.resume();
    assert_eq!(session.answer(), "answered\n");
    assert_eq!(mariadb.sql("SELECT 1"), "1\n");
    postgres.pause();
    mariadb.pause();
    postgres.kill();
    mariadb.kill();
    assert_eq!((states(postgres.dir()), states(mariadb.dir())), (vec![], vec![]));
}

#[test]
fn servers_want_the_password_and_tls_where_that_is_asked_for() {
    let wrong = shared_postgres().url().replace("hunter2", "hunter3");
    assert!(
        ended(&mut psql_at(&wrong, "SELECT 1")).stderr.contains("password authentication failed")
    );

    let postgres = Postgres::start_with(Options { is_tls: true, ..Options::default() });
    let url = |mode: &str| {
        format!("{}?sslmode={mode}&sslrootcert={}", postgres.url(), postgres.certificate())
    };
    assert!(ended(&mut psql_at(&url("disable"), "SELECT 1")).stderr.contains("no encryption"));
    let checked = ended(&mut psql_at(
        &url("verify-full"),
        "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
    ));
    assert_eq!(checked.stdout, "t\n", "{checked:?}");

    let mariadb = MariaDb::start_with(Options { is_tls: true, ..Options::default() });
    let cipher = "SHOW STATUS LIKE 'Ssl_version'";
    let mut plain = mariadb_at(mariadb.address(), cipher);
    let plain = ended(plain.arg("--skip-ssl"));
    // The same as for a wrong password, which the next one shows that it is not.
    assert!(plain.stderr.contains("Access denied"), "{plain:?}");
    let mut checked = mariadb_at(mariadb.address(), cipher);
    let checked = ended(
        checked.args(["--ssl-verify-server-cert", &format!("--ssl-ca={}", mariadb.certificate())]),
    );
    assert!(checked.stdout.contains("TLSv1.3"), "{checked:?}");
}

#[test]
fn settings_reach_the_servers_and_their_clocks_can_be_others_and_jump() {
    let settings = [("max_connections", "7")];
    let options =
        Options { faketime: Some("@2040-01-01 00:00:00"), settings: &settings, is_tls: false };
    let postgres = Postgres::start_with(options);
    assert_eq!(postgres.psql("SHOW max_connections"), "7\n");
    assert_eq!(postgres.psql("SELECT extract(year FROM now())"), "2040\n");
    postgres.set_clock("@2030-01-01 00:00:00");
    assert_eq!(postgres.psql("SELECT extract(year FROM now())"), "2030\n");

    let mariadb =
        MariaDb::start_with(Options { faketime: Some("@2034-01-01 00:00:00"), ..options });
    assert_eq!(mariadb.sql("SELECT @@max_connections"), "10\n", "the least that it accepts");
    assert_eq!(mariadb.sql("SELECT year(now())"), "2034\n");
    mariadb.set_clock("@2030-01-01 00:00:00");
    assert_eq!(mariadb.sql("SELECT year(now())"), "2030\n");
}

#[test]
fn a_pool_gives_its_connections_to_one_transaction_after_the_other() {
    let pool = PgBouncer::start(shared_postgres(), 1);
    let mut one = Session::start(session_at(&pool.url()));
    let mut two = Session::start(session_at(&pool.url()));
    let pid = |session: &mut Session| {
        session.send("SELECT pg_backend_pid()");
        session.answer()
    };
    assert_eq!(pid(&mut one), pid(&mut two));
    // A transaction keeps it.
    one.send("BEGIN; SELECT 'begun'");
    assert_eq!(one.answer(), "begun\n");
    two.send("SELECT 'second'");
    one.send("SELECT 'first'");
    assert_eq!(one.answer(), "first\n");
    one.send("COMMIT");
    assert_eq!(two.answer(), "second\n");
}

/// Starts one of each, the shared ones too, says where they are and waits until its stdin ends.
#[test]
#[ignore = "another test starts it, and kills it"]
fn victim() {
    let (postgres, mariadb, own) = (shared_postgres(), shared_mariadb(), Postgres::start());
    let pool = PgBouncer::start(postgres, 1);
    let dirs = [postgres.dir(), mariadb.dir(), own.dir(), pool.dir()]
        .map(|dir| dir.to_str().expect("UTF-8"));
    writeln!(std::io::stdout(), "\nVICTIM {}", dirs.join(" ")).expect("it can be said");
    std::io::stdin().read_to_string(&mut String::new()).expect("it can be read");
}

#[test]
fn nothing_is_left_of_the_servers_of_a_test_that_was_killed_or_has_ended() {
    for is_killed in [true, false] {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command
            .args(["--ignored", "--exact", "servers::victim", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let mut lines =
            BufReader::new(child.stdout.take().expect("its output")).lines().map_while(Result::ok);
        let line =
            lines.find(|line| line.starts_with("VICTIM ")).expect("it says where the servers are");
        let dirs: Vec<_> = line.split(' ').skip(1).map(Path::new).collect();
        assert_eq!(dirs.len(), 4);
        for dir in &dirs {
            assert!(dir.exists() && !states(dir).is_empty(), "{dir:?}");
        }
        if is_killed {
            child.kill().expect("it can be killed");
        }
        drop(child.stdin.take());
        child.wait().expect("it ends");
        for dir in &dirs {
            until("a server or its directory is left", || !dir.exists() && states(dir).is_empty());
        }
    }
}
