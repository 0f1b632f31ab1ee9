//! The address of a server, `scheme://user:password@host:port,host:port/database?option=value`, as
//! people and drivers write it.
//!
//! Each option is honoured, known to change nothing here, or refused by its name: an option about
//! security that went unnoticed would leave a connection less safe than its user believes.

use std::path::PathBuf;
use std::time::Duration;

use super::tls::{self, Tls};
use crate::store::address::StoreSettings;
use crate::store::failure::Failure;
use crate::store::network::{Address as Given, decoded, secret};

/// Options that are honoured, beside those about TLS and those of one engine.
const HONOURED: [&str; 8] =
    ["host", "port", "user", "password", "dbname", "sslrootcert", "sslcert", "sslkey"];

/// Options of drivers and pools on which nothing depends here; all waiting has the program's own
/// limit.
const HARMLESS: &str = "allowmultiqueries allownativepasswords async_fallback autocommit \
                        autoreconnect binary_prefix buffered characterencoding charset \
                        client_encoding clientfoundrows collation columnswithalias command_timeout \
                        compress connect_timeout fallback_application_name interpolateparams \
                        keepalives keepalives_count keepalives_idle keepalives_interval \
                        load_balance_hosts loc local_infile max_overflow maxallowedpacket \
                        multistatements parsetime pool_name pool_pre_ping pool_recycle pool_size \
                        pool_timeout prepared_statement_cache_size prepared_statement_name_func \
                        preparethreshold program_name raise_on_warnings read_default_group \
                        read_timeout servertimezone sslcompression sslsni statement_cache_size \
                        tcp_user_timeout tcpkeepalive use_pure use_unicode useunicode \
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

/// Other names of an option. A socket stands where a host does.
const SYNONYMS: [(&str, &str); 7] = [
    ("database", "dbname"),
    ("db", "dbname"),
    ("socket", "host"),
    ("ssl_ca", "sslrootcert"),
    ("ssl_cert", "sslcert"),
    ("ssl_key", "sslkey"),
    ("unix_socket", "host"),
];

/// What an address of an engine means.
pub struct Usual {
    /// The port, where none is named.
    pub port: u16,
    /// The host, where none is named.
    pub host: &'static str,
    /// The options of this engine only.
    pub options: &'static [&'static str],
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
    /// The servers to try, in this order; never empty.
    pub servers: Vec<Server>,
    pub tls: Tls,
    /// How long connecting, and each answer, may take.
    pub timeout: Duration,
    /// All of the options.
    pub given: Given,
}

impl Address {
    /// Reads the address of `settings`, and what it leaves out from the environment.
    pub fn read(
        settings: &StoreSettings,
        usual: &Usual,
        variable: Variables<'_>,
    ) -> Result<Self, Failure> {
        let mut given = Given::parse(settings, &SYNONYMS)?;
        let own: Vec<_> = given.hosts.split(',').map(with_port).collect::<Result<_, _>>()?;
        for (name, option) in
            usual.variables.split_whitespace().filter_map(|pair| pair.split_once('='))
        {
            let is_plain =
                given.option("sslmode").is_some_and(|mode| mode.eq_ignore_ascii_case("disable"));
            let is_given = match option {
                // Files for TLS are of no use then, as in libpq.
                _ if option.starts_with("ssl") => is_plain,
                "host" => own.iter().any(|(host, _)| !host.is_empty()),
                "port" => own.iter().any(|(_, port)| port.is_some()),
                _ => false,
            };
            if !is_given && given.option(option).is_none() {
                given.options.extend(variable(name).map(|value| (option.to_owned(), value)));
            }
        }
        let is_usual = |name: &str, value: &str| {
            USUAL.iter().any(|(other, values)| *other == name && values.contains(&value))
        };
        let is_known = |name: &str, value: &str| {
            HONOURED.contains(&name)
                || usual.options.contains(&name)
                || tls::is_option(name)
                || HARMLESS.split(' ').any(|other| other == name)
                || is_usual(name, value)
        };
        let hint = "leave it out, or unset its variable; docs/stores.md lists the supported \
                    options and values";
        given.refuse_unknown(is_known, hint.to_owned())?;
        let user = given.user.clone().or_else(|| given.option("user"));
        let user = user.or_else(|| variable("USER")).or_else(|| variable("LOGNAME"));
        let no_user = || Failure::permanent("the address names no user").with_hint(usual.example);
        let home = usual
            .certificates
            .and_then(|directory| Some(PathBuf::from(variable("HOME")?).join(directory)));
        let tls = tls::asked_for(&given, home.as_deref(), usual.roots_hint)?;
        tls.check(usual.roots_hint)?;
        Ok(Self {
            user: user.ok_or_else(no_user)?,
            password: secret(
                given.password.clone().or_else(|| given.option("password")),
                settings,
            )?,
            servers: servers(own, usual, &given)?,
            tls,
            timeout: settings.timeout,
            given,
        })
    }

    /// The name of the database.
    pub fn database(&self) -> Option<String> {
        Some(self.given.path.clone())
            .filter(|name| !name.is_empty())
            .or_else(|| self.given.option("dbname"))
    }
}

/// How variables of the environment are read.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The servers: those of the option `host`, or else the address's own.
fn servers(
    own: Vec<(String, Option<u16>)>,
    usual: &Usual,
    given: &Given,
) -> Result<Vec<Server>, Failure> {
    let named: Vec<_> = given
        .options
        .iter()
        .filter(|(name, _)| name == "host")
        .map(|(_, value)| value.as_str())
        .collect();
    let named = named.join(",");
    let ports = match given.option("port") {
        Some(ports) => {
            ports.split(',').map(|text| port(text).map(Some)).collect::<Result<Vec<_>, _>>()?
        }
        None => own.iter().map(|(_, port)| *port).collect(),
    };
    let names = if named.is_empty() {
        own
    } else {
        named.split(',').map(with_port).collect::<Result<_, _>>()?
    };
    if ports.len() > 1 && ports.len() != names.len() {
        return Err(Failure::permanent(format!(
            "there are {} ports for {} servers",
            ports.len(),
            names.len()
        )));
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
