//! Releasing a lock: one's own, a stale one, or on request another's.

use std::time::{Duration, Instant};

use rustix::process::{Pid, getpid};

use super::register::Write;
use super::renew::mark_lost;
use super::{Error, Lost, MAX_ROUNDS, Mutex, ReleaseScope, Released, Seen};
use crate::lock::once::Ending;
use crate::lock::requester::Requester;
use crate::lock::staleness::{Held, Judged, Stale, Verdict};
use crate::lock::stored::Stored;
use crate::record::owner::Owner;
use crate::record::{Entry, KEPT, Outcome, Record};
use crate::store;
use crate::sys::clock::since_boot;
use crate::sys::identity::HostIdentity;
use crate::sys::poll;

/// Between two such tries.
const PAUSE: Duration = Duration::from_millis(250);

/// What to release, and what was tried so far.
struct Removal<'r> {
    requester: &'r dyn Requester,
    scope: ReleaseScope<'r>,
    ending: Ending<'r>,
    /// The answer if the last write was done.
    answer: Result<Released, Error>,
    /// Whether a write may have been done whose answer was lost.
    may_be_done: bool,
    /// The holders at the first look; holders that have come since are not broken.
    targets: Option<Vec<Identity>>,
}

impl Removal<'_> {
    /// Whether an entry of another process is to be removed, which may be stale.
    fn is_meant(&self, entry: Option<&Entry>, is_stale: bool) -> bool {
        match self.scope {
            ReleaseScope::OwnOrStale | ReleaseScope::Own => is_stale,
            ReleaseScope::Token(token) => {
                entry.is_some_and(|entry| entry.token.as_deref() == Some(token))
            }
            ReleaseScope::Force => {
                is_stale || self.targets.iter().flatten().any(|target| *target == identity(entry))
            }
        }
    }

    /// Whether the owner of a broken lock knows, because it is the requester, which breaks the lock
    /// of all holders.
    fn is_known(&self, stored: &Stored, entry: &Entry) -> bool {
        self.scope == ReleaseScope::Force && self.requester.owns(stored, entry)
    }
}

/// An acquisition, as far as the record identifies it.
type Identity = (Option<Pid>, Option<String>);

fn identity(entry: Option<&Entry>) -> Identity {
    (entry.map(|entry| entry.owner.pid), entry.and_then(|entry| entry.token.clone()))
}

