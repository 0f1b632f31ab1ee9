//! The parts of an address, `scheme://user:password@host:port,host:port/database?option=value`, as people and SQLAlchemy write them.

use percent_encoding::percent_decode_str;

use crate::backend::failure::Failure;

/// The parts of an address, decoded. All may be missing. Not `Debug`: it holds a password.
#[derive(Default)]
pub struct Address {
    /// As whom.
    pub user: Option<String>,
    /// Empty where the address says so.
    pub password: Option<String>,
    /// Hosts, which may be empty, and their ports. There is at least one.
    pub places: Vec<(String, Option<String>)>,
    /// Which database.
    pub database: Option<String>,
    /// By their names in lower case and with `_`, in the order in which they stand there.
    pub options: Vec<(String, String)>,
}

impl Address {
    /// Takes an address apart.
    ///
    /// # Errors
    /// When it cannot be understood. Nothing of it is repeated.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        // A password may hold `/`, `?` and `@` although it should not: it ends at the last `@` that stands before an option.
        let at = rest[..options_at(rest)].rfind('@');
        let (login, rest) = at.map_or((None, rest), |at| (Some(&rest[..at]), &rest[at + 1..]));
        let (place, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
        let (user, password) = match login.map(|login| login.split_once(':').ok_or(login)) {
            None => (None, None),
            Some(Err(user)) => (Some(user), None),
            Some(Ok((user, password))) => (Some(user), Some(password)),
        };
        let place = |text: &str| {
            if !text.starts_with('[') && text.matches(':').count() > 1 {
                let failure = Failure::permanent("the address's host is neither a name nor an address");
                return Err(failure.with_hint("an IPv6 address stands in brackets: `[::1]`"));
            }
            let (host, port) = host_and_port(text);
            Ok((decoded(host)?, port.filter(|port| !port.is_empty()).map(str::to_owned)))
        };
        let option = |text: &str| {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            Ok((decoded(name)?.to_ascii_lowercase().replace('-', "_"), decoded(value)?))
        };
        Ok(Self {
            user: user.filter(|user| !user.is_empty()).map(decoded).transpose()?,
            password: password.map(decoded).transpose()?,
            places: hosts.split(',').map(place).collect::<Result<_, Failure>>()?,
            database: Some(database).filter(|database| !database.is_empty()).map(decoded).transpose()?,
            options: options.split('&').filter(|option| !option.is_empty()).map(option).collect::<Result<_, Failure>>()?,
        })
    }

    /// What an option says first, if it says anything.
    #[cfg_attr(not(feature = "mysql"), allow(dead_code, reason = "others go through all of them"))]
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }
}

/// Where the options begin: at the first `?` that is followed by something like `name=`.
fn options_at(text: &str) -> usize {
    let is_option = |(at, _): &(usize, &str)| {
        text[at + 1..].split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        })
    };
    text.match_indices('?').find(is_option).map_or(text.len(), |(at, _)| at)
}

/// What is no `%` and two digits stays as it is, and so does a `+`, which many passwords and paths have.
fn decoded(text: &str) -> Result<String, Failure> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| Failure::permanent("the address is not UTF-8 once its `%` are decoded"))?;
    if decoded.contains('\0') {
        return Err(Failure::permanent("the address contains a null character"));
    }
    Ok(decoded.into_owned())
}

/// A host, and the port if it has one: `name`, `name:1`, `::1`, `[::1]:1`, `/directory`, `/directory:1`.
pub fn host_and_port(text: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        return (host, rest.strip_prefix(':'));
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, Some(port)),
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::Address;

    type Parts<'a> = (Option<&'a str>, Option<&'a str>, &'a str, Option<&'a str>, Option<&'a str>);

    fn parts(address: &Address) -> Parts<'_> {
        let (host, port) = &address.places[0];
        (address.user.as_deref(), address.password.as_deref(), host, port.as_deref(), address.database.as_deref())
    }

    #[test]
    fn an_address_has_its_parts() {
        for (text, expected) in [
            ("", (None, None, "", None, None)),
            ("mysql://me:pw@db:3306/x", (Some("me"), Some("pw"), "db", Some("3306"), Some("x"))),
            ("db/x", (None, None, "db", None, Some("x"))),
            ("me@/x", (Some("me"), None, "", None, Some("x"))),
            ("@:99", (None, None, "", Some("99"), None)),
            ("/x?unix_socket=/run/a@b.sock", (None, None, "", None, Some("x"))),
            ("me:@[::1]:3307/x", (Some("me"), Some(""), "::1", Some("3307"), Some("x"))),
            ("me%40corp:p%2Fw%@db/x%20y", (Some("me@corp"), Some("p/w%"), "db", None, Some("x y"))),
            ("me:p@ss/w:rd@db/x?ssl_ca=/a@b", (Some("me"), Some("p@ss/w:rd"), "db", None, Some("x"))),
            ("me:p@?ss@db/x", (Some("me"), Some("p@?ss"), "db", None, Some("x"))),
            ("me:p@ss/w:rd?@db/x?a=b", (Some("me"), Some("p@ss/w:rd?"), "db", None, Some("x"))),
            ("me:p?ss@db/x", (Some("me"), Some("p?ss"), "db", None, Some("x"))),
            ("me:p+w@%2Frun%2Fx/d", (Some("me"), Some("p+w"), "/run/x", None, Some("d"))),
        ] {
            let address = Address::parse(text).unwrap_or_else(|failure| panic!("{text}: {}", failure.why));
            assert_eq!(parts(&address), expected, "{text}");
        }
    }

    #[test]
    fn there_may_be_several_hosts() {
        let address = Address::parse("a:1,b,[::1]:3/x").expect("an address");
        let places: Vec<_> = address.places.iter().map(|(host, port)| (host.as_str(), port.as_deref())).collect();
        assert_eq!(places, [("a", Some("1")), ("b", None), ("::1", Some("3"))]);
    }

    #[test]
    fn options_are_found_whatever_their_spelling() {
        let address = Address::parse("db/x?SSL-Mode=REQUIRED&ssl_ca=%2Fa%20b+c&odd&empty=").expect("an address");
        assert_eq!(address.option("ssl_mode"), Some("REQUIRED"));
        assert_eq!(address.option("ssl_ca"), Some("/a b+c"));
        assert_eq!(address.option("empty"), None);
        assert_eq!(address.option("none"), None);
    }

    #[test]
    fn what_cannot_be_understood_is_said_without_repeating_it() {
        for text in ["me:hunter2@::1/x", "me:hunter2%ff@db/x", "me:hunter2%00@db/x"] {
            let failure = Address::parse(text).err().unwrap_or_else(|| panic!("{text}"));
            assert!(!failure.why.contains("hunter2"), "{}", failure.why);
        }
    }
}
