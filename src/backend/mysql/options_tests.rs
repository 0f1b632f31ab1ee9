use std::time::Duration;

use super::{Options, TlsMode, tls};
use crate::backend::failure::Failure;
use crate::backend::sql::address::Address;
use crate::store::{StoreSettings, StoreUrl};

fn read(url: &str) -> Result<Options, Failure> {
    let url = StoreUrl::parse(url).expect(url);
    Options::new(&StoreSettings { url, password_file: None, timeout: Duration::from_secs(5) })
}

fn asked(query: &str) -> Result<TlsMode, Failure> {
    let mut address = Address::parse(&format!("mysql://me@db/meta?{query}"))?;
    let tls = tls(&mut address)?;
    address.refuse_rest("")?;
    Ok(tls.mode)
}

#[test]
fn an_address_says_all_that_is_needed() {
    let options = read("mysql+pymysql://me:secret@db:3307/meta?charset=utf8mb4&connect_timeout=2").expect("options");
    assert_eq!((options.place.as_str(), options.database.as_str()), ("db:3307", "meta"));
    assert_eq!((options.connect_timeout, options.timeout), (Duration::from_secs(2), Duration::from_secs(5)));
    for (url, place) in [
        ("mysql://me@localhost/meta", "localhost:3306"),
        ("mysql://me@/meta?host=db&port=7", "db:7"),
        ("mysql://me@/meta?unix_socket=/run/a@b.sock", "/run/a@b.sock"),
        ("mysql://me@[::1]/meta", "::1:3306"),
        ("mysql://me@db/?database=meta", "db:3306"),
    ] {
        assert_eq!(read(url).unwrap_or_else(|failure| panic!("{url}: {}", failure.why)).place, place, "{url}");
    }
}

#[test]
fn what_asks_for_encryption_or_verification_in_the_words_of_any_driver_gets_it() {
    for (query, mode) in [
        ("", TlsMode::Prefer),
        ("ssl_disabled=true", TlsMode::Disable),
        ("ssl-mode=DISABLED", TlsMode::Disable),
        ("useSSL=false", TlsMode::Disable),
        ("tls=false", TlsMode::Disable),
        ("ssl_mode=required", TlsMode::Require),
        ("sslMode=REQUIRED", TlsMode::Require),
        ("sslMode=trust", TlsMode::Require),
        ("ssl=true", TlsMode::Require),
        ("useSSL=true", TlsMode::Require),
        ("requireSSL=true", TlsMode::Require),
        ("require_ssl=true", TlsMode::Require),
        ("tls=skip-verify", TlsMode::Require),
        ("tls=preferred", TlsMode::Prefer),
        ("tls=true", TlsMode::VerifyFull),
        ("verify_identity=true", TlsMode::VerifyFull),
        ("ssl_mode=PREFERRED&ssl_verify_identity=true", TlsMode::VerifyFull),
        ("ssl_ca=/ca.pem", TlsMode::VerifyCa),
        ("ssl_mode=REQUIRED&ssl_ca=/ca.pem", TlsMode::VerifyCa),
        ("ssl_ca=/ca.pem&ssl_verify_cert=false", TlsMode::Require),
        ("ssl_ca=/ca.pem&verifyServerCertificate=true", TlsMode::VerifyCa),
        ("ssl_verify_cert=true&ssl_verify_identity=true", TlsMode::VerifyFull),
        ("ssl_mode=VERIFY_IDENTITY&ssl_verify_cert=false", TlsMode::VerifyFull),
        ("ssl_cert=/c.pem&ssl_key=/k.pem", TlsMode::Require),
    ] {
        assert_eq!(asked(query).map_err(|failure| failure.why), Ok(mode), "{query}");
    }
}

#[test]
fn what_cannot_be_had_or_is_not_known_is_refused_by_name() {
    for (query, name) in [
        ("ssl_mode=VERIFY", "ssl_mode"),
        ("ssl=require", "ssl"),
        ("ssl=", "ssl"),
        ("tls", "tls"),
        ("tls=custom", "tls"),
        ("ssl_verify_cert=ture", "ssl_verify_cert"),
        ("ssl_verify_identity=required", "ssl_verify_identity"),
        ("ssl_verify_cert=true", "ssl_ca"),
        ("ssl_mode=VERIFY_CA", "ssl_ca"),
        ("ssl_ca=/ca.pem&ssl_check_hostname=false", "ssl_check_hostname"),
        ("allowPublicKeyRetrieval=false", "allowPublicKeyRetrieval"),
        ("ssl_disabled=no!", "ssl_disabled"),
        ("ssl_disabled=true&ssl_ca=/ca.pem", "switches it off"),
        ("ssl_mode=REQUIRED&ssl=false", "switches it off"),
        ("ssl_mode=DISABLED&ssl_mode=REQUIRED", "ssl_mode"),
        ("ssl_capath=/etc/ssl", "ssl_capath"),
        ("ssl_cipher=x", "ssl_cipher"),
        ("ssl_crl=/c", "ssl_crl"),
        ("tls_version=TLSv1.3", "tls_version"),
        ("tls_peer_fp=a", "tls_peer_fp"),
        ("trustCertificateKeyStoreUrl=x", "trustcertificatekeystoreurl"),
        ("serverSslCert=x", "serversslcert"),
        ("read_default_file=/my.cnf", "read_default_file"),
        ("init_command=x", "init_command"),
        ("sslmod=x", "sslmod"),
    ] {
        let failure = asked(query).err().unwrap_or_else(|| panic!("{query}"));
        assert!(failure.why.contains(name), "{query}: {}", failure.why);
    }
    for (url, why) in [
        ("mysql://me@db", "no database"),
        ("mysql://me@db:x/meta", "port"),
        ("mysql://me@db,other/meta", "several servers"),
        ("mysql://me@db/meta?ssl_ca=/nonexistent/ca.pem", "/nonexistent/ca.pem"),
    ] {
        let failure = read(url).err().expect(url);
        assert!(failure.why.contains(why), "{url}: {}", failure.why);
    }
}

#[test]
fn the_password_file_counts_by_its_first_line() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "secret \nmore\n").expect("it can be written");
    let url = StoreUrl::parse("mysql://me@db/meta").expect("an address");
    let settings = StoreSettings { url, password_file: Some(file.path().to_owned()), timeout: Duration::from_secs(5) };
    // What sqlx was given, it shows to debuggers only.
    let shown = format!("{:?}", Options::new(&settings).expect("options").server);
    assert!(shown.contains("\"secret \""), "{shown}");
}
