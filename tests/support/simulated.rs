//! A simulated store: one register, with a time that the test sets. Commands run in threads of
//! their own, and each of their questions waits for the test to decide its fate. The test can stop,
//! freeze or kill a command at each question, and lose, delay or repeat each write.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use proptest::prelude::{Just, ProptestConfig, Strategy, prop_oneof};
use proptest::test_runner::{TestCaseError, TestRunner};
use serializer::lock::register::Register;
use serializer::lock::staleness::{Held, Holding, LivenessCheck, Stale, Verdict};
use serializer::lock::waiting::Observer;
use serializer::lock::{Requester, Stored};
use serializer::record::owner::Owner;
use serializer::record::{Entry, Record};
use serializer::store::seam::{Key, Kind, Next, Page, State, Store, Write};
use serializer::store::{Cause, Failure};
use serializer::sys::identity::{HostIdentity, ProcessIdentity};
use serializer::sys::process::{Absence, parse_pid};

/// The fate of a question and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Answered,
    /// The question does not arrive.
    QuestionLost,
    /// The write is done, and its answer does not arrive.
    AnswerLost,
    /// The write is on its way until the test lets it arrive.
    Late,
    /// Something on the way asks twice, and hands on the second answer.
    Twice,
}

pub fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        24 => Just(Fate::Answered),
        1 => Just(Fate::QuestionLost),
        2 => Just(Fate::AnswerLost),
        1 => Just(Fate::Late),
        1 => Just(Fate::Twice),
    ]
}

/// A conditional write: the expected number, the new number, and the text.
type Change = (u64, u64, Option<String>);

/// The register, the store's clock, the writes on their way, and the processes of the world.
#[derive(Debug, Default)]
pub struct Row {
    number: u64,
    text: Option<String>,
    pub now: u64,
    late: Vec<Change>,
    /// The entry of the last run after each write, if there was one.
    pub history: Vec<Option<Entry>>,
    /// PIDs are never used again.
    dead: HashSet<i32>,
    /// When each entry was made, by its token.
    pub made: HashMap<String, u64>,
}

impl Row {
    fn change(&mut self, (expected, next, text): Change) -> Write {
        if expected != self.number {
            return Write::Conflict;
        }
        (self.number, self.text) = (next, text);
        self.history.push(self.last_run());
        Write::Done
    }

    pub fn last_run(&self) -> Option<Entry> {
        let record = Record::parse(self.text.as_ref()?.as_bytes()).expect("a record");
        record.last_run().map(|(entry, _)| entry.clone())
    }

    pub fn has_late(&self) -> bool {
        !self.late.is_empty()
    }
}

/// A shared row.
#[derive(Clone)]
pub struct Simulated(Arc<Mutex<Row>>);

