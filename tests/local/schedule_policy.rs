//! Schedulers on a simulated store, in virtual time: hosts that look, plan, claim, run, renew and end as `schedule start` does,
//! with kills, freezes, lost and late writes, pauses, stops, forced runs, and hosts' clocks that differ and leap.
//!
//! One task a world: tasks share nothing but a connection. All times are on a grid, so that the real time that passes meanwhile
//! changes nothing.

mod rules;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use proptest::collection;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use serializer::backend::Cause;
use serializer::backend::seam::{Key, Kind};
use serializer::mutex::{self, Acquired, Grant, Mutex, Released, Request, Whose};
use serializer::once::{Claim, Ending, Interrupted, Rule, Run, State, Task};
use serializer::record::{Entry, Outcome};
use serializer::schedule::definition::{CatchUp, Definition, Overlap};
use serializer::schedule::plan::{Plan, Seen, introduced};
use serializer::schedule::timetable::Timetable;
use serializer::waiting::Waiting;

use crate::support::simulated::{self, Access, ByPid, Fate, Process, Silent, Simulated, advance, fate, register};

const NAME: &str = "stock";

/// In milliseconds. All times of a world are half a step after a multiple of this one.
const STEP: u64 = 5 * 60_000;
const HOUR: u64 = 12 * STEP;
const LEASE: u64 = 18 * STEP;

/// A limit of tries that is never reached.
const MANY: u32 = 1000;

#[derive(Clone, Debug)]
struct Kinds {
    definition: Definition,
    every: u64,
    nodes: usize,
    /// Whether the store has a clock, and runs have leases. Otherwise, all see each other's processes.
    has_clock: bool,
    /// Whether all slots are to succeed: without failures, stops and forced runs of later slots.
    is_complete: bool,
}

#[derive(Clone, Debug)]
enum Order {
    /// A scheduler's step.
    Look {
        up_since: u64,
    },
    /// `schedule run`, of an earlier slot or of the present time.
    Force {
        earlier: Option<u64>,
    },
    Begin(Claim),
    End(Outcome),
    Renew(String),
    Pause(u64),
    Resume(u64),
    Stop,
}

#[derive(Debug)]
enum Ended {
    /// What is to be done at this time, about this run.
    Planned(Plan, Option<Run>, u64),
    Begun(Grant),
    Concluded(Outcome),
    Renewed {
        is_stopped: bool,
    },
    Lost,
    Otherwise,
}

/// Notes the time of its begin.
type Command = simulated::Command<Order, Ended>;

/// A scheduler. Its host's clock is ahead of the store's.
#[derive(Default)]
struct Node {
    ahead: i64,
    up_since: u64,
    command: Option<Command>,
    /// Its runner.
    child: Option<i32>,
}

/// A runner, which outlives its scheduler.
struct Runner {
    pid: i32,
    node: usize,
    command: Option<Command>,
    keeper: Option<Command>,
    /// What it believes to run, and until when that is certain.
    running: Option<(Grant, u64)>,
    /// What it has to report.
    ending: Option<Outcome>,
}

struct World {
    kinds: Kinds,
    store: Simulated,
    nodes: Vec<Node>,
    runners: Vec<Runner>,
    control: Option<Command>,
    /// All claims that were made, by PID.
    claims: HashMap<i32, Claim>,
    rules: rules::Rules,
}

impl World {
    fn new(kinds: Kinds) -> Self {
        let store = Simulated::new();
        store.lock().now += STEP / 2;
        let up_since = store.now();
        let nodes = (0..kinds.nodes).map(|_| Node { up_since, ..Node::default() }).collect();
        let rules = rules::Rules::new(kinds.clone());
        Self { kinds, store, nodes, runners: Vec::new(), control: None, claims: HashMap::new(), rules }
    }

    fn clock(&self, node: usize) -> u64 {
        self.store.now().saturating_add_signed(self.nodes[node].ahead)
    }

