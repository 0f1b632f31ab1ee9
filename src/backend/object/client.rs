//! The clients of the crate, and the one request that they lack: to delete an object in a certain state.

use std::sync::Arc;

use http::header::{AUTHORIZATION, IF_MATCH};
use http::{HeaderName, Method, Request};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer, AwsCredential, S3ConditionalPut};
use object_store::azure::{AzureAccessKey, AzureAuthorizer, AzureConfigKey, MicrosoftAzure};
use object_store::client::HttpRequestBody;
use object_store::gcp::{GoogleCloudStorage, GoogleConfigKey};
use object_store::path::Path;
use object_store::{ObjectStore, RetryConfig, StaticCredentialProvider, UpdateVersion};

use super::address::{Access, Options};
use super::connector::{Connector, Shared};
use crate::backend::aws::{Account, innermost};
use crate::backend::checks::{self, variable};
use crate::backend::failure::Failure;

/// A client of the crate, and what it takes to sign a request of our own.
pub struct Client {
    kind: Kind,
    /// The URL of the bucket.
    url: String,
}

enum Kind {
    S3 { store: AmazonS3, region: String, is_signed: bool },
    Azure { store: MicrosoftAzure, account: String },
    Gcs { store: GoogleCloudStorage },
}

impl Client {
    /// Does not connect yet. S3 needs an `account`.
    ///
    /// # Errors
    /// When the settings cannot be used.
    pub fn new(options: &Options, account: Option<&Account>, shared: &Arc<Shared>) -> Result<Self, Failure> {
        let connector = |is_plain| Connector { shared: Arc::clone(shared), is_plain };
        // A write that is sent again by the crate looks like a conflict.
        let once = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let unusable = |error: object_store::Error| {
            let failure = Failure::permanent(format!("settings cannot be used: {}", innermost(&error)));
            failure.with_hint(options.hints.credentials)
        };
        let bucket = &options.bucket;
        match (&options.access, account) {
            (Access::S3 { builder, is_path_style, .. }, Some(account)) => {
                let region = account.region.clone().unwrap_or_else(|| "us-east-1".to_owned());
                let url = s3_url(account, &region, bucket, *is_path_style)?;
                let mut builder = s3(builder, &region, &url, bucket, *is_path_style);
                if let Some(credentials) = &account.credentials {
                    let known = AwsCredential {
                        key_id: credentials.access_key_id().to_owned(),
                        secret_key: credentials.secret_access_key().to_owned(),
                        token: credentials.session_token().map(str::to_owned),
                    };
                    builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(known)));
                }
                let builder = builder.with_http_connector(connector(url.starts_with("http://")));
                let store = builder.with_retry(once).build().map_err(unusable)?;
                Ok(Self { kind: Kind::S3 { store, region, is_signed: options.is_signed() }, url })
            }
            (Access::Azure(builder), _) => {
                let value = |key| builder.get_config_value(&key);
                let account = value(AzureConfigKey::AccountName).unwrap_or_default();
                let usual = || format!("https://{account}.blob.core.windows.net");
                let endpoint = value(AzureConfigKey::Endpoint).unwrap_or_else(usual);
                let url = format!("{}/{bucket}", endpoint.trim_end_matches('/'));
                // The crate's error repeats a part of it.
                if value(AzureConfigKey::AccessKey).is_some_and(|key| AzureAccessKey::try_new(&key).is_err()) {
                    let failure = Failure::permanent("settings cannot be used: the storage account's key is not base64");
                    return Err(failure.with_hint(options.hints.credentials));
                }
                let fixed = [AzureConfigKey::AccessKey, AzureConfigKey::SasKey].map(value);
                let is_plain = url.starts_with("http://") && fixed.iter().any(Option::is_some);
                let builder = builder.as_ref().clone().with_http_connector(connector(is_plain));
                let store = builder.with_retry(once).build().map_err(unusable)?;
                Ok(Self { kind: Kind::Azure { store, account }, url })
            }
            (Access::Gcs(builder), _) => {
                let endpoint = builder.get_config_value(&GoogleConfigKey::BaseUrl);
                let endpoint = endpoint.unwrap_or_else(|| "https://storage.googleapis.com".to_owned());
                let url = format!("{}/{bucket}", endpoint.trim_end_matches('/'));
                let builder = builder.as_ref().clone().with_retry(once).with_http_connector(connector(false));
                Ok(Self { kind: Kind::Gcs { store: builder.build().map_err(unusable)? }, url })
            }
            (Access::S3 { .. }, None) => Err(Failure::permanent("there are no credentials for AWS")),
        }
    }

    /// The crate's client.
    pub fn store(&self) -> &dyn ObjectStore {
        match &self.kind {
            Kind::S3 { store, .. } => store,
            Kind::Azure { store, .. } => store,
            Kind::Gcs { store } => store,
        }
    }

    /// Deletes an object only if it has the version `seen`.
    pub async fn delete(&self, path: &Path, seen: &[u8], shared: &Shared) -> object_store::Result<()> {
        let generic = |source: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Generic { store: "client", source };
        let UpdateVersion { e_tag, version } = condition(seen);
        let (header, value) = match &self.kind {
            Kind::Gcs { .. } => (HeaderName::from_static("x-goog-if-generation-match"), version),
            _ => (IF_MATCH, e_tag),
        };
        // Without a condition, it would delete whatever is there.
        let value = value.ok_or_else(|| generic("the object has no version".into()))?;
        let parts = path.parts().map(|part| percent_encoding::utf8_percent_encode(part.as_ref(), IN_PATHS).to_string());
        let uri = format!("{}/{}", self.url, parts.collect::<Vec<_>>().join("/"));
        let request = Request::builder().method(Method::DELETE).uri(uri).header(header, value);
        let mut request = request.body(HttpRequestBody::empty()).map_err(|error| generic(error.into()))?;
        match &self.kind {
            Kind::S3 { is_signed: false, .. } => {}
            Kind::S3 { store, region, .. } => {
                let credential = store.credentials().get_credential().await?;
                AwsAuthorizer::new(&credential, "s3", region).try_authorize(&mut request, None)?;
            }
            Kind::Azure { store, account } => {
                let credential = store.credentials().get_credential().await?;
                AzureAuthorizer::new(&credential, account).try_authorize(&mut request)?;
            }
            Kind::Gcs { store } => {
                let bearer = format!("Bearer {}", store.credentials().get_credential().await?.bearer);
                let bearer = bearer.parse().map_err(|_| generic("the token is not valid".into()))?;
                request.headers_mut().insert(AUTHORIZATION, bearer);
            }
        }
        let client = shared.store_client().ok_or_else(|| generic("there is no client".into()))?;
        let answer = client.execute(request).await.map_err(|error| generic(error.into()))?;
        if answer.status().is_success() {
            return Ok(());
        }
        Err(generic("the store refuses".into()))
    }
}

