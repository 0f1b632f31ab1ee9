//! What a failed request means: above all whether a write may have been done.
//!
//! A write certainly was not done if it was not sent, or if the store has refused it with a code that is known as a
//! refusal. All else leaves it open: no answer, a server's error, a status without the store's own code, which any
//! proxy may send.

use super::answer::Answer;
use super::connector::{Exchange, Outcome};
use crate::backend::failure::{Cause, Failure};

/// How the users of a kind of store speak, for messages.
pub struct Hints {
    /// What objects are in.
    pub bucket: &'static str,
    /// How credentials are given.
    pub credentials: &'static str,
    /// Which rights are required.
    pub rights: &'static str,
    /// How to say where the store is.
    pub elsewhere: &'static str,
}

/// Of S3.
pub const S3: Hints = Hints {
    bucket: "bucket",
    credentials: "credentials are looked for in the address (`s3://KEY:SECRET@bucket`), then where \
        the AWS CLI finds them: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` (with \
        `AWS_SESSION_TOKEN`), `AWS_PROFILE`, a role of this host or container",
    rights: "locks require `s3:GetObject` and `s3:PutObject` on the objects, and `s3:ListBucket` on \
        the bucket, without which S3 does not tell that there is no object; to remove unused ones, \
        `s3:DeleteObject`",
    elsewhere: "`?region=…` and `?endpoint=…` at the end of the address, or `AWS_REGION` and \
        `AWS_ENDPOINT_URL`, say where it is",
};

/// Of Azure.
pub const AZURE: Hints = Hints {
    bucket: "container",
    credentials: "credentials are looked for in `AZURE_STORAGE_CONNECTION_STRING`, in \
        `AZURE_STORAGE_ACCOUNT_NAME` with `AZURE_STORAGE_ACCOUNT_KEY` or `AZURE_STORAGE_SAS_TOKEN`, \
        then those of an identity are fetched",
    rights: "locks require the role `Storage Blob Data Contributor` on the container, or a SAS for it \
        with `sp=rcwl`; to remove unused ones, `sp=rcwdl`",
    elsewhere: "`?account=…` or `?endpoint=…` at the end of the address, or \
        `AZURE_STORAGE_ACCOUNT_NAME`, say where it is",
};

/// Of Google.
pub const GCS: Hints = Hints {
    bucket: "bucket",
    credentials: "credentials are looked for where `GOOGLE_APPLICATION_CREDENTIALS` says, and where \
        `gcloud auth application-default login` leaves them; then those of the machine are fetched",
    rights: "locks require the role `roles/storage.objectUser` on the bucket",
    elsewhere: "`?endpoint=…` at the end of the address says where it is",
};

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// To read an object.
    Read,
    /// To create an object if there is none.
    Create,
    /// To replace an object if it is in a certain state.
    Replace,
    /// To delete an object if it is in a certain state.
    Delete,
    /// To list objects.
    List,
}

/// Why it was not done.
#[derive(Debug)]
pub enum Refusal {
    /// There is no such object.
    Missing,
    /// The object is in another state than the condition says.
    Conflict,
    /// For this reason.
    Failed(Failure),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Failed(failure) => failure,
            // The next read tells.
            Refusal::Missing | Refusal::Conflict => Failure::transient("another process has changed it at the same moment"),
        }
    }
}

/// The hint for a store without conditional writes.
pub const CONDITIONS: &str =
    "locks need a store with conditional writes (`If-None-Match: *` and `If-Match`), as S3 itself has them";

/// Codes for credentials that were good once.
const EXPIRED: &str = "ExpiredToken ExpiredTokenException RequestExpired TokenRefreshRequired";

/// Codes for credentials that are wrong.
const WRONG: &str = "AuthenticationFailed AuthenticationRequired InvalidAccessKeyId \
    InvalidAuthenticationInfo InvalidClientTokenId InvalidSecurity InvalidToken \
    NoAuthenticationInformation SignatureDoesNotMatch";

/// Codes for a missing right.
const DENIED: &str = "AccessDenied AccountIsDisabled AccountProblem AllAccessDisabled \
    AuthorizationFailure AuthorizationPermissionMismatch AuthorizationProtocolMismatch \
    AuthorizationResourceTypeMismatch AuthorizationServiceMismatch AuthorizationSourceIPMismatch \
    InsufficientAccountPermissions PublicAccessNotPermitted UserProjectAccountProblem";

/// Other codes that certainly refuse.
const REFUSED: &str = "AuthorizationHeaderMalformed BlobImmutableDueToPolicy \
    IllegalLocationConstraintException InvalidArgument InvalidBucketName InvalidHeaderValue \
    InvalidRequest InvalidStorageClass InvalidUri KMS.DisabledException KMS.NotFoundException \
    MethodNotAllowed NotImplemented PermanentRedirect TemporaryRedirect UnsupportedHeader";

fn is_among(code: &str, codes: &str) -> bool {
    codes.split_whitespace().any(|other| other == code)
}

/// What a failed request means. `unusual` is what the crate says about it.
pub fn refusal(
    question: Question,
    hints: &Hints,
    bucket: &str,
    exchange: Option<Exchange>,
    unusual: impl FnOnce() -> String,
) -> Refusal {
    let Some(exchange) = exchange else {
        let why = format!("credentials or settings cannot be used: {}", unusual());
        return Failure::permanent(why).with_hint(hints.credentials).into();
    };
    if !exchange.is_store {
        return without_credentials(hints, &exchange, unusual).into();
    }
    match exchange.outcome {
        Outcome::NotSent(failure) if failure.hint.is_none() => failure.with_hint(hints.elsewhere).into(),
        Outcome::NotSent(failure) => failure.into(),
        Outcome::NoAnswer(why) => open(question, Failure::transient(why)).into(),
        Outcome::Answered(Answer { status: 200..=299, .. }) => {
            let why = format!("the server's answer cannot be used: {}", unusual());
            open(question, Failure::permanent(why)).into()
        }
        Outcome::Answered(answer) => of_answer(question, hints, bucket, &answer),
    }
}

