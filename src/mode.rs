//! Who may hold a mutex at the same time.

use std::fmt;
use std::num::NonZeroU32;

/// The most slots that a mutex can have: as many holders must fit into one record.
pub const MAX_SLOTS: u32 = 100;

/// How one holder holds a mutex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// With at most so many others of its kind that the slots suffice for all; one slot is a plain mutex.
    Slots(NonZeroU32),
    /// With any number of others that share.
    Shared,
}

impl Mode {
    /// A plain mutex: nobody else.
    pub const EXCLUSIVE: Self = Self::Slots(NonZeroU32::MIN);

    /// Whether somebody may come in this mode to those who hold the mutex in the modes `others`. Where they think
    /// differently of the number of slots, the smallest number counts, because each of them relies on its own.
    pub fn joins(self, others: &[Self]) -> bool {
        let Self::Slots(slots) = self else { return others.iter().all(|other| *other == Self::Shared) };
        let limits = others.iter().map(|other| match other {
            Self::Slots(slots) => slots.get() as usize,
            Self::Shared => 0,
        });
        let limit = limits.fold(slots.get() as usize, usize::min);
        others.len() < limit
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

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::Mode;

    fn slots(number: u32) -> Mode {
        Mode::Slots(NonZeroU32::new(number).expect("a number of slots"))
    }

    #[test]
    fn nobody_joins_the_holder_of_a_plain_mutex() {
        for mode in [Mode::EXCLUSIVE, slots(3), Mode::Shared] {
            assert!(mode.joins(&[]), "{mode}");
            assert!(!mode.joins(&[Mode::EXCLUSIVE]), "{mode}");
        }
    }

    #[test]
    fn the_smallest_number_of_slots_counts() {
        assert!(slots(3).joins(&[slots(3), slots(3)]));
        assert!(!slots(3).joins(&[slots(3); 3]));
        assert!(!slots(2).joins(&[slots(3), slots(3)]));
        assert!(!slots(9).joins(&[slots(9), slots(2)]));
    }

    #[test]
    fn sharers_exclude_all_others() {
        assert!(Mode::Shared.joins(&[Mode::Shared; 9]));
        assert!(!slots(9).joins(&[Mode::Shared]));
        assert!(!Mode::Shared.joins(&[slots(9)]));
        assert!(!Mode::EXCLUSIVE.joins(&[Mode::Shared]));
    }
}
