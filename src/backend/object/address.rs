//! Where an object store is, and which identity to use: the address, then the settings of Meltano's state backend,
//! then the variables of each cloud's own tools.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};

use crate::backend::aws::Wanted;
use crate::backend::checks::{self, Address, is_url, trimmed};
use crate::backend::failure::Failure;
use crate::store::{Scheme, StoreSettings};

/// How the users of a kind of store speak, for messages.
pub struct Hints {
    /// What objects are in.
    pub bucket: &'static str,
    /// How credentials are given.
    pub credentials: &'static str,
    /// What is required to read, to write, to delete, and to list.
    pub may_read: &'static str,
    pub may_write: &'static str,
    pub may_delete: &'static str,
    pub may_list: &'static str,
    /// How to say where the store is.
    pub elsewhere: &'static str,
}

const S3: Hints = Hints {
    bucket: "bucket",
    credentials: "credentials are looked for in the address (`s3://KEY:SECRET@bucket`), then where the AWS CLI finds \
                  them: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` (with `AWS_SESSION_TOKEN`), `AWS_PROFILE`, a \
                  role of this host or container",
    may_read: "it requires `s3:GetObject` on the objects, and `s3:ListBucket` on the bucket, without which S3 does \
               not tell that there is no object",
    may_write: "it requires `s3:PutObject` on the objects",
    may_delete: "it requires `s3:DeleteObject` on the objects",
    may_list: "it requires `s3:ListBucket` on the bucket",
    elsewhere: "`?region=…` and `?endpoint=…` at the end of the address, or `AWS_REGION` and `AWS_ENDPOINT_URL`, say \
                where it is",
};

const AZURE_ROLE: &str = "it requires the role `Storage Blob Data Contributor` on the container, or a SAS for it with `sp=rcwl`";

const AZURE: Hints = Hints {
    bucket: "container",
    credentials: "credentials are looked for in `AZURE_STORAGE_CONNECTION_STRING`, in `AZURE_STORAGE_ACCOUNT_NAME` \
                  with `AZURE_STORAGE_ACCOUNT_KEY` or `AZURE_STORAGE_SAS_TOKEN`, then those of an identity are \
                  fetched",
    may_read: AZURE_ROLE,
    may_write: AZURE_ROLE,
    may_delete: "it requires the role `Storage Blob Data Contributor` on the container, or a SAS for it with `sp=rcwdl`",
    may_list: AZURE_ROLE,
    elsewhere: "`?account=…` or `?endpoint=…` at the end of the address, or `AZURE_STORAGE_ACCOUNT_NAME`, say where \
                it is",
};

const GCS_ROLE: &str = "it requires the role `roles/storage.objectUser` on the bucket";

const GCS: Hints = Hints {
    bucket: "bucket",
    credentials: "credentials are looked for where `GOOGLE_APPLICATION_CREDENTIALS` says, and where `gcloud auth \
                  application-default login` leaves them; then those of the machine are fetched",
    may_read: GCS_ROLE,
    may_write: GCS_ROLE,
    may_delete: GCS_ROLE,
    may_list: GCS_ROLE,
    elsewhere: "`?endpoint=…` at the end of the address says where it is",
};

/// How to reach a store. Not `Debug`: it holds keys.
pub struct Options {
    pub bucket: String,
    /// What the names of all objects begin with; empty, or without `/` at either end.
    pub prefix: String,
    pub access: Access,
    /// A file with the certificates to trust instead of the system's.
    pub roots: Option<PathBuf>,
    pub hints: &'static Hints,
    pub timeout: Duration,
}

/// What differs between the kinds of stores. The builders have the variables of their cloud in them already.
pub enum Access {
    /// Credentials, region and endpoint are found as the AWS CLI finds them.
    S3 {
        wanted: Wanted,
        builder: Box<AmazonS3Builder>,
        is_path_style: bool,
    },
    Azure(Box<MicrosoftAzureBuilder>),
    Gcs(Box<GoogleCloudStorageBuilder>),
}

impl Options {
    /// Whether requests are signed at all.
    pub fn is_signed(&self) -> bool {
        let Access::S3 { builder, .. } = &self.access else { return true };
        builder.get_config_value(&AmazonS3ConfigKey::SkipSignature).is_none_or(|value| value != "true")
    }
}

