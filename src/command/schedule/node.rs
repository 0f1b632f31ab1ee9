//! A scheduler: starts tasks when they are due, unless a scheduler on another host was faster.
//! It stores when it first saw a task, and claims slots for its runners, which keep the locks.

mod hand_over;
mod steps;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::process::{self, Pid, getpid, kill_process, kill_process_group};

use super::catalog::Source;
use super::events::Events;
use super::task::{Runner, Tracked};
use super::work::TaskStore;
use crate::cli::TickArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::lock::Mutex;
use crate::lock::staleness::{LocalLiveness, Orphans};
use crate::record::owner::Owner;
use crate::run::{reap_orphans, was_ignored};
use crate::schedule::definition::Catalog;
use crate::sys::clock::{millis, since_1970, since_boot};
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

/// From this number of due tasks on, and from this part of all, a database reads all at once.
const MANY: usize = 4;
const SHARE: usize = 8;

/// How old a slot may be for a tick without catching up, in milliseconds: a crontab starts it
/// once a minute.
const TICK: u64 = 60_000;

/// Time for runners to end after SIGTERM, in milliseconds: their commands have ten seconds.
const ENDING: u64 = 20_000;

struct Node<'a> {
    source: Source,
    store: TaskStore<'a>,
    is_json: bool,
    jobs: usize,
    /// How long to wait for tasks after SIGTERM; `None` for a tick, which exits when nothing is
    /// due.
    stop_timeout: Option<Duration>,
    tasks: BTreeMap<String, Tracked<'a>>,
    /// The locks of limits, and when to look again at a full one. They remember leases that are not
    /// renewed.
    limits: BTreeMap<String, (Mutex<'a>, u64)>,
    /// When to end the runners, in milliseconds since boot; after that, when to kill them.
    stop_at: Option<u64>,
    is_ending: bool,
    owner: Owner,
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
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = args.jobs.map_or_else(processors, usize::from);
    let here = HostIdentity::here();
    let cannot = |error| Error::io("cannot schedule tasks", &error);
    let owner = Owner::of(getpid(), &here).map_err(cannot)?;
    let judge = LocalLiveness::new(here, Orphans::Ignore);
    let store = TaskStore::open(&args.catalog, environment, &judge)?;
    if was_ignored(Signal::SIGCHLD) {
        // Its runners would claim slots, and then refuse to run.
        let why = "cannot schedule tasks: SIGCHLD is ignored, so their exit codes would be lost";
        let hint = "`env --default-signal=CHLD serializer schedule …`";
        return Err(Error::failed(why).with_hint(hint));
    }
    let events = Events::new().map_err(cannot)?;
    if stop_timeout.is_some() {
        let (tasks, shown) = (catalog.tasks.len(), store.place.shown_place());
        tracing::info!("tasks to schedule: {tasks}, {jobs} at a time; their state is in `{shown}`");
    }
    let mut node = Node {
        source,
        store,
        is_json: args.json,
        jobs,
        stop_timeout,
        tasks: BTreeMap::new(),
        limits: BTreeMap::new(),
        stop_at: None,
        is_ending: false,
        owner,
        up_since: since_1970().saturating_sub(if stop_timeout.is_none() { TICK } else { 0 }),
        offset: 0,
        events,
        retry_at: 0,
        store_failures: 0,
        has_begun: false,
    };
    node.run(catalog)
}

impl<'a> Node<'a> {
    fn is_tick(&self) -> bool {
        self.stop_timeout.is_none()
    }

    /// The estimated time of the store.
    fn now(&self) -> u64 {
        since_1970().saturating_add_signed(self.offset)
    }

    fn running(&self) -> usize {
        self.runners().count()
    }

    fn runners(&self) -> impl Iterator<Item = &Runner> {
        self.tasks.values().filter_map(|task| task.runner.as_ref())
    }

