//! A register in a store that many hosts share, over a connection that can break at any moment.
//!
//! # After an ambiguous answer
//!
//! Every write is conditional on the version that was read, so that of two writes with the same condition at most one is done.
//! If the answer to a write is lost, the write may have been done, may never be, or may yet be (the store has it, and waits for
//! something). So it is sent again, with the same condition: if that is done, the first one never will be. If that is a
//! conflict, the version has changed, and what is stored now tells by whom: each record that is written is different from all
//! others (random tokens, renewals), so that if it is ours, we have written it. A conflict without a lost answer is looked at in the same
//! way: proxies lose answers, too, and some send a write again by themselves, whose second answer is a conflict. If others have written behind us meanwhile,
//! [`Write::Unclear`] is reported, and the policy looks again, by tokens.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant, SystemTime};

use super::{Backend, Content, Error, StoreError, Stored, Version, Write};
use crate::process::since_boot;
use crate::record::Record;
use crate::store::Scheme;
use crate::waiter::Waiter;

/// How often a question is asked again when the connection breaks or the store is busy: a hiccup, not an outage. Who
/// wants to wait for longer asks again later.
const MAX_TRIES: u32 = 4;

/// Not again after so long: who renews a lease has to give up in time.
const LIMIT: Duration = Duration::from_secs(2);

/// Before the second try; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(40);

/// What an engine has to be able to do: a register with a condition, one per name, whose states are numbered.
pub trait Register {
    /// What is there now. A table that does not exist is [`Cause::NotPrepared`].
    ///
    /// # Errors
    /// When there is no answer.
    fn read(&mut self) -> Result<Row, Failure>;

    /// Stores `text` (or that nothing is stored) under the number `next`, only if the state is still that of `seen`.
    ///
    /// # Errors
    /// When there is no answer, or it is no.
    fn write(&mut self, seen: &Row, next: u64, text: Option<&str>) -> Result<Write, Failure>;

    /// Makes the place where locks live; if it is there, that is fine.
    ///
    /// # Errors
    /// When it cannot be made.
    fn prepare(&mut self) -> Result<(), Failure>;

    /// Tries whether the store refuses what it has to, where that is not certain: some only speak like others.
    ///
    /// # Errors
    /// When it does not, or has no answer.
    fn prove(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// Sleeps at most `limit`, until one of `fds` is readable, or until something may have changed that is worth a look; also
    /// without a connection. How often it is worth to look without being told is for the engine to know.
    ///
    /// # Errors
    /// When it cannot sleep; not when the connection breaks.
    fn wait(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure>;

    /// Sleeps as [`Register::wait`] does, without a place among those who want the lock.
    ///
    /// # Errors
    /// As for [`Register::wait`].
    fn watch(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        self.wait(limit, fds)
    }

    /// Whether nobody waits who came before, as far as it is known from the last look.
    fn is_first(&mut self) -> bool {
        true
    }

    /// Whether it waits behind others, and so will be woken when its turn comes.
    fn is_in_line(&mut self) -> bool {
        false
    }

    /// Whether it had better not look as often as others do, because there is no room for those who wait.
    fn is_kept_out(&mut self) -> bool {
        false
    }

    /// Waits no more, and lets the next one come.
    fn leave(&mut self) {}

    /// Those who wait, in turn, as far as they are known.
    fn waiters(&mut self) -> Vec<Waiter> {
        Vec::new()
    }

    /// Tells others who wait that something has changed, if that can be told. Nobody relies on it.
    fn notify(&mut self) {}

    /// Closes the connection, if there is one.
    fn disconnect(&mut self);

    /// What frees the lock where what is stored is none of ours, as part of a sentence.
    fn repair(&self) -> &'static str;
}

/// What a store says about one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Identifies the state; `None` if there never was one.
    pub version: Option<Vec<u8>>,
    /// The state's number; 0 if there never was one.
    pub number: u64,
    /// What is stored; `None` if nothing is any more.
    pub text: Option<String>,
    /// The store's clock, in milliseconds since 1970, where it has one that all its users share.
    pub now: Option<u64>,
}

/// Why a store did not do it.
#[derive(Debug)]
pub struct Failure {
    /// What it says, or what is in the way; without secrets, lower case.
    pub why: String,
    /// What kind of reason that is.
    pub cause: Cause,
    /// What the user can do about it.
    pub hint: Option<String>,
    /// Whether it may have been done all the same.
    pub is_indefinite: bool,
}

/// Kinds of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It may work soon: the connection broke, the store starts, a deadlock.
    Transient,
    /// It may work later: there is no connection to be had, and who asks again at once keeps others from one.
    Full,
    /// It will not work until somebody does something.
    Permanent,
    /// The place where locks live has not been made yet.
    NotPrepared,
}

