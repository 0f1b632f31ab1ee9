//! A key that runs once on a simulated store: whatever the order in which callers take their steps,
//! crash, die and are frozen, whatever is lost on the way to the store or arrives late, and
//! whenever time passes, it never runs twice at a time, never again after a success that counts,
//! each run that ends without one is followed by the next number, and what was reported as done is
//! remembered.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::{Just, Strategy, prop_oneof};
use proptest::{collection, sample};
use serializer::lock::once::{Ending, State as KeyState};
use serializer::lock::register::Register;
use serializer::lock::staleness::{Holding, LivenessCheck, Verdict};
use serializer::lock::waiting::{Observer, Waiting};
use serializer::lock::{self, Acquired, Grant, Mutex, ReleaseScope, Released, Request, Stored};
use serializer::record::period::Period;
use serializer::record::run::{Interrupted, Rule, Run};
use serializer::record::{Entry, Outcome};
use serializer::store::seam::{Key, Kind, Store};

use crate::support::memory::Memory;
use crate::support::simulated::{
    self, Access, ByPid, Fate, Process, Silent, Simulated, advance, fate,
};

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

const ALWAYS: Rule =
    Rule { per: None, valid_for: None, tries: None, interrupted: Interrupted::Rerun };
const TRIES: Rule = Rule { tries: NonZeroU32::new(3), ..ALWAYS };
const STOP: Rule = Rule { interrupted: Interrupted::Stop, ..ALWAYS };
const DAILY: Rule = Rule { per: Some(Period::Day), ..ALWAYS };
const VALID: Rule = Rule { valid_for: Some(VALID_FOR), ..ALWAYS };

/// The entry of a run as it was stored, if there was one.
type Seen = Option<Entry>;

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

fn key() -> Key {
    Key { kind: Kind::Once, name: "key".into() }
}

fn register(store: impl Store + 'static) -> Register {
    simulated::register(store, key())
}

#[derive(Clone, Debug)]
enum Order {
    Begin(Rule),
    End(bool),
    Renew(String),
    Forget,
}

/// Notes the time of its begin.
type Command = simulated::Command<Order, Ended>;

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
    store: Simulated,
    callers: Vec<Caller>,
    forgetting: Option<Command>,
    next_pid: i32,
    /// The last run that was reported as done, and whether it was forgotten since, or may have
    /// been.
    done: Option<Belief>,
    may_be_forgotten: bool,
    /// How much of the history of the store is checked, and what was last in it.
    checked: usize,
    last: Seen,
}

impl World {
    fn new(kinds: Kinds) -> Self {
        let (store, callers, forgetting) = (Simulated::new(), Vec::new(), None);
        let (done, may_be_forgotten, checked, last) = Default::default();
        let mut world = Self {
            kinds,
            store,
            callers,
            forgetting,
            next_pid: 2,
            done,
            may_be_forgotten,
            checked,
            last,
        };
        for _ in 0..CALLERS {
            let caller = world.born();
            world.callers.push(caller);
        }
        world
    }

    fn born(&mut self) -> Caller {
        self.next_pid += 1;
        Caller { pid: self.next_pid, command: None, keeper: None, running: None, ending: None }
    }

    fn is_alive(&self, caller: usize) -> bool {
        self.store.is_alive(self.callers[caller].pid)
    }

    fn start(&self, pid: i32, order: Order) -> Command {
        let (process, is_shared) =
            (Process { pid, store: self.store.clone() }, self.kinds.is_shared);
        let judge = ByPid((!is_shared).then(|| self.store.clone()));
        let access = Access { is_file: !is_shared, ..Access::shared(key()) };
        Command::start((&self.store, access), (order, self.store.now()), move |gated, order| {
            do_it(&mut Mutex::new(register(gated), &judge), &process, &order, is_shared)
        })
    }

    /// The caller's command asks one question; if it has none, it begins with what is next.
    fn step(
        &mut self,
        caller: usize,
        rule: Rule,
        is_success: bool,
        fate: Fate,
    ) -> Result<(), String> {
        let now = self.store.now();
        let Caller { pid, command, running, ending, .. } = &mut self.callers[caller];
        // Once it is over, it is not said to be over at another time: that of a killed command is
        // said again.
        *ending = running.take().map(|run| Belief { ended: now, ..run }).or(ending.take());
        let order = if ending.is_some() { Order::End(is_success) } else { Order::Begin(rule) };
        let (pid, command) = (*pid, command.take());
        let command = command.unwrap_or_else(|| self.start(pid, order));
        let ended = advance(&mut self.callers[caller].command, command, fate);
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
        let keeper = self.callers[caller]
            .keeper
            .take()
            .or_else(|| Some(self.start(pid, Order::Renew(token?))));
        let Some(keeper) = keeper else { return Ok(()) };
        let ended = advance(&mut self.callers[caller].keeper, keeper, fate);
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
        advance(&mut self.forgetting, forgetting, fate);
        self.check_history()
    }

