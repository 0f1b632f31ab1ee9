//! Removing registers that are not used any more.

use std::time::Duration;

use super::register::{Register, lock};
use crate::store::seam::{Key, State};
use crate::sys::clock::since_1970;
use crate::sys::random::fill_random;

/// How many unused registers a release removes from each page at most, which bounds its duration.
const MAX_REMOVED: usize = 50;

impl Register {
    /// Whether this release is the one in 64, chosen at random, that removes unused registers.
    pub fn is_sweep_due(&self) -> bool {
        let mut byte = [0_u8; 1];
        lock(&self.store).counts() && fill_random(&mut byte).is_ok() && byte[0] % 64 == 0
    }

    /// Removes some registers that were released longer than `age` ago. Their numbers, which begin
    /// as times, tell the age. Best effort, and safe at any moment: a removal is conditional on the
    /// released state, and the next number is a later time.
    pub fn remove_unused(&mut self, age: Duration) {
        let Self { store, key, .. } = self;
        let mut store = lock(store);
        if store.expires() {
            return;
        }
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        // The page behind this name, and the first page: names often begin with a date, and go out
        // of use in that order.
        for after in [Some(key.name.clone()), None] {
            let Ok(page) = store.list(key.kind, after.as_deref()) else { return };
            let is_unused = |state: &State| {
                let now = state.now.unwrap_or_else(since_1970);
                state.version.is_some()
                    && state.value.is_none()
                    && state.number.saturating_add(age) < now
            };
            for (name, state) in
                page.entries.into_iter().filter(|(_, state)| is_unused(state)).take(MAX_REMOVED)
            {
                if let Err(failure) = store.purge(&Key { kind: key.kind, name }, &state) {
                    // Without the right to delete, they stay.
                    tracing::debug!("cannot remove an unused lock: {}", failure.why);
                    return;
                }
            }
        }
    }
}
