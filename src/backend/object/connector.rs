//! The HTTP client of an object store: the crate's own (reqwest), with a note of the last request. The crate's
//! errors tell neither the status of every answer, nor the server's code, nor whether the store or a server that
//! gives out credentials was asked.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;
use object_store::ClientOptions;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};

use crate::backend::aws::{chain, innermost};
use crate::backend::checks;
use crate::backend::failure::Failure;
use crate::backend::network::sentence;
use crate::printable;

/// The largest answer that is read: a list of 1,000 names of 1 KiB, with what is said about each.
const MAX_ANSWER: usize = 8 << 20;

/// How long to wait for a connection to a server that only machines in clouds have.
const METADATA_LIMIT: Duration = Duration::from_secs(1);

/// The last request, and what became of it.
pub struct Exchange {
    /// Whether the store was asked, and not a server that gives out credentials.
    pub is_store: bool,
    /// The server, printable.
    pub server: String,
    /// Whether the connection is encrypted.
    pub is_encrypted: bool,
    /// How far the request got.
    pub outcome: Outcome,
}

/// How far a request got.
pub enum Outcome {
    /// It was not sent, for this reason.
    NotSent(Failure),
    /// It may have been sent, and there is no answer, for this reason.
    NoAnswer(String),
    /// It was answered.
    Answered(Answer),
}

/// What a server said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The name of the error: `NoSuchKey`, `ConditionNotMet` …; empty without one.
    pub code: String,
    /// What the server says about it, as part of a sentence; may be empty.
    pub message: String,
    /// The region of the bucket.
    pub region: Option<String>,
}

/// What the clients of a store share.
pub struct Shared {
    timeout: Duration,
    roots: Option<PathBuf>,
    /// The store's client is connected last; those before it fetch credentials.
    connected: AtomicUsize,
    last: Mutex<Option<Exchange>>,
    store: Mutex<Option<HttpClient>>,
}

impl Shared {
    /// For one store. `roots` is a file with the certificates to trust instead of the system's.
    pub fn new(timeout: Duration, roots: Option<PathBuf>) -> Arc<Self> {
        let connected = AtomicUsize::new(0);
        Arc::new(Self { timeout, roots, connected, last: Mutex::new(None), store: Mutex::new(None) })
    }

    /// The store's client, once it is connected.
    pub fn store_client(&self) -> Option<HttpClient> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last request since the last call.
    pub fn take_last(&self) -> Option<Exchange> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Makes clients.
#[derive(Clone)]
pub struct Connector {
    /// What they share.
    pub shared: Arc<Shared>,
    /// Whether no connection will be encrypted: the system's certificates take milliseconds to read.
    pub is_plain: bool,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let shared = Arc::clone(&self.shared);
        let number = shared.connected.fetch_add(1, Ordering::Relaxed) + 1;
        let option = |options: &ClientOptions, key| options.get_config_value(&key);
        let is_usual =
            option(options, ClientConfigKey::ConnectTimeout) == option(&ClientOptions::new(), ClientConfigKey::ConnectTimeout);
        let limit = if is_usual { shared.timeout } else { shared.timeout.min(METADATA_LIMIT) };
        let is_plain = option(options, ClientConfigKey::AllowHttp).is_some_and(|value| value == "true");
        // Fails where there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("serializer/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(limit)
            .timeout(shared.timeout)
            .https_only(!is_plain)
            .http1_only()
            // After a redirect, a PUT becomes a GET, whose success looks like that of the PUT.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never());
        let cannot = |source: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Generic { store: "client", source };
        if let Some(path) = &shared.roots {
            let found = checks::certificates(path).map_err(|failure| cannot(failure.why.into()))?;
            let found = found.iter().map(|certificate| reqwest::Certificate::from_der(certificate));
            let found = found.collect::<Result<Vec<_>, _>>().map_err(|error| cannot(error.into()))?;
            builder = builder.tls_certs_only(found);
        } else if self.is_plain {
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(|error| cannot(error.into()))?;
        let client = HttpClient::new(Noting { client, number, shared: Arc::clone(&shared) });
        *shared.store.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        Ok(client)
    }
}

/// A client that notes its last request.
struct Noting {
    client: reqwest::Client,
    number: usize,
    shared: Arc<Shared>,
}

impl fmt::Debug for Noting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Noting")
    }
}

#[async_trait]
impl HttpService for Noting {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let uri = request.uri();
        let server = uri.authority().map_or("", |at| at.as_str().rsplit('@').next().unwrap_or(""));
        let (server, is_encrypted) = (printable::field(server), uri.scheme_str() == Some("https"));
        let note = |outcome| {
            let is_store = self.number == self.shared.connected.load(Ordering::Relaxed);
            let last = Exchange { is_store, server: server.clone(), is_encrypted, outcome };
            *self.shared.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        };
        // If the caller gives up, this is what is known.
        note(Outcome::NoAnswer("there is no answer in time".to_owned()));
        let answered = async {
            let (parts, body) = self.client.call(request).await?.into_parts();
            let length = parts.headers.get("content-length").and_then(|length| length.to_str().ok());
            if length.and_then(|length| length.parse().ok()).is_some_and(|length: usize| length > MAX_ANSWER) {
                let too_large = std::io::Error::other("the answer is too large");
                return Err(HttpError::new(HttpErrorKind::Decode, too_large));
            }
            Ok((parts, body.bytes().await?))
        };
        match answered.await {
            Ok((parts, body)) => {
                let answer = Answer::of(parts.status.as_u16(), &parts.headers, &body);
                note(Outcome::Answered(answer));
                Ok(HttpResponse::from_parts(parts, body.into()))
            }
            Err(error) => {
                note(outcome_of(&error, &server));
                Err(error)
            }
        }
    }
}

