//! The HTTP client of an object store: the crate's own (reqwest). The crate's errors do not tell all that matters: which
//! server was asked, how far the request got, and the answer. So that is the source of each error.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};

use super::answer::Answer;
use crate::backend::checks;
use crate::backend::failure::Failure;
use crate::backend::network::certificates;
use crate::printable;

/// How long to wait for a connection to a server that only machines in clouds have.
const METADATA_LIMIT: Duration = Duration::from_secs(1);

/// A request that did not succeed.
#[derive(Debug)]
pub struct Exchange {
    /// The server's URL, printable.
    pub server: String,
    /// The refusal, or why there is no answer; a failure that is not indefinite was not sent.
    pub answer: Result<Answer, Failure>,
}

impl std::error::Error for Exchange {}

impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.answer {
            Ok(answer) => f.write_str(&answer.printable()),
            Err(failure) => f.write_str(&failure.why),
        }
    }
}

/// Makes clients.
#[derive(Clone, Debug)]
pub struct Connector {
    pub timeout: Duration,
    /// A file with the certificates to trust instead of the system's.
    pub roots: Option<PathBuf>,
    /// Whether no connection will be encrypted: the system's certificates take milliseconds to read.
    pub is_plain: bool,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // The crate has a limit of its own for servers of clouds.
        let limit = |options: &ClientOptions| options.get_config_value(&ClientConfigKey::ConnectTimeout);
        let is_usual = limit(options) == limit(&ClientOptions::new());
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("serializer/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(if is_usual { self.timeout } else { self.timeout.min(METADATA_LIMIT) })
            .read_timeout(self.timeout)
            .http1_only()
            // After a redirect, a PUT becomes a GET, whose success looks like that of the PUT.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never());
        if let Some(path) = &self.roots {
            let bundle = certificates(path).map_err(|failure| generic(failure.why))?;
            builder = builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(&bundle).map_err(generic)?);
        } else if self.is_plain {
            builder = builder.tls_certs_only([]);
        }
        Ok(HttpClient::new(Telling(builder.build().map_err(generic)?)))
    }
}

/// An error of our own, as one of the crate.
pub fn generic(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> object_store::Error {
    object_store::Error::Generic { store: "client", source: source.into() }
}

/// A client that tells why a request did not succeed.
#[derive(Debug)]
struct Telling(reqwest::Client);

#[async_trait]
impl HttpService for Telling {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let uri = request.uri();
        let host = uri.authority().map_or("", |at| at.as_str().rsplit('@').next().unwrap_or(""));
        let server = printable::field(&format!("{}://{host}", uri.scheme_str().unwrap_or_default()));
        let answered = async {
            let (parts, body) = self.0.call(request).await?.into_parts();
            Ok::<_, HttpError>((parts, body.bytes().await?))
        };
        let answer = match answered.await {
            Ok((parts, body)) if parts.status.is_success() => return Ok(HttpResponse::from_parts(parts, body.into())),
            Ok((parts, body)) => Ok(Answer::of(parts.status.as_u16(), &parts.headers, &body)),
            Err(error) => Err(checks::unanswered(&error, &format!("`{server}`"))),
        };
        Err(HttpError::new(HttpErrorKind::Unknown, Exchange { server, answer }))
    }
}
