//! AWS identities: credentials, profile, region and endpoint, as the AWS CLI finds them, for S3 and
//! DynamoDB.
//!
//! Credentials are fetched before a request and apart from it: what is wrong with them leaves no
//! doubt about the request. They are kept while there is no connection, because to fetch them can
//! take longer.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::{SharedHttpClient, SharedHttpConnector, http_client_fn};
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

/// Credentials that could not be renewed are asked for again after so long: a holder must get on
/// meanwhile.
const PAUSE: Duration = Duration::from_secs(10);

/// The variables with an access key, its secret and a session token.
const KEYS: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];

const NONE: &str = "there are no credentials for AWS";

/// Credentials that do not expire.
pub fn keys(id: String, secret: String, token: Option<String>) -> Credentials {
    Credentials::new(id, secret, token, None, "settings")
}

/// An identity at a service, and a client for it. Not `Debug`: it holds secrets.
pub struct Account<C> {
    service: &'static str,
    /// What the address asks for; the rest is found as the AWS CLI finds it.
    keys: Option<Credentials>,
    profile: Option<String>,
    pub region: Option<String>,
    pub endpoint: Option<String>,
    /// A file with the certificates to trust instead of the system's.
    pub roots: Option<PathBuf>,
    /// For each answer.
    pub timeout: Duration,
    /// What the settings have led to.
    config: Option<SdkConfig>,
    /// The last ones.
    credentials: Option<Credentials>,
    asked: Option<SystemTime>,
    client: Option<C>,
}

impl<C> Account<C> {
    /// Reads the options of an address. Without `endpoint`, that of other settings is used. Nothing
    /// is looked up yet.
    pub fn new(
        service: &'static str,
        address: &Address,
        timeout: Duration,
        keys: Option<Credentials>,
        endpoint: Option<String>,
    ) -> Result<Self, Failure> {
        let (profile, region) = (address.option("profile"), address.option("region"));
        if keys.is_some() && profile.is_some() {
            return Err(Failure::permanent("the address has both an access key and a `profile`"));
        }
        let endpoint = endpoint_of(address)?.or(endpoint);
        let roots = address.option("ca").or_else(|| variable("AWS_CA_BUNDLE")).map(PathBuf::from);
        let (config, credentials, asked, client) = (None, None, None, None);
        Ok(Self {
            service,
            keys,
            profile,
            region,
            endpoint,
            roots,
            timeout,
            config,
            credentials,
            asked,
            client,
        })
    }

    /// A client with credentials that are good for a while. Reads the settings once; makes a client
    /// for new credentials.
    pub async fn client(
        &mut self,
        connect: impl FnOnce(&Self, &SdkConfig, &Credentials) -> Result<C, Failure>,
    ) -> Result<&C, Failure> {
        let none = || Failure::permanent(NONE);
        if self.config.is_none() {
            let late = |_| Failure::transient("AWS's settings for this host do not come in time");
            self.config = Some(timeout(self.timeout, self.find()).await.map_err(late)??);
        }
        if self.renew().await? || self.client.is_none() {
            let (Some(config), Some(keys)) = (&self.config, &self.credentials) else {
                return Err(none());
            };
            self.client = Some(connect(self, config, keys)?);
        }
        self.client.as_ref().ok_or_else(none)
    }

    /// What is wrong with the credentials may be put right meanwhile: everything is looked up
    /// again.
    pub fn forget(&mut self) {
        (self.config, self.credentials, self.asked, self.client) = (None, None, None, None);
    }

    /// The profile that is named, unless keys are. Refuses what the SDK would read in another way
    /// than the AWS CLI, or pass over in silence.
    fn named_profile(&self) -> Result<Option<String>, Failure> {
        if self.keys.is_some() || self.profile.is_some() {
            return Ok(self.profile.clone());
        }
        let profile = variable("AWS_PROFILE");
        if variable("AWS_DEFAULT_PROFILE").is_some_and(|other| profile.as_ref() != Some(&other)) {
            let why = "`AWS_DEFAULT_PROFILE` names another profile than `AWS_PROFILE`";
            return Err(Failure::permanent(why).with_hint("set `AWS_PROFILE` alone"));
        }
        if variable(KEYS[0]).is_some() != variable(KEYS[1]).is_some() {
            let why = "of `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, only one is set";
            return Err(Failure::permanent(why)
                .with_hint("set both, or neither to use a profile or a role"));
        }
        Ok(profile)
    }

