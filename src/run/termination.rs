//! Ends processes and all that they have started, because the lock under which they run is lost:
//! TERM, a time of grace, KILL.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpid, kill_process};

use super::has_come;
use crate::sys::clock::since_boot;
use crate::sys::poll;
use crate::sys::process::{self, Process};

/// How often to look for processes that were started while others were stopped.
const MAX_ROUNDS: usize = 50;

/// How often to look for processes that are started in the time of grace.
const REFRESH: Duration = Duration::from_millis(50);

/// Ends `root` and all that it has started, and all that this process has started or adopted, but
/// not this process. Asks them to, and at `kill_at`, in milliseconds since boot, kills those that
/// are left.
pub fn end_tree(root: Pid, kill_at: u64) -> io::Result<()> {
    let time_left = || Duration::from_millis(kill_at.saturating_sub(since_boot()));
    // Listed first: after its parent has ended, a process is not found by it any more.
    let mut all: Vec<Process> =
        process::running(root).filter(|_| root != getpid()).into_iter().collect();
    add_descendants(&mut all);
    if !time_left().is_zero() {
        signal_all(&all, Signal::TERM);
        while let Some(running) = all.iter().find(|process| !process.has_ended()) {
            if time_left().is_zero() {
                tracing::error!("killing the command, which has not ended in time");
                break;
            }
            poll::sleep(time_left().min(REFRESH), running.ended_fd().as_slice())?;
            add_descendants(&mut all);
        }
    }
    // A stopped process starts no others.
    for _ in 0..MAX_ROUNDS {
        signal_all(&all, Signal::STOP);
        if !add_descendants(&mut all) {
            break;
        }
    }
    signal_all(&all, Signal::KILL);
    Ok(())
}

/// Signals all that this process has started or adopted, and all that those have.
pub fn signal_descendants(signal: Signal) {
    let mut all = Vec::new();
    add_descendants(&mut all);
    signal_all(&all, signal);
}

/// Adds what this process and those that still run have started; tells whether that was anything.
fn add_descendants(all: &mut Vec<Process>) -> bool {
    let running = all.iter().filter(|process| !process.has_ended()).map(Process::pid);
    let known: HashSet<Pid> = running.chain([getpid()]).collect();
    let found = process::descendants_of_all(&known.iter().copied().collect::<Vec<_>>());
    let new = found.into_iter().filter(|pid| !known.contains(pid));
    // A number may have become another process's since it was listed.
    let new = new.filter_map(|pid| {
        process::running(pid).filter(|_| process::has_ancestor_among(pid, &known))
    });
    let before = all.len();
    all.extend(new);
    all.len() > before
}

fn signal_all(all: &[Process], signal: Signal) {
    for process in all {
        // It may have ended. Without pidfds: the PID of a child that was not reaped is its own.
        let child = WaitId::Pid(process.pid());
        let is_child = || has_come(child, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).is_ok();
        if !process.signal(signal) && is_child() {
            let _ = kill_process(process.pid(), signal);
        }
    }
}
