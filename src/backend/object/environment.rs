//! What the variables of each cloud's own tools say. The crate takes for granted that they can be parts of URLs and headers, and ends the
//! program otherwise; and that what is empty is meant.

use std::str::FromStr;

use crate::backend::failure::Failure;
use crate::backend::network::checks::{self, is_url, trimmed};
use crate::store::Scheme;

/// An environment.
pub type Variables<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Servers.
const ENDPOINTS: [&str; 11] = [
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
    "AWS_METADATA_ENDPOINT",
    "AZURE_AUTHORITY_HOST",
    "AZURE_ENDPOINT",
    "AZURE_FABRIC_TOKEN_SERVICE_URL",
    "AZURE_STORAGE_AUTHORITY_HOST",
    "AZURE_STORAGE_ENDPOINT",
    "GOOGLE_BASE_URL",
];

/// The same, whose addresses may have a query.
const URLS: [&str; 5] =
    ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AZURE_IDENTITY_ENDPOINT", "AZURE_MSI_ENDPOINT", "IDENTITY_ENDPOINT", "MSI_ENDPOINT"];

/// Parts of hosts' names.
const WORDS: [&str; 3] = ["AWS_REGION", "AWS_DEFAULT_REGION", "AZURE_STORAGE_ACCOUNT_NAME"];

/// What stands before and behind parts of addresses.
const PARTS: [(&str, &str); 8] = [
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "http://host:80"),
    ("AZURE_AUTHORITY_ID", "http://host/"),
    ("AZURE_STORAGE_AUTHORITY_ID", "http://host/"),
    ("AZURE_STORAGE_TENANT_ID", "http://host/"),
    ("AZURE_TENANT_ID", "http://host/"),
    ("GCE_METADATA_HOST", "http://"),
    ("GCE_METADATA_IP", "http://"),
    ("GCE_METADATA_ROOT", "http://"),
];

/// What is sent in headers.
const HEADERS: [&str; 10] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_SESSION_TOKEN",
    "AWS_TOKEN",
    "AZURE_FABRIC_CLUSTER_IDENTIFIER",
    "AZURE_FABRIC_SESSION_TOKEN",
    "AZURE_FABRIC_WORKLOAD_HOST",
    "AZURE_STORAGE_TOKEN",
    "GOOGLE_BEARER_TOKEN",
    "IDENTITY_HEADER",
];

/// Those that the crate reads by itself, with the line end that we cannot take away.
const RAW: [&str; 4] = ["GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT", "IDENTITY_HEADER"];

/// Whose variables a store heeds.
fn is_of(scheme: Scheme, name: &str) -> bool {
    match scheme {
        Scheme::Azure => !name.starts_with("AWS_") && !name.starts_with("G"),
        Scheme::Gcs => name.starts_with('G'),
        _ => name.starts_with("AWS_"),
    }
}

/// Whether all that a store heeds can be used.
///
/// # Errors
/// When something cannot; its value is not repeated.
pub fn check(scheme: Scheme, raw: &Variables<'_>) -> Result<(), Failure> {
    let check = |name: &str, check: &dyn Fn(&str, &str) -> Result<(), Failure>| {
        let Some(value) = raw(name).filter(|_| is_of(scheme, name)) else { return Ok(()) };
        check(if RAW.contains(&name) { &value } else { trimmed(&value) }, &format!("variable `{name}`"))
    };
    ENDPOINTS.iter().try_for_each(|name| check(name, &checks::endpoint))?;
    WORDS.iter().try_for_each(|name| check(name, &checks::word))?;
    HEADERS.iter().try_for_each(|name| check(name, &checks::header))?;
    let part = |before: &'static str| {
        move |value: &str, what: &str| {
            let failure = || {
                let failure = Failure::permanent(format!("the {what} is no address, nor a part of one"));
                failure.with_hint("perhaps it has a line end, or a space")
            };
            if is_url(&format!("{before}{value}")) { Ok(()) } else { Err(failure()) }
        }
    };
    URLS.iter().try_for_each(|name| check(name, &part("")))?;
    PARTS.iter().try_for_each(|(name, before)| check(name, &part(before)))
}

/// What a builder of the crate is to be told, in the words of the variables that begin so.
pub fn given<K: FromStr>(prefix: &'static str) -> impl Iterator<Item = (K, String)> {
    let known = move |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
        let value = trimmed(&value);
        let key = name.starts_with(prefix).then(|| name.to_ascii_lowercase().parse().ok())??;
        (!value.is_empty()).then(|| (key, value.to_owned()))
    };
    std::env::vars_os().filter_map(known)
}
