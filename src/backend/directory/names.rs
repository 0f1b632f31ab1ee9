//! The names of locks as names of files.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode, percent_encode};
use sha2::{Digest, Sha256};

use crate::backend::seam::{Key, Kind};

/// The longest name of a file, in bytes; most file systems take 255.
const MAX_NAME: usize = 240;

/// The characters that a file's name cannot contain, or that have a special meaning in it.
const ENCODED: &AsciiSet = &CONTROLS.add(b'/').add(b'%');

/// The name of a register's file.
pub fn stored_name(key: &Key) -> OsString {
    match key.kind {
        Kind::Lock if Kind::is_reserved(&key.name) => hashed(&key.name, &file_name(&key.name)),
        Kind::Lock => file_name(&key.name),
        kind => {
            let mut name = OsString::from(prefix(kind));
            name.push(file_name(&key.name));
            name
        }
    }
}

/// The name of the register of this kind to which a file belongs; `None` if it belongs to none.
pub fn name_of(kind: Kind, file: &OsStr) -> Option<OsString> {
    let rest = file.as_bytes().strip_prefix(prefix(kind).as_bytes())?;
    let name = lock_name(OsStr::from_bytes(rest))?;
    (kind != Kind::Lock || !Kind::is_reserved(&name)).then_some(name)
}

fn prefix(kind: Kind) -> String {
    percent_encode(kind.prefix().as_bytes(), ENCODED).to_string()
}

fn hashed(name: &OsStr, encoded: &OsStr) -> OsString {
    let hash: String = Sha256::digest(name.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let shown: String = encoded.to_string_lossy().chars().filter(|one| *one != '%').take(30).collect();
    format!("{shown}~{hash}").into()
}

/// The name of a lock's file: that of the lock or, if that is too long, its beginning and a hash.
/// The short name leads to the same file.
fn file_name(name: &OsStr) -> OsString {
    let bytes = name.as_bytes();
    // `.` and `..` are not names of files, and hidden files are easily overlooked.
    let (dot, rest) = bytes.strip_prefix(b".").map_or(("", bytes), |rest| ("%2E", rest));
    let mut encoded = dot.as_bytes().to_vec();
    for piece in rest.split_inclusive(|byte| !byte.is_ascii()) {
        // Letters outside ASCII are kept.
        let (ascii, other) = piece.split_at(piece.iter().take_while(|byte| byte.is_ascii()).count());
        encoded.extend(percent_encode(ascii, ENCODED).to_string().into_bytes());
        encoded.extend(other);
    }
    if bytes.is_empty() || encoded.len() > MAX_NAME {
        return hashed(name, OsStr::from_bytes(&encoded));
    }
    OsString::from_vec(encoded)
}

/// The name of the lock to which a file belongs; `None` if it belongs to none.
fn lock_name(file: &OsStr) -> Option<OsString> {
    let name = OsString::from_vec(percent_decode(file.as_bytes()).collect());
    (file_name(&name) == file).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::{Key, Kind, MAX_NAME, file_name, lock_name, name_of, stored_name};

    #[test]
    fn different_names_are_different_files_that_lead_back_to_them() {
        let long = "é".repeat(3000);
        let dots = [b'.'; 300];
        let names: [&[u8]; 14] = [
            &dots,
            b"a",
            b"A",
            b"",
            b".",
            b"..",
            b"../a",
            b"a/b",
            b"a%2Fb",
            b"\xff",
            b"\n",
            "é".as_bytes(),
            long.as_bytes(),
            &long.as_bytes()[2..],
        ];
        let files: HashSet<_> = names.iter().map(|name| file_name(OsStr::from_bytes(name))).collect();
        assert_eq!(files.len(), names.len(), "{files:?}");
        for name in names {
            let file = file_name(OsStr::from_bytes(name));
            let listed = lock_name(&file).expect("it is one of a lock");
            assert_eq!(file_name(&listed), file, "{listed:?}");
            assert!(listed.as_bytes() == name || name.len() > MAX_NAME || name.is_empty(), "{listed:?}");
        }
        for file in files {
            let bytes = file.as_bytes();
            assert!(bytes.len() <= MAX_NAME && !bytes.starts_with(b".") && !bytes.contains(&b'/'), "{file:?}");
        }
    }

    #[test]
    fn each_kind_has_files_of_its_own() {
        let kinds = [Kind::Lock, Kind::Once, Kind::Schedule, Kind::Session];
        let long = "é".repeat(300);
        let names = ["a", ".a", "once/a", "once%2Fa", "", &long];
        let keys = kinds.iter().flat_map(|kind| names.map(|name| Key { kind: *kind, name: name.into() }));
        let mut files = HashSet::new();
        for key in keys {
            let file = stored_name(&key);
            assert!(file.len() <= 255 && !file.as_bytes().starts_with(b"."), "{file:?}");
            let owners: Vec<_> = kinds.iter().filter_map(|kind| Some((*kind, name_of(*kind, &file)?))).collect();
            assert_eq!(owners.len(), 1, "{key:?}: {owners:?}");
            let (kind, name) = owners[0].clone();
            assert_eq!((kind, stored_name(&Key { kind, name })), (key.kind, file.clone()));
            assert!(files.insert(file), "{key:?}");
        }
    }

    #[test]
    fn a_foreign_file_name_is_not_a_locks() {
        for file in ["%41", "%2e", "a%2fb", ".hidden", "%", "%zz"] {
            assert_eq!(lock_name(OsStr::new(file)), None, "{file}");
        }
    }

    #[test]
    fn usual_names_stay_what_they_are() {
        for name in ["serializer.lck", "dbt run é", "a~b"] {
            assert_eq!(file_name(OsStr::new(name)), name);
        }
    }
}
