//! A key that runs once on a simulated store: whatever the order in which callers take their steps, crash, die and are frozen,
//! whatever is lost on the way to the store or arrives late, and whenever time passes, it never runs twice at a time, never again
//! after a success that counts, each run that ends without one is followed by the next number, and what was reported as done is
//! remembered.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use proptest::prelude::{Just, ProptestConfig, Strategy, prop_oneof};
use proptest::test_runner::{TestCaseError, TestRunner};
use proptest::{collection, sample};
use serializer::backend::seam::{Key, Kind, Next, Page, State, Store, Write};
use serializer::backend::{Cause, Failure};
use serializer::claimant::Claimant;
use serializer::mutex::register::{Register, Stored};
use serializer::mutex::{self, Acquired, Grant, Mutex, Released, Request, Whose};
use serializer::once::{Ending, Interrupted, Period, Rule, Run, State as KeyState};
use serializer::owner::{Instance, Owner, Place};
use serializer::record::{Entry, Outcome, Record, parse_pid};
use serializer::verdict::{Held, Holding, Judge, Stale, Verdict};
use serializer::waiting::{Observer, Waiting};

use crate::lease_policy::{Fate, Silent, fate};
use crate::support::memory::Memory;

const CALLERS: usize = 3;

/// In milliseconds: six hours.
const LEASE: u64 = 6 * 60 * 60 * 1000;

const VALID_FOR: Duration = Duration::from_millis(2 * LEASE);

/// How callers of a world want the key to run; none of them disagree on tries and interruptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kinds {
    /// As hosts share it, with leases, and answers that get lost; or as a file.
    is_shared: bool,
    rules: &'static [Rule],
    forgets: bool,
}

const ALWAYS: Rule = Rule { per: None, valid_for: None, tries: None, interrupted: Interrupted::Rerun };
const TRIES: Rule = Rule { tries: NonZeroU32::new(3), ..ALWAYS };
const STOP: Rule = Rule { interrupted: Interrupted::Stop, ..ALWAYS };
const DAILY: Rule = Rule { per: Some(Period::Day), ..ALWAYS };
const VALID: Rule = Rule { valid_for: Some(VALID_FOR), ..ALWAYS };

/// What was stored of a run: its token, how it ended, and itself.
type Seen = Option<(String, Option<Outcome>, Run)>;

/// A conditional write: what it expects, its number, and what is to be stored.
type Change = (u64, u64, Option<String>);

/// A store: one row, a clock, what is still on its way, and all that was ever stored.
#[derive(Debug, Default)]
struct Row {
    number: u64,
    text: Option<String>,
    now: u64,
    late: Vec<Change>,
    history: Vec<Seen>,
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

    fn last_run(&self) -> Seen {
        let record = Record::parse(self.text.as_ref()?.as_bytes()).expect("a record");
        let (entry, run) = record.last_run()?;
        Some((entry.token.clone().expect("a token"), entry.released, run.clone()))
    }
}

#[derive(Clone, Default)]
struct Shared(Arc<StdMutex<Row>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Row> {
        self.0.lock().expect("no panic")
    }

    fn now(&self) -> u64 {
        self.lock().now
    }
}

enum Event {
    /// It has a question for the store.
    Asks,
    Ended(Ended),
}

/// How a command has ended.
#[derive(Debug)]
enum Ended {
    Begun(Grant),
    /// It was told that the key is done.
    Skipped,
    GivenUp,
    /// Its end was reported.
    Concluded,
    Renewed,
    Otherwise,
}

/// One connection to the store, whose questions wait for what the test wants to become of them.
struct Gated {
    store: Shared,
    is_shared: bool,
    here: Sender<Event>,
    fates: Receiver<Fate>,
}

impl Gated {
    /// Fails where the process that asks was killed.
    fn fate(&self) -> Result<Fate, Failure> {
        let killed = || Failure { cause: Cause::Contended, ..Failure::permanent("a killed process asks nothing more") };
        self.here.send(Event::Asks).map_err(|_| killed())?;
        let fate = self.fates.recv().map_err(|_| killed())?;
        // A file loses nothing.
        Ok(if self.is_shared { fate } else { Fate::Answered })
    }
}

