//! One run of a task, and its process.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::num::NonZeroU32;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::backend::Location;
use crate::backend::seam::Key;
use crate::mutex::Mutex;
use crate::mutex::key::Expired;
use crate::mutex::register::Register;
use crate::once::{Claim, Interrupted, Rule, Run};
use crate::schedule::definition::Definition;
use crate::verdict::{Judged, LocalJudge, RUN_VARIABLE, Verdict};

/// The argument that turns a process of this program into a runner.
pub const NAME: &str = "run-task";

/// The argument that runs a command within a limit.
pub const LIMITED: &str = "run-limited";

/// The number of digits of a message's length prefix, and the largest message.
pub const LENGTH: usize = 8;
pub const MAX_ORDERS: usize = 4 << 20;

/// A slot that has not started after this time is overdue, in milliseconds.
pub const OVERDUE: u64 = 60_000;

const EXECUTABLE: &str = "/proc/self/exe";

/// The options that all runs of a scheduler share.
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
    /// The lease of the last run, if the scheduler has watched it to its end. The runner has not.
    pub expired: Option<Expired>,
    pub command: Vec<String>,
    /// Variables of the command. The runner does not have them: they may name another store.
    pub env: BTreeMap<String, String>,
    /// The limit of the command, if any. Waiting for it is a part of the run.
    #[serde(skip)]
    pub limited: Option<Limited>,
    /// When it is overdue, in milliseconds since 1970.
    pub overdue_at: u64,
    pub timeout: Option<Duration>,
    pub had_failed: bool,
    pub notify: Vec<String>,
    pub is_json: bool,
}

/// Orders of a process that runs its arguments while it holds one of the slots of a lock.
#[derive(Serialize, Deserialize)]
pub struct Limited {
    pub lock: Location,
    pub slots: NonZeroU32,
    pub lease: Option<Duration>,
}

impl Limited {
    /// Whether all of its slots seem to be held.
    pub fn is_full(&self, store: &Register, judge: &LocalJudge) -> bool {
        let register = store.sibling(self.lock.key().clone(), self.lock.printable());
        let looked = Mutex::new(register, judge).look().ok().flatten();
        let is_held = |judged: &&Judged<Verdict>| matches!(judged.verdict, Verdict::Held(_));
        let held = looked.map_or(0, |(_, judged)| judged.iter().filter(is_held).count());
        u32::try_from(held).is_ok_and(|held| held >= self.slots.get())
    }
}

impl Order {
    /// The limit of a task, if it has one.
    pub fn limit(&self, definition: &Definition, location: &Location, limits: &BTreeMap<String, NonZeroU32>) -> Option<Limited> {
        let name = definition.limit.as_ref()?;
        let lock = location.sibling(Key::lock(format!("limit-{name}.lck").as_ref()));
        Some(Limited { lock, slots: *limits.get(name)?, lease: self.lease })
    }

    /// The run of this task that `claim` asks for.
    pub fn work(
        &self,
        (name, definition): (&str, &Definition),
        location: &Location,
        (claim, last): (Claim, &Run),
        limited: Option<Limited>,
    ) -> Work {
        let wrapper = limited.is_some().then(|| [EXECUTABLE, LIMITED].map(str::to_owned));
        let (tries, interrupted) = match claim.is_forced {
            // Schedulers do not repeat a run on request.
            true => (NonZeroU32::MIN, Interrupted::Stop),
            false => (definition.tries, definition.interrupted),
        };
        let own = [("SERIALIZER_TASK", name.to_owned()), ("SERIALIZER_SLOT", shown_slot(claim.slot))];
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
        Work {
            task: name.to_owned(),
            location: location.clone(),
            lease: self.lease,
            rule: Rule { tries: Some(tries), interrupted, ..Rule::default() },
            claim,
            expired: None,
            command: wrapper.into_iter().flatten().chain(definition.command.iter().cloned()).collect(),
            env: definition.env.clone().into_iter().chain(own).collect(),
            limited,
            overdue_at: claim.slot.saturating_add(definition.delay(name)).saturating_add(OVERDUE),
            timeout: definition.timeout,
            had_failed: last.has_failed_before(claim.slot),
            notify: definition.notify.clone(),
            is_json: self.is_json,
        }
    }
}

/// Starts a runner, in a process group of its own: Ctrl-C is for the scheduler alone.
pub fn start(work: &Work, definition: &Definition) -> io::Result<Child> {
    let mut command = Command::new(EXECUTABLE);
    command.arg0("serializer").arg(NAME).arg(&work.task).process_group(0);
    // The run is not a part of the Meltano run that has started the scheduler.
    command.env_remove(RUN_VARIABLE);
    if let Some(directory) = &definition.directory {
        command.current_dir(directory);
    }
    let message = |text: String| format!("{:LENGTH$}{text}", text.len());
    let mut text = message(serde_json::to_string(work)?);
    if let Some(limited) = &work.limited {
        text += &message(serde_json::to_string(limited)?);
    }
    // The rest is for the command. A pipe could block the scheduler.
    text += definition.stdin.as_deref().unwrap_or("");
    let mut orders = File::from(memfd_create("orders", MemfdFlags::CLOEXEC)?);
    orders.write_all(text.as_bytes())?;
    orders.rewind()?;
    command.stdin(orders).spawn()
}

/// A slot in UTC.
pub fn shown_slot(slot: u64) -> String {
    let time = i64::try_from(slot).ok().and_then(|slot| Timestamp::from_millisecond(slot).ok());
    time.unwrap_or_default().to_string()
}
