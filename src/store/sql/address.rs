//! The address of a server, `scheme://user:password@host:port,host:port/database?option=value`, as
//! people and drivers write it.
//!
//! Each option is honoured, known to change nothing here, or refused by its name: an option about
//! security that went unnoticed would leave a connection less safe than its user believes.

use std::path::Path;
use std::time::Duration;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use self::TlsMode::{Disable, Prefer, Require, Verify};
use super::engine::Engine;
use crate::store::address::StoreSettings;
use crate::store::failure::{Failure, Result};
use crate::store::network::{
    Address as Given, certificates, decoded, secret, sentence, tls_meaning, variable,
};
use crate::sys::text;

/// Options that are accepted, beside those of one engine: those that are honoured; those that
/// change nothing here with these values; and those of drivers and pools on which nothing depends,
/// since all waiting has the program's own limit.
const ACCEPTED: &str = "host port user password database sslrootcert sslcert sslkey ssl sslmode \
                        ssl_mode requiressl ssl_disabled ssl_verify_cert ssl_verify_identity \
                        channel_binding=prefer channel_binding=disable gssencmode=prefer \
                        gssencmode=disable ssl_min_protocol_version=TLSv1.2 \
                        target_session_attrs=any target_session_attrs=read-write \
                        target_session_attrs=primary autocommit charset client_encoding collation \
                        command_timeout compress connect_timeout fallback_application_name \
                        keepalives keepalives_count keepalives_idle keepalives_interval \
                        load_balance_hosts local_infile max_overflow pool_name pool_pre_ping \
                        pool_recycle pool_size pool_timeout prepared_statement_cache_size \
                        prepared_statement_name_func raise_on_warnings read_timeout \
                        sslcompression sslsni statement_cache_size tcp_user_timeout use_pure \
                        use_unicode write_timeout";

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
    pub timeout: Duration,
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "for options of PostgreSQL"))]
    pub given: Given,
}

type Host = (String, Option<u16>);

/// Other names of options. A socket stands where a host does.
const SYNONYMS: [(&str, &str); 7] = [
    ("dbname", "database"),
    ("db", "database"),
    ("socket", "host"),
    ("unix_socket", "host"),
    ("ssl_ca", "sslrootcert"),
    ("ssl_cert", "sslcert"),
    ("ssl_key", "sslkey"),
];

impl Address {
    /// Reads the address of `settings`, and what it leaves out from the environment.
    pub fn read<E: Engine>(settings: &StoreSettings) -> Result<Self> {
        let mut given = Given::parse(settings, &SYNONYMS)?;
        let own = hosts(&given.hosts)?;
        for option in E::VARIABLES.split_whitespace() {
            let mode = given.option("sslmode").unwrap_or_default();
            let is_given = match option {
                "host" => own.iter().any(|(host, _)| !host.is_empty()),
                "port" => own.iter().any(|(_, port)| port.is_some()),
                // Files for TLS are of no use without it, as in libpq.
                _ => mode.eq_ignore_ascii_case("disable") && option.starts_with("ssl"),
            };
            if !is_given && given.option(option).is_none() {
                let name = format!("PG{}", option.replace('_', "").to_ascii_uppercase());
                given.options.extend(variable(&name).map(|value| (option.to_owned(), value)));
            }
        }
        let hint =
            "leave it out, or unset its variable; docs/stores.md lists the supported options";
        given.refuse_unknown(&format!("{ACCEPTED} {}", E::OPTIONS), hint)?;
        let or_option = |text: Option<String>, name| text.or_else(|| given.option(name));
        let user = or_option(given.user.clone(), "user").or_else(|| variable("USER"));
        let no_user = || Failure::refused("the address names no user", E::EXAMPLE);
        let user = user.or_else(|| variable("LOGNAME")).ok_or_else(no_user)?;
        let password = secret(or_option(given.password.clone(), "password"), settings)?;
        let path = Some(given.path.clone()).filter(|name| !name.is_empty());
        let database = or_option(path, "database");
        // That of libpq.
        let home = variable("HOME").filter(|_| !E::VARIABLES.is_empty());
        let tls = Tls::read(&given, home.as_deref())?;
        let servers = servers::<E>(own, &given)?;
        Ok(Self { user, password, database, servers, tls, timeout: settings.timeout, given })
    }
}