    fn run(&mut self, catalog: Catalog) -> Result<(), Error> {
        self.adopt(catalog);
        loop {
            let signals = self.events.receive();
            if signals.contains(&Signal::SIGHUP) {
                self.source.reload();
            }
            let is_ending = |it: &&Signal| [Signal::SIGTERM, Signal::SIGINT].contains(it);
            signals.iter().find(is_ending).into_iter().for_each(|signal| self.stop(*signal));
            self.store_ends();
            self.reap();
            if self.stop_at.is_none() {
                if self.events.clock_was_set() {
                    self.retry_at = 0;
                    self.tasks.values_mut().for_each(Tracked::check_now);
                    self.limits.clear();
                }
                if let Some(catalog) = self.source.changed() {
                    tracing::info!("read the tasks again: {}", catalog.tasks.len());
                    self.adopt(catalog);
                }
                self.work()?;
            }
            self.end();
            let (now, running) = (self.now(), self.running());
            let is_idle =
                || self.is_tick() && self.tasks.values().all(|task| self.ready_at(task, 0) > now);
            if running == 0 && (self.stop_at.is_some() || is_idle()) {
                return Ok(());
            }
            let next = self.tasks.values().map(|task| self.ready_at(task, running)).min();
            let next = next.filter(|_| self.stop_at.is_none()).unwrap_or(u64::MAX);
            let next = next.saturating_add_signed(-self.offset);
            let channels =
                self.runners().filter_map(|runner| Some(runner.channel.as_ref()?.as_fd()));
            let slept = self.events.sleep(next, self.stop_at, &channels.collect::<Vec<_>>());
            slept.map_err(|error| Error::io("cannot wait", &error))?;
        }
    }

    /// Ends the runs after some time; at once on a second call.
    fn stop(&mut self, signal: Signal) {
        let timeout = if self.stop_at.is_some() { None } else { self.stop_timeout };
        if !self.is_ending {
            self.stop_at = Some(since_boot().saturating_add(timeout.map_or(0, millis)));
        }
        match self.running() {
            0 => tracing::info!("stopped by {signal}"),
            running => tracing::info!("stopping: tasks still running: {running}"),
        }
    }

    /// Ends the runs if it is time. Another scheduler may rerun their tasks at once.
    fn end(&mut self) {
        if self.stop_at.is_none_or(|stop_at| since_boot() < stop_at) {
            return;
        }
        for pid in self.runners().map(|runner| Pid::from_child(&runner.process)) {
            // The whole group: where there is a lease, the command has to end with its runner.
            let _ = if self.is_ending {
                kill_process_group(pid, process::Signal::KILL)
            } else {
                kill_process(pid, process::Signal::TERM)
            };
        }
        (self.is_ending, self.stop_at) = (true, Some(since_boot() + ENDING));
    }

    /// The lock of a task. A store that is down makes neither the other tasks nor a runner wait.
    fn mutex(&self, task: &str) -> Mutex<'a> {
        let mut mutex = self.store.mutex(task);
        mutex.patience = Duration::ZERO;
        mutex
    }

    /// Works by these definitions from now on. A task that runs is left out when it has ended.
    fn adopt(&mut self, mut catalog: Catalog) {
        catalog.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        for (name, task) in &mut self.tasks {
            let definition = catalog.tasks.remove(name);
            task.is_defined = definition.is_some();
            definition.into_iter().for_each(|definition| task.adopt(definition));
        }
        for (name, definition) in catalog.tasks {
            let mutex = self.mutex(&name);
            self.tasks.insert(name, Tracked::new(definition, mutex));
        }
    }

    fn reap(&mut self) {
        let now = self.now();
        for task in self.tasks.values_mut() {
            let has_ended = |runner: &mut Runner| !matches!(runner.process.try_wait(), Ok(None));
            let Some(mut runner) = task.runner.take_if(has_ended) else { continue };
            task.check_at = now;
            // There may be room for the next one.
            self.limits.values_mut().for_each(|(_, full_until)| *full_until = 0);
            if runner.process.wait().is_ok_and(|status| status.signal().is_some()) {
                // The task itself may have killed it.
                task.pause(now);
            }
        }
        if getpid().is_init() {
            let own: Vec<_> =
                self.runners().map(|runner| Pid::from_child(&runner.process)).collect();
            reap_orphans(&own);
        }
    }
}
