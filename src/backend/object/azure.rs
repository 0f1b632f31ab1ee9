//! An account of Azure Storage: the address, a connection string, or variables.

use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};

use super::address::{Access, Environment, Variables, given};
use super::failures::AZURE;
use crate::backend::checks::{self, Address};
use crate::backend::failure::Failure;

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
pub(super) struct Account {
    pub name: Option<String>,
    pub endpoint: Option<String>,
    pub key: Option<String>,
    pub sas: Option<String>,
}

impl Account {
    /// Reads a connection string. Nothing of it is repeated.
    pub fn of_connection_string(text: &str) -> Result<Self, Failure> {
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

/// The account that the address names, or the settings of Meltano, or the variables of Azure's tools.
pub fn access(address: &Address, container: &str, variable: Variables<'_>, all: Environment<'_>) -> Result<Access, Failure> {
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
    let value = |key| usual.get_config_value(&key).map(|value| value.to_ascii_lowercase());
    let others = [Key::Token, Key::AccessKey, Key::SasKey, Key::ClientSecret, Key::FederatedTokenFile];
    let is_off = |value: String| ["0", "false", "off", "no", "n"].contains(&value.as_str());
    let is_wanted = value(Key::UseAzureCli).is_some_and(|value| !is_off(value));
    match value(Key::CredentialType).as_deref() {
        None | Some("auto") => is_wanted && others.into_iter().all(|key| value(key).is_none()),
        named => named == Some("azure_cli"),
    }
}
