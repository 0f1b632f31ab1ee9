//! What DynamoDB and object stores have in common: addresses, checks of what becomes part of a URL or a header, which
//! the clients' crates take for granted (they panic otherwise), and what errors mean.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::path::Path;

use http::Uri;
use percent_encoding::percent_decode_str;
use rustls::AlertDescription;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use url::{Position, Url};

use super::failure::{Cause, Failure};
use super::network::sentence;
use super::plain;
use crate::printable;
use crate::store::StoreSettings;

/// An address `scheme://user:password@host/path?option=value`, decoded. Not `Debug`: it holds secrets.
pub struct Address {
    pub user: Option<String>,
    /// Empty if the address says so.
    pub password: Option<String>,
    /// With the port; may be empty.
    pub host: String,
    /// Without the first `/`.
    pub path: String,
    options: Vec<(String, String)>,
}

impl Address {
    /// Takes the address apart. Options other than `known` are refused by name; `-` counts as `_`.
    pub fn parse(settings: &StoreSettings, known: &[&str]) -> Result<Self, Failure> {
        let text = settings.url.secret();
        let text = with_escaped_login(&text);
        let url = Url::parse(&text).map_err(|_| Failure::permanent("the address is not valid"))?;
        check(url.fragment().is_none(), "the address has a `#`".to_owned(), "in a name, it is written as `%23`")?;
        // The parsed one has no `..` any more.
        let rest = text.split_once("://").map_or("", |(_, rest)| rest);
        let place = rest.split('?').next().unwrap_or("");
        let path = place.split_once('/').map_or("", |(_, path)| path);
        let user = Some(url.username()).filter(|user| !user.is_empty());
        let mut options = Vec::new();
        for option in url.query().unwrap_or("").split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let name = decoded(name)?.to_ascii_lowercase().replace('-', "_");
            let why = format!("unknown option `{}` in the address", printable::field(&name));
            check(known.contains(&name.as_str()), why, &format!("options are {}", known.join(", ")))?;
            options.push((name, decoded(value)?));
        }
        Ok(Self {
            user: user.map(decoded).transpose()?,
            password: url.password().map(decoded).transpose()?,
            host: decoded(&url[Position::BeforeHost..Position::AfterPort])?,
            path: decoded(path)?,
            options,
        })
    }

    /// The option `endpoint`, the URL of a server.
    pub fn endpoint(&self) -> Result<Option<String>, Failure> {
        let found = self.option("endpoint");
        found.as_ref().map_or(Ok(()), |found| endpoint(found, "address's `endpoint`"))?;
        Ok(found)
    }

    /// The value of an option, unless it is empty.
    pub fn option(&self, name: &str) -> Option<String> {
        let (_, value) = self.options.iter().find(|(other, _)| other == name)?;
        Some(value.clone()).filter(|value| !value.is_empty())
    }
}

/// Secrets are often pasted as they are, with `/`, `?`, `#` or `@` in them: the login ends at the last `@`
/// before the options.
fn with_escaped_login(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let is_option = |(at, _): &(usize, &str)| {
        let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        rest[at + 1..].split_once('=').is_some_and(|(name, _)| is_name(name))
    };
    let options = rest.match_indices('?').find(is_option).map_or(rest.len(), |(at, _)| at);
    let Some(at) = rest[..options].rfind('@') else { return text.to_owned() };
    let mut login = rest[..at].to_owned();
    for (raw, code) in [("/", "%2F"), ("?", "%3F"), ("#", "%23"), ("@", "%40")] {
        login = login.replace(raw, code);
    }
    format!("{scheme}://{login}{}", &rest[at..])
}

/// A `+` stays: many secrets and paths have one.
fn decoded(text: &str) -> Result<String, Failure> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| Failure::permanent("the address is not UTF-8 once decoded"))?;
    if decoded.contains('\0') {
        return Err(Failure::permanent("the address contains a null character"));
    }
    Ok(decoded.into_owned())
}

/// An environment variable without the line end that a mounted secret has, unless it is empty.
pub fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?;
    Some(trimmed(&value).to_owned()).filter(|value| !value.is_empty())
}

/// Without line ends.
pub fn trimmed(text: &str) -> &str {
    text.trim_end_matches(['\r', '\n'])
}