type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Options {
    /// Reads the address and the environment.
    ///
    /// # Errors
    /// When they cannot be used. Values are not repeated: they may be parts of a secret.
    pub fn of(settings: &StoreSettings) -> Result<Self, Failure> {
        Self::read(
            settings,
            &|name| std::env::var(name).ok(),
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        )
    }

    fn read(settings: &StoreSettings, raw: Variables<'_>, all: impl Iterator<Item = (String, String)>) -> Result<Self, Failure> {
        let scheme = settings.url.scheme();
        let (known, hints): (&[&str], _) = match scheme {
            Scheme::Azure => (&["account", "account_key", "ca", "endpoint", "sas_token"], &AZURE),
            Scheme::Gcs => (&["application_credentials", "ca", "endpoint"], &GCS),
            _ => (
                &["access_key_id", "ca", "endpoint", "path_style", "profile", "region", "secret_access_key", "session_token"],
                &S3,
            ),
        };
        let address = Address::parse(settings, known)?;
        let bucket = bucket(scheme, &address)?;
        check_variables(scheme, raw)?;
        let prefix: Vec<_> = address.path.split('/').filter(|part| !part.is_empty()).collect();
        if prefix.iter().any(|part| [".", ".."].contains(part) || part.chars().any(char::is_control)) {
            return Err(Failure::permanent("the address's prefix cannot be part of an object's name"));
        }
        let variable = |name: &str| Some(trimmed(&raw(name)?).to_owned()).filter(|value| !value.is_empty());
        if let Some(endpoint) = address.option("endpoint") {
            checks::endpoint(&endpoint, "store's endpoint")?;
        }
        let access = match scheme {
            Scheme::Azure => azure(&address, &bucket, &variable, all)?,
            Scheme::Gcs => google(&address, &bucket, &variable, all)?,
            _ => s3(&address, &bucket, &variable, settings, all)?,
        };
        let bundle = || variable("AWS_CA_BUNDLE").filter(|_| scheme == Scheme::S3);
        let roots = address.option("ca").or_else(bundle).map(PathBuf::from);
        let (prefix, timeout) = (prefix.join("/"), settings.timeout);
        Ok(Self { bucket, prefix, access, roots, hints, timeout })
    }
}

fn bucket(scheme: Scheme, address: &Address) -> Result<String, Failure> {
    let example = match scheme {
        Scheme::Azure => "`azure://CONTAINER/PREFIX`",
        Scheme::Gcs => "`gs://BUCKET/PREFIX`",
        _ => "`s3://BUCKET/PREFIX`, or with credentials `s3://KEY:SECRET@BUCKET/PREFIX`",
    };
    let has_secret = address.password.as_ref().is_some_and(|password| !password.is_empty());
    let has_login = address.user.is_some() || address.password.is_some();
    if has_login && (scheme != Scheme::S3 || address.user.is_none() || !has_secret) {
        let what = if scheme == Scheme::S3 { "a key without its secret" } else { "a user" };
        return Err(Failure::permanent(format!("the address names {what} before an `@`"))
            .with_hint(format!("{example}; an `@` in a prefix is written as `%40`")));
    }
    let bucket = &address.host;
    if bucket.is_empty() {
        return Err(Failure::permanent("the address names no bucket").with_hint(example));
    }
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "-._$".contains(c);
    if address.has_port || !bucket.chars().all(is_valid) {
        return Err(Failure::permanent("the address's bucket is not a valid name").with_hint(example));
    }
    Ok(bucket.clone())
}

/// The variables that a builder of the crate knows, without the line ends of mounted secrets.
fn given<K: FromStr>(
    prefixes: &'static [&'static str],
    all: impl Iterator<Item = (String, String)>,
) -> impl Iterator<Item = (K, String)> {
    all.filter_map(move |(name, value)| {
        let is_ours = prefixes.iter().any(|prefix| name.starts_with(prefix));
        let key = is_ours.then(|| name.to_ascii_lowercase().parse().ok())??;
        let value = trimmed(&value).to_owned();
        (!value.is_empty()).then_some((key, value))
    })
}

