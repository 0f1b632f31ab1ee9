//! The address of a server, `scheme://user:password@host:port,host:port/database?option=value`, as
//! people and drivers write it.
//!
//! Each option is honoured, known to change nothing here, or refused by its name: an option about
//! security that went unnoticed would leave a connection less safe than its user believes.

use percent_encoding::percent_decode_str;
use url::{Host, Url};

use crate::backend::failure::Failure;

/// Options of drivers and pools on which nothing depends here.
const HARMLESS: &str = "\
    allowmultiqueries allownativepasswords async_fallback autocommit \
    autoreconnect binary_prefix buffered characterencoding charset client_encoding \
    clientfoundrows collation columnswithalias command_timeout compress \
    fallback_application_name interpolateparams keepalives keepalives_count keepalives_idle \
    keepalives_interval load_balance_hosts loc local_infile max_overflow maxallowedpacket \
    multistatements parsetime pool_name pool_pre_ping pool_recycle pool_size pool_timeout \
    prepared_statement_cache_size prepared_statement_name_func preparethreshold program_name \
    raise_on_warnings read_default_group servertimezone sslcompression sslsni \
    statement_cache_size tcp_user_timeout tcpkeepalive use_pure use_unicode useunicode \
    write_timeout writetimeout";

/// The parts of an address. Not `Debug`: it holds a password.
pub struct Address {
    /// The user's name.
    pub user: Option<String>,
    /// Empty where the address says so.
    pub password: Option<String>,
    /// Hosts, which may be empty, and their ports. There is at least one.
    pub hosts: Vec<(String, Option<u16>)>,
    /// Which database.
    pub database: Option<String>,
    /// Those that were not taken yet: names in lower case with `_`, and values.
    options: Vec<(String, String)>,
    /// Whether a part of a password may have been taken for options.
    is_ambiguous: bool,
}

impl Address {
    /// Takes an address apart.
    ///
    /// # Errors
    /// When it cannot be understood. Nothing of it is repeated.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        // A password may hold `/`, `?` and `@` although it should not: it ends at the last `@`
        // before an option.
        let at = rest[..options_at(rest)].rfind('@');
        let (login, rest) = at.map_or((None, rest), |at| (Some(&rest[..at]), &rest[at + 1..]));
        let (user, password) = match login.map(|login| login.split_once(':').ok_or(login)) {
            None => (None, None),
            Some(Err(user)) => (Some(user), None),
            Some(Ok((user, password))) => (Some(user), Some(password)),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (hosts, behind) = rest.split_at(end);
        // Several hosts, and ones without a name, are not URLs: each host stands in one of its own.
        let urls = hosts.split(',').map(|host| {
            let nameless = host.is_empty() || host.starts_with(':');
            // `+` is itself, and not a space.
            let text = format!("sql://{}{host}{}", if nameless { "-" } else { "" }, behind.replace('+', "%2B"));
            Ok((nameless, Url::parse(&text).map_err(|error| unparsable(error, host))?))
        });
        let urls = urls.collect::<Result<Vec<_>, Failure>>()?;
        let host = |(nameless, url): &(bool, Url)| {
            let name = match url.host() {
                _ if *nameless => String::new(),
                Some(Host::Ipv6(address)) => address.to_string(),
                other => decoded(&other.map(|host| host.to_string()).unwrap_or_default())?,
            };
            Ok((name, url.port()))
        };
        let hosts = urls.iter().map(host).collect::<Result<Vec<_>, Failure>>()?;
        let url = urls.first().map(|(_, url)| url);
        let database = url.map(|url| decoded(url.path().trim_start_matches('/'))).transpose()?;
        let pairs = url.into_iter().flat_map(Url::query_pairs).filter(|(name, _)| !name.is_empty());
        let pairs = pairs.map(|(name, value)| (name.to_ascii_lowercase().replace('-', "_"), value.into_owned()));
        let is_ambiguous = behind.split_once('?').is_some_and(|(_, options)| options.contains('@'));
        let pairs: Vec<_> = pairs.collect();
        let is_security = |name: &str| name.contains("ssl") || name.contains("tls");
        if let Some((name, _)) = pairs.iter().find(|(name, value)| value.is_empty() && is_security(name)) {
            let shown = crate::printable::field(name);
            return Err(Failure::permanent(format!("the option `{shown}` of the address has no value")));
        }
        let options: Vec<_> = pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        if options.iter().any(|(name, value)| name.contains('\0') || value.contains('\0')) {
            return Err(Failure::permanent("the address contains a null character"));
        }
        Ok(Self {
            user: user.filter(|user| !user.is_empty()).map(decoded).transpose()?,
            password: password.map(decoded).transpose()?,
            hosts,
            database: database.filter(|database| !database.is_empty()),
            options,
            is_ambiguous,
        })
    }

    /// Sets an option that is not set yet.
    pub fn set_default(&mut self, name: &str, value: String) {
        if !self.options.iter().any(|(other, _)| other == name) {
            self.options.push((name.to_owned(), value));
        }
    }

    /// All values of an option.
    pub fn take_all(&mut self, name: &str) -> Vec<String> {
        self.options.extract_if(.., |(other, _)| other == name).map(|(_, value)| value).collect()
    }

    /// The value of an option.
    ///
    /// # Errors
    /// When it is there twice.
    pub fn take(&mut self, name: &str) -> Result<Option<String>, Failure> {
        let mut values = self.take_all(name);
        if values.len() > 1 {
            return Err(Failure::permanent(format!("the option `{name}` stands twice in the address")));
        }
        Ok(values.pop())
    }

