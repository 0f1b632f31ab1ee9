//! A bucket, and the questions that are put to it, one at a time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, AwsCredentialProvider, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, AzureCredential, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{ObjectStore, RetryConfig, StaticCredentialProvider};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::azure::Account;
use super::credentials::{Container, Kept};
use super::environment::given;
use super::failure::{Question, Refusal, innermost, refusal};
use super::http::{Connector, Shared};
use super::options::{Access, Credentials, Keys, Options};
use super::words::Words;
use crate::backend::failure::{Cause, Failure};
use crate::backend::network::{checks, runtime};
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
        let shared = Shared::new(settings.timeout, options.roots.clone(), options.asks_ec2);
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
        let refusal = refusal(question, self.words(), &self.options.bucket, exchange, error.as_ref());
        if matches!(refusal, Refusal::Failed(Failure { cause: Cause::Permanent, .. })) {
            // Next time, what is wrong with the credentials may have been put right.
            self.client = None;
        }
        Err(refusal)
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
    let unusable = |error| {
        let failure = Failure::permanent(format!("credentials or settings cannot be used: {}", innermost(&error)));
        failure.with_hint(Words::of(options.scheme).credentials)
    };
    // Built once for the credentials that the crate finds, and once more to go on with these. Who made the last client asks the store.
    match &options.access {
        Access::S3 { keys, agent, region, endpoint, is_path_style } => {
            let builder = s3(&options.bucket, region.as_deref(), endpoint.as_deref(), *is_path_style)?.with_retry(once());
            let builder = builder.with_http_connector(connector.clone());
            let provider: AwsCredentialProvider = match (keys, agent) {
                // Not by the builder, which would add the token of the environment's credentials.
                (Some(Keys { id, secret, token }), _) => {
                    let (key_id, secret_key) = (id.clone(), secret.clone());
                    Arc::new(StaticCredentialProvider::new(AwsCredential { key_id, secret_key, token: token.clone() }))
                }
                (None, Some(agent)) => {
                    Arc::new(Container { agent: agent.clone(), client: connector.client(true), known: Mutex::default() })
                }
                (None, None) => Arc::clone(builder.clone().build().map_err(unusable)?.credentials()),
            };
            let is_header = |credential: &AwsCredential| {
                [Some(&credential.key_id), credential.token.as_ref()].into_iter().flatten().all(|part| is_header(part))
            };
            let builder = builder.with_credentials(Arc::new(Kept::new(provider, is_header)));
            Ok(Arc::new(builder.build().map_err(unusable)?))
        }
        Access::Azure(account) => {
            let builder = azure(account, &options.bucket)?.with_retry(once()).with_http_connector(connector);
            let provider = Arc::clone(builder.clone().build().map_err(unusable)?.credentials());
            let is_header = |credential: &AzureCredential| match credential {
                AzureCredential::BearerToken(token) => is_header(token),
                AzureCredential::AccessKey(_) | AzureCredential::SASToken(_) => true,
            };
            let builder = builder.with_credentials(Arc::new(Kept::new(provider, is_header)));
            Ok(Arc::new(builder.build().map_err(unusable)?))
        }
        Access::Gcs { credentials, endpoint } => {
            let service = given("SERVICE_ACCOUNT");
            // The crate would take others first.
            let others =
                [GoogleConfigKey::ServiceAccount, GoogleConfigKey::ServiceAccountKey, GoogleConfigKey::ApplicationCredentials];
            let usual = given("GOOGLE_").chain(service).filter(|(key, _)| credentials.is_none() || !others.contains(key));
            let builder = usual.fold(GoogleCloudStorageBuilder::new(), |builder, (key, value)| builder.with_config(key, value));
            let mut builder = builder.with_bucket_name(&options.bucket);
            builder = match credentials {
                Some(Credentials::File(path)) => builder.with_application_credentials(path),
                Some(Credentials::Json(text)) => builder.with_service_account_key(text),
                None => builder,
            };
            if let Some(endpoint) = endpoint {
                builder = builder.with_config(GoogleConfigKey::BaseUrl, endpoint);
            }
            check_account(&builder)?;
            let builder = builder.with_retry(once()).with_http_connector(connector);
            let provider = Arc::clone(builder.clone().build().map_err(unusable)?.credentials());
            let builder = builder.with_credentials(Arc::new(Kept::new(provider, |credential| is_header(&credential.bearer))));
            Ok(Arc::new(builder.build().map_err(unusable)?))
        }
    }
}

/// A service account may say where the store is, as emulators' do.
fn check_account(builder: &GoogleCloudStorageBuilder) -> Result<(), Failure> {
    let value = |key| builder.get_config_value(&key);
    let of_file = || std::fs::read_to_string(value(GoogleConfigKey::ServiceAccount)?).ok();
    let text = value(GoogleConfigKey::ServiceAccountKey).or_else(of_file).unwrap_or_default();
    let account = serde_json::from_str::<serde_json::Value>(&text).unwrap_or_default();
    let endpoint = account.get("gcs_base_url").and_then(serde_json::Value::as_str);
    endpoint.map_or(Ok(()), |endpoint| checks::endpoint(endpoint, "service account's `gcs_base_url`"))
}

