//! The networks that other tests use break as they are told, and other hosts are other hosts.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::hosts::Host;
use crate::support::proxy::Proxy;
use crate::support::servers::{mariadb_at, psql_at, shared_mariadb, shared_postgres, url_at};
use crate::support::session::{Session, session_at};
use crate::support::{Ended, ended, until};

/// The same in a host.
fn in_host(host: &Host, client: &Command) -> Command {
    let mut command = host.command(client.get_program().to_str().expect("UTF-8"));
    command.args(client.get_args());
    command
}

fn count(table: &str) -> String {
    shared_postgres().psql(&format!("SELECT count(*) FROM {table}")).trim().to_owned()
}

/// A table that the user may fill, and a statement that does.
fn table(name: &str) -> String {
    shared_postgres()
        .psql(&format!("CREATE TABLE {name} (one int); ALTER TABLE {name} OWNER TO meltano"));
    format!("INSERT INTO {name} VALUES (1)")
}

fn at(proxy: &Proxy, sql: &str) -> Ended {
    ended(&mut psql_at(&url_at(proxy.addr()), sql))
}

#[test]
fn a_proxy_that_swallows_an_answer_lets_the_statement_happen() {
    let proxy = Proxy::to(shared_postgres().address());
    let insert = table("swallowed");
    proxy.swallow_answer_then_cut(b"INSERT INTO swallowed");
    let answer = at(&proxy, &insert);
    proxy.wait_until_hit();
    assert_ne!(answer.code, 0, "{answer:?}");
    assert_eq!(count("swallowed"), "1");
    assert_eq!(at(&proxy, &insert).code, 0);

    let (mariadb, insert) = (shared_mariadb(), "INSERT INTO swallowed VALUES (1)");
    mariadb.sql("CREATE TABLE swallowed (one int)");
    let proxy = Proxy::to(mariadb.address());
    proxy.swallow_answer_then_cut(b"INSERT");
    assert_ne!(ended(&mut mariadb_at(proxy.addr(), insert)).code, 0);
    proxy.wait_until_hit();
    assert_eq!(mariadb.sql("SELECT count(*) FROM swallowed"), "1\n");
    assert_eq!(ended(&mut mariadb_at(proxy.addr(), insert)).code, 0);
}

#[test]
fn a_proxy_that_cuts_before_a_statement_keeps_it_from_happening() {
    let proxy = Proxy::to(shared_postgres().address());
    let insert = table("before");
    let mut other = Session::start(session_at(&url_at(proxy.addr())));
    proxy.cut_before(b"INSERT");
    let answer = at(&proxy, &insert);
    proxy.wait_until_hit();
    assert_ne!(answer.code, 0, "{answer:?}");
    assert_eq!(count("before"), "0");
    other.send("SELECT 'untouched'");
    assert_eq!(other.answer(), "untouched\n");
    assert_eq!(at(&proxy, &insert).code, 0);
    assert_eq!((count("before").as_str(), proxy.accepted()), ("1", 3));
}

#[test]
fn a_marker_is_found_wherever_it_is_split() {
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let proxy = Proxy::to(server.local_addr().expect("an address"));
    let mut client = TcpStream::connect(proxy.addr()).expect("it accepts");
    let (mut served, _) = server.accept().expect("it connects");
    proxy.cut_before(b"marker");
    let mut buffer = [0; 4];
    client.write_all(b"-mar").expect("it takes it");
    served.read_exact(&mut buffer).expect("it arrives");
    assert_eq!(&buffer, b"-mar");
    client.write_all(b"ker-").expect("it takes it");
    proxy.wait_until_hit();
    assert_eq!(
        served.read(&mut buffer).map_err(|error| error.kind()),
        Err(std::io::ErrorKind::ConnectionReset)
    );
    assert_eq!(
        client.read(&mut buffer).map_err(|error| error.kind()),
        Err(std::io::ErrorKind::ConnectionReset)
    );
    assert_eq!(proxy.client_bytes(), 8);
}

#[test]
fn a_proxy_that_is_cut_resets_connections_and_refuses_new_ones_until_it_is_mended() {
    let proxy = Proxy::to(shared_postgres().address());
    let mut session = Session::start(session_at(&url_at(proxy.addr())));
    proxy.cut();
    session.send("SELECT 'too late'");
    assert_eq!((session.answer().as_str(), session.code()), ("", Some(2)));
    let refused = at(&proxy, "SELECT 1");
    assert!(refused.stderr.contains("Connection refused"), "{refused:?}");
    proxy.cut();
    let address = proxy.addr();
    proxy.mend();
    assert_eq!(proxy.addr(), address);
    assert_eq!(at(&proxy, "SELECT 1").stdout, "1\n");
}