impl Store for Gated {
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        // Notices for those whose lock was broken.
        if key.name != NAME {
            return Ok(State::default());
        }
        if self.fate()? != Fate::Answered {
            return Err(Failure::transient("no answer"));
        }
        let row = self.store.lock();
        let version = (row.number > 0).then(|| row.number.to_string().into_bytes());
        let is_gone = !self.is_shared && row.text.is_none();
        let (version, now) = (version.filter(|_| !is_gone), self.is_shared.then_some(row.now));
        Ok(State { version, number: row.number, value: row.text.clone(), now, is_local: !self.is_shared, ..State::default() })
    }

    fn put(&mut self, _key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        let fate = self.fate()?;
        let change = (expected.number, next.number.max(expected.number + 1), next.value.map(str::to_owned));
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
        Err(Failure::transient("no answer").indefinite())
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
        self.is_shared
    }

    fn poll_interval(&self) -> (Duration, Duration) {
        (Duration::ZERO, Duration::ZERO)
    }
}

const NAME: &str = "key";

fn register(store: impl Store + 'static) -> Register {
    Register::new(Box::new(store), Key { kind: Kind::Once, name: NAME.into() }, "simulated".to_owned())
}

/// The PIDs of the callers that live. A PID is never used again.
type Alive = Arc<StdMutex<HashSet<i32>>>;

/// A caller, as its commands see it.
#[derive(Clone)]
struct Process {
    pid: i32,
    alive: Alive,
    tokens: Arc<AtomicU64>,
}

impl Claimant for Process {
    fn entry(&self) -> std::io::Result<Entry> {
        let pid = parse_pid(&self.pid.to_string()).expect("a pid");
        let owner = Owner { pid, uid: None, place: Place::default(), instance: Instance::default() };
        let token = self.tokens.fetch_add(1, Ordering::Relaxed).to_string();
        Ok(Entry { token: Some(token), ..Entry::new(owner, None, None)? })
    }

    fn owns(&self, _stored: &Stored, entry: &Entry) -> bool {
        entry.owner.pid.as_raw_pid() == self.pid
    }

    fn is_present(&self) -> bool {
        self.alive.lock().expect("no panic").contains(&self.pid)
    }
}

/// On one machine, all processes are seen; with leases, none is.
struct ByPid(Option<Alive>);

impl Judge for ByPid {
    fn judge(&self, _stored: &Stored, entry: &Entry) -> Verdict {
        let is_alive = |alive: &Alive| alive.lock().expect("no panic").contains(&entry.owner.pid.as_raw_pid());
        match (entry.released, &self.0) {
            (Some(_), _) => Verdict::Stale(Stale::Released),
            (None, Some(alive)) if !is_alive(alive) => Verdict::Stale(Stale::Gone),
            (None, _) => Verdict::Held(Held::Alive(None)),
        }
    }
}

#[derive(Clone, Debug)]
enum Order {
    Begin(Rule),
    End(bool),
    Renew(String),
    Forget,
}

/// A process that is under way.
struct Command {
    order: Order,
    fates: Sender<Fate>,
    events: Receiver<Event>,
    thread: JoinHandle<()>,
    /// When it began.
    began: u64,
}

/// A run that a caller was told to have begun.
#[derive(Clone, Debug)]
struct Belief {
    grant: Grant,
    /// When its command began, and when its end did.
    began: u64,
    ended: u64,
    /// Until when its lease lasts at least.
    until: u64,
    /// Whether another run has begun since.
    is_broken: bool,
}

struct Caller {
    pid: i32,
    /// A begin or an end, and a renewal.
    command: Option<Command>,
    keeper: Option<Command>,
    running: Option<Belief>,
    /// Its end is being reported.
    ending: Option<Belief>,
}

