//! Where an object store is, and which identity to use: the address, then the settings of Meltano's
//! state backend, then the variables of each cloud's own tools.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use object_store::RetryConfig;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use serde_json::Value;

use super::azure;
use super::client::{Bucket, Client, unusable};
use super::connector::Connector;
use super::kinds::{self, Kind};
use crate::store::address::{Scheme, StoreSettings};
use crate::store::aws::{self, Account};
use crate::store::checks::{self, endpoint_of};
use crate::store::failure::Failure;
use crate::store::network::{Address, decoded, variable};

/// Where a store's objects are, and how messages call it.
pub struct Options {
    pub bucket: String,
    /// What the names of all objects begin with.
    pub prefix: Path,
    pub kind: &'static Kind,
    pub timeout: Duration,
}

/// Reads the address and the environment. Values are not repeated: they may be parts of a secret.
pub fn read(settings: &StoreSettings) -> Result<(Options, Client), Failure> {
    let scheme = settings.url.scheme();
    let kind = match scheme {
        Scheme::Azure => &kinds::AZURE,
        Scheme::Gcs => &kinds::GCS,
        _ => &kinds::S3,
    };
    let address = checks::address(settings, kind.options)?;
    let bucket = bucket(scheme, &address, kind)?;
    let parts: Vec<_> = address.path.split('/').filter(|part| !part.is_empty()).collect();
    let cannot = |_| Failure::permanent("the address's prefix cannot be part of an object's name");
    let prefix = Path::parse(parts.join("/")).map_err(cannot)?;
    let bundle = || variable("AWS_CA_BUNDLE").filter(|_| scheme == Scheme::S3);
    let roots = address.option("ca").or_else(bundle).map(PathBuf::from);
    let connector = Connector::new(settings.timeout, roots);
    let client = match scheme {
        Scheme::Azure => azure::client(&address, &bucket, connector)?,
        Scheme::Gcs => google(&address, &bucket, connector)?,
        _ => s3(&address, &bucket, connector)?,
    };
    Ok((Options { bucket, prefix, kind, timeout: settings.timeout }, client))
}

/// A write that is sent again by the crate looks like a conflict.
pub(super) fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

fn bucket(scheme: Scheme, address: &Address, kind: &Kind) -> Result<String, Failure> {
    let host = decoded(&address.hosts)?;
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "-._$".contains(c);
    let why = if address.user.is_some() && scheme != Scheme::S3 {
        "the address names a user before an `@`"
    } else if host.is_empty() {
        "the address names no bucket"
    } else if !host.chars().all(is_valid) {
        "the address's bucket is not a valid name"
    } else {
        return Ok(host);
    };
    Err(Failure::permanent(why)
        .with_hint(format!("{}; an `@` in a prefix is written as `%40`", kind.example)))
}

/// A setting of Meltano's state backend.
pub(super) fn meltano(name: &str) -> Option<String> {
    variable(&format!("MELTANO_STATE_BACKEND_{name}"))
}

/// The variables that a builder of the crate knows.
pub(super) fn given<K: FromStr>(kind: &Kind) -> impl Iterator<Item = (K, String)> {
    std::env::vars_os().filter_map(|(name, _)| {
        let name = name
            .into_string()
            .ok()
            .filter(|name| kind.variables.iter().any(|start| name.starts_with(start)))?;
        Some((name.to_ascii_lowercase().parse().ok()?, variable(&name)?))
    })
}

