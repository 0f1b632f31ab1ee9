//! Where the server is, and as whom to speak to it: the address, and what is left out there, from where libpq has it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::config::ChannelBinding;

use super::address::{self, Pairs};
use super::passwords::PassFile;
use super::service;
use crate::backend::network::address::host_and_port;
use crate::backend::network::tls::Roots;
use crate::backend::network::{Keepalive, passwords};
use crate::backend::remote::Failure;
use crate::store::StoreSettings;
use crate::waiter::Waiter;

/// The directories in which a server of this machine has its socket: what Debian's packages and PostgreSQL itself have set up.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

const DEFAULT_PORT: u16 = 5432;

/// libpq's variables, and the options that they stand for.
const VARIABLES: [(&str, &str); 24] = [
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGPORT", "port"),
    ("PGUSER", "user"),
    ("PGDATABASE", "dbname"),
    ("PGPASSWORD", "password"),
    ("PGPASSFILE", "passfile"),
    ("PGSERVICE", "service"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLNEGOTIATION", "sslnegotiation"),
    ("PGAPPNAME", "application_name"),
    ("PGOPTIONS", "options"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
    ("PGCHANNELBINDING", "channel_binding"),
    // What cannot be had here must not go unnoticed.
    ("PGREQUIREAUTH", "require_auth"),
    ("PGREQUIREPEER", "requirepeer"),
    ("PGSSLCRL", "sslcrl"),
    ("PGSSLCRLDIR", "sslcrldir"),
    ("PGGSSENCMODE", "gssencmode"),
    ("PGSSLMINPROTOCOLVERSION", "ssl_min_protocol_version"),
];

/// How to connect. Not `Debug`, because of the passwords.
pub struct Options {
    /// The servers to try, in this order; never empty.
    pub targets: Vec<Target>,
    /// As whom.
    pub user: String,
    /// Which database.
    pub database: String,
    /// What the server calls us in `pg_stat_activity`.
    pub application_name: String,
    /// What the server is to set for the session (`-c name=value`).
    pub server_options: Option<String>,
    /// Whether and how the connection is encrypted.
    pub ssl: Ssl,
    /// Whether authentication is bound to the encrypted connection: `disable`, `prefer`, `require`.
    pub channel_binding: ChannelBinding,
    /// Whether to go on to the next server if one is read-only.
    pub is_to_be_writable: bool,
    /// How a connection whose other end is gone is noticed; `None` to leave it to the system.
    pub keepalive: Option<Keepalive>,
    /// For how long what was sent may stay unconfirmed, before the system gives a connection up.
    pub unconfirmed: Duration,
    /// How long connecting may take, name resolution, encryption and authentication included.
    pub connect_timeout: Duration,
    /// How long an answer may take.
    pub answer_timeout: Duration,
}

/// A server.
pub struct Target {
    /// What it is called.
    pub host: Host,
    /// Its address, where the name is not to be looked up.
    pub address: Option<IpAddr>,
    /// Its port, which is also part of the name of a socket.
    pub port: u16,
    /// What it is to be told.
    pub password: Option<String>,
}

/// What a server is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name or an address of the network.
    Name(String),
    /// The directories one of which has its socket; the first one that does.
    Directories(Vec<PathBuf>),
}

/// Whether a connection is encrypted, and whom it is with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ssl {
    /// How much of it.
    pub mode: SslMode,
    /// Whose certificates are trusted.
    pub roots: Option<Roots>,
    /// Files with our own certificate and its key.
    pub own: Option<(PathBuf, PathBuf)>,
    /// Whether the server is not asked first whether it can do that.
    pub is_direct: bool,
}

/// How much encryption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// None.
    Disable,
    /// If the server wants it.
    Allow,
    /// If the server can.
    Prefer,
    /// With whomever it is.
    Require,
    /// With a server whose certificate is trusted.
    VerifyCa,
    /// With a server whose certificate is trusted, and of that name.
    VerifyFull,
}

