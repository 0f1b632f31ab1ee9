//! As whom to speak to DynamoDB, and where: credentials and region come from wherever AWS's own tools have them.
//!
//! Credentials are got before a request and apart from it, so that what is wrong with them is no doubt about the request. They are
//! kept until shortly before they expire, also while there is no connection: to get them can take longer than the request.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{Credentials, ProvideCredentials, SharedCredentialsProvider, SharedHttpClient};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Connector, proxy::ProxyConfig};
use aws_smithy_runtime_api::client::dns::{DnsFuture, ResolveDns, ResolveDnsError};
use aws_smithy_runtime_api::client::http::{HttpConnectorSettings, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use tokio::runtime::Runtime;

use super::failures::{self, Unresolved};
use super::options::Options;
use crate::backend::failure::{Cause, Failure};
use crate::backend::network::{checks, lookup, runtime};

/// Credentials are renewed so long before they expire.
const EARLY: Duration = Duration::from_secs(60);

/// What messages call the other end.
pub struct Place {
    table: String,
    /// The attribute that should be the table's key.
    pub key: String,
    region: String,
    endpoint: Option<String>,
}

impl Place {
    /// The table, in a sentence.
    pub fn table(&self) -> String {
        format!("table `{}` in `{}`", self.table, self.region)
    }

    /// Its region.
    pub fn region(&self) -> &str {
        &self.region
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Some(endpoint) => write!(f, "DynamoDB at `{endpoint}`"),
            None => write!(f, "DynamoDB in `{}`", self.region),
        }
    }
}

/// Who asks, and whom.
pub struct Account {
    pub options: Options,
    runtime: Option<Runtime>,
    known: Option<Known>,
    /// With connections that are kept open for a moment.
    client: Option<Client>,
}

/// What AWS's own settings say.
struct Known {
    config: SdkConfig,
    place: Place,
    credentials: Option<Credentials>,
}

impl Account {
    /// Asks nobody yet.
    pub fn new(options: Options) -> Self {
        Self { options, runtime: None, known: None, client: None }
    }

    /// Asks something.
    pub fn ask<T>(&mut self, question: impl AsyncFnOnce(&Client, &Options, &Place) -> Result<T, Failure>) -> Result<T, Failure> {
        let Self { options, runtime, known, client } = self;
        let runtime = runtime::made(runtime)?;
        runtime.block_on(async {
            let known = match known {
                Some(known) => known,
                None => known.insert(Known::find(options).await?),
            };
            if known.renew_credentials(options).await? {
                *client = None;
            }
            let client = match client {
                Some(client) => client,
                None => client.insert(known.client(options)?),
            };
            let answer = question(client, options, &known.place).await;
            if answer.as_ref().is_err_and(|failure| failure.cause == Cause::Permanent) {
                // Next time, what is wrong with them may have been put right.
                known.credentials = None;
            }
            answer
        })
    }

    /// Closes all connections; those who look after them are gone with the runtime.
    pub fn disconnect(&mut self) {
        self.client = None;
        self.runtime = None;
    }
}

