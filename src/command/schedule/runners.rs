//! The runs that a scheduler has started, and their end when the scheduler stops.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal, getpid, kill_process, kill_process_group};

use crate::command::job::{Report, receive_end};
use crate::run::reap_orphans;
use crate::sys::clock::{millis, since_boot};
use crate::sys::poll::is_readable;

/// Time for runners to end after SIGTERM, in milliseconds: their commands have ten seconds.
const ENDING: u64 = 20_000;

#[derive(Default)]
pub struct Runners {
    all: Vec<Runner>,
    /// When to end them, in milliseconds since boot; after that, when to kill them.
    stop_at: Option<u64>,
    is_ending: bool,
}

struct Runner {
    task: String,
    process: Child,
    /// Its connection, until it has reported its end.
    channel: Option<OwnedFd>,
}

impl Runners {
    pub fn add(&mut self, task: &str, (process, channel): (Child, OwnedFd)) {
        self.all.push(Runner { task: task.to_owned(), process, channel: Some(channel) });
    }

    /// Become readable when there are reports.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.all.iter().filter_map(|runner| Some(runner.channel.as_ref()?.as_fd())).collect()
    }

    /// The tasks of which runners have reported the end, with the reports, and the connections to
    /// confirm them. A runner that finds its connection closed stores its end itself.
    pub fn reports(&mut self) -> Vec<(String, Report, OwnedFd)> {
        let report = |runner: &mut Runner| {
            let channel = runner.channel.take_if(|channel| is_readable(channel))?;
            Some((runner.task.clone(), receive_end(&channel)?, channel))
        };
        self.all.iter_mut().filter_map(report).collect()
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether this task runs.
    pub fn has(&self, task: &str) -> bool {
        self.all.iter().any(|runner| runner.task == task)
    }

    /// The tasks of the runners that have ended since the last call, and whether they were killed.
    pub fn reap(&mut self) -> BTreeMap<String, bool> {
        let has_ended = |runner: &mut Runner| !matches!(runner.process.try_wait(), Ok(None));
        let ended = self.all.extract_if(.., has_ended).map(|mut runner| {
            let was_killed = runner.process.wait().is_ok_and(|status| status.signal().is_some());
            (runner.task, was_killed)
        });
        let ended = ended.collect();
        if getpid().is_init() {
            let own: Vec<_> =
                self.all.iter().map(|runner| Pid::from_child(&runner.process)).collect();
            reap_orphans(&own);
        }
        ended
    }

    /// Ends the runs after this time; at once on a second call.
    pub fn stop(&mut self, timeout: Duration) {
        let timeout = if self.stop_at.is_some() { 0 } else { millis(timeout) };
        if !self.is_ending {
            self.stop_at = Some(since_boot().saturating_add(timeout));
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
        for runner in &self.all {
            let pid = Pid::from_child(&runner.process);
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
