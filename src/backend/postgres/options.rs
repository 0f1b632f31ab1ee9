//! How to reach PostgreSQL: the address, and what is left out there as libpq finds it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use crate::backend::failure::Failure;
use crate::backend::network::passwords::first_line;
use crate::backend::sql::address::Address;
use crate::backend::sql::failure::{Hints, check_files};
use crate::backend::sql::{Tls, TlsMode};
use crate::store::StoreSettings;
use crate::waiter::Waiter;

/// What libpq calls the options.
pub const HINTS: Hints = Hints {
    roots: "`sslrootcert` names a file with the authority's certificate, or is `system` with `sslmode=verify-full`; \
            the certificate's name is checked with `sslmode=verify-ca`, too",
    key: "it is a PEM file without a passphrase, which `sslkey` names",
    plain: "`?sslmode=disable` at the end of the address does without encryption",
};

/// The directories where a server of this machine has its socket.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

const PORT: u16 = 5432;

/// A server cuts what is longer.
const MAX_LABEL: usize = 63;

/// libpq's variables for options that the address leaves out. Those that are not supported are
/// refused like the options.
const VARIABLES: &str = "PGHOSTADDR=hostaddr PGUSER=user PGDATABASE=dbname PGSERVICE=service \
    PGSSLMODE=sslmode PGREQUIRESSL=requiressl PGSSLROOTCERT=sslrootcert PGSSLCERT=sslcert PGSSLKEY=sslkey PGSSLNEGOTIATION=sslnegotiation \
    PGAPPNAME=application_name PGCONNECT_TIMEOUT=connect_timeout \
    PGTARGETSESSIONATTRS=target_session_attrs PGCHANNELBINDING=channel_binding PGREQUIREAUTH=require_auth \
    PGREQUIREPEER=requirepeer PGSSLCRL=sslcrl PGSSLCRLDIR=sslcrldir PGGSSENCMODE=gssencmode \
    PGSSLMINPROTOCOLVERSION=ssl_min_protocol_version";

/// How to connect. Not `Debug`, because of the password.
pub struct Options {
    /// The servers to try, in this order; never empty.
    pub servers: Vec<Server>,
    user: String,
    database: String,
    /// Before `PGPASSWORD` and `~/.pgpass`, which sqlx reads.
    password: Option<String>,
    /// What the server calls the session in `pg_stat_activity`, if it has a name of its own.
    label: Option<String>,
    /// Whether a session without a name is labelled. Behind a pooler each change of label costs a
    /// statement.
    pub is_labelled: bool,
    /// What the server sets for the session.
    settings: Vec<(String, String)>,
    tls: Tls,
    /// Whether a server that is read-only is passed over.
    pub wants_writable: bool,
    /// How long connecting may take.
    pub connect_timeout: Duration,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its name or address, or the directory of its socket.
    pub host: String,
    /// Its port, which is also part of the name of a socket.
    pub port: u16,
}

