//! A bucket, and the questions that are put to it, one at a time.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{ObjectStore, RetryConfig, StaticCredentialProvider};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::azure::Account;
use super::failure::{Question, Refusal, innermost, refusal};
use super::http::{Connector, Shared};
use super::options::{Access, Keys, Options};
use super::words::Words;
use crate::backend::network::runtime;
use crate::backend::remote::Failure;
use crate::store::StoreSettings;

/// A bucket. Nothing is set up before it is used.
pub struct Store {
    options: Options,
    /// For all that a question takes: credentials first, then the store.
    limit: Duration,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    client: Option<Arc<dyn ObjectStore>>,
}

impl Store {
    /// Does not connect yet.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        let options = Options::of(settings)?;
        let shared = Shared::new(settings.timeout, options.roots.clone(), options.asks_machine);
        Ok(Self { options, limit: settings.timeout * 2, shared, runtime: None, client: None })
    }

    /// The path of an object by its name.
    pub fn path(&self, name: &str) -> Result<Path, Failure> {
        let prefix = &self.options.prefix;
        let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        Path::parse(path).map_err(|_| Failure::permanent("the address's prefix is no name of an object"))
    }

    /// What the names of all objects begin with.
    pub fn prefix(&self) -> Result<Option<Path>, Failure> {
        if self.options.prefix.is_empty() { Ok(None) } else { self.path("").map(Some) }
    }

    /// How the people who use such stores speak.
    pub fn words(&self) -> &'static Words {
        Words::of(self.options.scheme)
    }

    /// Asks something.
    pub fn ask<T>(
        &mut self,
        question: Question,
        ask: impl AsyncFnOnce(&dyn ObjectStore) -> object_store::Result<T>,
    ) -> Result<T, Refusal> {
        let client = match &self.client {
            Some(client) => Arc::clone(client),
            None => Arc::clone(self.client.insert(build(&self.options, &self.shared)?)),
        };
        let runtime = runtime::made(&mut self.runtime)?;
        self.shared.take_last();
        let asked = runtime.block_on(async { timeout(self.limit, ask(client.as_ref())).await });
        let error = match asked {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        let exchange = self.shared.take_last();
        Err(refusal(question, self.words(), &self.options.bucket, exchange, error.as_ref()))
    }

    /// Closes its connections. Credentials are kept.
    pub fn disconnect(&mut self) {
        // Outside of its runtime, a socket could not say good-bye.
        let _inside = self.runtime.as_ref().map(Runtime::enter);
        self.shared.disconnect();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.disconnect();
    }
}

/// It is asked again elsewhere, by whoever knows what may have been done.
fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

fn is_plain(endpoint: Option<&str>) -> bool {
    endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"))
}

fn build(options: &Options, shared: &Arc<Shared>) -> Result<Arc<dyn ObjectStore>, Failure> {
    let connector = Connector(Arc::clone(shared));
    let built: object_store::Result<Arc<dyn ObjectStore>> = match &options.access {
        Access::S3 { keys, region, endpoint, is_path_style } => {
            let mut builder = AmazonS3Builder::from_env().with_bucket_name(&options.bucket);
            if let Some(Keys { id, secret, token }) = keys {
                let (key_id, secret_key) = (id.clone(), secret.clone());
                let credential = AwsCredential { key_id, secret_key, token: token.clone() };
                // Not by the builder, which would add the token of the environment's credentials.
                builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential)));
            }
            if let Some(region) = region {
                builder = builder.with_region(region);
            }
            let usual = || {
                let value = |key| builder.get_config_value(&key);
                value(AmazonS3ConfigKey::S3Endpoint).or_else(|| value(AmazonS3ConfigKey::Endpoint))
            };
            if let Some(endpoint) = endpoint.clone().or_else(usual) {
                let endpoint = if *is_path_style { endpoint } else { with_bucket(&endpoint, &options.bucket) };
                builder = builder.with_allow_http(is_plain(Some(&endpoint)));
                builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
            }
            let builder = builder.with_virtual_hosted_style_request(!is_path_style);
            let builder = builder.with_conditional_put(S3ConditionalPut::ETagMatch).with_disable_tagging(true);
            builder.with_retry(once()).with_http_connector(connector).build().map(|store| Arc::new(store) as _)
        }
        Access::Azure(account) => azure(account, &options.bucket).and_then(|builder| {
            builder.with_retry(once()).with_http_connector(connector).build().map(|store| Arc::new(store) as _)
        }),
        Access::Gcs { credentials, endpoint } => {
            let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(&options.bucket);
            if let Some(path) = credentials {
                builder = builder.with_application_credentials(path);
            }
            if let Some(endpoint) = endpoint {
                builder = builder.with_config(GoogleConfigKey::BaseUrl, endpoint);
            }
            builder.with_retry(once()).with_http_connector(connector).build().map(|store| Arc::new(store) as _)
        }
    };
    let unusable = |error| format!("credentials or settings cannot be used: {}", innermost(&error));
    built.map_err(|error| Failure::permanent(unusable(error)).with_hint(Words::of(options.scheme).credentials))
}

fn azure(account: &Account, container: &str) -> object_store::Result<MicrosoftAzureBuilder> {
    let has_credentials = account.key.is_some() || account.sas.is_some();
    // Credentials of the environment come before others, whoever has given these.
    let usual = MicrosoftAzureBuilder::from_env();
    let name = account.name().or_else(|| usual.get_config_value(&AzureConfigKey::AccountName));
    let endpoint = account.endpoint.clone().or_else(|| {
        // Another account's endpoint is of no use.
        usual.get_config_value(&AzureConfigKey::Endpoint).filter(|_| account.name.is_none())
    });
    let mut builder = if has_credentials { MicrosoftAzureBuilder::new() } else { usual };
    builder = builder.with_container_name(container);
    if let Some(name) = name {
        builder = builder.with_account(name);
    }
    if let Some(endpoint) = endpoint {
        builder = builder.with_allow_http(is_plain(Some(&endpoint))).with_endpoint(endpoint);
    }
    if let Some(key) = &account.key {
        builder = builder.with_access_key(key);
    } else if let Some(sas) = &account.sas {
        builder = builder.with_config(AzureConfigKey::SasKey, sas);
    }
    Ok(builder.with_disable_tagging(true))
}

/// The endpoint of a bucket that has a host of its own.
fn with_bucket(endpoint: &str, bucket: &str) -> String {
    match endpoint.split_once("://") {
        Some((scheme, host)) => format!("{scheme}://{bucket}.{host}"),
        None => format!("{bucket}.{endpoint}"),
    }
}