    fn start(&self, node: usize, pid: i32, order: Order) -> Command {
        let Kinds { definition, has_clock, .. } = self.kinds.clone();
        let key = Key { kind: Kind::Schedule, name: NAME.into() };
        let ahead = if has_clock { 0 } else { self.nodes[node].ahead };
        let access = Access { ahead, no_answer: Cause::Full, ..Access::shared(key.clone()) };
        let judge = ByPid((!has_clock).then(|| self.store.clone()));
        let process = Process { pid, store: self.store.clone() };
        Command::start((&self.store, access), (order, self.store.now()), move |gated, order| {
            let mut mutex = Mutex::new(register(gated, key), &judge);
            mutex.patience = Duration::ZERO;
            do_it(&mut mutex, &process, &definition, (order, has_clock))
        })
    }

    /// A scheduler asks one question, unless its runner runs.
    fn look(&mut self, node: usize, fate: Fate) -> Result<(), String> {
        let child = self.nodes[node].child;
        if self.runners.iter().any(|runner| Some(runner.pid) == child) {
            return Ok(());
        }
        let up_since = self.nodes[node].up_since;
        let command = self.nodes[node].command.take().unwrap_or_else(|| self.start(node, 1, Order::Look { up_since }));
        let ended = advance(&mut self.nodes[node].command, command, fate);
        if let Some((_, Ended::Planned(plan, run, now), _)) = ended {
            self.rules.check_plan(&plan, run.as_ref(), (now, up_since))?;
            self.nodes[node].child = self.follow(node, plan);
        }
        self.check()
    }

    /// Starts a runner, if that is planned.
    fn follow(&mut self, node: usize, plan: Plan) -> Option<i32> {
        let Plan::Run(claim) = plan else { return None };
        let pid = 100 + i32::try_from(self.claims.len()).expect("a small number");
        self.claims.insert(pid, claim);
        let command = Some(self.start(node, pid, Order::Begin(claim)));
        self.runners.push(Runner { pid, node, command, keeper: None, running: None, ending: None });
        Some(pid)
    }

    /// A runner asks one question; if it has none, its command ends.
    fn step(&mut self, which: usize, outcome: Outcome, fate: Fate) -> Result<(), String> {
        let Some(at) = which.checked_rem(self.runners.len()) else { return Ok(()) };
        let Runner { pid, node, command, running, ending, .. } = &mut self.runners[at];
        let (pid, node) = (*pid, *node);
        if command.is_none() && running.take().is_some() {
            ending.get_or_insert(outcome);
        }
        let (command, ending) = (command.take(), *ending);
        let command = command.unwrap_or_else(|| self.start(node, pid, Order::End(ending.unwrap_or(outcome))));
        match advance(&mut self.runners[at].command, command, fate) {
            None => {}
            Some((Order::Begin(_), Ended::Begun(grant), began)) => {
                let until = if self.kinds.has_clock { began + LEASE } else { u64::MAX };
                self.runners[at].running = Some((grant, until));
            }
            Some((_, Ended::Concluded(outcome), _)) => {
                let is_it = |entry: &Entry| entry.owner.pid.as_raw_pid() == pid && entry.released == Some(outcome);
                if !self.store.lock().history.iter().flatten().any(is_it) {
                    return Err(format!("the run of {pid} was reported as {outcome:?}, and that is not stored"));
                }
                self.kill_runner(at);
            }
            Some(_) => self.kill_runner(at),
        }
        self.check()
    }

    fn end_late(&mut self, which: usize, outcome: Outcome) -> Result<(), String> {
        let Some(at) = which.checked_rem(self.runners.len()) else { return Ok(()) };
        self.step(at, outcome, Fate::Answered)?;
        self.store.lock().now += LEASE;
        for node in 0..self.nodes.len() {
            self.look(node, Fate::Answered)?;
        }
        self.step(at, outcome, Fate::Answered)
    }

    /// The keeper of a runner asks one question.
    fn keep(&mut self, which: usize, fate: Fate) -> Result<(), String> {
        let Some(at) = which.checked_rem(self.runners.len()) else { return Ok(()) };
        let Runner { pid, node, keeper, running, .. } = &mut self.runners[at];
        let (pid, node) = (*pid, *node);
        let Some((Grant { token, .. }, _)) = running.clone().filter(|_| self.kinds.has_clock) else { return Ok(()) };
        let keeper = keeper.take().unwrap_or_else(|| self.start(node, pid, Order::Renew(token)));
        let ended = advance(&mut self.runners[at].keeper, keeper, fate);
        let Runner { running, ending, .. } = &mut self.runners[at];
        match ended {
            Some((_, Ended::Renewed { is_stopped }, began)) => {
                running.as_mut().expect("it runs").1 = began + LEASE;
                *ending = is_stopped.then_some(Outcome::Failed);
            }
            // Its command is killed.
            Some((_, Ended::Lost, _)) => (*running, *ending) = (None, Some(Outcome::Unknown)),
            _ => {}
        }
        self.check()
    }