fn s3(
    address: &Address,
    bucket: &str,
    variable: Variables<'_>,
    settings: &StoreSettings,
    all: impl Iterator<Item = (String, String)>,
) -> Result<Access, Failure> {
    let meltano = |name: &str| variable(&format!("MELTANO_STATE_BACKEND_S3_{name}"));
    let option = |name: &str| address.option(name);
    // The first place that has one has to have both. Meltano's settings come before its address, as in Meltano.
    let token = option("session_token");
    let places = [
        (option("access_key_id"), option("secret_access_key"), token.clone()),
        (meltano("AWS_ACCESS_KEY_ID"), meltano("AWS_SECRET_ACCESS_KEY"), None),
        (address.user.clone(), address.password.clone(), token),
    ];
    let mut keys = None;
    for place in places {
        match place {
            (Some(id), Some(secret), token) if keys.is_none() => keys = Some((id, secret, token)),
            (Some(_), None, _) | (None, Some(_), _) if keys.is_none() => {
                return Err(Failure::permanent("of a key and its secret, only one is given"));
            }
            _ => {}
        }
    }
    if let Some((id, _, token)) = &keys {
        checks::header(id, "key")?;
        token.as_ref().map_or(Ok(()), |token| checks::header(token, "session token"))?;
    }
    let profile = option("profile");
    if keys.is_some() && profile.is_some() {
        return Err(Failure::permanent("the address has both an access key and a `profile`"));
    }
    let is_path_style = match option("path_style").map(|value| value.to_ascii_lowercase()).as_deref() {
        None | Some("true" | "1" | "yes" | "on") => true,
        Some("false" | "0" | "no" | "off") => false,
        Some(_) => {
            return Err(Failure::permanent("the address's option `path_style` is neither `true` nor `false`"));
        }
    };
    let region = option("region");
    region.as_ref().map_or(Ok(()), |region| checks::word(region, "region"))?;
    let endpoint = option("endpoint").or_else(|| meltano("ENDPOINT_URL"));
    endpoint.as_ref().map_or(Ok(()), |endpoint| checks::endpoint(endpoint, "store's endpoint"))?;
    let bundle = option("ca").or_else(|| variable("AWS_CA_BUNDLE")).map(PathBuf::from);
    let timeout = settings.timeout;
    let wanted = Wanted { keys, profile, region, endpoint, roots: bundle, timeout };
    let start = AmazonS3Builder::new().with_bucket_name(bucket);
    let builder = given(&["AWS_"], all).fold(start, |builder, (key, value)| match key {
        // These are found otherwise.
        AmazonS3ConfigKey::Endpoint | AmazonS3ConfigKey::S3Endpoint => builder,
        key => builder.with_config(key, value),
    });
    Ok(Access::S3 { wanted, builder: Box::new(builder), is_path_style })
}

/// `AccountName=…;AccountKey=…;EndpointSuffix=…` as a map.
fn connection_string(text: &str) -> Result<impl Fn(&str) -> Option<String>, Failure> {
    let mut pairs = Vec::new();
    for pair in text.trim().split(';').filter(|pair| !pair.trim().is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            Failure::permanent("the connection string of the storage account is not valid")
                .with_hint("it looks like `AccountName=…;AccountKey=…;EndpointSuffix=core.windows.net`")
        })?;
        pairs.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(move |name: &str| pairs.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone()))
}

/// The account of `UseDevelopmentStorage=true`, which is public knowledge.
const DEVELOPMENT: &str = "AccountName=devstoreaccount1;\
    AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;\
    BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1";

/// An account of Azure Storage.
#[derive(Default)]
struct Account {
    name: Option<String>,
    endpoint: Option<String>,
    key: Option<String>,
    sas: Option<String>,
}

impl Account {
    /// Reads a connection string. Nothing of it is repeated.
    fn of_connection_string(text: &str) -> Result<Self, Failure> {
        let value = connection_string(text)?;
        if value("usedevelopmentstorage").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Self::of_connection_string(DEVELOPMENT);
        }
        let name = value("accountname");
        let scheme = value("defaultendpointsprotocol").unwrap_or_else(|| "https".to_owned());
        let suffix = value("endpointsuffix").unwrap_or_else(|| "core.windows.net".to_owned());
        let usual = || Some(format!("{scheme}://{}.blob.{suffix}", name.as_deref()?));
        let Some(endpoint) = value("blobendpoint").or_else(usual) else {
            return Err(Failure::permanent("the connection string names no storage account"));
        };
        let endpoint = Some(endpoint.trim_end_matches('/').to_owned());
        Ok(Self { name, endpoint, key: value("accountkey"), sas: value("sharedaccesssignature") })
    }
}

