//! Stores that refuse: one line tells why, and how to fix it; nothing is locked, and no message
//! shows a password.

use std::any::Any;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::logins::answer;
use crate::support::faults::{Logged, Server, renewals, until_renewed};
use crate::support::servers::{Options, PgBouncer, Port, shared_postgres};
use crate::support::session::{Session, session_at};
use crate::support::stores::Store;
use crate::support::{ended, servers, stores, until};

/// Does not end while a test runs.
const LONG: Duration = Duration::from_secs(600);

/// Renewed every four seconds.
const RENEWED: Duration = Duration::from_secs(12);

/// What all kinds of refusals have in common.
fn is_refused(store: &Store, args: &[&str], why: &str) {
    let ended = store.run(args);
    assert!(ended.code == 1 && ended.stderr.contains(why), "{why}: {ended:?}");
    assert!(ended.stderr.lines().count() == 1 && ended.stderr.contains(" (hint: "), "{ended:?}");
    assert!(!ended.stderr.contains("hunter") && !ended.stderr.contains("not known"), "{ended:?}");
    assert_eq!(ended.stdout, "");
}

/// The same lock as another user, or elsewhere.
fn with(store: &Store, from: &str, to: &str) -> Store {
    let url = store.url.replace(from, to);
    assert_ne!(url, store.url);
    store.through(&url)
}

fn guest(store: &Store) -> Store {
    let (_, address) = store.url.rsplit_once('@').expect("a user");
    let (scheme, _) = store.url.split_once("://").expect("a scheme");
    store.through(&format!("{scheme}://guest:hunter2@{address}"))
}

#[test]
fn a_user_that_may_not_make_the_table_is_told_which_user_can_and_how_and_that_works() {
    for server in Server::both() {
        let is_postgres = matches!(server, Server::Postgres(_));
        server.sql(if is_postgres {
            "CREATE ROLE guest LOGIN PASSWORD 'hunter2'"
        } else {
            "CREATE USER guest@'%' IDENTIFIED BY 'hunter2'; CREATE TABLE meltano.other (one int); \
             GRANT SELECT ON meltano.other TO guest@'%'"
        });
        let store = guest(&server.store(LONG));
        let denied = if is_postgres { "permission denied" } else { "command denied" };
        for args in [&["lock"][..], &["run", "true"], &["initialize"]] {
            is_refused(&store, args, denied);
        }
        let printed = store.run(&["initialize", "--print-sql"]);
        assert_eq!(printed.code, 0, "{printed:?}");
        let grant = printed
            .stdout
            .lines()
            .find(|line| line.contains("GRANT SELECT"))
            .expect("it names the right");
        let grant = grant
            .trim_start_matches(['-', ' '])
            .replace("...", "guest")
            .replace("my_database", "meltano");
        let grant = grant.replace("my_user", "guest");
        server.sql(&printed.stdout);
        is_refused(&store, &["lock"], denied);
        server.sql(&grant);
        let mut owner = store.shell();
        owner.lock();
        owner.unlock();
        assert_eq!(store.run(&["initialize"]).code, 0);

        server.sql(if is_postgres {
            "REVOKE UPDATE ON serializer_locks FROM guest"
        } else {
            "REVOKE UPDATE ON meltano.serializer_locks FROM guest@'%'"
        });
        is_refused(&store, &["lock"], denied);
        assert_eq!(store.state(), "free");
        server.sql(if is_postgres {
            "REVOKE SELECT ON serializer_locks FROM guest"
        } else {
            "REVOKE SELECT ON meltano.serializer_locks FROM guest@'%'"
        });
        for args in [&["lock"][..], &["status"], &["status", "--all"], &["wait"]] {
            is_refused(&store, args, denied);
        }
    }
}

#[test]
fn a_process_that_is_not_let_in_is_told_at_once_however_long_it_would_wait() {
    let said =
        [("password authentication failed", "does not exist"), ("access denied", "access denied")];
    for (store, (password, database)) in Store::with_a_clock(LONG).into_iter().zip(said) {
        let (server, _) = store.url.rsplit_once('/').expect("a database");
        let nowhere = store.through(&format!("{server}/nowhere"));
        for args in [&["lock"][..], &["unlock"], &["run", "true"], &["status"], &["wait"]] {
            is_refused(&with(&store, "hunter2", "hunter3"), args, password);
            is_refused(&nowhere, args, database);
        }
    }
}

