//! What it means that a question has failed, and above all whether something may have been written.
//!
//! Nothing was written for certain where the question was not sent, or where the store has refused it (statuses 3xx and 4xx but 408). All
//! else (no answer, a server's error, a store that is overloaded) leaves it open.

use super::answer::Answer;
use super::http::{Exchange, Outcome};
use super::words::Words;
use crate::backend::failure::{Cause, Failure};
use crate::backend::network::sentence;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// What an object says.
    Read,
    /// To make an object if there is none.
    Create,
    /// To replace an object if it is still what was read.
    Replace,
    /// Which objects there are.
    List,
}

impl Question {
    fn is_write(self) -> bool {
        matches!(self, Self::Create | Self::Replace)
    }
}

/// Why it was not done.
#[derive(Debug)]
pub enum Refusal {
    /// There is no such object.
    Missing,
    /// The object is not what the condition says.
    Conflict,
    /// For this reason.
    Failed(Failure),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What a failed question means. `exchange` is what was sent and answered last, `error` what is made of it, if it was not given up.
pub fn refusal(
    question: Question,
    words: &Words,
    bucket: &str,
    exchange: Option<Exchange>,
    error: Option<&object_store::Error>,
) -> Refusal {
    let unusual = || error.map_or_else(|| "no answer in time".to_owned(), innermost);
    let Some(exchange) = exchange else { return Failure::permanent(unusual()).with_hint(words.credentials).into() };
    if !exchange.is_store {
        return without_credentials(words, &exchange, &unusual()).into();
    }
    match exchange.outcome {
        Outcome::NotSent(failure) if failure.hint.is_none() => failure.with_hint(words.elsewhere).into(),
        Outcome::NotSent(failure) => failure.into(),
        Outcome::NoAnswer(why) => open(question, Failure::transient(why)).into(),
        // It was done, as far as that goes.
        Outcome::Answered(Answer { status: 200..=299, .. }) => {
            let why = format!("the server's answer cannot be used: {}", unusual());
            open(question, Failure::permanent(why)).into()
        }
        Outcome::Answered(answer) => of_answer(question, words, bucket, &answer),
    }
}

/// It may have been done all the same.
fn open(question: Question, failure: Failure) -> Failure {
    if question.is_write() { failure.indefinite() } else { failure }
}

fn of_answer(question: Question, words: &Words, bucket: &str, answer: &Answer) -> Refusal {
    let why = answer.printable();
    match (answer.status, answer.code.as_str()) {
        (404, "NoSuchBucket" | "ContainerNotFound") => {
            let failure = Failure::permanent(format!("the {} `{bucket}` does not exist", words.bucket));
            failure.with_hint(format!("create it, or name another one: no {} is ever made by this program", words.bucket)).into()
        }
        (404, "NoSuchKey" | "BlobNotFound") if question == Question::Replace => Refusal::Conflict,
        (404, "NoSuchKey" | "BlobNotFound") => Refusal::Missing,
        (412, "LeaseIdMissing" | "LeaseNotPresentWithBlobOperation" | "LeaseIdMismatchWithBlobOperation" | "LeaseLost") => {
            let failure = Failure::permanent("another program has taken a lease on the blob");
            failure
                .with_hint("`az storage blob lease break` ends it; nobody but this program is to touch the blobs of locks")
                .into()
        }
        (409, "BlobAlreadyExists") => Refusal::Conflict,
        (412, _) if question.is_write() => Refusal::Conflict,
        (304, _) if question == Question::Create => Refusal::Conflict,
        // Two writes at the same moment: this one was not done.
        (409, "ConditionalRequestConflict" | "OperationAborted") => {
            Failure::transient("somebody else writes it at the same moment").into()
        }
        (301 | 307 | 400, _) if answer.region.is_some() => in_region(bucket, answer).into(),
        (301 | 302 | 307 | 308, _) => {
            Failure::permanent(format!("the server is elsewhere: {why}")).with_hint(words.elsewhere).into()
        }
        (400, "RequestTimeout") | (408, _) => open(question, Failure::transient(why)).into(),
        (503, "SlowDown" | "ServerBusy") | (429, _) => {
            let failure = Failure::transient(format!("the store has too much to do: {why}"));
            open(question, failure).into()
        }
        (501, _) => Failure::permanent(why).with_hint(CONDITIONS).into(),
        (500.., _) => open(question, Failure::transient(why)).into(),
        (400 | 401 | 403, code) if EXPIRED.contains(&code) => {
            Failure::permanent(format!("the credentials have expired: {why}")).with_hint(words.credentials).into()
        }
        (403, "RequestTimeTooSkewed") => {
            Failure::permanent(why).with_hint("this machine's clock is wrong; `timedatectl` shows it").into()
        }
        (400 | 401 | 403, code) if UNKNOWN.contains(&code) => {
            Failure::permanent(format!("the credentials are not accepted: {why}")).with_hint(words.credentials).into()
        }
        (401, _) => Failure::permanent(why).with_hint(words.credentials).into(),
        (403, _) => {
            let (may, hint) = match question {
                Question::Read => ("may not read", words.may_read),
                Question::Create | Question::Replace => ("may not write", words.may_write),
                Question::List => ("may not list", words.may_list),
            };
            Failure::permanent(format!("{may} in `{bucket}`: {why}")).with_hint(hint).into()
        }
        _ => Failure::permanent(why).into(),
    }
}

/// Codes of all stores that say that credentials were good once.
const EXPIRED: [&str; 4] = ["ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"];

/// Codes of all stores that say that nobody is known by these credentials.
const UNKNOWN: [&str; 9] = [
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "InvalidClientTokenId",
    "AuthenticationFailed",
    "InvalidAuthenticationInfo",
    "NoAuthenticationInformation",
    "AuthenticationRequired",
    "InvalidSecurity",
];

/// What a store is for that has no conditions.
pub const CONDITIONS: &str =
    "locks need a store that does conditional writes (`If-None-Match: *` and `If-Match`), as S3 itself does";

fn in_region(bucket: &str, answer: &Answer) -> Failure {
    let region = answer.region.as_deref().unwrap_or_default();
    let hint = format!("`?region={region}` at the end of the address, or `AWS_REGION={region}`");
    Failure::permanent(format!("the bucket `{bucket}` is in the region `{region}`")).with_hint(hint)
}

/// Without credentials nothing was asked of the store.
fn without_credentials(words: &Words, exchange: &Exchange, unusual: &str) -> Failure {
    let place = exchange.place.as_ref().map(super::wire::Place::printable).unwrap_or_default();
    match &exchange.outcome {
        // Where nothing is set up, the machine is asked who it is, and outside of clouds nobody answers.
        Outcome::NotSent(failure) => {
            let why = format!("there are no credentials, and none can be got: {}", failure.why);
            let failure = Failure { why, cause: failure.cause, hint: None, is_indefinite: false };
            let is_machine = exchange.place.as_ref().is_some_and(super::http::is_metadata);
            let cause = if is_machine { Cause::Permanent } else { failure.cause };
            Failure { cause, ..failure }.with_hint(words.credentials)
        }
        Outcome::NoAnswer(why) => Failure::transient(format!("cannot get credentials from `{place}`: {why}")),
        Outcome::Answered(answer) => {
            let why = match answer.status {
                200..=299 => unusual.to_owned(),
                _ => answer.printable(),
            };
            let why = format!("cannot get credentials from `{place}`: {why}");
            match answer.status {
                429 | 500.. => Failure::transient(why),
                _ => Failure::permanent(why).with_hint(words.credentials),
            }
        }
    }
}

/// What an error is in the end about.
pub fn innermost(error: &object_store::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    // Ends with the innermost one.
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    sentence(&innermost.to_string())
}
