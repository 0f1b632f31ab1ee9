//! One run of a task, and its process.

use std::collections::BTreeMap;
use std::io::{self, Seek, Write};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cli::{CatalogArgs, PlaceArgs};
use crate::command::once::made;
use crate::config::{ANY, Environment};
use crate::error::Error;
use crate::lock::once::Claim;
use crate::lock::register::Register;
use crate::lock::staleness::{Judged, LocalLiveness, RUN_VARIABLE, Verdict};
use crate::lock::waiting::Waiting;
use crate::lock::{Grant, Mutex, Request};
use crate::logging;
use crate::record::run::{Interrupted, Rule, Run};
use crate::schedule::definition::Definition;
use crate::store::Location;
use crate::store::address::StoreUrl;
use crate::store::seam::{Key, Kind};
use crate::sys::channel;
use crate::sys::files::anonymous_file;
use crate::sys::process::this_program;
use crate::sys::text::{self, io_message};

/// The argument that turns a process of this program into a runner.
pub const NAME: &str = "run-task";

/// The argument that runs a command within a limit.
pub const LIMITED: &str = "run-limited";

/// A slot that has not started after this time is overdue, in milliseconds.
pub const OVERDUE: u64 = 60_000;

pub struct TaskStore<'a> {
    /// The location of any task.
    pub place: Location,
    /// The register of any task; all use one connection.
    pub any: Register,
    pub judge: &'a LocalLiveness,
    lease: Option<Duration>,
}

#[derive(Serialize, Deserialize)]
pub struct Work {
    pub task: String,
    pub location: Location,
    pub lease: Option<Duration>,
    pub rule: Rule,
    pub claim: Claim,
    /// The acquisition of the scheduler. Without one, the runner claims the slot.
    pub granted: Option<Grant>,
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
    /// Whether all slots of its lock seem to be held.
    pub fn is_full(&self, lock: &mut Mutex<'_>) -> bool {
        let is_held = |judged: &&Judged<Verdict>| matches!(judged.verdict, Verdict::Held(_));
        lock.look().is_ok_and(|(_, judged)| {
            judged.iter().filter(is_held).count() >= self.slots.get() as usize
        })
    }
}

impl<'a> TaskStore<'a> {
    pub fn open(
        args: &CatalogArgs,
        environment: &Environment,
        judge: &'a LocalLiveness,
    ) -> Result<Self, Error> {
        let PlaceArgs { store, dir, .. } = &args.place;
        let is_open = store.is_none() && dir.is_none() && !environment.is_set("STORE");
        // With its state in SQLite, a project has one host.
        let meltano =
            std::env::var("MELTANO_DATABASE_URI").ok().filter(|_| args.meltano && is_open);
        let meltano = meltano.filter(|uri| !uri.is_empty() && !uri.starts_with("sqlite"));
        let store = meltano.as_deref().map(StoreUrl::parse).or(store.clone());
        let args = PlaceArgs { store, ..args.place.clone() };
        let place = made(environment.key(Kind::Schedule, &args, ANY)?)?;
        let lease = environment.lease(&args, &place)?;
        Ok(Self { any: Register::open(&place)?, place, judge, lease })
    }

    pub fn location(&self, task: &str) -> Location {
        self.place.sibling(Key { kind: Kind::Schedule, name: task.into() })
    }

    pub fn mutex(&self, task: &str) -> Mutex<'a> {
        Mutex::new(self.any.sibling(&self.location(task)), self.judge)
    }

    /// The run of this task that `claim` asks for.
    pub fn work(&self, name: &str, definition: &Definition, claim: Claim, last: &Run) -> Work {
        let limited = definition.limit.as_ref().map(|(limit, slots)| {
            let lock = self.place.sibling(Key::lock(format!("limit-{limit}.lck").as_ref()));
            Limited { lock, slots: *slots, lease: self.lease }
        });
        let mut command = definition.command.clone();
        if limited.is_some() {
            let program = this_program().to_string_lossy().into_owned();
            command.splice(..0, [program, LIMITED.to_owned()]);
        }
        let (tries, interrupted) = match claim.is_forced {
            // Schedulers do not repeat a run on request.
            true => (NonZeroU32::MIN, Interrupted::Stop),
            false => (definition.tries(), definition.interrupted),
        };
        let mut env = definition.env.clone();
        env.insert("SERIALIZER_TASK".to_owned(), name.to_owned());
        env.insert("SERIALIZER_SLOT".to_owned(), shown_slot(claim.slot));
        Work {
            task: name.to_owned(),
            location: self.location(name),
            lease: self.lease,
            rule: Rule { tries: Some(tries), interrupted, ..Rule::default() },
            claim,
            granted: None,
            command,
            env,
            limited,
            overdue_at: claim.slot.saturating_add(definition.delay(name)).saturating_add(OVERDUE),
            timeout: definition.timeout,
            had_failed: last.has_failed_before(claim.slot),
            notify: definition.notify.clone(),
            is_json: false,
        }
    }
}

impl Work {
    pub fn request(&self) -> Request {
        Request {
            lease: self.lease,
            once: Some(self.rule),
            claim: Some(self.claim),
            ..Request::default()
        }
    }
}

/// One attempt to claim a slot.
pub const ATTEMPT: Waiting = Waiting {
    max_attempts: Some(NonZeroU32::MIN),
    sleep: Duration::from_secs(1),
    timeout: None,
    warn_after: None,
};

/// The command that does it, and the connection by which it reports the end.
pub fn runner(work: &Work, definition: &Definition) -> io::Result<(Command, OwnedFd)> {
    let mut command = Command::new(this_program());
    command.arg0("serializer").arg(NAME).arg(&work.task);
    // Not a part of the Meltano run that has started the scheduler.
    command.env_remove(RUN_VARIABLE);
    if let Some(directory) = &definition.directory {
        command.current_dir(directory);
    }
    // A pipe may be too small, and a scheduler does not wait.
    let mut orders = anonymous_file()?;
    let log = logging::args();
    let mut text = serde_json::to_string(&(&log, work))? + "\n";
    if let Some(limited) = &work.limited {
        text += &(serde_json::to_string(&(&log, limited))? + "\n");
    }
    // What follows is for the command.
    text += definition.stdin.as_deref().unwrap_or("");
    orders.write_all(text.as_bytes())?;
    orders.rewind()?;
    let (ours, theirs) = channel::connection()?;
    channel::pass(&ours, b"+", orders.as_fd())?;
    command.stdin(theirs);
    Ok((command, ours))
}

/// The end of a message about a runner that could not be started.
pub fn why_not_started(definition: &Definition, error: &io::Error) -> String {
    let place = definition.directory.as_ref().map(|place| format!(" in `{}`", text::path(place)));
    format!("{}: {}", place.unwrap_or_default(), io_message(error))
}

/// A slot in UTC.
pub fn shown_slot(slot: u64) -> String {
    time_of(slot).to_string()
}

pub fn time_of(slot: u64) -> Timestamp {
    let time = i64::try_from(slot).ok().and_then(|slot| Timestamp::from_millisecond(slot).ok());
    time.unwrap_or_default()
}