impl Simulated {
    pub fn new() -> Self {
        // As a clock is.
        Self(Arc::new(Mutex::new(Row { now: 1_800_000_000_000, ..Row::default() })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Row> {
        self.0.lock().expect("no panic")
    }

    pub fn now(&self) -> u64 {
        self.lock().now
    }

    /// A late write arrives.
    pub fn arrive(&self, which: usize) {
        let mut row = self.lock();
        if row.has_late() {
            let which = which % row.late.len();
            let change = row.late.remove(which);
            row.change(change);
        }
    }

    pub fn die(&self, pid: i32) {
        self.lock().dead.insert(pid);
    }

    pub fn is_alive(&self, pid: i32) -> bool {
        !self.lock().dead.contains(&pid)
    }
}

/// How a world uses its store.
#[derive(Clone, Debug)]
pub struct Access {
    pub key: Key,
    /// As a file of one machine: it has no clock and no numbers, and loses nothing.
    pub is_file: bool,
    /// The difference to the clock of the store, in milliseconds: for a store that has only the
    /// hosts' clocks.
    pub ahead: i64,
    /// The cause of a failure without an answer. [`Cause::Transient`] is tried again after a pause.
    pub no_answer: Cause,
}

impl Access {
    pub fn shared(key: Key) -> Self {
        Self { key, is_file: false, ahead: 0, no_answer: Cause::Transient }
    }
}

enum Event<E> {
    /// The command has a question for the store.
    Asks,
    Ended(E),
}

/// One connection to the store; its questions wait for their fates.
pub struct Gated<E> {
    store: Simulated,
    access: Access,
    here: Sender<Event<E>>,
    fates: Receiver<Fate>,
}

impl<E> Gated<E> {
    /// Fails where the process that asks was killed.
    fn fate(&self) -> Result<Fate, Failure> {
        let killed = || Failure {
            cause: Cause::Contended,
            ..Failure::permanent("a killed process asks nothing more")
        };
        self.here.send(Event::Asks).map_err(|_| killed())?;
        let fate = self.fates.recv().map_err(|_| killed())?;
        Ok(if self.access.is_file { Fate::Answered } else { fate })
    }

    fn no_answer(&self) -> Failure {
        Failure { cause: self.access.no_answer, ..Failure::transient("no answer") }
    }
}

impl<E: Send> Store for Gated<E> {
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        // Notices for owners of broken locks.
        if *key != self.access.key {
            return Ok(State::default());
        }
        if self.fate()? != Fate::Answered {
            return Err(self.no_answer());
        }
        let (row, is_file) = (self.store.lock(), self.access.is_file);
        let exists = row.number > 0 && !(is_file && row.text.is_none());
        let version = exists.then(|| row.number.to_string().into_bytes());
        let now = (!is_file).then(|| row.now.saturating_add_signed(self.access.ahead));
        Ok(State {
            version,
            number: row.number,
            value: row.text.clone(),
            now,
            is_local: is_file,
            ..State::default()
        })
    }

    fn put(&mut self, _key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        let fate = self.fate()?;
        let change =
            (expected.number, next.number.max(expected.number + 1), next.value.map(str::to_owned));
        let mut row = self.store.lock();
        match fate {
            Fate::Answered => return Ok(row.change(change)),
            Fate::Twice => {
                row.change(change.clone());
                return Ok(row.change(change));
            }
            Fate::QuestionLost => {}
            Fate::AnswerLost => drop(row.change(change)),
            Fate::Late => row.late.push(change),
        }
        Err(self.no_answer().indefinite())
    }

    fn list(&mut self, _kind: Kind, _after: Option<&OsStr>) -> Result<Page, Failure> {
        Ok(Page::default())
    }

    fn purge(&mut self, _key: &Key, _expected: &State) -> Result<Write, Failure> {
        Ok(Write::Conflict)
    }

    fn create_schema(&mut self, _key: &Key) -> Result<(), Failure> {
        Ok(())
    }

    fn repair(&self) -> &'static str {
        "nothing"
    }

    fn counts(&self) -> bool {
        !self.access.is_file
    }

    fn poll_interval(&self) -> (Duration, Duration) {
        (Duration::ZERO, Duration::ZERO)
    }
}

pub fn register(store: impl Store + 'static, key: Key) -> Register {
    Register::new(Box::new(store), key, "simulated".to_owned())
}

/// A command that is under way.
pub struct Command<O, E> {
    pub order: O,
    /// What the test notes when it begins.
    pub noted: u64,
    fates: Sender<Fate>,
    events: Receiver<Event<E>>,
    thread: JoinHandle<()>,
}

impl<O: Clone + Send + 'static, E: Send + 'static> Command<O, E> {
    /// Starts a command, up to its first question.
    pub fn start(
        (store, access): (&Simulated, Access),
        (order, noted): (O, u64),
        work: impl FnOnce(Gated<E>, O) -> E + Send + 'static,
    ) -> Self {
        let (here, events) = channel();
        let (fates, permits) = channel();
        let (store, asked) = (store.clone(), order.clone());
        let thread = thread::spawn(move || {
            let ended = here.clone();
            // After a kill, the test does not listen.
            let _ = ended
                .send(Event::Ended(work(Gated { store, access, here, fates: permits }, asked)));
        });
        assert!(matches!(events.recv(), Ok(Event::Asks)), "every command looks first");
        Self { order, noted, fates, events, thread }
    }

