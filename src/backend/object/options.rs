//! Where a store is, and who we are for it: what the address says, then the settings of Meltano's state backend, then the variables of
//! each cloud's own tools.

use std::path::PathBuf;

use super::azure;
use super::credentials::Agent;
use super::environment::{self, Variables};
use crate::backend::failure::Failure;
use crate::backend::network::address::Address;
use crate::backend::network::checks;
use crate::backend::network::tls::Roots;
use crate::printable;
use crate::store::{Scheme, StoreSettings};

/// Of S3. Keys are spelled as its tools spell them.
const S3: &[&str] = &["access_key_id", "ca", "endpoint", "path_style", "region", "secret_access_key", "session_token"];
const AZURE: &[&str] = &["account", "account_key", "ca", "endpoint", "sas_token"];
const GCS: &[&str] = &["application_credentials", "ca", "endpoint"];

/// How to reach a store. No `Debug`: it holds keys.
pub struct Options {
    pub scheme: Scheme,
    pub bucket: String,
    /// What the names of all objects begin with; empty, or without `/` at either end.
    pub prefix: String,
    pub access: Access,
    pub roots: Roots,
    /// Whether a machine of EC2 may be asked who it is.
    pub asks_ec2: bool,
}

/// Of each kind of store. What is missing is looked for in the environment, by the crate.
pub enum Access {
    S3 { keys: Option<Keys>, agent: Option<Agent>, region: Option<String>, endpoint: Option<String>, is_path_style: bool },
    Azure(azure::Account),
    Gcs { credentials: Option<Credentials>, endpoint: Option<String> },
}

impl Access {
    /// The crate takes for granted that they can be parts of a URL, or of a header, and ends the program otherwise.
    fn check(&self) -> Result<(), Failure> {
        let (endpoint, word) = match self {
            Self::S3 { keys, region, endpoint, .. } => {
                for part in keys.iter().flat_map(|keys| [Some(&keys.id), keys.token.as_ref()]).flatten() {
                    checks::header(part, "key or token")?;
                }
                (endpoint, region)
            }
            Self::Azure(account) => (&account.endpoint, &account.name),
            Self::Gcs { endpoint, .. } => (endpoint, &None),
        };
        endpoint.as_ref().map_or(Ok(()), |endpoint| checks::endpoint(endpoint, "store's endpoint"))?;
        word.as_ref().map_or(Ok(()), |word| checks::word(word, "store's region or account"))
    }
}

/// Of a service account of Google.
pub enum Credentials {
    /// The path of a file.
    File(String),
    /// What would be in one.
    Json(String),
}

/// Who signs.
pub struct Keys {
    pub id: String,
    pub secret: String,
    pub token: Option<String>,
}

impl Options {
    /// Reads the address and the environment.
    pub fn of(settings: &StoreSettings) -> Result<Self, Failure> {
        Self::read(settings, &|name| std::env::var(name).ok())
    }

    fn read(settings: &StoreSettings, raw: &Variables<'_>) -> Result<Self, Failure> {
        let variable = |name: &str| raw(name).map(|value| checks::trimmed(&value).to_owned()).filter(|value| !value.is_empty());
        let scheme = settings.url.scheme();
        let address = Address::parse(&settings.url.secret())?;
        let known = match scheme {
            Scheme::Azure => AZURE,
            Scheme::Gcs => GCS,
            _ => S3,
        };
        if let Some((name, _)) = address.options.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            let failure = Failure::permanent(format!("the address's option `{}` is not known", printable::field(name)));
            return Err(failure.with_hint(format!("options are {}", known.join(", "))));
        }
        let bucket = bucket(scheme, &address)?;
        environment::check(scheme, &|name| raw(name).filter(|value| !value.is_empty()))?;
        let prefix: Vec<_> =
            address.database.as_deref().unwrap_or("").split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        if prefix.iter().any(|part| part == "." || part == ".." || part.chars().any(char::is_control)) {
            return Err(Failure::permanent("the address's prefix is no name of an object"));
        }
        let option = |name: &str| address.option(name).map(str::to_owned);
        let meltano = |name: &str| variable(&format!("MELTANO_STATE_BACKEND_{name}"));
        let access = match scheme {
            Scheme::Azure => {
                let connection = meltano("AZURE_CONNECTION_STRING").or_else(|| variable("AZURE_STORAGE_CONNECTION_STRING"));
                let endpoint = option("endpoint").or_else(|| meltano("AZURE_STORAGE_ACCOUNT_URL"));
                let connection = connection.as_deref().filter(|_| endpoint.is_none() && option("account").is_none());
                let account = connection.map(azure::Account::of_connection_string).transpose()?.unwrap_or_default();
                Access::Azure(azure::Account {
                    name: option("account").or(account.name),
                    endpoint: endpoint.or(account.endpoint),
                    key: option("account_key").or(account.key),
                    sas: option("sas_token").or(account.sas),
                })
            }
            Scheme::Gcs => {
                let credentials = match option("application_credentials") {
                    Some(path) => Some(Credentials::File(path)),
                    None => google(&meltano)?,
                };
                Access::Gcs { credentials, endpoint: option("endpoint") }
            }
            _ => {
                let keys = keys(&address, &meltano)?;
                let agent = if keys.is_none() { agent(&variable)? } else { None };
                let endpoint = option("endpoint").or_else(|| meltano("S3_ENDPOINT_URL"));
                let is_path_style = flag(&address, "path_style")?.unwrap_or(true);
                Access::S3 { keys, agent, region: option("region"), endpoint, is_path_style }
            }
        };
        let bundle = || variable("AWS_CA_BUNDLE").filter(|_| scheme == Scheme::S3);
        access.check()?;
        let roots = option("ca").or_else(bundle).map_or(Roots::System, |path| Roots::File(PathBuf::from(path)));
        // Of this machine alone: agents of containers, and other clouds, are not meant.
        let asks_ec2 =
            scheme != Scheme::S3 || variable("AWS_EC2_METADATA_DISABLED").is_none_or(|value| !value.eq_ignore_ascii_case("true"));
        Ok(Self { scheme, bucket, prefix: prefix.join("/"), access, roots, asks_ec2 })
    }
}