impl Known {
    async fn find(options: &Options) -> Result<Self, Failure> {
        let http = http_client(options.timeout);
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12()).http_client(http.clone());
        loader = loader.retry_config(RetryConfig::disabled());
        if let Some(region) = &options.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(endpoint) = &options.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if let Some(profile) = &options.profile {
            // Variables count less than what is asked for here, as for AWS's own tools.
            let region = options.region.clone().map(Region::new);
            let config = ProviderConfig::without_region().with_http_client(http).with_region(region);
            let provider = aws_config::profile::ProfileFileCredentialsProvider::builder().configure(&config);
            loader = loader.profile_name(profile).credentials_provider(provider.profile_name(profile).build());
        }
        if let Some((key, secret)) = &options.login {
            loader = loader.credentials_provider(Credentials::new(key, secret, None, None, "address"));
        }
        let late = |_| Failure::transient("AWS's settings for this host do not come in time");
        let config = tokio::time::timeout(options.timeout, loader.load()).await.map_err(late)?;
        let Some(region) = config.region().map(ToString::to_string) else {
            let hint = "`region=…` in the address, `AWS_REGION`, or `region` of the profile names it";
            return Err(Failure::permanent("it is not known in which region the table is").with_hint(hint));
        };
        checks::word(&region, "region")?;
        // Those that the service's own settings name are read when a client is made.
        for name in ["AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL"] {
            let value = std::env::var(name).ok().filter(|value| options.endpoint.is_none() && !value.is_empty());
            value.map_or(Ok(()), |value| checks::endpoint(&value, &format!("variable `{name}`")))?;
        }
        // Another setting's may have a password.
        let endpoint = config.endpoint_url().map(|url| url.rsplit('@').next().unwrap_or("").to_owned());
        let place = Place { table: options.table.clone(), key: options.key.clone(), region, endpoint };
        Ok(Self { config, place, credentials: None })
    }

    /// Gets them if there are none, or if they expire soon; says whether it has.
    async fn renew_credentials(&mut self, options: &Options) -> Result<bool, Failure> {
        let are_good_for = |time: Duration| {
            let credentials = self.credentials.as_ref();
            credentials.is_some_and(|known| known.expiry().is_none_or(|expiry| expiry > SystemTime::now() + time))
        };
        if are_good_for(EARLY) {
            return Ok(false);
        }
        let provider = self.config.credentials_provider().ok_or_else(|| Failure::permanent("there are no credentials"))?;
        let failure = match tokio::time::timeout(options.timeout, provider.provide_credentials()).await {
            Ok(Ok(credentials)) => {
                self.credentials = Some(usable(&credentials)?);
                return Ok(true);
            }
            Ok(Err(error)) => failures::of_credentials(&error, options.profile.as_deref()),
            Err(_) => Failure::transient("the credentials do not come in time"),
        };
        if are_good_for(Duration::ZERO) {
            tracing::debug!("cannot renew the credentials yet: {}", failure.why);
            return Ok(false);
        }
        Err(failure)
    }

    fn client(&self, options: &Options) -> Result<Client, Failure> {
        let credentials = self.credentials.clone().ok_or_else(|| Failure::permanent("there are no credentials"))?;
        let timeouts = TimeoutConfig::builder().connect_timeout(options.timeout / 2).operation_timeout(options.timeout).build();
        let config = aws_sdk_dynamodb::config::Builder::from(&self.config)
            .http_client(http_client(options.timeout))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .timeout_config(timeouts)
            // Whoever sends a write again has to know that.
            .retry_config(RetryConfig::disabled());
        Ok(Client::from_conf(config.build()))
    }
}

/// As they can be sent: without the line end that a mounted secret may have. The SDK ends the program where a header cannot be made of them.
fn usable(credentials: &Credentials) -> Result<Credentials, Failure> {
    let (id, token) = (checks::trimmed(credentials.access_key_id()), credentials.session_token().map(checks::trimmed));
    checks::header(id, "access key")?;
    token.map_or(Ok(()), |token| checks::header(token, "session token"))?;
    let secret = checks::trimmed(credentials.secret_access_key());
    Ok(Credentials::new(id, secret, token.map(str::to_owned), credentials.expiry(), "checked"))
}

/// One that keeps its connections.
fn http_client(limit: Duration) -> SharedHttpClient {
    let made = OnceLock::new();
    http_client_fn(move |settings, components| made.get_or_init(|| connector(limit, settings, components)).clone())
}

fn connector(limit: Duration, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
    let mut builder = Connector::builder().connector_settings(settings.clone()).proxy_config(ProxyConfig::from_env());
    builder.set_sleep_impl(components.sleep_impl());
    let connector = builder.tls_provider(Provider::Rustls(CryptoMode::Ring)).build_with_resolver(Resolver { limit });
    SharedHttpConnector::new(connector)
}

/// The one of the whole program, which knows about threads and signals.
#[derive(Clone, Debug)]
struct Resolver {
    limit: Duration,
}

impl ResolveDns for Resolver {
    fn resolve_dns<'a>(&'a self, name: &'a str) -> DnsFuture<'a> {
        // Nothing else is to be done meanwhile.
        let found = lookup::addresses(name, 0, self.limit);
        let found = found.map(|found| found.iter().map(std::net::SocketAddr::ip).collect());
        DnsFuture::ready(found.map_err(|Failure { why, cause, .. }| ResolveDnsError::new(Unresolved { why, cause })))
    }
}
