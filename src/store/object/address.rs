//! Where an object store is, and which identity to use: the address, then the settings of Meltano's
//! state backend, then the variables of each cloud's own tools.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use aws_credential_types::Credentials;
use object_store::aws::{
    AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, S3ConditionalPut,
};
use object_store::azure::MicrosoftAzure;
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{ObjectStore, RetryConfig, StaticCredentialProvider};
use serde_json::Value;

use super::http::{Connector, without_credentials};
use super::{Objects, azure};
use crate::store::address::{Scheme, StoreSettings};
use crate::store::aws::{self, Account, Settings};
use crate::store::checks::{self, endpoint_of};
use crate::store::failure::Failure;
use crate::store::network::{Address, decoded, innermost, variable};
use crate::store::runtime::PrivateRuntime;

/// A kind of store: the options of its addresses, and hints in its users' words.
pub struct Kind {
    options: &'static str,
    pub credentials: &'static str,
    pub rights: &'static str,
    pub elsewhere: &'static str,
}

static S3: Kind = Kind {
    options: "access_key_id ca endpoint path_style profile region secret_access_key session_token",
    credentials: "`AWS_PROFILE`, `AWS_ACCESS_KEY_ID` with `AWS_SECRET_ACCESS_KEY` (and \
                  `AWS_SESSION_TOKEN`), `s3://KEY:SECRET@bucket`, or a role of this host provide \
                  them",
    rights: "locks require `s3:GetObject` and `s3:PutObject`, and `s3:ListBucket` on the bucket",
    elsewhere: "`?region=…` and `?endpoint=…`, or `AWS_REGION` and `AWS_ENDPOINT_URL`, say where \
                it is",
};

pub static AZURE: Kind = Kind {
    options: "account account_key ca endpoint sas_token",
    credentials: "`AZURE_STORAGE_CONNECTION_STRING`, `AZURE_STORAGE_ACCOUNT_NAME` with `…_KEY` or \
                  `AZURE_STORAGE_SAS_TOKEN`, or an identity of this machine provide them",
    rights: "locks require the role `Storage Blob Data Contributor`, or a SAS with `sp=rcwl`",
    elsewhere: "`?account=…` or `?endpoint=…`, or `AZURE_STORAGE_ACCOUNT_NAME`, say where it is",
};

static GCS: Kind = Kind {
    options: "application_credentials ca endpoint",
    credentials: "`GOOGLE_APPLICATION_CREDENTIALS`, `gcloud auth application-default login` or an \
                  identity of this machine provide them",
    rights: "locks require the role `roles/storage.objectUser` on the bucket",
    elsewhere: "`?endpoint=…` in the address says where it is",
};

/// A client of the crate. Not `Debug`: it holds keys.
pub enum Client {
    /// Made with the identity; and the bucket, if it stands before the name of the store's host.
    S3(Box<Account<AmazonS3>>, Box<AmazonS3Builder>, Option<String>),
    Azure(MicrosoftAzure),
    Gcs(GoogleCloudStorage),
}

impl Client {
    /// The client, once it has credentials.
    pub async fn ready(&mut self, kind: &Kind) -> Result<&dyn ObjectStore, Failure> {
        let (store, credentials): (&dyn ObjectStore, _) = match self {
            Self::S3(account, builder, host) => {
                let client =
                    account.client(|settings, _, keys| connect(settings, keys, builder, host));
                return client.await.map(|store| store as _);
            }
            Self::Azure(store) => (store, store.credentials().get_credential().await.map(drop)),
            Self::Gcs(store) => (store, store.credentials().get_credential().await.map(drop)),
        };
        credentials.map(|()| store).map_err(|error| without_credentials(kind, &error))
    }

    /// See [`Account::forget`].
    pub fn forget(&mut self) {
        if let Self::S3(account, ..) = self {
            account.forget();
        }
    }
}

/// Reads the address and the environment; does not connect yet. Values are not repeated: they may
/// be parts of a secret.
pub fn read(settings: &StoreSettings) -> Result<Objects, Failure> {
    let (scheme, timeout) = (settings.url.scheme, settings.timeout);
    let (kind, client): (_, fn(&_, &_, _) -> _) = match scheme {
        Scheme::Azure => (&AZURE, azure::client),
        Scheme::Gcs => (&GCS, google),
        _ => (&S3, s3),
    };
    let address = checks::address(settings, kind.options)?;
    let bucket = decoded(&address.hosts)?;
    let refused = |why: &str| {
        let hint = "it looks like `s3://BUCKET/PREFIX`; an `@` in a prefix is written as `%40`";
        Err(Failure::refused(why, hint))
    };
    if address.user.is_some() && scheme != Scheme::S3 {
        return refused("the address names a user before an `@`");
    } else if bucket.is_empty() {
        return refused("the address names no bucket");
    } else if !bucket.chars().all(|c| c.is_ascii_alphanumeric() || "-._$".contains(c)) {
        return refused("the address's bucket is not a valid name");
    }
    let parts: Vec<_> = address.path.split('/').filter(|part| !part.is_empty()).collect();
    let Ok(prefix) = Path::parse(parts.join("/")) else {
        return refused("the address's prefix cannot be part of an object's name");
    };
    let roots = address.option("ca").map(PathBuf::from);
    let connector = Connector { timeout, roots, clients: Default::default() };
    let (client, runtime) = (client(&address, &bucket, connector)?, PrivateRuntime::default());
    Ok(Objects { bucket, prefix, kind, timeout, runtime, client })
}

