//! Is the owner that a record names alive? The first line of this table that applies decides, failing closed: what
//! cannot be proved stale is held.
//!
//! | observation | verdict |
//! | --- | --- |
//! | empty file, younger than 2 s | held: being written |
//! | empty file, older | stale: abandoned |
//! | written by a newer version of this program | unknown |
//! | released, and not to be held any longer | stale |
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

use std::cell::RefCell;
use std::collections::{HashMap, hash_map};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime};

use rustix::process::Pid;

use crate::backend::{Content, Stored};
use crate::local_time::short;
use crate::owner::{Instance, Place};
use crate::printable;
use crate::process::{self, NoProcessTable, Observation, Process, Relative};
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
            Self::AtLeast(_) | Self::Unknown(_) => None,
        }
    }

    /// When to look again, because nothing else will tell; `None` if something will.
    pub fn look_again_in(&self) -> Option<Duration> {
        match self {
            Self::Alive(_) | Self::RunGoesOn { .. } | Self::Kept(..) => None,
            Self::AtLeast(remaining) => Some(*remaining),
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
            Self::Kept(pid, _) => write!(f, "its command has ended, but `run` (pid {pid}) has not released it yet"),
            // In whole seconds, rounded up, so that nobody reads "0s".
            Self::AtLeast(remaining) => write!(f, "to be held for another {}", short(*remaining + Duration::from_millis(999))),
            Self::Unknown(why) => why.fmt(f),
        }
    }
}

/// What to make of processes that outlive the owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// Judges all that is stored, given that the caller has watched it unchanged for so long: one verdict or more.
pub fn judge_all(judge: &dyn Judge, stored: &Stored, unchanged_for: Duration) -> Vec<Judged<Verdict>> {
    let written = stored.written;
    let Content::Record(record) = &stored.content else {
        return vec![Judged { entry: None, written, verdict: judge_empty(written, unchanged_for) }];
    };
    let verdict = |entry: &Entry| match record.is_newer() {
        true => Verdict::Held(Held::Unknown(Unknown::NewerVersion)),
        false => judge.judge(stored, record, entry),
    };
    record.entries().iter().map(|entry| Judged { entry: Some(entry.clone()), written, verdict: verdict(entry) }).collect()
}

/// Judges by looking at this machine's processes.
#[derive(Debug)]
pub struct LocalJudge {
    here: Place,
    orphans: Orphans,
    /// Processes of other PID namespaces that were seen, by the inode numbers of their pidfds.
    seen: RefCell<HashMap<u64, Process>>,
}

impl LocalJudge {
    /// Looks from here; `orphans` tells whether those of a dead owner count.
    pub fn new(here: Place, orphans: Orphans) -> Self {
        Self { here, orphans, seen: RefCell::default() }
    }
}

impl Judge for LocalJudge {
    fn judge(&self, stored: &Stored, record: &Record, entry: &Entry) -> Verdict {
        if entry.released.is_some() {
            return self.judge_released(stored, entry);
        }
        let verdict = match self.look(stored, record, entry) {
            Ok(process) => return Verdict::Held(Held::Alive(process)),
            Err(verdict) => verdict,
        };
        match verdict {
            // Whatever outlived its owner did not outlive a reboot.
            Verdict::Stale(stale) if stale != Stale::Rebooted => match remaining(entry) {
                Some(remaining) => Verdict::Held(Held::AtLeast(remaining)),
                None => self.look_for_orphans(entry, stale),
            },
            verdict => verdict,
        }
    }
}

