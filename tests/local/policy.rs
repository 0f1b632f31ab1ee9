//! The lock's policy on a register in memory: whatever the order in which several processes take
//! their steps, crash and die, the modes of the live owners that believe they hold the lock are
//! compatible, and the lock can always be acquired again.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::num::NonZeroU32;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex as StdMutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use proptest::prelude::{Just, ProptestConfig, Strategy, prop_oneof, proptest};
use proptest::{collection, prop_assert};
use serializer::lock::register::Register;
use serializer::lock::staleness::{Held, Holding, LivenessCheck, Stale, Verdict};
use serializer::lock::waiting::{Observer, Waiting};
use serializer::lock::{Mutex, ReleaseScope, Released, Request, Requester, Stored};
use serializer::record::mode::Mode;
use serializer::record::owner::Owner;
use serializer::record::{Entry, Outcome, Record};
use serializer::store::seam::{Key, Kind, Next, Page, Queue, State, Store, Write};
use serializer::store::{Cause, Failure};
use serializer::sys::identity::{HostIdentity, ProcessIdentity};
use serializer::sys::process::{Absence, parse_pid};

use crate::support::memory::Memory;
use crate::support::rounds;

const OWNERS: usize = 4;

/// In which an owner may ask for the lock.
const MODES: [Mode; 4] = [Mode::EXCLUSIVE, slots(2), slots(3), Mode::Shared];

const fn slots(number: u32) -> Mode {
    Mode::Slots(NonZeroU32::new(number).expect("a number of slots"))
}

fn in_mode(mode: Mode) -> Request {
    Request { mode, ..Request::default() }
}

fn one_attempt() -> Waiting {
    Waiting {
        max_attempts: NonZeroU32::new(1),
        sleep: Duration::ZERO,
        timeout: None,
        warn_after: None,
    }
}

/// The PIDs of the owners that live. A PID is never used again.
type Alive = Arc<StdMutex<HashSet<i32>>>;

/// An owner, as its commands see it.
#[derive(Clone)]
struct Process {
    pid: i32,
    alive: Alive,
    tokens: Arc<AtomicU32>,
}

impl Requester for Process {
    fn entry(&self) -> std::io::Result<Entry> {
        let owner = Owner {
            pid: parse_pid(&self.pid.to_string()).expect("a pid"),
            uid: None,
            place: HostIdentity::default(),
            instance: ProcessIdentity::default(),
        };
        let token = Some(self.tokens.fetch_add(1, Ordering::Relaxed).to_string());
        Ok(Entry { token, ..Entry::new(owner, None, None)? })
    }

    fn owns(&self, _stored: &Stored, entry: &Entry) -> bool {
        entry.owner.pid.as_raw_pid() == self.pid
    }

    fn is_alive(&self) -> bool {
        self.alive.lock().expect("no panic").contains(&self.pid)
    }
}

struct ByPid(Alive);

impl LivenessCheck for ByPid {
    fn judge(&self, _stored: &Stored, entry: &Entry) -> Verdict {
        if self.0.lock().expect("no panic").contains(&entry.owner.pid.as_raw_pid()) {
            Verdict::Held(Held::Alive(None))
        } else {
            Verdict::Stale(Stale::Absent(Absence::Gone))
        }
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
        Duration::ZERO
    }
}

/// A store: each of its operations waits until the scheduler lets it happen, or tells that the
/// process has crashed.
struct Gated {
    store: Memory,
    here: Sender<Event>,
    go: Receiver<()>,
}

enum Event {
    AtAnOperation,
    Ended(bool),
}

impl Gated {
    fn pass(&self) -> Result<(), Failure> {
        let crashed = || Failure {
            cause: Cause::Contended,
            ..Failure::permanent("a crashed process does nothing more")
        };
        self.here.send(Event::AtAnOperation).map_err(|_| crashed())?;
        self.go.recv().map_err(|_| crashed())
    }
}

impl Store for Gated {
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        self.pass()?;
        self.store.get(key)
    }

    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        self.pass()?;
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

    fn counts(&self) -> bool {
        self.store.counts()
    }

    fn queue(&mut self, _key: &Key) -> Option<&mut dyn Queue> {
        Some(self)
    }
}