/// A write that is sent again by the crate looks like a conflict.
pub fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// A setting of Meltano's state backend.
pub fn meltano(name: &str) -> Option<String> {
    variable(&format!("MELTANO_STATE_BACKEND_{name}"))
}

/// The variables with this prefix that a builder of the crate knows.
pub fn given<K: FromStr>(starts: &[&str]) -> impl Iterator<Item = (K, String)> {
    std::env::vars_os().filter_map(|(name, _)| {
        let name = name.into_string().ok()?;
        starts.iter().find(|start| name.starts_with(**start))?;
        Some((name.to_ascii_lowercase().parse().ok()?, variable(&name)?))
    })
}

/// Settings that the crate refuses.
pub fn unusable(kind: &Kind, error: &object_store::Error) -> Failure {
    Failure::permanent(format!("settings cannot be used: {}", innermost(error)))
        .with_hint(kind.credentials)
}

fn s3(address: &Address, bucket: &str, mut connector: Connector) -> Result<Client, Failure> {
    use AmazonS3ConfigKey as Key;
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
    let Ok(is_path_style) = option("path_style").map_or(Ok(true), |value| value.parse()) else {
        let why = "the address's option `path_style` is neither `true` nor `false`";
        return Err(Failure::permanent(why));
    };
    let account = Account::new("S3", address, connector.timeout, keys, meltano("S3_ENDPOINT_URL"))?;
    connector.roots = account.settings.roots.clone();
    // Region, endpoint and credentials are found otherwise, and each request is signed.
    let usual = given(&["AWS_"])
        .filter(|(key, _)| !matches!(key, Key::Endpoint | Key::S3Endpoint | Key::SkipSignature));
    let builder =
        usual.fold(AmazonS3Builder::new(), |builder, (key, value)| builder.with_config(key, value));
    // Last: `AWS_BUCKET` is a setting of the crate, too.
    let builder =
        builder.with_bucket_name(bucket).with_virtual_hosted_style_request(!is_path_style);
    let builder = builder.with_conditional_put(S3ConditionalPut::ETagMatch);
    let builder =
        builder.with_disable_tagging(true).with_http_connector(connector).with_retry(once());
    let host = (!is_path_style).then(|| bucket.to_owned());
    Ok(Client::S3(Box::new(account), Box::new(builder), host))
}

fn connect(
    settings: &Settings,
    keys: &Credentials,
    builder: &AmazonS3Builder,
    host: &Option<String>,
) -> Result<AmazonS3, Failure> {
    let region = settings.region.as_deref().unwrap_or("us-east-1");
    let usual = format!("https://s3.{region}.amazonaws.com");
    let mut endpoint =
        settings.endpoint.as_ref().unwrap_or(&usual).trim_end_matches('/').to_owned();
    if let Some(bucket) = host {
        endpoint = endpoint.replacen("://", &format!("://{bucket}."), 1);
    }
    if !checks::is_url(&endpoint) {
        let why = "the bucket cannot stand before the name of the store's host";
        let hint = "without `path_style=false` in the address, it stands behind it";
        return Err(Failure::refused(why, hint));
    }
    let credential = AwsCredential {
        key_id: keys.access_key_id().to_owned(),
        secret_key: keys.secret_access_key().to_owned(),
        token: keys.session_token().map(str::to_owned),
    };
    let credential = Arc::new(StaticCredentialProvider::new(credential));
    let builder =
        builder.clone().with_region(region).with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    builder.with_credentials(credential).build().map_err(|error| unusable(&S3, &error))
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
        return Err(Failure::refused(why, "set only one of them"));
    }
    // The crate's error would repeat what it finds instead of an object.
    let is_other = |json: &String| !matches!(serde_json::from_str(json), Ok(Value::Object(_)));
    if json.as_ref().is_some_and(is_other) {
        let why = "`MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS_JSON` is not a JSON object";
        return Err(Failure::refused(why, "it holds the content of a service account's key file"));
    }
    // The crate would use others of the environment first.
    let is_given = path.is_some() || json.is_some();
    let is_usual = |key: &Key| match key {
        Key::ServiceAccount
        | Key::ServiceAccountKey
        | Key::ApplicationCredentials
        | Key::BearerToken => !is_given,
        key => *key != Key::SkipSignature,
    };
    let usual = given(&["GOOGLE_", "SERVICE_ACCOUNT"]).filter(|(key, _)| is_usual(key));
    // Last: `GOOGLE_BUCKET` is a setting of the crate, too.
    let own = [
        (Key::ApplicationCredentials, path),
        (Key::ServiceAccountKey, json),
        (Key::BaseUrl, endpoint_of(address)?),
        (Key::Bucket, Some(bucket.to_owned())),
    ];
    let all = usual.chain(own.into_iter().filter_map(|(key, value)| Some((key, value?))));
    let builder = GoogleCloudStorageBuilder::new();
    let builder = all.fold(builder, |builder, (key, value)| builder.with_config(key, value));
    let endpoint = builder.get_config_value(&Key::BaseUrl);
    endpoint.iter().try_for_each(|url| checks::endpoint(url, "endpoint of `GOOGLE_BASE_URL`"))?;
    let client = builder.with_http_connector(connector).with_retry(once()).build();
    client.map(Client::Gcs).map_err(|error| unusable(&GCS, &error))
}
