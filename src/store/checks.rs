//! What DynamoDB and object stores have in common: checks of what becomes part of a URL or a
//! header, which the clients' crates take for granted (they panic otherwise), and what errors mean.

use std::error::Error;

use http::Uri;
use rustls::AlertDescription;
use url::Url;

use super::failure::Failure;
use super::network::{self, Address, secret, tls_error, tls_problem};
use crate::store::address::StoreSettings;

/// The option `endpoint` of an address, the URL of a server.
pub fn endpoint_of(address: &Address) -> Result<Option<String>, Failure> {
    let found = address.option("endpoint");
    found.iter().try_for_each(|found| endpoint(found, "address's `endpoint`"))?;
    Ok(found)
}

/// Takes an address apart. `known` are its options, a word each. Where it has a user, the
/// password may be in a file.
pub fn address(settings: &StoreSettings, known: &str) -> Result<Address, Failure> {
    let mut address = Address::parse(settings, &[])?;
    address.refuse_unknown(known, &format!("options are {}", known.replace(' ', ", ")))?;
    if address.user.is_some() {
        address.password = secret(address.password, settings)?;
    }
    let is_whole = address.user.is_some() == address.password.is_some();
    let why = "the address names a key without its secret before an `@`";
    let hint =
        "`SERIALIZER_PASSWORD_FILE` names a file with it; an `@` in a prefix is written as `%40`";
    check(is_whole, why, hint)?;
    Ok(address)
}

/// Whether every client takes it for the URL of a server: one parser accepts ports that do not
/// exist, the other one spaces.
pub fn is_url(text: &str) -> bool {
    let has_host = |uri: Uri| uri.host().is_some_and(|host| !host.is_empty());
    let is_web = |url: Url| matches!(url.scheme(), "http" | "https") && url.has_host();
    text.parse().is_ok_and(has_host) && Url::parse(text).is_ok_and(is_web)
}

fn check(is_valid: bool, why: &str, hint: &str) -> Result<(), Failure> {
    if is_valid { Ok(()) } else { Err(Failure::refused(why, hint)) }
}

/// Checks the URL of a server. It may not name a user: messages would show the password.
pub fn endpoint(text: &str, what: &str) -> Result<(), Failure> {
    let is_valid = is_url(text) && !text.contains(['?', '#', '@']);
    let why = format!("the {what} is not the URL of a server");
    check(is_valid, &why, "it looks like `https://host:port`")
}

pub fn header(text: &str, what: &str) -> Result<(), Failure> {
    let why = format!("the {what} has characters that a key cannot have");
    check(text.chars().all(|c| c.is_ascii_graphic()), &why, "it may have a line end or a space")
}

/// Checks a part of a host name or of a path. Some that begin like encoded names are not names.
pub fn word(text: &str, what: &str) -> Result<(), Failure> {
    let is_word = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let is_valid = is_word && !text.starts_with('-') && is_url(&format!("http://{text}.example"));
    check(is_valid, &format!("the {what} is not valid"), "it consists of letters, digits and `-`")
}

pub fn unanswered(error: &(dyn Error + 'static), server: &str) -> Failure {
    let Some(problem) = tls_error(error) else { return network::unanswered(error, server) };
    let why = format!("cannot connect to {server}: {}", tls_problem(problem));
    let failure = match problem {
        rustls::Error::InvalidCertificate(_) => Failure::permanent(why),
        rustls::Error::AlertReceived(AlertDescription::HandshakeFailure) => {
            Failure::permanent(why).indefinite()
        }
        // Others may come later than the handshake.
        _ => Failure::transient(why).indefinite(),
    };
    let hint = "`AWS_CA_BUNDLE`, or `?ca=…` in the address of a bucket, names a file with the \
                certificate of the server's authority";
    failure.with_hint(hint)
}

/// What a service says about the identity, by the words of its code: nothing was done.
pub fn refused_identity(code: &str, text: &str) -> Option<&'static str> {
    if code.contains("Expired") {
        return Some("the credentials have expired");
    }
    let words = "AccessKey AuthFailure Authentication Security Signature Token UnrecognizedClient";
    let is_refused = words.split(' ').any(|word| code.contains(word));
    let is_refused = is_refused || text.contains("failed to authenticate");
    is_refused.then_some("the credentials are not accepted")
}
