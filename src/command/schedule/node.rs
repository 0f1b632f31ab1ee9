//! A scheduler: starts tasks when they are due, unless a scheduler on another host was faster.
//! It stores when it first saw a task, and claims slots for its runners, which keep the locks.

mod hand_over;
mod steps;

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::process::getpid;

use super::catalog::Source;
use super::events::Events;
use super::runners::Runners;
use super::task::Tracked;
use super::task_at;
use super::work::Order;
use crate::cli::TickArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::lock::Mutex;
use crate::lock::register::Register;
use crate::lock::staleness::{LocalLiveness, Orphans};
use crate::record::owner::Owner;
use crate::run::was_ignored;
use crate::schedule::definition::Catalog;
use crate::sys::clock::since_1970;
use crate::sys::identity::HostIdentity;

/// For each running task, how much later than its time a task is inspected, in milliseconds, and
/// the most tasks that count: less busy schedulers are earlier.
const PER_RUNNING: u64 = 8;
const MOST_RUNNING: usize = 12;

/// The most milliseconds before any claim, by a hash of host and task.
const SPREAD: u64 = 8;

/// The longest time for claims without a look at signals, ends of runs, and all tasks, in
/// milliseconds.
const PASS: u64 = 20;

/// Poll interval for a full limit, in milliseconds.
const FULL: u64 = 1000;

/// From this number of tasks on, a database reads all of them at once.
const MANY: usize = 4;

/// How old a slot may be for a tick without catching up, in milliseconds: a crontab starts it
/// once a minute.
const TICK: u64 = 60_000;

struct Node<'a> {
    source: Source,
    order: Order,
    /// How many tasks run at a time.
    jobs: usize,
    /// How long to wait for tasks after SIGTERM; `None` for a tick, which exits when nothing is
    /// due.
    stop_timeout: Option<Duration>,
    tasks: BTreeMap<String, Tracked<'a>>,
    runners: Runners,
    judge: &'a LocalLiveness,
    any: Register,
    owner: Owner,
    host: String,
    up_since: u64,
    /// The store's clock minus the host's.
    offset: i64,
    events: Events,
    /// When to try the failed store again.
    retry_at: u64,
    store_failures: u32,
    /// Whether all tasks were inspected once.
    has_begun: bool,
}

/// Runs until a signal, or, for a tick, until nothing is due.
pub fn run(
    args: &TickArgs,
    stop_timeout: Option<Duration>,
    environment: &Environment,
) -> Result<(), Error> {
    let mut source = Source::new(&args.catalog);
    let catalog = source.read()?;
    let order = Order::new(&args.catalog, args.json, environment)?;
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = args.jobs.map_or_else(processors, usize::from);
    let here = HostIdentity::here();
    let host = here.host.clone().unwrap_or_default();
    let cannot = |error| Error::io("cannot schedule tasks", &error);
    let owner = Owner::of(getpid(), &here).map_err(cannot)?;
    let judge = LocalLiveness::new(here, Orphans::Ignore);
    if was_ignored(Signal::SIGCHLD) {
        // Its runners would claim slots, and then refuse to run.
        let why = "cannot schedule tasks: SIGCHLD is ignored, so their exit codes would be lost";
        let hint = "`env --default-signal=CHLD serializer schedule …`";
        return Err(Error::failed(why).with_hint(hint));
    }
    if stop_timeout.is_some() {
        let (tasks, shown) = (catalog.tasks.len(), order.place.shown_place());
        tracing::info!("tasks to schedule: {tasks}, {jobs} at a time; their state is in `{shown}`");
    }
    let mut node = Node {
        source,
        any: Register::open(&order.place)?,
        order,
        jobs,
        stop_timeout,
        tasks: BTreeMap::new(),
        runners: Runners::default(),
        judge: &judge,
        owner,
        host,
        up_since: since_1970().saturating_sub(if stop_timeout.is_none() { TICK } else { 0 }),
        offset: 0,
        events: Events::new().map_err(cannot)?,
        retry_at: 0,
        store_failures: 0,
        has_begun: false,
    };
    node.run(catalog)
}

impl<'a> Node<'a> {
    /// Whether it exits when nothing is due.
    fn is_tick(&self) -> bool {
        self.stop_timeout.is_none()
    }

    /// The estimated time of the store.
    fn now(&self) -> u64 {
        since_1970().saturating_add_signed(self.offset)
    }

    fn run(&mut self, catalog: Catalog) -> Result<(), Error> {
        self.adopt(catalog);
        loop {
            let signals = self.events.receive();
            if signals.contains(&Signal::SIGHUP) {
                self.source.reload();
            }
            if signals.iter().any(|signal| [Signal::SIGTERM, Signal::SIGINT].contains(signal)) {
                self.runners.stop(self.stop_timeout.unwrap_or_default());
            }
            self.store_ends();
            self.reap();
            let stop_at = self.runners.stop_at();
            if stop_at.is_some() {
                if self.runners.len() == 0 {
                    return Ok(());
                }
                self.runners.end();
            } else {
                if self.events.clock_was_set() {
                    self.retry_at = 0;
                    self.tasks.values_mut().for_each(Tracked::check_now);
                }
                if let Some(catalog) = self.source.changed() {
                    tracing::info!("read the tasks again: {}", catalog.tasks.len());
                    self.adopt(catalog);
                }
                self.work()?;
                let is_idle = self.is_tick() && self.runners.len() == 0;
                if is_idle && self.tasks.values().all(|task| task.check_at > self.now()) {
                    return Ok(());
                }
            }
            let next = self.tasks.values().map(|task| self.ready_at(task)).min();
            let next = next.filter(|_| stop_at.is_none()).unwrap_or(u64::MAX);
            let next = next.saturating_add_signed(-self.offset);
            let slept = self.events.sleep(next, self.runners.stop_at(), &self.runners.fds());
            slept.map_err(|error| Error::io("cannot wait", &error))?;
        }
    }

    /// The lock of a task. A store that is down makes neither the other tasks nor a runner wait.
    fn mutex(&self, task: &str) -> Mutex<'a> {
        let register = self.any.sibling(&task_at(&self.order.place, task));
        let mut mutex = Mutex::new(register, self.judge);
        mutex.patience = Duration::ZERO;
        mutex
    }

    /// Works by these definitions from now on.
    fn adopt(&mut self, catalog: Catalog) {
        catalog.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        self.tasks.retain(|name, _| catalog.tasks.contains_key(name));
        for (name, definition) in catalog.tasks {
            if let Some(task) = self.tasks.get_mut(&name) {
                task.adopt(definition);
                continue;
            }
            let mutex = self.mutex(&name);
            self.tasks.insert(name, Tracked::new(definition, mutex));
        }
    }

    /// Schedules a check of the tasks of ended runners, and of tasks that waited for room.
    fn reap(&mut self) {
        let (now, ended) = (self.now(), self.runners.reap());
        for (name, task) in &mut self.tasks {
            if let Some(was_killed) = ended.get(name) {
                (task.check_at, task.was_killed) = (now, *was_killed);
            } else if task.needs_room && !ended.is_empty() {
                (task.check_at, task.needs_room) = (now, false);
            }
        }
    }
}
