//! Judging by what one host can see: its processes.

use std::cell::RefCell;
use std::collections::{HashMap, hash_map};
use std::time::Duration;

use rustix::process::Pid;

use super::{Held, Judge, Orphans, RUN_VARIABLE, Stale, Unknown, Verdict, started_after};
use crate::mutex::register::Stored;
use crate::owner::Place;
use crate::printable;
use crate::process::{self, NoProcessTable, Observation, Process};
use crate::record::{Entry, Record};

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
    // With a lease, it counts by another clock.
    let until = entry.until.filter(|_| entry.lease.is_none())?;
    let remaining = until.checked_sub(process::since_boot())?;
    (remaining > 0).then(|| Duration::from_millis(remaining))
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

/// Whether a process may be what a legacy lock belongs to.
fn is_meltano(pid: Pid) -> bool {
    process::arguments(pid).iter().any(|argument| printable::base_name(argument) == "meltano")
}