    /// A command of a user on a host.
    fn control(&mut self, node: usize, order: Order, fate: Fate) -> Result<(), String> {
        let command = self.control.take().unwrap_or_else(|| self.start(node, 2, order));
        let ended = advance(&mut self.control, command, fate);
        if let Some((Order::Force { .. }, Ended::Planned(plan, ..), _)) = ended {
            self.follow(node, plan);
        }
        self.check()
    }

    fn kill_runner(&mut self, at: usize) {
        let Runner { pid, command, keeper, .. } = self.runners.remove(at);
        self.store.die(pid);
        command.into_iter().chain(keeper).for_each(Command::kill);
    }

    /// A scheduler is killed, and another one starts.
    fn kill_node(&mut self, node: usize) {
        let (up_since, ahead) = (self.clock(node), self.nodes[node].ahead);
        let killed = std::mem::replace(&mut self.nodes[node], Node { up_since, ahead, ..Node::default() });
        killed.command.into_iter().for_each(Command::kill);
    }

    fn check(&mut self) -> Result<(), String> {
        let history = self.store.lock().history[self.rules.checked..].to_vec();
        self.rules.check(history, &self.claims)?;
        let now = self.store.now();
        let live: Vec<_> = self.runners.iter().filter_map(|runner| runner.running.as_ref()).filter(|run| now < run.1).collect();
        if live.len() > 1 { Err(format!("at {now}, these run: {live:?}")) } else { Ok(()) }
    }

    /// All are gone; one scheduler does what is due, and nothing fails. Then nothing is left to do.
    fn settle(mut self) -> Result<(), String> {
        while !self.runners.is_empty() {
            self.kill_runner(0);
        }
        self.control.take().into_iter().for_each(Command::kill);
        self.store.lock().now += 2 * LEASE;
        for node in 0..self.nodes.len() {
            self.nodes[node].ahead = 0;
            self.kill_node(node);
        }
        // A slot needs three looks and two writes.
        for _ in 0..2000 {
            if !self.runners.is_empty() {
                self.step(0, Outcome::Succeeded, Fate::Answered)?;
                continue;
            }
            self.look(0, Fate::Answered)?;
            if self.nodes[0].command.is_some() || !self.runners.is_empty() {
                continue;
            }
            let (now, up_since) = (self.store.now(), self.nodes[0].up_since);
            if !self.rules.is_unfinished(now) {
                return self.rules.check_rest(now, up_since);
            }
            self.store.lock().now += STEP;
        }
        Err(format!("there is always something to do: {:?}", self.store.lock().last_run()))
    }
}