impl Queue for Gated {
    fn wait(
        &mut self,
        _beside: bool,
        _limit: Duration,
        _fds: &[BorrowedFd<'_>],
    ) -> Result<(), Failure> {
        self.pass()
    }
}

fn register(store: impl Store + 'static) -> Register {
    Register::new(Box::new(store), Key::lock(OsStr::new("lock")), "memory".to_owned())
}

/// A `lock` or `unlock` that is under way.
struct Command {
    /// Of a `lock`.
    mode: Option<Mode>,
    pid: i32,
    go: Sender<()>,
    events: Receiver<Event>,
    thread: JoinHandle<()>,
}

/// A machine with some owners, each of which runs one command after another.
struct Machine {
    store: Memory,
    alive: Alive,
    tokens: Arc<AtomicU32>,
    next_pid: i32,
    owners: Vec<i32>,
    commands: Vec<Option<Command>>,
    /// The owners that believe they hold the lock, with their modes.
    believe: HashMap<i32, Mode>,
}

impl Machine {
    fn new() -> Self {
        let mut machine = Self {
            store: Memory::default(),
            alive: Alive::default(),
            tokens: Arc::default(),
            // Not this process's own PID: stale locks are removed in its name.
            next_pid: 100_000_000,
            owners: Vec::new(),
            commands: Vec::new(),
            believe: HashMap::new(),
        };
        for _ in 0..OWNERS {
            let pid = machine.born();
            machine.owners.push(pid);
            machine.commands.push(None);
        }
        machine
    }

    fn born(&mut self) -> i32 {
        let pid = self.next_pid;
        self.next_pid += 1;
        self.alive.lock().expect("no panic").insert(pid);
        pid
    }

    /// The owner's command does one operation. An owner without a command starts the next one; a
    /// `lock` is in `mode`.
    fn step(&mut self, owner: usize, mode: Mode) {
        let command = self.commands[owner].take().unwrap_or_else(|| self.start(owner, mode));
        command.go.send(()).expect("it waits");
        match command.events.recv().expect("it goes on") {
            Event::AtAnOperation => self.commands[owner] = Some(command),
            Event::Ended(done) => {
                command.thread.join().expect("no panic");
                // The answer of a lock counts for an owner that is there to hear it.
                if let Some(mode) = command.mode
                    && done
                    && self.owners[owner] == command.pid
                {
                    self.believe.insert(command.pid, mode);
                }
            }
        }
    }

    fn start(&mut self, owner: usize, mode: Mode) -> Command {
        let pid = self.owners[owner];
        // A process that unlocks relies on the lock no longer.
        let mode = self.believe.remove(&pid).is_none().then_some(mode);
        let (here, events) = channel();
        let (go, permits) = channel();
        let process = Process { pid, alive: self.alive.clone(), tokens: self.tokens.clone() };
        let (store, alive) = (self.store.clone(), self.alive.clone());
        let thread = thread::spawn(move || {
            let judge = ByPid(alive);
            let ended = here.clone();
            let mut mutex = Mutex::new(register(Gated { store, here, go: permits }), &judge);
            let done = match mode {
                Some(mode) => {
                    mutex.acquire(&process, &in_mode(mode), &one_attempt(), &mut Silent).is_ok()
                }
                None => mutex.release(&process, ReleaseScope::OwnOrStale, Outcome::Unknown).is_ok(),
            };
            // A crashed process does not listen.
            let _ = ended.send(Event::Ended(done));
        });
        assert!(matches!(events.recv(), Ok(Event::AtAnOperation)), "every command looks first");
        Command { mode, pid, go, events, thread }
    }

    /// The owner's command is killed where it is.
    fn crash(&mut self, owner: usize) {
        if let Some(Command { go, events, thread, .. }) = self.commands[owner].take() {
            drop((go, events));
            thread.join().expect("no panic");
        }
    }

    /// The owner is killed; its command goes on as an orphan, and another owner comes in its place.
    fn die(&mut self, owner: usize) {
        let pid = self.owners[owner];
        self.alive.lock().expect("no panic").remove(&pid);
        self.believe.remove(&pid);
        self.owners[owner] = self.born();
    }

    /// Owners that believe they hold the lock together, in modes that exclude each other.
    fn conflict(&self) -> Option<String> {
        let may_be_there = |(pid, mode): (&i32, &Mode)| {
            let others: Vec<Mode> = self
                .believe
                .iter()
                .filter(|(other, _)| *other != pid)
                .map(|(_, mode)| *mode)
                .collect();
            mode.joins(&others)
        };
        (!self.believe.iter().all(may_be_there))
            .then(|| format!("{:?} all believe that they hold the lock", self.believe))
    }

    /// An owner that believes it holds the lock without an entry in the record. (A running command
    /// does not know yet.)
    fn loss(&self) -> Option<String> {
        let stored = register(self.store.clone()).load().expect("a register in memory can be read");
        let record = stored.as_ref().and_then(|stored| stored.record.as_ref());
        let entries = record.map(Record::entries).unwrap_or_default();
        let is_written = |pid: i32| entries.iter().any(|entry| entry.owner.pid.as_raw_pid() == pid);
        self.believe
            .keys()
            .find(|pid| !is_written(**pid))
            .map(|pid| format!("{pid} has lost the lock: {entries:?}"))
    }

