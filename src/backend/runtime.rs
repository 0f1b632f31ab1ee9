//! The private runtime of a store whose client is asynchronous.

use std::future::Future;

use nix::sys::signal::SigSet;
use tokio::runtime::{Builder, Runtime};

use super::failure::Failure;
use super::plain;

/// A runtime on the calling thread, created at its first use. Connections end with it.
#[derive(Default)]
pub struct PrivateRuntime(Option<Runtime>);

impl PrivateRuntime {
    /// Runs `future` to its end.
    ///
    /// # Errors
    /// When a runtime cannot be created.
    pub fn block_on<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Failure> {
        // Name look-ups run on threads of the runtime, which must not take the signals that `run` reads.
        let block_signals = || {
            let _ = SigSet::all().thread_block();
        };
        let cannot = |error| Failure::permanent(format!("cannot set up connections: {}", plain(&error)));
        let build = || Builder::new_current_thread().enable_all().on_thread_start(block_signals).build().map_err(cannot);
        let runtime = match &mut self.0 {
            Some(runtime) => runtime,
            None => self.0.insert(build()?),
        };
        Ok(runtime.block_on(future))
    }

    /// Closes all connections.
    pub fn shut_down(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Dropping it waits for a name look-up, however long that takes.
            runtime.shutdown_background();
        }
    }
}

impl Drop for PrivateRuntime {
    fn drop(&mut self) {
        self.shut_down();
    }
}