fn do_it(mutex: &mut Mutex<'_>, process: &Process, definition: &Definition, (order, has_clock): (Order, bool)) -> Ended {
    match order {
        Order::Look { up_since } => {
            let Ok(seen) = mutex.inspect() else { return Ended::Otherwise };
            let now = mutex.time();
            let seen = seen.map(|key| Seen::new(key, now));
            let plan = definition.plan(NAME, seen.as_ref(), now, up_since);
            if plan == Plan::Introduce {
                let _ = mutex.amend(&|run| run.is_none().then(|| introduced(NAME, now)));
            }
            Ended::Planned(plan, seen.map(|seen| seen.run), now)
        }
        Order::Force { earlier } => {
            let Ok(Some(seen)) = mutex.inspect() else { return Ended::Otherwise };
            if seen.state == State::Running {
                return Ended::Otherwise;
            }
            let slot = earlier.map_or_else(|| mutex.time(), |earlier| seen.run.of_slot().0.saturating_sub(earlier));
            let ((slot_seen, number), definition) = (seen.run.of_slot(), definition.number());
            let seen = (slot_seen, number, seen.state);
            let claim = Claim { seen, slot, skipped: 0, definition, is_forced: true };
            Ended::Planned(Plan::Run(claim), None, mutex.time())
        }
        Order::Begin(claim) => {
            let rule = Rule { tries: Some(definition.tries), interrupted: definition.interrupted, ..Rule::default() };
            let lease = has_clock.then_some(Duration::from_millis(LEASE));
            let request = Request { lease, once: Some(rule), claim: Some(claim), ..Request::default() };
            let waiting = Waiting { max_attempts: Some(NonZeroU32::MIN), sleep: Duration::ZERO, timeout: None };
            match mutex.acquire(process, &request, &waiting, &mut Silent) {
                Ok(Acquired::Free(grant) | Acquired::TakenOver(grant, _)) => Ended::Begun(grant),
                Ok(_) | Err(_) => Ended::Otherwise,
            }
        }
        Order::End(outcome) => match mutex.conclude(process, Whose::OwnAlone, Ending { outcome, how: "ended", code: None }) {
            Ok(Released::Own { .. }) => Ended::Concluded(outcome),
            Ok(_) | Err(_) => Ended::Otherwise,
        },
        Order::Renew(token) => match mutex.renew(&token, None) {
            Ok(Grant { is_stopped, .. }) => Ended::Renewed { is_stopped },
            Err(mutex::Error::Lost(..)) => Ended::Lost,
            Err(_) => Ended::Otherwise,
        },
        Order::Pause(paused) => amend(mutex, |task| Task { paused, ..task }),
        Order::Resume(now) => amend(mutex, |task| Task { paused: task.paused.min(now), ..task }),
        Order::Stop => {
            let Ok(Some(seen)) = mutex.inspect() else { return Ended::Otherwise };
            let run = seen.run.of_slot();
            if seen.state == State::Running {
                let _ = mutex.amend(&|stored| {
                    let stored = stored.filter(|stored| stored.of_slot() == run)?;
                    Some(Run { task: Some(Task { is_stopped: true, ..stored.task.clone()? }), ..stored.clone() })
                });
            }
            Ended::Otherwise
        }
    }
}

fn amend(mutex: &mut Mutex<'_>, change: impl Fn(Task) -> Task) -> Ended {
    let _ = mutex.amend(&|run| Some(Run { task: Some(change(run?.task.clone()?)), ..run?.clone() }));
    Ended::Otherwise
}

#[derive(Clone, Debug)]
enum Action {
    Look(usize, Fate),
    Step(usize, Outcome, Fate),
    Keep(usize, Fate),
    /// The end of a run is written when its lease has expired, and all have looked.
    EndLate(usize, Outcome),
    KillNode(usize),
    KillRunner(usize),
    /// For so many hours, or 0 without an end.
    Pause(usize, u64, Fate),
    Resume(usize, Fate),
    Stop(usize, Fate),
    Force(usize, Option<u64>, Fate),
    Arrive(usize),
    /// So many steps pass.
    Pass(u64),
    /// A host's clock is set.
    Leap(usize, i64),
}

fn action(is_complete: bool) -> impl Strategy<Value = Action> {
    let outcomes = [Outcome::Succeeded, Outcome::Succeeded, Outcome::Unknown, Outcome::Failed];
    let outcome = select(outcomes[..if is_complete { 3 } else { 4 }].to_vec());
    let all = (0..12_usize, fate(), outcome, 0..30_u8, any::<bool>());
    all.prop_flat_map(move |(which, fate, outcome, number, is_earlier)| {
        let (steps, ahead) = (u64::from(number), i64::from(number) * 3 - 45);
        let earlier = (is_earlier || is_complete).then_some(steps % 3 * HOUR);
        prop_oneof![
            24 => Just(Action::Look(which, fate)),
            40 => Just(Action::Step(which, outcome, fate)),
            12 => Just(Action::Keep(which, fate)),
            2 => Just(Action::EndLate(which, outcome)),
            1 => Just(Action::KillNode(which)),
            2 => Just(Action::KillRunner(which)),
            2 => Just(Action::Pause(which, steps % 4, fate)),
            2 => Just(Action::Resume(which, fate)),
            4 => Just(if is_complete { Action::Look(which, fate) } else { Action::Stop(which, fate) }),
            2 => Just(Action::Force(which, earlier, fate)),
            2 => Just(Action::Arrive(which)),
            16 => Just(Action::Pass(steps)),
            1 => Just(Action::Pass(steps * 100)),
            1 => Just(Action::Leap(which, ahead)),
        ]
    })
}

