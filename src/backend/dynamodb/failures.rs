//! What went wrong, and whether a write may have been done all the same.
//!
//! DynamoDB says no with a code and a status of 4xx, before it does anything: with a code that is known here, nothing was
//! written. Nor was it if there was never a connection. Everything else (no answer in time, a connection that broke, 5xx, what some
//! proxy says) tells nothing about the write.

use std::error::Error;
use std::io;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{ConnectorError, ProvideErrorMetadata, SdkError};

use super::account::Place;
use crate::backend::failure::{Cause, Failure};
use crate::backend::network::sentence;
use crate::printable;

/// What the permissions are, in hints.
const PERMISSIONS: &str = "docs/stores.md of this program has the policy that it needs";

/// What is said of keys that the table does not have, or that are no texts.
const WRONG_KEYS: [&str; 4] = ["key element", "key schema", "conditions on the keys", "Type mismatch for key"];

/// A name that was not found, on its way through the SDK.
#[derive(Debug, Clone)]
pub struct Unresolved {
    /// What the system says.
    pub why: String,
    /// Whether it may be found soon.
    pub cause: Cause,
}

impl std::fmt::Display for Unresolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl Error for Unresolved {}

/// What `action` has failed of, which changes no lock.
pub fn of<E>(error: &SdkError<E, HttpResponse>, action: &str, place: &Place) -> Failure
where
    E: ProvideErrorMetadata + Error + 'static,
{
    Failure { is_indefinite: false, ..of_write(error, action, place) }
}

/// What `action` has failed of, which may have been done all the same.
pub fn of_write<E>(error: &SdkError<E, HttpResponse>, action: &str, place: &Place) -> Failure
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ServiceError(answer) => {
            let (code, text) = (answer.err().code().unwrap_or(""), sentence(answer.err().message().unwrap_or("no reason given")));
            refused(code, &text, action, place).unwrap_or_else(|| unknown(code, &text, answer.raw().status().as_u16(), place))
        }
        SdkError::ConstructionFailure(failure) => cannot_ask(failure_of(failure), place),
        SdkError::DispatchFailure(failure) => match failure.as_connector_error() {
            Some(error) if error.is_user() => cannot_ask(innermost(error), place),
            Some(error) => unreachable(error, place),
            None => Failure::transient(format!("{place} cannot be reached")).indefinite(),
        },
        SdkError::TimeoutError(_) => Failure::transient(format!("{place} does not answer in time")).indefinite(),
        // An answer that nobody can read.
        _ => Failure::transient(format!("{place} answers with something that is no answer of DynamoDB")).indefinite(),
    }
}

fn failure_of(failure: &(impl std::fmt::Debug + ?Sized)) -> String {
    // Its source cannot be had by reference; what is in it is about what we ask, and not for users.
    tracing::debug!("a request cannot be made: {failure:?}");
    "the request cannot be made".to_owned()
}

fn cannot_ask(why: String, place: &Place) -> Failure {
    Failure::permanent(format!("{place} cannot be asked: {why}"))
}

/// What a code is known to mean: that nothing was done.
fn refused(code: &str, text: &str, action: &str, place: &Place) -> Option<Failure> {
    let failure = match code {
        "ResourceNotFoundException" | "TableNotFoundException" => {
            let why = format!("there is no {}, or it is not ready", place.table());
            Failure { cause: Cause::NotPrepared, ..Failure::permanent(why) }
        }
        "ProvisionedThroughputExceededException"
        | "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "RequestLimitExceeded"
        | "LimitExceededException"
        | "TooManyRequestsException" => Failure::transient(format!("too many requests for {}: {text}", place.table()))
            .with_hint("a table with on-demand capacity takes more within minutes; a provisioned one needs more capacity"),
        "TransactionConflictException" | "ReplicatedWriteConflictException" | "ResourceInUseException" => {
            Failure::transient(format!("{} is in use: {text}", place.table()))
        }
        "AccessDeniedException" | "AccessDenied" => {
            Failure::permanent(format!("no permission for `{action}` on {}: {text}", place.table())).with_hint(PERMISSIONS)
        }
        "ExpiredTokenException" | "ExpiredToken" | "TokenRefreshRequired" => {
            Failure::permanent(format!("the credentials have expired, says {place}"))
                .with_hint("renew them, for example by `aws sso login`, or let a role provide them")
        }
        "UnrecognizedClientException" | "InvalidClientTokenId" | "InvalidAccessKeyId" | "AuthFailure" => {
            Failure::permanent(format!("the access key is not known to {place}: {text}"))
                .with_hint("`aws sts get-caller-identity` tries credentials out")
        }
        "MissingAuthenticationTokenException" | "MissingAuthenticationToken" | "IncompleteSignatureException" => {
            Failure::permanent(format!("{place} has got no credentials that it understands: {text}"))
        }
        "InvalidSignatureException" | "SignatureDoesNotMatch" | "RequestTimeTooSkewed" | "RequestExpired" => {
            Failure::permanent(format!("{place} does not accept the signature: {text}"))
                .with_hint("the secret key is another one, or this host's clock is wrong (`timedatectl`)")
        }
        "ValidationException" if WRONG_KEYS.iter().any(|said| text.contains(said)) => {
            let why = format!("the key of {} is not just the text `{}`", place.table(), place.key);
            let hint = "`key=…` in the address names it; a table that also has a sort key cannot be used";
            Failure::permanent(why).with_hint(hint)
        }
        "ValidationException" | "SerializationException" | "UnknownOperationException" | "InvalidEndpointException" => {
            Failure::permanent(format!("{place} refuses `{action}`: {text}"))
        }
        _ => return None,
    };
    Some(failure)
}

