//! What a release removes, by what is stored alone.

use rustix::process::Pid;

use super::once::Ending;
use super::renew::mark_lost;
use super::staleness::{Holding, Judged, Stale, Verdict, entries};
use super::{Error, Lost, Mutex, ReleaseScope, Released, Requester, Seen, Stored};
use crate::record::{Entry, Outcome};

pub(super) struct Removal<'r> {
    pub requester: &'r dyn Requester,
    pub scope: ReleaseScope<'r>,
    pub ending: Ending<'r>,
    /// The answer if the last write was done.
    pub answer: Result<Released, Error>,
    /// Whether a write with a lost answer may have been done.
    pub may_be_done: bool,
    /// The holders at the first look; holders that have come since are not broken.
    pub targets: Option<Vec<Identity>>,
}

impl<'r> Removal<'r> {
    pub fn new(requester: &'r dyn Requester, scope: ReleaseScope<'r>, ending: Ending<'r>) -> Self {
        let answer = Err(Error::NotLocked);
        Self { requester, scope, ending, answer, may_be_done: false, targets: None }
    }

    /// Whether an entry of another process is to be removed, which may be stale.
    fn is_meant(&self, entry: Option<&Entry>, is_stale: bool) -> bool {
        match self.scope {
            ReleaseScope::Own => false,
            ReleaseScope::OwnOrStale => is_stale,
            ReleaseScope::Token(token) => {
                entry.is_some_and(|entry| entry.token.as_deref() == Some(token))
            }
            ReleaseScope::Force => {
                is_stale || self.targets.iter().flatten().any(|target| *target == identity(entry))
            }
        }
    }

    /// Whether the owner knows of it: the requester itself breaks the lock of all holders.
    pub fn is_known(&self, stored: &Stored, entry: &Entry) -> bool {
        self.scope == ReleaseScope::Force && self.requester.owns(stored, entry)
    }
}

/// An acquisition, as far as the record identifies it.
type Identity = (Option<Pid>, Option<String>);

fn identity(entry: Option<&Entry>) -> Identity {
    (entry.map(|entry| entry.owner.pid), entry.and_then(|entry| entry.token.clone()))
}

/// The entries that stay, and the answer once that is written.
type Plan = (Vec<Entry>, Result<Released, Error>);

impl Mutex<'_> {
    pub(super) fn plan(
        &self,
        removal: &mut Removal<'_>,
        stored: &Stored,
        judged: Vec<Judged<Verdict>>,
    ) -> Result<Plan, Error> {
        let scope = removal.scope;
        let owns = |entry: &Entry| removal.requester.owns(stored, entry);
        let Seen { own, lost, held, former } = Seen::new(judged, owns);
        let present = own.iter().map(|own| own.entry.as_ref());
        let present = present.chain(held.iter().map(|holding| holding.entry.as_ref()));
        removal.targets.get_or_insert_with(|| present.map(identity).collect());
        if own.is_empty() && scope.is_own() && !lost.is_empty() {
            return Ok(self.plan_lost(stored, &lost, held));
        }
        let marks = self.lost_marks(&former);
        // Force is not needed for the last holder.
        let is_forced = scope == ReleaseScope::Force && held.is_empty();
        if !own.is_empty() && (scope.is_own() || is_forced) {
            let own = own.into_iter().filter_map(|own| own.entry).collect();
            let others = entries(&held).cloned().chain(marks).collect();
            return Ok(self.plan_own(own, others, removal.ending));
        }
        // Only force forgets a key.
        let interrupted = |broken: &mut dyn Iterator<Item = &Entry>| -> Vec<Entry> {
            let broken = broken.filter(|it| it.once.is_some() && scope != ReleaseScope::Force);
            let how = Ending { how: "interrupted: broken", ..Outcome::Unknown.into() };
            broken.map(|entry| self.ended(entry, how)).collect()
        };
        if own.is_empty() && held.is_empty() {
            let mut stale = former.into_iter().filter(|former| former.verdict != Stale::Released);
            let stale = stale.find(|former| removal.is_meant(former.entry.as_ref(), true));
            let stale = stale.ok_or(Error::NotLocked)?;
            let left = marks.into_iter().chain(interrupted(&mut stale.entry.iter()));
            return Ok((left.collect(), Ok(Released::Stale(Box::new(stale)))));
        }
        let mut holders: Vec<_> = Seen::held(own).into_iter().chain(held).collect();
        let taken: Vec<_> = holders
            .extract_if(.., |holding| removal.is_meant(holding.entry.as_ref(), false))
            .collect();
        if taken.is_empty() {
            return Err(Error::NotOurs(holders));
        }
        let told = entries(&taken).filter(|entry| {
            entry.lease.is_some() && entry.released.is_none() && !removal.is_known(stored, entry)
        });
        let told = told.map(mark_lost);
        // Behind the mark, which its process finds first.
        let broken = interrupted(&mut entries(&taken));
        let left = entries(&holders).cloned().chain(marks).chain(told).chain(broken).collect();
        Ok((left, Ok(Released::Forced(taken))))
    }

    /// The requester has lost the lock. A run of a key that it had begun is interrupted.
    fn plan_lost(&self, stored: &Stored, lost: &[Entry], held: Vec<Holding>) -> Plan {
        let is_expired = lost.first().is_some_and(|entry| entry.released.is_none());
        let how = if is_expired { Lost::Expired } else { Lost::TakenOver };
        let began = lost.iter().filter(|entry| entry.released.is_none() && entry.once.is_some());
        let interrupted = began.map(|entry| self.ended(entry, Outcome::Unknown.into()));
        let left = stored.entries().iter().filter(|entry| !lost.contains(entry)).cloned();
        (left.chain(interrupted).collect(), Err(Error::Lost(how, held)))
    }

    /// The requester's entries go, but for what is to stay for a time, or tells how it ended.
    fn plan_own(&self, was: Vec<Entry>, others: Vec<Entry>, ending: Ending<'_>) -> Plan {
        let remaining = |entry: &Entry| entry.remaining(self.register.now());
        let is_told = |entry: &Entry| entry.once.is_some() || ending.outcome == Outcome::Succeeded;
        let staying = was.iter().filter(|entry| remaining(entry).is_some() || is_told(entry));
        let staying = staying.map(|entry| self.ended(entry, ending));
        let left = others.into_iter().chain(staying).collect();
        let stays = was.iter().filter_map(remaining).max();
        (left, Ok(Released::Own { stays, was }))
    }

    pub(super) fn ended(&self, entry: &Entry, Ending { outcome, how, code }: Ending<'_>) -> Entry {
        let once = entry.once.as_ref().map(|run| run.with_end(self.register.time(), how, code));
        Entry { released: Some(outcome), once, ..entry.clone() }
    }
}

impl ReleaseScope<'_> {
    pub(super) fn is_own(self) -> bool {
        matches!(self, Self::OwnOrStale | Self::Own)
    }
}