    /// Lets everything end; then a new owner asks for the lock.
    fn can_be_had(mut self) -> bool {
        for owner in 0..OWNERS {
            // A command of one attempt does a bounded number of operations.
            for _ in 0..1000 {
                if self.commands[owner].is_none() {
                    break;
                }
                self.step(owner, Mode::EXCLUSIVE);
            }
            self.die(owner);
        }
        let judge = ByPid(self.alive.clone());
        let process =
            Process { pid: self.owners[0], alive: self.alive.clone(), tokens: self.tokens.clone() };
        let mut mutex = Mutex::new(register(self.store.clone()), &judge);
        mutex.acquire(&process, &in_mode(Mode::EXCLUSIVE), &one_attempt(), &mut Silent).is_ok()
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Step(usize, Mode),
    Crash(usize),
    Die(usize),
}

fn action() -> impl Strategy<Value = Action> {
    (0..OWNERS, proptest::sample::select(MODES.to_vec())).prop_flat_map(|(owner, mode)| {
        prop_oneof![12 => Just(Action::Step(owner, mode)), 1 => Just(Action::Crash(owner)), 2 => Just(Action::Die(owner))]
    })
}

/// Runs the actions; says what went wrong.
fn run(actions: &[Action]) -> Result<(), String> {
    let mut machine = Machine::new();
    for action in actions {
        match *action {
            Action::Step(owner, mode) => machine.step(owner, mode),
            Action::Crash(owner) => machine.crash(owner),
            Action::Die(owner) => machine.die(owner),
        }
        machine.conflict().or_else(|| machine.loss()).map_or(Ok(()), Err)?;
    }
    if machine.can_be_had() { Ok(()) } else { Err("nobody can get the lock any more".to_owned()) }
}

/// So many, times `SERIALIZER_TEST_FACTOR`. What was broken on purpose was found within 36.
fn cases(usual: usize) -> u32 {
    u32::try_from(rounds(usual)).expect("a small number")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(400), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn live_owners_that_believe_that_they_hold_the_lock_may_hold_it_together(actions in collection::vec(action(), 1..120)) {
        let answer = run(&actions);
        prop_assert!(answer.is_ok(), "{:?}", answer);
    }
}

/// Exclusive locks only, the most common use.
#[derive(Clone, Copy, Debug)]
struct Plain(Action);

fn plain() -> impl Strategy<Value = Plain> {
    action().prop_map(|action| match action {
        Action::Step(owner, _) => Plain(Action::Step(owner, Mode::EXCLUSIVE)),
        other => Plain(other),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(200), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn at_most_one_live_owner_believes_that_it_holds_a_plain_mutex(actions in collection::vec(plain(), 1..80)) {
        let answer = run(&actions.iter().map(|Plain(action)| *action).collect::<Vec<_>>());
        prop_assert!(answer.is_ok(), "{:?}", answer);
    }
}

#[test]
fn no_holder_of_a_full_record_is_lost_when_one_releases() {
    const MOST: usize = serializer::record::MAX_BYTES;
    let alive = Alive::default();
    let tokens = Arc::<AtomicU32>::default();
    let entry = |pid: i32| {
        alive.lock().expect("no panic").insert(pid);
        let process = Process { pid, alive: alive.clone(), tokens: tokens.clone() };
        Entry { mode: Mode::Shared, ..process.entry().expect("an entry") }
    };
    // What is noted of the first one when it releases makes its entry longer.
    let mut entries = vec![Entry { until: Some(u64::MAX), ..entry(1) }];
    let length = |entries: &[Entry]| {
        Record::of(entries.to_vec()).map_or(usize::MAX, |record| record.to_text().len())
    };
    while length(&entries) < MOST - 200 {
        entries.push(entry(entries.len() as i32 + 1));
    }
    // Fields are cut, so that it takes some to fill what is left.
    let count = entries.len();
    for entry in &mut entries[count - 4..] {
        entry.command = Some("x".to_owned());
    }
    for number in 0..MOST - length(&entries) {
        entries[count - 4 + number % 4].command.get_or_insert_default().push('x');
    }
    assert_eq!(length(&entries), MOST);
    let store = Memory::default();
    assert_eq!(
        register(store.clone())
            .put(None, Some(&Record::of(entries.clone()).expect("a record")))
            .expect("memory"),
        Write::Done
    );
    let judge = ByPid(alive.clone());
    let process = Process { pid: 1, alive: alive.clone(), tokens: tokens.clone() };
    let released = Mutex::new(register(store.clone()), &judge).release(
        &process,
        ReleaseScope::OwnOrStale,
        Outcome::Unknown,
    );
    assert!(matches!(released, Ok(Released::Own { .. })), "{released:?}");
    let stored = register(store).load().expect("memory").expect("the others hold it");
    assert_eq!(stored.record.as_ref().expect("a record").entries(), &entries[1..]);
}
