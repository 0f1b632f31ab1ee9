//! How long to wait for a lock, and who is told meanwhile.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::mutex::Holding;

/// How often and how far apart to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// How many attempts to make; `None` for any number.
    pub max_attempts: Option<NonZeroU32>,
    /// From one attempt to the next.
    pub sleep: Duration,
    /// How long to wait altogether; `None` for any time. The deadline counts from the first attempt.
    pub timeout: Option<Duration>,
}

/// Is told while a lock is waited for.
pub trait Observer {
    /// The lock is held; `attempt` attempts have been made. `None`: the holder changed all the time.
    fn waiting(&mut self, holding: Option<&Holding>, attempt: u32);

    /// How often it wants to be told at least.
    fn interval(&self) -> Duration;
}
