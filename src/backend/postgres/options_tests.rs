use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::config::ChannelBinding;

use super::{Host, Options, Roots, SslMode, Surroundings};
use crate::backend::remote::Failure;
use crate::store::{StoreSettings, StoreUrl};

fn settings(address: &str) -> StoreSettings {
    let url = StoreUrl::parse(address).expect(address);
    StoreSettings { url, password_file: None, timeout: Duration::from_secs(5) }
}

fn around(variables: &[(&str, &str)], home: Option<&std::path::Path>) -> Surroundings {
    let variables: HashMap<_, _> = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let variable = Box::new(move |name: &str| variables.get(name).cloned());
    Surroundings { variable, home: home.map(PathBuf::from), user: Some("me".to_owned()), label: "etl".to_owned() }
}

fn options(address: &str) -> Result<Options, Failure> {
    Options::new(&settings(address), &around(&[], None))
}

fn places(options: &Options) -> Vec<(String, u16)> {
    let name = |host: &Host| match host {
        Host::Name(name) => name.clone(),
        Host::Directories(paths) => paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" "),
    };
    options.targets.iter().map(|target| (name(&target.host), target.port)).collect()
}

#[test]
fn servers_are_named_in_all_ways_that_are_usual() {
    let usual = "/var/run/postgresql /tmp";
    for (address, expected) in [
        ("postgres://", vec![(usual, 5432)]),
        ("postgres:///db", vec![(usual, 5432)]),
        ("postgres://u:p@/db", vec![(usual, 5432)]),
        ("postgres://u@:99/db", vec![(usual, 99)]),
        ("postgresql+psycopg2://h/db", vec![("h", 5432)]),
        ("postgres://h:1/db", vec![("h", 1)]),
        ("postgres://a:1,b:2,c/db", vec![("a", 1), ("b", 2), ("c", 5432)]),
        ("postgres://[::1]:7/db", vec![("::1", 7)]),
        ("postgres://[fe80::1]/db", vec![("fe80::1", 5432)]),
        ("postgres://[::1]:7,h:8/db", vec![("::1", 7), ("h", 8)]),
        ("postgres://%2Frun%2Fpg:99/db", vec![("/run/pg", 99)]),
        ("postgres:///db?host=/run/pg", vec![("/run/pg", 5432)]),
        ("postgres://u:p@h:99/db?host=/run/pg", vec![("/run/pg", 99)]),
        ("postgres://u:p@/db?host=/run/pg&port=9", vec![("/run/pg", 9)]),
        ("postgres:///db?host=a,b&port=1,2", vec![("a", 1), ("b", 2)]),
        ("postgres:///db?host=a:1&host=b:2", vec![("a", 1), ("b", 2)]),
        ("postgres:///db?host=a,b&port=7", vec![("a", 7), ("b", 7)]),
        ("postgres:///db?hostaddr=10.0.0.1", vec![("10.0.0.1", 5432)]),
        ("postgres://h/db?hostaddr=10.0.0.1", vec![("h", 5432)]),
    ] {
        let options = options(address).unwrap_or_else(|failure| panic!("{address}: {}", failure.why));
        let expected: Vec<_> = expected.into_iter().map(|(host, port)| (host.to_owned(), port)).collect();
        assert_eq!(places(&options), expected, "{address}");
    }
}

#[test]
fn users_databases_and_passwords_are_read_as_they_stand_and_encoded() {
    for (address, user, password, database) in [
        ("postgres://u:p@h/db", "u", Some("p"), "db"),
        ("postgres://u@h", "u", None, "u"),
        ("postgres://h", "me", None, "me"),
        ("postgres://u:@h/db", "u", None, "db"),
        ("postgres://u%40x:p%2Fq%3A%25@h/d%20b", "u@x", Some("p/q:%"), "d b"),
        ("postgres://u:p:q@h/db", "u", Some("p:q"), "db"),
        ("postgres://u:p@q/r?s#t@h/db", "u", Some("p@q/r?s#t"), "db"),
        ("postgres://u:100%@h/db", "u", Some("100%"), "db"),
        ("postgres://u:p@h/db?sslmode=disable", "u", Some("p"), "db"),
        ("postgres://h/db?user=u&password=p%26@q", "u", Some("p&@q"), "db"),
        ("postgres://h/?dbname=db&user=u", "u", None, "db"),
    ] {
        let options = options(address).unwrap_or_else(|failure| panic!("{address}: {}", failure.why));
        let found = (options.user.as_str(), options.targets[0].password.as_deref(), options.database.as_str());
        assert_eq!(found, (user, password, database), "{address}");
    }
}

#[test]
fn options_of_drivers_do_not_disturb() {
    let address = "postgresql+asyncpg://h/db?prepared_statement_cache_size=0&client_encoding=utf8&gssencmode=disable\
                   &channel_binding=require&keepalives=0&keepalives_idle=7&connect_timeout=2&application_name=etl\
                   &options=-csearch_path%3Dx&target_session_attrs=read-write&pool_size=3&flag&=&async_fallback=true";
    let options = options(address).unwrap_or_else(|failure| panic!("{}", failure.why));
    assert_eq!(options.connect_timeout, Duration::from_secs(2));
    assert_eq!(options.answer_timeout, Duration::from_secs(5));
    assert_eq!(options.application_name, "etl");
    assert_eq!(options.server_options.as_deref(), Some("-csearch_path=x"));
    assert_eq!(options.channel_binding, ChannelBinding::Require);
    assert_eq!(options.keepalive, None);
    assert!(options.is_to_be_writable);
}

