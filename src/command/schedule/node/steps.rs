//! What a scheduler does about the tasks that may be due.

use super::{MANY, MOST_RUNNING, Node, PASS, PER_RUNNING, STEP, STEPS, TICK};
use crate::command::schedule::task::{Tracked, pause};
use crate::error::Error;
use crate::lock;
use crate::record::run::Run;
use crate::schedule::plan::{Plan, hash, introduced};
use crate::store;
use crate::store::seam::Kind;
use crate::sys::clock::{since_1970, since_boot};
use crate::sys::text;

impl Node<'_> {
    /// Inspects the tasks that may be due, the longest waiting first.
    pub(super) fn work(&mut self) -> Result<(), Error> {
        let now = self.now();
        let mut due: Vec<_> =
            self.tasks.iter().filter(|(_, task)| self.ready_at(task) <= now).collect();
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
                    task.mutex.register.offered = Some((state, asked));
                }
            }
        }
        for name in &due {
            if self.has_begun && since_boot() > asked + PASS {
                break;
            }
            self.step(name)?;
        }
        self.has_begun = true;
        // Unused readings would grow old.
        self.tasks
            .values_mut()
            .filter(|_| due.len() >= MANY)
            .for_each(|task| task.mutex.register.offered = None);
        Ok(())
    }

    /// When to inspect a task: later if this scheduler is busy, and not while the store fails.
    pub(super) fn ready_at(&self, task: &Tracked<'_>) -> u64 {
        let running = u64::try_from(self.runners.len())
            .map_or(MOST_RUNNING, |running| running.min(MOST_RUNNING));
        let yielded = task.due_at.saturating_add(PER_RUNNING * running);
        task.check_at.max(yielded).max(self.retry_at)
    }

    fn step(&mut self, name: &str) -> Result<(), Error> {
        let (now, is_full) = (self.now(), self.runners.len() >= self.jobs);
        let is_running = self.runners.has(name);
        // Earlier steps made this scheduler busier, or the store has failed.
        if self.tasks.get(name).is_none_or(|task| self.ready_at(task) > now) {
            return Ok(());
        }
        let Some(task) = self.tasks.get_mut(name) else { return Ok(()) };
        if is_running || is_full {
            (task.needs_room, task.check_at) = (!is_running, u64::MAX);
            return Ok(());
        }
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
}
