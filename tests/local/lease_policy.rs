//! Leases on a simulated store: whatever the order in which holders, their keepers and requesters
//! take their steps, crash and die, whatever is lost on the way to the store or arrives late, and
//! whenever time passes. Unexpired leases are of modes that may hold the lock together. A holder
//! that has lost its lock is told when it unlocks. Tokens grow, and the lock can always be acquired
//! again.
//!
//! The program's own parts are the policy (`Mutex`) and the register of a store that may not answer
//! (`Register`). Time is the store's: a lease is so long that the real time of a test does not
//! matter.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::{Just, Strategy, prop_oneof};
use proptest::{collection, sample};
use serializer::lock::register::Register;
use serializer::lock::staleness::Holding;
use serializer::lock::waiting::{Observer, Waiting};
use serializer::lock::{
    self, Acquired, Grant, Lost, Mutex, ReleaseScope, Released, Request, Requester,
};
use serializer::record::mode::Mode;
use serializer::record::{Entry, Lease, Outcome, Record};
use serializer::store::Failure;
use serializer::store::seam::{Key, Kind, Next, Page, State, Store, Write};
use serializer::sys::clock::since_boot;

use crate::support::memory::Memory;
use crate::support::simulated::{
    self, Access, ByPid, Fate, Process, Silent, Simulated, advance, fate,
};

const OWNERS: usize = 3;

/// In milliseconds: a day.
const LEASE: u64 = 24 * 60 * 60 * 1000;

const SLOTS: Mode = Mode::Slots(NonZeroU32::new(2).expect("a number of slots"));

/// How a command has ended.
enum Ended {
    Locked { grant: Grant, since: u64, was_held: bool },
    Renewed { since: u64 },
    Unlocked,
    Otherwise,
}

/// A store with which something happens right before each change, though not before the same write
/// is sent again.
struct Before<S> {
    store: S,
    happens: Box<dyn FnMut() + Send>,
    changed: Option<State>,
}

impl<S> Before<S> {
    fn new(store: S, happens: Box<dyn FnMut() + Send>) -> Self {
        Self { store, happens, changed: None }
    }
}

impl<S: Store> Store for Before<S> {
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        self.store.get(key)
    }

    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        if self.changed.replace(expected.clone()).as_ref() != Some(expected) {
            (self.happens)();
        }
        self.store.put(key, expected, next)
    }

    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page, Failure> {
        self.store.list(kind, after)
    }

    fn purge(&mut self, key: &Key, expected: &State) -> Result<Write, Failure> {
        self.store.purge(key, expected)
    }

    fn create_schema(&mut self, key: &Key) -> Result<(), Failure> {
        self.store.create_schema(key)
    }

    fn repair(&self) -> &'static str {
        self.store.repair()
    }

    fn poll_interval(&self) -> (Duration, Duration) {
        self.store.poll_interval()
    }
}

fn key() -> Key {
    Key::lock(OsStr::new("lock"))
}

fn register(store: impl Store + 'static) -> Register {
    simulated::register(store, key())
}

/// No process sees another one.
const BLIND: ByPid = ByPid(None);

fn request(mode: Mode) -> Request {
    Request { mode, lease: Some(Duration::from_millis(LEASE)), ..Request::default() }
}

fn attempts(number: u32) -> Waiting {
    Waiting {
        max_attempts: NonZeroU32::new(number),
        sleep: Duration::ZERO,
        timeout: None,
        warn_after: None,
    }
}

#[derive(Clone, Debug)]
enum Order {
    Lock(Mode),
    Unlock,
    Renew(String),
}

/// Notes the largest number that had been granted when it began.
type Command = simulated::Command<Order, Ended>;

/// What an owner relies on, as long as its lease goes on.
#[derive(Clone, Debug)]
struct Belief {
    mode: Mode,
    grant: Grant,
    until: u64,
    /// Whether another holder has had the lock since that excludes this one.
    is_broken: bool,
}

struct Host {
    pid: i32,
    /// A `lock` or `unlock`, and a renewal.
    command: Option<Command>,
    keeper: Option<Command>,
    belief: Option<Belief>,
    /// What it relied on when it began to unlock.
    given_back: Option<Belief>,
}

struct World {
    store: Simulated,
    hosts: Vec<Host>,
    next_pid: i32,
    largest: u64,
    fencing: HashSet<u64>,
}

impl World {
    fn new() -> Self {
        let store = Simulated::new();
        let mut world =
            Self { store, hosts: Vec::new(), next_pid: 2, largest: 0, fencing: HashSet::new() };
        for _ in 0..OWNERS {
            let host = world.born();
            world.hosts.push(host);
        }
        world
    }

