//! What an address of DynamoDB says: `dynamodb://TABLE?region=…&endpoint=…&profile=…&key=…&ttl=…`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::backend::aws::Wanted;
use crate::backend::checks::{self, Address, variable};
use crate::backend::failure::Failure;
use crate::backend::plain;
use crate::printable;
use crate::store::StoreSettings;

/// An address that works, in hints.
const EXAMPLE: &str = "`dynamodb://TABLE?region=REGION`";

/// A larger file holds something else than a secret.
const MAX_FILE: u64 = 1 << 20;

/// Where locks are, and which identity to use. Not `Debug`: it holds secrets.
pub struct Options {
    /// The table.
    pub table: String,
    /// The attribute that is the table's key.
    pub key: String,
    /// The attribute by whose time DynamoDB may remove an item.
    pub ttl: String,
    /// The identity and the place.
    pub wanted: Wanted,
}

impl Options {
    /// Reads the address.
    ///
    /// # Errors
    /// When it cannot be used. Values are not repeated: they may be parts of a secret.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        let address = Address::parse(settings, &["endpoint", "key", "profile", "region", "ttl"])?;
        let table = address.host.clone();
        if table.is_empty() {
            return Err(Failure::permanent("the address names no table").with_hint(EXAMPLE));
        }
        let is_usual = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let is_name = (3..=255).contains(&table.len()) && table.chars().all(is_usual);
        if !is_name || address.has_port || !address.path.is_empty() {
            let why = "the address's table is not a table's name: 3 to 255 letters, digits, `_`, `-` and `.`";
            return Err(Failure::permanent(why).with_hint(EXAMPLE));
        }
        let option = |name: &str| address.option(name);
        let key = option("key").unwrap_or_else(|| "name".to_owned());
        let ttl = option("ttl").unwrap_or_else(|| "expires_at".to_owned());
        let own = [super::VERSION, super::RECORD, super::FORMAT, super::CHANGED];
        if let Some(name) = [&key, &ttl].into_iter().find(|name| own.contains(&name.as_str())) {
            let why = format!("`{name}` is an attribute of every lock, and cannot be its `key` or `ttl`");
            return Err(Failure::permanent(why));
        }
        if key == ttl {
            return Err(Failure::permanent("`key` and `ttl` are the same attribute"));
        }
        let (endpoint, profile) = (option("endpoint"), option("profile"));
        endpoint.as_ref().map_or(Ok(()), |endpoint| checks::endpoint(endpoint, "address's `endpoint`"))?;
        if endpoint.is_none() {
            for name in ["AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL"] {
                let what = format!("variable `{name}`");
                variable(name).map_or(Ok(()), |value| checks::endpoint(&value, &what))?;
            }
        }
        let keys = login(&address, settings)?.map(|(id, secret)| (id, secret, None));
        if keys.is_some() && profile.is_some() {
            return Err(Failure::permanent("the address has both an access key and a `profile`"));
        }
        let roots = variable("AWS_CA_BUNDLE").map(Into::into);
        let (region, timeout) = (option("region"), settings.timeout);
        Ok(Self { table, key, ttl, wanted: Wanted { keys, profile, region, endpoint, roots, timeout } })
    }
}

/// An access key stands where other addresses have a user.
fn login(address: &Address, settings: &StoreSettings) -> Result<Option<(String, String)>, Failure> {
    let Some(user) = address.user.clone() else { return Ok(None) };
    let password = address.password.clone().filter(|password| !password.is_empty());
    let secret = match (password, &settings.password_file) {
        (Some(password), _) => password,
        (None, Some(path)) => first_line(path)?,
        (None, None) => {
            let failure = Failure::permanent("the address has an access key without its secret");
            return Err(failure.with_hint(
                "`SERIALIZER_PASSWORD_FILE` names a file with it; or leave the access key out, and use AWS's own settings",
            ));
        }
    };
    Ok(Some((user, secret)))
}

fn first_line(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    read.map_err(|error| {
        let path = printable::path(path);
        Failure::permanent(format!("cannot read the password file `{path}`: {}", plain(&error)))
    })?;
    Ok(text.lines().next().unwrap_or("").to_owned())
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
    fn an_address_says_all_that_is_needed() {
        let url = "dynamodb://locks?region=eu-west-1&endpoint=http://127.0.0.1:8000&profile=etl&key=id&ttl=gone";
        let options = read(url).unwrap_or_else(|failure| panic!("{}", failure.why));
        assert_eq!((&*options.table, &*options.key, &*options.ttl), ("locks", "id", "gone"));
        assert_eq!(options.wanted.region.as_deref(), Some("eu-west-1"));
        assert_eq!(options.wanted.endpoint.as_deref(), Some("http://127.0.0.1:8000"));
        assert_eq!((options.wanted.profile.as_deref(), options.wanted.keys), (Some("etl"), None));
    }

    #[test]
    fn little_is_enough() {
        let options = read("dynamodb://locks").unwrap_or_else(|failure| panic!("{}", failure.why));
        assert_eq!((&*options.table, &*options.key, &*options.ttl), ("locks", "name", "expires_at"));
        let wanted = options.wanted;
        assert!(wanted.region.is_none() && wanted.endpoint.is_none() && wanted.profile.is_none());
    }

    #[test]
    fn an_access_key_may_stand_in_the_address() {
        let options = read("dynamodb://AKIA:a%2Fb@locks").unwrap_or_else(|failure| panic!("{}", failure.why));
        assert_eq!(options.wanted.keys, Some(("AKIA".to_owned(), "a/b".to_owned(), None)));
        assert_eq!(options.table, "locks");
    }

    #[test]
    fn an_address_that_cannot_be_used_is_refused_without_its_secret() {
        for (url, why) in [
            ("dynamodb://", "no table"),
            ("dynamodb://a,b", "3 to 255"),
            ("dynamodb://locks:80", "3 to 255"),
            ("dynamodb://ab", "3 to 255"),
            ("dynamodb://locks/x", "3 to 255"),
            ("dynamodb://AKIA:hunter2@locks/x", "3 to 255"),
            ("dynamodb://locks?regoin=eu-west-1", "`regoin`"),
            ("dynamodb://locks?key=version", "`version`"),
            ("dynamodb://locks?ttl=name", "the same"),
            ("dynamodb://locks?endpoint=127.0.0.1", "`endpoint`"),
            ("dynamodb://locks?endpoint=http://me:hunter2@here", "`endpoint`"),
            ("dynamodb://locks?endpoint=http://a b", "`endpoint`"),
            ("dynamodb://locks?endpoint=http://h:99999", "`endpoint`"),
            ("dynamodb://AKIA@locks", "secret"),
            ("dynamodb://AKIA:hunter2@locks?profile=etl", "both"),
        ] {
            let failure = read(url).err().unwrap_or_else(|| panic!("{url}"));
            assert!(failure.why.contains(why) && !failure.why.contains("hunter2"), "{url}: {}", failure.why);
        }
    }
}
