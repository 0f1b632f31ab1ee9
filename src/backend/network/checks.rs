//! What people or the environment give, looked at before libraries take it that end the program where it is no part of a URL or a header.

use http::Uri;
use url::Url;

use crate::backend::failure::Failure;

/// Without the line end that many files with secrets have.
pub fn trimmed(text: &str) -> &str {
    text.trim_end_matches(['\r', '\n'])
}

/// Whether everybody who will read it takes it for an address of a server.
pub fn is_url(text: &str) -> bool {
    let is_uri = |uri: Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty());
    // Of two libraries, one takes ports that there are none of, and the other one takes spaces.
    text.parse().is_ok_and(is_uri) && Url::parse(text).is_ok_and(|url| url.has_host())
}

/// Where a server is.
pub fn endpoint(text: &str, what: &str) -> Result<(), Failure> {
    if is_url(text) && !text.contains(['?', '#']) {
        return Ok(());
    }
    let failure = Failure::permanent(format!("the {what} is no address of a server"));
    Err(failure.with_hint("it looks like `https://host:port`"))
}

/// It is sent as a header, or in one.
pub fn header(text: &str, what: &str) -> Result<(), Failure> {
    if text.chars().all(|c| c.is_ascii_graphic()) {
        return Ok(());
    }
    Err(Failure::permanent(format!("the {what} has characters that no key has")).with_hint("perhaps a line end, or a space"))
}

/// It becomes a part of a host's name, or of a path.
pub fn word(text: &str, what: &str) -> Result<(), Failure> {
    // Some that begin like encoded names are none.
    let is_part = |word: &str| !word.is_empty() && !word.starts_with('-') && is_url(&format!("http://{word}.example"));
    if text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') && is_part(text) {
        return Ok(());
    }
    Err(Failure::permanent(format!("the {what} is no name of one")).with_hint("it has letters, digits and `-` only"))
}

#[cfg(test)]
mod tests {
    use super::{endpoint, trimmed, word};

    #[test]
    fn what_is_no_address_of_a_server_is_none_before_anybody_uses_it() {
        for text in ["http://127.0.0.1:8000", "https://s3.example", "http://[::1]:9000/", "http://localhost:9000/path"] {
            assert!(endpoint(text, "endpoint").is_ok(), "{text}");
        }
        for text in [
            "",
            "nonsense",
            "ftp://a",
            "http://",
            "http://a b",
            "http://a/b c",
            "http://h:99999",
            "http://999.1.1.1",
            "http://xn--a",
            "http://a\n",
            "http://a?b",
            "http://a#b",
        ] {
            assert!(endpoint(text, "endpoint").is_err(), "{text}");
        }
    }

    #[test]
    fn regions_are_parts_of_the_names_of_hosts() {
        assert!(["eu-west-1", "us-gov-east-1", "auto"].iter().all(|text| word(text, "region").is_ok()));
        assert!(["", "a b", "eu.west", "-x", "xn--a", "x\n", "a/b"].iter().all(|text| word(text, "region").is_err()));
    }

    #[test]
    fn nothing_but_line_ends_is_cut() {
        assert_eq!([trimmed("a\n"), trimmed("a\r\n"), trimmed(" a\nb ")], ["a", "a", " a\nb "]);
    }
}
