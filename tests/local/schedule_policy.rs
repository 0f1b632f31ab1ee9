//! Schedulers on a simulated store, in virtual time: hosts that look, plan, claim, run, renew and
//! end as `schedule start` does, with kills, freezes, lost and late writes, pauses, stops, forced
//! runs, and hosts' clocks that differ and leap.
//!
//! One task a world: tasks share nothing but a connection. All times are on a grid, so that the
//! real time that passes meanwhile changes nothing.

mod cases;
mod commands;
mod rules;

use std::collections::HashMap;
use std::time::Duration;

use proptest::collection;
use serializer::lock::once::Claim;
use serializer::lock::{Grant, Mutex};
use serializer::record::{Entry, Outcome};
use serializer::schedule::plan::Plan;
use serializer::store::Cause;
use serializer::store::seam::{Key, Kind};

use self::cases::{Action, HOUR, Kinds, STEP, action, kinds};
use self::commands::{Ended, Order, do_it};
use crate::support::simulated::{self, Access, ByPid, Fate, Process, Simulated, advance, register};

const NAME: &str = "stock";

/// In milliseconds.
const LEASE: u64 = 18 * STEP;

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
        Self {
            kinds,
            store,
            nodes,
            runners: Vec::new(),
            control: None,
            claims: HashMap::new(),
            rules,
        }
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
        let command = self.nodes[node]
            .command
            .take()
            .unwrap_or_else(|| self.start(node, 1, Order::Look { up_since }));
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
        let command =
            command.unwrap_or_else(|| self.start(node, pid, Order::End(ending.unwrap_or(outcome))));
        match advance(&mut self.runners[at].command, command, fate) {
            None => {}
            Some((Order::Begin(_), Ended::Begun(grant), began)) => {
                let until = if self.kinds.has_clock { began + LEASE } else { u64::MAX };
                self.runners[at].running = Some((grant, until));
            }
            Some((_, Ended::Concluded(outcome), _)) => {
                let is_it = |entry: &Entry| {
                    entry.owner.pid.as_raw_pid() == pid && entry.released == Some(outcome)
                };
                if !self.store.lock().history.iter().flatten().any(is_it) {
                    return Err(format!(
                        "the run of {pid} was reported as {outcome:?}, and that is not stored"
                    ));
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
        let Some((Grant { token, .. }, _)) = running.clone().filter(|_| self.kinds.has_clock)
        else {
            return Ok(());
        };
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
        let killed =
            std::mem::replace(&mut self.nodes[node], Node { up_since, ahead, ..Node::default() });
        killed.command.into_iter().for_each(Command::kill);
    }

    fn check(&mut self) -> Result<(), String> {
        let history = self.store.lock().history[self.rules.checked..].to_vec();
        self.rules.check(history, &self.claims)?;
        let now = self.store.now();
        let live: Vec<_> = self
            .runners
            .iter()
            .filter_map(|runner| runner.running.as_ref())
            .filter(|run| now < run.1)
            .collect();
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
                which
                    .checked_rem(world.runners.len())
                    .into_iter()
                    .for_each(|at| world.kill_runner(at));
            }
            Action::Pause(node, hours, fate) => {
                let until =
                    if hours == 0 { u64::MAX } else { world.clock(node % nodes) + hours * HOUR };
                world.control(node % nodes, Order::Pause(until), fate)?;
            }
            Action::Resume(node, fate) => {
                let now = world.clock(node % nodes);
                world.control(node % nodes, Order::Resume(now), fate)?;
            }
            Action::Stop(node, fate) => world.control(node % nodes, Order::Stop, fate)?,
            Action::Force(node, earlier, fate) => {
                world.control(node % nodes, Order::Force { earlier }, fate)?
            }
            Action::Arrive(which) => {
                world.store.arrive(which);
                world.check()?;
            }
            Action::Pass(steps) => world.store.lock().now += steps * STEP,
            Action::Leap(node, steps) => {
                world.nodes[node % nodes].ahead = steps * STEP.cast_signed()
            }
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
