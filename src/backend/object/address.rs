//! Where an object store is, and which identity to use: the address, then the settings of Meltano's state backend,
//! then the variables of each cloud's own tools.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};

use super::azure;
use super::failures::{AZURE, GCS, Hints, S3};
use crate::backend::aws::Wanted;
use crate::backend::checks::{self, Address, is_url, trimmed};
use crate::backend::failure::Failure;
use crate::store::{Scheme, StoreSettings};

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

/// All variables.
pub(super) type Environment<'a> = &'a [(String, String)];

/// Finds the value of a variable.
pub(super) type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Options {
    /// Reads the address and the environment.
    ///
    /// # Errors
    /// When they cannot be used. Values are not repeated: they may be parts of a secret.
    pub fn of(settings: &StoreSettings) -> Result<Self, Failure> {
        let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        Self::read(settings, &std::env::vars_os().filter_map(text).collect::<Vec<_>>())
    }

    fn read(settings: &StoreSettings, all: Environment<'_>) -> Result<Self, Failure> {
        let find = |name: &str| all.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone());
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
        check_variables(scheme, &find)?;
        let prefix: Vec<_> = address.path.split('/').filter(|part| !part.is_empty()).collect();
        if prefix.iter().any(|part| [".", ".."].contains(part) || part.chars().any(char::is_control)) {
            return Err(Failure::permanent("the address's prefix cannot be part of an object's name"));
        }
        let variable = |name: &str| Some(trimmed(&find(name)?).to_owned()).filter(|value| !value.is_empty());
        if let Some(endpoint) = address.option("endpoint") {
            checks::endpoint(&endpoint, "store's endpoint")?;
        }
        let access = match scheme {
            Scheme::Azure => azure::access(&address, &bucket, &variable, all)?,
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
pub(super) fn given<K: FromStr>(prefixes: &[&str], all: Environment<'_>) -> impl Iterator<Item = (K, String)> {
    all.iter().filter_map(move |(name, value)| {
        let is_ours = prefixes.iter().any(|prefix| name.starts_with(prefix));
        let key = is_ours.then(|| name.to_ascii_lowercase().parse().ok())??;
        Some((key, trimmed(value).to_owned())).filter(|(_, value)| !value.is_empty())
    })
}

fn s3(
    address: &Address,
    bucket: &str,
    variable: Variables<'_>,
    settings: &StoreSettings,
    all: Environment<'_>,
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
    let builder = given(&["AWS_"], all).fold(AmazonS3Builder::new(), |builder, (key, value)| match key {
        // These are found otherwise.
        AmazonS3ConfigKey::Endpoint | AmazonS3ConfigKey::S3Endpoint => builder,
        key => builder.with_config(key, value),
    });
    // Last: `AWS_BUCKET` is a setting of the crate, too.
    let builder = builder.with_bucket_name(bucket);
    Ok(Access::S3 { wanted, builder: Box::new(builder), is_path_style })
}

fn google(address: &Address, bucket: &str, variable: Variables<'_>, all: Environment<'_>) -> Result<Access, Failure> {
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
    let others = [Key::ServiceAccount, Key::ServiceAccountKey, Key::ApplicationCredentials, Key::BearerToken];
    let is_given = path.is_some() || json.is_some();
    let mut builder = GoogleCloudStorageBuilder::new();
    for (key, value) in given(&["GOOGLE_", "SERVICE_ACCOUNT"], all) {
        if !is_given || !others.contains(&key) {
            builder = builder.with_config(key, value);
        }
    }
    // Last: `GOOGLE_BUCKET` is a setting of the crate, too.
    builder = builder.with_bucket_name(bucket);
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

/// The crate panics if these variables cannot be parts of URLs and headers.
fn check_variables(scheme: Scheme, raw: Variables<'_>) -> Result<(), Failure> {
    let (urls, parts, headers) = match scheme {
        Scheme::Azure => (
            "AZURE_AUTHORITY_HOST AZURE_ENDPOINT AZURE_FABRIC_TOKEN_SERVICE_URL AZURE_IDENTITY_ENDPOINT \
             AZURE_MSI_ENDPOINT AZURE_STORAGE_AUTHORITY_HOST IDENTITY_ENDPOINT MSI_ENDPOINT",
            "AZURE_AUTHORITY_ID AZURE_STORAGE_AUTHORITY_ID AZURE_STORAGE_TENANT_ID AZURE_TENANT_ID",
            "AZURE_FABRIC_CLUSTER_IDENTIFIER AZURE_FABRIC_SESSION_TOKEN AZURE_FABRIC_WORKLOAD_HOST \
             AZURE_STORAGE_TOKEN IDENTITY_HEADER",
        ),
        Scheme::Gcs => ("GOOGLE_BASE_URL", "GCE_METADATA_HOST GCE_METADATA_IP GCE_METADATA_ROOT", "GOOGLE_BEARER_TOKEN"),
        _ => ("AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3", "AWS_REGION AWS_DEFAULT_REGION", ""),
    };
    let is_part = |text: &str| !text.contains(char::is_whitespace) && is_url(&format!("http://{text}"));
    let is_header = |text: &str| text.chars().all(|c| c.is_ascii_graphic());
    type Check<'a> = (&'a str, &'a dyn Fn(&str) -> bool, &'a str);
    let checks: [Check<'_>; 3] = [
        (urls, &is_url, "the URL of a server"),
        (parts, &is_part, "a part of a URL"),
        (headers, &is_header, "the value of a header"),
    ];
    for (names, is_valid, what) in checks {
        for name in names.split_whitespace() {
            let Some(value) = raw(name).filter(|value| !value.is_empty()) else { continue };
            // The crate reads some by itself, with the line end that cannot be cut here.
            let is_raw = name.starts_with("GCE_") || name == "IDENTITY_HEADER";
            if !is_valid(if is_raw { &value } else { trimmed(&value) }) {
                let failure = Failure::permanent(format!("the variable `{name}` is not {what}"));
                return Err(failure.with_hint("it may have a line end or a space"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "address_tests.rs"]
mod tests;