    /// Decides the fate of one question: the command goes on until its next one, or has ended so.
    pub fn advance(self, fate: Fate) -> Result<Self, (O, E, u64)> {
        self.fates.send(fate).expect("it waits");
        match self.events.recv().expect("it goes on") {
            Event::Asks => Ok(self),
            Event::Ended(ended) => {
                self.thread.join().expect("no panic");
                Err((self.order, ended, self.noted))
            }
        }
    }

    pub fn kill(self) {
        drop((self.fates, self.events));
        self.thread.join().expect("no panic");
    }
}

/// Advances the command in `place` by one question; returns how it has ended.
pub fn advance<O, E>(
    place: &mut Option<Command<O, E>>,
    command: Command<O, E>,
    fate: Fate,
) -> Option<(O, E, u64)>
where
    O: Clone + Send + 'static,
    E: Send + 'static,
{
    match command.advance(fate) {
        Ok(command) => {
            *place = Some(command);
            None
        }
        Err(ended) => Some(ended),
    }
}

/// A process of the world.
#[derive(Clone)]
pub struct Process {
    pub pid: i32,
    pub store: Simulated,
}

impl Requester for Process {
    fn entry(&self) -> std::io::Result<Entry> {
        let pid = parse_pid(&self.pid.to_string()).expect("a pid");
        let owner = Owner {
            pid,
            uid: None,
            place: HostIdentity::default(),
            instance: ProcessIdentity::default(),
        };
        let mut row = self.store.lock();
        let (token, now) = (row.made.len().to_string(), row.now);
        row.made.insert(token.clone(), now);
        Ok(Entry { token: Some(token), ..Entry::new(owner, None, None)? })
    }

    fn owns(&self, _stored: &Stored, entry: &Entry) -> bool {
        entry.owner.pid.as_raw_pid() == self.pid
    }

    fn is_alive(&self) -> bool {
        self.store.is_alive(self.pid)
    }
}

/// Sees all processes of its store, as on one machine; or with `None` none, so that leases count.
pub struct ByPid(pub Option<Simulated>);

impl LivenessCheck for ByPid {
    fn judge(&self, _stored: &Stored, entry: &Entry) -> Verdict {
        let is_gone = |store: &Simulated| !store.is_alive(entry.owner.pid.as_raw_pid());
        match entry.released {
            Some(_) => Verdict::Stale(Stale::Released),
            None if self.0.as_ref().is_some_and(is_gone) => {
                Verdict::Stale(Stale::Absent(Absence::Gone))
            }
            None => Verdict::Held(Held::Alive(None)),
        }
    }
}

pub struct Silent;

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

/// Tries many worlds in several threads: after a lost answer, a command pauses before it asks
/// again. Each thread tries `cases` of them, times `SERIALIZER_TEST_FACTOR`.
pub fn try_all<S: Strategy + Sync>(
    (threads, cases, max_shrink_iters): (usize, u32, u32),
    worlds: &S,
    run: impl Fn(S::Value) -> Result<(), String> + Sync,
) {
    let cases = cases * u32::try_from(super::rounds(1)).expect("a small number");
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let config = ProptestConfig {
                    cases,
                    failure_persistence: None,
                    max_shrink_iters,
                    ..ProptestConfig::default()
                };
                let tried = TestRunner::new(config)
                    .run(worlds, |world| run(world).map_err(TestCaseError::fail));
                if let Err(error) = tried {
                    panic!("{error}");
                }
            });
        }
    });
}