fn azure(
    address: &Address,
    container: &str,
    variable: Variables<'_>,
    all: impl Iterator<Item = (String, String)>,
) -> Result<Access, Failure> {
    let meltano = |name: &str| variable(&format!("MELTANO_STATE_BACKEND_AZURE_{name}"));
    let named = address.option("endpoint").or_else(|| meltano("STORAGE_ACCOUNT_URL"));
    let connection = || meltano("CONNECTION_STRING").or_else(|| variable("AZURE_STORAGE_CONNECTION_STRING"));
    let account = match (&named, address.option("account")) {
        (None, None) => connection().map_or(Ok(Account::default()), |text| Account::of_connection_string(&text))?,
        (_, name) => Account { name, ..Account::default() },
    };
    let endpoint = named.or(account.endpoint);
    let key = address.option("account_key").or(account.key);
    let sas = address.option("sas_token").or(account.sas);
    let start = MicrosoftAzureBuilder::new();
    let usual = given(&["AZURE_", "IDENTITY_ENDPOINT", "MSI_ENDPOINT"], all)
        .fold(start, |builder, (key, value)| builder.with_config(key, value));
    let value = |key| usual.get_config_value(&key);
    // An endpoint's host begins with the account's name. Another account's endpoint is of no use.
    let of_endpoint = |endpoint: &String| {
        let host = endpoint.split("://").nth(1)?;
        Some(host.split(['.', '/', ':']).next()?.to_owned()).filter(|name| !name.is_empty())
    };
    let named_in_address = account.name.is_some();
    let name = account.name.or_else(|| endpoint.as_ref().and_then(of_endpoint));
    let name = name.or_else(|| value(AzureConfigKey::AccountName));
    let endpoint = endpoint.or_else(|| value(AzureConfigKey::Endpoint).filter(|_| !named_in_address));
    let has_credentials = key.is_some() || sas.is_some();
    if !has_credentials && is_of_cli(&usual) {
        let why = "credentials of the Azure CLI are not asked for, which may take any time";
        return Err(Failure::permanent(why).with_hint(
            "`az account get-access-token --resource https://storage.azure.com --query accessToken -o tsv` prints a \
             token for `AZURE_STORAGE_TOKEN`",
        ));
    }
    let Some(name) = name else {
        return Err(Failure::permanent("no storage account is named").with_hint(AZURE.credentials));
    };
    checks::word(&name, "storage account")?;
    // Credentials of the environment would come before those of the address.
    let key_of_encryption = value(AzureConfigKey::EncryptionKey).filter(|_| has_credentials);
    let mut builder = if has_credentials { MicrosoftAzureBuilder::new() } else { usual };
    if let Some(key) = key_of_encryption {
        builder = builder.with_config(AzureConfigKey::EncryptionKey, key);
    }
    builder = builder.with_container_name(container).with_account(name).with_disable_tagging(true);
    if let Some(endpoint) = endpoint {
        checks::endpoint(&endpoint, "store's endpoint")?;
        builder = builder.with_allow_http(endpoint.starts_with("http://")).with_endpoint(endpoint);
    }
    builder = match (key, sas) {
        (Some(key), _) => builder.with_access_key(key),
        (None, Some(sas)) => builder.with_config(AzureConfigKey::SasKey, sas),
        (None, None) => builder,
    };
    Ok(Access::Azure(Box::new(builder)))
}

/// Whether the crate would run `az`, and wait for it without a limit.
fn is_of_cli(usual: &MicrosoftAzureBuilder) -> bool {
    use AzureConfigKey as Key;
    let value = |key| usual.get_config_value(&key);
    let others = [Key::Token, Key::AccessKey, Key::SasKey, Key::ClientSecret, Key::FederatedTokenFile];
    let is_off = |value: &str| ["0", "false", "off", "no", "n"].contains(&value.to_ascii_lowercase().as_str());
    match value(Key::CredentialType).as_deref() {
        Some("azure_cli") => true,
        None | Some("auto") => {
            let is_wanted = value(Key::UseAzureCli).is_some_and(|value| !is_off(&value));
            is_wanted && others.into_iter().all(|key| value(key).is_none())
        }
        Some(_) => false,
    }
}

