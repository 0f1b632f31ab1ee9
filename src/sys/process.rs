//! Reliable inspection of processes: the mechanism under [`crate::lock::staleness`].

use std::cell::OnceCell;
use std::collections::HashSet;
use std::io;

use nix::unistd::getsid;
use rustix::process::{Pid, getpid};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

use crate::sys::identity::ProcessIdentity;
pub use crate::sys::platform::process::{
    FIRST_PID_NAMESPACE, HAS_PIDFDS, Process, adopt_orphans, arguments, children, end_with_parent,
    find_by_inode, help, name, observe, parent, set_name, this_program, why_unidentifiable,
};
use crate::sys::platform::process::{listed, may_hide_its_environment};
use crate::sys::text;

/// Why no process with a PID runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Absence {
    #[error("its process is gone")]
    Gone,
    #[error("its process is gone (a thread has its id)")]
    Thread,
    #[error("its process has ended")]
    Ended,
}

thread_local! {
    static OWN: OnceCell<Process> = const { OnceCell::new() };
}

/// The process `pid`, unless it is proved not to run. This one is identified once.
pub fn running(pid: Pid) -> Option<Process> {
    if pid != getpid() {
        return observe(pid).ok();
    }
    let own = OWN.with(|own| own.get().cloned()).or_else(|| observe(pid).ok())?;
    if own.instance.start.is_some() {
        OWN.with(|kept| drop(kept.set(own.clone())));
    }
    Some(own)
}

/// Whether exactly this process certainly runs.
pub fn is_running((pid, instance): (Pid, ProcessIdentity)) -> bool {
    running(pid).is_some_and(|process| instance.same_as(process.instance) == Some(true))
}

/// Whether a parent has adopted this process: its session is another one, and not ours alone.
pub fn has_adopted_us(parent: Pid) -> bool {
    // Not by rustix, which panics if the session is of another PID namespace (0).
    let ours = getsid(None).ok().filter(|session| *session != nix::unistd::getpid());
    let theirs = getsid(Some(nix::unistd::Pid::from_raw(parent.as_raw_pid()))).ok();
    ours.zip(theirs).is_some_and(|(ours, theirs)| ours != theirs)
}

/// Whether `pid` is this process or one of its ancestors.
pub fn is_ancestor(pid: Pid) -> bool {
    has_ancestor_among(getpid(), &HashSet::from([pid]))
}

/// Whether `pid` or one of its ancestors is among `wanted`.
pub fn has_ancestor_among(pid: Pid, wanted: &HashSet<Pid>) -> bool {
    // More generations than exist in practice; the process table may change during the search.
    std::iter::successors(Some(pid), |child| parent(*child))
        .take(64)
        .any(|ancestor| wanted.contains(&ancestor))
}

/// All descendants of `pids`, as far as the system shows them. Reads the whole process table.
pub fn descendants_of_all(pids: &[Pid]) -> Vec<Pid> {
    let all = listed().unwrap_or_default().into_iter();
    let mut all: Vec<_> = all.map(|pid| (pid, parent(pid))).collect();
    let mut found = pids.to_vec();
    let mut seen = 0;
    // Each round finds the children of one process, and no process is found twice.
    while let Some(ancestor) = found.get(seen).copied() {
        seen += 1;
        let children = all.extract_if(.., |(_, parent)| *parent == Some(ancestor));
        found.extend(children.map(|(pid, _)| pid));
    }
    found.split_off(pids.len())
}

/// Whether a process runs, or may run, a Python script. Reads the names of all processes (5 µs
/// each), but arguments only of candidates: a hanging process blocks that read.
pub fn any_runs_python_script(script: &str) -> io::Result<bool> {
    check_listable()?;
    // The kernel names a process after the script, or after the interpreter.
    let is_candidate = |name: Vec<u8>| {
        name == script.as_bytes() || name.to_ascii_lowercase().starts_with(b"python")
    };
    let runs = |pid: Pid| match arguments(pid).as_slice() {
        // Unreadable, unless it has ended.
        [] => running(pid).is_some(),
        arguments => {
            text::base_name(&arguments[0]).starts_with("python")
                && text::program(arguments).is_some_and(|(name, _)| name == script)
        }
    };
    Ok(listed()?.into_iter().any(|pid| name(pid).is_none_or(is_candidate) && runs(pid)))
}

/// Fails if the process table is unreadable, or belongs to another PID namespace.
fn check_listable() -> io::Result<()> {
    name(getpid()).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
}

pub(super) fn table(which: ProcessesToUpdate<'_>, what: ProcessRefreshKind) -> io::Result<System> {
    let mut system = System::new().map_err(io::Error::other)?;
    system.refresh_processes_specifics(which, true, what.without_tasks());
    Ok(system)
}

/// Finds the oldest process that runs as `uid` with `variable=value` in its environment, but no
/// ancestor and no other `serializer`, which would wait for each other. Reads the whole process
/// table (milliseconds). Fails if that is unreadable, or another PID namespace's.
pub fn find_by_environment(variable: &str, value: &str, uid: u32) -> io::Result<Option<Process>> {
    check_listable()?;
    let what = ProcessRefreshKind::nothing().with_environ(UpdateKind::Always);
    let system = table(ProcessesToUpdate::All, what.with_user(UpdateKind::Always))?;
    let wanted = format!("{variable}={value}");
    let related = |one: &sysinfo::Process| {
        let pid = Pid::from_raw(i32::try_from(one.pid().as_u32()).ok()?)?;
        let is_related = one.user_id().is_some_and(|user| **user == uid)
            && (one.environ().iter().any(|entry| entry.to_str() == Some(&wanted))
                || may_hide_its_environment(one))
            && one.name() != "serializer"
            && !is_ancestor(pid);
        is_related.then(|| running(pid))?
    };
    let found = system.processes().values().filter_map(related);
    Ok(found.min_by_key(|process| (process.instance.start, process.pid().as_raw_pid())))
}

/// A decimal PID from 1 to 2³¹−1, without sign or white space.
pub fn parse_pid(text: &str) -> Option<Pid> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|pid| *pid > 0).and_then(Pid::from_raw)
}
