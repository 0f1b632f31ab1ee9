//! What questions are asked by, in place of the crate's own client: so that it is known how far a question has got when there is no
//! answer to it, names are looked up within a time, and nothing runs on a thread that takes signals.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderValue};
use hyper::http::Uri;
use hyper::http::response::Parts;
use hyper::http::uri::PathAndQuery;
use object_store::ClientOptions;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use rustls::ClientConfig;
use tokio::time::timeout;

use super::WORDS;
use super::answer::Answer;
use super::wire::{Place, Wire};
use crate::backend::failure::Failure;
use crate::backend::network::tls::{self, Roots, Trust};

/// Where machines in clouds ask who they are. Nobody answers there elsewhere, which must not take long.
const METADATA: [&str; 3] = ["169.254.169.254", "[fd00:ec2::254]", "metadata.google.internal"];

/// Of these, where machines of EC2 ask.
const EC2: [&str; 2] = ["169.254.169.254", "[fd00:ec2::254]"];

/// Whether somebody is asked who this machine is.
pub fn is_metadata(place: &Place) -> bool {
    METADATA.contains(&place.host.as_str())
}

/// How long to wait for a connection to them.
const METADATA_LIMIT: Duration = Duration::from_secs(1);

/// So many connections are kept: one to the store, one to where credentials come from.
const MAX_KEPT: usize = 2;

/// The last question, and what has become of it.
pub struct Exchange {
    /// Whether it was put to the store, and not to whoever has credentials.
    pub is_store: bool,
    /// To whom.
    pub place: Option<Place>,
    pub outcome: Outcome,
}

/// How far it got.
pub enum Outcome {
    /// It was not sent, for this reason.
    NotSent(Failure),
    /// It was sent, and there is no answer, for this reason.
    NoAnswer(String),
    /// There is an answer.
    Answered(Answer),
}

/// What all clients of a store have in common.
pub struct Shared {
    limit: Duration,
    roots: Roots,
    /// Whether machines of EC2 may be asked who they are.
    asks_ec2: bool,
    /// How many clients were made. The last one of a store is for its questions, those before it are for credentials.
    clients: AtomicUsize,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    tls: Option<Arc<ClientConfig>>,
    kept: Vec<(Place, Wire)>,
    last: Option<Exchange>,
}

impl Shared {
    pub fn new(limit: Duration, roots: Roots, asks_ec2: bool) -> Arc<Self> {
        Arc::new(Self { limit, roots, asks_ec2, clients: AtomicUsize::new(0), now: Mutex::default() })
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has become of the last question since this was asked last.
    pub fn take_last(&self) -> Option<Exchange> {
        self.now().last.take()
    }

    /// Closes all connections.
    pub fn disconnect(&self) {
        self.now().kept.clear();
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, Failure> {
        if let Some(config) = &self.now().tls {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(tls::client(Trust::SignedForHost(Some(&self.roots)), None, &WORDS)?);
        Ok(Arc::clone(self.now().tls.insert(config)))
    }

    async fn wire(&self, place: &Place) -> Result<Wire, Failure> {
        let kept = {
            let kept = &mut self.now().kept;
            kept.iter().position(|(other, _)| other == place).map(|at| kept.swap_remove(at).1)
        };
        if let Some(mut wire) = kept
            && timeout(self.limit, wire.is_open()).await.unwrap_or(false)
        {
            return Ok(wire);
        }
        let is_machine = is_metadata(place);
        if !self.asks_ec2 && EC2.contains(&place.host.as_str()) {
            return Err(Failure::permanent("`AWS_EC2_METADATA_DISABLED` is set"));
        }
        let limit = if is_machine { self.limit.min(METADATA_LIMIT) } else { self.limit };
        let tls = if place.is_encrypted { Some(self.tls()?) } else { None };
        Wire::open(place, tls, limit).await
    }
}

/// What makes clients.
#[derive(Clone)]
pub struct Connector(pub Arc<Shared>);

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let is_plain = options.get_config_value(&ClientConfigKey::AllowHttp);
        Ok(HttpClient::new(self.client(is_plain.is_some_and(|value| value == "true"))))
    }
}

impl Connector {
    /// The next one.
    pub fn client(&self, may_be_plain: bool) -> Client {
        let number = self.0.clients.fetch_add(1, Ordering::Relaxed) + 1;
        Client { shared: Arc::clone(&self.0), number, may_be_plain }
    }
}

/// Asks whoever it is told to.
pub struct Client {
    shared: Arc<Shared>,
    number: usize,
    may_be_plain: bool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    fn place(&self, uri: &Uri) -> Result<Place, Failure> {
        let is_encrypted = uri.scheme_str() != Some("http");
        let host = uri.host().ok_or_else(|| Failure::permanent("the endpoint names no host"))?;
        if !is_encrypted && !self.may_be_plain {
            return Err(Failure::permanent(format!("`{}` is not to be asked without encryption", crate::printable::field(host))));
        }
        let port = uri.port_u16().unwrap_or(if is_encrypted { 443 } else { 80 });
        Ok(Place { host: host.to_owned(), port, is_encrypted })
    }

    fn note(&self, place: Option<&Place>, outcome: Outcome) {
        let is_store = self.number == self.shared.clients.load(Ordering::Relaxed);
        self.shared.now().last = Some(Exchange { is_store, place: place.cloned(), outcome });
    }

    /// Asks, and notes what becomes of it.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn ask(&self, mut request: HttpRequest) -> Result<(Parts, Bytes), HttpErrorKind> {
        let not_sent = |place: Option<&Place>, failure: Failure| {
            self.note(place, Outcome::NotSent(failure));
            HttpErrorKind::Connect
        };
        let place = self.place(request.uri()).map_err(|failure| not_sent(None, failure))?;
        // If it is given up from outside, this is what is known.
        self.note(Some(&place), Outcome::NotSent(Failure::transient("no connection in time")));
        let mut wire = self.shared.wire(&place).await.map_err(|failure| not_sent(Some(&place), failure))?;
        prepare(&mut request).map_err(|failure| not_sent(Some(&place), failure))?;
        self.note(Some(&place), Outcome::NoAnswer("the server does not answer in time".to_owned()));
        match timeout(self.shared.limit, wire.ask(request)).await {
            Ok(Ok((parts, body))) => {
                self.note(Some(&place), Outcome::Answered(Answer::of(&parts, &body)));
                let kept = &mut self.shared.now().kept;
                kept.truncate(MAX_KEPT - 1);
                kept.push((place, wire));
                Ok((parts, body))
            }
            Ok(Err(why)) => {
                self.note(Some(&place), Outcome::NoAnswer(why));
                Err(HttpErrorKind::Interrupted)
            }
            Err(_) => Err(HttpErrorKind::Timeout),
        }
    }
}

/// As it is sent: where it goes stands in a header.
fn prepare(request: &mut HttpRequest) -> Result<(), Failure> {
    let unusable = || Failure::permanent("the endpoint cannot be used");
    let uri = request.uri();
    let authority = uri.authority().ok_or_else(unusable)?.as_str();
    let host = HeaderValue::from_str(authority.rsplit('@').next().unwrap_or(authority)).map_err(|_| unusable())?;
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    request.headers_mut().insert(HOST, host);
    Ok(())
}

#[async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) =
            self.ask(request).await.map_err(|kind| HttpError::new(kind, io::Error::other("there is no answer")))?;
        Ok(HttpResponse::from_parts(parts, body.into()))
    }
}