/// The servers: those of the option `host`, or else the address's own.
fn servers<E: Engine>(own: Vec<Host>, given: &Given) -> Result<Vec<Server>> {
    let ports: Vec<_> = match given.option("port") {
        Some(ports) => ports.split(',').map(|text| port(text).map(Some)).collect::<Result<_>>()?,
        None => own.iter().map(|(_, port)| *port).collect(),
    };
    let named = given.options.iter().filter(|(name, value)| name == "host" && !value.is_empty());
    let named: Vec<_> = named.map(|(_, value)| value.as_str()).collect();
    let names = if named.is_empty() { own } else { hosts(&named.join(","))? };
    let (count, servers) = (ports.len(), names.len());
    if count > 1 && count != servers {
        return Err(Failure::permanent(format!("there are {count} ports for {servers} servers")));
    }
    let of_name = |(index, (host, own)): (usize, Host)| {
        let port = own.or_else(|| *ports.get(index).or(ports.first())?).unwrap_or(E::PORT);
        (if host.is_empty() { E::HOST.to_owned() } else { host }, port)
    };
    Ok(names.into_iter().enumerate().map(of_name).collect())
}

/// Hosts, without the brackets of an IPv6 address, and their ports.
fn hosts(text: &str) -> Result<Vec<Host>> {
    let one = |text: &str| {
        let parts = text.trim().rsplit_once(':');
        let parts = parts.filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
        let (host, own) = parts.map_or((text.trim(), None), |(host, own)| (host, Some(port(own))));
        Ok((decoded(host.trim_start_matches('[').trim_end_matches(']'))?, own.transpose()?))
    };
    text.split(',').map(one).collect()
}

fn port(text: &str) -> Result<u16> {
    let port = text.trim().parse().ok().filter(|port: &u16| *port != 0);
    port.ok_or_else(|| Failure::permanent("the address's port is not a number from 1 to 65535"))
}

pub const ROOTS_HINT: &str = "`sslrootcert` (or `ssl_ca`) names a file with the authority's \
                              certificate, or is `system`; the server's name is checked, too; \
                              `sslmode=require` (`ssl_mode=REQUIRED`) encrypts without looking at \
                              the certificate";

pub const PLAIN_HINT: &str = "`?sslmode=disable` at the end of the address does without encryption";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    Disable,
    Prefer,
    Require,
    /// The server's name, too: `sqlx` trusts the system's authorities, which sign for any site,
    /// beside a named one.
    Verify,
}

#[derive(Debug)]
pub struct Tls {
    pub mode: TlsMode,
    /// A file with authorities to trust beside the system's.
    pub roots: Option<String>,
    /// The client's certificate and key, for a server that requires them.
    pub own: Option<(String, String)>,
    /// Why the one that the user has is not sent.
    pub unused: Option<String>,
}

/// What an option about TLS with this value asks for; `Some(None)` if that is unknown. Beside
/// words, values are true or false: in libpq, asyncpg, PyMySQL, mysqlclient, and MariaDB's and
/// Oracle's connectors.
fn meaning(name: &str, value: &str) -> Option<Option<TlsMode>> {
    let ((yes, no), has_words) = match name {
        "ssl" => ((Some(Require), Some(Disable)), true),
        "sslmode" | "ssl_mode" => ((None, None), true),
        "requiressl" => ((Some(Require), Some(Prefer)), false),
        "ssl_disabled" => ((Some(Disable), Some(Prefer)), false),
        "ssl_verify_cert" | "ssl_verify_identity" => ((Some(Verify), Some(Prefer)), false),
        _ => return None,
    };
    Some(match value.to_ascii_lowercase().replace('_', "-").as_str() {
        "1" | "true" | "yes" | "on" => yes,
        "0" | "false" | "no" | "off" => no,
        _ if !has_words => None,
        "disable" | "disabled" => Some(Disable),
        "allow" | "prefer" | "preferred" => Some(Prefer),
        "require" | "required" => Some(Require),
        "verify-ca" | "verify-full" | "verify-identity" => Some(Verify),
        _ => None,
    })
}