#[test]
fn a_process_that_names_a_server_that_is_not_there_is_told_so() {
    for store in Store::over_networks(LONG) {
        let address = store.address();
        // No process listens there.
        let port = Port::reserve();
        for (elsewhere, why) in [
            ("no-such-host.invalid", "no-such-host.invalid"),
            (&format!("127.0.0.1:{}", port.number()), "connection refused"),
        ] {
            let elsewhere = with(&store, &address, elsewhere);
            for args in [
                &["lock", "-n"][..],
                &["run", "--timeout", "1s", "true"],
                &["status"],
                &["wait", "-n"],
            ] {
                let ended = elsewhere.run(args);
                assert!(ended.code == 1 && ended.last_line().contains(why), "{args:?} {ended:?}");
                assert!(!ended.stderr.contains("hunter"), "{ended:?}");
            }
        }
    }
}

#[test]
fn a_process_that_waits_for_a_full_server_says_so_and_gets_the_lock_when_there_is_room() {
    let settings = [("max_connections", "10")];
    let mut slow = vec![("max_connections", "10")];
    slow.push(("connect_timeout", "600"));
    let servers = [
        Server::Postgres(servers::Postgres::start_with(Options {
            settings: &settings,
            ..Options::default()
        })),
        Server::MariaDb(servers::MariaDb::start_with(Options {
            settings: &slow,
            ..Options::default()
        })),
    ];
    for (server, why) in
        servers.into_iter().zip(["remaining connection slots", "too many connections"])
    {
        let store = server.store(LONG);
        assert_eq!(store.run(&["run", "true"]).code, 0);
        let free = match server {
            Server::Postgres(_) => 7,
            Server::MariaDb(_) => 10,
            _ => unreachable!("it is no database"),
        };
        let guests: Vec<Box<dyn Any>> = (0..free)
            .map(|_| match &server {
                Server::Postgres(server) => {
                    Box::new(Session::start(session_at(&server.url()))) as Box<dyn Any>
                }
                // Connections without a login count as well.
                Server::MariaDb(server) => {
                    Box::new(TcpStream::connect(server.address()).expect("it listens"))
                }
                _ => unreachable!("it is no database"),
            })
            .collect();
        until("it is not full", || store.run(&["run", "-n", "true"]).code == 1);
        let ended = store.run(&["lock", "-n"]);
        assert!(ended.code == 1 && ended.stderr.contains(why), "{ended:?}");
        let waiter = Logged::start(&store, &["run", "true"]);
        waiter.until_said(why);
        drop(guests);
        let (code, said) = waiter.end();
        assert_eq!(code, 0, "{said}");
    }
}