/// A write may have been done all the same.
fn open(question: Question, failure: Failure) -> Failure {
    if matches!(question, Question::Read | Question::List) { failure } else { failure.indefinite() }
}

fn of_answer(question: Question, hints: &Hints, bucket: &str, answer: &Answer) -> Refusal {
    let why = answer.printable();
    let is_write = !matches!(question, Question::Read | Question::List);
    match (answer.status, answer.code.as_str()) {
        (404, "NoSuchBucket" | "ContainerNotFound") => {
            let what = hints.bucket;
            let failure = Failure::permanent(format!("the {what} `{bucket}` does not exist"));
            failure.with_hint(format!("create it, or name another one: this program creates no {what}")).into()
        }
        (404, "NoSuchKey" | "BlobNotFound") => match question {
            Question::Replace | Question::Delete => Refusal::Conflict,
            _ => Refusal::Missing,
        },
        (412, "LeaseIdMissing" | "LeaseNotPresentWithBlobOperation" | "LeaseIdMismatchWithBlobOperation") => {
            Failure::permanent("another program has taken a lease on the blob")
                .with_hint("`az storage blob lease break` ends it; only this program may touch the blobs of locks")
                .into()
        }
        (412, _) if is_write => Refusal::Conflict,
        (409, "BlobAlreadyExists") | (304, _) if question == Question::Create => Refusal::Conflict,
        // Of two writes at the same moment, this one was not done.
        (409, "ConditionalRequestConflict" | "OperationAborted") => {
            Failure::transient("another process writes it at the same moment").into()
        }
        (301 | 307, _) | (400, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException")
            if answer.region.is_some() =>
        {
            in_region(bucket, answer).into()
        }
        (300..=399, code) => {
            let failure = Failure::permanent(format!("the server is elsewhere: {why}"));
            let failure = failure.with_hint(hints.elsewhere);
            if is_among(code, REFUSED) { failure.into() } else { open(question, failure).into() }
        }
        (503, "SlowDown" | "ServerBusy") | (429, _) => {
            open(question, Failure::transient(format!("the store has too much to do: {why}"))).into()
        }
        (501, "NotImplemented") => Failure::permanent(why).with_hint(CONDITIONS).into(),
        (400, "RequestTimeout") | (408 | 500.., _) => open(question, Failure::transient(why)).into(),
        (403, "RequestTimeTooSkewed") => {
            Failure::permanent(why).with_hint("this machine's clock is wrong; `timedatectl` shows it").into()
        }
        (_, code) if is_among(code, EXPIRED) => {
            Failure::permanent(format!("the credentials have expired: {why}")).with_hint(hints.credentials).into()
        }
        // Azure's emulator has the code of a missing right for a wrong key.
        (_, code) if is_among(code, WRONG) || why.contains("failed to authenticate") => {
            let failure = Failure::permanent(format!("the credentials are not accepted: {why}"));
            failure.with_hint(hints.credentials).into()
        }
        (_, code) if is_among(code, DENIED) => {
            let verb = match question {
                Question::Read => "read",
                Question::Create | Question::Replace => "write",
                Question::Delete => "delete",
                Question::List => "list",
            };
            let failure = Failure::permanent(format!("may not {verb} in `{bucket}`: {why}"));
            failure.with_hint(hints.rights).into()
        }
        (_, code) if is_among(code, REFUSED) => Failure::permanent(why).into(),
        // A proxy may say this; what it has done is not known.
        _ => open(question, Failure::permanent(why)).with_hint(hints.elsewhere).into(),
    }
}

fn in_region(bucket: &str, answer: &Answer) -> Failure {
    let region = answer.region.as_deref().unwrap_or_default();
    let hint = format!("`?region={region}` at the end of the address, or `AWS_REGION={region}`");
    Failure::permanent(format!("the bucket `{bucket}` is in the region `{region}`")).with_hint(hint)
}

/// The store was not asked. Outside of clouds, a server that gives out credentials does not answer, and never will.
fn without_credentials(hints: &Hints, exchange: &Exchange, unusual: impl FnOnce() -> String) -> Failure {
    let Exchange { server, is_encrypted, has_worked, outcome, .. } = exchange;
    // A metadata service that is not there has never answered; one that has may answer again.
    let lasting = if *is_encrypted || *has_worked { Cause::Transient } else { Cause::Permanent };
    let cannot = |why: &str| format!("cannot get credentials from `{server}`: {why}");
    let (why, cause) = match outcome {
        Outcome::NotSent(failure) => {
            let why = format!("there are no credentials, and none can be fetched: {}", failure.why);
            (why, if failure.cause == Cause::Permanent { Cause::Permanent } else { lasting })
        }
        Outcome::NoAnswer(why) => (cannot(why), lasting),
        Outcome::Answered(Answer { status: 200..=299, .. }) => (cannot(&unusual()), Cause::Permanent),
        Outcome::Answered(answer) => {
            let passes = matches!(answer.status, 429 | 500..);
            (cannot(&answer.printable()), if passes { Cause::Transient } else { Cause::Permanent })
        }
    };
    Failure { cause, ..Failure::transient(why) }.with_hint(hints.credentials)
}