    fn born(&mut self) -> Host {
        self.next_pid += 1;
        Host { pid: self.next_pid, command: None, keeper: None, belief: None, given_back: None }
    }

    fn process(&self, pid: i32) -> Process {
        Process { pid, store: self.store.clone() }
    }

    fn start(&self, pid: i32, order: Order) -> Command {
        let (process, store) = (self.process(pid), self.store.clone());
        Command::start(
            (&self.store, Access::shared(key())),
            (order, self.largest),
            move |gated, order| {
                let noted = Arc::new(AtomicU64::new(0));
                // Which is when a lease is reckoned from.
                let happens = {
                    let noted = noted.clone();
                    Box::new(move || noted.store(store.now(), Ordering::Relaxed))
                };
                let mut mutex = Mutex::new(register(Before::new(gated, happens)), &BLIND);
                do_it(&mut mutex, &process, &order, &noted)
            },
        )
    }

    /// The owner's command asks one question; if it has none, it begins with what is next.
    fn step(&mut self, host: usize, mode: Mode, fate: Fate) -> Result<(), String> {
        let pid = self.hosts[host].pid;
        let command = self.hosts[host].command.take().unwrap_or_else(|| {
            // A process that unlocks relies on the lock no longer.
            let belief = self.hosts[host].belief.take();
            self.hosts[host].given_back = belief.clone();
            self.start(pid, belief.map_or(Order::Lock(mode), |_| Order::Unlock))
        });
        let ended = advance(&mut self.hosts[host].command, command, fate);
        ended.map_or(Ok(()), |(order, ended, largest)| self.ended(host, &order, ended, largest))
    }

    /// The same for the renewal of what is held.
    fn keep(&mut self, host: usize, fate: Fate) -> Result<(), String> {
        let pid = self.hosts[host].pid;
        let token = self.hosts[host].belief.as_ref().map(|belief| belief.grant.token.clone());
        let keeper =
            self.hosts[host].keeper.take().or_else(|| Some(self.start(pid, Order::Renew(token?))));
        let Some(keeper) = keeper else { return Ok(()) };
        let ended = advance(&mut self.hosts[host].keeper, keeper, fate);
        ended.map_or(Ok(()), |(order, ended, largest)| self.ended(host, &order, ended, largest))
    }

