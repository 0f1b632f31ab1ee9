//! The connection of a register, which another thread may close, and its queue.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::register::Register;
use crate::store::failure::Error;
use crate::store::seam::{Key, Queue, Store};

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

impl Register {
    /// Sleeps at most `limit`, until one of `fds` is readable, or until the register may have
    /// changed. Without `is_beside`, takes a place in the queue, and sleeps until its turn.
    pub fn wait(
        &mut self,
        is_beside: bool,
        limit: Duration,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        self.queue(|queue, key| queue.wait(key, is_beside, limit, fds))
            .map_err(|failure| self.error("wait for the lock", failure))
    }

    /// The connection, which is opened again when it is used.
    pub fn connection(&self) -> Connection {
        Connection(Arc::downgrade(&self.store))
    }

    /// Asks the queue of the store. Without one, waiters poll, and do not know of each other.
    pub fn queue<T>(&mut self, ask: impl FnOnce(&mut dyn Queue, &Key) -> T) -> T {
        let Self { store, key, backoff, .. } = self;
        ask(lock(store).queue().unwrap_or(backoff), key)
    }
}
