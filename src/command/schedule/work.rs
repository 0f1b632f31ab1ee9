//! One run of a task, and the process that is to do it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::backend::Location;
use crate::backend::seam::Key;
use crate::mutex::key::Expired;
use crate::once::{Claim, Rule, Run};
use crate::schedule::definition::Definition;
use crate::verdict::RUN_VARIABLE;

/// The argument that makes a process of this program a runner.
pub const NAME: &str = "run-task";

/// The argument that makes it run a command within a limit.
pub const LIMITED: &str = "run-limited";

/// The digits of a message's length, which precede it, and the largest message.
pub const LENGTH: usize = 8;
pub const MAX_ORDERS: usize = 4 << 20;

/// A slot that has not started after this time is overdue, in milliseconds.
pub const OVERDUE: u64 = 60_000;

const EXECUTABLE: &str = "/proc/self/exe";

/// What all runs of a scheduler have in common.
pub struct Order {
    pub lease: Option<Duration>,
    pub is_json: bool,
}

/// One run of a task.
#[derive(Serialize, Deserialize)]
pub struct Work {
    pub task: String,
    pub location: Location,
    pub lease: Option<Duration>,
    pub rule: Rule,
    pub claim: Claim,
    /// The lease of the last run, if that was watched to its end: the runner of a store without a clock has not.
    pub expired: Option<Expired>,
    pub command: Vec<String>,
    /// What the command is to do, if it waits for its place within a limit: that is a part of its run.
    #[serde(skip)]
    limited: Option<Limited>,
    /// When it is overdue, in milliseconds since 1970.
    pub overdue_at: u64,
    pub timeout: Option<Duration>,
    pub had_failed: bool,
    pub notify: Vec<String>,
    pub is_json: bool,
}

/// A command that runs while it holds one of several slots of a lock.
#[derive(Serialize, Deserialize)]
pub struct Limited {
    pub lock: Location,
    pub slots: NonZeroU32,
    pub lease: Option<Duration>,
    pub command: Vec<String>,
}

impl Order {
    /// The run of this task that `claim` asks for.
    pub fn work(
        &self,
        (name, definition): (&str, &Definition),
        location: &Location,
        (claim, last): (Claim, &Run),
        limits: &BTreeMap<String, NonZeroU32>,
    ) -> Work {
        let limit = definition.limit.as_ref().and_then(|limit| Some((limit, *limits.get(limit)?)));
        let limited = limit.map(|(name, slots)| {
            let key = Key::lock(format!("limit-{name}.lck").as_ref());
            let (lock, lease, command) = (location.sibling(key), self.lease, definition.command.clone());
            Limited { lock, slots, lease, command }
        });
        let wrapper = || [EXECUTABLE, LIMITED].map(str::to_owned).to_vec();
        let rule = Rule { tries: Some(definition.tries), interrupted: definition.interrupted, ..Rule::default() };
        Work {
            task: name.to_owned(),
            location: location.clone(),
            lease: self.lease,
            rule,
            claim,
            expired: None,
            command: if limited.is_some() { wrapper() } else { definition.command.clone() },
            limited,
            overdue_at: claim.slot.saturating_add(definition.delay(name)).saturating_add(OVERDUE),
            timeout: definition.timeout,
            had_failed: last.has_failed_before(claim.slot),
            notify: definition.notify.clone(),
            is_json: self.is_json,
        }
    }
}

/// Starts a runner, in a process group of its own: Ctrl-C is for the scheduler alone. It has the environment of the task.
pub fn start(work: &Work, definition: &Definition) -> io::Result<Child> {
    let mut command = Command::new(EXECUTABLE);
    command.arg0("serializer").arg(NAME).arg(&work.task).process_group(0).stdin(Stdio::piped());
    // Not a part of the Meltano run that has started the scheduler.
    command
        .env_remove(RUN_VARIABLE)
        .envs(&definition.env)
        .env("SERIALIZER_TASK", &work.task)
        .env("SERIALIZER_SLOT", shown_slot(work.claim.slot));
    if let Some(directory) = &definition.directory {
        command.current_dir(directory);
    }
    let message = |text: String| format!("{:LENGTH$}{text}", text.len());
    let mut text = message(serde_json::to_string(work)?);
    if let Some(limited) = &work.limited {
        text += &message(serde_json::to_string(limited)?);
    }
    // What follows is for the command.
    text += definition.stdin.as_deref().unwrap_or("");
    let mut child = command.spawn()?;
    child.stdin.take().map_or(Ok(()), |mut orders| orders.write_all(text.as_bytes()))?;
    Ok(child)
}

/// A slot in UTC.
pub fn shown_slot(slot: u64) -> String {
    let time = i64::try_from(slot).ok().and_then(|slot| Timestamp::from_millisecond(slot).ok());
    time.unwrap_or_default().to_string()
}
