//! The mutex's policy on a register in memory: whatever the order in which several processes take their steps, crash and die,
//! at most one live owner believes that it holds the lock, and it can always be had again.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex as StdMutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use proptest::prelude::{Just, ProptestConfig, Strategy, prop_oneof, proptest};
use proptest::{collection, prop_assert};
use serializer::backend::memory::Memory;
use serializer::backend::{self, Backend, Stored, Write};
use serializer::claimant::Claimant;
use serializer::mode::Mode;
use serializer::mutex::{Mutex, Request, Whose};
use serializer::owner::{Instance, Owner, Place};
use serializer::record::{Entry, Outcome, Record, parse_pid};
use serializer::verdict::{Held, Holding, Judge, Stale, Verdict};
use serializer::waiting::{Observer, Waiting};

const OWNERS: usize = 3;

const EXCLUSIVE: Request = Request { mode: Mode::EXCLUSIVE, at_least: None, skip_if_done: false };

/// The PIDs of the owners that live. A PID is never used again.
type Alive = Arc<StdMutex<HashSet<i32>>>;

/// An owner, as its commands see it.
#[derive(Clone)]
struct Process {
    pid: i32,
    alive: Alive,
    tokens: Arc<AtomicU32>,
}

impl Claimant for Process {
    fn entry(&self) -> std::io::Result<Entry> {
        let owner = Owner {
            pid: parse_pid(&self.pid.to_string()).expect("a pid"),
            uid: None,
            place: Place::default(),
            instance: Instance::default(),
        };
        let token = Some(self.tokens.fetch_add(1, Ordering::Relaxed).to_string());
        Ok(Entry { token, ..Entry::new(owner, None, None)? })
    }

    fn transient_entry(&self) -> std::io::Result<Entry> {
        self.entry()
    }

    fn owns(&self, _record: &Record, entry: &Entry, _written: Option<SystemTime>) -> bool {
        entry.owner.pid.as_raw_pid() == self.pid
    }

    fn is_present(&self) -> bool {
        self.alive.lock().expect("no panic").contains(&self.pid)
    }

    fn absence_fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

struct ByPid(Alive);

impl Judge for ByPid {
    fn judge(&self, _record: &Record, entry: &Entry, _written: Option<SystemTime>) -> Verdict {
        if self.0.lock().expect("no panic").contains(&entry.owner.pid.as_raw_pid()) {
            Verdict::Held(Held::Alive(None))
        } else {
            Verdict::Stale(Stale::Gone)
        }
    }
}

struct Silent;

impl Observer for Silent {
    fn waiting(&mut self, _holders: &[Holding], _attempt: u32) {}

    fn interval(&self) -> Duration {
        Duration::ZERO
    }
}

/// A register whose every operation waits until the scheduler lets it happen, or tells that the process has crashed.
struct Gated {
    register: Memory,
    here: Sender<Event>,
    go: Receiver<()>,
}

enum Event {
    AtAnOperation,
    Ended(bool),
}

impl Gated {
    fn pass(&self) -> Result<(), backend::Error> {
        let crashed = || backend::Error::Contended { path: "a crashed process does nothing more".to_owned() };
        self.here.send(Event::AtAnOperation).map_err(|_| crashed())?;
        self.go.recv().map_err(|_| crashed())
    }
}

impl Backend for Gated {
    fn location(&self) -> String {
        self.register.location()
    }

    fn load(&mut self) -> Result<Option<Stored>, backend::Error> {
        self.pass()?;
        self.register.load()
    }

    fn create(&mut self, record: &Record) -> Result<Write, backend::Error> {
        self.pass()?;
        self.register.create(record)
    }

    fn replace(&mut self, seen: &Stored, record: &Record) -> Result<Write, backend::Error> {
        self.pass()?;
        self.register.replace(seen, record)
    }

    fn delete(&mut self, seen: &Stored) -> Result<Write, backend::Error> {
        self.pass()?;
        self.register.delete(seen)
    }

