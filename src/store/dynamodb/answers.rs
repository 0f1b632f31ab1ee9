//! What a failed request means: above all whether a write may have been done.
//!
//! DynamoDB refuses with a code before it does anything: with a code that is known here, nothing
//! was written. Nor was it without a connection. All else leaves it open: no answer, a broken
//! connection, 5xx, the answer of a proxy.

use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

use super::table::Table;
use crate::store::checks::{refused_identity, unanswered};
use crate::store::failure::{Cause, Failure};
use crate::store::network::sentence;
use crate::store::seam::Write;

/// How DynamoDB says that the table has other keys, or keys of another type.
const WRONG_KEYS: [&str; 4] =
    ["key element", "key schema", "conditions on the keys", "Type mismatch for key"];

const THROTTLED: [&str; 4] = ["Throughput", "Throttl", "LimitExceeded", "TooManyRequests"];

type Failed<E> = SdkError<E, HttpResponse>;

impl Table {
    pub fn done<T, E: ProvideErrorMetadata>(
        &self,
        sent: Result<T, Failed<E>>,
        action: &str,
    ) -> Result<Write, Failure> {
        let Err(error) = sent else { return Ok(Write::Done) };
        match error.code() {
            Some("ConditionalCheckFailedException") => Ok(Write::Conflict),
            _ => Err(self.failure_of_write(&error, action)),
        }
    }

    /// Why `action` has failed, which changes no item.
    pub fn failure(&self, error: &Failed<impl ProvideErrorMetadata>, action: &str) -> Failure {
        Failure { is_indefinite: false, ..self.failure_of_write(error, action) }
    }

    fn failure_of_write(&self, error: &Failed<impl ProvideErrorMetadata>, action: &str) -> Failure {
        let server = &self.server;
        let open = |why: &str| Failure::transient(format!("{server} {why}")).indefinite();
        match error {
            SdkError::ServiceError(answer) => {
                let text = sentence(answer.err().message().unwrap_or("no reason given"));
                let status = answer.raw().status().as_u16();
                self.refused(answer.err().code().unwrap_or(""), &text, status, action)
            }
            // Its cause is about the request, and not for users.
            SdkError::ConstructionFailure(_) => {
                Failure::permanent(format!("{server} cannot be asked"))
            }
            SdkError::DispatchFailure(failure) if !failure.is_timeout() => {
                let failure = failure.as_connector_error().map(|error| unanswered(error, server));
                let failure = failure.unwrap_or_else(|| open("does not answer"));
                let hint = "check the region and the `endpoint`; without a way to AWS it needs a \
                            VPC endpoint or `HTTPS_PROXY`";
                Failure { hint: failure.hint.or(Some(hint.to_owned())), ..failure }
            }
            SdkError::ResponseError(_) => open("does not answer as DynamoDB does"),
            _ => open("does not answer in time"),
        }
    }

    /// What a code means. Those that are known say that nothing was done.
    fn refused(&self, code: &str, text: &str, status: u16, action: &str) -> Failure {
        let Self { server, name, .. } = self;
        match code {
            "ResourceNotFoundException" | "TableNotFoundException" => {
                let why = format!("{name} does not exist, or is not ready");
                Failure { cause: Cause::NotPrepared, ..Failure::permanent(why) }
            }
            _ if code.contains("ConflictException") || code == "ResourceInUseException" => {
                Failure::transient(format!("{name} is in use: {text}"))
            }
            _ if THROTTLED.iter().any(|word| code.contains(word)) => {
                let why = format!("too many requests for {name}: {text}");
                Failure::transient(why).with_hint("the table's capacity may be too low")
            }
            "AccessDeniedException" | "AccessDenied" => Failure::refused(
                format!("no permission for `{action}` on {name}: {text}"),
                "docs/stores.md of this program has the policy that it needs",
            ),
            _ if let Some(said) = refused_identity(code, text) => Failure::refused(
                format!("{said} by {server}: {text}"),
                "`aws sts get-caller-identity` tries them out, `aws sso login` renews them; the \
                 clock of this host may be wrong (`timedatectl`)",
            ),
            "ValidationException" if WRONG_KEYS.iter().any(|said| text.contains(said)) => {
                Failure::refused(
                    format!("the key of {name} is not just the text `{}`", self.names.key),
                    "`key=…` in the address names it; a table that also has a sort key cannot be \
                     used",
                )
            }
            "ValidationException" => {
                Failure::permanent(format!("{server} refuses `{action}`: {text}"))
            }
            // Which server says so is not known, nor what has happened.
            _ => {
                let code = sentence(code);
                let why = format!("{server} answers with the status {status}, {code}: {text}");
                let passes = matches!(status, 408 | 429 | 500..);
                let cause = if passes { Cause::Transient } else { Cause::Permanent };
                Failure { cause, ..Failure::transient(why).indefinite() }
            }
        }
    }
}