fn google(
    address: &Address,
    bucket: &str,
    variable: Variables<'_>,
    all: impl Iterator<Item = (String, String)>,
) -> Result<Access, Failure> {
    use GoogleConfigKey as Key;
    let meltano = |name: &str| variable(&format!("MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS{name}"));
    let (path, json) = match address.option("application_credentials") {
        Some(path) => (Some(path), None),
        None => (meltano("_PATH").or_else(|| meltano("")), meltano("_JSON")),
    };
    let parsed = json.as_ref().map(|json| serde_json::from_str::<serde_json::Value>(json).unwrap_or_default());
    match (&path, &parsed) {
        (Some(_), Some(_)) => {
            let why = "Meltano's settings for Google have both a path of credentials and their JSON";
            return Err(Failure::permanent(why).with_hint("set only one of them"));
        }
        // The crate's error would repeat what it finds instead of an object.
        (None, Some(value)) if !value.is_object() => {
            let why = "`MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS_JSON` is not a JSON object";
            return Err(Failure::permanent(why).with_hint("it holds the content of a service account's key file"));
        }
        _ => {}
    }
    // The crate would use others of the environment first.
    let others = [Key::ServiceAccount, Key::ServiceAccountKey, Key::ApplicationCredentials];
    let is_given = path.is_some() || json.is_some();
    let mut builder = GoogleCloudStorageBuilder::new().with_bucket_name(bucket);
    for (key, value) in given(&["GOOGLE_", "SERVICE_ACCOUNT"], all) {
        if !is_given || !others.contains(&key) {
            builder = builder.with_config(key, value);
        }
    }
    builder = match (path, json) {
        (Some(path), _) => builder.with_application_credentials(path),
        (None, Some(json)) => builder.with_service_account_key(json),
        (None, None) => builder,
    };
    if let Some(endpoint) = address.option("endpoint") {
        builder = builder.with_config(Key::BaseUrl, endpoint);
    }
    // A service account may say where the store is.
    let file = || std::fs::read_to_string(builder.get_config_value(&Key::ServiceAccount)?).ok();
    let text = builder.get_config_value(&Key::ServiceAccountKey).or_else(file).unwrap_or_default();
    let account: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    if let Some(endpoint) = account.get("gcs_base_url").and_then(serde_json::Value::as_str) {
        checks::endpoint(endpoint, "service account's `gcs_base_url`")?;
    }
    Ok(Access::Gcs(Box::new(builder)))
}

/// The crate takes for granted that these variables can be parts of URLs and headers, and panics otherwise.
fn check_variables(scheme: Scheme, raw: Variables<'_>) -> Result<(), Failure> {
    type Check = fn(&str, &str) -> Result<(), Failure>;
    // The crate reads some by itself, with the line end that cannot be cut here.
    const RAW: [&str; 4] = ["GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT", "IDENTITY_HEADER"];
    let url: Check = |value, what| if is_url(value) { Ok(()) } else { checks::endpoint("", what) };
    let host: Check = |value, what| if is_url(&format!("http://{value}")) { Ok(()) } else { checks::word("", what) };
    let part: Check = |value, what| if is_url(&format!("http://host/{value}")) { Ok(()) } else { checks::word("", what) };
    let all: &[(Check, &[&str])] = match scheme {
        Scheme::Azure => &[
            (
                url,
                &[
                    "AZURE_AUTHORITY_HOST",
                    "AZURE_ENDPOINT",
                    "AZURE_FABRIC_TOKEN_SERVICE_URL",
                    "AZURE_IDENTITY_ENDPOINT",
                    "AZURE_MSI_ENDPOINT",
                    "AZURE_STORAGE_AUTHORITY_HOST",
                    "AZURE_STORAGE_ENDPOINT",
                    "IDENTITY_ENDPOINT",
                    "MSI_ENDPOINT",
                ],
            ),
            (checks::word, &["AZURE_STORAGE_ACCOUNT_NAME"]),
            (part, &["AZURE_AUTHORITY_ID", "AZURE_STORAGE_AUTHORITY_ID", "AZURE_STORAGE_TENANT_ID", "AZURE_TENANT_ID"]),
            (
                checks::header,
                &[
                    "AZURE_FABRIC_CLUSTER_IDENTIFIER",
                    "AZURE_FABRIC_SESSION_TOKEN",
                    "AZURE_FABRIC_WORKLOAD_HOST",
                    "AZURE_STORAGE_TOKEN",
                    "IDENTITY_HEADER",
                ],
            ),
        ],
        Scheme::Gcs => &[
            (checks::endpoint, &["GOOGLE_BASE_URL"]),
            (host, &["GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"]),
            (checks::header, &["GOOGLE_BEARER_TOKEN"]),
        ],
        _ => &[
            (checks::endpoint, &["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS"]),
            (checks::word, &["AWS_REGION", "AWS_DEFAULT_REGION"]),
        ],
    };
    for (check, names) in all {
        for name in *names {
            let Some(value) = raw(name).filter(|value| !value.is_empty()) else { continue };
            let value = if RAW.contains(name) { value.as_str() } else { trimmed(&value) };
            check(value, &format!("variable `{name}`"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "address_tests.rs"]
mod tests;
