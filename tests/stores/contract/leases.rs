//! The promises of a lock between hosts that do not see each other's processes.

use std::num::NonZeroU32;
use std::time::Duration;

use serializer::lock::staleness::{Held, Holding, LocalLiveness, Orphans, Stale, Verdict};
use serializer::lock::waiting::{Observer, Waiting};
use serializer::lock::{
    Acquired, Error, Grant, Lost, Mutex, ReleaseScope, Released, Request, Requester, Stored,
};
use serializer::record::mode::Mode;
use serializer::record::owner::Owner;
use serializer::record::{Entry, Outcome};
use serializer::sys::identity::{HostIdentity, ProcessIdentity};
use serializer::sys::process::parse_pid;

use super::subject::Subject;
use crate::support::until;

/// Long enough not to expire in a test that does not wait for it.
const LONG: Duration = Duration::from_secs(600);

/// Short enough to be waited for, and long enough for a busy machine to renew it in time.
const SHORT: Duration = Duration::from_secs(6);

/// The same in milliseconds, as instants are counted since boot.
const SHORT_MILLIS: u64 = 6000;

/// A process on a host of its own.
struct Stranger(i32);

impl Requester for Stranger {
    fn entry(&self) -> std::io::Result<Entry> {
        let place = HostIdentity {
            host: Some(format!("host{}", self.0)),
            boot: Some(self.0.to_string()),
            ..HostIdentity::default()
        };
        let pid = parse_pid(&self.0.to_string()).expect("a pid");
        Entry::new(
            Owner { pid, uid: None, place, instance: ProcessIdentity::default() },
            None,
            Some("work".to_owned()),
        )
    }

    fn owns(&self, _stored: &Stored, entry: &Entry) -> bool {
        entry.owner.pid.as_raw_pid() == self.0
    }
}

struct Silent;

impl Observer for Silent {
    fn waiting(
        &mut self,
        _holders: &[Holding],
        _attempt: u32,
        _place: &mut dyn FnMut() -> Option<usize>,
    ) {
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(60)
    }
}

fn judge() -> LocalLiveness {
    LocalLiveness::new(
        HostIdentity { host: Some("nobody's".to_owned()), ..HostIdentity::default() },
        Orphans::Ignore,
    )
}

fn for_so_long(lease: Duration) -> Request {
    Request { lease: Some(lease), ..Request::default() }
}

fn once() -> Waiting {
    Waiting {
        max_attempts: NonZeroU32::new(1),
        sleep: Duration::ZERO,
        timeout: None,
        warn_after: None,
    }
}

fn granted(acquired: Result<Acquired, Error>) -> Grant {
    match acquired {
        Ok(Acquired::Granted(grant, _)) => grant,
        other => panic!("not granted: {other:?}"),
    }
}

fn acquire(mutex: &mut Mutex<'_>, who: i32, request: &Request) -> Result<Acquired, Error> {
    mutex.acquire(&Stranger(who), request, &once(), &mut Silent)
}

fn is_expired(mutex: &mut Mutex<'_>) -> bool {
    let (_, judged) = mutex.look().expect("an answer");
    matches!(judged[0].verdict, Verdict::Stale(Stale::Expired))
}

pub fn the_same_owner_holds_it_already(subject: &Subject) {
    let judge = judge();
    let mut mutex = Mutex::new(subject.open("x"), &judge);
    let grant = granted(acquire(&mut mutex, 1, &for_so_long(LONG)));
    let mut again = Mutex::new(subject.open("x"), &judge);
    match acquire(&mut again, 1, &for_so_long(LONG)) {
        Ok(Acquired::AlreadyHeld(held)) => {
            assert_eq!(held.entry.and_then(|entry| entry.token), Some(grant.token))
        }
        other => panic!("{other:?}"),
    }
}

pub fn another_owner_finds_it_held_and_does_not_release_it(subject: &Subject) {
    let judge = judge();
    let mut mutex = Mutex::new(subject.open("x"), &judge);
    granted(acquire(&mut mutex, 1, &for_so_long(LONG)));
    let mut other = Mutex::new(subject.open("x"), &judge);
    match acquire(&mut other, 2, &for_so_long(LONG)) {
        Err(Error::Busy(_, holders)) => {
            assert!(matches!(holders[0].verdict, Held::Leased(_)), "{holders:?}")
        }
        other => panic!("{other:?}"),
    }
    for whose in [ReleaseScope::OwnOrStale, ReleaseScope::Own] {
        let released = other.release(&Stranger(2), whose, Outcome::Unknown);
        assert!(matches!(released, Err(Error::NotOurs(_))), "{released:?}");
    }
    let released = mutex.release(&Stranger(1), ReleaseScope::OwnOrStale, Outcome::Unknown);
    assert!(matches!(released, Ok(Released::Own { stays: None, .. })), "{released:?}");
    granted(acquire(&mut other, 2, &for_so_long(LONG)));
}

