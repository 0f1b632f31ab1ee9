//! What a failed request means: above all whether a write may have been done.
//!
//! A write certainly was not done if it was not sent, or if the store refuses the identity or the
//! right, or the state, in words of its own. All else leaves it open: no answer, a server's error,
//! a code that is not known here, a status without a code, which any proxy may send.

use super::address::Options;
use super::answer::Answer;
use super::connector::Exchange;
use super::kinds::Kind;
use crate::store::checks::refused_identity;
use crate::store::failure::{Cause, Failure};
use crate::store::network::{chain, innermost};

/// The hint for a store without conditional writes.
pub const CONDITIONS: &str = "locks need a store with conditional writes (`If-None-Match: *` and \
                              `If-Match`), as S3 itself has them";

fn exchange(error: &object_store::Error) -> Option<&Exchange> {
    chain(error).find_map(|error| error.downcast_ref::<Exchange>())
}

/// Why the store did not do what it was asked; `None` if the object does not exist, or is in
/// another state.
pub fn refusal(verb: &str, options: &Options, error: &object_store::Error) -> Option<Failure> {
    let failure = match exchange(error).map(|exchange| &exchange.answer) {
        None => {
            let why = format!("the server's answer cannot be used: {}", innermost(error));
            Failure::permanent(why).indefinite().with_hint(options.kind.elsewhere)
        }
        Some(Err(failure)) if failure.hint.is_some() || failure.is_indefinite => failure.clone(),
        Some(Err(failure)) => failure.clone().with_hint(options.kind.elsewhere),
        Some(Ok(answer)) => of_answer(verb, options, answer)?,
    };
    Some(failure)
}

fn of_answer(verb: &str, options: &Options, answer: &Answer) -> Option<Failure> {
    let Options { bucket, kind: Kind { bucket: what, elsewhere, credentials, rights, .. }, .. } =
        options;
    let why = answer.printable();
    let is_write = verb == "write";
    let open =
        |cause: Cause, why: String| Failure { cause, ..Failure::transient(why).indefinite() };
    Some(match (answer.status, answer.code.as_str()) {
        (404, "NoSuchKey" | "BlobNotFound") => return None,
        (409, "BlobAlreadyExists") | (304, _) if is_write => return None,
        // Another program's lease on a blob is not a state.
        (412, code) if is_write && !code.starts_with("Lease") => return None,
        (404, "NoSuchBucket" | "ContainerNotFound") => Failure::permanent(format!(
            "the {what} `{bucket}` does not exist"
        ))
        .with_hint(format!("create it, or name another one: this program creates no {what}")),
        (301 | 307, _)
        | (400, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException")
            if let Some(region) = &answer.region =>
        {
            let hint =
                format!("`?region={region}` at the end of the address, or `AWS_REGION={region}`");
            Failure::permanent(format!("the bucket `{bucket}` is in the region `{region}`"))
                .with_hint(hint)
        }
        (300..=399, _) => {
            open(Cause::Permanent, format!("the server is elsewhere: {why}")).with_hint(*elsewhere)
        }
        (429, _) | (503, "SlowDown" | "ServerBusy") => {
            open(Cause::Transient, format!("the store has too much to do: {why}"))
        }
        (501, _) => open(Cause::Permanent, why).with_hint(CONDITIONS),
        (400, "RequestTimeout") | (408 | 409 | 500.., _) => open(Cause::Transient, why),
        (_, "RequestTimeTooSkewed") => Failure::permanent(why)
            .with_hint("this machine's clock is wrong; `timedatectl` shows it"),
        // Azure's emulator has the code of a missing right for a wrong key.
        (_, code) if let Some(said) = refused_identity(code, &why) => {
            Failure::permanent(format!("{said}: {why}")).with_hint(*credentials)
        }
        (401 | 403, code) if !code.is_empty() => {
            Failure::permanent(format!("may not {verb} in `{bucket}`: {why}")).with_hint(*rights)
        }
        (_, "") => open(Cause::Permanent, why).with_hint(*elsewhere),
        _ => open(Cause::Permanent, why),
    })
}

/// Why there are no credentials: the store was not asked. Outside of clouds, a server that gives
/// out credentials does not answer, and never will; one that `has_worked` may answer again.
pub fn without_credentials(kind: &Kind, error: &object_store::Error, has_worked: bool) -> Failure {
    let (why, cause) = match exchange(error) {
        Some(Exchange { server, answer: Ok(answer) }) => {
            let passes = matches!(answer.status, 429 | 500..);
            (
                format!("`{server}`: {}", answer.printable()),
                if passes { Cause::Transient } else { Cause::Permanent },
            )
        }
        Some(Exchange { server, answer: Err(failure) }) => {
            let may_come = server.starts_with("https") || has_worked;
            (failure.why.clone(), if may_come { failure.cause } else { Cause::Permanent })
        }
        None => (innermost(error), Cause::Permanent),
    };
    let why = format!("there are no credentials, and none can be fetched: {why}");
    Failure { cause, ..Failure::transient(why) }.with_hint(kind.credentials)
}
