//! The HTTP client of an object store: the crate's own (reqwest). The crate's errors do not tell
//! all that matters: which server was asked, how far the request got, and the answer. So that is
//! the source of each error.
//!
//! A write certainly was not done if it was not sent, or if the store refuses the identity or the
//! right, or the state, in words of its own. All else leaves it open: no answer, a server's error,
//! a code that is not known here, a status without a code, which any proxy may send.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::{ClientOptions, Error};
use reqwest::Certificate;
use serde_json::Value;

use super::address::Kind;
use crate::store::checks::{self, refused_identity};
use crate::store::failure::{Cause, Failure};
use crate::store::network::{certificates, chain, innermost, sentence};
use crate::sys::text;

#[derive(Debug, thiserror::Error)]
#[error("`{server}` has not done what it was asked")]
pub struct Exchange {
    /// The server's URL, printable.
    pub server: String,
    /// The refusal, or why the answer is missing; a failure that is not indefinite was not sent.
    pub answer: Result<Answer, Failure>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The name of the error: `NoSuchKey`, `ConditionNotMet` …; empty without one.
    pub code: String,
    /// All of it, as part of a sentence.
    pub why: String,
    pub region: Option<String>,
}

impl Answer {
    /// Takes an answer apart: XML of the stores, JSON of servers that give out credentials, with
    /// other codes than the store's.
    fn of(status: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let header = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
        let is_word =
            |text: &String| text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        let code = element(&text, "Code").or_else(|| header("x-ms-error-code")).filter(is_word);
        let region =
            header("x-amz-bucket-region").or_else(|| element(&text, "Region")).filter(is_word);
        let json: Value = serde_json::from_str(&text).unwrap_or_default();
        let field = |name: &&str| json.get(*name)?.as_str().map(str::to_owned);
        let fields = || ["error_description", "message", "error"].iter().find_map(field);
        let message = element(&text, "Message").or_else(fields).unwrap_or_default();
        let what = code.clone().unwrap_or_else(|| format!("status {status}"));
        // Azure's second line identifies the request.
        let why = match message.lines().next().filter(|line| !line.trim().is_empty()) {
            Some(line) => format!("{} ({what})", sentence(line)),
            None => format!("the server answers with {what}"),
        };
        Self { status, code: code.unwrap_or_default(), why, region }
    }
}

/// The text of the first element of this name. Errors are flat, and their texts are short.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    let replace = |inner: String, (code, text): (&str, &str)| inner.replace(code, text);
    Some(entities.into_iter().fold(inner.to_owned(), replace).trim().to_owned())
}

/// What each client of the crate is made of.
#[derive(Clone, Debug)]
pub struct Connector {
    /// For each answer.
    pub timeout: Duration,
    /// A file with the certificates to trust instead of the system's.
    pub roots: Option<PathBuf>,
    /// Made when they are needed: the system's certificates take milliseconds to read. The second
    /// one encrypts.
    pub clients: Arc<[OnceLock<Result<reqwest::Client, Failure>>; 2]>,
}

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

impl Connector {
    fn client(&self, is_encrypted: bool) -> Result<reqwest::Client, Failure> {
        let cannot = |error: reqwest::Error| {
            Failure::permanent(format!("connections cannot be made: {}", innermost(&error)))
        };
        let make = || {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("serializer/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(self.timeout)
                .read_timeout(self.timeout)
                .http1_only()
                // After a redirect, a PUT becomes a GET, and its success looks like that of the
                // PUT.
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never());
            let roots = |path| Certificate::from_pem_bundle(&certificates(path)?).map_err(cannot);
            let builder = match &self.roots {
                _ if !is_encrypted => builder.tls_certs_only([]),
                None => builder,
                Some(path) => builder.tls_certs_only(roots(path)?),
            };
            builder.build().map_err(cannot)
        };
        self.clients[usize::from(is_encrypted)].get_or_init(make).clone()
    }
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let scheme = request.uri().scheme_str().unwrap_or("").to_owned();
        let host = request.uri().authority().map_or("", |authority| authority.as_str());
        let host = host.rsplit('@').next().unwrap_or("");
        let server = text::field(&format!("{scheme}://{host}"));
        let failed = |error: HttpError| checks::unanswered(&error, &format!("`{server}`"));
        let asked = async {
            let client = self.client(scheme != "http")?;
            let (parts, body) = client.call(request).await.map_err(failed)?.into_parts();
            Ok((parts, body.bytes().await.map_err(failed)?))
        };
        let answer = match asked.await {
            Ok((parts, body)) if parts.status.is_success() => {
                return Ok(HttpResponse::from_parts(parts, body.into()));
            }
            Ok((parts, body)) => Ok(Answer::of(parts.status.as_u16(), &parts.headers, &body)),
            Err(failure) => Err(failure),
        };
        Err(HttpError::new(HttpErrorKind::Unknown, Exchange { server, answer }))
    }
}