fn bucket(scheme: Scheme, address: &Address) -> Result<String, Failure> {
    let example = match scheme {
        Scheme::Azure => "`azure://CONTAINER/PREFIX`",
        Scheme::Gcs => "`gs://BUCKET/PREFIX`",
        _ => "`s3://BUCKET/PREFIX`, or with credentials `s3://KEY:SECRET@BUCKET/PREFIX`",
    };
    let has_login = address.user.is_some() || address.password.is_some();
    let is_complete = address.user.is_some() && address.password.as_ref().is_some_and(|password| !password.is_empty());
    if has_login && (scheme != Scheme::S3 || !is_complete) {
        let why = if scheme == Scheme::S3 { "a key without its secret" } else { "a user" };
        return Err(Failure::permanent(format!("the address names {why} before an `@`"))
            .with_hint(format!("{example}; an `@` in a prefix is written as `%40`")));
    }
    match address.places.as_slice() {
        [(bucket, None)] if !bucket.is_empty() && bucket.chars().all(is_of_bucket) => Ok(bucket.clone()),
        [(bucket, None)] if bucket.is_empty() => Err(Failure::permanent("the address names no bucket").with_hint(example)),
        _ => Err(Failure::permanent("the address's bucket is no name of one").with_hint(example)),
    }
}

fn is_of_bucket(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._$".contains(c)
}

/// Of Meltano's settings, which does not take two of them either.
fn google(meltano: &dyn Fn(&str) -> Option<String>) -> Result<Option<Credentials>, Failure> {
    let path = meltano("GCS_APPLICATION_CREDENTIALS_PATH").or_else(|| meltano("GCS_APPLICATION_CREDENTIALS"));
    match (path, meltano("GCS_APPLICATION_CREDENTIALS_JSON")) {
        (Some(_), Some(_)) => Err(Failure::permanent(
            "of Meltano's settings for Google, both `application_credentials_path` and `application_credentials_json` are there",
        )
        .with_hint("only one of them can be used")),
        // The crate's error would repeat what it finds in place of an object.
        (None, Some(text)) if !serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|value| value.is_object()) => {
            Err(Failure::permanent("`MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS_JSON` is no JSON object")
                .with_hint("it holds what is in the file with the key of a service account"))
        }
        (path, text) => Ok(path.map(Credentials::File).or(text.map(Credentials::Json))),
    }
}

/// In the address's options, in Meltano's settings, or in the address as Meltano has them, where its settings come first, too; the first
/// place that has one has to have both.
fn keys(address: &Address, meltano: &dyn Fn(&str) -> Option<String>) -> Result<Option<Keys>, Failure> {
    let option = |name: &str| address.option(name).map(str::to_owned);
    let token = option("session_token");
    let places = [
        (option("access_key_id"), option("secret_access_key"), token.clone()),
        (meltano("S3_AWS_ACCESS_KEY_ID"), meltano("S3_AWS_SECRET_ACCESS_KEY"), None),
        (address.user.clone(), address.password.clone(), token),
    ];
    for place in places {
        match place {
            (Some(id), Some(secret), token) => return Ok(Some(Keys { id, secret, token })),
            (None, None, _) => {}
            _ => return Err(Failure::permanent("of a key and its secret, only one is given")),
        }
    }
    Ok(None)
}

/// Who gives credentials out to this container, unless there are others that come before.
fn agent(variable: &Variables<'_>) -> Result<Option<Agent>, Failure> {
    let is_identity = variable("AWS_WEB_IDENTITY_TOKEN_FILE").and(variable("AWS_ROLE_ARN")).is_some();
    let has_keys = variable("AWS_ACCESS_KEY_ID").or_else(|| variable("AWS_SECRET_ACCESS_KEY")).is_some();
    if is_identity || has_keys { Ok(None) } else { Agent::find(variable) }
}

fn flag(address: &Address, name: &str) -> Result<Option<bool>, Failure> {
    match address.option(name).map(str::to_ascii_lowercase).as_deref() {
        None => Ok(None),
        Some("true" | "1" | "yes" | "on") => Ok(Some(true)),
        Some("false" | "0" | "no" | "off") => Ok(Some(false)),
        Some(_) => Err(Failure::permanent(format!("the address's option `{name}` is neither `true` nor `false`"))),
    }
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
