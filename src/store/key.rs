//! The names of registers in a store.

#[cfg(any(feature = "dynamodb", feature = "object-store"))]
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::directory::names::sha256;
use super::seam::{Key, Kind};

/// The longest name that is kept as it is, in bytes: what every engine can index.
const MAX_NAME: usize = 200;

/// A name that opens the register with this stored name, if it is one of `kind`, and behind
/// `after`.
#[cfg(any(feature = "dynamodb", feature = "object-store"))]
pub fn name_after(stored: &str, kind: Kind, after: Option<&OsStr>) -> Option<OsString> {
    let rest = |kind: &Kind| Some((*kind, stored.strip_prefix(kind.prefix())?));
    let (found, name) = Kind::PREFIXED.iter().find_map(rest).unwrap_or((Kind::Lock, stored));
    (found == kind && after.is_none_or(|after| OsStr::new(name) > after)).then(|| name.into())
}

impl Key {
    /// The name of its register in a store: the prefix of its kind, and its name. A name that is
    /// too long or not text is its beginning and a hash, and so is the name of a lock that begins
    /// with such a prefix.
    pub fn stored_name(&self) -> String {
        let prefix = self.kind.prefix();
        let is_reserved = self.kind == Kind::Lock && Kind::is_reserved(&self.name);
        let is_kept = |text: &&str| text.len() <= MAX_NAME && !text.contains('\0') && !is_reserved;
        if let Some(text) = self.name.to_str().filter(is_kept) {
            return format!("{prefix}{text}");
        }
        let hash = sha256(self.name.as_bytes());
        let shown = self.name.to_string_lossy();
        let shown: String = shown.chars().filter(|c| *c != '\0').take(30).collect();
        let shown = if is_reserved { shown.replacen('/', "_", 1) } else { shown };
        format!("{prefix}{shown}~{hash}")
    }
}
