//! An account of Azure Storage: the address, a connection string, or variables.

use object_store::azure::{AzureConfigKey as Key, MicrosoftAzureBuilder};

use super::address::{AZURE, Client, given, meltano, once, unusable};
use super::http::Connector;
use crate::store::checks::{self, endpoint_of};
use crate::store::failure::Failure;
use crate::store::network::{Address, variable};

/// The name of an account, its endpoint, its key, and a signature.
type Account = [Option<String>; 4];

/// Reads `AccountName=…;AccountKey=…;EndpointSuffix=…`. Nothing of it is repeated.
fn of_connection_string(text: &str) -> Result<Account, Failure> {
    let pairs = text.split(';').map(str::trim).filter(|pair| !pair.is_empty());
    let pairs: Option<Vec<_>> = pairs.map(|pair| pair.split_once('=')).collect();
    let value = |name: &str| {
        let is_named = |(other, _): &&(&str, &str)| other.trim().eq_ignore_ascii_case(name);
        pairs.iter().flatten().find(is_named).map(|(_, value)| value.trim().to_owned())
    };
    let or = |name, usual: &str| value(name).unwrap_or_else(|| usual.to_owned());
    let scheme = or("defaultendpointsprotocol", "https");
    let suffix = or("endpointsuffix", "core.windows.net");
    let name = value("accountname");
    let usual = name.as_ref().map(|name| format!("{scheme}://{name}.blob.{suffix}"));
    let endpoint = value("blobendpoint").or(usual);
    if pairs.is_none() || endpoint.is_none() {
        let why = "the connection string of the storage account is not valid";
        let hint = "it looks like `AccountName=…;AccountKey=…;EndpointSuffix=core.windows.net`";
        return Err(Failure::refused(why, hint));
    }
    Ok([name, endpoint, value("accountkey"), value("sharedaccesssignature")])
}

/// The account that the address names, or the settings of Meltano, or the variables of Azure's
/// tools.
fn account(address: &Address) -> Result<Account, Failure> {
    let place = endpoint_of(address)?.or_else(|| meltano("AZURE_STORAGE_ACCOUNT_URL"));
    let connection = meltano("AZURE_CONNECTION_STRING");
    let connection = connection.or_else(|| variable("AZURE_STORAGE_CONNECTION_STRING"));
    let [name, endpoint, mut key, mut sas] = match (place, address.option("account"), connection) {
        (None, None, Some(connection)) => of_connection_string(&connection)?,
        (endpoint, name, _) => [name, endpoint, None, None],
    };
    let own = [address.option("account_key"), address.option("sas_token")];
    if own.iter().any(Option::is_some) {
        [key, sas] = own;
    }
    // An endpoint's host begins with the account's name.
    let host = endpoint.as_ref().and_then(|endpoint| endpoint.split("://").nth(1));
    let host = host.and_then(|host| host.split(['.', '/', ':']).next()).map(str::to_owned);
    // Another account's endpoint is of no use.
    let usual = || variable("AZURE_STORAGE_ENDPOINT").filter(|_| name.is_none());
    let endpoint =
        endpoint.or_else(usual).map(|endpoint| endpoint.trim_end_matches('/').to_owned());
    endpoint.iter().try_for_each(|endpoint| checks::endpoint(endpoint, "store's endpoint"))?;
    let name = name.or(host).or_else(|| variable("AZURE_STORAGE_ACCOUNT_NAME"));
    name.iter().try_for_each(|name| checks::word(name, "storage account"))?;
    Ok([name, endpoint, key, sas])
}

pub fn client(address: &Address, container: &str, connector: Connector) -> Result<Client, Failure> {
    let [name, endpoint, key, sas] = account(address)?;
    // Credentials of the environment would come before those of the address.
    let has_credentials = key.is_some() || sas.is_some();
    let usual =
        given(&["AZURE_", "IDENTITY_ENDPOINT", "MSI_ENDPOINT"]).filter(|(key, _)| match key {
            Key::Endpoint | Key::SkipSignature | Key::UseEmulator => false,
            key => !has_credentials || *key == Key::EncryptionKey,
        });
    let own = [
        (Key::AccountName, name),
        (Key::ContainerName, Some(container.to_owned())),
        (Key::Endpoint, endpoint),
        (Key::SasKey, sas.filter(|_| key.is_none())),
        (Key::AccessKey, key),
    ];
    let all = usual.chain(own.into_iter().filter_map(|(key, value)| Some((key, value?))));
    let builder = MicrosoftAzureBuilder::new();
    let builder = all.fold(builder, |builder, (key, value)| builder.with_config(key, value));
    let config = |key| builder.get_config_value(&key).unwrap_or_default();
    let is_cli = config(Key::CredentialType).eq_ignore_ascii_case("azure_cli");
    if is_cli || config(Key::UseAzureCli) != "false" {
        let why = "credentials of the Azure CLI are not asked for, which may take any time";
        return Err(Failure::refused(
            why,
            "`az account get-access-token --resource https://storage.azure.com --query accessToken \
             -o tsv` prints a token for `AZURE_STORAGE_TOKEN`",
        ));
    }
    let builder = builder.with_disable_tagging(true).with_http_connector(connector);
    builder.with_retry(once()).build().map(Client::Azure).map_err(|error| unusable(&AZURE, &error))
}
