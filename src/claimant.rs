//! On whose behalf a lock is taken: the process that becomes its owner, and whether it still wants the lock.

use std::os::fd::BorrowedFd;
use std::time::SystemTime;

use rustix::process::{Pid, getpid, getppid};

use crate::owner::{Owner, Place};
use crate::printable;
use crate::process::{self, FIRST_PID_NAMESPACE, Observation, Process};
use crate::record::{Entry, Record};
use crate::verdict::{RUN_VARIABLE, started_after};

/// Programs that adopt orphans: a `lock` that has one as its parent was left behind, or is started by a service manager.
const ADOPTERS: [&str; 9] = ["systemd", "init", "tini", "docker-init", "dumb-init", "catatonit", "s6-svscan", "runit", "pause"];

/// Shells, which run a script, whatever arguments it gets.
const SHELLS: [&str; 7] = ["sh", "bash", "dash", "ash", "ksh", "zsh", "fish"];

/// Somebody who wants to hold a mutex.
pub trait Claimant {
    /// Its part of a record, for a new acquisition of a plain mutex.
    ///
    /// # Errors
    /// When there is nobody to own it, or the operating system has no random numbers.
    fn entry(&self) -> std::io::Result<Entry>;

    /// The same in the name of this very process, which is stale as soon as it ends.
    ///
    /// # Errors
    /// As for [`Claimant::entry`].
    fn transient_entry(&self) -> std::io::Result<Entry>;

    /// Whether one of the record's entries is certainly this claimant's, given when the record was stored.
    fn owns(&self, record: &Record, entry: &Entry, written: Option<SystemTime>) -> bool;

    /// Whether it still wants the lock.
    fn is_present(&self) -> bool;

    /// These become readable when it does not want the lock any more.
    fn absence_fds(&self) -> Vec<BorrowedFd<'_>>;
}

/// Why there is nobody to own a lock.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoOwner {
    /// `getppid` is 0.
    #[error("the parent process is in another container (PID namespace), so it cannot own a lock")]
    OutsideParent,
    /// The parent never ends and did not ask for a lock.
    #[error("the parent process is pid {pid} ({command}), which would hold the lock for ever")]
    Adopter {
        /// Its PID.
        pid: Pid,
        /// Its name.
        command: String,
    },
    /// The parent does nothing but run this command, and ends with it: `timeout 5 serializer lock`.
    #[error("the parent process (`{command}`) does nothing else, so that the lock would end at once, with it")]
    Wrapper {
        /// Its command line.
        command: String,
    },
    /// `meltano invoke` ends with the command.
    #[error("`meltano invoke` ends at once, and its lock with it")]
    MeltanoInvoke,
    /// The parent ended while we looked.
    #[error("the parent process has ended")]
    ParentEnded,
    /// `/proc` does not tell what tells the owner from other processes, so that nobody could recognise it later.
    #[error("pid {pid} cannot be told from other processes: /proc is not mounted, or cannot be read")]
    Unidentifiable {
        /// Its PID.
        pid: Pid,
    },
    /// The named owner does not run.
    #[error("there is no process {pid} that could own it")]
    NotRunning {
        /// The PID that was asked for.
        pid: Pid,
    },
}

impl NoOwner {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::MeltanoInvoke => {
                "lock within one run (`meltano run … dbtmutex:lock dbt:run dbtmutex:unlock`), or name the process that is to \
                 own the lock: `SERIALIZER_OWNER_PID=$$ meltano invoke dbtmutex:lock` in a script"
            }
            Self::Wrapper { .. } => {
                "name the process that is to own the lock, for `unlock` too: `--owner-pid $$` in a script; or put the work \
                 into the same command: `sh -c 'serializer lock && …; serializer unlock'`"
            }
            Self::NotRunning { .. } => "check `--owner-pid` or `SERIALIZER_OWNER_PID`",
            Self::Unidentifiable { .. } => "mount /proc, or lock where it can be read",
            Self::OutsideParent | Self::Adopter { .. } | Self::ParentEnded => {
                "let `serializer run -- COMMAND` hold it for a command, or name the process that is to own the lock with \
                 `--owner-pid PID` or `SERIALIZER_OWNER_PID`"
            }
        }
    }
}

/// A process that owns, or wants to own, a lock; we act for it.
#[derive(Debug)]
pub struct ProcessClaimant {
    here: Place,
    owner: Result<Owner, NoOwner>,
    command: String,
    run: Option<String>,
    /// Read once: after an orphan has been adopted, the answer is another process.
    parent: Option<Pid>,
    /// The parent and the owner. When either is gone, nobody waits for the lock any more.
    watched: Vec<Process>,
    /// We count as the owner, too: shells replace themselves by the last command of a script.
    is_itself_an_owner: bool,
}