impl Cause {
    /// Whether it may work by itself.
    pub fn passes(self) -> bool {
        matches!(self, Self::Transient | Self::Full)
    }
}

impl Failure {
    /// It may work soon, and nothing was done.
    pub fn transient(why: impl Into<String>) -> Self {
        Self { why: why.into(), cause: Cause::Transient, hint: None, is_indefinite: false }
    }

    /// It will not work, and nothing was done.
    pub fn permanent(why: impl Into<String>) -> Self {
        Self { cause: Cause::Permanent, ..Self::transient(why) }
    }

    /// Says what the user can do about it.
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// It may have been done all the same.
    pub fn indefinite(self) -> Self {
        Self { is_indefinite: true, ..self }
    }

    /// This program was built without it.
    pub fn not_built(scheme: Scheme) -> Self {
        Self::permanent(format!("this program was built without the store `{}`", scheme.name()))
            .with_hint(format!("`cargo install … --features {}`, or a released wheel, which has all stores", scheme.feature()))
    }

    /// As an error of the lock at `location`.
    pub fn during(self, action: &'static str, location: String) -> StoreError {
        let Self { why, cause, hint, is_indefinite } = self;
        StoreError { action, location, why, hint, cause, is_indefinite }
    }
}

/// A register of a store, as a backend.
pub struct Remote<R> {
    register: R,
    location: String,
    last: Option<Last>,
}

/// What was read last.
struct Last {
    row: Row,
    /// Before it was asked for, in milliseconds since boot: the store's clock then was at most what it said.
    asked: u64,
    /// The number of whoever writes next.
    next: u64,
    is_prepared: bool,
}

impl<R: Register> Remote<R> {
    /// Does not connect yet.
    pub fn new(register: R, location: String) -> Self {
        Self { register, location, last: None }
    }

    fn error(&self, action: &'static str, failure: Failure) -> Error {
        failure.during(action, self.location.clone()).into()
    }

    /// What is stored, read anew.
    fn read(&mut self) -> Result<&Last, Error> {
        let mut asked = since_boot();
        let read = retry(|_| {
            asked = since_boot();
            let row = self.register.read();
            if row.as_ref().is_err_and(|failure| failure.cause.passes()) {
                self.register.disconnect();
            }
            row
        });
        let (row, is_prepared) = match read {
            Ok(row) => (row, true),
            Err(Failure { cause: Cause::NotPrepared, .. }) => (Row::default(), false),
            Err(failure) => return Err(self.error("read the lock", failure)),
        };
        let Some(next) = number_after(&row) else {
            let failure = Failure::permanent("its number is the last one that there is, which is none of ours");
            return Err(self.error("read the lock", failure.with_hint(format!("{} frees the lock", self.register.repair()))));
        };
        Ok(self.last.insert(Last { row, asked, next, is_prepared }))
    }

    /// Writes if the state is still what was read last.
    fn write(&mut self, text: Option<&str>) -> Result<Write, Error> {
        let last = match self.last.take() {
            Some(last) => last,
            // Nobody has looked, so nobody expects anything.
            None => return Ok(Write::Conflict),
        };
        if !last.is_prepared {
            let prepared = retry(|_| self.register.prepare().inspect_err(|_| self.register.disconnect()));
            // The next look finds an empty place, with a clock.
            return prepared.map(|()| Write::Conflict).map_err(|failure| self.error("write the lock", failure));
        }
        let mut is_indefinite = false;
        let write = retry(|_| {
            self.register.write(&last.row, last.next, text).inspect_err(|failure| {
                is_indefinite |= failure.is_indefinite;
                if failure.cause.passes() {
                    self.register.disconnect();
                }
            })
        });
        match write {
            // Also where no answer of ours was lost: something on the way may have asked twice.
            Ok(Write::Conflict) => {
                let read = retry(|_| self.register.read().inspect_err(|_| self.register.disconnect()));
                match read {
                    Ok(row) if text.is_some() && row.text.as_deref() == text => Ok(Write::Done),
                    // Nothing is stored, as we wanted; but others may have wanted that, too.
                    Ok(row) if row.text.as_deref() == text => Ok(if is_indefinite { Write::Done } else { Write::Unclear }),
                    Ok(_) if is_indefinite => Ok(Write::Unclear),
                    Ok(_) => Ok(Write::Conflict),
                    Err(failure) if is_indefinite => Err(self.error("write the lock", failure.indefinite())),
                    Err(_) => Ok(Write::Unclear),
                }
            }
            Ok(write) => Ok(write),
            Err(failure) => {
                let failure = Failure { is_indefinite: failure.is_indefinite || is_indefinite, ..failure };
                Err(self.error("write the lock", failure))
            }
        }
    }

