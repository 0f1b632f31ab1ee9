//! `serializer doctor` with a server: its version and clock, or the reason of a failure.

use serde_json::Value;

use crate::support::servers::{shared_mariadb, shared_postgres};
use crate::support::stores::Store;

/// The exit code, and the check's state, value and hint.
fn examined(store: &Store, what: &str) -> (i32, String) {
    let ended = store.run(&["doctor", "--json"]);
    assert!(!ended.stdout.contains("hunter2"), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("checks");
    let found = checks.iter().find(|check| check["what"] == what);
    let found = found.unwrap_or_else(|| panic!("{what}: {report:#}"));
    (ended.code, format!("{} {} → {}", found["state"], found["value"], found["hint"]))
}

#[test]
fn a_server_is_shown_with_its_version_and_clock() {
    for (url, name) in
        [(shared_postgres().url(), "PostgreSQL 1"), (shared_mariadb().url(), "-MariaDB")]
    {
        let store = Store::at(&url);
        assert_eq!(store.run(&["initialize"]).code, 0);
        let (code, server) = examined(&store, "server");
        assert!(code == 0 && server.starts_with("\"ok\" ") && server.contains(name), "{server}");
        let (_, clock) = examined(&store, "clock");
        assert!(clock.starts_with("\"ok\" ") && clock.contains(" ms from this host's"), "{clock}");
        assert!(examined(&store, "why").1.contains("store: `SERIALIZER_STORE`"));
    }
}

#[test]
fn doctor_does_not_create_a_missing_table() {
    let postgres = shared_postgres();
    postgres.psql("CREATE SCHEMA doctor");
    let store = Store::at(&(postgres.url() + "?options=-csearch_path%3Ddoctor"));
    let (code, table) = examined(&store, "table");
    assert!(code == 0 && table.starts_with("\"warning\" "), "{table}");
    assert_eq!(postgres.psql("SELECT to_regclass('doctor.serializer_locks') IS NULL").trim(), "t");
}

#[test]
fn an_unusable_server_is_an_error_with_advice() {
    let url = shared_postgres().url();
    let port = url.rsplit_once(':').expect("a port").1;
    let database = port.split_once('/').expect("a database").1;
    for (url, why) in [
        (url.replace("hunter2", "hunter3"), "28P01"),
        (format!("postgres://me:hunter2@127.0.0.1:1/{database}"), "connection refused"),
    ] {
        let (code, server) = examined(&Store::at(&url), "server");
        assert!(code == 1 && server.starts_with("\"error\" ") && server.contains(why), "{server}");
        assert!(!server.ends_with("null"), "{server}");
    }
}
