//! For which process a lock is acquired, and whether that still wants the lock.

use std::cell::OnceCell;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::process::{Pid, getpid, getppid};

use crate::error::Error;
use crate::lease::process::Keeper;
use crate::lock::staleness::{RUN_VARIABLE, started_after};
use crate::lock::{Requester, Stored};
use crate::record::Entry;
use crate::record::owner::Owner;
use crate::sys::identity::{HostIdentity, ProcessIdentity};
use crate::sys::process::{self, FIRST_PID_NAMESPACE, Process};
use crate::sys::text::{self, SHELLS};

/// Programs that adopt orphans, or are service managers.
const ADOPTERS: &str = "systemd init tini docker-init dumb-init catatonit s6-svscan runit pause";

/// The subcommands of Meltano that start plugins.
const SUBCOMMANDS: [&str; 5] = ["invoke", "run", "job", "el", "elt"];

const NAME_ANOTHER: &str = "`serializer run -- COMMAND` holds it for one command; in a script, \
                            pass `--owner-pid $$` to `lock` and `unlock`, or set \
                            `SERIALIZER_OWNER_PID`";

/// A process that owns, or wants to own, a lock; this process acts for it.
#[derive(Debug)]
pub struct ProcessRequester {
    owner: Result<Owner, Error>,
    command: Option<String>,
    run: Option<String>,
    /// Why it wants the lock, in the user's words.
    pub reason: Option<String>,
    /// Read once: after an orphan has been adopted, the answer is another process.
    parent: Option<Pid>,
    /// The parent and the owner. When either has ended, no process waits for the lock any more.
    watched: Vec<Process>,
    /// This process counts as the owner, too: shells may exec the last command of a script.
    is_itself_an_owner: bool,
    needs_keeper: bool,
    keeper: OnceCell<Keeper>,
}

impl ProcessRequester {
    /// Finds the owner: the process `owner_pid`, or else the parent of this one. With
    /// `needs_keeper`, another process, started when the lock seems to be free, keeps the lease.
    pub fn discover(owner_pid: Option<Pid>, needs_keeper: bool) -> Self {
        let (here, parent) = (&HostIdentity::here(), getppid());
        let watched: Vec<_> =
            parent.into_iter().chain(owner_pid).filter_map(process::running).collect();
        // A pidfd opened before this check is the parent's, even if its PID is used again.
        let parent_ended = getppid() != parent || parent.is_some_and(process::has_adopted_us);

        let pid = owner_pid.or(parent);
        let arguments = pid.map(process::arguments).unwrap_or_default();
        let process = watched.iter().find(|process| Some(process.pid()) == pid);
        let identified = |process| {
            let owner = Owner::new(process, here).identified();
            owner.map_err(|error| Error::usage(error.to_string()))
        };
        let owner = match (pid, process) {
            (None, _) => {
                let place = "in another container (PID namespace)";
                Err(unfit(format!("the parent process is {place}, so it cannot own a lock")))
            }
            (Some(_), Some(process)) if owner_pid.is_some() => identified(process),
            (Some(pid), None) if owner_pid.is_some() => {
                let hint = "check `--owner-pid` or `SERIALIZER_OWNER_PID`";
                Err(Error::usage(format!("no such process: {pid}")).with_hint(hint))
            }
            (Some(pid), Some(process)) if !parent_ended => {
                check_parent(here, pid, &arguments).and_then(|()| identified(process))
            }
            // Nothing is wrong with the command line.
            _ => Err(Error::failed("the parent process has ended").with_hint(NAME_ANOTHER)),
        };
        Self {
            owner,
            command: Some(text::command_line(&arguments)).filter(|command| !command.is_empty()),
            run: std::env::var(RUN_VARIABLE).ok().filter(|run| !run.is_empty()),
            reason: None,
            parent,
            watched,
            is_itself_an_owner: owner_pid.is_none(),
            needs_keeper,
            keeper: OnceCell::new(),
        }
    }

    pub fn describe(&self) -> Result<String, Error> {
        let pid = self.owner.as_ref().map_err(Clone::clone)?.pid;
        let command =
            self.command.as_ref().map(|command| format!(" ({command})")).unwrap_or_default();
        Ok(format!("pid {pid}{command}"))
    }

