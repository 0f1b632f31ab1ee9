//! The connection of a register, which another thread may close.

use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use crate::store::seam::Store;

/// The store of a register.
pub(super) type Shared = Mutex<Box<dyn Store>>;

/// The connection of a register.
pub struct Connection(pub(super) Weak<Shared>);

impl Connection {
    /// Closes it, until the register is used again. Does nothing while another thread uses it.
    pub fn close(&self) {
        if let Some(store) = self.0.upgrade()
            && let Ok(mut store) = store.try_lock()
        {
            store.disconnect();
        }
    }
}

pub(super) fn lock(store: &Shared) -> MutexGuard<'_, Box<dyn Store>> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}
