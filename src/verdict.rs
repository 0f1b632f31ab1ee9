//! Is the owner that a record names alive? The first line of this table that applies decides, failing closed: what
//! cannot be proved stale is held.
//!
//! | observation | verdict |
//! | --- | --- |
//! | empty file, younger than 2 s | held: being written |
//! | empty file, older | stale: abandoned |
//! | written by a newer version of this program | unknown |
//! | released, and not to be held any longer | stale |
//! | with a lease that has expired, by the store's clock or because it was watched unchanged for so long | stale |
//! | with a lease, and its process is not seen to live | held: leased |
//! | same boot, and to be held at least until later | held, whatever became of the process |
//! | other machine id or host name (but for an equal boot id on a file system that only this machine sees) | unknown |
//! | same machine, other boot id | stale: rebooted |
//! | same boot, other PID namespace | that PID is never looked at, but processes seen from here whose pidfd has the recorded inode: alive, or ended if it was seen before, or gone if all processes of the machine are seen from here; otherwise unknown |
//! | no such process | stale |
//! | the PID is a thread's | stale |
//! | ended, but not yet reaped | stale |
//! | another process has the PID now | stale |
//! | otherwise, also when it may not be looked at | alive |
//!
//! A stale owner's lock is held all the same while another process of its pipeline run goes on.

mod lease;
mod local;

pub use local::LocalJudge;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime};

use rustix::process::Pid;

use crate::local_time::short;
use crate::mutex::register::{Content, Stored};
use crate::owner::Instance;
use crate::process::{self, Process, Relative};
use crate::record::{Entry, Record};

/// The variable by which the processes of one Meltano run know each other.
pub const RUN_VARIABLE: &str = "MELTANO_PARENT_CONTEXT_UUID";

/// How long an empty file counts as being written: the Python plugin leaves one between its open and its write, and so do we
/// where the file system has no hard links.
pub const BEING_WRITTEN: Duration = Duration::from_secs(2);

/// How much later than its file a legacy owner must have started to be another process: the file's time is the
/// kernel's coarse clock, and start times are whole clock ticks.
const LEGACY_MARGIN: Duration = Duration::from_secs(1);

/// How often to look at a holder that nobody here can watch: neither its end nor its release is heard.
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

/// A holder of a lock, and why it counts as one.
pub type Holding = Judged<Held>;

/// A former holder of a lock, and why it is none any more.
pub type Former = Judged<Stale>;

/// Whether a lock may be taken over.
#[derive(Debug)]
pub enum Verdict {
    /// It may not.
    Held(Held),
    /// Its owner is proved gone.
    Stale(Stale),
}

/// Why a lock counts as held.
#[derive(Debug)]
pub enum Held {
    /// Its owner runs.
    Alive(Option<Process>),
    /// Its owner is dead, but a process that the owner's pipeline run started goes on.
    RunGoesOn {
        /// What became of the owner.
        owner: Stale,
        /// The process that goes on.
        relative: Relative,
    },
    /// Its owner has ended, but the process that started it has not released it yet.
    Kept(Pid, Process),
    /// Its owner has released it or is gone, but it is to be held for some time yet.
    AtLeast(Duration),
    /// Nobody here sees its owner, but what that has promised runs for so long yet.
    Leased(Duration),
    /// Nobody here can tell.
    Unknown(Unknown),
}

/// Why nobody here can tell whether an owner lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unknown {
    /// The file is empty, and young.
    #[error("the lock file is just being written")]
    BeingWritten,
    /// The owner is dead, but not whether processes of its run go on.
    #[error("its process is gone, but processes of the same run cannot be looked for")]
    NoProcessTable,
    /// Somebody keeps the file flocked.
    #[error("another process keeps the lock file locked (flock)")]
    Contended,
    /// A record of a later format.
    #[error("a newer version of serializer wrote the lock")]
    NewerVersion,
    /// The record names another host or machine.
    #[error("its process is on another host")]
    OtherHost,
    /// Another boot, but it is not certain that it is one of this machine.
    #[error("it cannot be told whether this machine has rebooted or another one holds the lock")]
    OtherBoot,
    /// The record's PID counts in another PID namespace.
    #[error("its process is in another container")]
    OtherPidNamespace,
}

