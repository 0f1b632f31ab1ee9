//! The runs that a scheduler has started, and their end when the scheduler stops.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal, getpid, kill_process, kill_process_group};

use crate::command::job::{Report, confirm_end, receive_end};
use crate::run::reap_orphans;
use crate::sys::clock::since_boot;
use crate::sys::poll::is_readable;

/// Time for runners to end after SIGTERM, in milliseconds: their commands have ten seconds.
const ENDING: u64 = 20_000;

#[derive(Default)]
pub struct Runners {
    /// With the names of their tasks.
    children: Vec<(String, Child)>,
    /// The connections of those that have not reported their ends.
    channels: BTreeMap<String, OwnedFd>,
    /// When to end them, in milliseconds since boot; after that, when to kill them.
    stop_at: Option<u64>,
    is_ending: bool,
}

impl Runners {
    pub fn add(&mut self, task: &str, (runner, channel): (Child, OwnedFd)) {
        self.children.push((task.to_owned(), runner));
        self.channels.insert(task.to_owned(), channel);
    }

    /// Become readable when there are reports.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.channels.values().map(AsFd::as_fd).collect()
    }

    /// Answers the reports of ends that `store` could store.
    pub fn answer(&mut self, mut store: impl FnMut(&str, &Report) -> bool) {
        // The others find their connections closed, and store their ends themselves.
        for (task, channel) in self.channels.extract_if(.., |_, channel| is_readable(channel)) {
            if receive_end(&channel).is_some_and(|report| store(&task, &report)) {
                confirm_end(&channel);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.children.len()
    }

    /// Whether this task runs.
    pub fn has(&self, task: &str) -> bool {
        self.children.iter().any(|(name, _)| name == task)
    }

    /// The tasks of the runners that have ended since the last call, and whether they were killed.
    pub fn reap(&mut self) -> BTreeMap<String, bool> {
        let ended =
            self.children.extract_if(.., |(_, child)| !matches!(child.try_wait(), Ok(None)));
        let was_killed =
            |child: &mut Child| child.wait().is_ok_and(|status| status.signal().is_some());
        let ended = ended.map(|(name, mut child)| (name, was_killed(&mut child))).collect();
        if getpid().is_init() {
            reap_orphans(
                &self.children.iter().map(|(_, child)| Pid::from_child(child)).collect::<Vec<_>>(),
            );
        }
        ended
    }

    /// Ends the runs after this time; at once on a second call.
    pub fn stop(&mut self, timeout: Duration) {
        let timeout = if self.stop_at.is_some() { Duration::ZERO } else { timeout };
        if !self.is_ending {
            self.stop_at = Some(
                since_boot()
                    .saturating_add(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX / 2)),
            );
        }
        if self.len() > 0 {
            tracing::info!("stopping: tasks still running: {}", self.len());
        }
    }

    /// When to end the runs, in milliseconds since boot.
    pub fn stop_at(&self) -> Option<u64> {
        self.stop_at
    }

    /// Ends the runs if it is time. Another scheduler may rerun their tasks at once.
    pub fn end(&mut self) {
        if self.stop_at.is_none_or(|stop_at| since_boot() < stop_at) {
            return;
        }
        for (_, child) in &self.children {
            let pid = Pid::from_child(child);
            // The whole group: where there is a lease, the command has to end with its runner.
            let _ = if self.is_ending {
                kill_process_group(pid, Signal::KILL)
            } else {
                kill_process(pid, Signal::TERM)
            };
        }
        (self.is_ending, self.stop_at) = (true, Some(since_boot() + ENDING));
    }
}