    /// The process that keeps the lease, started if need be. It ends if it is dropped without
    /// orders.
    pub fn keeper(&self) -> io::Result<&Keeper> {
        if self.keeper.get().is_none() {
            let _ = self.keeper.set(Keeper::spawn()?);
        }
        self.keeper.get().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub fn has_started(&self, keeper: (Pid, ProcessIdentity)) -> bool {
        self.keeper.get().is_some_and(|own| own.identity == keeper)
    }
}

/// The process that is to own a lock, unless it is this one.
pub fn other_than_us(owner: Option<Pid>) -> Result<Option<Pid>, Error> {
    let Some(pid) = owner.filter(|pid| *pid == getpid()) else { return Ok(owner) };
    let why = "it is this very command, which exits at once";
    Err(unfit(format!("cannot lock for pid {pid}: {why}")))
}

fn unfit(why: impl Into<String>) -> Error {
    Error::usage(why).with_hint(NAME_ANOTHER)
}

/// Whether the parent lives about as long as the work that the lock is for.
fn check_parent(here: &HostIdentity, pid: Pid, arguments: &[String]) -> Result<(), Error> {
    let command = text::command_line(arguments);
    // Some write their state behind their name: `init [2]`.
    let program =
        arguments.first().and_then(|program| program.split(' ').next()).map_or("", text::base_name);
    let never_ends = pid.is_init() && here.pid_namespace == Some(FIRST_PID_NAMESPACE);
    let adopts = ADOPTERS.split(' ').any(|adopter| adopter == program);
    if never_ends || adopts && (pid.is_init() || program == "systemd") {
        let why = "never exits, so the lock would never be released";
        return Err(unfit(format!("the parent process, pid {pid} ({command}), {why}")));
    }
    let ours: Vec<String> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    if is_wrapper(arguments, &ours) {
        let why = "only runs this command, so the lock would be released immediately";
        return Err(unfit(format!("the parent process (`{command}`) {why}")));
    }
    let is_subcommand = |argument: &&String| SUBCOMMANDS.contains(&argument.as_str());
    let subcommand = of_meltano(arguments).and_then(|all| all.iter().find(is_subcommand));
    if subcommand.is_none_or(|it| it != "invoke") {
        return Ok(());
    }
    let why = "`meltano invoke` exits immediately, which would release the lock";
    let hint = "lock within one run (`meltano run … dbtmutex:lock dbt:run dbtmutex:unlock`), or \
                name another owner: in a script, `SERIALIZER_OWNER_PID=$$ meltano invoke \
                dbtmutex:lock`";
    Err(Error::usage(why).with_hint(hint))
}

/// The arguments of Meltano, which a launcher and one more word may precede.
fn of_meltano(arguments: &[String]) -> Option<&[String]> {
    let (program, rest) = text::program(arguments)?;
    let words = std::iter::once(program).chain(rest.iter().map(|word| text::base_name(word)));
    let at = words.take(3).position(|word| word == "meltano")?;
    Some(&rest[at..])
}

/// Whether a parent with these arguments only runs our command: its arguments end with ours
/// (`timeout 5 …`, `sudo …`), or one of them is a script that is nothing but our command:
/// `os.system("serializer lock")`, or `su -c …`, since bash may exec a script's last command.
fn is_wrapper(parent: &[String], ours: &[String]) -> bool {
    let [program, arguments @ ..] = ours else { return false };
    let is_program = |word: &str| text::base_name(word) == text::base_name(program);
    let is_ours = |script: &String| {
        // `exec` and `2>/dev/null` are the shell's.
        let mut words =
            script.split_whitespace().filter(|word| *word != "exec" && !word.contains(['<', '>']));
        words.next().is_some_and(is_program) && words.eq(arguments.iter())
    };
    let is_script = |word: &String| word.contains(char::is_whitespace) && is_ours(word);
    if parent.iter().skip(1).any(is_script) {
        return true;
    }
    // A shell runs a script, whatever arguments it gets.
    let is_shell = |word: &String| SHELLS.contains(&text::base_name(word).trim_start_matches('-'));
    let split = parent.len().saturating_sub(ours.len());
    let is_ours = || is_program(&parent[split]) && parent[split + 1..] == *arguments;
    split > 0 && !parent.first().is_some_and(is_shell) && is_ours()
}

impl Requester for ProcessRequester {
    fn entry(&self) -> io::Result<Entry> {
        let keeper = self.needs_keeper.then(|| self.keeper()).transpose()?;
        let owner = self.owner.clone().map_err(io::Error::other)?;
        let entry = Entry::new(owner, self.run.clone(), self.command.clone())?;
        let keeper = keeper.map(|keeper| keeper.identity);
        Ok(Entry { keeper, reason: self.reason.clone(), ..entry })
    }

    fn owns(&self, stored: &Stored, entry: &Entry) -> bool {
        // Looked at only when an entry names the PID of this process.
        let itself = (self.is_itself_an_owner && entry.owner.pid == getpid())
            .then(|| Owner::of(getpid(), &HostIdentity::here()));
        let itself = itself.and_then(Result::ok);
        let has_pid = |owner: &Owner| {
            owner.pid == entry.owner.pid && !started_after(owner.instance, stored.state.written)
        };
        let is = |owner: &Owner| {
            if stored.is_legacy() { has_pid(owner) } else { owner.is(&entry.owner) }
        };
        self.owner.iter().chain(&itself).any(is)
    }

    fn is_alive(&self) -> bool {
        getppid() == self.parent && !self.watched.iter().any(Process::has_ended)
    }

    fn exit_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.watched.iter().filter_map(Process::ended_fd).collect()
    }
}