#[test]
fn a_server_that_becomes_read_only_takes_no_lock_away_and_is_said_to_be() {
    for server in Server::both() {
        let store = server.store(RENEWED);
        let read_only = |is: bool| match &server {
            Server::Postgres(server) => {
                server.psql(&format!("ALTER SYSTEM SET default_transaction_read_only = {is}"));
                server.psql("SELECT pg_reload_conf()");
            }
            Server::MariaDb(server) => {
                drop(server.sql(&format!("SET GLOBAL read_only = {}", u8::from(is))))
            }
            _ => unreachable!("it is no database"),
        };
        let mut owner = store.shell();
        owner.lock();
        let other = server.store(RENEWED);
        read_only(true);
        until("it is not read-only", || other.run(&["run", "-n", "true"]).code == 1);
        is_refused(&other, &["lock", "-n"], "read-only");
        assert_eq!(store.run(&["lock", "-n"]).code, 75);
        let waiter = Logged::start(&other, &["run", "true"]);
        waiter.until_said("read-only");
        let before = renewals(&store);
        read_only(false);
        let (code, said) = waiter.end();
        assert_eq!(code, 0, "{said}");
        until("it is not renewed", || renewals(&store) > before);
        until_renewed(&store);

        read_only(true);
        until("it is not read-only", || other.run(&["run", "-n", "true"]).code == 1);
        owner.send(r#""$S" unlock --log-level debug 2> said; tail -n 1 said"#);
        let said = store.locks.dir().join("said");
        until("it does not try again", || {
            fs::read_to_string(&said).is_ok_and(|said| said.contains("retrying: "))
        });
        read_only(false);
        let (code, said) = owner.answer();
        assert!(code == 0 && said.contains("unlocked `"), "{said}");
    }
}

#[test]
fn a_server_that_wants_tls_gets_it_from_a_client_that_knows_it() {
    let servers = Server::both_with(Options { is_tls: true, ..Options::default() });
    let [postgres, mariadb] = &servers;
    for (server, stranger) in [(postgres, mariadb), (mariadb, postgres)] {
        let store = server.store(LONG);
        let (verify, disable) = match server {
            Server::Postgres(_) => ("?sslmode=verify-full&sslrootcert=", "?sslmode=disable"),
            Server::MariaDb(_) => ("?ssl_mode=VERIFY_IDENTITY&ssl_ca=", "?ssl_mode=DISABLED"),
            _ => unreachable!("it is no database"),
        };
        let at = |options: &str| store.through(&format!("{}{options}", store.url));
        assert_eq!(at(&format!("{verify}{}", server.certificate())).run(&["run", "true"]).code, 0);
        assert_eq!(at("").run(&["run", "true"]).code, 0);
        // What cannot be used in the home directory is left out.
        let home = tempfile::tempdir().expect("a directory");
        let of_client = home.path().join(".postgresql");
        fs::create_dir(&of_client).expect("a directory");
        for name in ["postgresql.crt", "postgresql.key"] {
            fs::copy(server.certificate(), of_client.join(name)).expect("copied");
        }
        let with_home = at("");
        let status = ended(with_home.serializer(&["status"]).env("HOME", home.path()));
        assert_eq!(status.code, 0, "{status:?}");
        for args in [&["lock"][..], &["status"]] {
            is_refused(&at(&format!("{verify}{}", stranger.certificate())), args, "certificate");
            let why =
                if matches!(server, Server::Postgres(_)) { "no encryption" } else { "denied" };
            is_refused(&at(disable), args, why);
        }
        // In the words of any driver.
        let answer = |query: &str| {
            let query = query.replace("/ca.pem", &stranger.certificate());
            answer(&format!("{}?{query}", store.url), None)
        };
        for query in
            ["ssl_mode=required", "sslMode=REQUIRED", "ssl=true", "ssl=require", "requireSSL=true"]
        {
            assert_eq!(answer(query), Ok(()), "{query}");
        }
        for query in [
            "ssl_ca=/ca.pem ssl_mode=REQUIRED&ssl_ca=/ca.pem ssl_mode=VERIFY_CA&ssl_ca=/ca.pem",
            "sslmode=require&sslrootcert=/ca.pem ssl_ca=/ca.pem&ssl_verify_cert=false",
            "sslMode=VERIFY_FULL sslrootcert=system sslmode=verify-ca ssl_verify_cert=true",
            "ssl_verify_identity=true ssl=verify-full ssl_mode=PREFERRED&ssl_verify_identity=true",
            "sslmode=require&sslrootcert=system ssl_mode=VERIFY_IDENTITY&ssl_verify_cert=false",
        ] {
            let is_verified = |query| answer(query).is_err_and(|why| why.contains("certificate"));
            query.split(' ').for_each(|query| assert!(is_verified(query), "{query}"));
        }
        assert_eq!(store.state(), "free");
    }
    servers.iter().for_each(is_told_what_is_wrong_with_a_certificate);
}

#[test]
fn a_socket_is_used_without_tls_if_that_of_the_server_is_too_old() {
    let ciphers = "ECDHE-ECDSA-AES256-SHA384:ECDHE-RSA-AES256-SHA384";
    let settings = [("tls-version", "TLSv1.2"), ("ssl-cipher", ciphers)];
    let settings = Options { is_tls: true, settings: &settings, ..Options::default() };
    let server = servers::MariaDb::start_with(settings);
    let socket = format!("?unix_socket={}", server.dir().join("socket").display());
    assert!(answer(&server.url(), None).is_err_and(|why| why.contains("HandshakeFailure")));
    let connected = answer(&format!("{}{socket}", server.url()), None);
    assert!(connected.as_ref().is_err_and(|why| why.contains("1146")), "{connected:?}");
    let required = format!("{}{socket}&ssl_mode=REQUIRED", server.url());
    assert!(answer(&required, None).is_err_and(|why| why.contains("HandshakeFailure")));
}

/// Curves and extensions of certificates by the authority that is trusted, or by another one of its
/// name, or the name of a file; why they are refused, and what helps.
const CERTIFICATES: [[&str; 4]; 5] = [
    ["secp521r1", "subjectAltName=IP:127.0.0.1", "P-521 cannot", "sslmode=disable"],
    ["prime256v1", "basicConstraints=CA:FALSE", "it has no `subjectAltName`", "sslmode=require"],
    ["version-1.pem", "", "it is of X.509 version 1", "sslmode=disable"],
    ["prime256v1", "subjectAltName=DNS:a.example", "only valid for", "sslmode=require"],
    ["impostor", "subjectAltName=IP:127.0.0.1", "another one of this name", "sslrootcert"],
];

fn is_told_what_is_wrong_with_a_certificate(server: &Server) {
    let (store, authority) = (server.store(LONG), server.certificate());
    let at = store.through(&format!("{}?sslrootcert={authority}", store.url));
    for [curve, extensions, why, hint] in CERTIFICATES {
        let script = if extensions.is_empty() {
            let file = format!("{}/tests/support/{curve}", env!("CARGO_MANIFEST_DIR"));
            format!("cat '{file}' > server.crt; cat '{file}' > server.key")
        } else {
            let is_other = curve == "impostor";
            let (curve, by) =
                if is_other { ("prime256v1", "impostor") } else { (curve, "authority") };
            format!(
                "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj \
                 '/CN=test authority' -keyout impostor.key -out impostor.crt; \
                 openssl req -newkey ec -pkeyopt ec_paramgen_curve:{curve} -nodes -subj \
                 /CN=127.0.0.1 -keyout server.key -out server.csr; echo {extensions} > names; \
                 openssl x509 -req -in server.csr -CA {by}.crt -CAkey {by}.key -days 2 \
                 -extfile names -out server.crt"
            )
        };
        let mut made = Command::new("bash");
        made.args(["-ec", &script]).current_dir(Path::new(&authority).parent().expect("a file"));
        assert_eq!(ended(&mut made).code, 0, "{script}");
        server.sql(match server {
            Server::Postgres(_) => "SELECT pg_reload_conf()",
            _ => "FLUSH SSL",
        });
        until(why, || at.run(&["status"]).stderr.contains(why));
        is_refused(&at, &["status"], hint);
    }
}

#[test]
fn nothing_is_counted_twice_through_a_pool_and_a_waiter_there_gets_the_lock() {
    for size in [1, 3] {
        let pool = PgBouncer::start(shared_postgres(), size);
        let store = Store::at(&pool.url());
        fs::write(store.locks.dir().join("counter"), "0\n").expect("it can be written");
        let round = "read -r n < counter; sleep 0.001; echo $((n + 1)) > counter";
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let ended = store.script(&format!(
                        r#"for i in {{1..20}}; do "$S" run -- sh -c '{round}' || exit; done"#
                    ));
                    assert_eq!(ended.code, 0, "{ended:?}");
                });
            }
        });
        assert_eq!(
            fs::read_to_string(store.locks.dir().join("counter")).expect("it can be read"),
            "160\n"
        );
        let mut owner = store.shell();
        owner.lock();
        let waiter = store.waiter(&["run", "true"]);
        owner.unlock();
        assert_eq!(waiter.end().code, 0);
    }
}

