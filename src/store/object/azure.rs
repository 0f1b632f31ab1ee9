//! An account of Azure Storage: the address, a connection string, or variables.

use object_store::azure::{AzureConfigKey as Key, MicrosoftAzureBuilder};

use super::address::{given, meltano, once};
use super::client::{Client, unusable};
use super::connector::Connector;
use super::kinds;
use crate::store::checks::{self, endpoint_of};
use crate::store::failure::Failure;
use crate::store::network::{Address, variable};

/// `AccountName=…;AccountKey=…;EndpointSuffix=…` as the name of an account, its endpoint, its key,
/// and a signature. Nothing of it is repeated.
fn of_connection_string(text: &str) -> Result<[Option<String>; 4], Failure> {
    let invalid = || {
        Failure::permanent("the connection string of the storage account is not valid")
            .with_hint("it looks like `AccountName=…;AccountKey=…;EndpointSuffix=core.windows.net`")
    };
    let pairs = text
        .trim()
        .split(';')
        .filter(|pair| !pair.trim().is_empty())
        .map(|pair| pair.split_once('='));
    let pairs: Vec<_> = pairs.collect::<Option<_>>().ok_or_else(invalid)?;
    let value = |name: &str| {
        let found = pairs.iter().find(|(other, _)| other.trim().eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().to_owned())
    };
    let name = value("accountname");
    let scheme = value("defaultendpointsprotocol").unwrap_or_else(|| "https".to_owned());
    let suffix = value("endpointsuffix").unwrap_or_else(|| "core.windows.net".to_owned());
    let usual = || Some(format!("{scheme}://{}.blob.{suffix}", name.as_deref()?));
    let endpoint = value("blobendpoint").or_else(usual).ok_or_else(invalid)?;
    Ok([name, Some(endpoint), value("accountkey"), value("sharedaccesssignature")])
}

/// The account that the address names, or the settings of Meltano, or the variables of Azure's
/// tools.
pub fn client(address: &Address, container: &str, connector: Connector) -> Result<Client, Failure> {
    let named = endpoint_of(address)?.or_else(|| meltano("AZURE_STORAGE_ACCOUNT_URL"));
    let connection = || {
        meltano("AZURE_CONNECTION_STRING").or_else(|| variable("AZURE_STORAGE_CONNECTION_STRING"))
    };
    let [name, endpoint, key, sas] = match (named, address.option("account")) {
        (None, None) => {
            connection().map_or(Ok(Default::default()), |text| of_connection_string(&text))?
        }
        (endpoint, name) => [name, endpoint, None, None],
    };
    let (key, sas) = match (address.option("account_key"), address.option("sas_token")) {
        (None, None) => (key, sas),
        own => own,
    };
    // Another account's endpoint is of no use.
    let usual = || {
        variable("AZURE_STORAGE_ENDPOINT")
            .or_else(|| variable("AZURE_ENDPOINT"))
            .filter(|_| name.is_none())
    };
    let place = endpoint.clone().or_else(usual);
    // An endpoint's host begins with the account's name.
    let of_endpoint = |endpoint: &String| {
        let host = endpoint.split("://").nth(1)?;
        Some(host.split(['.', '/', ':']).next()?.to_owned()).filter(|name| !name.is_empty())
    };
    let name = name
        .or_else(|| endpoint.as_ref().and_then(of_endpoint))
        .or_else(|| variable("AZURE_STORAGE_ACCOUNT_NAME"));
    let has_credentials = key.is_some() || sas.is_some();
    let Some(name) = name else {
        return Err(
            Failure::permanent("no storage account is named").with_hint(kinds::AZURE.credentials)
        );
    };
    checks::word(&name, "storage account")?;
    let endpoint = place
        .unwrap_or_else(|| format!("https://{name}.blob.core.windows.net"))
        .trim_end_matches('/')
        .to_owned();
    checks::endpoint(&endpoint, "store's endpoint")?;
    // Credentials of the environment would come before those of the address.
    let usual = given(&kinds::AZURE).filter(|(key, _)| match key {
        Key::Endpoint | Key::SkipSignature | Key::UseEmulator => false,
        key => !has_credentials || *key == Key::EncryptionKey,
    });
    let builder = usual.fold(MicrosoftAzureBuilder::new(), |builder, (key, value)| {
        builder.with_config(key, value)
    });
    let config = |key| builder.get_config_value(&key).unwrap_or_default();
    if config(Key::UseAzureCli) != "false"
        || config(Key::CredentialType).eq_ignore_ascii_case("azure_cli")
    {
        let why = "credentials of the Azure CLI are not asked for, which may take any time";
        return Err(Failure::permanent(why).with_hint(
            "`az account get-access-token --resource https://storage.azure.com --query accessToken \
             -o tsv` prints a token for `AZURE_STORAGE_TOKEN`",
        ));
    }
    let own = [
        (Key::AccountName, Some(name)),
        (Key::ContainerName, Some(container.to_owned())),
        (Key::Endpoint, Some(endpoint)),
        (Key::SasKey, sas.filter(|_| key.is_none())),
        (Key::AccessKey, key),
    ];
    let own = own.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let builder = own.fold(builder, |builder, (key, value)| builder.with_config(key, value));
    let client = builder
        .with_disable_tagging(true)
        .with_http_connector(connector)
        .with_retry(once())
        .build();
    client.map(Client::Azure).map_err(|error| unusable(&kinds::AZURE, &error))
}
