//! Which processes may hold a lock at the same time.

use std::fmt;
use std::num::NonZeroU32;

/// The most slots that a mutex can have: as many holders must fit into one record.
pub const MAX_SLOTS: u32 = 100;

/// How one holder holds a mutex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In one of so many slots; one slot is a plain mutex.
    Slots(NonZeroU32),
    /// With any number of other sharers.
    Shared,
}

impl Mode {
    /// A plain mutex: alone.
    pub const EXCLUSIVE: Self = Self::Slots(NonZeroU32::MIN);

    /// Whether a requester in this mode may join holders in the modes `others`. Of different
    /// numbers of slots, the smallest counts, because each holder relies on its own.
    pub fn joins(self, others: &[Self]) -> bool {
        let Self::Slots(slots) = self else {
            return others.iter().all(|other| *other == Self::Shared);
        };
        let limits = others.iter().map(|other| match other {
            Self::Slots(slots) => slots.get() as usize,
            Self::Shared => 0,
        });
        let limit = limits.fold(slots.get() as usize, usize::min);
        others.len() < limit
    }
}

impl Default for Mode {
    fn default() -> Self {
        Self::EXCLUSIVE
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shared => f.write_str("shared"),
            Self::Slots(slots) if slots.get() == 1 => f.write_str("exclusive"),
            Self::Slots(slots) => write!(f, "one of {slots} slots"),
        }
    }
}
