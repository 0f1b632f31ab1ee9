//! Which store locks live in. Its address may hold a password, which is never shown.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode, percent_encode};
use serde::{Deserialize, Serialize};

/// What an address of a directory says by its code.
const IN_PATHS: &AsciiSet = &CONTROLS.add(b'%').add(b'?').add(b'#').add(b' ');

const EXPECTED: &str = "expected an address such as postgres://user@host/database, \
                        mysql://user@host/database, dynamodb://TABLE, s3://bucket/prefix or \
                        file:///shared/directory; locks of this machine alone need no store, and \
                        `SERIALIZER_DIR` names their directory";

/// The kinds of stores. S3 is also what speaks its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Scheme {
    Directory,
    Postgres,
    Mysql,
    Dynamodb,
    S3,
    Azure,
    Gcs,
}

/// Each with its names in addresses, of which messages use the first.
const SCHEMES: [(Scheme, &[&str]); 7] = [
    (Scheme::Directory, &["file"]),
    (Scheme::Postgres, &["postgres", "postgresql", "cockroachdb"]),
    (Scheme::Mysql, &["mysql", "mariadb"]),
    (Scheme::Dynamodb, &["dynamodb"]),
    (Scheme::S3, &["s3"]),
    // The second one is what Meltano's state backend takes.
    (Scheme::Azure, &["az", "azure"]),
    (Scheme::Gcs, &["gs"]),
];

impl Scheme {
    /// Its name in addresses.
    pub fn name(self) -> &'static str {
        SCHEMES[self as usize].1[0]
    }
}

/// How to use a store. Serialized, it holds the password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreSettings {
    /// Where it is.
    pub url: StoreUrl,
    /// A file with the password, if the address has none.
    pub password_file: Option<PathBuf>,
    /// How long to wait for a connection, and for each answer.
    pub timeout: Duration,
}

/// The address of a store.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreUrl {
    /// Which kind of store it is.
    pub scheme: Scheme,
    /// What stands behind `://`.
    pub rest: String,
}

impl StoreUrl {
    /// Reads an address.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, rest) = text.trim().split_once("://").ok_or(EXPECTED)?;
        // SQLAlchemy writes `dialect+driver`; the driver does not matter.
        let dialect = name.split('+').next().unwrap_or("").to_ascii_lowercase();
        let known = SCHEMES.iter().find(|(_, names)| names.contains(&dialect.as_str()));
        let is_word = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '+');
        let Some((scheme, _)) = known else {
            // What is not a word may be a part of a password.
            let name = if is_word(name) { name } else { "…" };
            return Err(format!("unsupported store `{name}://`; {EXPECTED}"));
        };
        if rest.chars().any(char::is_control) {
            return Err("the address contains a control character".to_owned());
        }
        Ok(Self { scheme: *scheme, rest: rest.to_owned() })
    }

    /// Reads a flag. A refusal is a value, too: it would be shown with the flag's value otherwise.
    pub fn of_flag(text: &str) -> Result<Result<Self, String>, Infallible> {
        Ok(Self::parse(text))
    }

    /// That of a directory.
    pub fn of_directory(path: &Path) -> Self {
        let rest = percent_encode(path.as_os_str().as_bytes(), IN_PATHS).to_string();
        Self { scheme: Scheme::Directory, rest }
    }

    /// The directory, if it is one.
    pub fn directory(&self) -> Option<PathBuf> {
        let path = self.rest.split('?').next().unwrap_or("");
        // RFC 8089: this host's files.
        let path = path.strip_prefix("localhost").unwrap_or(path);
        let path = || OsString::from_vec(percent_decode(path.as_bytes()).collect()).into();
        (self.scheme == Scheme::Directory).then(path)
    }

    /// Another directory, with the same options.
    pub fn in_directory(&self, path: &Path) -> Self {
        let options = self.rest.find('?').map_or("", |at| &self.rest[at..]);
        let Self { scheme, rest } = Self::of_directory(path);
        Self { scheme, rest: rest + options }
    }
}

/// Without user, password and options.
impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.scheme.name();
        if self.scheme == Scheme::Directory {
            // What is not a path may be a login.
            let is_path = self.rest.starts_with('/') || !self.rest.contains('@');
            return write!(f, "{name}://{}", if is_path { &self.rest } else { "…" });
        }
        // A password may hold `/`, `?` and `@`, although it should not. If an `@` follows a `?`,
        // its end is not certain. Without a host, what looks like its port may be a password.
        let (place, options) = self.rest.split_once(['?', '#']).unwrap_or((&self.rest, ""));
        let (login, place) = place.rsplit_once('@').unwrap_or(("", place));
        if options.contains('@') || (login.is_empty() && !has_ports_only(place)) {
            return write!(f, "{name}://…");
        }
        write!(f, "{name}://{place}")?;
        // The same table in two regions is two tables.
        match options.split('&').find_map(|option| option.strip_prefix("region=")) {
            Some(region) if self.scheme == Scheme::Dynamodb => write!(f, "?region={region}"),
            _ => Ok(()),
        }
    }
}

/// Whether what stands behind colons, if anything does, are numbers of ports.
fn has_ports_only(place: &str) -> bool {
    let hosts = place.split('/').next().unwrap_or("").split(',');
    hosts.map(|host| host.rsplit_once(']').map_or(host, |(_, rest)| rest)).all(|host| {
        let port = host.split_once(':').map_or("", |(_, port)| port);
        port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit())
    })
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
