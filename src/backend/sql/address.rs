//! The address of a server, `scheme://user:password@host:port,host:port/database?option=value`, as
//! people and drivers write it.
//!
//! Each option is honoured, known to change nothing here, or refused by its name: an option about
//! security that went unnoticed would leave a connection less safe than its user believes.

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use url::form_urlencoded;

use super::tls::{self, Tls};
use crate::backend::failure::Failure;
use crate::backend::network::first_line;
use crate::printable;
use crate::store::StoreSettings;

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

/// Options of which only these values change nothing here. Others are refused.
const USUAL: [(&str, &[&str]); 8] = [
    ("allowpublickeyretrieval", &["true", "1"]),
    ("channel_binding", &["prefer", "disable"]),
    ("gssencmode", &["prefer", "disable"]),
    ("ssl_max_protocol_version", &["TLSv1.3"]),
    ("ssl_min_protocol_version", &["TLSv1", "TLSv1.1", "TLSv1.2"]),
    ("sslcertmode", &["allow"]),
    ("sslnegotiation", &["postgres"]),
    // Of several servers, the writable one is used.
    ("target_session_attrs", &["any", "read-write", "primary"]),
];

/// Other names of an option.
const SYNONYMS: [(&str, &str); 5] =
    [("database", "dbname"), ("db", "dbname"), ("ssl_ca", "sslrootcert"), ("ssl_cert", "sslcert"), ("ssl_key", "sslkey")];

/// What an address of an engine means.
pub struct Usual {
    /// The port, where none is named.
    pub port: u16,
    /// The host, where none is named.
    pub host: &'static str,
    /// Other names of options for this engine only.
    pub synonyms: &'static [(&'static str, &'static str)],
    /// Variables with the values of options that the address leaves out, as `VARIABLE=option`.
    pub variables: &'static str,
    /// The directory with certificates, below the user's home.
    pub certificates: Option<&'static str>,
    pub example: &'static str,
    pub roots_hint: &'static str,
    pub plain_hint: &'static str,
}

/// A server's name or address, or the path of its socket; and its port.
pub type Server = (String, u16);

/// What an address says. Not `Debug`: it holds a password.
pub struct Address {
    pub user: String,
    pub password: Option<String>,
    pub database: Option<String>,
    /// The servers to try, in this order; never empty.
    pub servers: Vec<Server>,
    pub tls: Tls,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long each answer may take.
    pub timeout: Duration,
    /// The options of one engine alone.
    pub options: Options,
}

impl Address {
    /// Reads the address of `settings`, and what it leaves out from the environment. The caller
    /// takes the options of its engine, and then refuses the rest.
    pub fn read(settings: &StoreSettings, usual: &Usual, variable: Variables<'_>) -> Result<Self, Failure> {
        let (place, query) = settings.url.place().split_once('?').unwrap_or((settings.url.place(), ""));
        // A password may hold `/` and `@` although it should not: it ends at the last `@`.
        let (login, place) = place.rsplit_once('@').unwrap_or(("", place));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
        let mut options = Options::parse(query, usual)?;

        let own: Vec<_> = hosts.split(',').map(with_port).collect::<Result<_, _>>()?;
        for (name, option) in usual.variables.split_whitespace().filter_map(|pair| pair.split_once('=')) {
            let is_plain = options.pairs.iter().any(|(name, value)| name == "sslmode" && value.eq_ignore_ascii_case("disable"));
            let is_given = match option {
                // Files for TLS are of no use then, as in libpq.
                _ if option.starts_with("ssl") => is_plain,
                "host" => own.iter().any(|(host, _)| !host.is_empty()),
                "port" => own.iter().any(|(_, port)| port.is_some()),
                _ => false,
            };
            if !is_given && !options.pairs.iter().any(|(name, _)| name == option) {
                options.pairs.extend(variable(name).map(|value| (option.to_owned(), value)));
            }
        }
        let servers = servers(own, usual, &mut options)?;
        let given = |text: &str| decoded(text).map(|text| Some(text).filter(|text| !text.is_empty()));
        let other = options.take("user")?;
        let user = given(user)?.or(other).or_else(|| variable("USER")).or_else(|| variable("LOGNAME"));
        let no_user = || Failure::permanent("the address names no user").with_hint(usual.example);
        let password = match (given(password)?.or(options.take("password")?), &settings.password_file) {
            (None, Some(path)) => Some(first_line(path)?),
            (password, _) => password,
        };
        let home = usual.certificates.and_then(|directory| Some(PathBuf::from(variable("HOME")?).join(directory)));
        let mut limit = |name: &str| {
            let seconds = options.take(name)?.map(|value| value.trim_end_matches('s').parse::<f64>()).transpose();
            let seconds = seconds.map_err(|_| Failure::permanent(format!("`{name}` is not a number of seconds")))?;
            let limit = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            // Other programs may wait for longer than a lease.
            Ok::<_, Failure>(limit.filter(|limit| !limit.is_zero()).map_or(settings.timeout, |limit| limit.min(settings.timeout)))
        };
        let [connect_timeout, timeout] = [limit("connect_timeout")?, limit("read_timeout")?];
        let tls = tls::asked_for(&mut options, home.as_deref(), usual.roots_hint)?;
        tls.check(usual.roots_hint)?;
        Ok(Self {
            user: user.ok_or_else(no_user)?,
            password,
            database: given(database)?.or(options.take("dbname")?),
            servers,
            tls,
            connect_timeout,
            timeout,
            options,
        })
    }
}