impl ProcessClaimant {
    /// Finds out who owns: the process `owner_pid`, or else the parent of this one.
    pub fn discover(here: &Place, owner_pid: Option<Pid>) -> Self {
        let parent = getppid();
        let mut watched = Vec::new();
        let mut parent_instance = None;
        if let Some(pid) = parent
            && let Observation::Running(process) = process::observe(pid)
        {
            parent_instance = Some(process.instance);
            watched.push(process);
        }
        // A pidfd opened before this check belongs to the parent, not to a process that reused its PID.
        let parent_ended = getppid() != parent;

        let pid = owner_pid.or(parent);
        let arguments = pid.map(process::arguments).unwrap_or_default();
        let command = printable::command_line(&arguments);
        let instance = match (owner_pid, parent) {
            (Some(pid), _) => match process::observe(pid) {
                Observation::Running(process) => {
                    let instance = process.instance;
                    watched.push(process);
                    Ok((pid, instance))
                }
                Observation::Gone | Observation::Thread | Observation::Ended => Err(NoOwner::NotRunning { pid }),
            },
            (None, None) => Err(NoOwner::OutsideParent),
            (None, Some(pid)) => match parent_instance.filter(|_| !parent_ended) {
                Some(instance) => check_parent(here, pid, &arguments).map(|()| (pid, instance)),
                None => Err(NoOwner::ParentEnded),
            },
        };
        let uid = Some(rustix::process::getuid().as_raw());
        let owner = instance.map(|(pid, instance)| Owner { pid, uid, place: here.clone(), instance });
        Self {
            here: here.clone(),
            owner: owner
                .and_then(|owner| if owner.is(&owner) { Ok(owner) } else { Err(NoOwner::Unidentifiable { pid: owner.pid }) }),
            command,
            run: std::env::var(RUN_VARIABLE).ok().filter(|run| !run.is_empty()),
            parent,
            watched,
            is_itself_an_owner: owner_pid.is_none(),
        }
    }

    /// The process that would own the lock.
    ///
    /// # Errors
    /// When there is none that could.
    pub fn owner(&self) -> Result<&Owner, NoOwner> {
        self.owner.as_ref().map_err(Clone::clone)
    }

    /// The owner's PID and command, for messages.
    pub fn describe(&self) -> String {
        match &self.owner {
            Ok(owner) if self.command.is_empty() => format!("pid {}", owner.pid),
            Ok(owner) => format!("pid {} ({})", owner.pid, self.command),
            Err(no_owner) => no_owner.to_string(),
        }
    }

    fn owns_legacy(&self, entry: &Entry, written: Option<SystemTime>) -> bool {
        let itself = self.itself_as_owner(entry);
        let mut candidates = self.owner.iter().chain(&itself);
        candidates.any(|owner| owner.pid == entry.owner.pid && !started_after(owner.instance, written))
    }

    /// This very process.
    fn itself(&self) -> Option<Owner> {
        let pid = getpid();
        let Observation::Running(process) = process::observe(pid) else { return None };
        Some(Owner { pid, uid: Some(rustix::process::getuid().as_raw()), place: self.here.clone(), instance: process.instance })
    }

    /// This very process, if it counts as the owner; looked at only when an entry names its PID.
    fn itself_as_owner(&self, entry: &Entry) -> Option<Owner> {
        (self.is_itself_an_owner && entry.owner.pid == getpid()).then(|| self.itself())?
    }
}

fn check_parent(here: &Place, pid: Pid, arguments: &[String]) -> Result<(), NoOwner> {
    // Some write their state behind their name: `init [2]`.
    let program = arguments.first().and_then(|program| program.split(' ').next()?.rsplit('/').next()).unwrap_or("");
    let adopts = ADOPTERS.contains(&program);
    let never_ends = pid.is_init() && here.pid_namespace == Some(FIRST_PID_NAMESPACE);
    if never_ends || (adopts && (pid.is_init() || program == "systemd")) {
        return Err(NoOwner::Adopter { pid, command: printable::command_line(arguments) });
    }
    let ours: Vec<String> = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    if is_wrapper(arguments, &ours) {
        return Err(NoOwner::Wrapper { command: printable::command_line(arguments) });
    }
    let is_subcommand = |argument: &&String| SUBCOMMANDS.contains(&argument.as_str());
    match of_meltano(arguments).and_then(|arguments| arguments.iter().find(is_subcommand)) {
        Some(command) if command == "invoke" => Err(NoOwner::MeltanoInvoke),
        _ => Ok(()),
    }
}