/// Options of PostgreSQL's own clients about TLS that mean nothing here.
const OTHER_SSL: [&str; 9] = [
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkeylogfile",
    "sslpassword",
    "sslsni",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
];

/// Options by which a connection is more secure, which cannot be had here: to go on with less than was meant would be worse.
const MORE_SECURE: [&str; 4] = ["require_auth", "requirepeer", "sslcrl", "sslcrldir"];

/// A server cuts what is longer.
const MAX_APPLICATION_NAME: usize = 63;

/// Looks an environment variable up.
type Variable = Box<dyn Fn(&str) -> Option<String>>;

/// What is to be known about this process and machine.
pub struct Surroundings {
    /// Looks a variable up.
    pub variable: Variable,
    /// The user's directory.
    pub home: Option<PathBuf>,
    /// The name of the user whom this process runs as.
    pub user: Option<String>,
    /// What to tell a server about this process.
    pub label: String,
}

impl Surroundings {
    /// Those of this process.
    pub fn here() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let user = user_named_in("/etc/passwd").or_else(|| variable("USER")).or_else(|| variable("LOGNAME"));
        let label = Waiter::label(MAX_APPLICATION_NAME);
        Self { variable: Box::new(variable), home: variable("HOME").map(PathBuf::from), user, label }
    }
}

/// Not by `getpwuid`: a static program may not be able to load what that needs.
fn user_named_in(path: &str) -> Option<String> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.split(':').nth(2) == Some(&uid))?;
    line.split(':').next().map(str::to_owned)
}

impl Options {
    /// Of the address, and of what is around.
    ///
    /// # Errors
    /// What cannot be used. Values are not repeated, which may be parts of a password.
    pub fn new(settings: &StoreSettings, around: &Surroundings) -> Result<Self, Failure> {
        let mut pairs = address::parse(&settings.url.secret())?;
        // Before the environment's and the service's passwords.
        if let Some(path) = settings.password_file.as_ref().filter(|_| !pairs.has("password")) {
            pairs.set("password", passwords::first_line(path)?);
        }
        let environment = |name: &str| VARIABLES.iter().find(|(_, option)| *option == name).map(|(variable, _)| *variable);
        let variable = |option: &str| environment(option).and_then(|name| (around.variable)(name));
        if let Some(name) = pairs.take("service").or_else(|| variable("service")) {
            service::read(&name, around, &mut pairs)?;
        }
        for (name, option) in VARIABLES {
            // An address does not belong to another name.
            let is_others = option == "hostaddr" && pairs.has("host");
            if !is_others
                && !pairs.has(option)
                && let Some(value) = (around.variable)(name)
            {
                pairs.set(option, value);
            }
        }
        Self::of(pairs, settings, around)
    }