fn s3(address: &Address, bucket: &str, connector: Connector) -> Result<Client, Failure> {
    let option = |name: &str| address.option(name);
    // The first place that has one has to have both. Meltano's settings come before its address, as
    // in Meltano.
    let places = [
        (option("access_key_id"), option("secret_access_key"), option("session_token")),
        (meltano("S3_AWS_ACCESS_KEY_ID"), meltano("S3_AWS_SECRET_ACCESS_KEY"), None),
        (address.user.clone(), address.password.clone(), option("session_token")),
    ];
    let keys = match places.into_iter().find(|(id, secret, _)| id.is_some() || secret.is_some()) {
        Some((Some(id), Some(secret), token)) => Some(aws::keys(id, secret, token)),
        Some(_) => return Err(Failure::permanent("of a key and its secret, only one is given")),
        None => None,
    };
    let is_path_style = option("path_style").map_or(Ok(true), |value| value.parse());
    let neither =
        |_| Failure::permanent("the address's option `path_style` is neither `true` nor `false`");
    let is_path_style = is_path_style.map_err(neither)?;
    let account = Account::new("S3", address, connector.timeout, keys, meltano("S3_ENDPOINT_URL"))?;
    let builder =
        given(&kinds::S3).fold(AmazonS3Builder::new(), |builder, (key, value)| match key {
            // These are found otherwise, and each request is signed.
            AmazonS3ConfigKey::Endpoint
            | AmazonS3ConfigKey::S3Endpoint
            | AmazonS3ConfigKey::SkipSignature => builder,
            key => builder.with_config(key, value),
        });
    // Last: `AWS_BUCKET` is a setting of the crate, too.
    let builder =
        builder.with_bucket_name(bucket).with_virtual_hosted_style_request(!is_path_style);
    let builder =
        builder.with_conditional_put(S3ConditionalPut::ETagMatch).with_disable_tagging(true);
    let builder = builder.with_http_connector(connector).with_retry(once());
    let bucket = Bucket { name: bucket.to_owned(), builder, is_path_style };
    Ok(Client::S3 { account: Box::new(account), bucket: Box::new(bucket) })
}

fn google(address: &Address, bucket: &str, connector: Connector) -> Result<Client, Failure> {
    use GoogleConfigKey as Key;
    let credentials = |name: &str| meltano(&format!("GCS_APPLICATION_CREDENTIALS{name}"));
    let (path, json) = match address.option("application_credentials") {
        Some(path) => (Some(path), None),
        None => (credentials("_PATH").or_else(|| credentials("")), credentials("_JSON")),
    };
    if path.is_some() && json.is_some() {
        let why = "Meltano's settings for Google have both a path of credentials and their JSON";
        return Err(Failure::permanent(why).with_hint("set only one of them"));
    }
    let is_object =
        |json: &String| serde_json::from_str::<Value>(json).is_ok_and(|value| value.is_object());
    // The crate's error would repeat what it finds instead of an object.
    if json.as_ref().is_some_and(|json| !is_object(json)) {
        let why = "`MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS_JSON` is not a JSON object";
        return Err(Failure::permanent(why)
            .with_hint("it holds the content of a service account's key file"));
    }
    // The crate would use others of the environment first.
    let others = [
        Key::ServiceAccount,
        Key::ServiceAccountKey,
        Key::ApplicationCredentials,
        Key::BearerToken,
    ];
    let is_given = path.is_some() || json.is_some();
    let usual = given(&kinds::GCS)
        .filter(|(key, _)| *key != Key::SkipSignature && !(is_given && others.contains(key)));
    // Last: `GOOGLE_BUCKET` is a setting of the crate, too.
    let own = [
        (Key::ApplicationCredentials, path),
        (Key::ServiceAccountKey, json),
        (Key::BaseUrl, endpoint_of(address)?),
        (Key::Bucket, Some(bucket.to_owned())),
    ];
    let all = usual.chain(own.into_iter().filter_map(|(key, value)| Some((key, value?))));
    let builder = all.fold(GoogleCloudStorageBuilder::new(), |builder, (key, value)| {
        builder.with_config(key, value)
    });
    let endpoint = builder.get_config_value(&Key::BaseUrl);
    endpoint
        .map_or(Ok(()), |endpoint| checks::endpoint(&endpoint, "endpoint of `GOOGLE_BASE_URL`"))?;
    let client = builder.with_http_connector(connector).with_retry(once()).build();
    client.map(Client::Gcs).map_err(|error| unusable(&kinds::GCS, &error))
}
