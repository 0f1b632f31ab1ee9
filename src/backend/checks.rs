//! Addresses of stores taken apart, and checks of what becomes part of a URL or a header, which the
//! clients' crates take for granted (they panic otherwise).

use std::path::Path;

use http::Uri;
use percent_encoding::percent_decode_str;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use url::Url;

use super::failure::Failure;
use super::plain;
use crate::printable;
use crate::store::StoreSettings;

/// An address `scheme://user:password@host/path?option=value`, decoded. Not `Debug`: it holds secrets.
pub struct Address {
    /// The user, if there is one.
    pub user: Option<String>,
    /// The password; empty if the address says so.
    pub password: Option<String>,
    /// The host; may be empty.
    pub host: String,
    /// Whether a port follows the host.
    pub has_port: bool,
    /// Without the first `/`.
    pub path: String,
    options: Vec<(String, String)>,
}

impl Address {
    /// Takes the address apart. Options other than `known` are refused by name; `-` counts as `_`.
    ///
    /// # Errors
    /// When the address cannot be used. Its values are not repeated.
    pub fn parse(settings: &StoreSettings, known: &[&str]) -> Result<Self, Failure> {
        let text = settings.url.secret();
        let invalid = |_| Failure::permanent("the address is not valid");
        let text = with_escaped_login(&text);
        let url = Url::parse(&text).map_err(invalid)?;
        if url.fragment().is_some() {
            let failure = Failure::permanent("the address has a `#`");
            return Err(failure.with_hint("in a name, it is written as `%23`"));
        }
        // The parsed one has no `..` any more.
        let rest = text.split_once("://").map_or("", |(_, rest)| rest);
        let place = rest.split('?').next().unwrap_or("");
        let path = place.split_once('/').map_or("", |(_, path)| path);
        let user = Some(url.username()).filter(|user| !user.is_empty());
        let mut options = Vec::new();
        for option in url.query().unwrap_or("").split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let name = decoded(name)?.to_ascii_lowercase().replace('-', "_");
            if !known.contains(&name.as_str()) {
                let name = printable::field(&name);
                let failure = Failure::permanent(format!("unknown option `{name}` in the address"));
                return Err(failure.with_hint(format!("options are {}", known.join(", "))));
            }
            options.push((name, decoded(value)?));
        }
        Ok(Self {
            user: user.map(decoded).transpose()?,
            password: url.password().map(decoded).transpose()?,
            host: decoded(url.host_str().unwrap_or(""))?,
            has_port: url.port().is_some(),
            path: decoded(path)?,
            options,
        })
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

/// Whether every client takes it for the URL of a server.
pub fn is_url(text: &str) -> bool {
    let is_uri = |uri: Uri| {
        let has_host = uri.host().is_some_and(|host| !host.is_empty());
        matches!(uri.scheme_str(), Some("http" | "https")) && has_host
    };
    // One parser accepts ports that do not exist, the other one spaces.
    text.parse().is_ok_and(is_uri) && Url::parse(text).is_ok_and(|url| url.has_host())
}

/// Checks the URL of a server. It may not name a user, whose password messages would show.
///
/// # Errors
/// When it is not one.
pub fn endpoint(text: &str, what: &str) -> Result<(), Failure> {
    if is_url(text) && !text.contains(['?', '#', '@']) {
        return Ok(());
    }
    let failure = Failure::permanent(format!("the {what} is not the URL of a server"));
    Err(failure.with_hint("it looks like `https://host:port`"))
}

/// Checks the value of a header.
///
/// # Errors
/// When it cannot be one.
pub fn header(text: &str, what: &str) -> Result<(), Failure> {
    if text.chars().all(|c| c.is_ascii_graphic()) {
        return Ok(());
    }
    let failure = Failure::permanent(format!("the {what} has characters that a key cannot have"));
    Err(failure.with_hint("it may have a line end or a space"))
}

/// Checks a part of a host name or of a path.
///
/// # Errors
/// When it cannot be one.
pub fn word(text: &str, what: &str) -> Result<(), Failure> {
    let is_word = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    // Some that begin like encoded names are not names.
    if is_word && !text.starts_with('-') && is_url(&format!("http://{text}.example")) {
        return Ok(());
    }
    let failure = Failure::permanent(format!("the {what} is not valid"));
    Err(failure.with_hint("it consists of letters, digits and `-`"))
}

/// The certificates in a PEM file.
///
/// # Errors
/// When there is none, or the file cannot be read.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let shown = printable::path(path);
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(Failure::permanent(format!("there is no certificate in `{shown}`"))),
        Err(error) => {
            let why = match error {
                PemError::Io(error) => plain(&error).to_string(),
                other => super::network::sentence(&other.to_string()),
            };
            Err(Failure::permanent(format!("cannot read the certificates in `{shown}`: {why}")))
        }
    }
}

/// What is wrong with a server's certificate, for a connection that TLS did not accept.
pub fn tls_problem(error: &rustls::Error) -> String {
    use rustls::CertificateError as E;
    let rustls::Error::InvalidCertificate(reason) = error else {
        let why = super::network::sentence(&error.to_string());
        // A server with only a key of another kind sends this alert.
        let is_refused = matches!(error, rustls::Error::AlertReceived(alert)
            if *alert == rustls::AlertDescription::HandshakeFailure);
        let keys = "; P-256, P-384 and RSA keys can be verified here, P-521 cannot";
        return format!("the connection cannot be encrypted: {why}{}", if is_refused { keys } else { "" });
    };
    let why = match reason {
        E::UnknownIssuer => "its issuer is not trusted".to_owned(),
        E::Expired | E::ExpiredContext { .. } => "it has expired".to_owned(),
        E::NotValidYet | E::NotValidYetContext { .. } => "it is not valid yet".to_owned(),
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            "it is for another host; only names in `subjectAltName` count".to_owned()
        }
        other if other.to_string().contains("CaUsedAsEndEntity") => {
            "it is one of an authority; a server's own has `basicConstraints=CA:FALSE`".to_owned()
        }
        other => super::network::sentence(&other.to_string()),
    };
    format!("the server's certificate is not accepted: {why}")
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
