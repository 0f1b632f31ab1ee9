//! The names of locks as keys of a store.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::directory::names::sha256;
use super::seam::{Key, Kind};

/// A name that opens the register with this stored name, if it is one of `kind`, and behind
/// `after`.
#[cfg(any(feature = "dynamodb", feature = "object-store"))]
pub fn name_after(stored: &str, kind: Kind, after: Option<&OsStr>) -> Option<std::ffi::OsString> {
    let found =
        Kind::PREFIXED.iter().find_map(|kind| Some((*kind, stored.strip_prefix(kind.prefix())?)));
    let (found, name) = found.unwrap_or((Kind::Lock, stored));
    (found == kind && after.is_none_or(|after| OsStr::new(name) > after)).then(|| name.into())
}

impl Key {
    /// The name of its register in a store: the prefix of its kind and `key` of its name. A lock
    /// whose name begins with such a prefix is stored under a hashed form that does not.
    pub fn stored_name(&self) -> String {
        let name = key(&self.name);
        if self.kind != Kind::Lock {
            return format!("{}{name}", self.kind.prefix());
        }
        if Kind::is_reserved(&self.name) {
            return hashed(&self.name).replacen('/', "_", 1);
        }
        name
    }
}

/// The longest name that is kept as it is, in bytes: what every engine can index.
const MAX_NAME: usize = 200;

/// A lock's name as the store has it: itself, or if that is too long or no text, its beginning and
/// a hash.
pub fn key(name: &OsStr) -> String {
    let bytes = name.as_bytes();
    if let Some(text) = name.to_str()
        && bytes.len() <= MAX_NAME
        && !text.contains('\0')
    {
        return text.to_owned();
    }
    hashed(name)
}

/// The beginning of a name and its hash.
fn hashed(name: &OsStr) -> String {
    let shown: String = name.to_string_lossy().chars().filter(|c| *c != '\0').take(30).collect();
    format!("{shown}~{}", sha256(name.as_bytes()))
}
