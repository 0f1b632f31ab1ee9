use super::{endpoint, refused_identity, word};
use crate::backend::network::trimmed;

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
