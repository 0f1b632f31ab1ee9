//! How to reach MySQL and MariaDB, by the address.

use std::path::PathBuf;
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};

use crate::backend::failure::Failure;
use crate::backend::network::passwords::first_line;
use crate::backend::sql::address::Address;
use crate::backend::sql::failure::{Hints, check_files};
use crate::backend::sql::{Tls, TlsMode};
use crate::store::StoreSettings;

/// What drivers call the options.
pub const HINTS: Hints = Hints {
    roots: "`ssl_ca` names a file with the certificate of the authority that signed the server's; `ssl_mode=REQUIRED` encrypts \
            without looking at it",
    key: "it is a PEM file without a passphrase, which `ssl_key` names",
    plain: "`?ssl_mode=DISABLED` at the end of the address does without encryption",
};

const PORT: u16 = 3306;

/// Options that are true or false, and what they ask for then: PyMySQL's, mysqlclient's, MariaDB's
/// and Oracle's connectors', JDBC's.
const FLAGS: [(&str, TlsMode); 11] = [
    ("ssl", TlsMode::Require),
    ("usessl", TlsMode::Require),
    ("use_ssl", TlsMode::Require),
    ("require_ssl", TlsMode::Require),
    ("requiressl", TlsMode::Require),
    ("ssl_verify_cert", TlsMode::VerifyCa),
    ("ssl_verify_server_cert", TlsMode::VerifyCa),
    ("verifyservercertificate", TlsMode::VerifyCa),
    ("ssl_verify_identity", TlsMode::VerifyFull),
    ("verify_identity", TlsMode::VerifyFull),
    ("ssl_check_hostname", TlsMode::VerifyFull),
];

/// How to connect. Not `Debug`, because of the password.
pub struct Options {
    /// For people: where the server is.
    pub place: String,
    /// Its database, which names are part of.
    pub database: String,
    /// For connecting and logging in.
    pub connect_timeout: Duration,
    /// For each answer.
    pub timeout: Duration,
    /// For sqlx.
    pub server: MySqlConnectOptions,
}

impl Options {
    /// Of the address and of this process; passwords may change between two calls.
    ///
    /// # Errors
    /// When something cannot be used. Values are not repeated, which may be parts of a password.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let mut address = Address::parse(&settings.url.secret())?;
        let option_user = address.take("user")?;
        let user = address.user.clone().or(option_user).or_else(|| variable("USER")).or_else(|| variable("LOGNAME"));
        let user =
            user.ok_or_else(|| Failure::permanent("the address names no user").with_hint("`mysql://USER@HOST/DATABASE`"))?;
        let password = match (address.password.clone().or(address.take("password")?), &settings.password_file) {
            (None, Some(path)) => first_line(path)?,
            (password, _) => password.unwrap_or_default(),
        };
        let [name, short] = [address.take("database")?, address.take("db")?];
        let database = address.database.clone().or(name).or(short);
        let database = database
            .ok_or_else(|| Failure::permanent("the address names no database").with_hint("`mysql://USER@HOST/DATABASE`"))?;
        let [socket, unix_socket] = [address.take("socket")?, address.take("unix_socket")?];
        let socket = unix_socket.or(socket).map(PathBuf::from);
        let [host, port] = [address.take("host")?, address.take("port")?];
        let [(own_host, own_port)] = address.hosts.as_slice() else {
            return Err(Failure::permanent("the address names several servers").with_hint("name one, or a proxy before them"));
        };
        let not_a_port = |_| Failure::permanent("the address's port is not a number from 0 to 65535");
        let option_port = port.map(|port| port.parse::<u16>().map_err(not_a_port)).transpose()?;
        let port = own_port.or(option_port).unwrap_or(PORT);
        // `localhost` is a host like others; the socket file is named.
        let host = Some(own_host.clone()).filter(|host| !host.is_empty()).or(host).unwrap_or_else(|| "localhost".to_owned());
        let tls = tls(&mut address)?;
        let mut limit = |name: &str| {
            let limit = address.seconds(name)?.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            // What other programs are to wait is longer than a lease.
            Ok::<_, Failure>(limit.map_or(settings.timeout, |limit| limit.min(settings.timeout)))
        };
        let [connect_timeout, timeout] = [limit("connect_timeout")?, limit("read_timeout")?];
        address.refuse_rest("leave it out; docs/stores.md lists the supported options")?;
        check_files(&tls, &HINTS)?;
        let place = socket.as_ref().map_or_else(|| format!("{host}:{port}"), |path| path.display().to_string());
        let mut server = MySqlConnectOptions::new().host(&host).port(port).username(&user).database(&database);
        server = server.ssl_mode(mode(tls.mode, socket.is_some()));
        if !password.is_empty() {
            server = server.password(&password);
        }
        if let Some(path) = &socket {
            server = server.socket(path);
        }
        if let Some(roots) = &tls.roots {
            server = server.ssl_ca(roots);
        }
        if let Some((certificate, key)) = &tls.own {
            server = server.ssl_client_cert(certificate).ssl_client_key(key);
        }
        // Without the statement that it sends after each login.
        let server = server.pipes_as_concat(false).no_engine_substitution(false).timezone(None).set_names(false);
        let server = server.statement_cache_capacity(0).disable_statement_logging();
        Ok(Self { place, database, connect_timeout, timeout, server })
    }
}