/// Only a request without a connection certainly was not sent.
fn outcome_of(error: &HttpError, server: &str) -> Outcome {
    let rustls = chain(error).find_map(|error| error.downcast_ref::<rustls::Error>());
    match (error.kind(), rustls) {
        (HttpErrorKind::Connect, Some(error)) => {
            let why = format!("cannot connect to `{server}`: {}", checks::tls_problem(error));
            let hint = "`?ca=…` at the end of the address, or `AWS_CA_BUNDLE` for S3, names a file with the \
                        certificate of the authority that issued the server's; a self-signed certificate has to \
                        be one of an authority";
            Outcome::NotSent(Failure::permanent(why).with_hint(hint))
        }
        (HttpErrorKind::Connect, None) => {
            let why = innermost(error);
            let is_unknown = why.contains("Name or service not known") || why.contains("No address associated");
            let why = format!("cannot connect to `{server}`: {why}");
            Outcome::NotSent(if is_unknown { Failure::permanent(why) } else { Failure::transient(why) })
        }
        (HttpErrorKind::Timeout, _) => Outcome::NoAnswer(format!("`{server}` does not answer in time")),
        _ => Outcome::NoAnswer(format!("the connection to `{server}` broke: {}", innermost(error))),
    }
}

impl Answer {
    /// Takes an answer apart: XML of the stores, JSON of servers that give out credentials.
    pub fn of(status: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        if (200..300).contains(&status) {
            return Self { status, ..Self::default() };
        }
        let text = String::from_utf8_lossy(&body[..body.len().min(64 * 1024)]);
        let header = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
        let (code, message) = match (element(&text, "Code"), json(&text)) {
            (Some(code), _) => (code, element(&text, "Message").unwrap_or_default()),
            (None, Some((code, message))) => (code, message),
            (None, None) => (header("x-ms-error-code").unwrap_or_default(), String::new()),
        };
        // Azure's second line identifies the request.
        let message = message.lines().next().filter(|line| !line.trim().is_empty()).map(sentence);
        let region = header("x-amz-bucket-region").or_else(|| element(&text, "Region"));
        let is_word = |text: &String| text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        let code = Some(code).filter(is_word).unwrap_or_default();
        Self { status, code, message: message.unwrap_or_default(), region: region.filter(is_word) }
    }

    /// As part of a sentence.
    pub fn printable(&self) -> String {
        match (self.message.is_empty(), self.code.is_empty()) {
            (false, false) => format!("{} ({})", self.message, self.code),
            (false, true) => format!("{} (status {})", self.message, self.status),
            (true, false) => format!("{} (status {})", self.code, self.status),
            (true, true) => format!("the server answers with status {}", self.status),
        }
    }
}

/// The text of the first element of this name. Errors are flat, and their texts are short.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&#39;", "'"), ("&amp;", "&")];
    let inner = entities.iter().fold(inner.to_owned(), |inner, (code, text)| inner.replace(code, text));
    Some(inner.trim().to_owned())
}

fn json(text: &str) -> Option<(String, String)> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let field = |names: [&str; 3]| {
        let found = names.iter().find_map(|name| value.get(*name)?.as_str());
        found.unwrap_or_default().to_owned()
    };
    let (code, message) = (field(["error", "Code", "code"]), field(["error_description", "Message", "message"]));
    (!code.is_empty() || !message.is_empty()).then_some((code, message))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::Answer;

    fn answer(status: u16, header: Option<(&'static str, &'static str)>, body: &str) -> Answer {
        let header = header.map(|(name, value)| (name.parse().expect(name), HeaderValue::from_static(value)));
        Answer::of(status, &header.into_iter().collect::<HeaderMap>(), body.as_bytes())
    }

    #[test]
    fn the_answers_of_each_kind_of_server_are_understood() {
        let s3 = answer(
            301,
            Some(("x-amz-bucket-region", "eu-central-1")),
            "<?xml version=\"1.0\"?>\n<Error><Code>PermanentRedirect</Code>\
             <Message>The bucket must be &quot;elsewhere&quot;.</Message></Error>",
        );
        assert_eq!((s3.code.as_str(), s3.region.as_deref()), ("PermanentRedirect", Some("eu-central-1")));
        assert_eq!(s3.printable(), "the bucket must be \"elsewhere\" (PermanentRedirect)");
        let body = "<Error><Code>AuthenticationFailed</Code><Message>Server failed.\nRequestId:1\n</Message></Error>";
        assert_eq!(answer(403, None, body).printable(), "server failed (AuthenticationFailed)");
        let bare = answer(404, Some(("x-ms-error-code", "BlobNotFound")), "");
        assert_eq!(bare.printable(), "BlobNotFound (status 404)");
        let oauth = answer(400, None, "{\"error\":\"invalid_grant\",\"error_description\":\"Bad\"}");
        assert_eq!(oauth.printable(), "bad (invalid_grant)");
    }

    #[test]
    fn every_answer_fits_into_a_line() {
        let body = "<Code>a\nb</Code><Message>x\u{1b}[1m\ny</Message>";
        let odd = answer(500, Some(("x-amz-bucket-region", "a b")), body);
        assert_eq!((odd.code.as_str(), odd.region.as_deref()), ("", None));
        assert!(!odd.printable().chars().any(char::is_control), "{odd:?}");
        let status = "the server answers with status 502";
        assert_eq!(answer(502, None, "<html>Bad gateway</html>").printable(), status);
        assert_eq!(answer(502, None, "{\"a\":1}").printable(), status);
    }
}
