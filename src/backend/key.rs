//! The names of locks as keys of a store.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use sha2::{Digest, Sha256};

/// The longest name that is kept as it is, in bytes: what every engine can index.
const MAX_NAME: usize = 200;

/// A lock's name as the store has it: itself, or if that is too long or no text, its beginning and a hash.
pub fn key(name: &OsStr) -> String {
    let bytes = name.as_bytes();
    if let Some(text) = name.to_str()
        && bytes.len() <= MAX_NAME
        && !text.contains('\0')
    {
        return text.to_owned();
    }
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let shown: String = name.to_string_lossy().chars().filter(|c| *c != '\0').take(30).collect();
    format!("{shown}~{hash}")
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::{MAX_NAME, key};

    #[test]
    fn different_names_have_different_keys_that_fit() {
        let long = "é".repeat(5000);
        let names: Vec<Vec<u8>> = vec![
            b"a".to_vec(),
            b"A".to_vec(),
            b"a ".to_vec(),
            "ä".as_bytes().to_vec(),
            b"\xff".to_vec(),
            b"\xfe".to_vec(),
            b"a\0".to_vec(),
            long.as_bytes().to_vec(),
            long.as_bytes()[2..].to_vec(),
            Vec::new(),
        ];
        let keys: Vec<String> = names.iter().map(|name| key(OsStr::from_bytes(name))).collect();
        assert!(keys.iter().all(|key| key.len() <= MAX_NAME), "{keys:?}");
        let different: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(different.len(), names.len(), "{keys:?}");
    }
}
