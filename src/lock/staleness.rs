//! Whether a holder still holds. What cannot be proved stale is held: the first line that applies
//! of the table in `docs/protocol.md`, "Is an owner alive", decides.

mod local;

pub use local::LocalLiveness;

use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Stored;
use crate::record::{BEING_WRITTEN, Entry, Lease};
use crate::sys::clock;
use crate::sys::identity::ProcessIdentity;
use crate::sys::local_time::short;
use crate::sys::process::{Absence, Process};

/// The variable by which the processes of one Meltano run know each other.
pub const RUN_VARIABLE: &str = "MELTANO_PARENT_CONTEXT_UUID";

/// How much later than its file a legacy owner must have started to be another process: file times
/// come from a coarse clock, and start times are whole clock ticks.
const LEGACY_MARGIN: Duration = Duration::from_secs(1);

/// The poll interval for a holder, where nothing signals its end and release.
const UNHEARD: Duration = Duration::from_secs(1);

/// One holder of what is stored, with a verdict on it.
#[derive(Debug)]
pub struct Judged<V> {
    /// Its part of the record; `None` for an empty file.
    pub entry: Option<Entry>,
    /// When that was stored.
    pub written: Option<SystemTime>,
    /// The verdict.
    pub verdict: V,
}

/// The parts of these holders.
pub(super) fn entries<V>(holders: &[Judged<V>]) -> impl Iterator<Item = &Entry> {
    holders.iter().filter_map(|holder| holder.entry.as_ref())
}

/// A holder of a lock, and why it counts as one.
pub type Holding = Judged<Held>;

/// A former holder of a lock, and why it is none any more.
pub type StaleHolder = Judged<Stale>;

/// Whether a lock may be taken over.
#[derive(Debug)]
pub enum Verdict {
    /// It may not.
    Held(Held),
    /// Its owner is proved gone.
    Stale(Stale),
}

impl<T: Into<Held>> From<T> for Verdict {
    fn from(held: T) -> Self {
        Self::Held(held.into())
    }
}

impl From<Stale> for Verdict {
    fn from(stale: Stale) -> Self {
        Self::Stale(stale)
    }
}

/// Why a lock counts as held.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Held {
    #[error("its process is running")]
    Alive(Option<Process>),
    /// With the process that continues, and its command line for people.
    #[error("{owner}, but pid {} ({command}) of the same run goes on", process.pid())]
    RunGoesOn { owner: Stale, process: Process, command: String },
    #[error("its process has ended, but pid {} still keeps the lock", .0.pid())]
    Kept(Process),
    /// Whether its owner has released it or is gone.
    #[error("to be held for another {}", rounded_up(.0))]
    AtLeast(Duration),
    /// Its owner is not seen from here.
    #[error("free in {} unless its lease is renewed", rounded_up(.0))]
    Leased(Duration),
    #[error(transparent)]
    Unknown(#[from] Unknown),
}

/// Why it cannot be told whether an owner lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Unknown {
    #[error("the lock file is just being written")]
    BeingWritten,
    #[error("its process is gone, but processes of the same run cannot be looked for")]
    NoProcessTable,
    #[error("another process has the lock file flocked")]
    Contended,
    #[error("a newer version of serializer wrote the lock")]
    NewerVersion,
    #[error("its process is on another host")]
    OtherHost,
    #[error("held by another machine, or by this one before a reboot")]
    OtherBoot,
    #[error("its process is in another container")]
    OtherPidNamespace,
}

/// Why an owner is proved gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Stale {
    #[error("it was released")]
    Released,
    #[error("the machine has rebooted")]
    Rebooted,
    #[error(transparent)]
    Absent(Absence),
    #[error("its process is gone (another one has its id)")]
    Reused,
    #[error("its lease has expired")]
    Expired,
    #[error("the lock file was left empty")]
    Abandoned,
}

/// In whole seconds, so that it never reads "0s".
pub(crate) fn rounded_up(duration: &Duration) -> String {
    short(*duration + Duration::from_millis(999))
}