#[test]
fn a_proxy_that_swallows_answers_leaves_the_client_waiting() {
    let proxy = Proxy::to(shared_postgres().address());
    let insert = table("unanswered");
    let mut session = Session::start(session_at(&url_at(proxy.addr())));
    proxy.swallow_answers();
    session.send(&insert);
    session.send("SELECT 'answered'");
    until("the statement does not arrive", || count("unanswered") == "1");
    assert_eq!(session.child.try_wait().expect("it can be asked"), None);
    proxy.mend();
    assert_eq!((session.answer().as_str(), session.code()), ("", Some(2)));
    assert_eq!(at(&proxy, "SELECT 1").stdout, "1\n");
}

#[test]
fn nothing_comes_out_of_a_black_hole_before_it_is_mended() {
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    server.set_nonblocking(true).expect("it can be asked");
    let proxy = Proxy::to(server.local_addr().expect("an address"));
    proxy.black_hole();
    let mut client = TcpStream::connect(proxy.addr()).expect("it accepts");
    client.write_all(b"x").expect("it takes it");
    until("it is not accepted", || proxy.accepted() == 1);
    assert_eq!(
        server.accept().map(|_| ()).map_err(|error| error.kind()),
        Err(std::io::ErrorKind::WouldBlock)
    );
    assert_eq!(proxy.client_bytes(), 0);
    server.set_nonblocking(false).expect("it can be asked");
    proxy.mend();
    let (mut served, _) = server.accept().expect("it connects");
    let mut buffer = [0; 1];
    served.read_exact(&mut buffer).expect("it arrives");
    // And back, late: no sooner than it was told, twice.
    let delay = Duration::from_millis(50);
    proxy.delay(delay);
    let begun = Instant::now();
    client.write_all(b"y").expect("it takes it");
    served.read_exact(&mut buffer).expect("it arrives");
    served.write_all(&buffer).expect("it takes it");
    drop(served);
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("it arrives, and ends");
    assert_eq!(answer, "y");
    assert!(begun.elapsed() >= delay * 2);
}

#[test]
fn hosts_differ_in_what_tells_hosts_apart_and_reach_the_servers() {
    let hosts = [Host::new("one"), Host::new("two")];
    let script = "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id; readlink \
                  /proc/self/ns/pid /proc/self/ns/net";
    let here = ended(Command::new("bash").args(["-c", script])).stdout;
    let there =
        hosts.each_ref().map(|host| ended(host.command("bash").args(["-c", script])).stdout);
    assert_eq!((there[0].lines().next(), there[1].lines().next()), (Some("one"), Some("two")));
    for line in 0..5 {
        let line =
            [&here, &there[0], &there[1]].map(|told| told.lines().nth(line).expect("five lines"));
        assert!(line[0] != line[1] && line[0] != line[2] && line[1] != line[2], "{line:?}");
    }
    let url = url_at(hosts[0].address_of_server(shared_postgres().port()));
    let answer = ended(&mut in_host(&hosts[0], &psql_at(&url, "SELECT 'reached'")));
    assert_eq!(answer.stdout, "reached\n", "{answer:?}");
    let client =
        mariadb_at(hosts[1].address_of_server(shared_mariadb().port()), "SELECT 'reached'");
    assert_eq!(ended(&mut in_host(&hosts[1], &client)).stdout, "reached\n");
    // It is a network of its own.
    let direct = ended(&mut in_host(&hosts[1], &psql_at(&shared_postgres().url(), "SELECT 1")));
    assert!(direct.stderr.contains("Connection refused"), "{direct:?}");
}

#[test]
fn a_host_with_a_pulled_cable_reaches_no_process_and_goes_on_when_it_is_back() {
    let host = Host::new("cut-off");
    let url = url_at(host.address_of_server(shared_postgres().port()));
    let mut session = Session::start(in_host(&host, &session_at(&url)));
    host.link_down();
    session.send("SELECT 'late'");
    let mut client = in_host(&host, &psql_at(&url, "SELECT 1"));
    let unreachable = ended(client.env("PGCONNECT_TIMEOUT", "2"));
    assert!(unreachable.stderr.contains("timeout expired"), "{unreachable:?}");
    host.link_up();
    assert_eq!(session.answer(), "late\n");
    assert_eq!(ended(&mut client).stdout, "1\n");
}

#[test]
fn no_process_hears_of_a_host_that_has_lost_its_power() {
    let host = Host::new("powerless");
    let url = url_at(host.address_of_server(shared_postgres().port()));
    let mut session =
        Session::start(in_host(&host, &session_at(&format!("{url}?application_name=powerless"))));
    host.lose_power();
    assert_eq!((session.answer().as_str(), session.code()), ("", None));
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'powerless'";
    assert_eq!(shared_postgres().psql(sessions), "1\n");
}

#[test]
fn what_is_killed_in_a_host_is_the_program() {
    let host = Host::new("crowded");
    let mut child = host.command("sleep").arg("1000000").spawn().expect("it starts");
    let running = || ended(host.command("pgrep").args(["-x", "sleep"])).code;
    until("it does not start", || running() == 0);
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    until("it does not end", || running() == 1);
}