pub fn a_foreign_token_breaks_nothing(subject: &Subject) {
    let judge = judge();
    let mut mutex = Mutex::new(subject.open("x"), &judge);
    let grant = granted(acquire(&mut mutex, 1, &for_so_long(LONG)));
    let broken = mutex.release(&Stranger(2), ReleaseScope::Token("another"), Outcome::Unknown);
    assert!(matches!(broken, Err(Error::NotOurs(_))), "{broken:?}");
    assert!(matches!(mutex.renew("another", None), Err(Error::Lost(Lost::Gone, _))));
    mutex.renew(&grant.token, None).expect("it is held yet");
}

pub fn a_lease_that_is_not_renewed_expires(subject: &Subject) {
    let judge = judge();
    let mut mutex = Mutex::new(subject.open("x"), &judge);
    let lost = granted(acquire(&mut mutex, 1, &for_so_long(SHORT)));
    let mut other = Mutex::new(subject.open("x"), &judge);
    assert!(matches!(acquire(&mut other, 2, &for_so_long(LONG)), Err(Error::Busy(..))));
    let waiting = Waiting {
        max_attempts: None,
        sleep: Duration::from_millis(100),
        timeout: Some(LONG),
        warn_after: None,
    };
    match other.acquire(&Stranger(2), &for_so_long(LONG), &waiting, &mut Silent) {
        Ok(Acquired::Granted(grant, Some(former))) => {
            assert_eq!(former.verdict, Stale::Expired);
            assert!(grant.fencing >= lost.fencing);
            assert!(grant.fencing > lost.fencing || !subject.has_numbers());
            // Not before its time, as its holder counts.
            assert!(serializer::sys::clock::since_boot() >= lost.leased_at + SHORT_MILLIS);
        }
        other => panic!("{other:?}"),
    }
}

pub fn a_lease_that_is_renewed_does_not_expire(subject: &Subject) {
    let judge = judge();
    let mut mutex = Mutex::new(subject.open("x"), &judge);
    let grant = granted(acquire(&mut mutex, 1, &for_so_long(SHORT)));
    let mut other = Mutex::new(subject.open("x"), &judge);
    let first = grant.leased_at;
    let mut last = grant.leased_at;
    until("three leases have passed", || {
        let renewed = mutex.renew(&grant.token, None).expect("it is held yet");
        assert!(renewed.leased_at >= last && renewed.fencing == grant.fencing);
        last = renewed.leased_at;
        assert!(matches!(acquire(&mut other, 2, &for_so_long(LONG)), Err(Error::Busy(..))));
        last - first > 3 * SHORT_MILLIS
    });
}

pub fn an_expired_lease_is_not_renewed(subject: &Subject) {
    let judge = judge();
    let mut mutex = Mutex::new(subject.open("x"), &judge);
    let grant = granted(acquire(&mut mutex, 1, &for_so_long(SHORT)));
    until("it expires", || is_expired(&mut mutex));
    let renewed = mutex.renew(&grant.token, None);
    assert!(matches!(renewed, Err(Error::Lost(Lost::Expired, _))), "{renewed:?}");
}

pub fn a_process_that_has_lost_it_is_told_and_releases_no_other_lock(subject: &Subject) {
    let judge = judge();
    let mut mutex = Mutex::new(subject.open("x"), &judge);
    let lost = granted(acquire(&mut mutex, 1, &for_so_long(SHORT)));
    let mut other = Mutex::new(subject.open("x"), &judge);
    let mut grant = None;
    until("it is taken over", || {
        grant = acquire(&mut other, 2, &for_so_long(LONG)).ok();
        grant.is_some()
    });
    assert!(matches!(mutex.renew(&lost.token, None), Err(Error::Lost(Lost::TakenOver, _))));
    match mutex.release(&Stranger(1), ReleaseScope::OwnOrStale, Outcome::Unknown) {
        Err(Error::Lost(Lost::TakenOver, holders)) => assert_eq!(holders.len(), 1),
        other => panic!("{other:?}"),
    }
    // It is told once.
    let released = mutex.release(&Stranger(1), ReleaseScope::OwnOrStale, Outcome::Unknown);
    assert!(matches!(released, Err(Error::NotOurs(_))), "{released:?}");
    other.renew(&granted(Ok(grant.expect("a grant"))).token, None).expect("it is held yet");
    // Also when the process that took it has released it.
    let third =
        granted(acquire(&mut Mutex::new(subject.open("y"), &judge), 3, &for_so_long(SHORT)));
    let mut fourth = Mutex::new(subject.open("y"), &judge);
    until("it is taken over", || acquire(&mut fourth, 4, &for_so_long(LONG)).is_ok());
    fourth
        .release(&Stranger(4), ReleaseScope::OwnOrStale, Outcome::Unknown)
        .expect("it is its own");
    let told = fourth.release(&Stranger(3), ReleaseScope::OwnOrStale, Outcome::Unknown);
    assert!(matches!(told, Err(Error::Lost(Lost::TakenOver, _))), "{third:?} {told:?}");
}

