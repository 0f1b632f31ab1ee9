//! An account of Azure Storage, as connection strings name it: `AccountName=…;AccountKey=…;EndpointSuffix=…`.

use crate::backend::failure::Failure;

/// What is said of an account. No `Debug`: it holds keys.
#[derive(Default)]
pub struct Account {
    pub name: Option<String>,
    /// Where its blobs are.
    pub endpoint: Option<String>,
    pub key: Option<String>,
    /// A shared access signature.
    pub sas: Option<String>,
}

/// Which account is meant by `UseDevelopmentStorage=true`. That is public knowledge, and no secret.
const DEVELOPMENT: &str = "AccountName=devstoreaccount1;\
    AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;\
    BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1";

impl Account {
    /// Takes a connection string apart.
    ///
    /// # Errors
    /// When it is none. Nothing of it is repeated.
    pub fn of_connection_string(text: &str) -> Result<Self, Failure> {
        let unusable = || {
            Failure::permanent("the connection string of the storage account cannot be understood")
                .with_hint("it is made of `AccountName=…;AccountKey=…;EndpointSuffix=core.windows.net`, as the portal shows it")
        };
        let mut pairs = Vec::new();
        for pair in text.trim().split(';').filter(|pair| !pair.trim().is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(unusable)?;
            pairs.push((name.trim().to_ascii_lowercase(), value.trim()));
        }
        let value = |name: &str| pairs.iter().find(|(other, _)| other == name).map(|(_, value)| (*value).to_owned());
        if value("usedevelopmentstorage").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Self::of_connection_string(DEVELOPMENT);
        }
        let name = value("accountname");
        let scheme = value("defaultendpointsprotocol").unwrap_or_else(|| "https".to_owned());
        let suffix = value("endpointsuffix").unwrap_or_else(|| "core.windows.net".to_owned());
        let endpoint = value("blobendpoint").or_else(|| Some(format!("{scheme}://{}.blob.{suffix}", name.as_deref()?)));
        let endpoint = endpoint.ok_or_else(unusable)?.trim_end_matches('/').to_owned();
        Ok(Self { name, endpoint: Some(endpoint), key: value("accountkey"), sas: value("sharedaccesssignature") })
    }

    /// The account's name, which an endpoint tells as well.
    pub fn name(&self) -> Option<String> {
        let of_endpoint = || {
            let host = self.endpoint.as_deref()?.split("://").nth(1)?;
            Some(host.split(['.', '/', ':']).next()?.to_owned())
        };
        self.name.clone().or_else(of_endpoint).filter(|name| !name.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::Account;

    #[test]
    fn connection_strings_say_where_an_account_is_and_how_to_use_it() {
        let read = |text: &str| Account::of_connection_string(text).map_err(|failure| failure.why).expect(text);
        let usual = read("DefaultEndpointsProtocol=https;AccountName=shop;AccountKey=a+b/c==;EndpointSuffix=core.windows.net");
        assert_eq!(usual.endpoint.as_deref(), Some("https://shop.blob.core.windows.net"));
        assert_eq!((usual.name().as_deref(), usual.key.as_deref()), (Some("shop"), Some("a+b/c==")));
        let shared = read("BlobEndpoint=https://shop.blob.core.windows.net/;SharedAccessSignature=sv=2022&sp=rcwl&sig=a%3D");
        assert_eq!((shared.name().as_deref(), shared.sas.as_deref()), (Some("shop"), Some("sv=2022&sp=rcwl&sig=a%3D")));
        assert_eq!(shared.endpoint.as_deref(), Some("https://shop.blob.core.windows.net"));
        let local = read("UseDevelopmentStorage=true");
        assert_eq!(local.endpoint.as_deref(), Some("http://127.0.0.1:10000/devstoreaccount1"));
    }

    #[test]
    fn what_is_no_connection_string_is_not_repeated() {
        for text in ["hunter2", "AccountKey=hunter2", "a=b;hunter2"] {
            let failure = Account::of_connection_string(text).err().expect(text);
            assert!(!failure.why.contains("hunter2"), "{}", failure.why);
        }
    }
}
