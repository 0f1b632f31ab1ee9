use std::path::PathBuf;
use std::time::Duration;

use super::{Options, TlsMode, server_settings};
use crate::backend::failure::Failure;
use crate::store::{StoreSettings, StoreUrl};

fn read(address: &str, file: Option<PathBuf>, variables: &[(&str, &str)]) -> Result<Options, Failure> {
    let url = StoreUrl::parse(address).expect(address);
    let settings = StoreSettings { url, password_file: file, timeout: Duration::from_secs(5) };
    let variable = |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
    Options::read(&settings, &variable)
}

fn options(address: &str) -> Result<Options, Failure> {
    read(address, None, &[("USER", "me")])
}

fn places(options: &Options) -> Vec<(&str, u16)> {
    options.servers.iter().map(|server| (server.host.as_str(), server.port)).collect()
}

#[test]
fn servers_are_named_in_all_usual_ways() {
    let usual = "/var/run/postgresql";
    for (address, expected) in [
        ("postgres://", vec![(usual, 5431)]),
        ("postgres:///db", vec![(usual, 5431)]),
        ("postgres://u:p@/db", vec![(usual, 5431)]),
        ("postgres://u@:99/db", vec![(usual, 99)]),
        ("postgresql+psycopg2://h/db", vec![("h", 5431)]),
        ("postgres://h:1/db", vec![("h", 1)]),
        ("postgres://a:1,b:2,c/db", vec![("a", 1), ("b", 2), ("c", 5432)]),
        ("postgres://[::1]:7/db", vec![("::1", 7)]),
        ("postgres://[fe80::1]/db", vec![("fe80::1", 5431)]),
        ("postgres://[::1]:7,h:8/db", vec![("::1", 7), ("h", 8)]),
        ("postgres://%2Frun%2Fpg:99/db", vec![("/run/pg", 99)]),
        ("postgres:///db?host=/run/pg", vec![("/run/pg", 5431)]),
        ("postgres://u:p@h:99/db?host=/run/pg", vec![("/run/pg", 99)]),
        ("postgres://u:p@/db?host=/run/pg&port=9", vec![("/run/pg", 9)]),
        ("postgres:///db?host=a,b&port=1,2", vec![("a", 1), ("b", 2)]),
        ("postgres:///db?host=a:1&host=b:2", vec![("a", 1), ("b", 2)]),
        ("postgres:///db?host=a,b&port=7", vec![("a", 7), ("b", 7)]),
    ] {
        // A port without a server of this machine.
        let options = read(address, None, &[("USER", "me"), ("PGPORT", "5431")]);
        let options = options.unwrap_or_else(|failure| panic!("{address}: {}", failure.why));
        assert_eq!(places(&options), expected, "{address}");
    }
    let variables = [("PGHOST", "e,f"), ("PGPORT", "9"), ("PGUSER", "eu")];
    let options = read("postgres:///db", None, &variables).expect("options");
    assert_eq!((places(&options), options.user.as_str()), (vec![("e", 9), ("f", 9)], "eu"));
    assert_eq!(places(&read("postgres://h:1", None, &variables).expect("options")), [("h", 1)]);
}

#[test]
fn users_databases_and_passwords_are_read_as_they_stand_and_encoded() {
    for (address, user, password, database) in [
        ("postgres://u:p@h/db", "u", Some("p"), "db"),
        ("postgres://u@h", "u", None, "u"),
        ("postgres://u:@h/db", "u", None, "db"),
        ("postgres://u%40x:p%2Fq%3A%25@h/d%20b", "u@x", Some("p/q:%"), "d b"),
        ("postgres://u:p@q/r?s#t@h/db", "u", Some("p@q/r?s#t"), "db"),
        ("postgres://u:100%@h/db", "u", Some("100%"), "db"),
        ("postgres://h/db?user=u&password=p%26@q", "u", Some("p&@q"), "db"),
        ("postgres://h/?dbname=db&user=u", "u", None, "db"),
    ] {
        let options = options(address).unwrap_or_else(|failure| panic!("{address}: {}", failure.why));
        let found = (options.user.as_str(), options.password.as_deref(), options.database.as_str());
        assert_eq!(found, (user, password, database), "{address}");
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "  in the file \r\nnot this\n").expect("it can be written");
    let password = |address: &str| read(address, Some(file.path().to_owned()), &[]).expect(address).password;
    assert_eq!(password("postgres://u@h/db").as_deref(), Some("  in the file "));
    assert_eq!(password("postgres://u:p@h/db").as_deref(), Some("p"));
}

