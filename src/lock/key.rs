//! Operations on a key that runs once, except running it.

use std::time::{Duration, Instant};

use super::register::Write;
use super::{Error, MAX_ROUNDS, Mutex, ReleaseScope, Released, Requester, Seen};
use crate::lock::once::{Ended, Ending, State};
use crate::lock::staleness::{Held, Judged, Verdict};
use crate::record::run::Run;
use crate::record::{Entry, Outcome, Record};
use crate::store;

/// The interval between two looks at a run until it ends.
const WATCHED: Duration = Duration::from_millis(500);

/// Wants nothing.
struct Watcher;

impl Requester for Watcher {}

/// A snapshot of a key that was run.
#[derive(Debug)]
pub struct Inspected {
    /// Its last run.
    pub run: Run,
    /// The state of the key.
    pub state: State,
    /// The process of that run.
    pub process: Judged<Verdict>,
    /// While it runs: when it may be in another state without an end that is heard.
    pub look_again_in: Option<Duration>,
}

impl Inspected {
    /// Renewals and duration of its lease, if only watching shows whether that has expired.
    pub fn unproved_lease(&self) -> Option<(u64, Duration)> {
        let lease = self.process.entry.as_ref()?.lease.filter(|lease| lease.expires.is_none())?;
        let is_leased = matches!(self.process.verdict, Verdict::Held(Held::Leased(_)));
        is_leased.then_some((lease.renewals, lease.duration))
    }
}

impl Mutex<'_> {
    /// Ends the run with this token. It may have ended in this way already: an answer was lost.
    pub fn end_run(
        &mut self,
        requester: &dyn Requester,
        token: &str,
        ending: Ending<'_>,
    ) -> Result<Released, Error> {
        match self.release(requester, ReleaseScope::Own, ending) {
            Err(Error::NotLocked) => {}
            released => return released,
        }
        let last = self.inspect()?.and_then(|key| key.process.entry);
        let is_it = |it: &Entry| it.has_token(token) && it.released == Some(ending.outcome);
        let released = Released::Own { stays: None, was: Vec::new() };
        last.filter(is_it).map(|_| released).ok_or(Error::NotLocked)
    }

    /// The state of the key; `None` if it was never run, or is forgotten.
    pub fn inspect(&mut self) -> Result<Option<Inspected>, store::Error> {
        let (stored, judged) = self.look()?;
        let is_last = |it: &Judged<_>| it.entry.as_ref().is_some_and(|entry| !entry.is_mark());
        let Some(process) = judged.into_iter().rfind(is_last) else { return Ok(None) };
        let last = stored.record.as_ref().and_then(Record::last_run);
        // Of a newer format.
        let Some((entry, run)) = last else {
            return Err(self.register.is_foreign("it does not tell of a run"));
        };
        let state = run.state(Ended::of(entry, &process.verdict), self.register.time());
        let look_again_in = match &process.verdict {
            Verdict::Held(held) => self.look_again_in(Some(entry), held),
            Verdict::Stale(_) => None,
        };
        Ok(Some(Inspected { run: run.clone(), state, process, look_again_in }))
    }

    /// Inspects until `is_over`, or for this time.
    pub fn inspect_until(
        &mut self,
        limit: Duration,
        is_over: impl Fn(&Inspected) -> bool,
    ) -> Result<Option<Inspected>, store::Error> {
        let end = Instant::now() + limit;
        // The loop ends at that time.
        loop {
            let now = self.inspect()?;
            if Instant::now() > end || now.as_ref().is_none_or(&is_over) {
                return Ok(now);
            }
            self.watch(now, WATCHED, &Watcher)?;
        }
    }

    /// Watches the lease of a run until that has renewed it or it has expired, if nothing else
    /// shows whether its host has died.
    pub fn prove(&mut self, seen: Option<Inspected>) -> Result<Option<Inspected>, store::Error> {
        match seen.as_ref().and_then(Inspected::unproved_lease) {
            Some(lease) => self.inspect_until(lease.1, |now| now.unproved_lease() != Some(lease)),
            None => Ok(seen),
        }
    }

    /// Removes the state of the key, unless it runs or has run since `seen`; `false` without one.
    pub fn forget(&mut self, seen: &Inspected) -> Result<bool, Error> {
        let seen = seen.process.entry.as_ref().and_then(|entry| entry.token.as_ref());
        for _ in 0..MAX_ROUNDS {
            let (stored, judged) = self.look()?;
            if stored.state.version.is_none() {
                return Ok(false);
            }
            let held = Seen::held(judged);
            let last = stored.record.as_ref().and_then(Record::last_run);
            if !held.is_empty() || last.and_then(|(entry, _)| entry.token.as_ref()) != seen {
                return Err(Error::NotOurs(held));
            }
            if self.register.put(Some(&stored), None)? == Write::Done {
                return Ok(true);
            }
        }
        Err(Error::NotOurs(Vec::new()))
    }

    /// Stores what `change` makes of the last run of a task, for which nothing is stored before its
    /// first run; `false` if there is nothing to change. A run that is under way continues.
    pub fn amend(&mut self, change: &dyn Fn(Option<&Run>) -> Option<Run>) -> Result<bool, Error> {
        for _ in 0..MAX_ROUNDS {
            let stored = self.register.load()?.unwrap_or_default();
            let mut entries = stored.entries().to_vec();
            let last = entries.iter_mut().rfind(|entry| !entry.is_mark());
            let run = last.as_ref().and_then(|last| last.once.as_ref());
            let Some(once) = change(run).map(Some) else { return Ok(false) };
            match last {
                Some(last) => last.once = once,
                None => {
                    let entry = Entry::of_this_process(None).map_err(Error::Entry)?;
                    entries.push(Entry { released: Some(Outcome::Succeeded), once, ..entry });
                }
            }
            if self.register.put(Some(&stored), Record::of(entries).as_ref())? == Write::Done {
                return Ok(true);
            }
        }
        Err(Error::NotOurs(Vec::new()))
    }

    /// Lets the next look find what the last one has found, without a request.
    pub fn reuse(&mut self) {
        let last = self.register.last.as_ref().filter(|last| last.is_prepared);
        self.register.offered = last.map(|last| (last.state.clone(), last.asked));
    }

    /// Sleeps at most `limit`, until the key may be in another state than `seen`.
    pub fn watch(
        &mut self,
        seen: Option<Inspected>,
        limit: Duration,
        requester: &dyn Requester,
    ) -> Result<(), store::Error> {
        let held = seen.map(|seen| Seen::held(vec![seen.process])).unwrap_or_default();
        self.sleep_until(Instant::now() + limit, true, &held, requester)
    }
}
