//! A task as a scheduler tracks it.

use std::os::fd::OwnedFd;
use std::process::Child;
use std::time::Duration;

use super::work::shown_slot;
use crate::lock::Mutex;
use crate::lock::once::{Claim, State};
use crate::record::run::Run;
use crate::schedule::definition::Definition;
use crate::schedule::plan::{Plan, Seen};
use crate::sys::clock::millis;
use crate::sys::random::jittered;
use crate::sys::text;

/// The pause after a store or a runner has failed, in milliseconds: at first, and at most.
const PAUSE: u64 = 1000;
const MAX_PAUSE: u64 = 60_000;

/// A tracked task. Times are in milliseconds by the store's clock.
pub struct Tracked<'a> {
    pub definition: Definition,
    pub mutex: Mutex<'a>,
    /// When to inspect it next; 0 for the first time.
    pub check_at: u64,
    /// When the next step became due.
    pub due_at: u64,
    /// Whether the file still has it.
    pub is_defined: bool,
    /// Its run on this host.
    pub runner: Option<Runner>,
    pub last_claim: Option<Claim>,
    /// The claim for which the store may have granted the slot: its answer was lost.
    pub unanswered: Option<Claim>,
    pub failures: u32,
    /// The other definition, and the slot that was given up, of which warnings have told.
    other: (u32, u64),
}

/// The process of a run that this scheduler has started.
pub struct Runner {
    pub process: Child,
    /// The connection to it, until it has reported its end.
    pub channel: Option<OwnedFd>,
}

impl<'a> Tracked<'a> {
    pub fn new(definition: Definition, mutex: Mutex<'a>) -> Self {
        Self {
            definition,
            mutex,
            check_at: 0,
            due_at: 0,
            is_defined: true,
            runner: None,
            last_claim: None,
            unanswered: None,
            failures: 0,
            other: (0, 0),
        }
    }

    pub fn adopt(&mut self, definition: Definition) {
        self.other.0 = self.definition.number();
        self.definition = definition;
        self.check_now();
    }

    pub fn check_now(&mut self) {
        (self.check_at, self.due_at) = (0, 0);
    }

    /// The next step, for what was seen `now`, and the last run.
    pub fn plan(
        &mut self,
        name: &str,
        seen: Option<Seen>,
        now: u64,
        up_since: u64,
    ) -> (Plan, Option<Run>) {
        let stored = seen.as_ref().and_then(|seen| seen.run.task.as_ref());
        let stored = stored.map_or(0, |stored| stored.definition);
        if ![0, self.definition.number(), self.other.0].contains(&stored) {
            self.other.0 = stored;
            tracing::warn!(
                "the last run of the task `{}` used a different definition than this one",
                text::field(name)
            );
        }
        if let Some(Seen { run, .. }) = seen.as_ref().filter(|seen| seen.is_given_up()) {
            let (slot, number) = run.of_slot();
            if std::mem::replace(&mut self.other.1, slot) != slot {
                let (name, slot) = (text::field(name), shown_slot(slot));
                tracing::warn!(
                    "gave up `{name}` of {slot}: its run was interrupted (try {number})"
                );
            }
        }
        let plan = self.definition.plan(name, seen.as_ref(), now, up_since);
        // The claim finds out whether the run is its own.
        let is_running = seen.as_ref().is_some_and(|seen| seen.state == State::Running);
        let plan = self.unanswered.filter(|_| is_running).map_or(plan, Plan::Run);
        (plan, seen.map(|seen| seen.run))
    }

    pub fn pause(&mut self, now: u64) {
        self.check_at = now + pause(&mut self.failures);
    }
}

/// The pause after so many failures, in milliseconds.
pub fn pause(failures: &mut u32) -> u64 {
    let pause = (PAUSE << (*failures).min(6)).min(MAX_PAUSE);
    *failures += 1;
    millis(jittered(Duration::from_millis(pause)))
}