/// What a URL's path does not have as it is.
const IN_PATHS: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A version as the crate has it.
pub fn condition(version: &[u8]) -> UpdateVersion {
    let text = String::from_utf8_lossy(version);
    let (e_tag, generation) = text.split_once('\n').unwrap_or((&text, ""));
    let there = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    UpdateVersion { e_tag: there(e_tag), version: there(generation) }
}

/// The URL of a bucket of S3.
fn s3_url(account: &Account, region: &str, bucket: &str, is_path_style: bool) -> Result<String, Failure> {
    let endpoint = account.endpoint.clone().or_else(|| variable("AWS_ENDPOINT"));
    let endpoint = endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
    checks::endpoint(&endpoint, "store's endpoint")?;
    let endpoint = endpoint.trim_end_matches('/');
    if is_path_style {
        return Ok(format!("{endpoint}/{bucket}"));
    }
    let (scheme, host) = endpoint.split_once("://").unwrap_or(("https", endpoint));
    let url = format!("{scheme}://{bucket}.{host}");
    if !checks::is_url(&url) {
        let why = "the bucket cannot stand before the name of the store's host";
        let hint = "without `path_style=false` in the address, it stands behind it";
        return Err(Failure::permanent(why).with_hint(hint));
    }
    Ok(url)
}

fn s3(builder: &AmazonS3Builder, region: &str, url: &str, bucket: &str, is_path_style: bool) -> AmazonS3Builder {
    // The crate adds the bucket where it is part of the path.
    let endpoint = if is_path_style { url.strip_suffix(&format!("/{bucket}")).unwrap_or(url) } else { url };
    builder
        .clone()
        .with_region(region)
        .with_config(AmazonS3ConfigKey::S3Endpoint, endpoint)
        .with_allow_http(url.starts_with("http://"))
        .with_virtual_hosted_style_request(!is_path_style)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_disable_tagging(true)
}

/// S3 and Azure compare the ETag, Google the generation.
pub fn version(e_tag: Option<&str>, generation: Option<&str>) -> Vec<u8> {
    format!("{}\n{}", e_tag.unwrap_or(""), generation.unwrap_or("")).into_bytes()
}

/// A version that looks alike and is another: each of its parts has another last digit.
pub fn other_version(version: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(version);
    let other = |part: &str| match part.rfind(|c: char| c.is_ascii_hexdigit()) {
        Some(at) => format!("{}{}{}", &part[..at], if &part[at..=at] == "1" { '2' } else { '1' }, &part[at + 1..]),
        None => part.to_owned(),
    };
    text.split('\n').map(other).collect::<Vec<_>>().join("\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::{condition, other_version, version};

    #[test]
    fn a_version_to_verify_with_looks_alike_and_is_another() {
        for (e_tag, generation, expected) in [
            (Some("\"5f0c\""), None, "\"5f01\"\n"),
            (Some("\"0x8DC1\""), Some(""), "\"0x8DC2\"\n"),
            (Some("CJ0="), Some("1763798400123"), "CJ1=\n1763798400121"),
        ] {
            let seen = version(e_tag, generation);
            let other = other_version(&seen);
            assert_eq!(String::from_utf8_lossy(&other), expected);
            assert_ne!(condition(&seen).e_tag, condition(&other).e_tag);
        }
    }
}
