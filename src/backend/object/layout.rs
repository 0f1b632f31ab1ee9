//! What objects are called, and what they say:
//!
//! ```text
//! serializer-lock 1
//! number=1763798400123
//! nonce=5f0c…
//! state=held
//!
//! the value
//! ```
//!
//! The nonce makes each body different. S3's ETags are hashes of bodies, and an ETag that came back would let a
//! write succeed that was meant for an earlier state.
//!
//! Names consist of letters, digits and `-._~`, which every server and proxy decodes alike.

use std::fmt::Write as _;

use crate::backend::failure::Failure;
use crate::record::MAX_BYTES;

const MAGIC: &str = "serializer-lock ";

/// The format that is written.
const FORMAT: u32 = 1;

/// The largest object: a value, and the lines above it.
pub const MAX_BODY: usize = MAX_BYTES + 1024;

/// The end of all names. Meltano's own states, in the same place, are in directories.
const END: &str = ".lock";

/// Stands before the two digits of a byte that is not kept as it is.
const ESCAPE: char = '~';

/// The state of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// It exists, and whether the store obeys conditions has not been verified with it.
    Unverified,
    /// It has no value.
    Free,
    /// It has this value.
    Held(String),
}

/// An object, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// The state's number.
    pub number: u64,
    /// The state.
    pub content: Content,
}

impl Body {
    /// The text to store. `nonce` has to be different each time.
    pub fn to_text(&self, nonce: &str) -> String {
        let (state, value) = match &self.content {
            Content::Unverified => ("new", ""),
            Content::Free => ("free", ""),
            Content::Held(value) => ("held", value.as_str()),
        };
        format!("{MAGIC}{FORMAT}\nnumber={}\nnonce={nonce}\nstate={state}\n\n{value}", self.number)
    }

    /// Reads an object.
    ///
    /// # Errors
    /// When another program has written it, or a newer version of this one.
    pub fn parse(bytes: &[u8]) -> Result<Self, Failure> {
        let text = std::str::from_utf8(bytes).map_err(|_| foreign())?;
        let (first, rest) = text.split_once('\n').ok_or_else(foreign)?;
        let format = first.strip_prefix(MAGIC).and_then(|format| format.parse::<u32>().ok());
        if format.ok_or_else(foreign)? != FORMAT {
            let failure = Failure::permanent("a newer version of this program has written it");
            return Err(failure.with_hint("use that version here, too"));
        }
        let (head, value) = rest.split_once("\n\n").ok_or_else(foreign)?;
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let number = field("number").and_then(|number| number.parse().ok()).ok_or_else(foreign)?;
        let content = match field("state") {
            Some("new") => Content::Unverified,
            Some("free") => Content::Free,
            Some("held") => Content::Held(value.to_owned()),
            _ => return Err(foreign()),
        };
        Ok(Self { number, content })
    }
}

/// Another program has written the object.
pub fn foreign() -> Failure {
    Failure::permanent("what is stored there is not a lock of this program")
        .with_hint("name another prefix in the address; or delete the object if it is not needed")
}

/// The name of the object with this stored name.
pub fn encode(stored: &str) -> String {
    let mut name = String::with_capacity(stored.len() + END.len());
    for byte in stored.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._".contains(&byte) {
            name.push(char::from(byte));
        } else {
            // Writing into a string does not fail.
            let _ = write!(name, "{ESCAPE}{byte:02X}");
        }
    }
    name + END
}

/// The stored name of an object; `None` for an object of another program.
pub fn decode(name: &str) -> Option<String> {
    let mut parts = name.strip_suffix(END)?.split(ESCAPE);
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend(&part.as_bytes()[2..]);
    }
    let stored = String::from_utf8(bytes).ok()?;
    (encode(&stored) == name).then_some(stored)
}

#[cfg(test)]
mod tests {
    use super::{Body, Content, decode, encode};

    #[test]
    fn a_body_reads_back_as_it_was_written() {
        let held = |text: &str| Content::Held(text.to_owned());
        for content in [Content::Unverified, Content::Free, held(""), held("1\n2\nstate=free\n\nx")] {
            let body = Body { number: u64::MAX, content };
            let read = Body::parse(body.to_text("n").as_bytes());
            assert_eq!(read.map_err(|failure| failure.why), Ok(body));
        }
    }

    #[test]
    fn an_object_of_another_program_is_refused() {
        let others: [&[u8]; 8] = [
            b"",
            b"\n",
            b"{\"completed\": {}}",
            b"\xff\n",
            b"serializer-lock x\n\n",
            b"serializer-lock 1\nnumber=1\nstate=held\n",
            b"serializer-lock 1\nnumber=-1\nstate=free\n\n",
            b"serializer-lock 1\nnumber=1\nstate=odd\n\n",
        ];
        for text in others {
            let read = Body::parse(text);
            assert!(read.is_err_and(|failure| failure.why.contains("not a lock")), "{text:?}");
        }
        let newer = Body::parse(b"serializer-lock 2\nwhatever");
        assert!(newer.is_err_and(|failure| failure.why.contains("newer")));
    }

    #[test]
    fn every_name_has_an_object_of_its_own_and_is_found_by_it() {
        let names = ["", ".", "..", "a", "A", "a b", "a/b", "a%2Fb", "a~2Fb", "a+b", "ä", "\u{1}", "x.lock", "🔒", "a?b#c"];
        let encoded: std::collections::HashSet<_> = names.iter().map(|name| encode(name)).collect();
        assert_eq!(encoded.len(), names.len());
        for stored in names {
            let name = encode(stored);
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "-._~".contains(c)), "{name}");
            assert!(![".", ".."].contains(&name.as_str()));
            assert_eq!(decode(&name).as_deref(), Some(stored));
        }
    }

    #[test]
    fn objects_of_other_programs_have_other_names() {
        for name in
            ["a", "a.lock.bak", "a b.lock", "~.lock", "~2.lock", "~2f.lock", "~41.lock", "~zz.lock", "~é.lock", "~FF.lock"]
        {
            assert_eq!(decode(name), None, "{name}");
        }
    }
}