    /// Writes if what was read last is what the caller has seen.
    fn write_if_seen(&mut self, seen: Option<&Stored>, text: Option<&str>) -> Result<Write, Error> {
        if self.last.is_none() {
            self.read()?;
        }
        let last = self.last.as_ref().and_then(|last| last.row.text.as_ref().and(last.row.version.clone()));
        if last.map(Version) != seen.map(|seen| seen.version.clone()) {
            self.last = None;
            return Ok(Write::Conflict);
        }
        self.write(text)
    }
}

/// Larger than all before it. The first one is the time, so that the number does not go back when somebody tidies the store up:
/// locks change hands less than a thousand times a second. Where the store has no clock, it is this host's.
fn number_after(row: &Row) -> Option<u64> {
    let next = row.number.checked_add(1)?;
    Some(if row.version.is_some() { next } else { row.now.unwrap_or_else(since_1970).max(next) })
}

/// In milliseconds.
pub fn since_1970() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(0)
}

/// Asks again while the answer is that it may work soon.
fn retry<T>(mut ask: impl FnMut(u32) -> Result<T, Failure>) -> Result<T, Failure> {
    let mut pause = FIRST_PAUSE;
    let mut tries = 0;
    let begun = Instant::now();
    // Ends after so many tries.
    loop {
        tries += 1;
        match ask(tries) {
            Err(failure) if failure.cause == Cause::Transient && tries < MAX_TRIES && begun.elapsed() < LIMIT => {
                tracing::debug!("trying again: {}", failure.why);
                std::thread::sleep(jittered(pause));
                pause *= 2;
            }
            answer => return answer,
        }
    }
}

/// Between three and five quarters of it: those whom one event has stopped, or who wait for the same, must not all come back at the
/// same moment.
pub fn jittered(pause: Duration) -> Duration {
    let mut bytes = [0_u8; 2];
    // Without random numbers, there is no jitter.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    pause * 3 / 4 + pause / 2 * u32::from(u16::from_le_bytes(bytes)) / u32::from(u16::MAX)
}

impl<R: Register> Backend for Remote<R> {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn load(&mut self) -> Result<Option<Stored>, Error> {
        let row = self.read()?.row.clone();
        let (Some(text), Some(version)) = (row.text, row.version) else { return Ok(None) };
        let record = Record::parse(text.as_bytes()).map_err(|error| {
            let failure = Failure::permanent(format!("what is stored there is no lock record: {error}"))
                .with_hint(format!("somebody else has written there; {} frees the lock", self.register.repair()));
            self.error("read the lock", failure)
        })?;
        let content = Content::Record(Box::new(record));
        Ok(Some(Stored { content, version: Version(version), written: None, is_local: false, now: row.now }))
    }

    fn create(&mut self, record: &Record) -> Result<Write, Error> {
        self.write_if_seen(None, Some(&record.to_text()))
    }

    fn replace(&mut self, seen: &Stored, record: &Record) -> Result<Write, Error> {
        self.write_if_seen(Some(seen), Some(&record.to_text()))
    }

    fn delete(&mut self, seen: &Stored) -> Result<Write, Error> {
        self.write_if_seen(Some(seen), None)
    }

    fn prove(&mut self) -> Result<(), Error> {
        let proved = retry(|_| self.register.prove().inspect_err(|_| self.register.disconnect()));
        proved.map_err(|failure| self.error("use the lock", failure))
    }

    fn wait(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.register.wait(limit, fds).map_err(|failure| self.error("wait for the lock", failure))
    }

    fn watch(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.register.watch(limit, fds).map_err(|failure| self.error("wait for the lock", failure))
    }

    fn is_first(&mut self) -> Result<bool, Error> {
        Ok(self.register.is_first())
    }

    fn is_in_line(&mut self) -> bool {
        self.register.is_in_line()
    }

    fn is_kept_out(&mut self) -> bool {
        self.register.is_kept_out()
    }

    fn leave(&mut self) {
        self.register.leave();
    }

    fn notify(&mut self) {
        self.register.notify();
    }

    /// Who waits elsewhere is not known, so that what is to be told is left for them.
    fn is_awaited(&mut self) -> bool {
        true
    }

    fn now(&self) -> Option<u64> {
        let Last { row, asked, .. } = self.last.as_ref()?;
        Some(row.now? + since_boot().saturating_sub(*asked))
    }

    fn next_number(&self) -> Option<u64> {
        self.last.as_ref().filter(|last| last.is_prepared).map(|last| last.next)
    }

    fn waiters(&mut self) -> Vec<Waiter> {
        self.register.waiters()
    }

    fn disconnect(&mut self) {
        self.register.disconnect();
    }
}
