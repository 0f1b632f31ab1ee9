//! Judging by what one host can see: its processes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::time::Duration;

use rustix::process::Pid;

use super::{Held, LivenessCheck, Orphans, RUN_VARIABLE, Stale, Unknown, Verdict, started_after};
use crate::lock::Stored;
use crate::record::{BEING_WRITTEN, Entry};
use crate::sys::identity::HostIdentity;
use crate::sys::process::{self, Absence, Process};
use crate::sys::text;

/// Judges by looking at this machine's processes.
#[derive(Debug)]
pub struct LocalLiveness {
    here: HostIdentity,
    orphans: Orphans,
    /// How long an empty file counts as being written.
    pub being_written: Duration,
    /// Processes of other PID namespaces that were seen, by the inode numbers of their pidfds.
    seen: RefCell<HashMap<u64, Process>>,
}

impl LocalLiveness {
    /// Judges from the view of this process.
    pub fn here(orphans: Orphans) -> Self {
        Self::new(HostIdentity::here(), orphans)
    }

    /// Judges from `here`; `orphans` tells whether those of a dead owner count.
    pub fn new(here: HostIdentity, orphans: Orphans) -> Self {
        Self { here, orphans, being_written: BEING_WRITTEN, seen: RefCell::default() }
    }
}

impl LivenessCheck for LocalLiveness {
    fn being_written(&self) -> Duration {
        self.being_written
    }

    fn judge(&self, stored: &Stored, entry: &Entry) -> Verdict {
        let owner = match entry.released {
            None => self.look(stored, entry),
            // Containers of one boot share its clock.
            Some(_) if entry.until.is_some() => {
                self.check_boot(stored, &entry.owner.place).and(Err(Stale::Released.into()))
            }
            Some(_) => return Stale::Released.into(),
        };
        match owner {
            Ok(process) => Held::Alive(Some(process)).into(),
            // What outlived its owner did not outlive a reboot.
            Err(Verdict::Stale(stale)) if stale != Stale::Rebooted => match entry.remaining(None) {
                Some(remaining) => Held::AtLeast(remaining).into(),
                None if stale == Stale::Released => stale.into(),
                None => self.look_for_orphans(entry, stale),
            },
            Err(verdict) => verdict,
        }
    }
}

impl LocalLiveness {
    /// The owner, or the process that stands for it; otherwise the verdict without it.
    fn look(&self, stored: &Stored, entry: &Entry) -> Result<Process, Verdict> {
        let owner = &entry.owner;
        if !stored.is_legacy() {
            self.check_boot(stored, &owner.place)?;
            let namespace = owner.place.pid_namespace;
            if namespace.is_none() || namespace != self.here.pid_namespace {
                return self.look_into_container(entry);
            }
        }
        if let Some((pid, instance)) = entry.keeper
            && let Some(keeper) = process::running(pid)
            && instance.same_as(keeper.instance) != Some(false)
        {
            return match process::observe(owner.pid) {
                // The end of the keeper is that of both.
                Ok(_) => Ok(keeper),
                Err(_) => Err(Held::Kept(keeper).into()),
            };
        }
        let process = process::observe(owner.pid).map_err(Stale::Absent)?;
        let is_reused = if stored.is_legacy() {
            // A clock that was set forward must not cost a live process its lock.
            started_after(process.instance, stored.state.written) && !is_meltano(owner.pid)
        } else {
            owner.instance.same_as(process.instance) == Some(false)
        };
        if is_reused { Err(Stale::Reused.into()) } else { Ok(process) }
    }

    /// From outside, a process in a container has another PID. The inode number of its pidfd is the
    /// same everywhere, and unique until reboot.
    fn look_into_container(&self, entry: &Entry) -> Result<Process, Verdict> {
        let mut is_gone = true;
        let keeper = entry.keeper.map(|(_, keeper)| keeper);
        for instance in keeper.into_iter().chain([entry.owner.instance]) {
            match instance.pidfd.map(|inode| self.find_outside(inode)) {
                Some(Ok(Some(process))) => return Ok(process),
                found => is_gone &= matches!(found, Some(Ok(None))),
            }
        }
        let gone = Stale::Absent(Absence::Gone);
        Err(if is_gone { gone.into() } else { Unknown::OtherPidNamespace.into() })
    }

    /// A process of another PID namespace; `None` if it is proved gone.
    fn find_outside(&self, inode: u64) -> io::Result<Option<Process>> {
        let mut seen = self.seen.borrow_mut();
        // The end of a process that was seen once is seen from everywhere.
        if !seen.contains_key(&inode)
            && let Some(process) = process::find_by_inode(inode)?
        {
            seen.insert(inode, process);
        }
        Ok(seen.get(&inode).filter(|process| !process.has_ended()).cloned())
    }

    fn check_boot(&self, stored: &Stored, place: &HostIdentity) -> Result<(), Verdict> {
        let is_same_boot = place.boot.is_some() && place.boot == self.here.boot;
        // Containers have host names and machine ids of their own. Clones of a virtual machine
        // share a boot id, so it proves nothing where another host may have written.
        if stored.state.is_local && is_same_boot {
            return Ok(());
        }
        let differ = |one: &Option<String>, two: &Option<String>| {
            one.is_some() && two.is_some() && one != two
        };
        if differ(&place.machine, &self.here.machine) || differ(&place.host, &self.here.host) {
            return Err(Unknown::OtherHost.into());
        }
        // Host names repeat, so only the machine id proves a reboot of this machine.
        let is_same_machine = place.machine.is_some()
            && place.machine == self.here.machine
            && place.host == self.here.host;
        if is_same_boot {
            Ok(())
        } else if is_same_machine && place.boot.is_some() && self.here.boot.is_some() {
            Err(Stale::Rebooted.into())
        } else {
            Err(Unknown::OtherBoot.into())
        }
    }

    fn look_for_orphans(&self, entry: &Entry, owner: Stale) -> Verdict {
        let (Orphans::Wait, Some(run), Some(uid)) = (self.orphans, &entry.run, entry.owner.uid)
        else {
            return owner.into();
        };
        match process::find_by_environment(RUN_VARIABLE, run, uid) {
            Ok(Some(process)) => {
                let command = text::command_line(&process::arguments(process.pid()));
                Held::RunGoesOn { owner, process, command }.into()
            }
            Ok(None) => owner.into(),
            Err(_) => Unknown::NoProcessTable.into(),
        }
    }
}

fn is_meltano(pid: Pid) -> bool {
    process::arguments(pid).iter().any(|argument| text::base_name(argument) == "meltano")
}
