//! Names of locks as names of objects. They are made of letters, digits and `-._~` only, which are the same in every URL, whoever
//! decodes it how often: so no server and no proxy takes two of them for one.

use std::fmt::Write as _;

/// What all of them end with. Meltano's own states, in the same place, are in directories.
const END: &str = ".lock";

/// Stands before the two digits of a byte that is not kept as it is.
const ESCAPE: char = '~';

/// The object of the lock with this key.
pub fn encode(key: &str) -> String {
    let mut name = String::with_capacity(key.len() + END.len());
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._".contains(&byte) {
            name.push(char::from(byte));
        } else {
            // Writing into a string does not fail.
            let _ = write!(name, "{ESCAPE}{byte:02X}");
        }
    }
    name + END
}

/// The key of the lock whose object this is; `None` if it is none of a lock.
pub fn decode(name: &str) -> Option<String> {
    let mut parts = name.strip_suffix(END)?.split(ESCAPE);
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend(&part.as_bytes()[2..]);
    }
    let key = String::from_utf8(bytes).ok()?;
    // What another program has named alike would be another lock's.
    (encode(&key) == name).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::{decode, encode};

    #[test]
    fn every_name_has_an_object_of_its_own_and_is_found_by_it() {
        let keys = ["", ".", "..", "a", "A", "a b", "a/b", "a%2Fb", "a~2Fb", "a+b", "ä", "\u{1}", "x.lock", "🔒", "a?b#c"];
        let names: std::collections::HashSet<_> = keys.iter().map(|key| encode(key)).collect();
        assert_eq!(names.len(), keys.len());
        for key in keys {
            let name = encode(key);
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "-._~".contains(c)), "{name}");
            assert!(![".", ".."].contains(&name.as_str()));
            assert_eq!(decode(&name).as_deref(), Some(key));
        }
    }

    #[test]
    fn other_objects_are_no_locks() {
        for name in
            ["a", "a.lock.bak", "a b.lock", "~.lock", "~2.lock", "~2f.lock", "~41.lock", "~zz.lock", "~é.lock", "~FF.lock"]
        {
            assert_eq!(decode(name), None, "{name}");
        }
    }
}