/// Why an owner is proved gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Stale {
    /// Nobody holds it any more.
    #[error("it was released")]
    Released,
    /// The machine was rebooted since.
    #[error("the machine has rebooted")]
    Rebooted,
    /// No process has that PID.
    #[error("its process is gone")]
    Gone,
    /// The PID belongs to a thread, so its process is gone.
    #[error("its process is gone (a thread has its id)")]
    Thread,
    /// A zombie.
    #[error("its process has ended")]
    Ended,
    /// The PID belongs to another process.
    #[error("its process is gone (another one has its id)")]
    Reused,
    /// Its lease was not renewed.
    #[error("its lease has expired")]
    Expired,
    /// The file has been empty for too long.
    #[error("the lock file was left empty")]
    Abandoned,
}

impl Held {
    /// Becomes readable when the lock may have become stale.
    pub fn ended_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Alive(process) => process.as_ref()?.ended_fd(),
            Self::RunGoesOn { relative, .. } => relative.process.ended_fd(),
            Self::Kept(_, process) => process.ended_fd(),
            Self::AtLeast(_) | Self::Leased(_) | Self::Unknown(_) => None,
        }
    }

    /// When to look again, because nothing else will tell; `None` if something will.
    pub fn look_again_in(&self) -> Option<Duration> {
        match self {
            Self::Alive(_) | Self::RunGoesOn { .. } | Self::Kept(..) => None,
            Self::AtLeast(remaining) | Self::Leased(remaining) => Some(*remaining),
            // An empty file becomes stale by nothing but time.
            Self::Unknown(Unknown::BeingWritten) => Some(BEING_WRITTEN),
            Self::Unknown(_) => Some(UNHEARD),
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alive(_) => f.write_str("its process is running"),
            Self::RunGoesOn { owner, relative, .. } => {
                let Relative { pid, command, .. } = relative;
                write!(f, "{owner}, but pid {pid} ({command}) of the same run goes on")
            }
            Self::Kept(pid, _) => {
                write!(f, "its process has ended, but pid {pid}, which keeps the lock for it, has not released it yet")
            }
            // In whole seconds, rounded up, so that nobody reads "0s".
            Self::AtLeast(remaining) => write!(f, "to be held for another {}", short(*remaining + Duration::from_millis(999))),
            Self::Leased(remaining) => {
                write!(f, "free in {} unless its lease is renewed", short(*remaining + Duration::from_millis(999)))
            }
            Self::Unknown(why) => why.fmt(f),
        }
    }
}

/// What to make of processes that outlive the owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Orphans {
    /// They keep the lock held.
    #[default]
    Wait,
    /// They do not count.
    Ignore,
}

/// Tells whether a holder still holds.
pub trait Judge {
    /// Judges one entry of the record that is stored.
    fn judge(&self, stored: &Stored, record: &Record, entry: &Entry) -> Verdict;
}

/// Judges all that is stored: one verdict or more. `unchanged_for` tells for how long the caller has watched an entry without a
/// renewal, or with `None`, the whole register without a change.
pub fn judge_all(judge: &dyn Judge, stored: &Stored, unchanged_for: &dyn Fn(Option<&Entry>) -> Duration) -> Vec<Judged<Verdict>> {
    let written = stored.written;
    let Content::Record(record) = &stored.content else {
        return vec![Judged { entry: None, written, verdict: judge_empty(written, unchanged_for(None)) }];
    };
    let verdict = |entry: &Entry| match entry.lease {
        _ if record.is_newer() => Verdict::Held(Held::Unknown(Unknown::NewerVersion)),
        Some(lease) => lease::judge(judge, stored, record, entry, lease, unchanged_for(Some(entry))),
        None => judge.judge(stored, record, entry),
    };
    record.entries().iter().map(|entry| Judged { entry: Some(entry.clone()), written, verdict: verdict(entry) }).collect()
}

fn judge_empty(written: Option<SystemTime>, unchanged_for: Duration) -> Verdict {
    // A file from the future (the clock was set back) has no age; then only having watched it counts.
    let age = written.and_then(|written| written.elapsed().ok()).unwrap_or(Duration::ZERO);
    if age.max(unchanged_for) >= BEING_WRITTEN {
        Verdict::Stale(Stale::Abandoned)
    } else {
        Verdict::Held(Held::Unknown(Unknown::BeingWritten))
    }
}

/// Whether a process started after a legacy record about its PID was written: then the record means another process.
pub fn started_after(instance: Instance, written: Option<SystemTime>) -> bool {
    let started = instance.start.and_then(process::wall_clock);
    // A file's time can be anything; one at the end of time is before no start.
    let latest = written.and_then(|written| written.checked_add(LEGACY_MARGIN));
    started.zip(latest).is_some_and(|(started, latest)| started > latest)
}
