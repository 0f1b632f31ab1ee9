//! The private runtime of a store with an asynchronous client.

use nix::sys::signal::SigSet;
use tokio::runtime::{Builder, Runtime};

use super::failure::Failure;
use crate::sys::text::io_message;

/// A runtime on the calling thread, created at its first use. Connections end with it.
#[derive(Default)]
pub struct PrivateRuntime(Option<Runtime>);

impl PrivateRuntime {
    /// Runs `future` to its end. Fails only if a runtime cannot be created.
    pub fn block_on<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Failure> {
        let runtime = match self.0.take() {
            Some(runtime) => runtime,
            None => {
                // A client may use the provider of the process, which may be set already.
                let _ = rustls::crypto::ring::default_provider().install_default();
                // A thread that resolves host names must not take the signals that `run` reads.
                let block_signals = || SigSet::all().thread_block().unwrap_or_default();
                let mut builder = Builder::new_current_thread();
                builder.enable_all().on_thread_start(block_signals).build().map_err(|error| {
                    Failure::permanent(format!("cannot set up connections: {}", io_message(&error)))
                })?
            }
        };
        Ok(self.0.insert(runtime).block_on(future))
    }

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
