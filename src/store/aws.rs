//! AWS identities for S3 and DynamoDB: credentials, profile, region, endpoint, as the AWS CLI finds
//! them.
//!
//! Credentials are fetched before a request and apart from it: what is wrong with them leaves no
//! doubt about the request. They outlive connections, because to fetch them can take longer.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::{Builder, Connector, tls};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_types::os_shim_internal::{Env, Fs};
use aws_types::service_config::ServiceConfigKey;
use tokio::time::timeout;

use super::checks::{self, endpoint_of};
use super::failure::{Cause, Failure};
use super::network::{Address, certificates, chain, innermost, trimmed, variable};
use crate::sys::text;

/// Credentials are renewed so long before they expire.
const EARLY: Duration = Duration::from_secs(300);

/// Between two tries to renew credentials that are still good: a holder must get on meanwhile.
const PAUSE: Duration = Duration::from_secs(10);

const NONE: &str = "no credentials found for AWS";

/// Credentials that do not expire.
pub fn keys(id: String, secret: String, token: Option<String>) -> Credentials {
    Credentials::new(id, secret, token, None, "settings")
}

/// What an address says about an identity at a service; the rest is found as the AWS CLI finds it.
/// Not `Debug`: it holds secrets.
pub struct Settings {
    service: &'static str,
    keys: Option<Credentials>,
    profile: Option<String>,
    pub region: Option<String>,
    pub endpoint: Option<String>,
    /// A file with the certificates to trust instead of the system's.
    pub roots: Option<PathBuf>,
    /// For each answer.
    pub timeout: Duration,
}

/// An identity at a service, and a client for it.
pub struct Account<C> {
    pub settings: Settings,
    config: Option<SdkConfig>,
    client: Option<C>,
    /// When the client's credentials expire, and when to ask for new ones.
    expiry: Option<SystemTime>,
    due: Option<SystemTime>,
}

impl<C> Account<C> {
    /// Reads the options of an address. Without `endpoint`, that of other settings is used.
    pub fn new(
        service: &'static str,
        address: &Address,
        timeout: Duration,
        keys: Option<Credentials>,
        endpoint: Option<String>,
    ) -> Result<Self, Failure> {
        let (profile, region) = (address.option("profile"), address.option("region"));
        if keys.is_some() && profile.is_some() {
            let why = "the address has both an access key and a `profile`";
            return Err(Failure::permanent(why));
        }
        let endpoint = endpoint_of(address)?.or(endpoint);
        let roots = address.option("ca").or_else(|| variable("AWS_CA_BUNDLE")).map(PathBuf::from);
        let settings = Settings { service, keys, profile, region, endpoint, roots, timeout };
        Ok(Self { settings, config: None, client: None, expiry: None, due: None })
    }

    /// A client with credentials that are good for a while. Reads the settings once; makes a client
    /// for new credentials.
    pub async fn client(
        &mut self,
        connect: impl FnOnce(&Settings, &SdkConfig, &Credentials) -> Result<C, Failure>,
    ) -> Result<&C, Failure> {
        let Self { settings, config, client, expiry, due } = self;
        let none = || Failure::permanent(NONE);
        if config.is_none() {
            let late = |_| Failure::transient("AWS's settings for this host do not come in time");
            *config = Some(timeout(settings.timeout, settings.find()).await.map_err(late)??);
        }
        let (config, now) = (config.as_ref().ok_or_else(none)?, SystemTime::now());
        if client.is_none() || due.is_some_and(|due| due <= now) {
            match settings.credentials(config).await {
                Ok(keys) => {
                    *expiry = keys.expiry();
                    *due = expiry.map(|expiry| (expiry - EARLY).max(now + PAUSE).min(expiry));
                    *client = Some(connect(settings, config, &keys)?);
                }
                Err(failure) if client.is_some() && expiry.is_some_and(|expiry| now < expiry) => {
                    tracing::debug!("cannot renew the credentials yet: {}", failure.why);
                    *due = expiry.map(|expiry| expiry.min(now + PAUSE));
                }
                Err(failure) => return Err(failure),
            }
        }
        client.as_ref().ok_or_else(none)
    }

    /// What is wrong with the credentials may be put right meanwhile: all is looked up again.
    pub fn forget(&mut self) {
        (self.config, self.client) = (None, None);
    }
}

impl Settings {
    /// The profile that is named, unless keys are. Refuses what the SDK would read in another way
    /// than the AWS CLI, or pass over in silence.
    fn named_profile(&self) -> Result<Option<String>, Failure> {
        if self.keys.is_some() || self.profile.is_some() {
            return Ok(self.profile.clone());
        }
        let profile = variable("AWS_PROFILE");
        if variable("AWS_DEFAULT_PROFILE").is_some_and(|other| profile.as_ref() != Some(&other)) {
            let why = "`AWS_DEFAULT_PROFILE` names another profile than `AWS_PROFILE`";
            return Err(Failure::refused(why, "set `AWS_PROFILE` alone"));
        }
        let [id, secret] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(variable);
        if id.is_some() != secret.is_some() {
            let why = "of `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, only one is set";
            return Err(Failure::refused(why, "set both, or neither to use a profile or a role"));
        }
        Ok(profile)
    }

    async fn credentials(&self, config: &SdkConfig) -> Result<Credentials, Failure> {
        let provider = config.credentials_provider().ok_or_else(|| Failure::permanent(NONE))?;
        match timeout(self.timeout, provider.provide_credentials()).await {
            Ok(Ok(credentials)) => usable(&credentials),
            Ok(Err(error)) => Err(failure_of(&error)),
            Err(_) => Err(Failure::transient("the credentials for AWS do not come in time")),
        }
    }