    fn wait(&mut self, _limit: Duration, _fds: &[BorrowedFd<'_>]) -> Result<(), backend::Error> {
        self.pass()
    }
}

/// A `lock` or `unlock` that is under way.
struct Command {
    is_lock: bool,
    pid: i32,
    go: Sender<()>,
    events: Receiver<Event>,
    thread: JoinHandle<()>,
}

/// A machine with some owners, each of which runs one command after another.
struct Machine {
    register: Memory,
    alive: Alive,
    tokens: Arc<AtomicU32>,
    next_pid: i32,
    owners: Vec<i32>,
    commands: Vec<Option<Command>>,
    believe: HashSet<i32>,
}

impl Machine {
    fn new() -> Self {
        let mut machine = Self {
            register: Memory::default(),
            alive: Alive::default(),
            tokens: Arc::default(),
            next_pid: 1,
            owners: Vec::new(),
            commands: Vec::new(),
            believe: HashSet::new(),
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

    /// The owner's command does one operation; if it runs none, it starts the one whose turn it is.
    fn step(&mut self, owner: usize) {
        let command = self.commands[owner].take().unwrap_or_else(|| self.start(owner));
        command.go.send(()).expect("it waits");
        match command.events.recv().expect("it goes on") {
            Event::AtAnOperation => self.commands[owner] = Some(command),
            Event::Ended(done) => {
                command.thread.join().expect("no panic");
                // The answer of a lock counts for an owner that is there to hear it.
                if done && command.is_lock && self.owners[owner] == command.pid {
                    self.believe.insert(command.pid);
                }
            }
        }
    }

    fn start(&mut self, owner: usize) -> Command {
        let pid = self.owners[owner];
        // Whoever unlocks relies on the lock no longer.
        let is_lock = !self.believe.remove(&pid);
        let (here, events) = channel();
        let (go, permits) = channel();
        let process = Process { pid, alive: self.alive.clone(), tokens: self.tokens.clone() };
        let (register, alive) = (self.register.clone(), self.alive.clone());
        let thread = thread::spawn(move || {
            let judge = ByPid(alive);
            let ended = here.clone();
            let mut mutex = Mutex::new(Box::new(Gated { register, here, go: permits }), &judge);
            let done = if is_lock {
                let waiting = Waiting { max_attempts: NonZeroU32::new(1), sleep: Duration::ZERO, timeout: None };
                mutex.acquire(&process, &EXCLUSIVE, &waiting, &mut Silent).is_ok()
            } else {
                mutex.release(&process, Whose::Own, Outcome::Unknown).is_ok()
            };
            // Nobody listens to a process that has crashed.
            let _ = ended.send(Event::Ended(done));
        });
        assert!(matches!(events.recv(), Ok(Event::AtAnOperation)), "every command looks first");
        Command { is_lock, pid, go, events, thread }
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

    /// Lets everything end, and then somebody new ask for the lock.
    fn can_be_had(mut self) -> bool {
        for owner in 0..OWNERS {
            // A command of one attempt does a bounded number of operations.
            for _ in 0..1000 {
                if self.commands[owner].is_none() {
                    break;
                }
                self.step(owner);
            }
            self.die(owner);
        }
        let judge = ByPid(self.alive.clone());
        let process = Process { pid: self.owners[0], alive: self.alive.clone(), tokens: self.tokens.clone() };
        let waiting = Waiting { max_attempts: NonZeroU32::new(1), sleep: Duration::ZERO, timeout: None };
        Mutex::new(Box::new(self.register.clone()), &judge).acquire(&process, &EXCLUSIVE, &waiting, &mut Silent).is_ok()
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Step(usize),
    Crash(usize),
    Die(usize),
}

fn action() -> impl Strategy<Value = Action> {
    (0..OWNERS).prop_flat_map(
        |owner| prop_oneof![12 => Just(Action::Step(owner)), 1 => Just(Action::Crash(owner)), 2 => Just(Action::Die(owner))],
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn at_most_one_live_owner_believes_that_it_holds_the_lock(actions in collection::vec(action(), 1..80)) {
        let mut machine = Machine::new();
        for action in actions {
            match action {
                Action::Step(owner) => machine.step(owner),
                Action::Crash(owner) => machine.crash(owner),
                Action::Die(owner) => machine.die(owner),
            }
            prop_assert!(machine.believe.len() <= 1, "{:?} all believe that they hold the lock", machine.believe);
        }
        prop_assert!(machine.can_be_had(), "nobody can get the lock any more");
    }
}
