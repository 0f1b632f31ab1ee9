//! What an object says.
//!
//! ```text
//! serializer-lock 1
//! number=1763798400123
//! nonce=5f0c…
//! state=held
//!
//! the record
//! ```
//!
//! No two bodies are equal, because of the nonce: S3's ETags are hashes of bodies, and an ETag that came back would let a write be done
//! that was meant for an earlier state.

use crate::backend::failure::Failure;
use crate::record::MAX_BYTES;

/// What the first line begins with.
const MAGIC: &str = "serializer-lock ";

/// What is written, and understood.
const FORMAT: u32 = 1;

/// No object of ours is larger: a record, and the lines above it.
pub const MAX_BODY: usize = MAX_BYTES + 1024;

/// How the place of a lock is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It was made, and whether the store does as it is told by conditions has not been tried yet.
    New,
    /// Nobody holds the lock.
    Free,
    /// This record is stored.
    Held(String),
}

/// An object, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// The state's number.
    pub number: u64,
    /// What is stored.
    pub state: State,
}

impl Body {
    /// As it is stored. `nonce` is to be different every time.
    pub fn to_text(&self, nonce: &str) -> String {
        let (state, record) = match &self.state {
            State::New => ("new", ""),
            State::Free => ("free", ""),
            State::Held(record) => ("held", record.as_str()),
        };
        format!("{MAGIC}{FORMAT}\nnumber={}\nnonce={nonce}\nstate={state}\n\n{record}", self.number)
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it is none of ours.
    pub fn parse(bytes: &[u8]) -> Result<Self, Failure> {
        let text = std::str::from_utf8(bytes).map_err(|_| foreign())?;
        let (first, rest) = text.split_once('\n').ok_or_else(foreign)?;
        let format: u32 = first.strip_prefix(MAGIC).and_then(|format| format.parse().ok()).ok_or_else(foreign)?;
        if format != FORMAT {
            let failure = Failure::permanent("a newer version of this program has written it");
            return Err(failure.with_hint("use that version here, too"));
        }
        let (head, record) = rest.split_once("\n\n").ok_or_else(foreign)?;
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let number = field("number").and_then(|number| number.parse().ok()).ok_or_else(foreign)?;
        let state = match field("state") {
            Some("new") => State::New,
            Some("free") => State::Free,
            Some("held") => State::Held(record.to_owned()),
            _ => return Err(foreign()),
        };
        Ok(Self { number, state })
    }
}

/// It is something else.
pub fn foreign() -> Failure {
    Failure::permanent("what is stored there is no lock of this program")
        .with_hint("name another prefix in the address; or, if nobody needs it, delete the object")
}

#[cfg(test)]
mod tests {
    use super::{Body, State};

    #[test]
    fn a_body_reads_back_as_it_was_written() {
        for state in [State::New, State::Free, State::Held(String::new()), State::Held("1\n2\nstate=free\n\nx".to_owned())] {
            let body = Body { number: u64::MAX, state };
            assert_eq!(Body::parse(body.to_text("n").as_bytes()).map_err(|failure| failure.why), Ok(body));
        }
    }

    #[test]
    fn what_somebody_else_has_written_is_no_lock() {
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
            assert!(Body::parse(text).is_err_and(|failure| failure.why.contains("no lock")), "{text:?}");
        }
        let newer = Body::parse(b"serializer-lock 2\nwhatever");
        assert!(newer.is_err_and(|failure| failure.why.contains("newer")));
    }
}
