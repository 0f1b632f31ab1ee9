//! What an address of DynamoDB says: `dynamodb://TABLE?region=…&endpoint=…&profile=…&key=…&ttl=…`.

use std::time::Duration;

use super::item;
use crate::backend::failure::Failure;
use crate::backend::network::address::Address;
use crate::backend::network::checks;
use crate::backend::network::passwords::first_line;
use crate::printable;
use crate::store::StoreSettings;

/// What an address may say, in hints.
const KNOWN: &str = "`region`, `endpoint`, `profile`, `key` and `ttl` can be given";

/// An address that works, in hints.
const EXAMPLE: &str = "`dynamodb://TABLE?region=REGION`";

/// The attribute by whose time DynamoDB may remove what nobody has used for weeks.
const TTL: &str = "expires_at";

/// Where locks are, and as whom to get there. Not `Debug`, because of the secret key.
pub struct Options {
    /// The table.
    pub table: String,
    /// The attribute that is the table's key.
    pub key: String,
    /// The attribute that says until when an item is kept at least.
    pub ttl: String,
    /// Where the table is, unless AWS's own settings say that.
    pub region: Option<String>,
    /// Whom to ask in place of AWS.
    pub endpoint: Option<String>,
    /// Whose credentials to use of those that AWS's files have.
    pub profile: Option<String>,
    /// An access key and its secret, where the address itself has them.
    pub login: Option<(String, String)>,
    /// How long to wait for an answer.
    pub timeout: Duration,
}

impl Options {
    /// Of the address.
    ///
    /// # Errors
    /// What cannot be used. Values are not repeated, which may be parts of a secret.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        let Address { user, password, places, database, options: given } = Address::parse(&settings.url.secret())?;
        let [(table, None)] = places.as_slice() else {
            return Err(Failure::permanent("the address names something else than one table").with_hint(EXAMPLE));
        };
        if table.is_empty() {
            return Err(Failure::permanent("the address names no table").with_hint(EXAMPLE));
        }
        let is_usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if database.is_some() || !(3..=255).contains(&table.len()) || !table.chars().all(is_usual) {
            let why = "the address's table is no name of a table: 3 to 255 letters, digits, `_`, `-` and `.`";
            return Err(Failure::permanent(why).with_hint(EXAMPLE));
        }
        let mut options = Self {
            table: table.clone(),
            key: item::NAME.to_owned(),
            ttl: TTL.to_owned(),
            region: None,
            endpoint: None,
            profile: None,
            login: login(user, password, settings)?,
            timeout: settings.timeout,
        };
        for (name, value) in given.into_iter().filter(|(_, value)| !value.is_empty()) {
            match name.as_str() {
                "region" => options.region = Some(value),
                "endpoint" => options.endpoint = Some(value),
                "profile" => options.profile = Some(value),
                "key" => options.key = value,
                "ttl" => options.ttl = value,
                // One that is misspelt may name another place, where others do not look.
                _ => {
                    let why = format!("the address has an unknown option, `{}`", printable::field(&name));
                    return Err(Failure::permanent(why).with_hint(KNOWN));
                }
            }
        }
        options.checked()
    }

    fn checked(self) -> Result<Self, Failure> {
        let names = [&self.key, &self.ttl];
        if let Some(name) = names.iter().find(|name| item::OWN.contains(&name.as_str())) {
            let why = format!("`{name}` is an attribute of every lock, and cannot be its `key` or `ttl`");
            return Err(Failure::permanent(why));
        }
        if self.key == self.ttl {
            return Err(Failure::permanent("`key` and `ttl` are the same attribute"));
        }
        if let Some(endpoint) = &self.endpoint {
            checks::endpoint(endpoint, "address's `endpoint`")?;
            // What stands before an `@` may be a password, which messages would show.
            if endpoint.contains('@') {
                return Err(Failure::permanent("the address's `endpoint` names a user").with_hint("a server has none here"));
            }
        }
        if self.login.is_some() && self.profile.is_some() {
            return Err(Failure::permanent("the address has both an access key and a `profile`"));
        }
        Ok(self)
    }
}

/// An access key stands where other addresses have a user.
fn login(user: Option<String>, password: Option<String>, settings: &StoreSettings) -> Result<Option<(String, String)>, Failure> {
    let Some(user) = user else { return Ok(None) };
    let secret = match (password.filter(|password| !password.is_empty()), &settings.password_file) {
        (Some(password), _) => password,
        (None, Some(path)) => first_line(path)?,
        (None, None) => {
            let hint = "`SERIALIZER_PASSWORD_FILE` names a file with it; or leave the access key out, and use AWS's own settings";
            return Err(Failure::permanent("the address has an access key without its secret").with_hint(hint));
        }
    };
    Ok(Some((user, secret)))
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
        let options = read("dynamodb://locks?region=eu-west-1&endpoint=http://127.0.0.1:8000&profile=etl&key=id&ttl=gone");
        let options = options.unwrap_or_else(|failure| panic!("{}", failure.why));
        assert_eq!((&*options.table, &*options.key, &*options.ttl), ("locks", "id", "gone"));
        assert_eq!(options.region.as_deref(), Some("eu-west-1"));
        assert_eq!(options.endpoint.as_deref(), Some("http://127.0.0.1:8000"));
        assert_eq!((options.profile.as_deref(), options.login), (Some("etl"), None));
    }

    #[test]
    fn little_is_enough() {
        let options = read("dynamodb://locks").unwrap_or_else(|failure| panic!("{}", failure.why));
        assert_eq!((&*options.table, &*options.key, &*options.ttl), ("locks", "name", "expires_at"));
        assert!(options.region.is_none() && options.endpoint.is_none() && options.profile.is_none());
    }

    #[test]
    fn an_access_key_may_stand_in_the_address() {
        let options = read("dynamodb://AKIA:a%2Fb@locks").unwrap_or_else(|failure| panic!("{}", failure.why));
        assert_eq!(options.login, Some(("AKIA".to_owned(), "a/b".to_owned())));
        assert_eq!(options.table, "locks");
    }

    #[test]
    fn what_cannot_be_used_is_said_and_nothing_of_a_secret() {
        for (url, why) in [
            ("dynamodb://", "no table"),
            ("dynamodb://a,b", "one table"),
            ("dynamodb://locks:80", "one table"),
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
