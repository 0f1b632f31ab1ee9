//! What a failed request means: above all whether a write may have been done.
//!
//! DynamoDB refuses with a code before it does anything: with a code that is known here, nothing was written. Nor was it
//! without a connection. All else leaves it open: no answer, a broken connection, 5xx, the answer of a proxy.

use std::error::Error;
use std::fmt;
use std::io;

use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

use super::Table;
use crate::backend::aws::{chain, innermost};
use crate::backend::checks;
use crate::backend::failure::{Cause, Failure};
use crate::backend::network::sentence;
use crate::backend::seam::Write;

/// How DynamoDB says that the table has other keys, or keys of another type.
const WRONG_KEYS: [&str; 4] = ["key element", "key schema", "conditions on the keys", "Type mismatch for key"];

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table `{}` in `{}`", self.options.table, self.region)
    }
}

impl Table<'_> {
    fn server(&self) -> String {
        match self.endpoint {
            Some(endpoint) => format!("DynamoDB at `{endpoint}`"),
            None => format!("DynamoDB in `{}`", self.region),
        }
    }

    /// How a conditional write ended.
    pub(super) fn done<T, E>(&self, sent: Result<T, SdkError<E, HttpResponse>>, action: &str) -> Result<Write, Failure>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match sent {
            Ok(_) => Ok(Write::Done),
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(Write::Conflict),
            Err(error) => Err(self.failure_of_write(&error, action)),
        }
    }

    /// Why `action` has failed, which changes no item.
    pub(super) fn failure<E>(&self, error: &SdkError<E, HttpResponse>, action: &str) -> Failure
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        Failure { is_indefinite: false, ..self.failure_of_write(error, action) }
    }

    fn failure_of_write<E>(&self, error: &SdkError<E, HttpResponse>, action: &str) -> Failure
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let server = self.server();
        match error {
            SdkError::ServiceError(answer) => {
                let (code, text) = (answer.err().code(), answer.err().message());
                let (code, text) = (code.unwrap_or(""), sentence(text.unwrap_or("no reason given")));
                let status = answer.raw().status().as_u16();
                self.refused(code, &text, action).unwrap_or_else(|| unknown(code, &text, status, &server))
            }
            // Its cause is about the request, and not for users.
            SdkError::ConstructionFailure(_) => {
                Failure::permanent(format!("{server} cannot be asked: the request cannot be made"))
            }
            SdkError::DispatchFailure(failure) => match failure.as_connector_error() {
                Some(error) if error.is_user() => Failure::permanent(format!("{server} cannot be asked: {}", innermost(error))),
                Some(error) if error.is_timeout() => {
                    Failure::transient(format!("{server} cannot be reached: no answer in time")).indefinite()
                }
                Some(error) => unreachable(error, &server),
                None => Failure::transient(format!("{server} cannot be reached")).indefinite(),
            },
            SdkError::TimeoutError(_) => Failure::transient(format!("{server} does not answer in time")).indefinite(),
            _ => Failure::transient(format!("the answer of {server} is not one of DynamoDB")).indefinite(),
        }
    }

    /// What a code means that is known: nothing was done.
    fn refused(&self, code: &str, text: &str, action: &str) -> Option<Failure> {
        let server = self.server();
        let failure = match code {
            "ResourceNotFoundException" | "TableNotFoundException" => {
                let why = format!("there is no {self}, or it is not ready");
                Failure { cause: Cause::NotPrepared, ..Failure::permanent(why) }
            }
            "ProvisionedThroughputExceededException"
            | "ThrottlingException"
            | "Throttling"
            | "ThrottledException"
            | "RequestLimitExceeded"
            | "LimitExceededException"
            | "TooManyRequestsException" => Failure::transient(format!("too many requests for {self}: {text}"))
                .with_hint("a table with on-demand capacity takes more within minutes; a provisioned one needs more capacity"),
            "TransactionConflictException" | "ReplicatedWriteConflictException" | "ResourceInUseException" => {
                Failure::transient(format!("{self} is in use: {text}"))
            }
            "AccessDeniedException" | "AccessDenied" => {
                Failure::permanent(format!("no permission for `{action}` on {self}: {text}"))
                    .with_hint("docs/stores.md of this program has the policy that it needs")
            }
            "ExpiredTokenException" | "ExpiredToken" | "TokenRefreshRequired" => {
                Failure::permanent(format!("the credentials have expired, says {server}"))
                    .with_hint("renew them, for example by `aws sso login`, or let a role provide them")
            }
            "UnrecognizedClientException" | "InvalidClientTokenId" | "InvalidAccessKeyId" | "AuthFailure" => {
                Failure::permanent(format!("the access key is not known to {server}: {text}"))
                    .with_hint("`aws sts get-caller-identity` tries credentials out")
            }
            "MissingAuthenticationTokenException" | "MissingAuthenticationToken" | "IncompleteSignatureException" => {
                Failure::permanent(format!("{server} has got no credentials that it understands: {text}"))
            }
            "InvalidSignatureException" | "SignatureDoesNotMatch" | "RequestTimeTooSkewed" | "RequestExpired" => {
                Failure::permanent(format!("{server} does not accept the signature: {text}"))
                    .with_hint("the secret key is another one, or this host's clock is wrong (`timedatectl`)")
            }
            "ValidationException" if WRONG_KEYS.iter().any(|said| text.contains(said)) => {
                let why = format!("the key of {self} is not just the text `{}`", self.options.key);
                let hint = "`key=…` in the address names it; a table that also has a sort key cannot be used";
                Failure::permanent(why).with_hint(hint)
            }
            "ValidationException" | "SerializationException" | "UnknownOperationException" | "InvalidEndpointException" => {
                Failure::permanent(format!("{server} refuses `{action}`: {text}"))
            }
            _ => return None,
        };
        Some(failure)
    }
}