fn kinds(has_clock: bool, is_complete: bool) -> impl Strategy<Value = Kinds> {
    let late = (select(vec![CatchUp::None, CatchUp::Last, CatchUp::All]), any::<bool>(), any::<bool>(), any::<bool>());
    let again = (1..4_u32, any::<bool>(), 0..5_u64);
    (2..5_usize, 1..4_u64, late, again).prop_map(move |(nodes, hours, late, (tries, is_rerun, retry_after))| {
        let every = hours * HOUR;
        let (catch_up, is_queued, is_limited, is_spread) = late;
        let millis = Duration::from_millis;
        let mut definition = Definition::new(Some(Timetable::Every(millis(every))), format!("every {hours}h"), Vec::new());
        definition.catch_up = if is_complete { CatchUp::All } else { catch_up };
        definition.overlap = if is_queued { Overlap::Queue } else { Overlap::Skip };
        definition.start_within = (is_limited && !is_complete).then_some(millis(HOUR * 3 / 2));
        definition.spread = millis(if is_spread { HOUR * 3 / 4 } else { 0 });
        // Beside the grid.
        assert!(definition.delay(NAME) % STEP < STEP / 2, "another name is needed");
        definition.tries = NonZeroU32::new(if is_complete { MANY } else { tries }).expect("a number");
        definition.interrupted = if is_rerun || is_complete { Interrupted::Rerun } else { Interrupted::Stop };
        definition.retry_after = millis(retry_after * STEP);
        Kinds { definition, every, nodes, has_clock, is_complete }
    })
}

/// Does it all; says what went wrong.
fn run(kinds: Kinds, actions: Vec<Action>) -> Result<(), String> {
    let mut world = World::new(kinds);
    let nodes = world.nodes.len();
    for action in actions {
        match action {
            Action::Look(node, fate) => world.look(node % nodes, fate)?,
            Action::Step(which, outcome, fate) => world.step(which, outcome, fate)?,
            Action::Keep(which, fate) => world.keep(which, fate)?,
            Action::EndLate(which, outcome) => world.end_late(which, outcome)?,
            Action::KillNode(node) => world.kill_node(node % nodes),
            Action::KillRunner(which) => {
                which.checked_rem(world.runners.len()).into_iter().for_each(|at| world.kill_runner(at));
            }
            Action::Pause(node, hours, fate) => {
                let until = if hours == 0 { u64::MAX } else { world.clock(node % nodes) + hours * HOUR };
                world.control(node % nodes, Order::Pause(until), fate)?;
            }
            Action::Resume(node, fate) => {
                let now = world.clock(node % nodes);
                world.control(node % nodes, Order::Resume(now), fate)?;
            }
            Action::Stop(node, fate) => world.control(node % nodes, Order::Stop, fate)?,
            Action::Force(node, earlier, fate) => world.control(node % nodes, Order::Force { earlier }, fate)?,
            Action::Arrive(which) => {
                world.store.arrive(which);
                world.check()?;
            }
            Action::Pass(steps) => world.store.lock().now += steps * STEP,
            Action::Leap(node, steps) => world.nodes[node % nodes].ahead = steps * STEP.cast_signed(),
        }
    }
    world.settle()
}

fn try_all(has_clock: bool, is_complete: bool) {
    let worlds = (kinds(has_clock, is_complete), collection::vec(action(is_complete), 1..200));
    simulated::try_all((8, 6, 300), &worlds, |(kinds, actions)| run(kinds, actions));
}

#[test]
fn a_slot_runs_on_one_host_at_a_time_until_it_succeeds_whatever_the_store_answers() {
    try_all(true, false);
}

#[test]
fn clocks_of_hosts_make_a_slot_early_or_late_and_never_run_it_again() {
    try_all(false, false);
}

#[test]
fn each_slot_succeeds_exactly_once_if_all_are_caught_up_and_interruptions_run_again() {
    try_all(true, true);
    try_all(false, true);
}