/// Whether every client takes it for the URL of a server: one parser accepts ports that do not exist, the other one spaces.
pub fn is_url(text: &str) -> bool {
    let has_host = text.parse().is_ok_and(|uri: Uri| uri.host().is_some_and(|host| !host.is_empty()));
    has_host && Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

fn check(is_valid: bool, why: String, hint: &str) -> Result<(), Failure> {
    if is_valid { Ok(()) } else { Err(Failure::permanent(why).with_hint(hint)) }
}

/// Checks the URL of a server. It may not name a user, whose password messages would show.
pub fn endpoint(text: &str, what: &str) -> Result<(), Failure> {
    let is_valid = is_url(text) && !text.contains(['?', '#', '@']);
    check(is_valid, format!("the {what} is not the URL of a server"), "it looks like `https://host:port`")
}

/// Checks the value of a header.
pub fn header(text: &str, what: &str) -> Result<(), Failure> {
    let is_valid = text.chars().all(|c| c.is_ascii_graphic());
    check(is_valid, format!("the {what} has characters that a key cannot have"), "it may have a line end or a space")
}

/// Checks a part of a host name or of a path. Some that begin like encoded names are not names.
pub fn word(text: &str, what: &str) -> Result<(), Failure> {
    let is_word = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let is_valid = is_word && !text.starts_with('-') && is_url(&format!("http://{text}.example"));
    check(is_valid, format!("the {what} is not valid"), "it consists of letters, digits and `-`")
}

/// A file with certificates in PEM.
pub fn certificates(path: &Path) -> Result<Vec<u8>, Failure> {
    let shown = printable::path(path);
    let cannot = |why: &dyn Display| Failure::permanent(format!("cannot read the certificates in `{shown}`: {why}"));
    let bytes = std::fs::read(path).map_err(|error| cannot(&plain(&error)))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(Failure::permanent(format!("there is no certificate in `{shown}`"))),
        Ok(_) => Ok(bytes),
        Err(error) => Err(cannot(&sentence(&error.to_string()))),
    }
}

/// What is wrong with a connection that TLS did not accept.
fn tls_problem(error: &rustls::Error) -> String {
    let said = sentence(&error.to_string());
    let known = [
        ("UnknownIssuer", "its issuer is not trusted"),
        ("CaUsedAsEndEntity", "it is one of an authority; a server's own has `basicConstraints=CA:FALSE`"),
        // A server with only a key of another kind sends this alert.
        ("HandshakeFailure", "P-256, P-384 and RSA keys can be verified here, P-521 cannot"),
    ];
    let more = known.iter().find(|(word, _)| said.contains(word)).map_or("", |(_, more)| more);
    format!("the connection cannot be encrypted: {said}{}{more}", if more.is_empty() { "" } else { ": " })
}

/// An error and its causes. What an `io::Error` wraps is not among its sources.
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| match error.downcast_ref::<io::Error>() {
        Some(error) => error.get_ref().map(|inner| inner as &(dyn Error + 'static)),
        None => error.source(),
    })
}

/// The innermost cause, as part of a sentence.
pub fn innermost(error: &(dyn Error + 'static)) -> String {
    let text = chain(error).last().map_or_else(String::new, ToString::to_string);
    sentence(text.split(" (os error").next().unwrap_or(""))
}

/// Why a server has not answered. Only without a connection it is certain that nothing was sent.
pub fn unanswered(error: &(dyn Error + 'static), server: &str) -> Failure {
    let why = innermost(error);
    if let Some(problem) = chain(error).find_map(|error| error.downcast_ref::<rustls::Error>()) {
        let why = format!("cannot connect to {server}: {}", tls_problem(problem));
        let failure = match problem {
            rustls::Error::InvalidCertificate(_) => Failure::permanent(why),
            rustls::Error::AlertReceived(AlertDescription::HandshakeFailure) => Failure::permanent(why).indefinite(),
            // Others may come later than the handshake.
            _ => Failure::transient(why).indefinite(),
        };
        return failure.with_hint(
            "`AWS_CA_BUNDLE`, or `?ca=…` in the address of a bucket, names a file with the certificate to trust: that of the \
             authority that has issued the server's",
        );
    }
    let failure = Failure::transient(format!("cannot connect to {server}: {why}"));
    let is_kind = |kind| chain(error).filter_map(|error| error.downcast_ref()).any(|error: &io::Error| error.kind() == kind);
    if why.contains("not known") || why.contains("No address associated") {
        Failure { cause: Cause::Permanent, ..failure }
    } else if is_kind(ErrorKind::ConnectionRefused) || why.contains("lookup address information") {
        failure
    } else if is_kind(ErrorKind::TimedOut) || why.contains("timed out") || why.contains("elapsed") {
        Failure::transient(format!("{server} does not answer in time")).indefinite()
    } else {
        // An established connection may end because a host or network is not reachable any more.
        let is_away = is_kind(ErrorKind::NetworkUnreachable) || is_kind(ErrorKind::HostUnreachable);
        let broken = Failure::transient(format!("the connection to {server} broke: {why}"));
        if is_away { failure } else { broken }.indefinite()
    }
}

/// What a service says about the identity, by the words of its code: nothing was done.
pub fn refused_identity(code: &str, text: &str) -> Option<&'static str> {
    const WORDS: [&str; 7] =
        ["AccessKey", "AuthFailure", "Authentication", "Security", "Signature", "Token", "UnrecognizedClient"];
    let is_refused = WORDS.iter().any(|word| code.contains(word)) || text.contains("failed to authenticate");
    match code.contains("Expired") {
        true => Some("the credentials have expired"),
        false => is_refused.then_some("the credentials are not accepted"),
    }
}

/// The failure of what is stored in a format that is not known yet.
pub fn of_newer_version() -> Failure {
    Failure::permanent("a newer version of this program has written it").with_hint("use that version here, too")
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
