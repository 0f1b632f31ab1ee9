//! Credentials that do not last: those that a container's agent gives out, and the last ones for as long as they are good.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::http::Uri;
use jiff::Timestamp;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use object_store::client::{HttpRequest, HttpRequestBody};

use super::http::Client;
use crate::backend::failure::Failure;
use crate::backend::network::checks;
use crate::printable;

/// New ones are got so long before the end of the old ones, here and in the crate (at Google, a minute later).
const EARLY: Duration = Duration::from_secs(300);

/// For so long after they were given as good for [`EARLY`], credentials are good for certain.
const GOOD_FOR: Duration = Duration::from_secs(240);

/// So long after a question that had no good answer it is not asked again, if there is no need: it takes time that the store needs.
const PAUSE: Duration = Duration::from_secs(10);

/// Where a container's agent is; anybody else could read its token on the way, unless it is encrypted.
const AGENTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];

/// Who gives credentials out to a container: ECS, EKS Pod Identity.
#[derive(Clone)]
pub struct Agent {
    pub url: Uri,
    pub token: Option<Token>,
}

/// What an agent wants to see.
#[derive(Clone)]
pub enum Token {
    Given(String),
    /// Read each time, because others renew it.
    File(PathBuf),
}

impl Agent {
    /// Where the variables say that one is.
    ///
    /// # Errors
    /// When it must not be asked so.
    pub fn find(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, Failure> {
        let relative = variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").map(|path| format!("http://{}{path}", AGENTS[0]));
        let Some(url) = relative.or_else(|| variable("AWS_CONTAINER_CREDENTIALS_FULL_URI")) else { return Ok(None) };
        let cannot = |why: &str| {
            Failure::permanent(format!("credentials cannot be asked for where the variables say: {why}"))
                .with_hint("`AWS_CONTAINER_CREDENTIALS_FULL_URI` begins with `https://`, or names this machine or such an agent")
        };
        let url: Uri = url.parse().map_err(|_| cannot("that is no address of a server"))?;
        let host = url.host().unwrap_or("").trim_matches(['[', ']']);
        let is_own = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if url.scheme_str() != Some("https") && !is_own && !AGENTS.contains(&host) {
            return Err(cannot("without encryption, only this machine and agents of containers are asked"));
        }
        let file = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").map(|path| Token::File(path.into()));
        Ok(Some(Self { url, token: file.or_else(|| variable("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(Token::Given)) }))
    }
}

/// The credentials of an agent.
pub struct Container {
    pub agent: Agent,
    pub client: Client,
    pub known: Mutex<Option<(Arc<AwsCredential>, Timestamp)>>,
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Container")
    }
}

fn unusable(why: impl Into<String>) -> object_store::Error {
    object_store::Error::Generic { store: "credentials", source: io::Error::other(why.into()).into() }
}

impl Container {
    fn request(&self) -> Result<HttpRequest, String> {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = self.agent.url.clone();
        let token = match &self.agent.token {
            None => return Ok(request),
            Some(Token::Given(token)) => token.clone(),
            Some(Token::File(path)) => std::fs::read_to_string(path)
                .map_err(|error| format!("cannot read `{}`: {}", printable::path(path), crate::backend::plain(&error)))?,
        };
        let mut value = HeaderValue::from_str(checks::trimmed(&token))
            .map_err(|_| "the token for the container's agent has characters that no token has".to_owned())?;
        value.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, value);
        Ok(request)
    }
}

/// What an agent's answer says.
fn read(body: &[u8]) -> Option<(AwsCredential, Timestamp)> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let text = |name: &str| value.get(name).and_then(serde_json::Value::as_str).map(str::to_owned);
    let credential = AwsCredential { key_id: text("AccessKeyId")?, secret_key: text("SecretAccessKey")?, token: text("Token") };
    let expiry = text("Expiration").map_or(Ok(Timestamp::MAX), |expiry| expiry.parse());
    Some((credential, expiry.ok()?))
}

#[async_trait]
impl CredentialProvider for Container {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((credential, expiry)) = known
            && Timestamp::now().duration_until(expiry).unsigned_abs() > EARLY
            && expiry > Timestamp::now()
        {
            return Ok(credential);
        }
        let request = self.request().map_err(unusable)?;
        let (parts, body) = self.client.ask(request).await.map_err(|_| unusable("there is no answer"))?;
        // Whoever asked looks at the answer.
        let read = if parts.status.is_success() { read(&body) } else { None };
        let (credential, expiry) = read.ok_or_else(|| unusable("there are no credentials in the answer"))?;
        let credential = Arc::new(credential);
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((Arc::clone(&credential), expiry));
        Ok(credential)
    }
}

/// Goes on with the last credentials while there are no new ones. The crate gets new ones [`EARLY`], and fails if it cannot.
pub struct Kept<C> {
    provider: Arc<dyn CredentialProvider<Credential = C>>,
    check: fn(&C) -> bool,
    state: Mutex<State<C>>,
}

struct State<C> {
    /// And when they were good for [`EARLY`] at least.
    last: Option<(Arc<C>, Instant)>,
    /// When somebody was asked who has not answered well.
    asked: Option<Instant>,
}

impl<C> Kept<C> {
    /// `check` tells whether credentials can be sent: the crate ends the program otherwise.
    pub fn new(provider: Arc<dyn CredentialProvider<Credential = C>>, check: fn(&C) -> bool) -> Self {
        Self { provider, check, state: Mutex::new(State { last: None, asked: None }) }
    }
}

impl<C> fmt::Debug for Kept<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}

#[async_trait]
impl<C: Send + Sync> CredentialProvider for Kept<C> {
    type Credential = C;

    async fn get_credential(&self) -> object_store::Result<Arc<C>> {
        let last = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let last = state.last.clone().filter(|(_, at)| at.elapsed() < GOOD_FOR).map(|(last, _)| last);
            if let Some(last) = &last
                && state.asked.is_some_and(|asked| asked.elapsed() < PAUSE)
            {
                return Ok(Arc::clone(last));
            }
            // Also if whoever asks gives up meanwhile.
            state.asked = Some(Instant::now());
            last
        };
        let got = self.provider.get_credential().await;
        let got = got.and_then(|got| {
            if (self.check)(&got) { Ok(got) } else { Err(unusable("the credentials have characters that none have")) }
        });
        match (got, last) {
            (Ok(got), _) => {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                *state = State { last: Some((Arc::clone(&got), Instant::now())), asked: None };
                Ok(got)
            }
            (Err(error), Some(last)) => {
                tracing::debug!("cannot renew the credentials yet: {}", super::failure::innermost(&error));
                Ok(last)
            }
            (Err(error), None) => Err(error),
        }
    }
}
