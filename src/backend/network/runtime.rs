//! What the libraries that do not block run on: made when a store is first used, because it costs a start something.

use tokio::runtime::{Builder, Runtime};

use crate::backend::failure::Failure;
use crate::backend::plain;

/// The one that is there, or a new one. It has no thread of its own.
///
/// # Errors
/// When there cannot be one.
pub fn made(runtime: &mut Option<Runtime>) -> Result<&mut Runtime, Failure> {
    // Not by `get_or_insert_with`, which cannot fail.
    if runtime.is_none() {
        let made = Builder::new_current_thread().enable_all().build();
        *runtime = Some(made.map_err(|error| Failure::permanent(format!("cannot set up connections: {}", plain(&error))))?);
    }
    runtime.as_mut().ok_or_else(|| Failure::permanent("cannot set up connections"))
}