pub fn a_process_that_has_let_it_expire_is_told(subject: &Subject) {
    let judge = judge();
    let mut mutex = Mutex::new(subject.open("x"), &judge);
    granted(acquire(&mut mutex, 1, &for_so_long(SHORT)));
    until("it expires", || is_expired(&mut mutex));
    let released = mutex.release(&Stranger(1), ReleaseScope::OwnOrStale, Outcome::Unknown);
    assert!(matches!(released, Err(Error::Lost(Lost::Expired, _))), "{released:?}");
    let acquired = acquire(&mut mutex, 2, &for_so_long(LONG));
    assert!(matches!(acquired, Ok(Acquired::Granted(_, None))), "{acquired:?}");
}

pub fn what_is_to_be_held_at_least_stays_held(subject: &Subject) {
    let judge = judge();
    let mut mutex = Mutex::new(subject.open("x"), &judge);
    let request = Request { at_least: Some(Duration::from_millis(1500)), ..for_so_long(LONG) };
    let grant = granted(acquire(&mut mutex, 1, &request));
    match mutex.release(&Stranger(1), ReleaseScope::OwnOrStale, Outcome::Unknown) {
        Ok(Released::Own { stays: Some(_), .. }) => {}
        other => panic!("{other:?}"),
    }
    let waiting = Waiting {
        max_attempts: None,
        sleep: Duration::from_millis(100),
        timeout: Some(LONG),
        warn_after: None,
    };
    granted(mutex.acquire(&Stranger(2), &for_so_long(LONG), &waiting, &mut Silent));
    assert!(serializer::sys::clock::since_boot() >= grant.leased_at + 1500);
}

pub fn slots_are_so_many_and_sharers_any_number(subject: &Subject) {
    let judge = judge();
    let slots = Mode::Slots(NonZeroU32::new(3).expect("three"));
    let mut mutex = Mutex::new(subject.open("x"), &judge);
    let request = Request { mode: slots, ..for_so_long(LONG) };
    let grants: Vec<_> = (1..=3).map(|who| granted(acquire(&mut mutex, who, &request))).collect();
    assert!(matches!(acquire(&mut mutex, 4, &request), Err(Error::Busy(..))));
    grants.iter().for_each(|grant| drop(mutex.renew(&grant.token, None).expect("it is held yet")));
    mutex.release(&Stranger(2), ReleaseScope::OwnOrStale, Outcome::Unknown).expect("it is its own");
    granted(acquire(&mut mutex, 4, &request));

    let mut mutex = Mutex::new(subject.open("y"), &judge);
    let request = Request { mode: Mode::Shared, ..for_so_long(LONG) };
    (1..=5).for_each(|who| drop(granted(acquire(&mut mutex, who, &request))));
    assert!(matches!(acquire(&mut mutex, 6, &for_so_long(LONG)), Err(Error::Busy(..))));
    (1..=5).for_each(|who| {
        drop(
            mutex
                .release(&Stranger(who), ReleaseScope::OwnOrStale, Outcome::Unknown)
                .expect("it is its own"),
        )
    });
    granted(acquire(&mut mutex, 6, &for_so_long(LONG)));
}

pub fn a_holder_is_told_that_its_lock_was_broken(subject: &Subject) {
    let judge = judge();
    let mut mutex = Mutex::new(subject.open("x"), &judge);
    let grant = granted(acquire(&mut mutex, 1, &for_so_long(LONG)));
    let broken = mutex.release(&Stranger(2), ReleaseScope::Token(&grant.token), Outcome::Unknown);
    assert!(matches!(broken, Ok(Released::Forced(_))), "{broken:?}");
    assert!(matches!(mutex.renew(&grant.token, None), Err(Error::Lost(Lost::TakenOver, _))));
    granted(acquire(&mut mutex, 3, &for_so_long(LONG)));
    let released = mutex.release(&Stranger(1), ReleaseScope::OwnOrStale, Outcome::Unknown);
    assert!(matches!(released, Err(Error::Lost(Lost::TakenOver, _))), "{released:?}");
}

/// Releases a lock as soon as it is seen that another waits for it.
struct Succeeding<'a>(Option<Mutex<'a>>);

impl Observer for Succeeding<'_> {
    fn waiting(
        &mut self,
        _holders: &[Holding],
        _attempt: u32,
        _place: &mut dyn FnMut() -> Option<usize>,
    ) {
        if let Some(mut mutex) = self.0.take() {
            mutex
                .release(&Stranger(1), ReleaseScope::OwnOrStale, Outcome::Succeeded)
                .expect("it is its own");
        }
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(60)
    }
}

pub fn success_is_told_to_a_waiter(subject: &Subject) {
    let judge = judge();
    let skipping = Request { skip_if_done: true, ..for_so_long(LONG) };
    let mut mutex = Mutex::new(subject.open("x"), &judge);
    granted(acquire(&mut mutex, 1, &skipping));
    let mut other = Mutex::new(subject.open("x"), &judge);
    let waiting = Waiting {
        max_attempts: None,
        sleep: Duration::from_millis(50),
        timeout: Some(LONG),
        warn_after: None,
    };
    let acquired = other.acquire(&Stranger(2), &skipping, &waiting, &mut Succeeding(Some(mutex)));
    assert!(matches!(acquired, Ok(Acquired::NotNeeded(None))), "{acquired:?}");
    // A later process has to do it.
    granted(acquire(&mut other, 3, &skipping));
}