    fn ended(
        &mut self,
        caller: usize,
        order: &Order,
        ended: Ended,
        began: u64,
    ) -> Result<(), String> {
        let now = self.store.now();
        let run_over =
            if matches!(order, Order::End(_)) { self.callers[caller].ending.take() } else { None };
        match (order, ended) {
            (Order::Begin(rule), Ended::Begun(grant)) => {
                // One that has died since is not told.
                if !self.is_alive(caller) {
                    return Ok(());
                }
                let run = Belief { grant, began, ended: 0, until: began + LEASE, is_broken: false };
                // Where rules differ, what is stored tells.
                if let Some(done) = self
                    .done
                    .as_ref()
                    .filter(|_| !self.may_be_forgotten && self.kinds.rules.len() == 1)
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
                let has_succeeded = |seen: &Seen| {
                    seen.as_ref().is_some_and(|entry| entry.released == Some(Outcome::Succeeded))
                };
                if !self.store.lock().history.iter().any(has_succeeded) {
                    return Err(format!("skipped by {rule:?}, and it was never done"));
                }
            }
            (Order::Begin(rule), Ended::GivenUp)
                if rule.tries.is_none() && rule.interrupted == Interrupted::Rerun =>
            {
                return Err(format!("given up by {rule:?}"));
            }
            (Order::End(is_success), Ended::Concluded) => {
                let Some(run) = run_over else { return Ok(()) };
                let outcome = if *is_success { Outcome::Succeeded } else { Outcome::Failed };
                let is_it = |entry: &Entry| {
                    entry.has_token(&run.grant.token) && entry.released == Some(outcome)
                };
                let is_recorded = self.store.lock().history.iter().flatten().any(is_it);
                if run.is_broken || !is_recorded {
                    return Err(format!(
                        "{run:?} was lost, and its end was reported as {outcome:?}"
                    ));
                }
                if *is_success {
                    self.may_be_forgotten = self.forgetting.is_some()
                        || self.kinds.forgets && self.store.lock().has_late();
                    self.done = Some(run);
                }
            }
            (Order::Renew(token), Ended::Renewed) => {
                if let Some(run) =
                    self.callers[caller].running.as_mut().filter(|run| run.grant.token == *token)
                {
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
            self.check(&last)
                .map_err(|error| format!("{error}: {last:?}, then {:?}", self.last))?;
        }
        // What was reported as done is remembered.
        if let Some(done) =
            self.done.as_ref().filter(|_| self.kinds.rules == [ALWAYS] && !self.may_be_forgotten)
        {
            let seen = self.store.lock().last_run();
            let is_it = |entry: &Entry| {
                entry.has_token(&done.grant.token) && entry.released == Some(Outcome::Succeeded)
            };
            if !seen.as_ref().is_some_and(is_it) {
                return Err(format!("{done:?} is forgotten: {seen:?}"));
            }
        }
        Ok(())
    }

    /// What follows what, by the rules of this world.
    fn check(&self, last: &Seen) -> Result<(), &'static str> {
        let all = |is: fn(&Rule) -> bool| self.kinds.rules.iter().all(is);
        let Some((Entry { token, released, .. }, run)) = of(&self.last) else {
            return if self.kinds.forgets { Ok(()) } else { Err("the key is forgotten") };
        };
        if all(|rule| rule.tries.is_some()) && run.number > 3 {
            return Err("there are more tries than there may be");
        }
        let Some((Entry { token: before, released: was, .. }, last)) = of(last) else {
            return if run.number == 1 && released.is_none() {
                Ok(())
            } else {
                Err("it does not begin with the first run")
            };
        };
        if before == token {
            return if was.is_none() || was == released {
                Ok(())
            } else {
                Err("an end has changed")
            };
        }
        let age = Duration::from_millis(run.began.saturating_sub(last.ended()));
        let is_expired = match run.rule {
            Rule { per: Some(per), .. } => last.began < per.begin(run.began).expect("a period"),
            Rule { valid_for: Some(valid_for), .. } => {
                *was == Some(Outcome::Succeeded) && age > valid_for
            }
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
        let killed = if is_keeper {
            self.callers[caller].keeper.take()
        } else {
            self.callers[caller].command.take()
        };
        killed.into_iter().for_each(Command::kill);
        if !is_keeper && !self.is_alive(caller) {
            self.callers[caller] = self.born();
        }
    }

    /// A caller is gone. Its command goes on for a time, and finds that out.
    fn die(&mut self, caller: usize) {
        self.kill(caller, true);
        let Caller { pid, command, running, .. } = &mut self.callers[caller];
        self.store.die(*pid);
        *running = None;
        if command.is_none() {
            self.callers[caller] = self.born();
        }
    }

    /// Something that was on its way arrives.
    fn arrive(&mut self, which: usize) -> Result<(), String> {
        self.store.arrive(which);
        self.check_history()
    }

    /// Two runs at a time.
    fn conflict(&self) -> Result<(), String> {
        let now = self.store.now();
        let all = self.callers.iter().filter_map(|caller| caller.running.as_ref());
        let live: Vec<_> = all.filter(|run| now < run.until || !self.kinds.is_shared).collect();
        if live.len() > 1 { Err(format!("at {now}, these run: {live:?}")) } else { Ok(()) }
    }

    /// Whether a caller comes to an end when all other callers are gone, and their leases have
    /// expired.
    fn ends(mut self) -> Result<(), String> {
        for caller in 0..CALLERS {
            self.die(caller);
            self.kill(caller, false);
        }
        self.forgetting.take().into_iter().for_each(Command::kill);
        self.store.lock().now += 2 * LEASE;
        let mut command = self.start(self.callers[0].pid, Order::Begin(self.kinds.rules[0]));
        // Two looks and a write are enough; more is an endless loop.
        for _ in 0..10 {
            match command.advance(Fate::Answered) {
                Ok(going) => command = going,
                Err((_, Ended::Begun(_) | Ended::Skipped | Ended::GivenUp, _)) => return Ok(()),
                Err((_, ended, _)) => return Err(format!("the key is stuck: {ended:?}")),
            }
        }
        command.kill();
        Err(format!("the key is stuck: {:?}", self.store.lock()))
    }
}

/// An entry with its run.
fn of(seen: &Seen) -> Option<(&Entry, &Run)> {
    seen.as_ref().and_then(|entry| Some((entry, entry.once.as_ref()?)))
}

/// Whether a run is after another one, as the store counts them; a file tells of them in their
/// order.
fn is_later(run: &Belief, other: &Belief) -> bool {
    run.grant.fencing.zip(other.grant.fencing).is_none_or(|(run, other)| run > other)
}

/// Whether a success certainly counts for a caller that began at `began`, and was told at `now`.
fn counts(done: &Belief, rule: Rule, began: u64, now: u64) -> bool {
    let is_valid =
        |valid_for: Duration| u128::from(now.saturating_sub(done.ended)) <= valid_for.as_millis();
    // It may have looked for the first time at any moment in between.
    let of_period = [began, now].iter().all(|arrival| done.began >= rule.since(*arrival));
    of_period && rule.valid_for.is_none_or(is_valid)
}

fn do_it(mutex: &mut Mutex<'_>, process: &Process, order: &Order, is_shared: bool) -> Ended {
    let waiting = Waiting {
        max_attempts: NonZeroU32::new(3),
        sleep: Duration::ZERO,
        timeout: None,
        warn_after: None,
    };
    match order {
        Order::Begin(rule) => {
            let lease = is_shared.then(|| Duration::from_millis(LEASE));
            let request = Request { lease, once: Some(*rule), ..Request::default() };
            match mutex.acquire(process, &request, &waiting, &mut Silent) {
                Ok(Acquired::Granted(grant, _)) => Ended::Begun(grant),
                Ok(Acquired::NotNeeded(_)) => Ended::Skipped,
                Err(lock::Error::GivenUp(_)) => Ended::GivenUp,
                // Its command was killed before. The keeper is gone, so the lease is renewed at
                // once, as `lock` does.
                Ok(Acquired::AlreadyHeld(held)) => {
                    let entry = held.entry.expect("an entry of ours");
                    let (token, run) =
                        (entry.token.expect("a token"), entry.once.map(|run| run.number));
                    let grant = Grant {
                        token,
                        fencing: entry.fencing,
                        leased_at: 0,
                        run,
                        is_stopped: false,
                    };
                    let renewed =
                        if is_shared { mutex.renew(&grant.token, None) } else { Ok(grant) };
                    renewed.map_or(Ended::Otherwise, Ended::Begun)
                }
                Err(_) => Ended::Otherwise,
            }
        }
        Order::End(is_success) => {
            let outcome = if *is_success { Outcome::Succeeded } else { Outcome::Failed };
            match mutex.release(
                process,
                ReleaseScope::Own,
                Ending { outcome, how: "ended", code: None },
            ) {
                Ok(Released::Own { .. }) => Ended::Concluded,
                Ok(_) | Err(_) => Ended::Otherwise,
            }
        }
        Order::Renew(token) => {
            mutex.renew(token, None).map_or(Ended::Otherwise, |_| Ended::Renewed)
        }
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
            Action::Step(caller, rule, is_success, fate) => {
                world.step(caller, rule, is_success, fate)?
            }
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

fn try_all(is_shared: bool, rules: &'static [Rule], forgets: bool) {
    let kinds = Kinds { is_shared, rules, forgets };
    simulated::try_all((24, 3, 100), &collection::vec(action(rules), 1..150), |actions| {
        run(kinds, &actions)
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
    let process = Process { pid: 2, store: Simulated::new() };
    let judge = ByPid(None);
    let mutex = || Mutex::new(register(memory.clone()), &judge);
    let run = |outcome| {
        let ended = do_it(&mut mutex(), &process, &Order::Begin(ALWAYS), true);
        assert!(matches!(ended, Ended::Begun(_)), "{ended:?}");
        let ended = mutex().release(
            &process,
            ReleaseScope::Own,
            Ending { outcome, how: "ended", code: None },
        );
        assert!(matches!(ended, Ok(Released::Own { .. })), "{ended:?}");
    };
    let look = || mutex().inspect().expect("memory");
    run(Outcome::Failed);
    let seen = look().expect("a run");
    run(Outcome::Succeeded);
    let forgotten = mutex().forget(&seen);
    assert!(matches!(forgotten, Err(lock::Error::NotOurs(_))), "{forgotten:?}");
    let seen = look().expect("a run");
    assert_eq!((seen.state, seen.run.number), (KeyState::Done, 2));
    assert!(matches!(mutex().forget(&seen), Ok(true)));
    assert!(look().is_none());
    assert!(matches!(mutex().forget(&seen), Ok(false)), "there is nothing any more");
    run(Outcome::Succeeded);
}

/// Checks liveness as usual, after one other action, once.
struct After<'a>(RefCell<Option<Box<dyn FnOnce() + 'a>>>);

impl LivenessCheck for After<'_> {
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
    for (first, second) in
        [(Outcome::Failed, Outcome::Succeeded), (Outcome::Unknown, Outcome::Succeeded)]
    {
        let memory = Memory::shared();
        let process = Process { pid: 2, store: Simulated::new() };
        let judge = ByPid(None);
        let begun = do_it(
            &mut Mutex::new(register(memory.clone()), &judge),
            &process,
            &Order::Begin(ALWAYS),
            true,
        );
        assert!(matches!(begun, Ended::Begun(_)), "{begun:?}");
        let other = || {
            let ended = Mutex::new(register(memory.clone()), &judge).release(
                &process,
                ReleaseScope::Own,
                ending(first),
            );
            assert!(matches!(ended, Ok(Released::Own { .. })), "{ended:?}");
        };
        // Between the look and the write of the second one, the first one is done.
        let after = After(RefCell::new(Some(Box::new(other))));
        let ended = Mutex::new(register(memory.clone()), &after).release(
            &process,
            ReleaseScope::Own,
            ending(second),
        );
        assert!(matches!(ended, Err(lock::Error::Lost(..))), "{ended:?}");
        let seen =
            Mutex::new(register(memory.clone()), &judge).inspect().expect("memory").expect("a run");
        assert_ne!(seen.state, KeyState::Done, "{first:?}");
    }
}

/// What happens while a caller waits.
struct Meanwhile<'a>(&'a mut dyn FnMut());

impl Observer for Meanwhile<'_> {
    fn waiting(
        &mut self,
        _holders: &[Holding],
        _attempt: u32,
        _place: &mut dyn FnMut() -> Option<usize>,
    ) {
        (self.0)();
    }

    fn interval(&self) -> Duration {
        Duration::ZERO
    }
}

#[test]
fn a_caller_that_has_come_before_midnight_is_content_with_a_success_of_that_day() {
    let memory = Memory::shared();
    let world = Simulated::new();
    let [first, waiter] = [2, 3].map(|pid| Process { pid, store: world.clone() });
    let judge = ByPid(None);
    let mutex = || Mutex::new(register(memory.clone()), &judge);
    assert!(matches!(do_it(&mut mutex(), &first, &Order::Begin(DAILY), true), Ended::Begun(_)));
    let mut midnight = || {
        assert!(matches!(do_it(&mut mutex(), &first, &Order::End(true), true), Ended::Concluded));
        memory.leap(24 * 60 * 60 * 1000);
    };
    let request = Request {
        lease: Some(Duration::from_millis(LEASE)),
        once: Some(DAILY),
        ..Request::default()
    };
    let waiting = Waiting {
        max_attempts: NonZeroU32::new(100),
        sleep: Duration::from_millis(10),
        timeout: None,
        warn_after: None,
    };
    let acquired = mutex().acquire(&waiter, &request, &waiting, &mut Meanwhile(&mut midnight));
    assert!(matches!(acquired, Ok(Acquired::NotNeeded(Some(_)))), "{acquired:?}");
    // One that comes now has another day.
    assert!(matches!(do_it(&mut mutex(), &waiter, &Order::Begin(DAILY), true), Ended::Begun(_)));
}
