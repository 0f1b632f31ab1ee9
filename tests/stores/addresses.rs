//! What addresses of stores mean, and which are refused: before anything is asked, and without a
//! secret.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serializer::store::address::{StoreSettings, StoreUrl};
use serializer::store::seam::{Key, Kind};
use serializer::store::{Cause, Error, open_store};

use crate::support::ended;
use crate::support::stores::Store;

/// Why an address cannot be used; what may be a part of a password is not repeated.
fn refusal(url: &str, password_file: Option<&Path>) -> Option<Error> {
    let url = StoreUrl::parse(url).expect(url);
    let password_file = password_file.map(Path::to_owned);
    let error =
        open_store(&StoreSettings { url, password_file, timeout: Duration::from_secs(5) }).err()?;
    assert!(
        error.cause == Cause::Unusable
            && !format!("{:?}{:?}", error.why, error.hint).contains("hunter2"),
        "{error:?}"
    );
    Some(error)
}

#[test]
fn the_address_of_a_table_or_a_bucket_that_cannot_be_used_is_refused_without_its_secret() {
    for (url, why) in [
        ("dynamodb://", "does not name a table"),
        ("dynamodb://AKIA:hunter2@locks/x", "only that"),
        ("dynamodb://locks?regoin=eu-west-1", "`regoin`"),
        ("dynamodb://locks?layout=lambda", "`layout`"),
        ("dynamodb://locks?endpoint=127.0.0.1", "`endpoint`"),
        ("dynamodb://locks?endpoint=http://me:hunter2@here", "`endpoint`"),
        ("dynamodb://AKIA@locks", "secret"),
        ("dynamodb://AKIA:hunter2@locks?profile=etl", "both"),
        ("gs://b?region=x", "`region`"),
        ("s3://hunter2@b/p", "without its secret"),
        ("s3://hunter2:@b/p", "without its secret"),
        ("azure://me:hunter2@c/p", "a user"),
        ("s3:///p", "no bucket"),
        ("s3://b:1/p", "not a valid name"),
        ("s3://b%2Fc/p", "not a valid name"),
        ("s3://b/%2E%2E/p", "prefix"),
        ("s3://b?path_style=hunter2", "path_style"),
        ("s3://b?access_key_id=hunter2", "only one"),
        ("s3://b?access_key_id=hunter2&secret_access_key=x&profile=etl", "both"),
        ("gs://b?endpoint=ftp://hunter2", "not the URL of a server"),
        ("azure://c?account=a/b", "account"),
    ] {
        let error = refusal(url, None).unwrap_or_else(|| panic!("{url}"));
        assert!(error.why.contains(why), "{url}: {error}");
    }
}

#[test]
fn the_secret_of_a_key_may_be_in_the_password_file() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "a/b\n").expect("it can be written");
    for url in ["s3://AKIA@b/p", "dynamodb://AKIA@locks", "dynamodb://AKIA:a%2Fb@locks"] {
        assert!(refusal(url, Some(file.path())).is_none(), "{url}");
        assert!(
            refusal(url, Some(Path::new("/nonexistent")))
                .is_some_and(|error| error.why.contains("/nonexistent"))
                || url.contains("a%2Fb"),
            "{url}"
        );
    }
}

