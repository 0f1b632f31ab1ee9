//! What a scheduler does about the tasks that may be due.

use super::{MANY, MOST_RUNNING, Node, PASS, PER_RUNNING, SHARE, SPREAD, TICK};
use crate::command::schedule::task::{Tracked, pause};
use crate::error::Error;
use crate::lock;
use crate::lock::register::Register;
use crate::schedule::plan::{Plan, Seen, hash, introduced};
use crate::store;
use crate::store::seam::Kind;
use crate::sys::clock::{since_1970, since_boot};
use crate::sys::text;

impl<'a> Node<'a> {
    /// Inspects the tasks that may be due, the longest ready first.
    pub(super) fn work(&mut self) -> Result<(), Error> {
        self.tasks.retain(|_, task| task.is_defined || task.runner.is_some());
        let (now, running) = (self.now(), self.running());
        let ready = self.tasks.iter().filter(|(_, task)| self.ready_at(task, running) <= now);
        let mut due: Vec<_> = ready.collect();
        // In another order than on other hosts.
        due.sort_by_cached_key(|(name, task)| (task.check_at.max(task.due_at), self.hash(name)));
        let most = if self.has_begun { self.jobs.saturating_sub(running) } else { usize::MAX };
        let due: Vec<_> = due.into_iter().take(most).map(|(name, _)| name.clone()).collect();
        // Without a clock, what is read for all is of no use for one.
        let is_clockless =
            |register: &Register| register.version().is_some() && register.now().is_none();
        let are_many = due.len() >= MANY.max(self.tasks.len() / SHARE)
            && !self.tasks.values().any(|task| is_clockless(&task.mutex.register));
        let asked = since_boot();
        if are_many {
            let listed = self.store.any.list(Kind::Schedule).unwrap_or_default();
            // Without a version, a state could not be read now.
            for (name, state) in listed.into_iter().filter(|(_, state)| state.version.is_some()) {
                if let Some(task) = name.to_str().and_then(|name| self.tasks.get_mut(name)) {
                    task.mutex.register.offered = Some((state, asked));
                }
            }
        }
        // As long as the answer took: else a slow store would be asked for all before each task.
        let begun = since_boot();
        let pass = PASS.max(begun - asked);
        let mut is_ended = false;
        for name in due {
            let Some(mut task) = self.tasks.remove(&name) else { continue };
            let done = self.step(&name, &mut task);
            self.tasks.insert(name, task);
            done?;
            is_ended = !self.has_begun && self.events.are_there();
            if is_ended || self.has_begun && since_boot() > begun + pass {
                break;
            }
        }
        self.has_begun |= !is_ended;
        if are_many {
            // Unused readings would grow old.
            self.tasks.values_mut().for_each(|task| task.mutex.register.offered = None);
        }
        Ok(())
    }

    /// A number that differs for each host and task.
    fn hash(&self, name: &str) -> u64 {
        hash(&[self.owner.place.host.as_deref().unwrap_or_default(), name])
    }

    /// When to inspect a task: later if this scheduler is busy, and not while it has no room, its
    /// limit is full, or the store fails.
    pub(super) fn ready_at(&self, task: &Tracked<'_>, running: usize) -> u64 {
        if running >= self.jobs {
            return u64::MAX;
        }
        let yielded = task.due_at.saturating_add(PER_RUNNING * running.min(MOST_RUNNING) as u64);
        let limit = task.definition.limit.as_ref().and_then(|(limit, _)| self.limits.get(limit));
        let full_until = limit.map_or(0, |(_, full_until)| *full_until);
        task.check_at.max(yielded).max(full_until).max(self.retry_at)
    }

    fn step(&mut self, name: &str, task: &mut Tracked<'a>) -> Result<(), Error> {
        let now = self.now();
        // Earlier steps made this scheduler busier, or the store has failed.
        if self.ready_at(task, self.running()) > now {
            return Ok(());
        }
        if task.runner.is_some() {
            task.check_at = u64::MAX;
            return Ok(());
        }
        let Err(error) = self.inspect(name, task) else { return Ok(()) };
        // A tick reports errors at once, and so does a scheduler that has just started.
        if self.is_tick() || !self.has_begun && !error.cause.passes() {
            return Err(error.into());
        }
        if error.cause.passes() {
            // The store has failed: the other tasks wait, too.
            if self.store_failures == 0 {
                tracing::warn!("cannot inspect the tasks, trying again: {error}");
            }
            self.retry_at = now + pause(&mut self.store_failures);
        } else {
            if task.failures == 0 {
                let name = text::field(name);
                tracing::error!("cannot inspect the task `{name}`, trying again: {error}");
            }
            task.pause(now);
        }
        Ok(())
    }

    fn inspect(&mut self, name: &str, task: &mut Tracked<'a>) -> Result<(), store::Error> {
        let seen = task.mutex.inspect()?;
        let now = task.mutex.register.time();
        self.offset = now.checked_signed_diff(since_1970()).unwrap_or(0);
        // By the store's clock.
        let up_since = self.up_since.saturating_add_signed(self.offset);
        let (plan, last) = task.plan(name, seen.map(|key| Seen::new(key, now)), now, up_since);
        if plan == Plan::Introduce
            && let Err(lock::Error::Store(error)) =
                task.mutex.amend(&|run| introduced(run, name, now))
        {
            return Err(error);
        }
        self.store_failures = 0;
        match (plan, last) {
            (Plan::Wait(at), _) => {
                let at = at.unwrap_or(u64::MAX);
                let first = self.hash(name) % SPREAD;
                (task.due_at, task.check_at, task.failures) = (at, at.saturating_add(first), 0);
            }
            // A tick leaves to the next one what has come due since: it would never end if its
            // tasks were slow.
            (Plan::Run(claim), _) if self.is_tick() && claim.slot > up_since + TICK => {
                task.check_at = u64::MAX
            }
            // Its last runner stored nothing, and reported the reason.
            (Plan::Run(claim), _) if task.last_claim.take() == Some(claim) => task.pause(now),
            (Plan::Run(claim), Some(last)) => return self.begin(name, task, claim, &last, now),
            // The next step inspects it again.
            (Plan::Introduce | Plan::Run(_), _) => {}
        }
        Ok(())
    }
}
