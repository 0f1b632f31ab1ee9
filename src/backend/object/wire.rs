//! One connection to a server that speaks HTTP, encrypted or not.
//!
//! It is driven by whoever asks over it, and by nobody in between: closing it is dropping it, and no task is left behind.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::http::response::Parts;
use hyper_util::rt::TokioIo;
use object_store::client::{HttpRequest, HttpRequestBody};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::backend::failure::Failure;
use crate::backend::network::{lookup, tls};
use crate::backend::plain;
use crate::printable;

use super::WORDS;

/// Larger answers are none that was asked for: a list of 1000 names of 1 KiB, with what is said about each.
const MAX_ANSWER: usize = 8 << 20;

/// Whom to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub host: String,
    pub port: u16,
    pub is_encrypted: bool,
}

impl Place {
    /// As it is said in messages.
    pub fn printable(&self) -> String {
        format!("{}:{}", printable::field(&self.host), self.port)
    }
}

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// A connection.
pub struct Wire {
    sender: SendRequest<HttpRequestBody>,
    /// What moves bytes; `None` when it has ended.
    driver: Option<Driver>,
}

impl Wire {
    /// Connects, each step within `limit`.
    ///
    /// # Errors
    /// When that cannot be done; nothing was asked then.
    pub async fn open(place: &Place, tls: Option<Arc<ClientConfig>>, limit: Duration) -> Result<Self, Failure> {
        let with_place =
            |failure: Failure| Failure { why: format!("cannot connect to `{}`: {}", place.printable(), failure.why), ..failure };
        let stream = reach(place, limit).await?;
        let Some(config) = tls else { return Self::speak(stream).await.map_err(with_place) };
        let host = place.host.trim_matches(['[', ']']).to_owned();
        let name =
            ServerName::try_from(host).map_err(|_| with_place(Failure::permanent("its name cannot be in a certificate")))?;
        let encrypted = timeout(limit, TlsConnector::from(config).connect(name, stream)).await;
        let encrypted = encrypted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        Self::speak(encrypted.map_err(|error| with_place(of_system(&error)))?).await.map_err(with_place)
    }

    async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self, Failure> {
        let spoken = http1::handshake(TokioIo::new(stream)).await;
        let (sender, driver) = spoken.map_err(|_| Failure::transient("it cannot be spoken to"))?;
        Ok(Self { sender, driver: Some(Box::pin(driver)) })
    }

    /// Whether the next question can be asked over it, as far as it is known: the server may have closed it meanwhile.
    pub async fn is_open(&mut self) -> bool {
        let Self { sender, driver } = self;
        driven(driver, std::future::poll_fn(|context| sender.poll_ready(context))).await.is_ok() && driver.is_some()
    }

    /// Asks, and reads the whole answer.
    ///
    /// # Errors
    /// When there is none. Whether the question has arrived is not known then.
    pub async fn ask(&mut self, request: HttpRequest) -> Result<(Parts, Bytes), String> {
        let Self { sender, driver } = self;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
            let (parts, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            let body = body.map_err(|_| "the server's answer breaks off, or is too large".to_owned())?;
            Ok((parts, body.to_bytes()))
        };
        driven(driver, answer).await
    }
}

/// Does both: what moves bytes, and what waits for them.
async fn driven<T>(driver: &mut Option<Driver>, wanted: impl Future<Output = T>) -> T {
    let mut wanted = std::pin::pin!(wanted);
    std::future::poll_fn(move |context: &mut Context<'_>| {
        if driver.as_mut().is_some_and(|driver| driver.as_mut().poll(context).is_ready()) {
            *driver = None;
        }
        match wanted.as_mut().poll(context) {
            // What is wanted may have given the driver something to do.
            Poll::Pending if driver.as_mut().is_some_and(|driver| driver.as_mut().poll(context).is_ready()) => {
                *driver = None;
                wanted.as_mut().poll(context)
            }
            polled => polled,
        }
    })
    .await
}

fn broken(error: &hyper::Error) -> String {
    use std::error::Error as _;
    match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(error) => format!("the connection broke: {}", plain(error)),
        None if error.is_parse() => "the server does not answer as one that speaks HTTP".to_owned(),
        None => "the server closed the connection".to_owned(),
    }
}

/// A connection on which nothing was said yet.
async fn reach(place: &Place, limit: Duration) -> Result<TcpStream, Failure> {
    // Nothing else is to be done meanwhile.
    let addresses = lookup::addresses(place.host.trim_matches(['[', ']']), place.port, limit)?;
    let share = limit / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut failure = None;
    for address in addresses {
        let connected = timeout(share, TcpStream::connect(address)).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match connected.and_then(|stream| stream.set_nodelay(true).map(|()| stream)) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = failure.or(Some((address, error))),
        }
    }
    Err(match failure {
        Some((address, error)) => {
            let failure = of_system(&error);
            Failure { why: format!("cannot connect to `{address}`: {}", failure.why), ..failure }
        }
        None => Failure::permanent(format!("`{}` has no address", printable::field(&place.host))),
    })
}

fn of_system(error: &io::Error) -> Failure {
    // rustls puts its own errors into such ones.
    if let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        return tls::failure(error, &WORDS);
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Failure::transient("the server closed the connection"),
        _ => Failure::transient(plain(error).to_string()),
    }
}