/// What has happened is not known, nor which server says so.
fn unknown(code: &str, text: &str, status: u16, server: &str) -> Failure {
    let said = if code.is_empty() { String::new() } else { format!(", {}: {text}", sentence(code)) };
    let failure = Failure::transient(format!("{server} answers with the status {status}{said}")).indefinite();
    let is_final = (400..500).contains(&status) && !matches!(status, 408 | 429);
    if is_final { Failure { cause: Cause::Permanent, ..failure } } else { failure }
}

/// There was no answer. Only without a connection it is certain that nothing was sent.
fn unreachable(error: &(dyn Error + 'static), server: &str) -> Failure {
    let why = innermost(error);
    let failure = Failure::transient(format!("{server} cannot be reached: {why}"));
    if let Some(problem) = chain(error).find_map(|error| error.downcast_ref::<rustls::Error>()) {
        let why = format!("{server} cannot be reached: {}", checks::tls_problem(problem));
        let failure =
            Failure::permanent(why).with_hint("`AWS_CA_BUNDLE` or `SSL_CERT_FILE` names a file with the certificates to trust");
        // Other errors of TLS may come later than the handshake.
        let is_certain = matches!(problem, rustls::Error::InvalidCertificate(_));
        return if is_certain { failure } else { Failure { cause: Cause::Transient, ..failure }.indefinite() };
    }
    if why.contains("lookup address information") {
        let is_unknown = why.contains("not known") || why.contains("No address associated");
        let cause = if is_unknown { Cause::Permanent } else { Cause::Transient };
        return Failure { cause, ..failure }
            .with_hint("check the region and the `endpoint`; without a way to AWS it needs a VPC endpoint or `HTTPS_PROXY`");
    }
    let is_refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    let is_refused = chain(error).any(|error| error.downcast_ref::<io::Error>().is_some_and(is_refused));
    if is_refused { failure } else { failure.indefinite() }
}
