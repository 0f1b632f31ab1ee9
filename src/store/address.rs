//! Which store locks live in, and how it is spoken to. Its address may hold a password, which is
//! never shown.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode, percent_encode};
use serde::{Deserialize, Serialize};

/// What an address of a directory says by its code.
const IN_PATHS: &AsciiSet = &CONTROLS.add(b'%').add(b'?').add(b'#').add(b' ');

/// The kinds of stores. A directory is on a file system that hosts share; S3 is also what speaks
/// its protocol.
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

/// Each with its name in addresses, the cargo feature that it requires, and other spellings.
const SCHEMES: [(Scheme, &str, &str, &[&str]); 7] = [
    (Scheme::Directory, "file", "file", &[]),
    (Scheme::Postgres, "postgres", "postgres", &["postgresql", "cockroachdb"]),
    (Scheme::Mysql, "mysql", "mysql", &["mariadb"]),
    (Scheme::Dynamodb, "dynamodb", "dynamodb", &[]),
    (Scheme::S3, "s3", "object-store", &[]),
    // The second one is what Meltano's state backend takes.
    (Scheme::Azure, "az", "object-store", &["azure"]),
    (Scheme::Gcs, "gs", "object-store", &[]),
];

impl Scheme {
    /// All kinds.
    pub fn all() -> impl Iterator<Item = Self> {
        SCHEMES.iter().map(|(scheme, ..)| *scheme)
    }

    /// Its name in addresses.
    pub fn name(self) -> &'static str {
        SCHEMES[self as usize].1
    }

    /// The cargo feature that it requires, if it requires one.
    pub fn feature(self) -> &'static str {
        SCHEMES[self as usize].2
    }

    /// The scheme of this text before `://`. SQLAlchemy writes `dialect+driver`; the driver does
    /// not matter.
    fn of(text: &str) -> Option<Self> {
        let name = text.split('+').next()?.to_ascii_lowercase();
        let known = SCHEMES
            .iter()
            .find(|(_, own, _, others)| *own == name || others.contains(&name.as_str()));
        known.map(|(scheme, ..)| *scheme)
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

/// A text that was given as an address. It may hold a password, so it is not shown.
#[derive(Clone)]
pub struct Unread(String);

impl From<&str> for Unread {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl Unread {
    /// Reads it.
    pub fn read(&self) -> Result<StoreUrl, String> {
        StoreUrl::parse(&self.0)
    }
}

/// The address of a store.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreUrl {
    scheme: Scheme,
    /// What stands behind `://`.
    rest: String,
}

impl StoreUrl {
    /// Reads an address.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = "expected an address such as postgres://user@host/database, \
                        mysql://user@host/database, dynamodb://TABLE, s3://bucket/prefix or \
                        file:///shared/directory";
        let Some((scheme, rest)) = text.trim().split_once("://") else {
            let is_path = text.trim_start().starts_with('/');
            return Err(if is_path {
                "a directory that hosts share is named as `file:///…`"
            } else {
                expected
            }
            .to_owned());
        };
        if scheme.split('+').next().is_some_and(|dialect| dialect.eq_ignore_ascii_case("sqlite")) {
            return Err("SQLite is a file of one machine, for which the lock file is made: leave \
                        the store out, and set `SERIALIZER_DIR` to a directory of the project"
                .to_owned());
        }
        let is_word =
            !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+');
        let unknown = || {
            if is_word {
                format!("`{scheme}://` is no store that is known; {expected}")
            } else {
                expected.to_owned()
            }
        };
        let scheme = Scheme::of(scheme).ok_or_else(unknown)?;
        if rest.chars().any(char::is_control) {
            return Err("the address contains a control character".to_owned());
        }
        Ok(Self { scheme, rest: rest.to_owned() })
    }

    /// That of a directory.
    pub fn of_directory(path: &Path) -> Self {
        let rest = percent_encode(path.as_os_str().as_bytes(), IN_PATHS).to_string();
        Self { scheme: Scheme::Directory, rest }
    }

    /// The directory, if it is one.
    pub fn directory(&self) -> Option<PathBuf> {
        let path = self.rest.split_once('?').map_or(self.rest.as_str(), |(path, _)| path);
        // RFC 8089: this host's files.
        let path = path.strip_prefix("localhost").unwrap_or(path);
        (self.scheme == Scheme::Directory)
            .then(|| PathBuf::from(OsString::from_vec(percent_decode(path.as_bytes()).collect())))
    }

    /// Another directory, with the same options.
    pub fn in_directory(&self, path: &Path) -> Self {
        let options = self.rest.find('?').map_or("", |at| &self.rest[at..]);
        let Self { scheme, rest } = Self::of_directory(path);
        Self { scheme, rest: rest + options }
    }

    /// Which kind of store it is.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// What stands behind `://`.
    pub fn place(&self) -> &str {
        &self.rest
    }
}

/// Without user, password and options.
impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.scheme == Scheme::Directory {
            return write!(f, "{}://{}", self.scheme.name(), self.rest);
        }
        // A password may hold `/`, `?` and `@`, although it should not. If an `@` follows a `?`,
        // its end is not certain.
        let (place, options) = self.rest.split_once(['?', '#']).unwrap_or((&self.rest, ""));
        let place = match place.rsplit_once('@') {
            _ if options.contains('@') => "…",
            Some((_, place)) => place,
            // Without a host, what looks like its port may be a password.
            None if !has_ports_only(place) => "…",
            None => place,
        };
        write!(f, "{}://{place}", self.scheme.name())?;
        // The same table in two regions is two tables.
        match options
            .split('&')
            .find_map(|option| option.strip_prefix("region="))
            .filter(|_| place != "…")
        {
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
