//! The parts of an address, `user:password@host:port/database?option=value`, as people write them.

use super::super::remote::Failure;

/// The parts of an address. No `Debug`: it holds a password.
#[derive(Default)]
pub struct Address {
    pub user: Option<String>,
    pub password: Option<String>,
    pub host: Option<String>,
    pub port: Option<String>,
    pub database: Option<String>,
    options: Vec<(String, String)>,
}

/// Options that are understood; or that have no meaning here, because nothing depends on them.
const KNOWN: &[&str] = &[
    "charset",
    "connect_timeout",
    "database",
    "db",
    "host",
    "password",
    "port",
    "read_default_file",
    "read_default_group",
    "read_timeout",
    "socket",
    "ssl",
    "ssl_ca",
    "ssl_cert",
    "ssl_check_hostname",
    "ssl_disabled",
    "ssl_key",
    "ssl_mode",
    "ssl_verify_cert",
    "ssl_verify_identity",
    "ssl_verify_server_cert",
    "unix_socket",
    "use_unicode",
    "user",
    "write_timeout",
];

impl Address {
    /// Reads what stands behind `://`.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let (login, place) = match end_of_login(text) {
            Some(at) => (Some(&text[..at]), &text[at + 1..]),
            None => (None, text),
        };
        let mut address = Self::default();
        if let Some(login) = login {
            let (user, password) = login.split_once(':').map_or((login, None), |(user, password)| (user, Some(password)));
            address.user = some(decoded(user));
            address.password = password.map(decoded);
        }
        let (place, options) = place.split_once('?').unwrap_or((place, ""));
        let (place, database) = place.split_once('/').unwrap_or((place, ""));
        address.database = some(decoded(database));
        let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None if place.matches(':').count() > 1 => {
                let failure = Failure::permanent("the address's host is neither a name nor an address");
                return Err(failure.with_hint("an IPv6 address stands in brackets: `[::1]:3306`"));
            }
            None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        address.host = some(decoded(host));
        address.port = port.and_then(|port| some(port.to_owned()));
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let name = decoded(name).to_ascii_lowercase().replace('-', "_");
            if !KNOWN.contains(&name.as_str()) {
                tracing::debug!("the address's option `{}` is not known here", crate::printable::field(&name));
            }
            address.options.push((name, decoded(&value.replace('+', " "))));
        }
        Ok(address)
    }

    /// What an option says.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }
}

/// Where the `@` is before which user and password stand. A password may hold what ought to have been encoded: it ends at the
/// last `@` that is not part of an option.
fn end_of_login(text: &str) -> Option<usize> {
    let last = text.rfind('@')?;
    match text.find('?') {
        // Only options have an `=`: `host/database?option=a@b` against `user:pass?word@host/database`.
        Some(question) if text.get(question..last).is_some_and(|between| between.contains('=')) => text[..question].rfind('@'),
        _ => Some(last),
    }
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// Without percent encoding; a `%` that encodes nothing stands for itself.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let digit = |index: usize| char::from(*bytes.get(index)?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut plain = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while let Some(byte) = bytes.get(index) {
        match (byte, digit(index + 1), digit(index + 2)) {
            (b'%', Some(high), Some(low)) => {
                plain.push(high * 16 + low);
                index += 3;
            }
            _ => {
                plain.push(*byte);
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::Address;

    type Parts<'a> = (Option<&'a str>, Option<&'a str>, Option<&'a str>, Option<&'a str>, Option<&'a str>);

    fn parts(address: &Address) -> Parts<'_> {
        (
            address.user.as_deref(),
            address.password.as_deref(),
            address.host.as_deref(),
            address.port.as_deref(),
            address.database.as_deref(),
        )
    }

    #[test]
    fn an_address_has_its_parts() {
        for (text, expected) in [
            ("me:pw@db:3306/x", (Some("me"), Some("pw"), Some("db"), Some("3306"), Some("x"))),
            ("db/x", (None, None, Some("db"), None, Some("x"))),
            ("me@/x", (Some("me"), None, None, None, Some("x"))),
            ("/x?unix_socket=/run/a@b.sock", (None, None, None, None, Some("x"))),
            ("me:@[::1]:3307/x", (Some("me"), Some(""), Some("::1"), Some("3307"), Some("x"))),
            ("me%40corp:p%2Fw%@db/x%20y", (Some("me@corp"), Some("p/w%"), Some("db"), None, Some("x y"))),
            ("me:p@ss/w:rd@db/x?ssl_ca=/a@b", (Some("me"), Some("p@ss/w:rd"), Some("db"), None, Some("x"))),
            ("me:p@?ss@db/x", (Some("me"), Some("p@?ss"), Some("db"), None, Some("x"))),
            ("me:p@ss/w:rd?@db/x?a=b", (Some("me"), Some("p@ss/w:rd?"), Some("db"), None, Some("x"))),
            ("me:p?ss@db/x", (Some("me"), Some("p?ss"), Some("db"), None, Some("x"))),
        ] {
            let address = Address::parse(text).expect(text);
            assert_eq!(parts(&address), expected, "{text}");
        }
        assert!(Address::parse("me@::1/x").is_err());
    }

    #[test]
    fn options_are_found_whatever_their_spelling() {
        let address = Address::parse("db/x?SSL-Mode=REQUIRED&ssl_ca=%2Fa+b&odd&empty=").expect("address");
        assert_eq!(address.option("ssl_mode"), Some("REQUIRED"));
        assert_eq!(address.option("ssl_ca"), Some("/a b"));
        assert_eq!(address.option("empty"), None);
        assert_eq!(address.option("none"), None);
    }
}
