//! Reliable inspection of processes: the mechanism under [`crate::lock::staleness`].

use std::collections::HashSet;
use std::io;

use nix::unistd::getsid;
use rustix::process::{Pid, getpid};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

use crate::sys::identity::ProcessIdentity;
pub use crate::sys::platform::process::{
    FIRST_PID_NAMESPACE, Process, adopt_orphans, arguments, children, end_with_parent,
    find_by_inode, help, name, observe, parent, set_name, this_program, why_unidentifiable,
};
use crate::sys::platform::process::{any, check_listable, may_hide_its_environment, parents};
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
    static OWN: Option<Process> = observe(getpid()).ok();
}

/// The process `pid`, unless it is proved not to run. This one is observed once.
pub fn running(pid: Pid) -> Option<Process> {
    if pid == getpid() { OWN.with(Clone::clone) } else { observe(pid).ok() }
}

/// Whether exactly this process certainly runs.
pub fn is_running((pid, instance): (Pid, ProcessIdentity)) -> bool {
    running(pid).is_some_and(|process| instance.same_as(process.instance) == Some(true))
}

/// Whether a parent has certainly adopted this process: a child is in its parent's session, unless
/// it has started its own.
pub fn has_adopted_us(parent: Pid) -> bool {
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
    let mut all = parents();
    let mut found = pids.to_vec();
    let mut seen = 0;
    // Each round finds the children of one process, and no process is found twice.
    while let Some(ancestor) = found.get(seen).copied() {
        seen += 1;
        found.extend(
            all.extract_if(.., |(_, parent)| *parent == Some(ancestor)).map(|(pid, _)| pid),
        );
    }
    found.split_off(pids.len())
}

/// Whether a process runs, or may run, the Python script `script`. Reads every process's name (5 µs
/// each), but arguments only of candidates: a hanging process blocks that read. Fails if the
/// processes cannot be listed.
pub fn any_runs_python_script(script: &str) -> io::Result<bool> {
    // The kernel names a process after the script, or after the interpreter.
    any(
        |name| name == script.as_bytes() || name.starts_with(b"python"),
        |arguments| {
            let is_python = arguments
                .first()
                .is_some_and(|program| text::base_name(program).starts_with("python"));
            is_python && text::program(arguments).is_some_and(|(name, _)| name == script)
        },
    )
}

/// Finds the oldest process that runs as `uid` with `variable=value` in its environment, and its
/// command line for people. Ignores ancestors of this process and other `serializer` processes,
/// which would wait for each other. Reads the whole process table (milliseconds). Fails if the
/// table is unreadable, or belongs to another PID namespace.
pub fn find_by_environment(
    variable: &str,
    value: &str,
    uid: u32,
) -> io::Result<Option<(Process, String)>> {
    check_listable()?;
    let what = ProcessRefreshKind::nothing().without_tasks().with_environ(UpdateKind::Always);
    let what = what.with_user(UpdateKind::Always).with_cmd(UpdateKind::Always);
    let mut system = System::new().map_err(io::Error::other)?;
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    let wanted = format!("{variable}={value}");
    let related = |one: &sysinfo::Process| {
        let pid = Pid::from_raw(i32::try_from(one.pid().as_u32()).ok()?)?;
        let is_related = one.user_id().is_some_and(|user| **user == uid)
            && (one.environ().iter().any(|entry| entry.to_str() == Some(&wanted))
                || may_hide_its_environment(one))
            && one.name() != "serializer"
            && !is_ancestor(pid);
        let process = is_related.then(|| running(pid))??;
        let arguments: Vec<String> =
            one.cmd().iter().map(|word| word.to_string_lossy().into_owned()).collect();
        Some((process, text::command_line(&arguments)))
    };
    Ok(system
        .processes()
        .values()
        .filter_map(related)
        .min_by_key(|(process, _)| process.pid().as_raw_pid()))
}

/// A decimal PID from 1 to 2³¹−1, without sign or white space.
pub fn parse_pid(text: &str) -> Option<Pid> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|pid| *pid > 0).and_then(Pid::from_raw)
}