impl Tls {
    /// Reads the options about TLS, and its files, so that one that cannot be used is named. In
    /// `home`, the user may have some. The strictest option counts.
    fn read(given: &Given, home: Option<&str>) -> Result<Self> {
        let mut asked = vec![Prefer];
        for (name, value) in &given.options {
            let unknown = format!("the value of the address's option `{name}` is not supported");
            let mode = meaning(name, value).map(|mode| mode.ok_or(Failure::permanent(unknown)));
            asked.extend(mode.transpose()?);
        }
        let (roots, certificate) = (given.option("sslrootcert"), given.option("sslcert"));
        asked.extend(roots.as_ref().map(|_| Verify));
        asked.extend(certificate.as_ref().map(|_| Require));
        let is_off = asked.contains(&Disable);
        let mut mode = asked.into_iter().max().unwrap_or(Prefer);
        if is_off && mode > Prefer {
            let why = "one option of the address asks for TLS, and another one switches it off";
            return Err(Failure::permanent(why));
        }
        let in_home = |name| home.map(|home| format!("{home}/.postgresql/{name}"));
        let in_home = |name| in_home(name).filter(|path| Path::new(path).exists() && !is_off);
        let trusted = || in_home("root.crt").filter(|_| mode >= Require);
        let roots = roots.or_else(trusted).filter(|roots| roots != "system");
        if let Some(roots) = &roots {
            mode = Verify;
            certificates(roots.as_ref()).map_err(|failure| failure.with_hint(ROOTS_HINT))?;
        }
        let certificate = certificate.or_else(|| in_home("postgresql.crt"));
        // Both may be in one file.
        let named = given.option("sslkey");
        if named.is_some() && certificate.is_none() && !is_off {
            return Err(Failure::permanent("`sslkey` is set without a certificate (`sslcert`)"));
        }
        let is_named = named.is_some();
        let key = named.or_else(|| in_home("postgresql.key"));
        let mut own = certificate.map(|own| (own.clone(), key.unwrap_or(own)));
        let mut unused = None;
        if let Some((certificate, key)) = &own
            && let Err(failure) = check_own(certificate.as_ref(), key.as_ref())
        {
            // Those in `home` may be of no use where encryption is only preferred.
            if mode >= Require || is_named {
                return Err(failure);
            }
            (own, unused) = (None, Some(failure.why));
        }
        Ok(Self { mode: if is_off { Disable } else { mode }, roots, own, unused })
    }
}

/// Checks that the client's certificate and key can be used together.
fn check_own(certificate: &Path, key: &Path) -> Result<()> {
    let chain = certificates(certificate)?;
    let chain = CertificateDer::pem_slice_iter(&chain).flatten().map(CertificateDer::into_owned);
    let (shown, of) = (text::path(key), text::path(certificate));
    let found = PrivateKeyDer::from_pem_file(key).map_err(|error| {
        let why = format!("it holds no key in PEM without a passphrase ({error})");
        Failure::permanent(format!("cannot use the key `{shown}`: {why}"))
    });
    let used = CertifiedKey::from_der(chain.collect(), found?, &default_provider());
    used.map(drop).map_err(|error| {
        let why = tls_meaning(&error).map_or_else(|| sentence(&error.to_string()), str::to_owned);
        Failure::permanent(format!("cannot use the key `{shown}` of the certificate `{of}`: {why}"))
    })
}
