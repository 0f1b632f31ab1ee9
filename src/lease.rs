//! Keeping a lease: renewing it while the holder lives.
//!
//! ```text
//! 0         ⅓                   ¾          11/12   1  of the lease, from before a renewal was sent
//! renewed   is renewed again    given up   killed  others may take the lock
//!           (again and again, if the store does not answer)
//! ```
//!
//! Giving up ends what runs under the lock, if that is wanted; renewals continue until the store
//! says that the lease is lost. It has a timer of its own, because a renewal may hang. The clock is
//! `CLOCK_BOOTTIME`, which is never set and includes sleep.
//!
//! `run` keeps its lease by a thread ([`thread`]); `lock` ends at once, and leaves a process behind
//! ([`process`]).

pub mod process;
pub mod thread;

use clap::ValueEnum;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lock::{Grant, Requester, Stored};
use crate::record::Entry;
use crate::sys::clock::{millis, since_boot};

/// The limit of a sleep that other events end.
const LONG: Duration = Duration::from_secs(3600);

/// The longest time that a command has to end in, in milliseconds.
const MAX_GRACE: u64 = 10_000;

/// The lease to keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseGrant {
    /// The acquisition.
    pub grant: Grant,
    /// The duration of the lease.
    pub lease: Duration,
    /// Whether the record does not name the process that renews it: that has started later.
    #[serde(default)]
    pub is_unnamed: bool,
}

impl LeaseGrant {
    /// When to end what holds the lock, in milliseconds since boot.
    pub fn given_up(&self) -> u64 {
        self.after(3, 4)
    }

    /// Whether that time has passed.
    pub fn is_given_up(&self) -> bool {
        since_boot() >= self.given_up()
    }

    /// How long that may take before it is killed, in milliseconds.
    fn grace(&self) -> u64 {
        (millis(self.lease) / 6).min(MAX_GRACE)
    }

    /// The end of this part of the lease, in milliseconds since boot.
    fn after(&self, numerator: u64, denominator: u64) -> u64 {
        self.grant.leased_at + millis(self.lease) * numerator / denominator
    }
}

/// Acts for the holder, by the token of the acquisition, or by its fencing token.
pub struct TokenHolder<'a>(pub &'a str);

impl Requester for TokenHolder<'_> {
    fn owns(&self, _stored: &Stored, entry: &Entry) -> bool {
        entry.has_token(self.0)
    }
}

/// What to do when a lock is lost while it is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum OnLost {
    /// End what runs under it.
    #[default]
    Terminate,
    /// Say so, and leave it alone.
    Warn,
}