    fn of(mut pairs: Pairs, settings: &StoreSettings, around: &Surroundings) -> Result<Self, Failure> {
        let user = pairs.take("user").or_else(|| around.user.clone());
        let user = user.ok_or_else(|| Failure::permanent("the address names no user").with_hint("`postgres://USER@…`"))?;
        let database = pairs.take("dbname").unwrap_or_else(|| user.clone());
        let mut targets = targets(&mut pairs)?;
        let password = pairs.take("password");
        let pass_file = pairs.take("passfile").map(PathBuf::from);
        let pass_file = pass_file.or_else(|| Some(around.home.as_ref()?.join(".pgpass")));
        // Read only if somebody needs it.
        let pass_file = pass_file.filter(|_| password.is_none()).and_then(|path| PassFile::read(&path));
        for target in &mut targets {
            let found = || pass_file.as_ref()?.password(target.name_in_pass_file(), target.port, &database, &user);
            target.password = password.clone().or_else(found);
        }
        let ssl = ssl(&mut pairs, around)?;
        let connect_timeout = pairs.seconds("connect_timeout")?.filter(|seconds| !seconds.is_zero());
        let writable = pairs.take("target_session_attrs");
        let options = Self {
            // Locks have to be written: of several servers, that is the one which can. Who wants any gets any.
            is_to_be_writable: writable.map_or(targets.len() > 1, |wanted| wanted != "any"),
            targets,
            user,
            database,
            application_name: pairs.take("application_name").unwrap_or_else(|| around.label.clone()),
            server_options: pairs.take("options"),
            ssl,
            channel_binding: channel_binding(&mut pairs)?,
            keepalive: keepalive(&mut pairs)?,
            unconfirmed: pairs.milliseconds("tcp_user_timeout")?.unwrap_or(settings.timeout),
            connect_timeout: connect_timeout.map_or(settings.timeout, |timeout| timeout.min(settings.timeout)),
            answer_timeout: settings.timeout,
        };
        if pairs.take("gssencmode").is_some_and(|mode| mode == "require") {
            return Err(Failure::permanent("`gssencmode=require` is not supported").with_hint("`sslmode=verify-full` is"));
        }
        if pairs.take("ssl_min_protocol_version").is_some_and(|version| version.eq_ignore_ascii_case("TLSv1.3")) {
            return Err(
                Failure::permanent("`ssl_min_protocol_version=TLSv1.3` is not supported").with_hint("TLSv1.2 is always wanted")
            );
        }
        for name in pairs.names() {
            // Whoever has mistyped one of these would not be as safe as wanted.
            if name.starts_with("ssl") && !OTHER_SSL.contains(&name) {
                return Err(Failure::permanent(format!("the option `{name}` of the address is not known"))
                    .with_hint("`sslmode`, `sslrootcert`, `sslcert` and `sslkey` are"));
            }
            if MORE_SECURE.contains(&name) {
                return Err(Failure::permanent(format!("the option `{name}` of the address is not supported"))
                    .with_hint("leave it out if the connection is secure enough without; `sslmode=verify-full` is supported"));
            }
            // Which one is not said: parts of a password that was not encoded look like options.
            tracing::debug!("an option of the address means nothing here");
        }
        Ok(options)
    }
}

impl Target {
    /// libpq looks for `localhost` where it is the usual socket.
    fn name_in_pass_file(&self) -> &str {
        match &self.host {
            Host::Name(name) => name,
            Host::Directories(directories) => match directories.as_slice() {
                [directory] if !SOCKET_DIRECTORIES.iter().any(|usual| directory == std::path::Path::new(usual)) => {
                    directory.to_str().unwrap_or("")
                }
                _ => "localhost",
            },
        }
    }
}

fn targets(pairs: &mut Pairs) -> Result<Vec<Target>, Failure> {
    let split = |text: String| text.split(',').map(|part| part.trim().to_owned()).collect::<Vec<_>>();
    let addresses = pairs.take("hostaddr").map(split).unwrap_or_default();
    let hosts = pairs.take("host").map(split).unwrap_or_default();
    let ports = pairs.take("port").map(split).unwrap_or_default();
    let count = hosts.len().max(addresses.len()).max(1);
    for (name, given) in [("hostaddr", addresses.len()), ("host", hosts.len())] {
        if given != 0 && given != count {
            return Err(Failure::permanent(format!("there are {given} of `{name}` for {count} servers")));
        }
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(Failure::permanent(format!("there are {} ports for {count} servers", ports.len())));
    }
    (0..count)
        .map(|index| {
            let address = addresses.get(index).filter(|address| !address.is_empty());
            let address = address.map(|address| address.parse::<IpAddr>()).transpose();
            let address = address.map_err(|_| Failure::permanent("`hostaddr` is not an address"))?;
            let (host, own_port) = host_and_port(hosts.get(index).map_or("", String::as_str));
            let port = own_port.or_else(|| ports.get(index).or(ports.first()).map(String::as_str));
            let port = port.filter(|port| !port.is_empty()).map_or(Ok(DEFAULT_PORT), str::parse);
            let port = port.ok().filter(|port| *port != 0).ok_or_else(|| Failure::permanent("the port is not a number"))?;
            let host = match (host, address) {
                ("", Some(address)) => Host::Name(address.to_string()),
                ("", None) => Host::Directories(SOCKET_DIRECTORIES.map(PathBuf::from).to_vec()),
                (directory, None) if directory.starts_with('/') => Host::Directories(vec![directory.into()]),
                (name, _) => Host::Name(name.to_owned()),
            };
            Ok(Target { host, address, port, password: None })
        })
        .collect()
}

