//! A scheduler: starts tasks when they are due, unless a scheduler on another host was faster.
//! It stores when it first saw a task, and claims slots for its runners, which keep the locks.

mod hand_over;

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::getpid;

use super::catalog::Source;
use super::events::Events;
use super::runners::Runners;
use super::task::{Tracked, pause};
use super::task_at;
use super::work::Order;
use crate::cli::TickArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::lock::register::Register;
use crate::lock::staleness::{LocalLiveness, Orphans};
use crate::lock::{self, Mutex};
use crate::record::owner::Owner;
use crate::record::run::Run;
use crate::schedule::definition::Catalog;
use crate::schedule::plan::{Plan, hash, introduced};
use crate::store;
use crate::store::seam::Kind;
use crate::sys::clock::{since_1970, since_boot};
use crate::sys::identity::HostIdentity;
use crate::sys::text::{self, io_message};

/// Delay before a claim for each running task, in milliseconds, and the most tasks that count.
const PER_RUNNING: u64 = 5;
const MOST_RUNNING: u64 = 4;

/// Delay before any claim: steps of so many milliseconds, by a hash of host and task.
const STEP: u64 = 1;
const STEPS: u64 = 8;

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
    let cannot = |error| Error::failed(format!("cannot schedule tasks: {}", io_message(&error)));
    let owner = Owner::of(getpid(), &here).map_err(cannot)?;
    let judge = LocalLiveness::new(here, Orphans::Ignore);
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
    /// The estimated time of the store.
    fn now(&self) -> u64 {
        since_1970().saturating_add_signed(self.offset)
    }

    fn run(&mut self, catalog: Catalog) -> Result<(), Error> {
        self.adopt(catalog);
        loop {
            let signals = self.events.receive();
            if signals.must_reload {
                self.source.reload();
            }
            if signals.must_stop {
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
                    self.tasks.values_mut().for_each(|task| task.check_at = 0);
                }
                if let Some(catalog) = self.source.changed() {
                    tracing::info!("read the tasks again: {}", catalog.tasks.len());
                    self.adopt(catalog);
                }
                self.work()?;
                let is_tick = self.stop_timeout.is_none() && self.runners.len() == 0;
                // One that has yielded is due.
                if is_tick
                    && self
                        .tasks
                        .values()
                        .all(|task| task.check_at > self.now() && !task.has_yielded)
                {
                    return Ok(());
                }
            }
            let next = self
                .tasks
                .values()
                .map(|task| task.check_at.max(self.retry_at))
                .min()
                .filter(|_| stop_at.is_none());
            let next = next.unwrap_or(u64::MAX).saturating_add_signed(-self.offset);
            let slept = self.events.sleep(next, self.runners.stop_at(), &self.runners.fds());
            slept.map_err(|error| Error::failed(format!("cannot wait: {}", io_message(&error))))?;
        }
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
            let location = task_at(&self.order.place, &name);
            let register = self.any.sibling(location.key().clone(), location.printable());
            let mutex = Mutex::new(register, self.judge);
            self.tasks.insert(name, Tracked::new(definition, mutex));
        }
    }

    /// Inspects the tasks that may be due, the longest waiting first.
    fn work(&mut self) -> Result<(), Error> {
        let now = self.now();
        if now < self.retry_at {
            return Ok(());
        }
        let mut due: Vec<_> = self.tasks.iter().filter(|(_, task)| task.check_at <= now).collect();
        // In another order than on other hosts.
        due.sort_by_cached_key(|(name, task)| (task.due_at, hash(&[&self.host, name])));
        // Without room, none is read.
        let room = Some(self.jobs.saturating_sub(self.runners.len()))
            .filter(|room| *room > 0 && self.has_begun);
        let due: Vec<String> = due
            .into_iter()
            .map(|(name, _)| name.clone())
            .take(room.unwrap_or(usize::MAX))
            .collect();
        let asked = since_boot();
        if due.len() >= MANY {
            for (name, state) in self.any.list(Kind::Schedule).unwrap_or_default() {
                if let Some(task) = name.to_str().and_then(|name| self.tasks.get_mut(name)) {
                    task.mutex.offer(Some((state, asked)));
                }
            }
        }
        for name in &due {
            if self.now() < self.retry_at || self.has_begun && since_boot() > asked + PASS {
                break;
            }
            self.step(name)?;
        }
        self.has_begun = true;
        // Unused readings would grow old.
        self.tasks
            .values_mut()
            .filter(|_| due.len() >= MANY)
            .for_each(|task| task.mutex.offer(None));
        Ok(())
    }

    fn step(&mut self, name: &str) -> Result<(), Error> {
        let (now, running) = (self.now(), self.runners.len());
        let is_running = self.runners.has(name);
        let Some(task) = self.tasks.get_mut(name) else { return Ok(()) };
        if is_running || running >= self.jobs {
            (task.needs_room, task.check_at) = (!is_running, u64::MAX);
            return Ok(());
        }
        if running > 0 && task.check_at > 0 && !std::mem::replace(&mut task.has_yielded, true) {
            task.check_at = now
                + PER_RUNNING * u64::try_from(running).unwrap_or(MOST_RUNNING).min(MOST_RUNNING);
            return Ok(());
        }
        task.has_yielded = false;
        let is_tick = self.stop_timeout.is_none();
        let planned = task.plan(name, self.up_since).and_then(|(plan, last, time)| {
            match (plan == Plan::Introduce)
                .then(|| task.mutex.amend(&|run| introduced(run, name, time)))
            {
                Some(Err(lock::Error::Store(error))) => Err(error),
                _ => Ok((plan, last, time)),
            }
        });
        let done = match planned {
            Ok((plan, last, time)) => {
                self.store_failures = 0;
                self.offset = time.checked_signed_diff(since_1970()).unwrap_or(0);
                self.follow(name, plan, last.as_ref(), time)
            }
            Err(error) => Err(error),
        };
        let Some(task) = self.tasks.get_mut(name) else { return Ok(()) };
        match done {
            Ok(()) => {}
            // A tick reports errors at once, and so does a scheduler that has just started.
            Err(error) if is_tick || !self.has_begun && !error.cause.passes() => {
                return Err(error.into());
            }
            // The store has failed: the other tasks wait, too.
            Err(error) if error.cause.passes() => {
                if self.store_failures == 0 {
                    tracing::warn!("cannot inspect the tasks, trying again: {error}");
                }
                self.retry_at = now + pause(&mut self.store_failures);
            }
            Err(error) => {
                if task.failures == 0 {
                    tracing::error!(
                        "cannot inspect the task `{}`, trying again: {error}",
                        text::field(name)
                    );
                }
                task.pause(now);
            }
        }
        Ok(())
    }

    fn follow(
        &mut self,
        name: &str,
        plan: Plan,
        last: Option<&Run>,
        now: u64,
    ) -> Result<(), store::Error> {
        let began = (self.up_since + TICK).saturating_add_signed(self.offset);
        let Some(task) = self.tasks.get_mut(name) else { return Ok(()) };
        match (plan, last) {
            (Plan::Wait(at), _) => {
                let at = at.unwrap_or(u64::MAX);
                let first = hash(&[&self.host, name]) % STEPS * STEP;
                (task.due_at, task.check_at, task.failures) = (at, at.saturating_add(first), 0);
            }
            // A tick leaves to the next one what has come due since: it would never end if its
            // tasks were slow.
            (Plan::Run(claim), _) if self.stop_timeout.is_none() && claim.slot > began => {
                task.check_at = u64::MAX
            }
            // Its last runner stored nothing, and reported the reason; or it was killed, perhaps by
            // what it does.
            (Plan::Run(claim), _) if task.last_claim.take() == Some(claim) || task.was_killed => {
                task.was_killed = false;
                task.pause(now);
            }
            (Plan::Run(claim), Some(last)) => return self.begin(name, claim, last, now),
            // The next step inspects it again.
            (Plan::Introduce | Plan::Run(_), _) => {}
        }
        Ok(())
    }

    /// Schedules a check of the tasks of ended runners, and of tasks that waited for room.
    fn reap(&mut self) {
        let (now, ended) = (self.now(), self.runners.reap());
        for (name, task) in &mut self.tasks {
            if let Some(was_killed) = ended.get(name) {
                (task.check_at, task.has_yielded, task.was_killed) = (now, true, *was_killed);
            } else if task.needs_room && !ended.is_empty() {
                (task.check_at, task.needs_room) = (now, false);
            }
        }
    }
}