struct World {
    kinds: Kinds,
    store: Shared,
    alive: Alive,
    tokens: Arc<AtomicU64>,
    callers: Vec<Caller>,
    forgetting: Option<Command>,
    next_pid: i32,
    /// The last run that was reported as done, and whether it was forgotten since, or may have been.
    done: Option<Belief>,
    may_be_forgotten: bool,
    /// How much of the history of the store is checked, and what was last in it.
    checked: usize,
    last: Seen,
}

impl World {
    fn new(kinds: Kinds) -> Self {
        let store = Shared::default();
        // As a clock is.
        store.lock().now = 1_800_000_000_000;
        let (alive, tokens, callers, forgetting) = Default::default();
        let (done, may_be_forgotten, checked, last) = Default::default();
        let mut world =
            Self { kinds, store, alive, tokens, callers, forgetting, next_pid: 2, done, may_be_forgotten, checked, last };
        for _ in 0..CALLERS {
            let caller = world.born();
            world.callers.push(caller);
        }
        world
    }

    fn born(&mut self) -> Caller {
        self.next_pid += 1;
        self.alive.lock().expect("no panic").insert(self.next_pid);
        Caller { pid: self.next_pid, command: None, keeper: None, running: None, ending: None }
    }

    fn is_alive(&self, caller: usize) -> bool {
        self.alive.lock().expect("no panic").contains(&self.callers[caller].pid)
    }

    fn start(&self, pid: i32, order: Order) -> Command {
        let (here, events) = channel();
        let (fates, permits) = channel();
        let process = Process { pid, alive: self.alive.clone(), tokens: self.tokens.clone() };
        let (store, asked, is_shared) = (self.store.clone(), order.clone(), self.kinds.is_shared);
        let judge = ByPid((!is_shared).then(|| self.alive.clone()));
        let began = store.now();
        let thread = thread::spawn(move || {
            let ended = here.clone();
            let mut mutex = Mutex::new(register(Gated { store, is_shared, here, fates: permits }), &judge);
            // Nobody listens to a process that was killed.
            let _ = ended.send(Event::Ended(do_it(&mut mutex, &process, &asked, is_shared)));
        });
        assert!(matches!(events.recv(), Ok(Event::Asks)), "every command looks first");
        Command { order, fates, events, thread, began }
    }

    /// The caller's command asks one question; if it has none, it begins with what is next.
    fn step(&mut self, caller: usize, rule: Rule, is_success: bool, fate: Fate) -> Result<(), String> {
        let now = self.store.now();
        let Caller { pid, command, running, ending, .. } = &mut self.callers[caller];
        // Once it is over, it is not said to be over at another time: that of a killed command is said again.
        *ending = running.take().map(|run| Belief { ended: now, ..run }).or(ending.take());
        let order = if ending.is_some() { Order::End(is_success) } else { Order::Begin(rule) };
        let (pid, command) = (*pid, command.take());
        let command = command.unwrap_or_else(|| self.start(pid, order));
        let (command, ended) = advance(command, fate);
        self.callers[caller].command = command;
        if let Some((order, ended, began)) = ended {
            self.ended(caller, &order, ended, began)?;
        }
        if self.callers[caller].command.is_none() && !self.is_alive(caller) {
            self.callers[caller] = self.born();
        }
        self.check_history()
    }

    /// The same for the renewal of the lease of a run.
    fn keep(&mut self, caller: usize, fate: Fate) -> Result<(), String> {
        if !self.kinds.is_shared {
            return Ok(());
        }
        let pid = self.callers[caller].pid;
        let token = self.callers[caller].running.as_ref().map(|run| run.grant.token.clone());
        let keeper = self.callers[caller].keeper.take().or_else(|| Some(self.start(pid, Order::Renew(token?))));
        let Some(keeper) = keeper else { return Ok(()) };
        let (keeper, ended) = advance(keeper, fate);
        self.callers[caller].keeper = keeper;
        if let Some((order, ended, began)) = ended {
            self.ended(caller, &order, ended, began)?;
        }
        self.check_history()
    }