    async fn find(&mut self) -> Result<SdkConfig, Failure> {
        let name = self.named_profile()?;
        let (fs, env, files) = (Fs::real(), Env::real(), Default::default());
        let loaded =
            aws_config::profile::load(&fs, &env, &files, name.clone().map(Into::into)).await;
        let profiles = loaded.map_err(|error| {
            let why = format!("AWS's configuration files cannot be used: {}", innermost(&error));
            Failure::permanent(why).with_hint("`aws configure list` reads the same files")
        })?;
        if let Some(name) =
            name.filter(|name| name != "default" && profiles.get_profile(name).is_none())
        {
            let why = format!("the profile `{}` does not exist", text::field(&name));
            return Err(Failure::permanent(why)
                .with_hint("`aws configure list-profiles` shows which there are"));
        }
        let region = self
            .region
            .take()
            .or_else(|| variable("AWS_REGION"))
            .or_else(|| variable("AWS_DEFAULT_REGION"));
        self.region = region.or_else(|| profiles.get("region").map(str::to_owned));
        self.region.as_ref().map_or(Ok(()), |region| checks::word(region, "region"))?;
        let [id, secret, token] = KEYS.map(variable);
        let known = self
            .keys
            .clone()
            .or_else(|| id.zip(secret).map(|(id, secret)| keys(id, secret, token)));
        self.credentials =
            known.filter(|_| self.profile.is_none()).as_ref().map(usable).transpose()?;
        // Nothing is asked for keys that are known, and certificates take milliseconds to read.
        let http = http_client(self.roots.as_deref(), self.credentials.is_some())?;
        let region = self.region.clone().map(Region::new);
        let mut loader =
            aws_config::defaults(BehaviorVersion::v2026_01_12()).region(region.clone());
        loader = loader.http_client(http.clone()).retry_config(RetryConfig::disabled());
        if let Some(known) = &self.credentials {
            loader = loader.credentials_provider(known.clone());
        } else if let Some(profile) = &self.profile {
            loader = loader.profile_name(profile);
            // Like the CLI's `--profile`, before the variables with access keys.
            let provider =
                ProviderConfig::without_region().with_http_client(http).with_region(region);
            let provider = ProfileFileCredentialsProvider::builder()
                .configure(&provider)
                .profile_name(profile);
            loader = loader.credentials_provider(provider.build());
        }
        let config = loader.load().await;
        self.endpoint = self.endpoint.take().or_else(|| configured_endpoint(&config, self.service));
        let what = "endpoint of `AWS_ENDPOINT_URL…` or of the profile";
        self.endpoint.as_ref().map_or(Ok(()), |endpoint| checks::endpoint(endpoint, what))?;
        Ok(config)
    }

    async fn renew(&mut self) -> Result<bool, Failure> {
        let now = SystemTime::now();
        let are_good_for = |time: Duration| {
            let known = self.credentials.as_ref();
            known.is_some_and(|known| known.expiry().is_none_or(|expiry| expiry > now + time))
        };
        let was_asked = self.asked.is_some_and(|asked| asked <= now && now < asked + PAUSE);
        if are_good_for(EARLY) || (was_asked && are_good_for(Duration::ZERO)) {
            return Ok(false);
        }
        self.asked = Some(now);
        let provider = self.config.as_ref().and_then(SdkConfig::credentials_provider);
        let provider = provider.ok_or_else(|| Failure::permanent(NONE))?;
        let failure = match timeout(self.timeout, provider.provide_credentials()).await {
            Ok(Ok(credentials)) => {
                self.credentials = Some(usable(&credentials)?);
                return Ok(true);
            }
            Ok(Err(error)) => failure_of(&error),
            Err(_) => Failure::transient("the credentials for AWS do not come in time"),
        };
        if are_good_for(Duration::ZERO) {
            tracing::debug!("cannot renew the credentials yet: {}", failure.why);
            return Ok(false);
        }
        Err(failure)
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
    token.map_or(Ok(()), |token| checks::header(token, "session token"))?;
    Ok(Credentials::new(id, secret, token.map(str::to_owned), credentials.expiry(), "checked"))
}

/// A client that heeds proxies and the bundle of trusted certificates, and keeps its connections.
/// One that `is_plain` does not encrypt.
pub fn http_client(roots: Option<&Path>, is_plain: bool) -> Result<SharedHttpClient, Failure> {
    let mut tls = TlsContext::builder();
    if let Some(path) = roots.filter(|_| !is_plain) {
        tls = tls.with_trust_store(TrustStore::empty().with_pem_certificate(certificates(path)?));
    }
    let tls = tls.build().map_err(|error| Failure::permanent(innermost(&error)))?;
    let made = OnceLock::new();
    Ok(http_client_fn(move |settings, components| {
        let make = || {
            let builder = Connector::builder().connector_settings(settings.clone());
            let mut builder = builder.proxy_config(ProxyConfig::from_env());
            builder.set_sleep_impl(components.sleep_impl());
            SharedHttpConnector::new(if is_plain {
                builder.build_http()
            } else {
                builder
                    .tls_provider(Provider::Rustls(CryptoMode::Ring))
                    .tls_context(tls.clone())
                    .build()
            })
        };
        made.get_or_init(make).clone()
    }))
}

/// Why there are no credentials. Only what says by itself that it passes is waited for.
fn failure_of(error: &CredentialsError) -> Failure {
    // What a command for credentials has printed may be anything.
    let why = innermost(error);
    let why = why.split(". Stderr:").next().unwrap_or("").replace("StatusCode(", "(status ");
    let is_late = |error: &ConnectorError| error.is_timeout();
    let passes = matches!(error, CredentialsError::ProviderTimedOut(_))
        || why.contains("(status 5")
        || why.contains("(status 429")
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