impl Options {
    /// Of the address and of this process.
    ///
    /// # Errors
    /// When something cannot be used. Values are not repeated, which may be parts of a password.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self::read(settings, &variable)
    }

    fn read(settings: &StoreSettings, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let mut address = Address::parse(&settings.url.secret())?;
        let hosts = address.take_all("host").join(",");
        let is_named = !hosts.is_empty() || address.hosts.iter().any(|(host, _)| !host.is_empty());
        let hosts = if is_named { hosts } else { variable("PGHOST").unwrap_or_default() };
        let has_port = address.hosts.iter().any(|(_, port)| port.is_some());
        let ports = address.take("port")?.or_else(|| variable("PGPORT").filter(|_| !has_port));
        let servers = servers(&address.hosts, &hosts, ports.as_deref())?;
        for (name, option) in VARIABLES.split(' ').filter_map(|pair| pair.split_once('=')) {
            if let Some(value) = variable(name) {
                address.set_default(option, value);
            }
        }
        let option_user = address.take("user")?;
        let user = address.user.clone().or(option_user).or_else(|| user_named_in("/etc/passwd")).or_else(|| variable("USER"));
        let user = user.ok_or_else(|| Failure::permanent("the address names no user").with_hint("`postgres://USER@…`"))?;
        let [other, name] = [address.take("database")?, address.take("dbname")?];
        let database = address.database.clone().or(other).or(name).unwrap_or_else(|| user.clone());
        let password = address.password.clone().filter(|password| !password.is_empty());
        let password = match (password.or(address.take("password")?), &settings.password_file) {
            (None, Some(path)) => Some(first_line(path)?),
            (password, _) => password,
        };
        let home = variable("HOME").map(PathBuf::from);
        let tls = tls(&mut address, home.as_deref())?;
        let wants_writable = match address.take("target_session_attrs")?.as_deref() {
            None => servers.len() > 1,
            Some("any") => false,
            Some("read-write" | "primary") => true,
            Some(_) => {
                return Err(Failure::permanent("`target_session_attrs` is neither `any` nor `read-write` nor `primary`")
                    .with_hint("locks are written, so that a standby is of no use"));
            }
        };
        let timeout = address.seconds("connect_timeout")?.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let options = Self {
            servers,
            user,
            database,
            password,
            label: address.take("application_name")?,
            is_labelled: true,
            settings: server_settings(&address.take("options")?.unwrap_or_default())?,
            tls,
            wants_writable,
            connect_timeout: timeout.map_or(settings.timeout, |timeout| timeout.min(settings.timeout)),
        };
        address.refuse_rest("leave it out, or unset libpq's variable for it; docs/stores.md lists the supported options")?;
        check_files(&options.tls, &HINTS)?;
        Ok(options)
    }

    /// How much TLS to try, one after the other: `pg_hba.conf` can refuse connections with it, or
    /// without.
    pub fn modes(&self, server: &Server) -> &'static [PgSslMode] {
        match self.tls.mode {
            // Sockets of this machine are not encrypted.
            _ if server.host.starts_with('/') => &[PgSslMode::Disable],
            TlsMode::Disable => &[PgSslMode::Disable],
            TlsMode::Allow => &[PgSslMode::Disable, PgSslMode::Require],
            TlsMode::Prefer => &[PgSslMode::Prefer, PgSslMode::Disable],
            TlsMode::Require => &[PgSslMode::Require],
            // sqlx trusts the system's authorities beside the named one: without the name, any site's certificate would do.
            TlsMode::VerifyCa | TlsMode::VerifyFull => &[PgSslMode::VerifyFull],
        }
    }

    /// For sqlx. Each of its own defaults from the environment is replaced.
    pub fn for_sqlx(
        &self,
        server: &Server,
        mode: PgSslMode,
        extra: Option<&(String, String)>,
    ) -> Result<PgConnectOptions, Failure> {
        let Server { host, port } = server;
        let socket = host.starts_with('/');
        // The only way to `~/.pgpass`, which has `localhost` for sockets.
        let shown = if socket { "localhost" } else { host };
        let shown = if shown.contains(':') { format!("[{shown}]") } else { shown.to_owned() };
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let text = format!("postgres://{}@{shown}:{port}/{}", encoded(&self.user), encoded(&self.database));
        let url = Url::parse(&text).ok();
        let options = url.and_then(|url| PgConnectOptions::from_url(&url).ok());
        let invalid = || Failure::permanent("the address's host is neither a name nor an address");
        let mut options = options.ok_or_else(invalid)?.host(host).port(*port).username(&self.user).ssl_mode(mode);
        if socket {
            options = options.socket(host);
        }
        if let Some(password) = &self.password {
            options = options.password(password);
        }
        options = match &self.tls.roots {
            Some(path) => options.ssl_root_cert(path),
            None => options.ssl_root_cert_from_pem(Vec::new()),
        };
        if let Some((certificate, key)) = &self.tls.own {
            options = options.ssl_client_cert(certificate).ssl_client_key(key);
        }
        let options = options.extra_float_digits(None).statement_cache_capacity(0);
        let mut options = options.disable_statement_logging();
        let label = self.label.clone().or_else(|| self.is_labelled.then(|| Waiter::label(MAX_LABEL)));
        if let Some(label) = label {
            options = options.application_name(&label);
        }
        let settings: Vec<_> = self.settings.iter().chain(extra).cloned().collect();
        // A pooler refuses settings that it does not know, also an empty list of them.
        Ok(if settings.is_empty() { options } else { options.options(settings) })
    }
}

/// Not by `getpwuid`, which may load libraries.
fn user_named_in(path: &str) -> Option<String> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.split(':').nth(2) == Some(&uid))?;
    line.split(':').next().map(str::to_owned)
}

/// The servers that the address names: by itself, or in its options.
fn servers(own: &[(String, Option<u16>)], hosts: &str, ports: Option<&str>) -> Result<Vec<Server>, Failure> {
    let not_a_port = || Failure::permanent("the port is not a number from 1 to 65535");
    let port = |text: &str| text.trim().parse().ok().filter(|port: &u16| *port != 0).ok_or_else(not_a_port);
    let ports: Vec<Option<u16>> = match ports {
        Some(ports) => ports.split(',').map(|text| port(text).map(Some)).collect::<Result<_, _>>()?,
        None => own.iter().map(|(_, port)| *port).collect(),
    };
    let names: Vec<&str> = if hosts.is_empty() {
        own.iter().map(|(host, _)| host.as_str()).collect()
    } else {
        hosts.split(',').map(str::trim).collect()
    };
    if ports.len() > 1 && ports.len() != names.len() {
        return Err(Failure::permanent(format!("there are {} ports for {} servers", ports.len(), names.len())));
    }
    let of_name = |(index, name): (usize, &&str)| {
        let (host, own) = match name.rsplit_once(':') {
            Some((host, own)) if !host.contains(':') || host.ends_with(']') => (host, Some(port(own)?)),
            _ => (*name, None),
        };
        let port = own.or_else(|| *ports.get(index).or(ports.first())?).unwrap_or(PORT);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let socket = |directory: &&&str| Path::new(directory).join(format!(".s.PGSQL.{port}")).exists();
        let local = || SOCKET_DIRECTORIES.iter().find(socket).unwrap_or(&SOCKET_DIRECTORIES[0]);
        let host = if host.is_empty() { *local() } else { host };
        Ok(Server { host: host.to_owned(), port })
    };
    names.iter().enumerate().map(of_name).collect()
}

