//! The names of registers as names of files.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::{fs, io};

use percent_encoding::percent_decode;
use sha2::{Digest, Sha256};

use crate::store::seam::{Key, Kind};

/// The longest name of a file, in bytes; most file systems take 255.
const MAX_NAME: usize = 240;

pub fn stored_name(key: &Key) -> OsString {
    if key.kind == Kind::Lock && Kind::is_reserved(&key.name) {
        return OsString::from_vec(hashed(&key.name));
    }
    OsString::from_vec([encoded(key.kind.prefix().as_bytes()), file_name(&key.name)].concat())
}

/// The name of the register of this kind to which a file belongs; `None` if it belongs to none.
pub fn name_of(kind: Kind, file: &OsStr) -> Option<OsString> {
    let rest = file.as_bytes().strip_prefix(&*encoded(kind.prefix().as_bytes()))?;
    let name = OsString::from_vec(percent_decode(rest).collect());
    let is_foreign = kind == Kind::Lock && Kind::is_reserved(&name);
    (!is_foreign && file_name(&name) == rest).then_some(name)
}

/// The registers of regular files in a directory, after `after`, and the names of the files.
pub fn listed(
    directory: &Path,
    after: Option<&OsStr>,
    name_of: impl Fn(&OsStr) -> Option<OsString>,
) -> io::Result<Vec<(OsString, OsString)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name =
            name_of(&entry.file_name()).filter(|name| after.is_none_or(|after| **name > *after));
        if let Some(name) = name.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_file())) {
            files.push((name, entry.file_name()));
        }
    }
    files.sort();
    Ok(files)
}

/// The name of a lock's file: that of the lock or, if that is too long, with a hash.
fn file_name(name: &OsStr) -> Vec<u8> {
    let encoded = encoded(name.as_bytes());
    if encoded.is_empty() || encoded.len() > MAX_NAME { hashed(name) } else { encoded }
}

/// Without the characters that a file's name cannot have, or that have a meaning in it. `.` and
/// `..` are not names of files, and hidden files are easily overlooked.
fn encoded(name: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::new();
    for (at, byte) in name.iter().enumerate() {
        match byte {
            b'/' | b'%' | 0..=0x1f | 0x7f => encoded.extend(format!("%{byte:02X}").bytes()),
            b'.' if at == 0 => encoded.extend(b"%2E"),
            _ => encoded.push(*byte),
        }
    }
    encoded
}

fn hashed(name: &OsStr) -> Vec<u8> {
    let encoded = encoded(name.as_bytes());
    let shown = String::from_utf8_lossy(&encoded);
    let shown: String = shown.chars().filter(|one| *one != '%').take(30).collect();
    format!("{shown}~{}", sha256(name.as_bytes())).into_bytes()
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
