use std::path::{Path, PathBuf};
use std::time::Duration;

use super::address::TlsMode;
use super::{Address, Engine};
use crate::store::address::{StoreSettings, StoreUrl};
use crate::store::failure::Failure;
use crate::store::mysql::MySql;
use crate::store::postgres::Postgres;

fn read(url: &str, file: Option<&Path>, variables: &[(&str, &str)]) -> Result<Address, Failure> {
    let settings = StoreSettings {
        url: StoreUrl::parse(url).expect(url),
        password_file: file.map(PathBuf::from),
        timeout: Duration::from_secs(5),
    };
    let variable = |name: &str| {
        variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
    };
    if !url.starts_with("mysql") {
        return Address::read::<Postgres>(&settings, &variable);
    }
    let address = Address::read::<MySql>(&settings, &variable)?;
    MySql::new(&address).map(|_| address)
}

#[test]
fn servers_are_named_in_all_usual_ways() {
    let usual = "/var/run/postgresql";
    // A port without a server of this machine.
    let variables = [("USER", "me"), ("PGPORT", "5431")];
    for (url, expected) in [
        ("postgres://", vec![(usual, 5431)]),
        ("postgres:///db", vec![(usual, 5431)]),
        ("postgres://u@:99/db", vec![(usual, 99)]),
        ("postgresql+psycopg2://h/db", vec![("h", 5431)]),
        ("postgres://a:1,b:2,c/db", vec![("a", 1), ("b", 2), ("c", 5432)]),
        ("postgres://[::1]:7,[fe80::1]:8/db", vec![("::1", 7), ("fe80::1", 8)]),
        ("postgres://%2Frun%2Fpg:99/db", vec![("/run/pg", 99)]),
        ("postgres://u:p@h:99/db?host=/run/pg", vec![("/run/pg", 99)]),
        ("postgres:///db?host=a,b&port=1,2", vec![("a", 1), ("b", 2)]),
        ("postgres:///db?host=a:1&host=b:2", vec![("a", 1), ("b", 2)]),
        ("postgres:///db?host=a,b&port=7", vec![("a", 7), ("b", 7)]),
        ("mysql+pymysql://me@db:3307/meta", vec![("db", 3307)]),
        ("mysql://me@/meta", vec![("localhost", 3306)]),
        ("mysql://me@/meta?host=db&port=7", vec![("db", 7)]),
        ("mysql://me@[::1]/meta", vec![("::1", 3306)]),
        ("mysql://me@db/meta?unix_socket=/run/a@b.sock", vec![("/run/a@b.sock", 3306)]),
    ] {
        let address =
            read(url, None, &variables).unwrap_or_else(|failure| panic!("{url}: {}", failure.why));
        let servers: Vec<_> =
            address.servers.iter().map(|(host, port)| (host.as_str(), *port)).collect();
        assert_eq!(servers, expected, "{url}");
    }
    // Files are not looked at without TLS.
    let plain = [("PGSSLMODE", "disable"), ("PGSSLROOTCERT", "/nonexistent")];
    let variables = [("PGHOST", "e,f"), ("PGPORT", "9"), ("PGUSER", "eu")];
    let address =
        read("postgres:///db", None, &[&variables[..], &plain].concat()).expect("an address");
    assert_eq!(
        (address.servers, address.user.as_str()),
        (vec![("e".to_owned(), 9), ("f".to_owned(), 9)], "eu")
    );
}

#[test]
fn users_databases_and_passwords_are_read_as_they_stand_and_encoded() {
    for (url, user, password, database) in [
        ("postgres://u:p@h/db", "u", Some("p"), Some("db")),
        ("postgres://h", "me", None, None),
        ("postgres://u:@h/db", "u", None, Some("db")),
        ("postgres://u%40x:p%2Fq%3A%25@h/d%20b", "u@x", Some("p/q:%"), Some("d b")),
        ("postgres://u:p@q/r:s#t+100%@h/d+b", "u", Some("p@q/r:s#t+100%"), Some("d+b")),
        ("mysql://u:x?y@h/db", "u", Some("x?y"), Some("db")),
        ("mysql://me@corp:p@ss#a%@h/db?charset=a@b", "me@corp", Some("p@ss#a%"), Some("db")),
        ("postgres://h/db?user=u&password=p%26@q+", "u", Some("p&@q+"), Some("db")),
        ("mysql://h/?database=db&user=u", "u", None, Some("db")),
    ] {
        let address = read(url, None, &[("USER", "me")])
            .unwrap_or_else(|failure| panic!("{url}: {}", failure.why));
        let found = (address.user.as_str(), address.password.as_deref(), address.database);
        assert_eq!(found, (user, password, database.map(str::to_owned)), "{url}");
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "  in the file \r\nnot this\n").expect("it can be written");
    for (url, password) in [("mysql://u@h/db", "  in the file "), ("postgres://u:p@h/db", "p")] {
        assert_eq!(
            read(url, Some(file.path()), &[]).expect(url).password.as_deref(),
            Some(password)
        );
    }
    let unreadable = read("mysql://u@h/db", Some(Path::new("/nonexistent")), &[]);
    assert!(unreadable.is_err_and(|failure| failure.why.contains("`/nonexistent`")));
}

#[test]
fn encryption_and_verification_are_asked_for_in_the_words_of_any_driver() {
    use TlsMode::{Disable, Prefer, Require, Verify};
    // A file that can be used.
    let root = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(root.path(), include_str!("../../../tests/support/root.crt")).expect("written");
    for (expected, queries) in [
        (Prefer, "charset=utf8mb4&pool_size=3 sslmode=allow requiressl=0 tls=preferred"),
        (Disable, "ssl_disabled=true ssl-mode=DISABLED useSSL=false tls=false sslmode=disable"),
        (Require, "ssl_mode=required sslMode=REQUIRED sslMode=trust ssl=true ssl=require"),
        (Require, "useSSL=true requireSSL=true require_ssl=true tls=skip-verify requiressl=1"),
        (Verify, "ssl_ca=/ca.pem ssl_mode=REQUIRED&ssl_ca=/ca.pem sslMode=VERIFY_FULL"),
        (Verify, "ssl_ca=/ca.pem&verifyServerCertificate=true ssl_mode=VERIFY_CA&ssl_ca=/ca.pem"),
        (Verify, "sslmode=require&sslrootcert=/ca.pem sslrootcert=system sslmode=verify-ca"),
        (Verify, "ssl_verify_cert=true tls=true verify_identity=true ssl=verify-full"),
        (Verify, "ssl_mode=PREFERRED&ssl_verify_identity=true sslmode=require&sslrootcert=system"),
        (Verify, "ssl_mode=VERIFY_IDENTITY&ssl_verify_cert=false"),
    ] {
        for query in queries.split(' ') {
            let query = query.replace("/ca.pem", &root.path().display().to_string());
            let read = read(&format!("mysql://me@db/meta?{query}"), None, &[]);
            assert!(read.is_ok_and(|address| address.tls.mode == expected), "{query}");
        }
    }
}