    fn forget(&mut self, fate: Fate) -> Result<(), String> {
        if !self.kinds.forgets {
            return Ok(());
        }
        self.may_be_forgotten = true;
        let forgetting = self.forgetting.take().unwrap_or_else(|| self.start(1, Order::Forget));
        self.forgetting = advance(forgetting, fate).0;
        self.check_history()
    }

    fn ended(&mut self, caller: usize, order: &Order, ended: Ended, began: u64) -> Result<(), String> {
        let now = self.store.now();
        let run_over = if matches!(order, Order::End(_)) { self.callers[caller].ending.take() } else { None };
        match (order, ended) {
            (Order::Begin(rule), Ended::Begun(grant)) => {
                // One that has died since is not told.
                if !self.is_alive(caller) {
                    return Ok(());
                }
                let run = Belief { grant, began, ended: 0, until: began + LEASE, is_broken: false };
                // Where rules differ, what is stored tells.
                if let Some(done) = self.done.as_ref().filter(|_| !self.may_be_forgotten && self.kinds.rules.len() == 1)
                    && is_later(&run, done)
                    && counts(done, *rule, began, now)
                {
                    return Err(format!("{run:?} begins at {now} after {done:?}"));
                }
                for other in self.callers.iter_mut().filter_map(|other| other.running.as_mut()) {
                    other.is_broken |= is_later(&run, other);
                }
                self.callers[caller].running = Some(run);
            }
            (Order::Begin(rule), Ended::Skipped) => {
                // There is a success that may count, reported or not.
                let has_succeeded = |seen: &Seen| matches!(seen, Some((_, Some(Outcome::Succeeded), _)));
                if !self.store.lock().history.iter().any(has_succeeded) {
                    return Err(format!("skipped by {rule:?}, and it was never done"));
                }
            }
            (Order::Begin(rule), Ended::GivenUp) if rule.tries.is_none() && rule.interrupted == Interrupted::Rerun => {
                return Err(format!("given up by {rule:?}"));
            }
            (Order::End(is_success), Ended::Concluded) => {
                let Some(run) = run_over else { return Ok(()) };
                let outcome = if *is_success { Outcome::Succeeded } else { Outcome::Failed };
                let is_it = |(token, released, _): &(String, _, _)| *token == run.grant.token && *released == Some(outcome);
                let is_recorded = self.store.lock().history.iter().flatten().any(is_it);
                if run.is_broken || !is_recorded {
                    return Err(format!("{run:?} was lost, and its end was reported as {outcome:?}"));
                }
                if *is_success {
                    self.may_be_forgotten = self.forgetting.is_some() || self.kinds.forgets && !self.store.lock().late.is_empty();
                    self.done = Some(run);
                }
            }
            (Order::Renew(token), Ended::Renewed) => {
                if let Some(run) = self.callers[caller].running.as_mut().filter(|run| run.grant.token == *token) {
                    if run.is_broken {
                        return Err(format!("{run:?} was renewed"));
                    }
                    run.until = began + LEASE;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// All that was stored since this was asked last.
    fn check_history(&mut self) -> Result<(), String> {
        let history = self.store.lock().history[self.checked..].to_vec();
        self.checked += history.len();
        for seen in history {
            let last = std::mem::replace(&mut self.last, seen);
            self.check(&last).map_err(|error| format!("{error}: {last:?}, then {:?}", self.last))?;
        }
        // What was reported as done is remembered.
        if let Some(done) = self.done.as_ref().filter(|_| self.kinds.rules == [ALWAYS] && !self.may_be_forgotten) {
            let seen = self.store.lock().last_run();
            if !matches!(&seen, Some((token, Some(Outcome::Succeeded), _)) if *token == done.grant.token) {
                return Err(format!("{done:?} is forgotten: {seen:?}"));
            }
        }
        Ok(())
    }

    /// What follows what, by the rules of this world.
    fn check(&self, last: &Seen) -> Result<(), &'static str> {
        let all = |is: fn(&Rule) -> bool| self.kinds.rules.iter().all(is);
        let Some((token, released, run)) = &self.last else {
            return if self.kinds.forgets { Ok(()) } else { Err("the key is forgotten") };
        };
        if all(|rule| rule.tries.is_some()) && run.number > 3 {
            return Err("there are more tries than there may be");
        }
        let Some((before, was, last)) = last else {
            return if run.number == 1 && released.is_none() { Ok(()) } else { Err("it does not begin with the first run") };
        };
        if before == token {
            return if was.is_none() || was == released { Ok(()) } else { Err("an end has changed") };
        }
        let age = Duration::from_millis(run.began.saturating_sub(last.ended()));
        let is_expired = match run.rule {
            Rule { per: Some(per), .. } => last.began < per.begin(run.began).expect("a period"),
            Rule { valid_for: Some(valid_for), .. } => *was == Some(Outcome::Succeeded) && age > valid_for,
            _ => false,
        };
        let is_first = run.number == 1 && is_expired;
        let is_next = run.number == last.number + 1 && *was != Some(Outcome::Succeeded);
        if released.is_some() || !(is_first || is_next) {
            return Err("it runs after a success that counts, or runs are not counted");
        }
        if all(|rule| rule.interrupted == Interrupted::Stop) && *was != Some(Outcome::Failed) {
            return Err("it runs after an interruption");
        }
        Ok(())
    }

    /// The caller's command, or what renews its lease, is killed.
    fn kill(&mut self, caller: usize, is_keeper: bool) {
        let killed = if is_keeper { self.callers[caller].keeper.take() } else { self.callers[caller].command.take() };
        killed.into_iter().for_each(kill);
        if !is_keeper && !self.is_alive(caller) {
            self.callers[caller] = self.born();
        }
    }

    /// A caller is gone. Its command goes on for a time, and finds that out.
    fn die(&mut self, caller: usize) {
        self.kill(caller, true);
        let Caller { pid, command, running, .. } = &mut self.callers[caller];
        self.alive.lock().expect("no panic").remove(pid);
        *running = None;
        if command.is_none() {
            self.callers[caller] = self.born();
        }
    }

    /// Something that was on its way arrives.
    fn arrive(&mut self, which: usize) -> Result<(), String> {
        let mut store = self.store.lock();
        if !store.late.is_empty() {
            let which = which % store.late.len();
            let change = store.late.remove(which);
            store.change(change);
        }
        drop(store);
        self.check_history()
    }

    /// Two runs at a time.
    fn conflict(&self) -> Result<(), String> {
        let now = self.store.now();
        let all = self.callers.iter().filter_map(|caller| caller.running.as_ref());
        let live: Vec<_> = all.filter(|run| now < run.until || !self.kinds.is_shared).collect();
        if live.len() > 1 { Err(format!("at {now}, these run: {live:?}")) } else { Ok(()) }
    }

    /// Whether a caller comes to an end when all others are gone, and their leases are over.
    fn ends(mut self) -> Result<(), String> {
        for caller in 0..CALLERS {
            self.die(caller);
            self.kill(caller, false);
        }
        self.forgetting.take().into_iter().for_each(kill);
        self.store.lock().now += 2 * LEASE;
        let mut command = self.start(self.callers[0].pid, Order::Begin(self.kinds.rules[0]));
        // Two looks and a write are enough; what is too many is no end.
        for _ in 0..10 {
            match advance(command, Fate::Answered) {
                (Some(going), _) => command = going,
                (None, Some((_, Ended::Begun(_) | Ended::Skipped | Ended::GivenUp, _))) => return Ok(()),
                (None, ended) => return Err(format!("the key is stuck: {:?}", ended.map(|(_, ended, _)| ended))),
            }
        }
        kill(command);
        Err(format!("the key is stuck: {:?}", self.store.lock()))
    }
}

/// Whether a run is after another one, as the store counts them; a file tells of them in their order.
fn is_later(run: &Belief, other: &Belief) -> bool {
    run.grant.fencing.zip(other.grant.fencing).is_none_or(|(run, other)| run > other)
}

/// Whether a success certainly counts for a caller that began at `began`, and was told at `now`.
fn counts(done: &Belief, rule: Rule, began: u64, now: u64) -> bool {
    let is_valid = |valid_for: Duration| u128::from(now.saturating_sub(done.ended)) <= valid_for.as_millis();
    // It may have looked for the first time at any moment in between.
    let of_period = [began, now].iter().all(|arrival| done.began >= rule.since(*arrival));
    of_period && rule.valid_for.is_none_or(is_valid)
}

/// One question more; tells how it has ended.
fn advance(command: Command, fate: Fate) -> (Option<Command>, Option<(Order, Ended, u64)>) {
    command.fates.send(fate).expect("it waits");
    match command.events.recv().expect("it goes on") {
        Event::Asks => (Some(command), None),
        Event::Ended(ended) => {
            command.thread.join().expect("no panic");
            (None, Some((command.order, ended, command.began)))
        }
    }
}

fn kill(command: Command) {
    let Command { fates, events, thread, .. } = command;
    drop((fates, events));
    thread.join().expect("no panic");
}

fn do_it(mutex: &mut Mutex<'_>, process: &Process, order: &Order, is_shared: bool) -> Ended {
    let waiting = Waiting { max_attempts: NonZeroU32::new(3), sleep: Duration::ZERO, timeout: None };
    match order {
        Order::Begin(rule) => {
            let lease = is_shared.then(|| Duration::from_millis(LEASE));
            let request = Request { lease, once: Some(*rule), ..Request::default() };
            match mutex.acquire(process, &request, &waiting, &mut Silent) {
                Ok(Acquired::Free(grant) | Acquired::TakenOver(grant, _)) => Ended::Begun(grant),
                Ok(Acquired::NotNeeded(_)) => Ended::Skipped,
                Err(mutex::Error::GivenUp(_)) => Ended::GivenUp,
                // Its command was killed before. Nobody keeps the lease any more, so that it is renewed at once, as `lock` does.
                Ok(Acquired::AlreadyHeld(held)) => {
                    let entry = held.entry.expect("an entry of ours");
                    let (token, run) = (entry.token.expect("a token"), entry.once.map(|run| run.number));
                    let grant = Grant { token, fencing: entry.fencing, leased_at: 0, run, is_stopped: false };
                    let renewed = if is_shared { mutex.renew(&grant.token, None) } else { Ok(grant) };
                    renewed.map_or(Ended::Otherwise, Ended::Begun)
                }
                Err(_) => Ended::Otherwise,
            }
        }
        Order::End(is_success) => {
            let outcome = if *is_success { Outcome::Succeeded } else { Outcome::Failed };
            match mutex.conclude(process, Whose::OwnAlone, Ending { outcome, how: "ended", code: None }) {
                Ok(Released::Own { .. }) => Ended::Concluded,
                Ok(_) | Err(_) => Ended::Otherwise,
            }
        }
        Order::Renew(token) => mutex.renew(token, None).map_or(Ended::Otherwise, |_| Ended::Renewed),
        Order::Forget => {
            if let Ok(Some(seen)) = mutex.inspect() {
                let _ = mutex.forget(&seen);
            }
            Ended::Otherwise
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Step(usize, Rule, bool, Fate),
    Keep(usize, Fate),
    Kill(usize, bool),
    Die(usize),
    Forget(Fate),
    Arrive(usize),
    /// So many milliseconds pass.
    Pass(u64),
}

fn action(rules: &'static [Rule]) -> impl Strategy<Value = Action> {
    let all = (0..CALLERS, sample::select(rules), fate(), 0..8_usize, 0..LEASE * 2 / 3);
    all.prop_flat_map(|(caller, rule, fate, number, time)| {
        prop_oneof![
            24 => Just(Action::Step(caller, rule, number == 0, fate)),
            8 => Just(Action::Keep(caller, fate)),
            2 => Just(Action::Kill(caller, number % 2 == 0)),
            1 => Just(Action::Die(caller)),
            3 => Just(Action::Forget(fate)),
            2 => Just(Action::Arrive(number)),
            4 => Just(Action::Pass(time)),
        ]
    })
}

/// Does it all; says what went wrong.
fn run(kinds: Kinds, actions: &[Action]) -> Result<(), String> {
    let mut world = World::new(kinds);
    for action in actions {
        match *action {
            Action::Step(caller, rule, is_success, fate) => world.step(caller, rule, is_success, fate)?,
            Action::Keep(caller, fate) => world.keep(caller, fate)?,
            Action::Kill(caller, is_keeper) => world.kill(caller, is_keeper),
            Action::Die(caller) => world.die(caller),
            Action::Forget(fate) => world.forget(fate)?,
            Action::Arrive(which) => world.arrive(which)?,
            Action::Pass(time) => world.store.lock().now += time,
        }
        world.conflict()?;
    }
    world.ends()
}

/// How often, times `SERIALIZER_TEST_FACTOR`.
fn factor() -> u32 {
    std::env::var("SERIALIZER_TEST_FACTOR").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// Many worlds side by side, because what is lost is asked again after a while.
fn try_all(is_shared: bool, rules: &'static [Rule], forgets: bool) {
    let kinds = Kinds { is_shared, rules, forgets };
    thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(move || {
                let config = ProptestConfig {
                    cases: 3 * factor(),
                    failure_persistence: None,
                    max_shrink_iters: 100,
                    ..ProptestConfig::default()
                };
                let all = collection::vec(action(rules), 1..150);
                let tried = TestRunner::new(config).run(&all, |actions| run(kinds, &actions).map_err(TestCaseError::fail));
                if let Err(error) = tried {
                    panic!("{error}");
                }
            });
        }
    });
}

#[test]
fn a_key_in_a_store_runs_until_it_has_succeeded_whatever_the_store_answers() {
    try_all(true, &[ALWAYS], false);
}

#[test]
fn a_key_in_a_file_runs_until_it_has_succeeded_whatever_crashes() {
    try_all(false, &[ALWAYS], false);
}

#[test]
fn tries_end_whatever_the_store_answers() {
    try_all(true, &[TRIES], false);
}

#[test]
fn no_run_follows_an_interruption_that_is_to_stop_it_whatever_the_store_answers() {
    try_all(true, &[STOP], false);
    try_all(false, &[STOP], false);
}

#[test]
fn a_key_runs_again_in_another_period_or_when_it_is_too_old_and_not_before() {
    try_all(true, &[DAILY], false);
    try_all(true, &[ALWAYS, DAILY, VALID], false);
}

#[test]
fn what_is_forgotten_runs_again_and_nothing_else() {
    try_all(true, &[ALWAYS], true);
    try_all(false, &[ALWAYS], true);
}

#[test]
fn a_run_that_has_come_since_a_key_was_looked_at_is_not_forgotten() {
    let memory = Memory::shared();
    let alive = Alive::default();
    alive.lock().expect("no panic").insert(2);
    let process = Process { pid: 2, alive, tokens: Arc::default() };
    let judge = ByPid(None);
    let mutex = || Mutex::new(register(memory.clone()), &judge);
    let run = |outcome| {
        let ended = do_it(&mut mutex(), &process, &Order::Begin(ALWAYS), true);
        assert!(matches!(ended, Ended::Begun(_)), "{ended:?}");
        let ended = mutex().conclude(&process, Whose::OwnAlone, Ending { outcome, how: "ended", code: None });
        assert!(matches!(ended, Ok(Released::Own { .. })), "{ended:?}");
    };
    let look = || mutex().inspect().expect("memory");
    run(Outcome::Failed);
    let seen = look().expect("a run");
    run(Outcome::Succeeded);
    let forgotten = mutex().forget(&seen);
    assert!(matches!(forgotten, Err(mutex::Error::NotOurs(_))), "{forgotten:?}");
    let seen = look().expect("a run");
    assert_eq!((seen.state, seen.run.number), (KeyState::Done, 2));
    assert!(matches!(mutex().forget(&seen), Ok(true)));
    assert!(look().is_none());
    assert!(matches!(mutex().forget(&seen), Ok(false)), "there is nothing any more");
    run(Outcome::Succeeded);
}

/// Judges as usual; does something else first, once.
struct After<'a>(RefCell<Option<Box<dyn FnOnce() + 'a>>>);

impl Judge for After<'_> {
    fn judge(&self, stored: &Stored, entry: &Entry) -> Verdict {
        if let Some(first) = self.0.take() {
            first();
        }
        ByPid(None).judge(stored, entry)
    }
}

#[test]
fn of_two_ends_of_a_run_the_one_that_is_not_remembered_is_not_reported() {
    let ending = |outcome| Ending { outcome, how: "ended", code: None };
    for (first, second) in [(Outcome::Failed, Outcome::Succeeded), (Outcome::Unknown, Outcome::Succeeded)] {
        let memory = Memory::shared();
        let alive = Alive::default();
        alive.lock().expect("no panic").insert(2);
        let process = Process { pid: 2, alive, tokens: Arc::default() };
        let judge = ByPid(None);
        let begun = do_it(&mut Mutex::new(register(memory.clone()), &judge), &process, &Order::Begin(ALWAYS), true);
        assert!(matches!(begun, Ended::Begun(_)), "{begun:?}");
        let other = || {
            let ended = Mutex::new(register(memory.clone()), &judge).conclude(&process, Whose::OwnAlone, ending(first));
            assert!(matches!(ended, Ok(Released::Own { .. })), "{ended:?}");
        };
        // Between the look and the write of the second one, the first one is done.
        let after = After(RefCell::new(Some(Box::new(other))));
        let ended = Mutex::new(register(memory.clone()), &after).conclude(&process, Whose::OwnAlone, ending(second));
        assert!(matches!(ended, Err(mutex::Error::Lost(..))), "{ended:?}");
        let seen = Mutex::new(register(memory.clone()), &judge).inspect().expect("memory").expect("a run");
        assert_ne!(seen.state, KeyState::Done, "{first:?}");
    }
}

/// What happens while a caller waits.
struct Meanwhile<'a>(&'a mut dyn FnMut());