impl Mutex<'_> {
    /// Releases the lock as `scope` says. `outcome` is reported to processes that wait for it.
    /// Tries for some time if the store does not answer.
    pub fn release(
        &mut self,
        requester: &dyn Requester,
        scope: ReleaseScope,
        outcome: Outcome,
    ) -> Result<Released, Error> {
        self.conclude(requester, scope, outcome.into())
    }

    /// The same, and says how the run of a key ended.
    pub fn conclude(
        &mut self,
        requester: &dyn Requester,
        scope: ReleaseScope,
        ending: Ending<'_>,
    ) -> Result<Released, Error> {
        let begun = Instant::now();
        let answer = Err(Error::NotLocked);
        let mut tried =
            Removal { requester, scope, ending, answer, may_be_done: false, targets: None };
        // Ends with the patience.
        let error = loop {
            match self.try_to_release(&mut tried) {
                Ok(()) => {
                    if tried.answer.is_ok()
                        && !self.patience.is_zero()
                        && self.register.is_sweep_due()
                    {
                        self.register.remove_unused(KEPT);
                    }
                    return tried.answer;
                }
                Err(Error::Store(error))
                    if error.cause.passes() && begun.elapsed() < self.patience =>
                {
                    tried.may_be_done |= error.is_indefinite;
                    tracing::debug!("{error}; trying again");
                    poll::sleep(PAUSE, &[]).map_err(|error| Error::Entry(error.into()))?;
                }
                Err(error) => break error,
            }
        };
        let (is_locked, holders) = match error {
            Error::NotLocked => (false, Vec::new()),
            Error::NotOurs(holders) => (true, holders),
            error => return Err(error),
        };
        match tried.answer {
            // The run of a key does not vanish when it ends: what is remembered of it counts.
            Ok(Released::Own { was, .. }) if was.iter().any(|entry| entry.once.is_some()) => {
                let last = self.register.load()?;
                let last = last
                    .as_ref()
                    .and_then(|stored| Some((stored, stored.record.as_ref()?.last_run()?.0)));
                let is_it = last.is_some_and(|(stored, entry)| {
                    requester.owns(stored, entry) && entry.released == Some(ending.outcome)
                });
                if is_it {
                    Ok(Released::Own { stays: None, was })
                } else {
                    Err(Error::Lost(Lost::Gone, holders))
                }
            }
            // What was found before is gone, as was intended.
            Ok(Released::Own { was, .. }) if tried.may_be_done => {
                Ok(Released::Own { stays: None, was })
            }
            Err(Error::Lost(how, _)) if tried.may_be_done => Err(Error::Lost(how, holders)),
            answer if tried.may_be_done => answer,
            _ if scope.is_own() && self.register.take_notices(requester).is_some() => {
                Err(Error::Lost(Lost::Broken, holders))
            }
            _ if is_locked => Err(Error::NotOurs(holders)),
            _ => Err(Error::NotLocked),
        }
    }

    /// One try. The answer is in `removal`.
    fn try_to_release(&mut self, removal: &mut Removal<'_>) -> Result<(), Error> {
        for _ in 0..MAX_ROUNDS {
            let Some((stored, judged)) = self.look()? else { return Err(Error::NotLocked) };
            let left;
            (left, removal.answer) = self.plan(removal, &stored, judged)?;
            let has_lease = |entry: &Entry| entry.lease.is_some();
            let write = match &removal.answer {
                // What is broken by force is deleted at once, also where no stale lock can be taken
                // over (NFS).
                Ok(Released::Stale(former))
                    if removal.scope.is_own() && !former.entry.as_ref().is_some_and(has_lease) =>
                {
                    self.delete_stale(&stored)?
                }
                _ => self.store(&stored, left)?,
            };
            match &removal.answer {
                // A leased entry cannot vanish by another process without a mark, so a write of
                // ours was sent twice by a proxy.
                Ok(Released::Own { was, .. }) if write == Write::Conflict => {
                    removal.may_be_done |= was.iter().all(has_lease);
                }
                // Asked only now: a process that comes later sees that the command has ended, and
                // does not wait.
                Ok(Released::Own { stays: None, was })
                    if write == Write::Done && removal.ending.outcome == Outcome::Succeeded =>
                {
                    if let Some(told) =
                        was.first().filter(|own| own.once.is_none() && !self.has_waiters())
                    {
                        // It is released all the same.
                        let _ = self.withdraw(told);
                    }
                }
                // An owner without a lease finds no mark in the record, and asks only if it runs.
                Ok(Released::Forced(taken)) if write == Write::Done => {
                    let seen =
                        taken.iter().filter(|holding| matches!(holding.verdict, Held::Alive(_)));
                    let entries = seen.filter_map(|holding| holding.entry.as_ref());
                    let told = entries
                        .filter(|entry| !has_lease(entry) && !removal.is_known(&stored, entry));
                    self.register.leave_notices(&told.map(mark_lost).collect::<Vec<_>>());
                }
                _ => {}
            }
            if write == Write::Done {
                return Ok(());
            }
            removal.may_be_done |= write == Write::Unknown;
        }
        Err(Error::NotOurs(Vec::new()))
    }

    /// Decides by what is stored alone: the entries that stay, and the answer once that is written.
    fn plan(
        &self,
        removal: &mut Removal<'_>,
        stored: &Stored,
        judged: Vec<Judged<Verdict>>,
    ) -> Result<(Vec<Entry>, Result<Released, Error>), Error> {
        let (scope, ending) = (removal.scope, removal.ending);
        let Seen { own, lost, held, former } =
            Seen::new(judged, |entry| removal.requester.owns(stored, entry));
        let present = own
            .iter()
            .map(|own| own.entry.as_ref())
            .chain(held.iter().map(|holding| holding.entry.as_ref()));
        removal.targets.get_or_insert_with(|| present.map(identity).collect());
        let marks = self.lost_marks(&former);
        if let Some(entry) = lost.first().filter(|_| own.is_empty() && scope.is_own()) {
            let how = if entry.released.is_none() { Lost::Expired } else { Lost::TakenOver };
            let interrupted =
                lost.iter().filter(|entry| entry.released.is_none() && entry.once.is_some());
            let interrupted = interrupted.map(|entry| self.ended(entry, Outcome::Unknown.into()));
            return Ok((
                stored.without(&lost).into_iter().chain(interrupted).collect(),
                Err(Error::Lost(how, held)),
            ));
        }
        // Force is not needed for the last holder.
        if !own.is_empty() && (scope.is_own() || (scope == ReleaseScope::Force && held.is_empty()))
        {
            let was: Vec<_> = own.into_iter().filter_map(|own| own.entry).collect();
            let now = |entry: &Entry| {
                if entry.lease.is_some() { self.register.now() } else { Some(since_boot()) }
            };
            let staying = was.iter().filter_map(|entry| {
                let ended = self.ended(entry, ending);
                let remaining = entry
                    .until
                    .and_then(|until| until.checked_sub(now(entry)?))
                    .filter(|remaining| *remaining > 0);
                let stays = remaining.is_some()
                    || entry.once.is_some()
                    || ending.outcome == Outcome::Succeeded;
                stays.then(|| (remaining.map(Duration::from_millis), ended))
            });
            let (until, staying): (Vec<_>, Vec<_>) = staying.unzip();
            let left = held
                .into_iter()
                .filter_map(|holding| holding.entry)
                .chain(marks)
                .chain(staying)
                .collect();
            return Ok((left, Ok(Released::Own { stays: until.into_iter().flatten().max(), was })));
        }
        if own.is_empty() && held.is_empty() {
            let mut stale = former.into_iter().filter(|former| former.verdict != Stale::Released);
            let stale = stale.find(|former| {
                scope != ReleaseScope::Own && removal.is_meant(former.entry.as_ref(), true)
            });
            return Ok((marks, Ok(Released::Stale(Box::new(stale.ok_or(Error::NotLocked)?)))));
        }
        let mut holders: Vec<_> = Seen::held(own).into_iter().chain(held).collect();
        let taken: Vec<_> = holders
            .extract_if(.., |holding| removal.is_meant(holding.entry.as_ref(), false))
            .collect();
        if taken.is_empty() {
            return Err(Error::NotOurs(holders));
        }
        let told = taken
            .iter()
            .filter_map(|holding| holding.entry.as_ref())
            .filter(|entry| entry.lease.is_some());
        let told = told
            .filter(|entry| entry.released.is_none() && !removal.is_known(stored, entry))
            .map(mark_lost);
        let left = holders
            .into_iter()
            .filter_map(|holding| holding.entry)
            .chain(marks)
            .chain(told)
            .collect();
        Ok((left, Ok(Released::Forced(taken))))
    }

    /// Leaves these entries, or nothing if there are none, and wakes a waiter.
    pub(super) fn store(
        &mut self,
        seen: &Stored,
        mut entries: Vec<Entry>,
    ) -> Result<Write, store::Error> {
        let mut record = Record::of(entries.clone());
        if record.is_none() {
            // What is added to a released entry may be too much for a full record. It can be left
            // out: nothing holds by it.
            entries.retain(|entry| entry.released.is_none());
            record = Record::of(entries.clone());
        }
        if record.is_none() && !entries.is_empty() {
            return Ok(Write::Conflict);
        }
        let write = self.register.put(Some(seen), record.as_ref())?;
        if write == Write::Done {
            self.register.notify();
        }
        Ok(write)
    }

    /// The entry once it is released.
    fn ended(&self, entry: &Entry, Ending { outcome, how, code }: Ending<'_>) -> Entry {
        let once = entry.once.as_ref().map(|run| run.with_end(self.register.time(), how, code));
        Entry { released: Some(outcome), once, ..entry.clone() }
    }

    /// Takes a stale lock over before it is deleted, because a takeover finds out which other
    /// process takes it over, too. It is taken in the name of this process: if that is killed in
    /// between, the record is stale again.
    fn delete_stale(&mut self, stale: &Stored) -> Result<Write, Error> {
        let owner = Owner::of(getpid(), &HostIdentity::here()).map_err(Error::Entry)?;
        let entry =
            Entry::new(owner, None, Some("serializer unlock".to_owned())).map_err(Error::Entry)?;
        let Some(record) = Record::of(vec![entry.clone()]) else { return Ok(Write::Conflict) };
        match self.register.put(Some(stale), Some(&record))? {
            Write::Done => Ok(self.withdraw(&entry)?),
            write => Ok(write),
        }
    }

    /// Removes an entry that was just written; a conflict means that another process has taken it
    /// over.
    pub(super) fn withdraw(&mut self, entry: &Entry) -> Result<Write, store::Error> {
        for _ in 0..MAX_ROUNDS {
            let Some(stored) = self.register.load()? else { return Ok(Write::Conflict) };
            let (own, mut rest): (Vec<_>, Vec<_>) =
                stored.entries().iter().cloned().partition(|other| other.token == entry.token);
            let [own] = own.as_slice() else { return Ok(Write::Conflict) };
            // A key remembers that it was begun.
            rest.extend(own.once.as_ref().map(|_| self.ended(own, Outcome::Unknown.into())));
            if self.store(&stored, rest)? == Write::Done {
                return Ok(Write::Done);
            }
        }
        Ok(Write::Conflict)
    }
}

impl ReleaseScope<'_> {
    fn is_own(self) -> bool {
        matches!(self, Self::OwnOrStale | Self::Own)
    }
}