/// The subcommands of Meltano that start plugins.
const SUBCOMMANDS: [&str; 5] = ["invoke", "run", "job", "el", "elt"];

/// What Meltano was given, if this is its command line; a launcher and one word more may stand before it.
fn of_meltano(arguments: &[String]) -> Option<&[String]> {
    let (program, rest) = printable::program(arguments)?;
    if program == "meltano" {
        return Some(rest);
    }
    let at = rest.iter().take(2).position(|argument| printable::base_name(argument) == "meltano")?;
    Some(&rest[at + 1..])
}

/// Whether a parent with these arguments was only started to run our command: its arguments end with ours (`timeout 5 …`,
/// `sudo …`, `flock FILE …`), or one of them is a script that is nothing but our command (`os.system("serializer lock")`; bash
/// lets a script's last command take its place, so that the parent may be `su -c …` itself).
fn is_wrapper(parent: &[String], ours: &[String]) -> bool {
    let [program, arguments @ ..] = ours else { return false };
    let is_program = |word: &str| printable::base_name(word) == printable::base_name(program);
    let is_ours = |script: &String| {
        // `exec` and `2>/dev/null` are the shell's.
        let mut words = script.split_whitespace().filter(|word| *word != "exec" && !word.contains(['<', '>']));
        words.next().is_some_and(is_program) && words.eq(arguments.iter())
    };
    if parent.iter().skip(1).any(|argument| argument.contains(char::is_whitespace) && is_ours(argument)) {
        return true;
    }
    // A shell runs a script, whatever arguments it gets.
    if parent.first().is_some_and(|shell| SHELLS.contains(&printable::base_name(shell).trim_start_matches('-'))) {
        return false;
    }
    let Some(split) = parent.len().checked_sub(ours.len()) else { return false };
    split > 0 && is_program(&parent[split]) && parent[split + 1..] == *arguments
}

impl Claimant for ProcessClaimant {
    fn entry(&self) -> std::io::Result<Entry> {
        let command = Some(self.command.clone()).filter(|command| !command.is_empty());
        Entry::new(self.owner.clone().map_err(std::io::Error::other)?, self.run.clone(), command)
    }

    fn transient_entry(&self) -> std::io::Result<Entry> {
        let itself = self.itself().ok_or_else(|| std::io::Error::other("this process cannot be looked at"))?;
        Entry::new(itself, None, Some("serializer unlock".to_owned()))
    }

    fn owns(&self, record: &Record, entry: &Entry, written: Option<SystemTime>) -> bool {
        if record.is_legacy() {
            return self.owns_legacy(entry, written);
        }
        self.owner.as_ref().is_ok_and(|owner| owner.is(&entry.owner))
            || self.itself_as_owner(entry).is_some_and(|itself| itself.is(&entry.owner))
    }

    fn is_present(&self) -> bool {
        getppid() == self.parent && !self.watched.iter().any(Process::has_ended)
    }

    fn absence_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.watched.iter().filter_map(Process::ended_fd).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::is_wrapper;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_parent_that_only_runs_this_command_is_a_wrapper() {
        let ours = words("serializer lock --max-attempts 1");
        for parent in ["timeout 5 /bin/serializer lock --max-attempts 1", "flock x serializer lock --max-attempts 1"] {
            assert!(is_wrapper(&words(parent), &ours), "{parent}");
        }
        let shell = |script: &str| ["sh", "-c", script].map(str::to_owned);
        assert!(is_wrapper(&shell("serializer lock  --max-attempts 1"), &ours));
        assert!(is_wrapper(&shell("serializer lock --max-attempts 1 2>/dev/null"), &ours));
        let su = ["su", "me", "-c", "exec serializer lock --max-attempts 1"].map(str::to_owned);
        assert!(is_wrapper(&su, &ours));
        assert!(!is_wrapper(&shell("serializer lock --max-attempts 1 && dbt run"), &ours));
        for parent in [
            "serializer lock --max-attempts 1",
            "bash",
            "bash nightly.sh",
            "meltano run dbtmutex:lock",
            "x lock --max-attempts 1",
        ] {
            assert!(!is_wrapper(&words(parent), &ours), "{parent}");
        }
    }
}
