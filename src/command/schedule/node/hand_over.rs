//! Claiming slots for runners, and storing the ends that they report. `docs/protocol.md`, "A task
//! on a schedule", has the crash points.

use std::io;
use std::os::unix::process::CommandExt;
use std::time::Instant;

use rustix::fs::{Access, access};

use super::{FULL, Node};
use crate::command::job::{confirm_end, locked, receive_end, say};
use crate::command::progress::Progress;
use crate::command::schedule::task::{Runner, Tracked};
use crate::command::schedule::work::{ATTEMPT, Work, runner, why_not_started};
use crate::lease::TokenHolder;
use crate::lock::once::{Claim, Ending};
use crate::lock::{self, Acquired, Grant, Mutex, ReleaseScope, Released, Requester};
use crate::record::owner::Owner;
use crate::record::run::Run;
use crate::record::{Entry, Outcome};
use crate::store;
use crate::sys::clock::since_1970;
use crate::sys::poll::is_readable;
use crate::sys::text;

/// A scheduler that claims a slot for a runner that starts afterwards. Its lease alone tells
/// whether the run goes on.
struct Scheduler<'a> {
    owner: &'a Owner,
    command: String,
}

impl Requester for Scheduler<'_> {
    fn entry(&self) -> io::Result<Entry> {
        Entry::new(self.owner.clone(), None, Some(self.command.clone()))
    }
}

impl<'a> Node<'a> {
    /// Claims a slot, and starts its runner. On a file, the command owns the lock, so its runner
    /// claims.
    pub(super) fn begin(
        &mut self,
        name: &str,
        task: &mut Tracked<'a>,
        claim: Claim,
        last: &Run,
        now: u64,
    ) -> Result<(), store::Error> {
        let mut work = self.store.work(name, &task.definition, claim, last);
        work.is_json = self.is_json;
        if self.is_full(task, &work) {
            return Ok(());
        }
        (task.due_at, task.check_at, task.last_claim) = (now, u64::MAX, Some(claim));
        let place = task.definition.directory.as_ref();
        // Before the claim: another host may have the directory.
        let can_start = place.map_or(Ok(()), |place| access(place.join("."), Access::EXEC_OK));
        if can_start.is_ok() && work.lease.is_some() {
            match acquire(&mut task.mutex, &work, &self.owner) {
                Ok(granted) => (work.granted, task.unanswered) = (granted, None),
                Err(lock::Error::Store(error)) => {
                    (task.check_at, task.last_claim, task.unanswered) = (now, None, Some(claim));
                    return Err(error);
                }
                Err(error) => {
                    tracing::error!("cannot claim the task `{}`: {error}", text::field(name));
                    task.pause(now);
                    return Ok(());
                }
            }
            if work.granted.is_none() {
                task.check_at = now;
                return Ok(());
            }
        }
        let started = can_start.map_err(io::Error::from).and_then(|()| {
            let (mut runner, channel) = runner(&work, &task.definition)?;
            // Ctrl-C is for the scheduler alone.
            let process = runner.process_group(0).spawn()?;
            Ok(Runner { process, channel: Some(channel) })
        });
        match started {
            Ok(runner) => task.runner = Some(runner),
            Err(error) => {
                // Gives the slot back; if that fails, its lease expires.
                if let Some(grant) = &work.granted {
                    let holder = TokenHolder(&grant.token);
                    let _ = task.mutex.release(&holder, ReleaseScope::Own, Outcome::Unknown);
                }
                let (name, why) = (text::field(name), why_not_started(&task.definition, &error));
                tracing::error!("cannot start the task `{name}`{why}");
                task.pause(now);
            }
        }
        Ok(())
    }

    /// Whether the limit of a task has no room, as far as that is known. Then its tasks wait.
    fn is_full(&mut self, task: &Tracked<'a>, work: &Work) -> bool {
        let (Some((limit, _)), Some(limited)) = (&task.definition.limit, &work.limited) else {
            return false;
        };
        let open = || (Mutex::new(self.store.any.sibling(&limited.lock), self.store.judge), 0);
        let (lock, full_until) = self.limits.entry(limit.clone()).or_insert_with(open);
        // Those that were just started have not locked it yet. With a lease, a runner reports its
        // end.
        let is_own = |other: &&Tracked<'_>| {
            let is_running = |it: &Runner| it.channel.is_some() || work.lease.is_none();
            other.runner.as_ref().is_some_and(is_running)
                && other.definition.limit == task.definition.limit
        };
        let own = self.tasks.values().filter(is_own).count();
        let is_full = own >= limited.slots.get() as usize || limited.is_full(lock);
        if is_full {
            *full_until = since_1970().saturating_add_signed(self.offset) + FULL;
        }
        is_full
    }

    /// Stores the ends that runners have reported. If the store fails, each runner tries by itself.
    pub(super) fn store_ends(&mut self) {
        let mut is_down = self.now() < self.retry_at;
        // A runner that finds its connection closed stores its end itself.
        let reported = |(name, task): (&String, &mut Tracked<'a>)| {
            let channel = task.runner.as_mut()?.channel.take_if(|channel| is_readable(channel))?;
            Some((name.clone(), receive_end(&channel)?, channel))
        };
        let reports: Vec<_> = self.tasks.iter_mut().filter_map(reported).collect();
        for (task, (token, outcome, how, code), runner) in reports {
            if is_down {
                break;
            }
            let ending = Ending { outcome, how: &how, code };
            let mut mutex = self.mutex(&task);
            match mutex.release(&TokenHolder(&token), ReleaseScope::Own, ending) {
                Ok(Released::Own { .. }) => confirm_end(&runner),
                Err(lock::Error::Store(_)) => is_down = true,
                _ => {}
            }
        }
    }
}

/// Acquires the slot; `None` if another scheduler was faster.
fn acquire(
    mutex: &mut Mutex<'_>,
    work: &Work,
    owner: &Owner,
) -> Result<Option<Grant>, lock::Error> {
    mutex.reuse();
    let begun = Instant::now();
    let scheduler = Scheduler { owner, command: text::command_line(&work.command) };
    let mut silent = Progress::new(&work.location, &ATTEMPT, true);
    match mutex.acquire(&scheduler, &work.request(), &ATTEMPT, &mut silent) {
        Ok(Acquired::Granted(grant, from)) => {
            say(from.is_some(), &locked(&work.location, "its run", (begun, ""), from.as_deref()));
            Ok(Some(grant))
        }
        Ok(_) | Err(lock::Error::Busy(..)) => Ok(None),
        Err(error) => Err(error),
    }
}