fn is_header(text: &str) -> bool {
    checks::header(text, "credential").is_ok()
}

fn s3(bucket: &str, region: Option<&str>, endpoint: Option<&str>, is_path_style: bool) -> Result<AmazonS3Builder, Failure> {
    let builder = given("AWS_").fold(AmazonS3Builder::new(), |builder, (key, value)| builder.with_config(key, value));
    let mut builder = builder.with_bucket_name(bucket);
    if let Some(region) = region {
        builder = builder.with_region(region);
    }
    let value = |key| builder.get_config_value(&key);
    let usual = || value(AmazonS3ConfigKey::S3Endpoint).or_else(|| value(AmazonS3ConfigKey::Endpoint));
    let endpoint = endpoint.map(str::to_owned).or_else(usual);
    let server = endpoint.clone().unwrap_or_else(|| {
        let region = value(AmazonS3ConfigKey::Region).unwrap_or_else(|| "us-east-1".to_owned());
        format!("https://s3.{region}.amazonaws.com")
    });
    // As the crate makes it, which takes it for granted that it is one.
    checks::endpoint(&server, "store's endpoint")?;
    if !is_path_style && !checks::is_url(&with_bucket(&server, bucket)) {
        let failure = Failure::permanent("the bucket cannot stand before the name of the store's host");
        return Err(failure.with_hint("without `path_style=false` in the address, it stands behind it"));
    }
    if let Some(endpoint) = endpoint {
        let endpoint = if is_path_style { endpoint } else { with_bucket(&endpoint, bucket) };
        builder = builder.with_allow_http(is_plain(Some(&endpoint)));
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    let builder = builder.with_virtual_hosted_style_request(!is_path_style);
    Ok(builder.with_conditional_put(S3ConditionalPut::ETagMatch).with_disable_tagging(true))
}

fn azure(account: &Account, container: &str) -> Result<MicrosoftAzureBuilder, Failure> {
    let has_credentials = account.key.is_some() || account.sas.is_some();
    // Credentials of the environment come before others, whoever has given these.
    let identity = given("IDENTITY_ENDPOINT");
    let usual = given("AZURE_")
        .chain(identity)
        .fold(MicrosoftAzureBuilder::new(), |builder, (key, value)| builder.with_config(key, value));
    let name = account.name().or_else(|| usual.get_config_value(&AzureConfigKey::AccountName));
    let endpoint = account.endpoint.clone().or_else(|| {
        // Another account's endpoint is of no use.
        usual.get_config_value(&AzureConfigKey::Endpoint).filter(|_| account.name.is_none())
    });
    if !has_credentials && is_of_cli(&usual) {
        let failure = Failure::permanent("credentials of the Azure CLI are not asked for, which may take any time");
        return Err(failure.with_hint(
            "`az account get-access-token --resource https://storage.azure.com --query accessToken -o tsv` prints a token for \
             `AZURE_STORAGE_TOKEN`",
        ));
    }
    let mut builder = if has_credentials { MicrosoftAzureBuilder::new() } else { usual };
    builder = builder.with_container_name(container);
    if let Some(name) = name {
        checks::word(&name, "store's account")?;
        builder = builder.with_account(name);
    }
    if let Some(endpoint) = endpoint {
        checks::endpoint(&endpoint, "store's endpoint")?;
        builder = builder.with_allow_http(is_plain(Some(&endpoint))).with_endpoint(endpoint);
    }
    if let Some(key) = &account.key {
        builder = builder.with_access_key(key);
    } else if let Some(sas) = &account.sas {
        builder = builder.with_config(AzureConfigKey::SasKey, sas);
    }
    Ok(builder.with_disable_tagging(true))
}

/// Whether the crate would run `az`, and wait for it without a limit.
fn is_of_cli(usual: &MicrosoftAzureBuilder) -> bool {
    let value = |key| usual.get_config_value(&key);
    let others = [
        AzureConfigKey::Token,
        AzureConfigKey::AccessKey,
        AzureConfigKey::SasKey,
        AzureConfigKey::ClientSecret,
        AzureConfigKey::FederatedTokenFile,
    ];
    match value(AzureConfigKey::CredentialType).as_deref() {
        Some("azure_cli") => true,
        None | Some("auto") => {
            let is_wanted = value(AzureConfigKey::UseAzureCli)
                .is_some_and(|value| !["0", "false", "off", "no", "n"].contains(&value.to_ascii_lowercase().as_str()));
            is_wanted && others.into_iter().all(|key| value(key).is_none())
        }
        Some(_) => false,
    }
}

/// The endpoint of a bucket that has a host of its own.
fn with_bucket(endpoint: &str, bucket: &str) -> String {
    match endpoint.split_once("://") {
        Some((scheme, host)) => format!("{scheme}://{bucket}.{host}"),
        None => format!("{bucket}.{endpoint}"),
    }
}