    async fn find(&mut self) -> Result<SdkConfig, Failure> {
        let name = self.named_profile()?;
        let wrong = |why: String| {
            Failure::refused(why, "`aws configure list-profiles` shows which there are")
        };
        let (named, files) = (name.clone().map(Into::into), Default::default());
        let loaded = aws_config::profile::load(&Fs::real(), &Env::real(), &files, named).await;
        let broken =
            |error| format!("AWS's configuration files cannot be used: {}", innermost(&error));
        let profiles = loaded.map_err(|error| wrong(broken(error)))?;
        let is_missing = |name: &String| name != "default" && profiles.get_profile(name).is_none();
        if let Some(name) = name.filter(is_missing) {
            return Err(wrong(format!("the profile `{}` does not exist", text::field(&name))));
        }
        let variables = || ["AWS_REGION", "AWS_DEFAULT_REGION"].into_iter().find_map(variable);
        let region = self.region.take().or_else(variables);
        self.region = region.or_else(|| profiles.get("region").map(str::to_owned));
        self.region.iter().try_for_each(|region| checks::word(region, "region"))?;
        // Certificates take milliseconds to read.
        let http = http_client(self.roots.as_deref(), self.keys.is_some())?;
        let region = self.region.clone().map(Region::new);
        let mut loader =
            aws_config::defaults(BehaviorVersion::v2026_01_12()).region(region.clone());
        loader = loader.http_client(http.clone()).retry_config(RetryConfig::disabled());
        if let Some(keys) = &self.keys {
            loader = loader.credentials_provider(keys.clone());
        } else if let Some(profile) = &self.profile {
            loader = loader.profile_name(profile);
            // Like the CLI's `--profile`, before the variables with access keys.
            let provider =
                ProviderConfig::without_region().with_http_client(http).with_region(region);
            let provider = ProfileFileCredentialsProvider::builder().configure(&provider);
            loader = loader.credentials_provider(provider.profile_name(profile).build());
        }
        let config = loader.load().await;
        self.endpoint = self.endpoint.take().or_else(|| configured_endpoint(&config, self.service));
        let what = "endpoint of `AWS_ENDPOINT_URL…` or of the profile";
        self.endpoint.iter().try_for_each(|endpoint| checks::endpoint(endpoint, what))?;
        Ok(config)
    }
}

/// `AWS_ENDPOINT_URL_…`, the profile's `services`, `AWS_ENDPOINT_URL`, the profile's
/// `endpoint_url`.
fn configured_endpoint(config: &SdkConfig, service: &str) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id(service).env("AWS_ENDPOINT_URL");
    let found = config.service_config()?.load_config(key.profile("endpoint_url").build().ok()?)?;
    Some(trimmed(&found).to_owned()).filter(|found| !found.is_empty())
}

/// As they can be sent: the SDK panics at a header with a line end.
fn usable(credentials: &Credentials) -> Result<Credentials, Failure> {
    let [id, secret] = [credentials.access_key_id(), credentials.secret_access_key()].map(trimmed);
    let token = credentials.session_token().map(trimmed);
    checks::header(id, "access key")?;
    token.iter().try_for_each(|token| checks::header(token, "session token"))?;
    Ok(Credentials::new(id, secret, token.map(str::to_owned), credentials.expiry(), "checked"))
}

/// A client that heeds proxies and the bundle of trusted certificates, and keeps its connections.
/// One that `is_plain` does not encrypt.
pub fn http_client(roots: Option<&Path>, is_plain: bool) -> Result<SharedHttpClient, Failure> {
    let mut context = tls::TlsContext::builder();
    if let Some(path) = roots.filter(|_| !is_plain) {
        let roots = tls::TrustStore::empty().with_pem_certificate(certificates(path)?);
        context = context.with_trust_store(roots);
    }
    let context = context.build().map_err(|error| Failure::permanent(innermost(&error)))?;
    Ok(Builder::new().build_with_connector_fn(move |settings, components| {
        let mut builder = Connector::builder().proxy_config(ProxyConfig::from_env());
        builder.set_connector_settings(settings.cloned());
        builder.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
        if is_plain {
            return builder.build_http();
        }
        let provider = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
        builder.tls_provider(provider).tls_context(context.clone()).build()
    }))
}

/// Why credentials are missing. Only what says by itself that it passes is waited for.
fn failure_of(error: &CredentialsError) -> Failure {
    // What a command for credentials has printed may be anything.
    let why = innermost(error);
    let why = why.split(". Stderr:").next().unwrap_or("").replace("StatusCode(", "(status ");
    let is_late = |error: &ConnectorError| error.is_timeout();
    let passes = matches!(error, CredentialsError::ProviderTimedOut(_))
        || ["(status 5", "(status 429"].iter().any(|status| why.contains(status))
        || chain(error).any(|error| error.downcast_ref().is_some_and(is_late));
    let (why, hint) = match error {
        CredentialsError::CredentialsNotLoaded(_) => (
            NONE.to_owned(),
            "`AWS_PROFILE`, `AWS_ACCESS_KEY_ID` with `AWS_SECRET_ACCESS_KEY`, `aws sso login` or a \
             role of this host or container provide them",
        ),
        CredentialsError::InvalidConfiguration(_) => (
            format!("AWS's settings cannot be used: {why}"),
            "a variable, or a file with a token, may have a line end that it should not have",
        ),
        _ => (
            format!("cannot get credentials for AWS: {why}"),
            "`aws sts get-caller-identity` tries credentials out; `aws sso login` renews them",
        ),
    };
    let cause = if passes { Cause::Transient } else { Cause::Permanent };
    Failure { cause, ..Failure::permanent(why) }.with_hint(hint)
}
