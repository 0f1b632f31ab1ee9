//! What is stored about a lock.

use crate::record::{Entry, Record};
use crate::store::seam::State;

/// The content of a register, as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// The record; `None` for a file that is being made.
    pub record: Option<Record>,
    /// The state of the register. Its text is that of the record.
    pub state: State,
}

impl Stored {
    /// The entries of the record.
    pub fn entries(&self) -> &[Entry] {
        self.record.as_ref().map(Record::entries).unwrap_or_default()
    }

    /// Whether the Python plugin stored it.
    pub fn is_legacy(&self) -> bool {
        self.record.as_ref().is_some_and(Record::is_legacy)
    }
}