/// How variables of the environment are read.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A variable of this process.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The options of an address that were not taken yet.
pub struct Options {
    /// Names in lower case with `_`, and values.
    pairs: Vec<(String, String)>,
    /// Whether a part of a password may have been taken for options.
    is_ambiguous: bool,
}

impl Options {
    fn parse(query: &str, usual: &Usual) -> Result<Self, Failure> {
        // `+` is itself, and not a space.
        let query_pairs = query.replace('+', "%2B");
        let mut pairs = Vec::new();
        for (name, value) in form_urlencoded::parse(query_pairs.as_bytes()).filter(|(name, _)| !name.is_empty()) {
            let name = name.to_ascii_lowercase().replace('-', "_");
            let other = SYNONYMS.iter().chain(usual.synonyms).find(|(other, _)| *other == name);
            let name = other.map_or(name, |(_, name)| (*name).to_owned());
            if name.contains('\0') || value.contains('\0') {
                return Err(Failure::permanent("the address contains a null character"));
            }
            if !value.is_empty() {
                pairs.push((name, value.into_owned()));
            } else if query.contains('@') {
                return Err(ambiguous());
            } else if name.contains("ssl") || name.contains("tls") {
                let why = format!("the option `{}` of the address has no value", printable::field(&name));
                return Err(Failure::permanent(why));
            }
        }
        Ok(Self { pairs, is_ambiguous: query.contains('@') })
    }

    fn take_all(&mut self, name: &str) -> Vec<String> {
        self.pairs.extract_if(.., |(other, _)| other == name).map(|(_, value)| value).collect()
    }

    /// The value of an option.
    pub fn take(&mut self, name: &str) -> Result<Option<String>, Failure> {
        let mut values = self.take_all(name);
        if values.len() > 1 {
            return Err(Failure::permanent(format!("the option `{name}` stands twice in the address")));
        }
        Ok(values.pop())
    }

    /// Refuses options that were not taken.
    pub fn refuse_rest(&self) -> Result<(), Failure> {
        let is_usual = |name: &str, value: &str| USUAL.iter().any(|(other, values)| *other == name && values.contains(&value));
        let matters =
            |(name, value): &&(String, String)| !HARMLESS.split(' ').any(|other| other == name) && !is_usual(name, value);
        let Some((name, _)) = self.pairs.iter().find(matters) else { return Ok(()) };
        if self.is_ambiguous {
            return Err(ambiguous());
        }
        let value = if USUAL.iter().any(|(other, _)| other == name) { " with this value" } else { "" };
        let why = format!("the option `{}` of the address{value} is not supported", printable::field(name));
        Err(Failure::permanent(why).with_hint("leave it out, or unset its variable; docs/stores.md lists the supported options"))
    }
}

/// Part of a password may have been taken for options.
fn ambiguous() -> Failure {
    Failure::permanent("what follows the `?` in the address is not a known option")
        .with_hint("`?` and `@` in a password are written as `%3F` and `%40`")
}

/// The servers: those of the option `host`, or else the address's own.
fn servers(own: Vec<(String, Option<u16>)>, usual: &Usual, options: &mut Options) -> Result<Vec<Server>, Failure> {
    let named = options.take_all("host").join(",");
    let ports = match options.take("port")? {
        Some(ports) => ports.split(',').map(|text| port(text).map(Some)).collect::<Result<Vec<_>, _>>()?,
        None => own.iter().map(|(_, port)| *port).collect(),
    };
    let names = if named.is_empty() { own } else { named.split(',').map(with_port).collect::<Result<_, _>>()? };
    if ports.len() > 1 && ports.len() != names.len() {
        return Err(Failure::permanent(format!("there are {} ports for {} servers", ports.len(), names.len())));
    }
    let of_name = |(index, (host, own)): (usize, (String, Option<u16>))| {
        let port = own.or_else(|| *ports.get(index).or(ports.first())?).unwrap_or(usual.port);
        (if host.is_empty() { usual.host.to_owned() } else { host }, port)
    };
    Ok(names.into_iter().enumerate().map(of_name).collect())
}

/// A host, without the brackets of an IPv6 address, and its port.
fn with_port(text: &str) -> Result<(String, Option<u16>), Failure> {
    let text = text.trim();
    let (host, own) = match text.rsplit_once(':') {
        Some((host, own)) if !host.contains(':') || host.ends_with(']') => (host, Some(port(own)?)),
        _ => (text, None),
    };
    Ok((decoded(host.trim_start_matches('[').trim_end_matches(']'))?, own))
}

fn port(text: &str) -> Result<u16, Failure> {
    let port = text.trim().parse().ok().filter(|port: &u16| *port != 0);
    port.ok_or_else(|| Failure::permanent("the address's port is not a number from 1 to 65535"))
}

/// What is not `%` and two digits stays as it is.
fn decoded(text: &str) -> Result<String, Failure> {
    let decoded = percent_decode_str(text).decode_utf8().ok().filter(|text| !text.contains('\0'));
    let failure = || Failure::permanent("the address, once its `%` are decoded, is not UTF-8, or contains a null character");
    decoded.map(String::from).ok_or_else(failure)
}