#[test]
fn an_option_of_a_database_that_cannot_be_honoured_is_refused_by_name() {
    for (query, name) in [
        ("ssl_mode=VERIFY", "ssl_mode"),
        ("sslmode=on", "sslmode"),
        ("ssl=", "ssl"),
        ("tls", "tls"),
        ("tls=true", "tls"),
        ("useSSL=true", "usessl"),
        ("ssl_verify_identity=", "ssl_verify_identity"),
        ("tls&password=a@b", "known option"),
        ("%73sl=false&ssl=true", "ssl"),
        ("tls=custom", "tls"),
        ("ssl_verify_cert=ture", "ssl_verify_cert"),
        ("ssl_verify_identity=required", "ssl_verify_identity"),
        ("ssl_ca=/nonexistent/ca.crt", "/nonexistent/ca.crt"),
        ("sslcert=/nonexistent/own.crt&sslkey=/k", "/nonexistent/own.crt"),
        ("ssl_check_hostname=false", "ssl_check_hostname"),
        ("allowPublicKeyRetrieval=false", "allowpublickeyretrieval"),
        ("ssl_disabled=true&ssl_ca=/ca.pem", "switches it off"),
        ("ssl_mode=REQUIRED&ssl=false", "switches it off"),
        ("sslmode=require&sslmode=disable", "sslmode"),
        ("channel_binding=require", "channel_binding"),
        ("ssl_min_protocol_version=TLSv1.3", "ssl_min_protocol_version"),
        ("ssl_capath=/etc/ssl", "ssl_capath"),
        ("trustCertificateKeyStoreUrl=x", "trustcertificatekeystoreurl"),
        ("sslmod=verify-full", "sslmod"),
        ("init_command=x", "init_command"),
        ("service=mine", "service"),
    ] {
        for engine in ["postgres", "mysql"] {
            let error = refusal(&format!("{engine}://u@h/db?{query}"), None)
                .unwrap_or_else(|| panic!("{query}"));
            assert!(error.why.contains(name), "{query}: {error}");
        }
    }
    for (url, why) in [
        ("postgres://u@h/db?target_session_attrs=standby", "target_session_attrs"),
        ("mysql://u@h/db?options=-E", "options"),
        ("mysql://u@db", "no database"),
        ("mysql://u@db,other/meta", "several servers"),
        ("postgres://u@h:1,i:2/db?port=1,2,3", "3 ports for 2 servers"),
        ("postgres://u:hunter2/h", "port"),
        ("postgres://u@h:hunter2/db", "port"),
        ("postgres://u@h/db?port=hunter2", "port"),
        ("postgres://u@h/db?sslmode=hunter2", "sslmode"),
        ("mysql://me:hunter2%ff@db/x", "UTF-8"),
        ("mysql://me:hunter2%00@db/x", "null character"),
        ("postgres://u:x?hunter2=y@h/db", "port"),
    ] {
        assert!(refusal(url, None).is_some_and(|error| error.why.contains(why)), "{url}");
    }
    for (variable, name) in
        [("PGHOSTADDR", "hostaddr"), ("PGSERVICE", "service"), ("PGREQUIREAUTH", "require_auth")]
    {
        let ended =
            ended(Store::at("postgres://u@h/db").serializer(&["status"]).env(variable, "x"));
        assert!(ended.code == 2 && ended.stderr.contains(name), "{ended:?}");
    }
}

#[test]
fn a_file_for_tls_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).expect("it can be written");
        dir.path().join(name).display().to_string()
    };
    let authority = file("root.crt", include_str!("../support/root.crt"));
    let garbage = file("garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let broken = file("broken", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n");
    let key = file("key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let (empty, none) = (file("empty", ""), file("none", ""));
    let v1 = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/version-1.pem");
    let script = format!(
        "for key in prime256v1 secp521r1; do openssl ecparam -genkey -noout -name $key -out $key; \
         done; openssl x509 -in '{v1}' -outform DER -out der"
    );
    let made = ended(Command::new("bash").args(["-ec", &script]).current_dir(dir.path()));
    assert_eq!(made.code, 0, "{made:?}");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (der, p256, p521) = (path("der"), path("prime256v1"), path("secp521r1"));
    for (options, why) in [
        (format!("sslrootcert={empty}"), "no certificate found in"),
        (format!("sslrootcert={broken}"), "broken`: it is not PEM"),
        (format!("sslrootcert={garbage}"), "garbage`"),
        (format!("sslcert={authority}&sslkey={none}"), "none`: it holds no key"),
        (format!("sslcert={authority}&sslkey={key}"), "the key is damaged"),
        (format!("sslrootcert={der}"), "it must be PEM"),
        (format!("sslcert={authority}&sslkey={p521}"), "or of another kind than RSA, P-256"),
        (format!("sslcert={authority}&sslkey={p256}"), "they do not belong together"),
        (format!("sslcert={v1}"), "it is of X.509 version 1"),
    ] {
        let error =
            refusal(&format!("postgres://u@h/db?sslmode=require&{options}"), None).expect(why);
        assert!(error.why.contains(why), "{error}");
    }
    // Those in the home directory count where the address asks for encryption.
    let home = dir.path().join(".postgresql");
    std::fs::create_dir(&home).expect("a directory");
    std::fs::copy(authority, home.join("postgresql.crt")).expect("copied");
    std::fs::copy(&p256, home.join("postgresql.key")).expect("copied");
    for (options, is_named) in [("?sslmode=require", true), ("", false)] {
        let store = Store::at(&format!("postgres://u@127.0.0.1:1/db{options}"));
        let said = ended(store.serializer(&["status"]).env("HOME", dir.path()));
        assert_eq!(said.stderr.contains("do not belong together"), is_named, "{said:?}");
        assert_ne!(said.code, 0, "{said:?}");
    }
    // What is named counts in any case.
    let store = Store::at("postgres://u@127.0.0.1:1/db");
    for (home, why) in [(dir.path(), "do not belong together"), (&home, "without a certificate")] {
        let mut status = store.serializer(&["status"]);
        let said = ended(status.env("HOME", home).env("PGSSLKEY", path("prime256v1")));
        assert!(said.code == 2 && said.stderr.contains(why), "{said:?}");
    }
}

