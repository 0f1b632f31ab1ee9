//! The HTTP client of an object store: the crate's own (reqwest), with a note of the last request. The crate's
//! errors tell neither the status of every answer, nor the server's code, nor whether the store or a server that
//! gives out credentials was asked.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};

use super::answer::Answer;
use crate::backend::aws::{chain, innermost};
use crate::backend::checks;
use crate::backend::failure::Failure;
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
    /// Whether the store has answered before, and so credentials could be fetched.
    pub has_worked: bool,
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

/// What the clients of a store share.
pub struct Shared {
    timeout: Duration,
    roots: Option<PathBuf>,
    /// The store's client is connected last; those before it fetch credentials.
    connected: AtomicUsize,
    has_worked: AtomicBool,
    last: Mutex<Option<Exchange>>,
    store: Mutex<Option<HttpClient>>,
}

impl Shared {
    /// For one store. `roots` is a file with the certificates to trust instead of the system's.
    pub fn new(timeout: Duration, roots: Option<PathBuf>) -> Arc<Self> {
        let connected = AtomicUsize::new(0);
        let has_worked = AtomicBool::new(false);
        Arc::new(Self { timeout, roots, connected, has_worked, last: Mutex::new(None), store: Mutex::new(None) })
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
            .read_timeout(shared.timeout)
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
            let is_answered = is_store && matches!(outcome, Outcome::Answered(_));
            let has_worked = self.shared.has_worked.fetch_or(is_answered, Ordering::Relaxed);
            let last = Exchange { is_store, server: server.clone(), is_encrypted, has_worked, outcome };
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
            let hint = "`?ca=…` at the end of the address, or `AWS_CA_BUNDLE` for S3, names a file with the certificate to trust: \
                        that of the authority that has issued the server's";
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