#[test]
fn options_of_drivers_are_used_or_change_nothing() {
    let address = "postgresql+asyncpg://h/db?prepared_statement_cache_size=0&client_encoding=utf8&gssencmode=disable\
                   &channel_binding=prefer&keepalives=0&keepalives_idle=7&connect_timeout=2&application_name=etl\
                   &options=-csearch_path%3Dx&target_session_attrs=read-write&pool_size=3&=&async_fallback=true";
    let options = options(address).unwrap_or_else(|failure| panic!("{}", failure.why));
    assert_eq!(options.connect_timeout, Duration::from_secs(2));
    assert_eq!(options.label.as_deref(), Some("etl"));
    assert_eq!(options.settings, [("search_path".to_owned(), "x".to_owned())]);
    assert!(options.wants_writable);
    let settings = server_settings(r"-c a=b\ c  --d=e").ok();
    assert_eq!(settings, Some(vec![("a".to_owned(), "b c".to_owned()), ("d".to_owned(), "e".to_owned())]));
}

#[test]
fn how_much_is_encrypted_follows_libpq() {
    let root = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(root.path(), include_str!("../../../tests/support/root.crt")).expect("it can be written");
    let path = root.path().to_str().expect("UTF-8");
    for (query, expected) in [
        ("", (TlsMode::Prefer, false)),
        ("sslmode=disable", (TlsMode::Disable, false)),
        ("sslmode=allow", (TlsMode::Allow, false)),
        ("sslmode=require", (TlsMode::Require, false)),
        ("sslMode=VERIFY_FULL", (TlsMode::VerifyFull, false)),
        ("ssl=true", (TlsMode::Require, false)),
        ("ssl=verify-full", (TlsMode::VerifyFull, false)),
        ("requiressl=1", (TlsMode::Require, false)),
        (&format!("sslmode=require&sslrootcert={path}"), (TlsMode::VerifyCa, true)),
        (&format!("sslmode=verify-full&sslrootcert={path}"), (TlsMode::VerifyFull, true)),
        ("sslrootcert=system", (TlsMode::VerifyFull, false)),
    ] {
        let options = options(&format!("postgres://h/db?{query}")).unwrap_or_else(|failure| panic!("{query}: {}", failure.why));
        assert_eq!((options.tls.mode, options.tls.roots.is_some()), expected, "{query}");
    }
}

#[test]
fn what_would_be_less_secure_than_it_was_meant_is_refused_by_name() {
    for (query, name) in [
        ("sslmode=required", "sslmode"),
        ("sslmode=disable&ssl=true", "ssl"),
        ("sslmode=require&sslmode=disable", "sslmode"),
        ("sslmode=verify-ca", "sslmode"),
        ("sslmode=require&sslrootcert=system", "sslrootcert"),
        ("sslmode=verify-full&sslrootcert=/nonexistent/ca.crt", "/nonexistent/ca.crt"),
        ("sslcert=/nonexistent/own.crt&sslkey=/k", "/nonexistent/own.crt"),
        ("sslnegotiation=direct", "sslnegotiation"),
        ("channel_binding=require", "channel_binding"),
        ("require_auth=scram-sha-256", "require_auth"),
        ("requirepeer=postgres", "requirepeer"),
        ("sslcrl=/r.crl", "sslcrl"),
        ("sslpassword=x", "sslpassword"),
        ("sslcertmode=require", "sslcertmode"),
        ("gssencmode=require", "gssencmode"),
        ("ssl_min_protocol_version=TLSv1.3", "ssl_min_protocol_version"),
        ("use_ssl=true", "use_ssl"),
        ("sslmod=verify-full", "sslmod"),
        ("service=mine", "service"),
        ("hostaddr=10.0.0.1", "hostaddr"),
        ("passfile=/p", "passfile"),
        ("target_session_attrs=standby", "target_session_attrs"),
        ("options=-E", "options"),
    ] {
        let failure = options(&format!("postgres://h/db?{query}")).err().unwrap_or_else(|| panic!("{query}"));
        assert!(failure.why.contains(name), "{query}: {}", failure.why);
    }
    for (variable, name) in [("PGHOSTADDR", "hostaddr"), ("PGSERVICE", "service"), ("PGREQUIREAUTH", "require_auth")] {
        let failure = read("postgres://u@h/db", None, &[(variable, "x")]).err().expect(variable);
        assert!(failure.why.contains(name), "{}", failure.why);
    }
}

#[test]
fn what_cannot_be_used_is_said_without_repeating_it() {
    for address in [
        "postgres://u:hunter2/h",
        "postgres://u@h:hunter2/db",
        "postgres://h/db?port=hunter2",
        "postgres://h/db?connect_timeout=hunter2",
        "postgres://h/db?sslmode=hunter2",
        "postgres://h/db?service=hunter2",
        "postgres://h/db?hostaddr=hunter2",
        "postgres://h/db?options=hunter2",
        "postgres://u:%ff@h/db",
        "postgres://u:x?hunter2=y@h/db",
        "postgres://h:1,i:2/db?port=1,2,3",
    ] {
        let failure = options(address).err().unwrap_or_else(|| panic!("{address}"));
        assert!(!failure.why.contains("hunter2"), "{}", failure.why);
        assert!(!failure.hint.unwrap_or_default().contains("hunter2"), "{address}");
    }
}
