//! What an address of DynamoDB says: `dynamodb://TABLE?region=…&endpoint=…&profile=…&key=…&ttl=…&layout=aec`.

use crate::backend::aws::Wanted;
use crate::backend::checks;
use crate::backend::failure::Failure;
use crate::backend::network::decoded;
use crate::store::StoreSettings;

/// Where locks are, and which identity to use. Not `Debug`: it holds secrets.
pub struct Options {
    /// The table.
    pub table: String,
    /// The attribute that is the table's key.
    pub key: String,
    /// The attribute by whose time DynamoDB may remove an item.
    pub ttl: String,
    /// Whether the table is one of AtomicExecutionControl.
    pub is_aec: bool,
    /// The identity and the place.
    pub wanted: Wanted,
}

impl Options {
    /// Reads the address.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        let address = checks::address(settings, &["endpoint", "key", "layout", "profile", "region", "ttl"])?;
        let table = decoded(&address.hosts)?;
        if table.is_empty() || !address.path.is_empty() {
            return Err(Failure::permanent("the address does not name a table, and only that")
                .with_hint("`dynamodb://TABLE?region=REGION`"));
        }
        let key = address.option("key").unwrap_or_else(|| "name".to_owned());
        let ttl = address.option("ttl").unwrap_or_else(|| "expires_at".to_owned());
        let layout = address.option("layout");
        if layout.as_ref().is_some_and(|layout| layout != "aec") {
            return Err(Failure::permanent("`layout` is not `aec`, the only other layout"));
        }
        // An access key stands where other addresses have a user.
        let login = match (address.user.clone(), address.password.clone()) {
            (Some(user), Some(password)) => Some((user, password, None)),
            (None, _) => None,
            (Some(_), None) => {
                return Err(Failure::permanent("the address has an access key without its secret").with_hint(
                    "`SERIALIZER_PASSWORD_FILE` names a file with it; or leave the access key out, and use AWS's own settings",
                ));
            }
        };
        let wanted = Wanted::of(&address, settings.timeout, login, || None)?;
        Ok(Self { table, key, ttl, is_aec: layout.is_some(), wanted })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Options;
    use crate::backend::failure::Failure;
    use crate::store::{StoreSettings, StoreUrl};

    fn read(url: &str) -> Result<Options, Failure> {
        let url = StoreUrl::parse(url).expect(url);
        Options::new(&StoreSettings { url, password_file: None, timeout: Duration::from_secs(5) })
    }

    #[test]
    fn an_address_that_cannot_be_used_is_refused_without_its_secret() {
        let login = read("dynamodb://AKIA:a%2Fb@locks").unwrap_or_else(|failure| panic!("{}", failure.why)).wanted.keys;
        assert_eq!(login, Some(("AKIA".to_owned(), "a/b".to_owned(), None)));
        for (url, why) in [
            ("dynamodb://", "does not name a table"),
            ("dynamodb://AKIA:hunter2@locks/x", "only that"),
            ("dynamodb://locks?regoin=eu-west-1", "`regoin`"),
            ("dynamodb://locks?endpoint=127.0.0.1", "`endpoint`"),
            ("dynamodb://locks?endpoint=http://me:hunter2@here", "`endpoint`"),
            ("dynamodb://locks?layout=lambda", "`layout`"),
            ("dynamodb://AKIA@locks", "secret"),
            ("dynamodb://AKIA:hunter2@locks?profile=etl", "both"),
        ] {
            let failure = read(url).err().unwrap_or_else(|| panic!("{url}"));
            assert!(failure.why.contains(why) && !failure.why.contains("hunter2"), "{url}: {}", failure.why);
        }
    }
}