/// Nobody knows what has happened, nor who says so.
fn unknown(code: &str, text: &str, status: u16, place: &Place) -> Failure {
    let said = if code.is_empty() { String::new() } else { format!(", {}: {text}", sentence(code)) };
    let failure = Failure::transient(format!("{place} answers with the status {status}{said}")).indefinite();
    let is_final = (400..500).contains(&status) && !matches!(status, 408 | 429);
    if is_final { Failure { cause: Cause::Permanent, ..failure } } else { failure }
}

/// There was no answer.
fn unreachable(error: &(dyn Error + 'static), place: &Place) -> Failure {
    if let Some(Unresolved { why, cause }) = chain(error).find_map(|error| error.downcast_ref()) {
        let failure = Failure { cause: *cause, ..Failure::transient(why) };
        return failure
            .with_hint("check the region and the `endpoint`; who has no way to AWS needs a VPC endpoint or `HTTPS_PROXY`");
    }
    // As a profile may have it; nothing was sent.
    if is_about_address(error) {
        return cannot_ask("its endpoint is no address of a server".to_owned(), place)
            .with_hint("`endpoint_url` of the profile looks like `https://host:port`");
    }
    let is_late = chain(error).any(|error| error.is::<aws_smithy_async::future::timeout::TimedOutError>());
    let why = if is_late { "no answer in time".to_owned() } else { innermost(error) };
    let is_certain = why.starts_with("invalid peer certificate");
    let failure = Failure::transient(format!("{place} cannot be reached: {why}"));
    let never_connected = |error: &hyper_util::client::legacy::Error| error.is_connect();
    if !chain(error).any(|error| error.downcast_ref().is_some_and(never_connected)) {
        return failure.indefinite();
    }
    if is_certain {
        let hint = "`SSL_CERT_FILE` names a file with the certificates to trust";
        return Failure { cause: Cause::Permanent, ..failure }.with_hint(hint);
    }
    failure
}

fn is_about_address(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|error| error.is::<http::uri::InvalidUri>() || error.is::<http::uri::InvalidUriParts>())
}

/// An error and what it comes from. What an `io::Error` has inside is none of its sources.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| match error.downcast_ref::<io::Error>() {
        Some(error) => error.get_ref().map(|inner| inner as &(dyn Error + 'static)),
        None => error.source(),
    })
}

/// What it all comes from, in its own words.
pub fn innermost(error: &(dyn Error + 'static)) -> String {
    let text = chain(error).last().map_or_else(String::new, ToString::to_string);
    sentence(text.split(" (os error").next().unwrap_or(""))
}

/// Why there are no credentials. Nothing was sent then.
pub fn of_credentials(error: &CredentialsError, profile: Option<&str>) -> Failure {
    let why = innermost(error);
    // What a command for credentials says may be anything.
    let why = why.split(". Stderr:").next().unwrap_or("");
    match (error, profile) {
        (CredentialsError::CredentialsNotLoaded(_), Some(profile)) => {
            let why = format!("the profile `{}` does not exist, or has no credentials", printable::field(profile));
            Failure::permanent(why).with_hint("`aws configure list-profiles` shows which there are")
        }
        (CredentialsError::CredentialsNotLoaded(_), None) => Failure::permanent("there are no credentials for AWS")
            .with_hint("`AWS_PROFILE`, `AWS_ACCESS_KEY_ID`, `aws sso login` or a role of this host or container provide them"),
        (CredentialsError::InvalidConfiguration(_), _) => Failure::permanent(format!("AWS's settings cannot be used: {why}"))
            .with_hint("perhaps a variable, or a file with a token, has a line end that it should not have"),
        (CredentialsError::ProviderTimedOut(_), _) => Failure::transient("the credentials do not come in time"),
        _ => {
            let failure = Failure::transient(format!("cannot get credentials: {why}"));
            // Who answers has refused them; who does not may do so soon.
            let is_late = chain(error).any(|error| error.is::<aws_smithy_async::future::timeout::TimedOutError>());
            let is_broken = chain(error).any(|error| error.is::<ConnectorError>());
            let cause = if (is_late || is_broken) && !is_about_address(error) { Cause::Transient } else { Cause::Permanent };
            Failure { cause, ..failure }
                .with_hint("`aws sts get-caller-identity` tries credentials out; `aws sso login` renews them")
        }
    }
}