/// Libraries panic at such.
#[test]
fn what_is_no_url_of_a_server_or_no_part_of_one_is_refused() {
    let is_endpoint = |text: &&str| refusal(&format!("s3://b?endpoint={text}"), None).is_none();
    let urls = [
        "http://127.0.0.1:8000",
        "https://s3.example",
        "http://[::1]:9000/",
        "http://localhost:9000/path",
    ];
    assert!(urls.iter().all(is_endpoint));
    let others = [
        "nonsense",
        "ftp://a",
        "http://",
        "http://a b",
        "http://a/b c",
        "http://h:99999",
        "http://999.1.1.1",
    ];
    let secret =
        ["http://xn--a", "http://a%0A", "http://a?b", "http://a%23b", "http://me:hunter2@a"];
    assert!(!others.iter().chain(&secret).any(is_endpoint));
    let is_word = |text: &&str| {
        refusal(&format!("azure://c?account={text}&account_key=aaaa"), None).is_none()
    };
    assert!(["eu-west-1", "shop", "auto"].iter().all(is_word));
    assert!(!["a b", "eu.west", "-x", "xn--a", "x%0A", "a/b"].iter().any(is_word));
}

#[test]
fn different_registers_have_different_stored_names_that_fit() {
    let long = "é".repeat(5000);
    let names = [
        "a",
        "A",
        "a ",
        "ä",
        "a\0",
        "",
        "once/load",
        "schedule/",
        "session/once/a",
        &long,
        &long[2..],
    ];
    let names = names.into_iter().map(str::as_bytes).chain([b"\xff".as_slice(), b"\xfe"]);
    let mut seen = HashSet::new();
    for name in names.map(OsStr::from_bytes) {
        let stored = |kind, name: &OsStr| Key { kind, name: name.to_owned() }.stored_name();
        let lock = stored(Kind::Lock, name);
        assert!(Kind::PREFIXED.iter().all(|kind| !lock.starts_with(kind.prefix())), "{lock}");
        // What every engine can index.
        assert!(lock.len() <= 200 && seen.insert(lock.clone()), "{lock}");
        for kind in Kind::PREFIXED {
            let other = stored(kind, name);
            // What `list` shows opens the same register.
            let shown = other.replacen(kind.prefix(), "", 1);
            assert_eq!(stored(kind, OsStr::new(&shown)), other);
            assert!(seen.insert(other), "{name:?}");
        }
    }
}

#[test]
fn the_spellings_of_sqlalchemy_are_understood() {
    for (text, shown) in [
        ("postgresql", "postgres"),
        ("postgresql+psycopg2", "postgres"),
        ("cockroachdb", "postgres"),
        ("mysql+pymysql", "mysql"),
        ("mariadb+mariadbconnector", "mysql"),
        ("azure", "az"),
        ("S3", "s3"),
        ("gs", "gs"),
        ("dynamodb", "dynamodb"),
        ("file", "file"),
    ] {
        let url = StoreUrl::parse(&format!("{text}://db/x")).expect(text);
        assert_eq!((url.scheme.name(), url.to_string()), (shown, format!("{shown}://db/x")));
    }
}

#[test]
fn no_secret_of_an_address_is_shown() {
    let shown = [
        ("postgres://db:5432/x", "postgres://me:hunter2@db:5432/x?sslmode=require"),
        ("postgres://db:5432/x", "postgres://me:hunter2/@db:5432/x"),
        ("postgres://db:5432/x", "postgres://db:5432/x?user=me&password=hunter2"),
        ("postgres://db:5432/x", "postgres://hunter2@db:5432/x?password=a"),
    ];
    // Where a password cannot be told from the rest, nothing is shown.
    let hidden = [
        "postgres://me:hunter2/@?x@db:5432/x",
        "postgres://db:5432/x?user=me&password=hunter@2secret",
        "postgres://me:hunter2/x",
        "postgres://me:hunter2",
        "postgres://db:5432,me:hunter2/x",
        "postgres://[::1]:hunter2/x",
    ];
    let plain = ["db/x", "db:5432/x", "db:5432,other:5433/x", "[::1]:5432/x", "/x", ":5432/x"];
    let plain = plain.map(|place| format!("postgres://{place}"));
    let plain = plain.iter().map(|url| (url.as_str(), url.as_str()));
    for (expected, text) in shown
        .into_iter()
        .chain(hidden.map(|text| ("postgres://…", text)))
        .chain(plain)
        .chain([("file:///a@b", "file:///a@b"), ("file://…", "file://me:hunter2@nas/locks")])
    {
        let url = StoreUrl::parse(text).expect(text);
        assert_eq!(
            (url.to_string().as_str(), format!("{url:?}").as_str()),
            (expected, expected),
            "{text}"
        );
    }
    for text in [
        "hunter2",
        "",
        "ftp://me:hunter2@db/x",
        "sqlite:///hunter2.db",
        "sqlite+pysqlite:///hunter2.db",
    ] {
        let error = StoreUrl::parse(text).expect_err(text);
        assert!(!error.contains("hunter2"), "{error}");
    }
}