fn ssl(pairs: &mut Pairs, around: &Surroundings) -> Result<Ssl, Failure> {
    let in_home = |name: &str| around.home.as_ref().map(|home| home.join(".postgresql").join(name));
    let root = pairs.take("sslrootcert");
    let is_system = root.as_deref() == Some("system");
    // asyncpg has another name for it, pg8000 another value.
    let mode = pairs.take("sslmode").or_else(|| pairs.take("ssl"));
    let mode = match mode.as_deref() {
        None if is_system => SslMode::VerifyFull,
        None | Some("prefer") => SslMode::Prefer,
        Some("disable" | "false" | "0") => SslMode::Disable,
        Some("allow") => SslMode::Allow,
        Some("require" | "true" | "1") => SslMode::Require,
        Some("verify-ca") => SslMode::VerifyCa,
        Some("verify-full") => SslMode::VerifyFull,
        Some(_) => {
            let known = "`disable`, `allow`, `prefer`, `require`, `verify-ca`, `verify-full`";
            return Err(Failure::permanent("`sslmode` has an unknown value").with_hint(format!("it can be {known}")));
        }
    };
    // Everybody can get a certificate that the system trusts, for a name of their own.
    if is_system && mode != SslMode::VerifyFull {
        return Err(Failure::permanent("`sslrootcert=system` needs `sslmode=verify-full`"));
    }
    let roots = match root {
        Some(_) if is_system => Some(Roots::System),
        Some(path) => Some(Roots::File(path.into())),
        None => in_home("root.crt").filter(|path| path.exists()).map(Roots::File),
    };
    // As libpq has it: who names roots wants them to be used.
    let mode = if mode == SslMode::Require && roots.is_some() { SslMode::VerifyCa } else { mode };
    let certificate = pairs.take("sslcert").map(PathBuf::from);
    let certificate = certificate.or_else(|| in_home("postgresql.crt").filter(|path| path.exists()));
    let key = pairs.take("sslkey").map(PathBuf::from).or_else(|| in_home("postgresql.key"));
    let is_direct = match pairs.take("sslnegotiation").as_deref() {
        Some("direct") if matches!(mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer) => {
            return Err(Failure::permanent("`sslnegotiation=direct` needs `sslmode=require` or more"));
        }
        negotiation => negotiation == Some("direct"),
    };
    Ok(Ssl { mode, roots, own: certificate.zip(key), is_direct })
}

/// Whether the password is proved to the very server that the certificate is of.
fn channel_binding(pairs: &mut Pairs) -> Result<ChannelBinding, Failure> {
    match pairs.take("channel_binding").as_deref() {
        None | Some("prefer") => Ok(ChannelBinding::Prefer),
        Some("disable") => Ok(ChannelBinding::Disable),
        Some("require") => Ok(ChannelBinding::Require),
        Some(_) => {
            Err(Failure::permanent("`channel_binding` has an unknown value")
                .with_hint("it can be `disable`, `prefer`, `require`"))
        }
    }
}

fn keepalive(pairs: &mut Pairs) -> Result<Option<Keepalive>, Failure> {
    let usual = Keepalive::default();
    let idle = pairs.seconds("keepalives_idle")?.filter(|idle| !idle.is_zero()).unwrap_or(usual.idle);
    let interval = pairs.seconds("keepalives_interval")?.filter(|interval| !interval.is_zero()).unwrap_or(usual.interval);
    let count =
        pairs.number("keepalives_count")?.filter(|count| *count > 0).map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    let is_off = pairs.take("keepalives").as_deref() == Some("0");
    Ok((!is_off).then_some(Keepalive { idle, interval, count: count.unwrap_or(usual.count) }))
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
