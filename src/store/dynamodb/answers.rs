//! What a failed request means: above all whether a write may have been done.
//!
//! DynamoDB refuses with a code before it does anything: with a code that is known here, nothing
//! was written. Nor was it without a connection. All else leaves it open: no answer, a broken
//! connection, 5xx, the answer of a proxy.

use std::error::Error;
use std::fmt;

use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

use super::Table;
use crate::store::checks::{refused_identity, unanswered};
use crate::store::failure::{Cause, Failure};
use crate::store::network::sentence;
use crate::store::seam::Write;

/// How DynamoDB says that the table has other keys, or keys of another type.
const WRONG_KEYS: [&str; 4] =
    ["key element", "key schema", "conditions on the keys", "Type mismatch for key"];

/// A request that failed.
type Failed<E> = SdkError<E, HttpResponse>;

/// What DynamoDB said.
pub(super) trait Said: ProvideErrorMetadata + Error + 'static {}
impl<E: ProvideErrorMetadata + Error + 'static> Said for E {}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table `{}` in `{}`", self.names.table, self.region)
    }
}

impl Table {
    /// How a conditional write ended.
    pub(super) fn done<T>(
        &self,
        sent: Result<T, Failed<impl Said>>,
        action: &str,
    ) -> Result<Write, Failure> {
        match sent {
            Ok(_) => Ok(Write::Done),
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => {
                Ok(Write::Conflict)
            }
            Err(error) => Err(self.failure_of_write(&error, action)),
        }
    }

    /// Why `action` has failed, which changes no item.
    pub(super) fn failure(&self, error: &Failed<impl Said>, action: &str) -> Failure {
        Failure { is_indefinite: false, ..self.failure_of_write(error, action) }
    }

    fn failure_of_write(&self, error: &Failed<impl Said>, action: &str) -> Failure {
        let server = &self.server;
        match error {
            SdkError::ServiceError(answer) => {
                let (code, text) = (answer.err().code(), answer.err().message());
                let text = sentence(text.unwrap_or("no reason given"));
                self.refused(code.unwrap_or(""), &text, answer.raw().status().as_u16(), action)
            }
            // Its cause is about the request, and not for users.
            SdkError::ConstructionFailure(_) => {
                Failure::permanent(format!("{server} cannot be asked"))
            }
            SdkError::DispatchFailure(failure) if !failure.is_timeout() => {
                let failure = failure.as_connector_error().map(|error| unanswered(error, server));
                let failure = failure.unwrap_or_else(|| {
                    Failure::transient(format!("{server} does not answer")).indefinite()
                });
                let hint = "check the region and the `endpoint`; without a way to AWS it needs a \
                            VPC endpoint or `HTTPS_PROXY`";
                Failure { hint: failure.hint.or(Some(hint.to_owned())), ..failure }
            }
            SdkError::ResponseError(_) => {
                Failure::transient(format!("the answer of {server} is not one of DynamoDB"))
                    .indefinite()
            }
            _ => Failure::transient(format!("{server} does not answer in time")).indefinite(),
        }
    }

    /// What a code means. Those that are known say that nothing was done.
    fn refused(&self, code: &str, text: &str, status: u16, action: &str) -> Failure {
        let server = &self.server;
        match code {
            "ResourceNotFoundException" | "TableNotFoundException" => Failure {
                cause: Cause::NotPrepared,
                ..Failure::permanent(format!("there is no {self}, or it is not ready"))
            },
            "TransactionConflictException"
            | "ReplicatedWriteConflictException"
            | "ResourceInUseException" => Failure::transient(format!("{self} is in use: {text}")),
            _ if ["Throughput", "Throttl", "LimitExceeded", "TooManyRequests"]
                .iter()
                .any(|word| code.contains(word)) =>
            {
                Failure::transient(format!("too many requests for {self}: {text}")).with_hint(
                    "a table with on-demand capacity takes more within minutes; a provisioned one \
                     needs more capacity",
                )
            }
            "AccessDeniedException" | "AccessDenied" => {
                Failure::permanent(format!("no permission for `{action}` on {self}: {text}"))
                    .with_hint("docs/stores.md of this program has the policy that it needs")
            }
            _ if let Some(said) = refused_identity(code, text) => Failure::permanent(format!(
                "{said} by {server}: {text}"
            ))
            .with_hint(
                "`aws sts get-caller-identity` tries credentials out, `aws sso login` renews them; \
                 if this host's clock is wrong (`timedatectl`), none are accepted",
            ),
            "ValidationException" if WRONG_KEYS.iter().any(|said| text.contains(said)) => {
                let why = format!("the key of {self} is not just the text `{}`", self.names.key);
                let hint = "`key=…` in the address names it; a table that also has a sort key \
                            cannot be used";
                Failure::permanent(why).with_hint(hint)
            }
            "ValidationException" => {
                Failure::permanent(format!("{server} refuses `{action}`: {text}"))
            }
            // Which server says so is not known, nor what has happened.
            _ => {
                let said = if code.is_empty() {
                    String::new()
                } else {
                    format!(", {}: {text}", sentence(code))
                };
                let why = format!("{server} answers with the status {status}{said}");
                let is_final = (400..500).contains(&status) && !matches!(status, 408 | 429);
                if is_final {
                    Failure::permanent(why).indefinite()
                } else {
                    Failure::transient(why).indefinite()
                }
            }
        }
    }
}