pub const CONDITIONS: &str = "locks need a store with conditional writes (`If-None-Match: *` and \
                              `If-Match`), as S3 itself has them";

fn exchange(error: &Error) -> Option<&Exchange> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// Why the store did not do what it was asked; `None` if the object does not exist, or is in
/// another state.
pub fn refusal(verb: &str, bucket: &str, kind: &Kind, error: &Error) -> Option<Failure> {
    let failure = match exchange(error).map(|exchange| &exchange.answer) {
        Some(Ok(answer)) => return of_answer(verb, bucket, kind, answer),
        Some(Err(failure)) => failure.clone(),
        None => {
            let why = format!("the server's answer cannot be used: {}", innermost(error));
            Failure::permanent(why).indefinite()
        }
    };
    let hint = failure.hint.clone().unwrap_or_else(|| kind.elsewhere.to_owned());
    Some(failure.with_hint(hint))
}

fn of_answer(verb: &str, bucket: &str, kind: &Kind, answer: &Answer) -> Option<Failure> {
    let Answer { status, code, why, region } = answer;
    let (why, is_write) = (why.as_str(), verb == "write");
    let open = |cause, why: &str| Failure { cause, ..Failure::transient(why).indefinite() };
    Some(match (*status, code.as_str()) {
        (404, "NoSuchKey" | "BlobNotFound") => return None,
        (409, "BlobAlreadyExists") | (304, _) if is_write => return None,
        // Another program's lease on a blob is not a state.
        (412, code) if is_write && !code.starts_with("Lease") => return None,
        (404, "NoSuchBucket" | "ContainerNotFound") => Failure::refused(
            format!("the bucket `{bucket}` does not exist"),
            "create it, or name another one: this program creates none",
        ),
        (301 | 307, _)
        | (400, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException")
            if let Some(region) = region =>
        {
            let hint = format!("`?region={region}` in the address, or `AWS_REGION={region}`");
            Failure::refused(format!("the bucket `{bucket}` is in the region `{region}`"), hint)
        }
        (300..=399, _) => open(Cause::Permanent, &format!("the server is elsewhere: {why}"))
            .with_hint(kind.elsewhere),
        (429, _) | (503, "SlowDown" | "ServerBusy") => {
            open(Cause::Transient, &format!("the store has too much to do: {why}"))
        }
        (501, _) => open(Cause::Permanent, why).with_hint(CONDITIONS),
        (400, "RequestTimeout") | (408 | 409 | 500.., _) => open(Cause::Transient, why),
        (_, "RequestTimeTooSkewed") => {
            Failure::refused(why, "this machine's clock is wrong; `timedatectl` shows it")
        }
        // Azure's emulator has the code of a missing right for a wrong key.
        (_, code) if let Some(said) = refused_identity(code, why) => {
            Failure::refused(format!("{said}: {why}"), kind.credentials)
        }
        (401 | 403, code) if !code.is_empty() => {
            Failure::refused(format!("may not {verb} in `{bucket}`: {why}"), kind.rights)
        }
        (_, "") => open(Cause::Permanent, why).with_hint(kind.elsewhere),
        _ => open(Cause::Permanent, why),
    })
}

/// Why credentials are missing: the store was not asked. Outside of clouds, a server that gives
/// out credentials does not answer, and never will.
pub fn without_credentials(kind: &Kind, error: &Error) -> Failure {
    let (why, passes) = match exchange(error) {
        Some(Exchange { server, answer: Ok(Answer { status, why, .. }) }) => {
            (format!("`{server}`: {why}"), matches!(*status, 429 | 500..))
        }
        Some(Exchange { server, answer: Err(failure) }) => {
            (failure.why.clone(), server.starts_with("https") && failure.cause == Cause::Transient)
        }
        None => (innermost(error), false),
    };
    let why = format!("no credentials found, and none can be fetched: {why}");
    let cause = if passes { Cause::Transient } else { Cause::Permanent };
    Failure { cause, ..Failure::transient(why) }.with_hint(kind.credentials)
}