fn mode(mode: TlsMode, is_local: bool) -> MySqlSslMode {
    match mode {
        TlsMode::Disable => MySqlSslMode::Disabled,
        // A socket of this machine is as good.
        TlsMode::Allow | TlsMode::Prefer if is_local => MySqlSslMode::Disabled,
        TlsMode::Allow | TlsMode::Prefer => MySqlSslMode::Preferred,
        TlsMode::Require => MySqlSslMode::Required,
        // sqlx trusts the system's authorities beside the named one: without the name, any site's certificate would do.
        TlsMode::VerifyCa | TlsMode::VerifyFull => MySqlSslMode::VerifyIdentity,
    }
}

/// How much TLS is asked for, in the spellings of all drivers: as much as the strictest option asks
/// for.
fn tls(address: &mut Address) -> Result<Tls, Failure> {
    let unknown = |name: &str, hint: &'static str| {
        Failure::permanent(format!("the option `{name}` of the address has an unknown value")).with_hint(hint)
    };
    let (mut asked, mut is_off) = (Vec::new(), false);
    for name in ["ssl_mode", "sslmode"] {
        asked.extend(match address.take(name)?.map(|value| value.to_ascii_lowercase().replace('_', "-")).as_deref() {
            None => None,
            Some("disabled" | "disable") => Some(TlsMode::Disable),
            Some("preferred" | "prefer") => Some(TlsMode::Prefer),
            Some("required" | "require" | "trust") => Some(TlsMode::Require),
            Some("verify-ca") => Some(TlsMode::VerifyCa),
            Some("verify-identity" | "verify-full") => Some(TlsMode::VerifyFull),
            Some(_) => return Err(unknown(name, "it is DISABLED, PREFERRED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY")),
        });
    }
    // go-sql-driver's.
    asked.extend(match address.take("tls")?.map(|value| value.to_ascii_lowercase()).as_deref() {
        None => None,
        Some("false") => Some(TlsMode::Disable),
        Some("preferred") => Some(TlsMode::Prefer),
        Some("skip-verify") => Some(TlsMode::Require),
        Some("true") => Some(TlsMode::VerifyFull),
        Some(_) => return Err(unknown("tls", "it is true, false, skip-verify or preferred")),
    });
    // sqlx always asks the server for its key.
    if address.flag("allowpublickeyretrieval")? == Some(false) {
        return Err(Failure::permanent("the option `allowPublicKeyRetrieval=false` of the address is not supported"));
    }
    let mut is_unverified = false;
    for (name, mode) in FLAGS {
        match address.flag(name)? {
            Some(true) => asked.push(mode),
            Some(false) if matches!(name, "ssl" | "usessl" | "use_ssl") => is_off = true,
            Some(false) if name == "ssl_check_hostname" => {
                let failure = Failure::permanent("the option `ssl_check_hostname=false` of the address is not supported");
                return Err(failure.with_hint("a certificate is verified with its name, or not at all (`ssl_mode=REQUIRED`)"));
            }
            Some(false) => is_unverified |= mode == TlsMode::VerifyCa,
            None => {}
        }
    }
    is_off |= address.flag("ssl_disabled")? == Some(true) || asked.contains(&TlsMode::Disable);
    let roots = address.take("ssl_ca")?.map(PathBuf::from);
    let certificate = address.take("ssl_cert")?.map(PathBuf::from);
    // Both may be in one file.
    let key = address.take("ssl_key")?.map(PathBuf::from).or_else(|| certificate.clone());
    let own = certificate.zip(key);
    asked.extend(roots.as_ref().map(|_| if is_unverified { TlsMode::Require } else { TlsMode::VerifyCa }));
    asked.extend(own.as_ref().map(|_| TlsMode::Require));
    let strictest = asked.into_iter().max().unwrap_or(TlsMode::Prefer);
    if is_off && strictest > TlsMode::Disable && strictest != TlsMode::Prefer {
        return Err(Failure::permanent("one option of the address asks for TLS, and another one switches it off"));
    }
    // The system trusts certificates for all names, so that without the name they prove nothing.
    if strictest == TlsMode::VerifyCa && roots.is_none() {
        let failure = Failure::permanent("verifying the authority requires `ssl_ca`");
        return Err(failure.with_hint("`ssl_mode=VERIFY_IDENTITY` does without, if the system trusts the authority"));
    }
    Ok(Tls { mode: if is_off { TlsMode::Disable } else { strictest }, roots, own })
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