/// `-c name=value`, `-cname=value` and `--name=value`, in which a backslash takes the next
/// character as it stands.
fn server_settings(text: &str) -> Result<Vec<(String, String)>, Failure> {
    let mut words = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => words.last_mut().into_iter().for_each(|word| word.extend(characters.next())),
            ' ' => words.push(String::new()),
            _ => words.last_mut().into_iter().for_each(|word| word.push(character)),
        }
    }
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let word = if word == "-c" { words.next().unwrap_or_default() } else { word };
        let pair = word.trim_start_matches("-c").trim_start_matches("--").split_once('=');
        let (name, value) = pair.ok_or_else(|| {
            Failure::permanent("`options` has something else than settings").with_hint("a setting is `-c name=value`")
        })?;
        settings.push((name.to_owned(), value.to_owned()));
    }
    Ok(settings)
}

/// How much TLS is asked for, in the spellings of all drivers.
fn tls(address: &mut Address, home: Option<&Path>) -> Result<Tls, Failure> {
    let unsupported = |name: &str, hint: &'static str| {
        Failure::permanent(format!("the option `{name}` with this value is not supported")).with_hint(hint)
    };
    // What libpq and its drivers do by default.
    for (name, usual) in [
        ("sslnegotiation", &["postgres"][..]),
        ("channel_binding", &["prefer", "disable"]),
        ("gssencmode", &["prefer", "disable"]),
        ("sslcertmode", &["allow"]),
        ("ssl_min_protocol_version", &["TLSv1", "TLSv1.1", "TLSv1.2"]),
        ("ssl_max_protocol_version", &["TLSv1.3"]),
    ] {
        if address.take(name)?.is_some_and(|value| !usual.contains(&value.as_str())) {
            return Err(unsupported(name, "`sslmode=verify-full` keeps others from listening and from answering"));
        }
    }
    let root = address.take("sslrootcert")?;
    let is_system = root.as_deref() == Some("system");
    // libpq's; asyncpg's and pg8000's; that of old versions of libpq.
    let mut mode = None;
    for name in ["sslmode", "ssl", "requiressl"] {
        let asked = match address.take(name)?.map(|value| value.to_ascii_lowercase().replace('_', "-")).as_deref() {
            None => continue,
            Some("0") if name == "requiressl" => TlsMode::Prefer,
            Some("disable" | "false" | "0") => TlsMode::Disable,
            Some("allow") => TlsMode::Allow,
            Some("prefer") => TlsMode::Prefer,
            Some("require" | "true" | "1") => TlsMode::Require,
            Some("verify-ca") => TlsMode::VerifyCa,
            Some("verify-full") => TlsMode::VerifyFull,
            Some(_) => {
                return Err(Failure::permanent(format!("`{name}` has an unknown value"))
                    .with_hint("it is `disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`"));
            }
        };
        if mode.is_some_and(|mode| mode != asked) {
            return Err(Failure::permanent(format!("`{name}` contradicts another option of the address")));
        }
        mode = Some(asked);
    }
    let mode = mode.unwrap_or(if is_system { TlsMode::VerifyFull } else { TlsMode::Prefer });
    // A certificate that the system trusts is to be had for any other name.
    if is_system && mode != TlsMode::VerifyFull {
        return Err(Failure::permanent("`sslrootcert=system` requires `sslmode=verify-full`"));
    }
    let in_home = |name: &str| home.map(|home| home.join(".postgresql").join(name));
    let roots = match root {
        Some(_) if is_system => None,
        Some(path) => Some(PathBuf::from(path)),
        None => in_home("root.crt").filter(|path| path.exists()),
    };
    if mode == TlsMode::VerifyCa && roots.is_none() {
        return Err(Failure::permanent("`sslmode=verify-ca` requires `sslrootcert`").with_hint(HINTS.roots));
    }
    // As in libpq: roots that are named are used.
    let mode = if mode == TlsMode::Require && roots.is_some() { TlsMode::VerifyCa } else { mode };
    let certificate = address.take("sslcert")?.map(PathBuf::from);
    let certificate = certificate.or_else(|| in_home("postgresql.crt").filter(|path| path.exists()));
    let key = address.take("sslkey")?.map(PathBuf::from).or_else(|| in_home("postgresql.key"));
    Ok(Tls { mode, roots, own: certificate.zip(key) })
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
