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
    found.as_ref().map_or(Ok(()), |found| endpoint(found, "address's `endpoint`"))?;
    Ok(found)
}

/// Takes an address apart, whose options are `known`. Where it has a user, the password may be in a
/// file.
pub fn address(settings: &StoreSettings, known: &[&str]) -> Result<Address, Failure> {
    let mut address = Address::parse(settings, &[])?;
    address.refuse_unknown(
        |name, _| known.contains(&name),
        format!("options are {}", known.join(", ")),
    )?;
    if address.user.is_some() {
        address.password = secret(address.password, settings)?;
    }
    check(
        address.user.is_some() == address.password.is_some(),
        "the address names a key without its secret before an `@`".to_owned(),
        "`SERIALIZER_PASSWORD_FILE` names a file with the secret; an `@` in a prefix is written as \
         `%40`",
    )?;
    Ok(address)
}

/// Whether every client takes it for the URL of a server: one parser accepts ports that do not
/// exist, the other one spaces.
pub fn is_url(text: &str) -> bool {
    let has_host =
        text.parse().is_ok_and(|uri: Uri| uri.host().is_some_and(|host| !host.is_empty()));
    has_host
        && Url::parse(text)
            .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

fn check(is_valid: bool, why: String, hint: &str) -> Result<(), Failure> {
    if is_valid { Ok(()) } else { Err(Failure::permanent(why).with_hint(hint)) }
}

/// Checks the URL of a server. It may not name a user, whose password messages would show.
pub fn endpoint(text: &str, what: &str) -> Result<(), Failure> {
    let is_valid = is_url(text) && !text.contains(['?', '#', '@']);
    check(
        is_valid,
        format!("the {what} is not the URL of a server"),
        "it looks like `https://host:port`",
    )
}

/// Checks the value of a header.
pub fn header(text: &str, what: &str) -> Result<(), Failure> {
    let is_valid = text.chars().all(|c| c.is_ascii_graphic());
    check(
        is_valid,
        format!("the {what} has characters that a key cannot have"),
        "it may have a line end or a space",
    )
}

/// Checks a part of a host name or of a path. Some that begin like encoded names are not names.
pub fn word(text: &str, what: &str) -> Result<(), Failure> {
    let is_word = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let is_valid = is_word && !text.starts_with('-') && is_url(&format!("http://{text}.example"));
    check(is_valid, format!("the {what} is not valid"), "it consists of letters, digits and `-`")
}

/// Why a server has not answered.
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
    failure.with_hint(
        "`AWS_CA_BUNDLE`, or `?ca=…` in the address of a bucket, names a file with the certificate \
         of the authority that has issued the server's",
    )
}

/// What a service says about the identity, by the words of its code: nothing was done.
pub fn refused_identity(code: &str, text: &str) -> Option<&'static str> {
    const WORDS: [&str; 7] = [
        "AccessKey",
        "AuthFailure",
        "Authentication",
        "Security",
        "Signature",
        "Token",
        "UnrecognizedClient",
    ];
    let is_refused =
        WORDS.iter().any(|word| code.contains(word)) || text.contains("failed to authenticate");
    match code.contains("Expired") {
        true => Some("the credentials have expired"),
        false => is_refused.then_some("the credentials are not accepted"),
    }
}