/// For how long it is to be held yet, given that it was acquired in this boot.
fn remaining(entry: &Entry) -> Option<Duration> {
    let remaining = entry.until?.checked_sub(process::since_boot())?;
    (remaining > 0).then(|| Duration::from_millis(remaining))
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

fn unknown<T>(why: Unknown) -> Result<T, Verdict> {
    Err(Verdict::Held(Held::Unknown(why)))
}

fn stale<T>(why: Stale) -> Result<T, Verdict> {
    Err(Verdict::Stale(why))
}

impl LocalJudge {
    fn judge_released(&self, stored: &Stored, entry: &Entry) -> Verdict {
        if entry.until.is_none() {
            return Verdict::Stale(Stale::Released);
        }
        // Containers of one boot share its clock.
        if let Err(verdict) = self.check_boot(stored, &entry.owner.place) {
            return verdict;
        }
        remaining(entry).map_or(Verdict::Stale(Stale::Released), |remaining| Verdict::Held(Held::AtLeast(remaining)))
    }

    fn look(&self, stored: &Stored, record: &Record, entry: &Entry) -> Result<Option<Process>, Verdict> {
        let owner = &entry.owner;
        if !record.is_legacy() {
            self.check_boot(stored, &owner.place)?;
            if owner.place.pid_namespace.is_none() || owner.place.pid_namespace != self.here.pid_namespace {
                return self.look_into_container(entry);
            }
        }
        if let Some((pid, instance)) = entry.keeper
            && let Observation::Running(keeper) = process::observe(pid)
            && instance.same_as(keeper.instance) != Some(false)
        {
            return match process::observe(owner.pid) {
                // Both are waited for by their keeper's end.
                Observation::Running(_) => Ok(Some(keeper)),
                _ => Err(Verdict::Held(Held::Kept(pid, keeper))),
            };
        }
        let process = match process::observe(owner.pid) {
            Observation::Gone => return stale(Stale::Gone),
            Observation::Thread => return stale(Stale::Thread),
            Observation::Ended => return stale(Stale::Ended),
            Observation::Running(process) => process,
        };
        let reused = if record.is_legacy() {
            // A live one must not be lost to a clock that was set forward, so not on the clock's word alone.
            started_after(process.instance, stored.written) && !is_meltano(owner.pid)
        } else {
            owner.instance.same_as(process.instance) == Some(false)
        };
        if reused { stale(Stale::Reused) } else { Ok(Some(process)) }
    }

    /// From outside, a process in a container is seen under another number. The inode number of its pidfd is the same in all
    /// PID namespaces, and unique until reboot.
    fn look_into_container(&self, entry: &Entry) -> Result<Option<Process>, Verdict> {
        let instances = entry.keeper.iter().map(|(_, keeper)| keeper).chain([&entry.owner.instance]);
        let mut is_unknown = false;
        for instance in instances {
            match instance.pidfd.map(|inode| self.find_outside(inode)) {
                Some(Ok(Some(process))) => return Ok(Some(process)),
                Some(Ok(None)) => {}
                Some(Err(_)) | None => is_unknown = true,
            }
        }
        if is_unknown { unknown(Unknown::OtherPidNamespace) } else { stale(Stale::Gone) }
    }

    /// A process of another PID namespace; `None` if it is proved gone.
    fn find_outside(&self, inode: u64) -> Result<Option<Process>, NoProcessTable> {
        let mut seen = self.seen.borrow_mut();
        // Whoever was seen once is seen to end, from wherever one looks.
        let process = match seen.entry(inode) {
            hash_map::Entry::Occupied(seen) => seen.into_mut(),
            hash_map::Entry::Vacant(vacant) => match process::find_by_inode(inode)? {
                Some(process) => vacant.insert(process),
                None => return Ok(None),
            },
        };
        if process.has_ended() { Ok(None) } else { process.try_clone().map(Some).ok_or(NoProcessTable) }
    }

    fn check_boot(&self, stored: &Stored, place: &Place) -> Result<(), Verdict> {
        // Containers have host names and machine ids of their own. Where others could have written this, an equal boot id is not
        // enough: clones of a virtual machine have the same one.
        if stored.is_local && place.boot.is_some() && place.boot == self.here.boot {
            return Ok(());
        }
        let differ = |one: &Option<String>, two: &Option<String>| one.is_some() && two.is_some() && one != two;
        if differ(&place.machine, &self.here.machine) || differ(&place.host, &self.here.host) {
            return unknown(Unknown::OtherHost);
        }
        if place.boot.is_none() || place.boot != self.here.boot {
            // Host names repeat (every container may be `worker`), so only the machine id proves that it was this one.
            let same_machine = place.machine.is_some() && place.machine == self.here.machine && place.host == self.here.host;
            let both_known = place.boot.is_some() && self.here.boot.is_some();
            return if same_machine && both_known { stale(Stale::Rebooted) } else { unknown(Unknown::OtherBoot) };
        }
        Ok(())
    }

    fn look_for_orphans(&self, entry: &Entry, owner: Stale) -> Verdict {
        let (Orphans::Wait, Some(run), Some(uid)) = (self.orphans, &entry.run, entry.owner.uid) else {
            return Verdict::Stale(owner);
        };
        match process::find_by_environment(RUN_VARIABLE, run, uid) {
            Ok(Some(relative)) => Verdict::Held(Held::RunGoesOn { owner, relative }),
            Ok(None) => Verdict::Stale(owner),
            Err(_) => Verdict::Held(Held::Unknown(Unknown::NoProcessTable)),
        }
    }
}

/// Whether a process started after a legacy record about its PID was written: then the record means another process.
pub fn started_after(instance: Instance, written: Option<SystemTime>) -> bool {
    let started = instance.start.and_then(process::wall_clock);
    // A file's time can be anything; one at the end of time is before no start.
    let latest = written.and_then(|written| written.checked_add(LEGACY_MARGIN));
    started.zip(latest).is_some_and(|(started, latest)| started > latest)
}

/// Whether a process may be what a legacy lock belongs to.
fn is_meltano(pid: Pid) -> bool {
    process::arguments(pid).iter().any(|argument| printable::base_name(argument) == "meltano")
}