impl Observer for Meanwhile<'_> {
    fn waiting(&mut self, _holders: &[Holding], _attempt: u32) {
        (self.0)();
    }

    fn interval(&self) -> Duration {
        Duration::ZERO
    }
}

#[test]
fn a_caller_that_has_come_before_midnight_is_content_with_a_success_of_that_day() {
    let memory = Memory::shared();
    let alive = Alive::default();
    alive.lock().expect("no panic").extend([2, 3]);
    let [first, waiter] = [2, 3].map(|pid| Process { pid, alive: alive.clone(), tokens: Arc::new((100 * pid as u64).into()) });
    let judge = ByPid(None);
    let mutex = || Mutex::new(register(memory.clone()), &judge);
    assert!(matches!(do_it(&mut mutex(), &first, &Order::Begin(DAILY), true), Ended::Begun(_)));
    let mut midnight = || {
        assert!(matches!(do_it(&mut mutex(), &first, &Order::End(true), true), Ended::Concluded));
        memory.leap(24 * 60 * 60 * 1000);
    };
    let request = Request { lease: Some(Duration::from_millis(LEASE)), once: Some(DAILY), ..Request::default() };
    let waiting = Waiting { max_attempts: NonZeroU32::new(100), sleep: Duration::from_millis(10), timeout: None };
    let acquired = mutex().acquire(&waiter, &request, &waiting, &mut Meanwhile(&mut midnight));
    assert!(matches!(acquired, Ok(Acquired::NotNeeded(Some(_)))), "{acquired:?}");
    // One that comes now has another day.
    assert!(matches!(do_it(&mut mutex(), &waiter, &Order::Begin(DAILY), true), Ended::Begun(_)));
}