impl Held {
    /// Becomes readable when the lock may have become stale.
    pub fn ended_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Alive(process) => process.as_ref()?.ended_fd(),
            Self::RunGoesOn { process, .. } | Self::Kept(process) => process.ended_fd(),
            Self::AtLeast(_) | Self::Leased(_) | Self::Unknown(_) => None,
        }
    }

    /// When to look again, because nothing else will tell; `None` if something will.
    pub fn look_again_in(&self) -> Option<Duration> {
        match self {
            Self::AtLeast(remaining) | Self::Leased(remaining) => Some(*remaining),
            // An empty file becomes stale by nothing but time.
            Self::Unknown(Unknown::BeingWritten) => Some(BEING_WRITTEN),
            held => held.ended_fd().is_none().then_some(UNHEARD),
        }
    }
}

/// What to make of processes that outlive the owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum Orphans {
    /// They keep the lock held.
    #[default]
    Wait,
    /// They do not count.
    Ignore,
}

/// Tells whether a holder still holds.
pub trait LivenessCheck {
    /// Judges one entry of the stored record.
    fn judge(&self, stored: &Stored, entry: &Entry) -> Verdict;

    /// How long an empty file counts as being written.
    fn being_written(&self) -> Duration {
        BEING_WRITTEN
    }
}

/// A state of a lease: its token, and the number of its renewals. Of an empty file: its version.
pub type Watched = (Option<String>, Vec<u8>);

/// Judges all that is stored. `unchanged_for` tells how long the caller has seen a state.
pub fn judge_all(
    judge: &dyn LivenessCheck,
    stored: &Stored,
    unchanged_for: &mut dyn FnMut(Watched) -> Duration,
) -> Vec<Judged<Verdict>> {
    let written = stored.state.written;
    let Some(record) = &stored.record else {
        // A file from the future has no age; then only having watched it counts.
        let age = written.and_then(|written| written.elapsed().ok()).unwrap_or_default();
        let version = stored.state.version.clone().unwrap_or_default();
        let age = age.max(unchanged_for((None, version)));
        let is_written = age < judge.being_written();
        let verdict =
            if is_written { Unknown::BeingWritten.into() } else { Stale::Abandoned.into() };
        return vec![Judged { entry: None, written, verdict }];
    };
    let verdict = |entry: &Entry| match entry.lease {
        _ if record.is_newer() => Unknown::NewerVersion.into(),
        Some(lease) => {
            let state = (entry.token.clone(), lease.renewals.to_be_bytes().to_vec());
            judge_lease(judge, stored, entry, lease, unchanged_for(state))
        }
        None => judge.judge(stored, entry),
    };
    let judged = record.entries().iter().map(verdict).zip(record.entries());
    judged.map(|(verdict, entry)| Judged { entry: Some(entry.clone()), written, verdict }).collect()
}

/// Judges by a lease. Its holder counts it from before the renewal was sent, and gives up before
/// its end. So it has ended when the store's clock has passed the recorded end, or after it was
/// watched unchanged for its whole duration. No two hosts' clocks are compared.
fn judge_lease(
    judge: &dyn LivenessCheck,
    stored: &Stored,
    entry: &Entry,
    lease: Lease,
    unchanged_for: Duration,
) -> Verdict {
    let now = stored.state.now;
    let stale = |why: Stale| entry.remaining(now).map_or(why.into(), |it| Held::AtLeast(it).into());
    if entry.released.is_some() {
        return stale(Stale::Released);
    }
    let by_watching = lease.duration.saturating_sub(unchanged_for);
    let remaining = lease.left(now).map_or(by_watching, |by_clock| by_clock.min(by_watching));
    if remaining.is_zero() {
        return stale(Stale::Expired);
    }
    match judge.judge(stored, entry) {
        // What is seen here proves nothing there: another machine may have the same name, ids and
        // boot id (containers of one image). The keeper releases the lock, or the lease ends.
        Verdict::Stale(_) | Verdict::Held(Held::Unknown(_) | Held::AtLeast(_)) => {
            Held::Leased(remaining).into()
        }
        held => held,
    }
}

/// Whether a process started after a legacy record of its PID was written, so is another process.
pub fn started_after(instance: ProcessIdentity, written: Option<SystemTime>) -> bool {
    let started = instance.start.and_then(clock::wall_clock);
    // A file's time can be anything; one at the end of time is before no start.
    let latest = written.and_then(|written| written.checked_add(LEGACY_MARGIN));
    started.zip(latest).is_some_and(|(started, latest)| started > latest)
}