#[test]
fn how_much_is_encrypted_follows_libpq() {
    let mode = |address: &str| options(address).map(|options| (options.ssl.mode, options.ssl.roots));
    let file = || Some(Roots::File("/r.crt".into()));
    for (address, expected) in [
        ("postgres://h/db", (SslMode::Prefer, None)),
        ("postgres://h/db?sslmode=disable", (SslMode::Disable, None)),
        ("postgres://h/db?sslmode=allow", (SslMode::Allow, None)),
        ("postgres://h/db?sslmode=require", (SslMode::Require, None)),
        ("postgres://h/db?ssl=true", (SslMode::Require, None)),
        ("postgres://h/db?sslmode=require&sslrootcert=/r.crt", (SslMode::VerifyCa, file())),
        ("postgres://h/db?sslmode=verify-full&sslrootcert=/r.crt", (SslMode::VerifyFull, file())),
        ("postgres://h/db?sslrootcert=system", (SslMode::VerifyFull, Some(Roots::System))),
    ] {
        assert_eq!(mode(address).ok(), Some(expected), "{address}");
    }
    for address in [
        "postgres://h/db?sslmode=required",
        "postgres://h/db?sslmode=require&sslrootcert=system",
        "postgres://h/db?sslnegotiation=direct",
        "postgres://h/db?channel_binding=requre",
        "postgres://h/db?require_auth=scram-sha-256",
        "postgres://h/db?sslcrl=/r.crl",
        "postgres://h/db?gssencmode=require",
        "postgres://h/db?ssl_min_protocol_version=TLSv1.3",
    ] {
        assert!(mode(address).is_err(), "{address}");
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
        "postgres://u:%ff@h/db",
        "postgres://h:1,i:2/db?port=1,2,3",
    ] {
        let failure = options(address).err().unwrap_or_else(|| panic!("{address}"));
        assert!(!failure.why.contains("hunter2"), "{}", failure.why);
        assert!(!failure.hint.unwrap_or_default().contains("hunter2"), "{address}");
    }
}

#[test]
fn what_the_address_leaves_out_comes_from_a_file_a_service_the_environment_and_the_password_file_in_this_order() {
    let home = tempfile::tempdir().expect("tempdir");
    let write = |name: &str, text: &str, mode: u32| {
        let path = home.path().join(name);
        fs::write(&path, text).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        path
    };
    write(".pg_service.conf", "# x\n[other]\nhost=o\n\n[mine]\nhost = s\nport=7\nuser=service\ndbname=sd\n[z]\nhost=z\n", 0o644);
    write(".pgpass", "#c\nx:*:*:*:wrong\ns:7:sd:*:from\\:pgp\\\\ass:x\n*:*:*:*:any\n", 0o600);
    let password = |address: &str, variables: &[(&str, &str)], file: Option<PathBuf>| {
        let settings = StoreSettings { password_file: file, ..settings(address) };
        let options = Options::new(&settings, &around(variables, Some(home.path())));
        let mut options = options.unwrap_or_else(|failure| panic!("{address}: {}", failure.why));
        (places(&options).remove(0), options.user.clone(), options.targets.remove(0).password)
    };
    let place = |host: &str, port| (host.to_owned(), port);
    let some = |text: &str| Some(text.to_owned());
    let file = || Some(write("secret", "  in the file \r\nnot this\n", 0o600));
    let pgpassword = ("PGPASSWORD", "variable");
    assert_eq!(password("postgres://u:p@h/db", &[pgpassword], file()), (place("h", 5432), "u".into(), some("p")));
    assert_eq!(password("postgres://u@h/db", &[pgpassword], file()).2, some("  in the file "));
    assert_eq!(password("postgres://u@h/db", &[pgpassword], None).2, some("variable"));
    assert_eq!(password("postgres://u@h/db", &[], None).2, some("any"));
    let service = (place("s", 7), "service".to_owned(), some("from:pgp\\ass:x"));
    assert_eq!(password("postgres://?service=mine", &[("PGHOST", "e")], None), service);
    assert_eq!(password("postgres://", &[("PGSERVICE", "mine"), ("PGUSER", "e")], None), service);
    let found = password("postgres://", &[("PGHOST", "e"), ("PGPORT", "9"), ("PGUSER", "eu")], None);
    assert_eq!(found, (place("e", 9), "eu".into(), some("any")));
    let elsewhere = write("elsewhere", "localhost:5432:*:*:local\n", 0o600);
    let variable = [("PGPASSFILE", elsewhere.to_str().expect("text"))];
    assert_eq!(password("postgres:///db", &variable, None).2, some("local"));
    write(".pgpass", "*:*:*:*:any\n", 0o640);
    assert_eq!(password("postgres://u@h/db", &[], None).2, None);
}
