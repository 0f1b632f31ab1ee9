//! What is done about a key that runs once, beside running it.

use std::time::{Duration, Instant};

use super::register::Write;
use super::{Error, MAX_ROUNDS, Mutex, Seen};
use crate::backend;
use crate::claimant::Claimant;
use crate::once::{Ended, Run, State};
use crate::record::{Entry, Outcome, Record};
use crate::verdict::{Judged, Verdict};

/// A key that was run, as of one moment.
#[derive(Debug)]
pub struct Inspected {
    /// Its last run.
    pub run: Run,
    /// The state of the key.
    pub state: State,
    /// The process of that run.
    pub process: Judged<Verdict>,
}

impl Inspected {
    /// Whether the run with this token has ended so.
    pub fn has_ended(&self, token: &str, outcome: Outcome) -> bool {
        let is_it = |entry: &Entry| entry.has_token(token) && entry.released == Some(outcome);
        self.process.entry.as_ref().is_some_and(is_it)
    }
}

impl Mutex<'_> {
    /// The state of the key; `None` if it was never run, or is forgotten.
    pub fn inspect(&mut self) -> Result<Option<Inspected>, backend::Error> {
        let Some((stored, judged)) = self.look()? else { return Ok(None) };
        let is_last = |judged: &Judged<Verdict>| judged.entry.as_ref().is_some_and(|it| it.released != Some(Outcome::Lost));
        let Some(process) = judged.into_iter().rfind(is_last) else { return Ok(None) };
        let last = stored.record.as_ref().and_then(Record::last_run);
        let Some((entry, run)) = last else { return Err(self.register.is_foreign("it does not tell of a run")) };
        let state = run.state(Ended::of(entry, &process.verdict), self.register.time());
        Ok(Some(Inspected { run: run.clone(), state, process }))
    }

    /// Removes what is stored about the key, and tells whether that was anything. Refuses if it runs, or was run since it was
    /// `seen`.
    pub fn forget(&mut self, seen: &Inspected) -> Result<bool, Error> {
        let token = |entry: &Entry| entry.token.clone();
        for _ in 0..MAX_ROUNDS {
            let Some((stored, judged)) = self.look()? else { return Ok(false) };
            let held = Seen::held(judged);
            let last = stored.record.as_ref().and_then(Record::last_run).and_then(|(entry, _)| token(entry));
            if !held.is_empty() || last != seen.process.entry.as_ref().and_then(token) {
                return Err(Error::NotOurs(held));
            }
            if self.register.put(Some(&stored), None)? == Write::Done {
                return Ok(true);
            }
        }
        Err(Error::NotOurs(Vec::new()))
    }

    /// Sleeps at most `limit`, until the key may be in another state than `seen`.
    pub fn watch(&mut self, seen: Option<Inspected>, limit: Duration, claimant: &dyn Claimant) -> Result<(), backend::Error> {
        let held = seen.map(|seen| Seen::held(vec![seen.process])).unwrap_or_default();
        self.sleep_until(Instant::now() + limit, true, &held, &claimant.absence_fds())
    }
}
