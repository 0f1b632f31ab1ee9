//! The clients of the crate, and the one request that they lack: to delete an object in a certain state.

use std::sync::Arc;

use aws_credential_types::Credentials;
use http::header::{AUTHORIZATION, IF_MATCH};
use http::{HeaderName, Method, Request};
use object_store::aws::{AmazonS3, AmazonS3ConfigKey, AwsAuthorizer, AwsCredential, S3ConditionalPut};
use object_store::azure::{AzureAuthorizer, AzureConfigKey, MicrosoftAzure};
use object_store::client::{HttpConnector, HttpRequestBody};
use object_store::gcp::GoogleCloudStorage;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, RetryConfig, StaticCredentialProvider, UpdateVersion};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::address::{Access, Options};
use super::connector::{Connector, generic};
use crate::backend::aws::Account;
use crate::backend::checks;
use crate::backend::failure::Failure;
use crate::backend::network::innermost;

/// A client of the crate, and what it takes to sign a request of our own.
pub struct Client {
    service: Service,
    /// The URL of the bucket.
    url: String,
    connector: Connector,
}

enum Service {
    S3 { store: AmazonS3, region: String },
    Azure { store: MicrosoftAzure, account: String },
    Gcs(GoogleCloudStorage),
}

impl Client {
    /// Does not connect yet. S3 needs an `account`.
    pub fn new(options: &Options, account: Option<(&Account, &Credentials)>) -> Result<Self, Failure> {
        let unusable = |error: object_store::Error| {
            let why = format!("settings cannot be used: {}", innermost(&error));
            Failure::permanent(why).with_hint(options.kind.credentials)
        };
        // A write that is sent again by the crate looks like a conflict.
        let once = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let mut connector = Connector { timeout: options.timeout, roots: options.roots.clone(), is_plain: false };
        let bucket = &options.bucket;
        let in_bucket = |endpoint: &str| format!("{}/{bucket}", endpoint.trim_end_matches('/'));
        let (service, url) = match &options.access {
            Access::S3 { builder, is_path_style, .. } => {
                let (account, keys) = account.ok_or_else(|| Failure::permanent("there is no account"))?;
                let region = account.region.clone().unwrap_or_else(|| "us-east-1".to_owned());
                let (endpoint, url) = s3_urls(account.endpoint.as_deref(), &region, bucket, *is_path_style)?;
                connector.is_plain = url.starts_with("http://");
                let credential = AwsCredential {
                    key_id: keys.access_key_id().to_owned(),
                    secret_key: keys.secret_access_key().to_owned(),
                    token: keys.session_token().map(str::to_owned),
                };
                let builder = builder.as_ref().clone().with_region(&region);
                let builder = builder
                    .with_config(AmazonS3ConfigKey::S3Endpoint, endpoint)
                    .with_virtual_hosted_style_request(!is_path_style)
                    .with_conditional_put(S3ConditionalPut::ETagMatch)
                    .with_disable_tagging(true)
                    .with_credentials(Arc::new(StaticCredentialProvider::new(credential)));
                let store = builder.with_http_connector(connector.clone()).with_retry(once).build().map_err(unusable)?;
                (Service::S3 { store, region }, url)
            }
            Access::Azure { builder, account, endpoint } => {
                let is_fixed = |key| builder.get_config_value(&key).is_some();
                let needs_no_token = [AzureConfigKey::AccessKey, AzureConfigKey::SasKey].into_iter().any(is_fixed);
                connector.is_plain = endpoint.starts_with("http://") && needs_no_token;
                let builder = builder.as_ref().clone().with_http_connector(connector.clone()).with_retry(once);
                let (store, account) = (builder.build().map_err(unusable)?, account.clone());
                (Service::Azure { store, account }, in_bucket(endpoint))
            }
            Access::Gcs { builder, endpoint } => {
                let builder = builder.as_ref().clone().with_http_connector(connector.clone()).with_retry(once);
                (Service::Gcs(builder.build().map_err(unusable)?), in_bucket(endpoint))
            }
        };
        Ok(Self { service, url, connector })
    }

