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
//! The nonce makes each body different: S3's ETags are hashes of bodies, and must not come back.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::record::MAX_BYTES;
use crate::store::failure::Failure;

const MAGIC: &str = "serializer-lock ";

const FORMAT: u32 = 1;

/// The largest object: a value, and the lines above it.
const MAX_BODY: usize = MAX_BYTES + 1024;

/// The end of all names. Meltano's own states, in the same place, are in directories.
const END: &str = ".lock";

/// Every server and proxy decodes the rest alike.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');

pub struct Body {
    pub number: u64,
    pub value: Option<String>,
    /// Whether the store has been verified with it.
    pub is_verified: bool,
}

impl Body {
    /// The text to store. `nonce` has to be different each time.
    pub fn to_text(&self, nonce: &str) -> String {
        let (state, value) = match &self.value {
            Some(value) => ("held", value.as_str()),
            None if self.is_verified => ("free", ""),
            None => ("new", ""),
        };
        format!("{MAGIC}{FORMAT}\nnumber={}\nnonce={nonce}\nstate={state}\n\n{value}", self.number)
    }

    /// Reads an object. It may be another program's, or a newer version's.
    pub fn parse(bytes: &[u8]) -> Result<Self, Failure> {
        let hint = "name another prefix in the address, or delete the object if it is not needed";
        let foreign = || Failure::refused("what is stored there is not a lock record", hint);
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= MAX_BODY);
        let rest = text.and_then(|text| text.strip_prefix(MAGIC)).ok_or_else(foreign)?;
        let (format, rest) = rest.split_once('\n').ok_or_else(foreign)?;
        if format.parse::<u32>().map_err(|_| foreign())? != FORMAT {
            return Err(Failure::of_newer_version());
        }
        let (head, value) = rest.split_once("\n\n").ok_or_else(foreign)?;
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        let number = field("number=").and_then(|number| number.parse().ok()).ok_or_else(foreign)?;
        let (value, is_verified) = match field("state=") {
            Some("new") => (None, false),
            Some("free") => (None, true),
            Some("held") => (Some(value.to_owned()), true),
            _ => return Err(foreign()),
        };
        Ok(Self { number, value, is_verified })
    }
}

/// The name of the object with this stored name.
pub fn encode(stored: &str) -> String {
    utf8_percent_encode(stored, ESCAPED).to_string().replace('%', "~") + END
}

/// The stored name of an object; `None` for an object of another program.
pub fn decode(name: &str) -> Option<String> {
    let escaped = name.strip_suffix(END)?.replace('~', "%");
    let stored = percent_decode_str(&escaped).decode_utf8().ok()?.into_owned();
    (encode(&stored) == name).then_some(stored)
}