    /// The value of an option that is true or false.
    ///
    /// # Errors
    /// When it is something else.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, Failure> {
        let truth = |text: String| match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(true),
            "0" | "false" | "no" | "off" => Ok(false),
            _ => Err(Failure::permanent(format!("the option `{name}` of the address is neither `true` nor `false`"))),
        };
        self.take(name)?.map(truth).transpose()
    }

    /// The value of an option in seconds; `None` if it is 0.
    ///
    /// # Errors
    /// When it is not a number.
    pub fn seconds(&mut self, name: &str) -> Result<Option<f64>, Failure> {
        let number = self.take(name)?.map(|value| value.trim().trim_end_matches('s').parse::<f64>()).transpose();
        let number = number.map_err(|_| Failure::permanent(format!("`{name}` is not a number of seconds")))?;
        Ok(number.filter(|seconds| *seconds > 0.0))
    }

    /// Refuses options that were not taken.
    ///
    /// # Errors
    /// When there is one that matters.
    pub fn refuse_rest(&mut self, hint: &str) -> Result<(), Failure> {
        let Some((name, _)) = self.options.iter().find(|(name, _)| !HARMLESS.split(' ').any(|other| other == name)) else {
            return Ok(());
        };
        if self.is_ambiguous {
            return Err(Failure::permanent("what follows the `?` in the address is not a known option")
                .with_hint("`?` and `@` in a password are written as `%3F` and `%40`"));
        }
        let shown = crate::printable::field(name);
        Err(Failure::permanent(format!("the option `{shown}` of the address is not supported")).with_hint(hint))
    }
}

fn unparsable(error: url::ParseError, host: &str) -> Failure {
    let failure = match error {
        url::ParseError::InvalidPort => Failure::permanent("the address's port is not a number from 0 to 65535"),
        _ => Failure::permanent("the address's host is neither a name nor an address"),
    };
    let is_bare = !host.starts_with('[') && host.matches(':').count() > 1;
    if is_bare { failure.with_hint("an IPv6 address stands in brackets: `[::1]`") } else { failure }
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

/// What is not `%` and two digits stays as it is.
fn decoded(text: &str) -> Result<String, Failure> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| Failure::permanent("the address is not UTF-8 once its `%` are decoded"))?;
    if decoded.contains('\0') {
        return Err(Failure::permanent("the address contains a null character"));
    }
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::Address;

    type Parts<'a> = (Option<&'a str>, Option<&'a str>, &'a str, Option<u16>, Option<&'a str>);

    fn parts(address: &Address) -> Parts<'_> {
        let (host, port) = &address.hosts[0];
        (address.user.as_deref(), address.password.as_deref(), host, *port, address.database.as_deref())
    }

    #[test]
    fn an_address_has_its_parts() {
        for (text, expected) in [
            ("", (None, None, "", None, None)),
            ("mysql://me:pw@db:3306/x", (Some("me"), Some("pw"), "db", Some(3306), Some("x"))),
            ("db/x", (None, None, "db", None, Some("x"))),
            ("me@/x", (Some("me"), None, "", None, Some("x"))),
            ("@:99", (None, None, "", Some(99), None)),
            ("/x?unix_socket=/run/a@b.sock", (None, None, "", None, Some("x"))),
            ("me:@[::1]:3307/x", (Some("me"), Some(""), "::1", Some(3307), Some("x"))),
            ("me%40corp:p%2Fw%@db/x%20y", (Some("me@corp"), Some("p/w%"), "db", None, Some("x y"))),
            ("me:p@ss/w:rd@db/x?ssl_ca=/a@b", (Some("me"), Some("p@ss/w:rd"), "db", None, Some("x"))),
            ("me:p@?ss@db/x", (Some("me"), Some("p@?ss"), "db", None, Some("x"))),
            ("me:p@ss/w:rd?@db/x?a=b", (Some("me"), Some("p@ss/w:rd?"), "db", None, Some("x"))),
            ("me:p?ss@db/x", (Some("me"), Some("p?ss"), "db", None, Some("x"))),
            ("me:p+w@%2Frun%2Fx/d+e", (Some("me"), Some("p+w"), "/run/x", None, Some("d+e"))),
        ] {
            let address = Address::parse(text).unwrap_or_else(|failure| panic!("{text}: {}", failure.why));
            assert_eq!(parts(&address), expected, "{text}");
        }
        let address = Address::parse("a:1,b,[::1]:3/x").expect("an address");
        assert_eq!(address.hosts, [("a".into(), Some(1)), ("b".into(), None), ("::1".into(), Some(3))]);
    }

    #[test]
    fn options_are_found_whatever_their_spelling_and_once() {
        let mut address = Address::parse("db/x?SSL-Mode=REQUIRED&ssl_ca=%2Fa%20b+c&odd&empty=&a=1&a=2").expect("an address");
        assert_eq!(address.take("ssl_mode").ok().flatten().as_deref(), Some("REQUIRED"));
        assert_eq!(address.take("ssl_ca").ok().flatten().as_deref(), Some("/a b+c"));
        assert_eq!(address.take("empty").ok().flatten(), None);
        assert!(address.take("a").is_err());
        assert!(address.refuse_rest("").is_ok());
    }

    #[test]
    fn what_cannot_be_understood_is_said_without_repeating_it() {
        for text in ["me:hunter2@::1/x", "me:hunter2%ff@db/x", "me:hunter2%00@db/x", "u@h:hunter2/x", "u:x?hunter2=a@h/x"] {
            let failure = Address::parse(text).and_then(|mut address| address.refuse_rest("")).err();
            let failure = failure.unwrap_or_else(|| panic!("{text}"));
            assert!(!failure.why.contains("hunter2"), "{}", failure.why);
        }
    }
}