    /// The crate's client.
    pub fn store(&self) -> &dyn ObjectStore {
        match &self.service {
            Service::S3 { store, .. } => store,
            Service::Azure { store, .. } => store,
            Service::Gcs(store) => store,
        }
    }

    /// Fetches credentials, unless there are some that are good for a while.
    pub async fn prepare(&self) -> object_store::Result<()> {
        match &self.service {
            Service::S3 { .. } => Ok(()),
            Service::Azure { store, .. } => store.credentials().get_credential().await.map(drop),
            Service::Gcs(store) => store.credentials().get_credential().await.map(drop),
        }
    }

    /// Deletes an object only if it has the version `seen`.
    pub async fn delete(&self, path: &Path, seen: &[u8]) -> object_store::Result<()> {
        let UpdateVersion { e_tag, version } = condition(seen);
        let (header, value) = match &self.service {
            Service::Gcs(_) => (HeaderName::from_static("x-goog-if-generation-match"), version),
            _ => (IF_MATCH, e_tag),
        };
        // Without a condition, it would delete whatever is there.
        let value = value.ok_or_else(|| generic("the object has no version"))?;
        let uri = format!("{}/{}", self.url, utf8_percent_encode(path.as_ref(), IN_PATHS));
        let request = Request::builder().method(Method::DELETE).uri(uri).header(header, value);
        let mut request = request.body(HttpRequestBody::empty()).map_err(generic)?;
        match &self.service {
            Service::S3 { store, region } => {
                let credential = store.credentials().get_credential().await?;
                AwsAuthorizer::new(&credential, "s3", region).try_authorize(&mut request, None)?;
            }
            Service::Azure { store, account } => {
                let credential = store.credentials().get_credential().await?;
                AzureAuthorizer::new(&credential, account).try_authorize(&mut request)?;
            }
            Service::Gcs(store) => {
                let bearer = format!("Bearer {}", store.credentials().get_credential().await?.bearer);
                let bearer = bearer.parse().map_err(|_| generic("the token is not valid"))?;
                request.headers_mut().insert(AUTHORIZATION, bearer);
            }
        }
        let client = self.connector.connect(&ClientOptions::new())?;
        client.execute(request).await.map(drop).map_err(generic)
    }
}

/// What a URL's path does not have as it is.
const IN_PATHS: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// A version that no object has, with an ETag as Azure writes it. S3 takes any, and Google compares the generation.
pub const OTHER_VERSION: &[u8] = b"\"0x8D0000000000000\"\n1";

/// A version as the crate has it.
pub fn condition(version: &[u8]) -> UpdateVersion {
    let text = String::from_utf8_lossy(version);
    let (e_tag, generation) = text.split_once('\n').unwrap_or((&text, ""));
    let there = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    UpdateVersion { e_tag: there(e_tag), version: there(generation) }
}

/// The URLs of S3 for the crate, which adds the bucket where it is a part of the path, and of the bucket.
fn s3_urls(endpoint: Option<&str>, region: &str, bucket: &str, is_path_style: bool) -> Result<(String, String), Failure> {
    let usual = format!("https://s3.{region}.amazonaws.com");
    let endpoint = endpoint.unwrap_or(&usual).trim_end_matches('/');
    if is_path_style {
        return Ok((endpoint.to_owned(), format!("{endpoint}/{bucket}")));
    }
    let url = endpoint.replacen("://", &format!("://{bucket}."), 1);
    if !checks::is_url(&url) {
        let why = "the bucket cannot stand before the name of the store's host";
        let hint = "without `path_style=false` in the address, it stands behind it";
        return Err(Failure::permanent(why).with_hint(hint));
    }
    Ok((url.clone(), url))
}

/// S3 and Azure compare the ETag, Google the generation.
pub fn version(e_tag: Option<&str>, generation: Option<&str>) -> Vec<u8> {
    format!("{}\n{}", e_tag.unwrap_or(""), generation.unwrap_or("")).into_bytes()
}