    fn ended(
        &mut self,
        host: usize,
        order: &Order,
        ended: Ended,
        largest: u64,
    ) -> Result<(), String> {
        let lasts = |since: u64| since + LEASE;
        match (order, ended) {
            (Order::Lock(mode), Ended::Locked { grant, since, was_held }) => {
                let number = grant.fencing.ok_or("it has no number")?;
                let is_new = self.fencing.insert(number);
                if !was_held && (number <= largest || !is_new) {
                    return Err(format!("{grant:?} comes after {largest}"));
                }
                self.largest = self.largest.max(number);
                for other in self
                    .hosts
                    .iter_mut()
                    .enumerate()
                    .filter(|(other, _)| *other != host)
                    .map(|(_, other)| other)
                {
                    if let Some(belief) = &mut other.belief {
                        belief.is_broken |=
                            Some(number) > belief.grant.fencing && !mode.joins(&[belief.mode]);
                    }
                }
                self.hosts[host].belief =
                    Some(Belief { mode: *mode, grant, until: lasts(since), is_broken: false });
            }
            (Order::Renew(token), Ended::Renewed { since }) => {
                if let Some(belief) =
                    self.hosts[host].belief.as_mut().filter(|belief| belief.grant.token == *token)
                {
                    if belief.is_broken {
                        return Err(format!("{belief:?} was renewed"));
                    }
                    belief.until = lasts(since);
                }
            }
            (Order::Unlock, Ended::Unlocked) => {
                if let Some(belief) =
                    self.hosts[host].given_back.take().filter(|belief| belief.is_broken)
                {
                    return Err(format!("{belief:?} was lost, and its owner was not told"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The owner's command, or what renews its lease, is killed.
    fn kill(&mut self, host: usize, is_keeper: bool) {
        let host = &mut self.hosts[host];
        let killed = if is_keeper { host.keeper.take() } else { host.command.take() };
        killed.into_iter().for_each(Command::kill);
    }

    /// A host is gone, with all that it runs, and another one comes in its place.
    fn die(&mut self, host: usize) {
        self.kill(host, true);
        self.kill(host, false);
        self.hosts[host] = self.born();
    }

    /// Fails if owners rely on the lock together in modes that exclude each other.
    fn conflict(&self) -> Result<(), String> {
        let now = self.store.now();
        let believe: Vec<_> = self
            .hosts
            .iter()
            .filter_map(|host| host.belief.as_ref())
            .filter(|belief| now < belief.until)
            .collect();
        for (index, one) in believe.iter().enumerate() {
            let others: Vec<Mode> = believe
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != index)
                .map(|(_, other)| other.mode)
                .collect();
            if !one.mode.joins(&others) {
                return Err(format!("at {now}, these rely on the lock: {believe:?}"));
            }
        }
        Ok(())
    }

    /// Whether a new owner gets it when all other owners are gone, and their leases have expired.
    fn can_be_had(mut self) -> Result<(), String> {
        for host in 0..OWNERS {
            self.die(host);
        }
        self.store.lock().now += 2 * LEASE;
        // Two looks and a write are enough; more is an endless loop.
        for _ in 0..10 {
            self.step(0, Mode::EXCLUSIVE, Fate::Answered)?;
            if self.hosts[0].belief.is_some() {
                return Ok(());
            }
        }
        Err(format!("nobody gets the lock any more: {:?}", self.store.lock()))
    }
}

fn do_it(mutex: &mut Mutex<'_>, process: &Process, order: &Order, noted: &AtomicU64) -> Ended {
    match order {
        Order::Lock(mode) => {
            match mutex.acquire(process, &request(*mode), &attempts(3), &mut Silent) {
                Ok(Acquired::Granted(grant, _)) => {
                    let since = process.store.lock().made[&grant.token];
                    Ended::Locked { grant, since, was_held: false }
                }
                // Its keeper is gone, so it is renewed at once, as `lock` does.
                Ok(Acquired::AlreadyHeld(held)) => {
                    let token = held.entry.and_then(|entry| entry.token).expect("an entry of ours");
                    match mutex.renew(&token, None) {
                        Ok(grant) => Ended::Locked {
                            grant,
                            since: noted.load(Ordering::Relaxed),
                            was_held: true,
                        },
                        Err(_) => Ended::Otherwise,
                    }
                }
                Ok(Acquired::NotNeeded(_)) | Err(_) => Ended::Otherwise,
            }
        }
        Order::Renew(token) => match mutex.renew(token, None) {
            Ok(_) => Ended::Renewed { since: noted.load(Ordering::Relaxed) },
            Err(_) => Ended::Otherwise,
        },
        Order::Unlock => match mutex.release(process, ReleaseScope::OwnOrStale, Outcome::Unknown) {
            Ok(Released::Own { .. }) => Ended::Unlocked,
            Ok(_) | Err(_) => Ended::Otherwise,
        },
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Step(usize, Mode, Fate),
    Keep(usize, Fate),
    Kill(usize, bool),
    Die(usize),
    Arrive(usize),
    /// So many milliseconds pass.
    Pass(u64),
}

fn action(modes: &'static [Mode]) -> impl Strategy<Value = Action> {
    let all = (0..OWNERS, sample::select(modes), fate(), 0..8_usize, 0..LEASE * 2 / 3);
    all.prop_flat_map(|(host, mode, fate, number, time)| {
        prop_oneof![
            24 => Just(Action::Step(host, mode, fate)),
            10 => Just(Action::Keep(host, fate)),
            1 => Just(Action::Kill(host, number % 2 == 0)),
            1 => Just(Action::Die(host)),
            2 => Just(Action::Arrive(number)),
            4 => Just(Action::Pass(time)),
        ]
    })
}

/// Does it all; says what went wrong.
fn run(actions: &[Action]) -> Result<(), String> {
    let mut world = World::new();
    for action in actions {
        match *action {
            Action::Step(host, mode, fate) => world.step(host, mode, fate)?,
            Action::Keep(host, fate) => world.keep(host, fate)?,
            Action::Kill(host, is_keeper) => world.kill(host, is_keeper),
            Action::Die(host) => world.die(host),
            Action::Arrive(which) => world.store.arrive(which),
            Action::Pass(time) => world.store.lock().now += time,
        }
        world.conflict()?;
    }
    world.can_be_had()
}

fn try_all(modes: &'static [Mode]) {
    simulated::try_all((12, 25, 500), &collection::vec(action(modes), 1..150), |actions| {
        run(&actions)
    });
}

#[test]
fn at_most_one_relies_on_a_plain_lock_whatever_the_store_answers() {
    try_all(&[Mode::EXCLUSIVE]);
}

#[test]
fn those_that_rely_on_a_lock_of_several_may_hold_it_together_whatever_the_store_answers() {
    try_all(&[Mode::EXCLUSIVE, SLOTS, Mode::Shared]);
}

fn acquire(memory: &Memory, process: &Process) -> Grant {
    let mut mutex = Mutex::new(register(memory.clone()), &BLIND);
    match mutex.acquire(process, &request(Mode::EXCLUSIVE), &attempts(1), &mut Silent) {
        Ok(Acquired::Granted(grant, None)) => grant,
        other => panic!("{other:?}"),
    }
}

/// What becomes of a lock that is taken away from its holder by force, if that does `first` after
/// it was looked at.
fn force(
    first: impl FnOnce(Memory, Grant) + Send + 'static,
) -> (Result<Released, lock::Error>, Memory) {
    let world = World::new();
    let memory = Memory::shared();
    let grant = acquire(&memory, &world.process(2));
    let there = memory.clone();
    let mut first = Some(move || first(there, grant));
    let happens = Box::new(move || first.take().into_iter().for_each(|first| first()));
    let mut mutex = Mutex::new(register(Before::new(memory.clone(), happens)), &BLIND);
    (mutex.release(&world.process(9), ReleaseScope::Force, Outcome::Unknown), memory)
}

#[test]
fn a_lock_is_taken_away_also_from_a_holder_that_renews_it_meanwhile() {
    let (forced, memory) = force(|memory, grant| {
        Mutex::new(register(memory), &BLIND).renew(&grant.token, None).expect("it is held");
    });
    assert!(matches!(forced, Ok(Released::Forced(_))), "{forced:?}");
    let stored = register(memory.clone()).load().expect("memory").expect("it tells of the loss");
    assert!(
        stored
            .record
            .as_ref()
            .expect("a record")
            .entries()
            .iter()
            .all(|entry| entry.released == Some(Outcome::Lost))
    );
}

#[test]
fn a_lock_is_not_taken_away_from_a_process_that_has_come_meanwhile() {
    let (forced, memory) = force(|memory, _| {
        let world = World::new();
        let mut mutex = Mutex::new(register(memory.clone()), &BLIND);
        mutex
            .release(&world.process(2), ReleaseScope::OwnOrStale, Outcome::Unknown)
            .expect("it is held");
        acquire(&memory, &world.process(3));
    });
    assert!(matches!(forced, Err(lock::Error::NotOurs(_))), "{forced:?}");
    let stored = register(memory.clone()).load().expect("memory").expect("it is held");
    let entries = stored.record.as_ref().expect("a record").entries();
    assert!(
        entries.len() == 1
            && entries[0].owner.pid.as_raw_pid() == 3
            && entries[0].released.is_none(),
        "{entries:?}"
    );
}

/// An entry of this process, with what has become of it.
fn entry(process: &Process, released: Option<Outcome>) -> Entry {
    let lease = Some(Lease {
        duration: Duration::from_secs(600),
        expires: Some(since_boot() + 600_000),
        renewals: 0,
    });
    Entry { lease, released, ..process.entry().expect("an entry") }
}

fn entries(memory: &Memory) -> Vec<Entry> {
    let stored = register(memory.clone()).load().expect("memory");
    stored.and_then(|stored| Some(stored.record.as_ref()?.entries().to_vec())).unwrap_or_default()
}

#[test]
fn the_word_of_a_loss_takes_no_other_word_with_it() {
    let world = World::new();
    let memory = Memory::shared();
    let lost = entry(&world.process(2), Some(Outcome::Lost));
    let others = [
        entry(&world.process(3), Some(Outcome::Lost)),
        entry(&world.process(4), Some(Outcome::Succeeded)),
    ];
    let all = [&[lost], others.as_slice()].concat();
    assert_eq!(
        register(memory.clone())
            .put(None, Some(&Record::of(all).expect("a record")))
            .expect("memory"),
        Write::Done
    );
    let mut mutex = Mutex::new(register(memory.clone()), &BLIND);
    let mut lock =
        || mutex.acquire(&world.process(2), &request(Mode::EXCLUSIVE), &attempts(1), &mut Silent);
    assert!(matches!(lock(), Err(lock::Error::Lost(Lost::TakenOver, _))));
    let tokens =
        |entries: &[Entry]| entries.iter().map(|entry| entry.token.clone()).collect::<HashSet<_>>();
    assert_eq!(tokens(&entries(&memory)), tokens(&others));
    assert!(matches!(lock(), Ok(Acquired::Granted(_, None))));
}

#[test]
fn one_of_several_holders_that_takes_the_lock_away_from_all_has_lost_nothing_itself() {
    let world = World::new();
    let memory = Memory::shared();
    for pid in [2, 3] {
        let mut mutex = Mutex::new(register(memory.clone()), &BLIND);
        let acquired =
            mutex.acquire(&world.process(pid), &request(SLOTS), &attempts(1), &mut Silent);
        assert!(matches!(acquired, Ok(Acquired::Granted(_, None))), "{acquired:?}");
    }
    let mut mutex = Mutex::new(register(memory.clone()), &BLIND);
    let forced = mutex.release(&world.process(2), ReleaseScope::Force, Outcome::Unknown);
    assert!(matches!(&forced, Ok(Released::Forced(taken)) if taken.len() == 2), "{forced:?}");
    let left = entries(&memory);
    assert!(
        left.len() == 1
            && left[0].owner.pid.as_raw_pid() == 3
            && left[0].released == Some(Outcome::Lost),
        "{left:?}"
    );
}

#[test]
fn what_was_released_and_is_held_for_a_time_yet_is_not_lost() {
    let world = World::new();
    let memory = Memory::shared();
    let mut mutex = Mutex::new(register(memory), &BLIND);
    let request = Request { at_least: Some(Duration::from_secs(600)), ..request(Mode::EXCLUSIVE) };
    let acquired = mutex.acquire(&world.process(2), &request, &attempts(1), &mut Silent);
    let Ok(Acquired::Granted(grant, None)) = acquired else { panic!("{acquired:?}") };
    let released = mutex.release(&world.process(2), ReleaseScope::OwnOrStale, Outcome::Unknown);
    assert!(matches!(released, Ok(Released::Own { stays: Some(_), .. })), "{released:?}");
    let renewed = mutex.renew(&grant.token, None);
    assert!(matches!(renewed, Err(lock::Error::Lost(Lost::Gone, _))), "{renewed:?}");
}

#[test]
fn a_lease_counts_from_before_it_was_asked_for() {
    let asked = Arc::new(AtomicU64::new(0));
    let happens = {
        let asked = asked.clone();
        Box::new(move || {
            let now = since_boot();
            asked.store(now, Ordering::Relaxed);
            // Until the clock that leases are counted by has moved.
            while since_boot() < now + 2 {
                std::hint::spin_loop();
            }
        })
    };
    let mut mutex = Mutex::new(register(Before::new(Memory::shared(), happens)), &BLIND);
    let process = World::new().process(2);
    let acquired = mutex.acquire(&process, &request(Mode::EXCLUSIVE), &attempts(1), &mut Silent);
    let Ok(Acquired::Granted(grant, None)) = acquired else { panic!("{acquired:?}") };
    assert!(grant.leased_at <= asked.load(Ordering::Relaxed));
    let renewed = mutex.renew(&grant.token, None).expect("it is held");
    assert!(
        grant.leased_at < renewed.leased_at && renewed.leased_at <= asked.load(Ordering::Relaxed)
    );
}

/// Takes its time for each report, as a question to a store does, and is told of no other.
struct Reports<'a> {
    due: Instant,
    made: u32,
    ends: &'a dyn Fn(),
}

impl Observer for Reports<'_> {
    fn waiting(
        &mut self,
        _holders: &[Holding],
        _attempt: u32,
        _place: &mut dyn FnMut() -> Option<usize>,
    ) {
        assert!(Instant::now() >= self.due, "a poll before report {}", self.made);
        self.due = Instant::now() + Duration::from_millis(40);
        self.made += 1;
        std::thread::sleep(Duration::from_millis(20));
        if self.made == 3 {
            (self.ends)();
        }
    }

    fn interval(&self) -> Duration {
        self.due.saturating_duration_since(Instant::now())
    }
}

#[test]
fn a_waiter_polls_once_for_each_report_however_long_that_takes() {
    let world = World::new();
    let memory = Memory::shared();
    acquire(&memory, &world.process(2));
    let waiter = world.process(3);
    let waiting = Waiting { sleep: Duration::from_secs(3600), ..Waiting::default() };
    let mut reports = Reports { due: Instant::now(), made: 0, ends: &|| waiter.store.die(3) };
    let mut mutex = Mutex::new(register(memory), &BLIND);
    let waited = mutex.acquire(&waiter, &request(Mode::EXCLUSIVE), &waiting, &mut reports);
    assert!(matches!(waited, Err(lock::Error::Absent)), "{waited:?}");
}
