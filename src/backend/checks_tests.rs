use std::time::Duration;

use super::{address, endpoint, refused_identity, trimmed, word};
use crate::store::{StoreSettings, StoreUrl};

#[test]
fn what_clients_panic_at_is_refused() {
    let is_endpoint = |text: &&str| endpoint(text, "endpoint").is_ok();
    let urls = ["http://127.0.0.1:8000", "https://s3.example", "http://[::1]:9000/", "http://localhost:9000/path"];
    assert!(urls.iter().all(is_endpoint));
    let others = ["", "nonsense", "ftp://a", "http://", "http://a b", "http://a/b c", "http://h:99999", "http://999.1.1.1"];
    let secret = ["http://xn--a", "http://a\n", "http://a?b", "http://a#b", "http://me:hunter2@a"];
    assert!(!others.iter().chain(&secret).any(is_endpoint));
    let is_word = |text: &&str| word(text, "region").is_ok();
    assert!(["eu-west-1", "us-gov-east-1", "auto"].iter().all(is_word));
    assert!(!["", "a b", "eu.west", "-x", "xn--a", "x\n", "a/b"].iter().any(is_word));
    assert_eq!([trimmed("a\n"), trimmed("a\r\n"), trimmed(" a\nb ")], ["a", "a", " a\nb "]);
}

#[test]
fn codes_about_the_identity_are_known_by_their_words() {
    for code in ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthenticationFailed", "UnrecognizedClientException"] {
        assert_eq!(refused_identity(code, ""), Some("the credentials are not accepted"), "{code}");
    }
    assert_eq!(refused_identity("ExpiredTokenException", ""), Some("the credentials have expired"));
    for code in ["", "AccessDenied", "AuthorizationFailure", "SlowDown", "ConditionalCheckFailedException"] {
        assert_eq!(refused_identity(code, ""), None, "{code}");
    }
}

#[test]
fn secrets_may_stand_in_an_address_as_they_are() {
    for (text, user, password) in [
        ("s3://AKIA:wJal/rX+x%2Fy@host/a/b?x=a@b", "AKIA", "wJal/rX+x/y"),
        ("s3://AKIA:p?ss@host/a/b?x=a@b", "AKIA", "p?ss"),
        ("s3://me@corp:p@ss#@host/a/b?x=a@b", "me@corp", "p@ss#"),
        ("s3://AKIA:a%@host/a/b?x=a@b", "AKIA", "a%"),
    ] {
        let url = StoreUrl::parse(text).expect(text);
        let settings = StoreSettings { url, password_file: None, timeout: Duration::ZERO };
        let address = address(&settings, &["x"]).unwrap_or_else(|f| panic!("{text}: {}", f.why));
        assert_eq!((address.hosts.as_str(), address.path.as_str()), ("host", "a/b"), "{text}");
        assert_eq!((address.user.as_deref(), address.password.as_deref()), (Some(user), Some(password)));
        assert_eq!(address.option("x").as_deref(), Some("a@b"));
    }
}
