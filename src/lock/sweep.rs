//! Removing registers that are not used any more.

use std::time::Duration;

use super::register::Register;
use crate::store::seam::{Key, State};
use crate::sys::clock::{millis, since_1970};
use crate::sys::locked;
use crate::sys::random::fill_random;

/// How many unused registers a release removes from each page at most, which bounds its duration.
const MAX_REMOVED: usize = 50;

impl Register {
    /// Removes some registers that were released longer than `age` ago. Their numbers, which begin
    /// as times, tell the age. Best effort, and safe at any moment: a removal is conditional on the
    /// released state, and the next number is a later time.
    pub fn remove_unused(&mut self, age: Duration) {
        let (kind, mut store) = (self.key.kind, locked(&self.store));
        if store.expires() {
            return;
        }
        // The page behind this name, and the first one: names with a date go out of use in order.
        for after in [Some(&*self.key.name), None] {
            let Ok(page) = store.list(kind, after) else { return };
            let is_unused = |state: &State| {
                let now = state.now.unwrap_or_else(since_1970);
                let is_old = state.number.saturating_add(millis(age)) < now;
                state.version.is_some() && state.value.is_none() && is_old
            };
            let unused = page.entries.into_iter().filter(|(_, state)| is_unused(state));
            for (name, state) in unused.take(MAX_REMOVED) {
                if let Err(failure) = store.purge(&Key { kind, name }, &state) {
                    // Without the right to delete, they stay.
                    tracing::debug!("cannot remove an unused lock: {}", failure.why);
                    return;
                }
            }
        }
    }

    /// Whether this release is the one in 64, chosen at random, that removes unused registers.
    pub fn is_sweep_due(&self) -> bool {
        let mut byte = [0_u8; 1];
        self.store().counts() && fill_random(&mut byte).is_ok() && byte[0] % 64 == 0
    }
}