#[test]
fn a_socket_file_at_which_no_process_answers_is_waited_for_no_longer_than_it_was_asked_for() {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    };
    let server = servers::MariaDb::start();
    let file = server.dir().join("socket");
    let store = Store::at(&format!("{}?unix_socket={}", server.url(), file.display()));
    assert_eq!(store.run(&["run", "true"]).code, 0);
    server.pause();
    let address = SocketAddrUnix::new(&file).expect("short");
    let socket = || {
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None)
            .expect("a socket")
    };
    let guests: Vec<_> = std::iter::repeat_with(socket)
        .take_while(|socket| connect(socket, &address).is_ok())
        .collect();
    let waiter = Logged::start(&store, &["lock", "--timeout", "1s"]);
    let (code, said) = waiter.end();
    assert!(
        code == 1 && said.contains("does not answer in time"),
        "{code} {said} {}",
        guests.len()
    );
}

#[test]
fn an_address_that_cannot_be_used_is_wrong_usage() {
    for address in [
        "postgres://db:port/meltano",
        "postgres://db/meltano?sslmode=on",
        "mysql://me@db:port/meltano",
        "mysql://me@db",
        "mysql://me@db,other/meltano",
    ] {
        let store = Store::at(address);
        for args in [
            &["lock", "-n"][..],
            &["run", "true"],
            &["status"],
            &["status", "--all"],
            &["unlock"],
            &["initialize"],
        ] {
            let ended = store.run(args);
            assert!(
                ended.code == 2 && ended.stderr.starts_with("serializer: cannot "),
                "{address} {args:?}: {ended:?}"
            );
        }
    }
}

/// The example of the server's manual for `init_connect`, which applies to all but superusers.
#[test]
fn a_server_that_does_not_commit_by_itself_is_made_to() {
    let server = servers::MariaDb::start();
    server.sql("SET GLOBAL init_connect = 'SET autocommit = 0'");
    let store = stores::Store::at(&server.url());
    let mut owner = store.shell();
    owner.lock();
    assert_eq!(store.run(&["lock", "-n"]).code, 75);
    owner.unlock();
    assert_eq!(store.state(), "free");
}
