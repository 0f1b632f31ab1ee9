//! How much TLS an address asks for, in the spellings of all drivers. The strictest option counts.

use std::path::{Path, PathBuf};

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::{self, PemObject};

use crate::store::failure::Failure;
use crate::store::network::{Address, certificates, sentence};
use crate::sys::text;

/// How much TLS a connection has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    /// None.
    Disable,
    /// If the server has it.
    Prefer,
    /// With any certificate.
    Require,
    /// With a certificate from a named authority. Its name is verified, too: `sqlx` trusts the
    /// system's authorities beside the named one, which sign for any site.
    VerifyCa,
    /// With a certificate from a trusted authority, for this host.
    VerifyFull,
}

/// How a connection is encrypted.
#[derive(Debug)]
pub struct Tls {
    pub mode: TlsMode,
    /// A file with authorities to trust beside the system's.
    pub roots: Option<PathBuf>,
    /// The client's certificate and key, for a server that requires them.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// The options whose value is a word.
const WORDS: [&str; 4] = ["ssl", "ssl_mode", "sslmode", "tls"];

/// Options that are true or false, and what they ask for then; false may not be possible. They are
/// those of libpq, asyncpg, PyMySQL, mysqlclient, go-sql-driver, JDBC, and MariaDB's and Oracle's
/// connectors.
const FLAGS: [(&str, TlsMode, Option<TlsMode>); 13] = [
    ("requiressl", TlsMode::Require, Some(TlsMode::Prefer)),
    ("require_ssl", TlsMode::Require, Some(TlsMode::Prefer)),
    ("ssl", TlsMode::Require, Some(TlsMode::Disable)),
    ("ssl_check_hostname", TlsMode::VerifyFull, None),
    ("ssl_disabled", TlsMode::Disable, Some(TlsMode::Prefer)),
    ("ssl_verify_cert", TlsMode::VerifyCa, Some(TlsMode::Prefer)),
    ("ssl_verify_identity", TlsMode::VerifyFull, Some(TlsMode::Prefer)),
    ("ssl_verify_server_cert", TlsMode::VerifyCa, Some(TlsMode::Prefer)),
    ("tls", TlsMode::VerifyFull, Some(TlsMode::Disable)),
    ("use_ssl", TlsMode::Require, Some(TlsMode::Disable)),
    ("usessl", TlsMode::Require, Some(TlsMode::Disable)),
    ("verify_identity", TlsMode::VerifyFull, Some(TlsMode::Prefer)),
    ("verifyservercertificate", TlsMode::VerifyCa, Some(TlsMode::Prefer)),
];

/// Whether it is an option of these.
pub fn is_option(name: &str) -> bool {
    WORDS.contains(&name) || FLAGS.iter().any(|(other, ..)| *other == name)
}

/// What an option with this value asks for; `None` if that is unknown.
fn meaning(name: &str, value: &str) -> Option<TlsMode> {
    let value = value.to_ascii_lowercase().replace('_', "-");
    let word = match value.as_str() {
        "disable" | "disabled" => Some(TlsMode::Disable),
        "allow" | "prefer" | "preferred" => Some(TlsMode::Prefer),
        "require" | "required" | "trust" | "skip-verify" => Some(TlsMode::Require),
        "verify-ca" => Some(TlsMode::VerifyCa),
        "verify-full" | "verify-identity" => Some(TlsMode::VerifyFull),
        _ => None,
    };
    let flag = FLAGS.iter().find(|(other, ..)| *other == name);
    match value.as_str() {
        "1" | "true" | "yes" | "on" => flag.map(|(_, on, _)| *on),
        "0" | "false" | "no" | "off" => flag.and_then(|(_, _, off)| *off),
        _ => word.filter(|_| WORDS.contains(&name)),
    }
}

/// Reads the options about TLS. `home` is a directory with certificates of this user.
pub fn asked_for(
    given: &Address,
    home: Option<&Path>,
    roots_hint: &'static str,
) -> Result<Tls, Failure> {
    let mut asked = vec![TlsMode::Prefer];
    for (name, value) in given.options.iter().filter(|(name, _)| is_option(name)) {
        let unknown = || {
            Failure::permanent(format!(
                "the value of the option `{name}` of the address is not supported"
            ))
        };
        asked.push(meaning(name, value).ok_or_else(unknown)?);
    }
    let [roots, certificate, key] =
        ["sslrootcert", "sslcert", "sslkey"].map(|name| given.option(name));
    let is_system = roots.as_deref() == Some("system");
    asked.extend(
        roots.as_ref().map(|_| if is_system { TlsMode::VerifyFull } else { TlsMode::VerifyCa }),
    );
    asked.extend(certificate.as_ref().map(|_| TlsMode::Require));
    let is_off = asked.contains(&TlsMode::Disable);
    let strictest = asked.into_iter().max().unwrap_or(TlsMode::Prefer);
    if is_off && strictest > TlsMode::Prefer {
        return Err(Failure::permanent(
            "one option of the address asks for TLS, and another one switches it off",
        ));
    }
    let in_home = |name| home.map(|home| home.join(name)).filter(|path| path.exists() && !is_off);
    let roots = roots
        .map(PathBuf::from)
        .or_else(|| in_home("root.crt").filter(|_| strictest >= TlsMode::Require));
    let roots = roots.filter(|_| !is_system);
    let strictest = if roots.is_some() { strictest.max(TlsMode::VerifyCa) } else { strictest };
    if strictest == TlsMode::VerifyCa && roots.is_none() {
        return Err(Failure::permanent("`verify-ca` requires a file with the authority")
            .with_hint(roots_hint));
    }
    if strictest >= TlsMode::VerifyCa && in_home("root.crl").is_some() {
        let why = "a list of revoked certificates (`root.crl` in `~/.postgresql`) is not supported";
        return Err(Failure::permanent(why).with_hint("remove it, or set `sslmode=require`"));
    }
    let certificate = certificate.map(PathBuf::from).or_else(|| in_home("postgresql.crt"));
    // Both may be in one file.
    let key = key
        .map(PathBuf::from)
        .or_else(|| in_home("postgresql.key"))
        .or_else(|| certificate.clone());
    Ok(Tls {
        mode: if is_off { TlsMode::Disable } else { strictest },
        roots,
        own: certificate.zip(key),
    })
}

impl Tls {
    /// Reads the files, so that one that cannot be used is named.
    pub fn check(&self, roots_hint: &'static str) -> Result<(), Failure> {
        if let Some(roots) = &self.roots {
            certificates(roots).map_err(|failure| failure.with_hint(roots_hint))?;
        }
        let Some((certificate, key)) = &self.own else { return Ok(()) };
        certificates(certificate)?;
        let cannot = |why: String| {
            Failure::permanent(format!("cannot use the key `{}`: {why}", text::path(key)))
        };
        let none = |error: pem::Error| {
            cannot(format!("it holds no key in PEM without a passphrase ({error})"))
        };
        let key = PrivateKeyDer::from_pem_file(key).map_err(none)?;
        let usable = rustls::crypto::ring::sign::any_supported_type(&key);
        usable.map(drop).map_err(|error| cannot(sentence(&error.to_string())))
    }
}
