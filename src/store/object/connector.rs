//! The HTTP client of an object store: the crate's own (reqwest). The crate's errors do not tell
//! all that matters: which server was asked, how far the request got, and the answer. So that is
//! the source of each error.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest,
    HttpResponse, HttpService,
};
use reqwest::Certificate;

use super::answer::Answer;
use crate::store::checks;
use crate::store::failure::Failure;
use crate::store::network::{certificates, innermost};
use crate::sys::text;

/// How long to wait for a connection to a server that only machines in clouds have.
const METADATA_LIMIT: Duration = Duration::from_secs(1);

/// A request that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("`{server}` has not done what it was asked")]
pub struct Exchange {
    /// The server's URL, printable.
    pub server: String,
    /// The refusal, or why there is no answer; a failure that is not indefinite was not sent.
    pub answer: Result<Answer, Failure>,
}

/// A client, and the settings that each client of the crate begins with.
#[derive(Clone, Debug)]
pub struct Connector {
    pub timeout: Duration,
    connect_timeout: Duration,
    /// A file with the certificates to trust instead of the system's.
    roots: Option<PathBuf>,
    /// Made when they are needed: the system's certificates take milliseconds to read. The second
    /// one encrypts.
    clients: [OnceLock<Result<reqwest::Client, Failure>>; 2],
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // The crate has a limit of its own for servers of clouds.
        let limit =
            |options: &ClientOptions| options.get_config_value(&ClientConfigKey::ConnectTimeout);
        let is_usual = limit(options) == limit(&ClientOptions::new());
        let connect_timeout =
            if is_usual { self.timeout } else { self.timeout.min(METADATA_LIMIT) };
        Ok(HttpClient::new(Self { connect_timeout, ..self.clone() }))
    }
}

impl Connector {
    /// Each answer may take so long.
    pub fn new(timeout: Duration, roots: Option<PathBuf>) -> Self {
        Self { timeout, connect_timeout: timeout, roots, clients: Default::default() }
    }

    fn client(&self, is_encrypted: bool) -> Result<reqwest::Client, Failure> {
        let cannot = |error: reqwest::Error| {
            Failure::permanent(format!("connections cannot be made: {}", innermost(&error)))
        };
        let make = || {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("serializer/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(self.connect_timeout)
                .read_timeout(self.timeout)
                .http1_only()
                // After a redirect, a PUT becomes a GET, whose success looks like that of the PUT.
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never());
            let builder = match &self.roots {
                _ if !is_encrypted => builder.tls_certs_only([]),
                Some(path) => builder.tls_certs_only(
                    Certificate::from_pem_bundle(&certificates(path)?).map_err(cannot)?,
                ),
                None => builder,
            };
            builder.build().map_err(cannot)
        };
        self.clients[usize::from(is_encrypted)].get_or_init(make).clone()
    }
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let uri = request.uri();
        let (scheme, host) =
            (uri.scheme_str().unwrap_or(""), uri.authority().map_or("", |at| at.as_str()));
        let server = text::field(&format!("{scheme}://{}", host.rsplit('@').next().unwrap_or("")));
        let failed = |answer| {
            Err(HttpError::new(HttpErrorKind::Unknown, Exchange { server: server.clone(), answer }))
        };
        let client = match self.client(scheme != "http") {
            Ok(client) => client,
            Err(failure) => return failed(Err(failure)),
        };
        let answered = async {
            let (parts, body) = client.call(request).await?.into_parts();
            Ok::<_, HttpError>((parts, body.bytes().await?))
        };
        match answered.await {
            Ok((parts, body)) if parts.status.is_success() => {
                Ok(HttpResponse::from_parts(parts, body.into()))
            }
            Ok((parts, body)) => {
                failed(Ok(Answer::of(parts.status.as_u16(), &parts.headers, &body)))
            }
            Err(error) => failed(Err(checks::unanswered(&error, &format!("`{server}`")))),
        }
    }
}
