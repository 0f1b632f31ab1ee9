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

/// The name of a register's file.
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

/// The regular files in a directory with a name that belongs to a register, after `after`: the
/// register's name, and the file's.
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

/// The name of a lock's file: that of the lock or, if that is too long, its beginning and a hash.
/// The short name leads to the same file.
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

/// The SHA-256 of some bytes, in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::{Key, Kind, MAX_NAME, name_of, stored_name};

    #[test]
    fn each_register_has_a_file_of_its_own_that_leads_back_to_it() {
        let long = "é%".repeat(150);
        let dots = [b'.'; 300];
        let names: [&[u8]; 18] = [
            b"a",
            b"A",
            b".a",
            b"once/a",
            b"once%2Fa",
            b"",
            b".",
            b"..",
            b"../a",
            b"a/b",
            b"a%2Fb",
            b"a~b",
            b"\xff",
            b"\n",
            "dbt run é".as_bytes(),
            &dots,
            long.as_bytes(),
            &long.as_bytes()[3..],
        ];
        let mut files = HashSet::new();
        let kinds = [Kind::Lock, Kind::Once, Kind::Schedule, Kind::Session];
        for (kind, name) in
            kinds.iter().flat_map(|kind| names.map(|name| (*kind, OsStr::from_bytes(name))))
        {
            let file = stored_name(&Key { kind, name: name.to_owned() });
            let bytes = file.as_bytes();
            assert!(
                bytes.len() <= 255 && !bytes.starts_with(b".") && !bytes.contains(&b'/'),
                "{file:?}"
            );
            let owners: Vec<_> =
                kinds.iter().filter_map(|kind| Some((*kind, name_of(*kind, &file)?))).collect();
            let [(found, listed)] = &owners[..] else { panic!("{name:?}: {owners:?}") };
            let is_short = name.len() > MAX_NAME
                || name.is_empty()
                || kind == Kind::Lock && Kind::is_reserved(name);
            assert!(*found == kind && (is_short || listed == name), "{listed:?}");
            assert_eq!(stored_name(&Key { kind, name: listed.clone() }), file);
            assert!(files.insert(file), "{kind:?} {name:?}");
        }
    }

    #[test]
    fn usual_names_stay_what_they_are_and_a_foreign_file_is_not_a_locks() {
        for name in ["serializer.lck", "dbt run é", "a~b"] {
            assert_eq!(stored_name(&Key::lock(OsStr::new(name))), name);
        }
        for file in ["%41", "%2e", "a%2fb", ".hidden", "%", "%zz"] {
            assert_eq!(name_of(Kind::Lock, OsStr::new(file)), None, "{file}");
        }
    }
}
