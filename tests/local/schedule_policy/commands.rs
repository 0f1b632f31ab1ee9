//! The commands of a world, as `schedule` carries them out.

use std::num::NonZeroU32;
use std::time::Duration;

use serializer::lock::once::{Claim, Ending, State};
use serializer::lock::waiting::Waiting;
use serializer::lock::{self, Acquired, Grant, Mutex, ReleaseScope, Released, Request};
use serializer::record::Outcome;
use serializer::record::run::{Rule, Run, Task};
use serializer::schedule::definition::Definition;
use serializer::schedule::plan::{Plan, Seen, introduced};

use super::{LEASE, NAME};
use crate::support::simulated::{Process, Silent};

#[derive(Clone, Debug)]
pub enum Order {
    /// A scheduler's step.
    Look {
        up_since: u64,
    },
    /// `schedule run`, of an earlier slot or of the present time.
    Force {
        earlier: Option<u64>,
    },
    Begin(Claim),
    End(Outcome),
    Renew(String),
    Pause(u64),
    Resume(u64),
    Stop,
}

#[derive(Debug)]
pub enum Ended {
    /// What is to be done at this time, about this run.
    Planned(Plan, Option<Run>, u64),
    Begun(Grant),
    Concluded(Outcome),
    Renewed {
        is_stopped: bool,
    },
    Lost,
    Otherwise,
}

pub fn do_it(
    mutex: &mut Mutex<'_>,
    process: &Process,
    definition: &Definition,
    (order, has_clock): (Order, bool),
) -> Ended {
    match order {
        Order::Look { up_since } => {
            let Ok(seen) = mutex.inspect() else { return Ended::Otherwise };
            let now = mutex.register.time();
            let seen = seen.map(|key| Seen::new(key, now));
            let plan = definition.plan(NAME, seen.as_ref(), now, up_since);
            if plan == Plan::Introduce {
                let _ = mutex.amend(&|run| introduced(run, NAME, now));
            }
            Ended::Planned(plan, seen.map(|seen| seen.run), now)
        }
        Order::Force { earlier } => {
            let Ok(Some(seen)) = mutex.inspect() else { return Ended::Otherwise };
            if seen.state == State::Running {
                return Ended::Otherwise;
            }
            let slot = earlier.map_or_else(
                || mutex.register.time(),
                |earlier| seen.run.of_slot().0.saturating_sub(earlier),
            );
            let ((slot_seen, number), definition) = (seen.run.of_slot(), definition.number());
            let seen = (slot_seen, number, seen.state);
            let claim = Claim { seen, slot, skipped: 0, definition, is_forced: true };
            Ended::Planned(Plan::Run(claim), None, mutex.register.time())
        }
        Order::Begin(claim) => {
            let rule = Rule {
                tries: Some(definition.tries()),
                interrupted: definition.interrupted,
                ..Rule::default()
            };
            let lease = has_clock.then_some(Duration::from_millis(LEASE));
            let request =
                Request { lease, once: Some(rule), claim: Some(claim), ..Request::default() };
            let waiting = Waiting {
                max_attempts: Some(NonZeroU32::MIN),
                sleep: Duration::ZERO,
                timeout: None,
                warn_after: None,
            };
            match mutex.acquire(process, &request, &waiting, &mut Silent) {
                Ok(Acquired::Granted(grant, _)) => Ended::Begun(grant),
                Ok(_) | Err(_) => Ended::Otherwise,
            }
        }
        Order::End(outcome) => match mutex.release(
            process,
            ReleaseScope::Own,
            Ending { outcome, how: "ended", code: None },
        ) {
            Ok(Released::Own { .. }) => Ended::Concluded(outcome),
            Ok(_) | Err(_) => Ended::Otherwise,
        },
        Order::Renew(token) => match mutex.renew(&token, None) {
            Ok(Grant { is_stopped, .. }) => Ended::Renewed { is_stopped },
            Err(lock::Error::Lost(..)) => Ended::Lost,
            Err(_) => Ended::Otherwise,
        },
        Order::Pause(paused) => amend(mutex, |task| Task { paused, ..task }),
        Order::Resume(now) => amend(mutex, |task| Task { paused: task.paused.min(now), ..task }),
        Order::Stop => {
            let Ok(Some(seen)) = mutex.inspect() else { return Ended::Otherwise };
            let run = seen.run.of_slot();
            if seen.state == State::Running {
                let _ = mutex.amend(&|stored| {
                    let stored = stored.filter(|stored| stored.of_slot() == run)?;
                    Some(Run {
                        task: Some(Task { is_stopped: true, ..stored.task.clone()? }),
                        ..stored.clone()
                    })
                });
            }
            Ended::Otherwise
        }
    }
}

fn amend(mutex: &mut Mutex<'_>, change: impl Fn(Task) -> Task) -> Ended {
    let _ =
        mutex.amend(&|run| Some(Run { task: Some(change(run?.task.clone()?)), ..run?.clone() }));
    Ended::Otherwise
}
