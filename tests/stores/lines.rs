//! Waiters for a lock in a store are served in the order in which they came, whatever becomes of
//! some of them, and at no cost to the rest, as `turns.rs` tests it for files. Where a test says an
//! hour between attempts, only a waiter's turn can end the waiting.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::proxy::Proxy;
use crate::support::servers::{PgBouncer, shared_mariadb, shared_postgres};
use crate::support::stores::Store;
use crate::support::{Shell, until};
use serializer::lock::register::Register;
use serializer::store::Location;
use serializer::store::address::{StoreSettings, StoreUrl};
use sha2::{Digest, Sha256};

/// A lock, and the means to see its queue.
struct Lined {
    store: Store,
    count: Box<dyn Fn() -> usize>,
    /// How many waiters have read the row since they arrived, and sleep. A waiter that reads a free
    /// row may overtake earlier waiters, if they do not take the lock in time.
    settled: Box<dyn Fn() -> usize>,
}

impl Lined {
    fn postgres() -> Self {
        let mut store = Store::at(&shared_postgres().url());
        // By this name the server knows the waiters of this lock.
        store.url = format!("{}?application_name={}", store.url, store.name);
        let queued = format!(
            "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE \
             application_name = '{}' AND locktype = 'advisory' AND mode = 'ExclusiveLock' AND \
             granted",
            store.name
        );
        let settled =
            format!("{queued} AND state = 'idle' AND query LIKE '%JOIN serializer_locks%'");
        let [count, settled] = [queued, settled].map(|statement| -> Box<dyn Fn() -> usize> {
            Box::new(move || shared_postgres().psql(&statement).trim().parse().expect("a number"))
        });
        Self { store, count, settled }
    }

    fn mysql() -> Self {
        let store = Store::at(&shared_mariadb().url());
        let hash = Sha256::digest(format!("meltano\0{}", store.name));
        let hash: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let statement = format!(
            "SELECT COUNT(*) + (IS_USED_LOCK('serializer:{hash}') IS NOT NULL) FROM \
             information_schema.processlist WHERE info LIKE 'SELECT \
             GET_LOCK(''serializer:{hash}''%'"
        );
        let count = move || shared_mariadb().sql(&statement).trim().parse().expect("a number");
        // They ask the server for their turn before they read.
        Self { store, count: Box::new(count.clone()), settled: Box::new(count) }
    }

    /// A shell that has it.
    fn holder(&self) -> Shell {
        let mut holder = self.store.shell();
        holder.lock();
        holder
    }

    /// Shells that wait, each of which came when those before it were in line. Afterwards they log
    /// their number.
    fn line(&self, count: usize) -> Vec<Shell> {
        let shells = (0..count).map(|number| {
            let mut shell = self.store.shell();
            let log = format!(r#"echo {number} >> "$SERIALIZER_DIR/order""#);
            // All kinds stand in one line.
            shell.send(&match number % 3 {
                2 => format!(r#""$S" run --sleep-seconds 3600 -c '{log}' 2> /dev/null & echo $! > pid.{number}; wait $!"#),
                _ => format!(
                    r#""$S" lock --sleep-seconds 3600 2> /dev/null & echo $! > pid.{number}; wait $! && {log} && "$S" unlock 2> /dev/null"#
                ),
            });
            until("it is in line", || (self.settled)() == number + 1);
            shell
        });
        shells.collect()
    }

    /// What waits there for one of the shells.
    fn waiter(&self, number: usize) -> u32 {
        let pid = fs::read_to_string(self.store.locks.dir().join(format!("pid.{number}")))
            .expect("it has been started");
        pid.trim().parse().expect("a pid")
    }

    fn order(&self) -> Vec<usize> {
        let text =
            fs::read_to_string(self.store.locks.dir().join("order")).expect("they have logged");
        text.lines().map(|line| line.parse().expect("a number")).collect()
    }

    /// The lock, as another program would see it.
    fn open(&self) -> Register {
        let url = StoreUrl::parse(&self.store.url).expect("an address");
        let settings = StoreSettings { url, password_file: None, timeout: Duration::from_secs(20) };
        Register::open(&Location::store(settings, self.store.name.as_ref()))
            .expect("the program was built with it")
    }
}

/// Each test for each store.
macro_rules! for_stores {
    ($($test:ident),* $(,)?) => {
        mod postgres {
            $(#[test]
            fn $test() {
                super::$test(&super::Lined::postgres());
            })*
        }
        mod mysql {
            $(#[test]
            fn $test() {
                super::$test(&super::Lined::mysql());
            })*
        }
    };
}

for_stores! {
    waiters_are_served_in_the_order_in_which_they_came,
    the_death_of_the_holder_lets_the_first_in_line_in_and_no_other,
    waiters_that_are_killed_make_room_and_change_no_order,
    a_newcomer_sees_waiters_until_they_have_left,
    a_stopped_waiter_that_is_first_does_not_keep_a_newcomer_out,
    a_stopped_waiter_that_is_first_does_not_keep_those_behind_it_out,
    a_process_that_is_in_line_gives_up_in_time,
    a_hand_off_wakes_the_same_few_however_many_wait,
}

#[test]
fn status_lists_waiters_in_turn() {
    // The first waiter in MariaDB's queue only polls now and then; in between, its connection's
    // address identifies it.
    for (url, unknown) in [(shared_postgres().url(), 0), (shared_mariadb().url(), 1)] {
        let store = Store::at(&url);
        let mut holder = store.shell();
        holder.lock();
        let waiters = || store.report()["waiters"].as_array().expect("a list").clone();
        let mut runs = Vec::new();
        for number in 1..=3 {
            let mut run = store.serializer(&["run", "sh", "-c", ":", &number.to_string(), "'*/'"]);
            runs.push(run.stderr(Stdio::null()).spawn().expect("it starts"));
            until("it is not listed", || waiters().len() == number);
        }
        let listed = waiters();
        for (number, (waiter, run)) in listed.iter().zip(&runs).enumerate().skip(unknown) {
            assert_eq!(waiter["pid"].as_u64(), Some(u64::from(run.id())), "{url}: {listed:?}");
            let command = waiter["command"].as_str().expect("a command");
            assert!(
                command.contains(&format!("run sh -c ... {} ", number + 1)),
                "{url}: {listed:?}"
            );
            assert_eq!(waiter["host"], store.holder("host"), "{url}: {listed:?}");
            assert_eq!(
                (&waiter["position"], &waiter["mode"]),
                (&(number + 1).into(), &"exclusive".into()),
                "{url}: {listed:?}"
            );
            assert!(waiter["since"].is_string(), "{url}: {listed:?}");
        }
        assert!(listed[0]["host"].is_string(), "{url}: {listed:?}");
        let table = store.run(&["status"]).stdout;
        assert!(
            table.contains("waits")
                && table.contains("1st in line")
                && table.contains("3rd in line"),
            "{table}"
        );
        holder.unlock();
        for mut run in runs {
            assert!(run.wait().expect("it ends").success());
        }
        until("somebody is listed", || waiters().is_empty());
    }
}

fn signal(name: &str, pid: u32) {
    assert!(
        Command::new("kill")
            .args(["-s", name, &pid.to_string()])
            .status()
            .expect("kill runs")
            .success()
    );
}

/// How often the threads of a process have gone to sleep.
fn sleeps(pid: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let count = |task: &Path| {
        let status = fs::read_to_string(task.join("status")).ok()?;
        status.lines().find_map(|line| {
            line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok()
        })
    };
    tasks.filter_map(|task| count(&task.ok()?.path())).sum()
}

fn waiters_are_served_in_the_order_in_which_they_came(lined: &Lined) {
    let mut holder = lined.holder();
    let mut shells = lined.line(10);
    holder.unlock();
    for shell in &mut shells {
        assert_eq!(shell.answer().0, 0);
    }
    assert_eq!(lined.order(), (0..10).collect::<Vec<_>>());
    until("nobody is in line", || (lined.count)() == 0);
}

fn the_death_of_the_holder_lets_the_first_in_line_in_and_no_other(lined: &Lined) {
    let holder = lined.holder();
    let mut shells = lined.line(4);
    holder.reap();
    for shell in &mut shells {
        assert_eq!(shell.answer().0, 0);
    }
    assert_eq!(lined.order(), [0, 1, 2, 3]);
}

fn waiters_that_are_killed_make_room_and_change_no_order(lined: &Lined) {
    let mut holder = lined.holder();
    let mut shells: Vec<_> = lined.line(9).into_iter().enumerate().collect();
    // In the middle, the last one, the first one, and the one that is the first now.
    for place in [3, 7, 0, 0, 2] {
        let (number, mut shell) = shells.remove(place);
        signal("KILL", lined.waiter(number));
        assert_eq!(shell.answer().0, 137);
    }
    holder.unlock();
    for (_, shell) in &mut shells {
        assert_eq!(shell.answer().0, 0);
    }
    assert_eq!(lined.order(), shells.iter().map(|(number, _)| *number).collect::<Vec<_>>());
    until("nobody is in line", || (lined.count)() == 0);
}

fn is_first(register: &mut Register) -> bool {
    register.queue(|queue| queue.is_first())
}

fn is_queued(register: &mut Register) -> bool {
    register.queue(|queue| queue.is_queued())
}

/// Reads the record, sleeps in the queue, and reads it again.
fn step(register: &mut Register) {
    register.load().expect("an answer");
    register.wait(false, Duration::from_millis(10), &[]).expect("it sleeps");
    register.load().expect("an answer");
}

#[test]
fn a_waiter_in_mysql_keeps_its_place_when_it_cannot_list_the_others() {
    let mut lined = Lined::mysql();
    lined.holder().unlock();
    let mut first = lined.open();
    until("it is first", || {
        step(&mut first);
        !is_queued(&mut first) && (lined.count)() == 1
    });
    let listed = |register: &mut Register| -> Vec<_> {
        let waiters = register.queue(|queue| queue.waiters());
        waiters.into_iter().map(|waiter| waiter.pid).collect()
    };
    let own = i32::try_from(std::process::id()).ok();
    assert_eq!(listed(&mut first), [own]);
    let server = shared_mariadb();
    let proxy = Proxy::to(server.address());
    lined.store.url = lined.store.url.replace(&server.host_port(), &proxy.addr().to_string());
    let mut second = lined.open();
    until("it is in line", || {
        step(&mut second);
        is_queued(&mut second) && (lined.count)() == 2
    });
    // The first one sleeps now, and its label went with its statement.
    assert_eq!(listed(&mut second), [None, own]);
    proxy.cut_before(b"SUBSTRING_INDEX");
    assert_eq!(listed(&mut second), []);
    assert!(is_queued(&mut second) && (lined.count)() == 2);
    first.queue(|queue| queue.leave());
    until("it is its turn", || {
        step(&mut second);
        is_first(&mut second)
    });
}

fn a_newcomer_sees_waiters_until_they_have_left(lined: &Lined) {
    // Makes the table.
    lined.holder().unlock();
    let (mut first, mut second, mut newcomer) = (lined.open(), lined.open(), lined.open());
    let mut newcomer_is_first = || {
        newcomer.load().expect("an answer");
        is_first(&mut newcomer)
    };
    assert!(newcomer_is_first());
    until("it is first", || {
        step(&mut first);
        !is_queued(&mut first) && (lined.count)() == 1
    });
    assert!(is_first(&mut first));
    until("it is in line", || {
        step(&mut second);
        is_queued(&mut second) && (lined.count)() == 2
    });
    assert!(!is_first(&mut second));
    assert!(!newcomer_is_first());
    first.queue(|queue| queue.leave());
    until("it is its turn", || {
        step(&mut second);
        !is_queued(&mut second)
    });
    assert!(is_first(&mut second));
    assert!(!newcomer_is_first());
    first.load().expect("an answer");
    assert!(!is_first(&mut first), "who has left is a newcomer");
    second.queue(|queue| queue.leave());
    assert!(newcomer_is_first());
}

fn a_stopped_waiter_that_is_first_does_not_keep_a_newcomer_out(lined: &Lined) {
    let mut holder = lined.holder();
    let mut shells = lined.line(1);
    signal("STOP", lined.waiter(0));
    holder.unlock();
    let mut newcomer = lined.store.shell();
    assert_eq!(newcomer.run(r#""$S" lock -n 2> /dev/null"#), 0);
    newcomer.unlock();
    signal("CONT", lined.waiter(0));
    assert_eq!(shells[0].answer().0, 0);
}

fn a_stopped_waiter_that_is_first_does_not_keep_those_behind_it_out(lined: &Lined) {
    let mut holder = lined.holder();
    let mut shells = lined.line(2);
    signal("STOP", lined.waiter(0));
    holder.unlock();
    assert_eq!(shells[1].answer().0, 0);
    signal("CONT", lined.waiter(0));
    assert_eq!(shells[0].answer().0, 0);
    assert_eq!(lined.order(), [1, 0]);
}

fn a_process_that_is_in_line_gives_up_in_time(lined: &Lined) {
    let mut holder = lined.holder();
    let mut shells = lined.line(1);
    let ended = lined.store.run(&["lock", "--timeout", "300ms", "--sleep-seconds", "3600"]);
    assert_eq!(ended.code, 75, "{ended:?}");
    holder.unlock();
    assert_eq!(shells[0].answer().0, 0);
}

fn a_hand_off_wakes_the_same_few_however_many_wait(lined: &Lined) {
    const WAITERS: usize = 30;
    const HAND_OFFS: usize = 3;
    let mut holder = lined.holder();
    let go = lined.store.locks.dir().join("go");
    assert!(Command::new("mkfifo").arg(&go).status().expect("mkfifo runs").success());
    let shells = (0..WAITERS).map(|number| {
        let mut shell = lined.store.shell();
        shell.send(&format!(
            r#""$S" lock --sleep-seconds 3600 2> /dev/null & echo $! > pid.{number}; wait $!; read -r < go; "$S" unlock 2> /dev/null"#
        ));
        until("it is in line", || (lined.settled)() == number + 1);
        shell
    });
    let _shells: Vec<Shell> = shells.collect();
    let waiters: Vec<u32> = (0..WAITERS).map(|number| lined.waiter(number)).collect();
    let before: Vec<u64> = waiters.iter().map(|pid| sleeps(*pid)).collect();
    holder.unlock();
    for had in 1..=HAND_OFFS {
        until("the next one has it", || (lined.count)() == WAITERS - had);
        if had < HAND_OFFS {
            fs::write(&go, "\n").expect("the one that has it reads");
        }
    }
    // The one that is first now may be about to go to sleep. Some may have looked by themselves, as
    // they do every 10 s.
    let others = HAND_OFFS + 1..WAITERS;
    let woken = others.clone().filter(|number| sleeps(waiters[*number]) != before[*number]).count();
    assert!(woken < others.len() / 2, "{woken} of {} who had no turn were woken", others.len());
}

#[test]
fn behind_a_pooler_every_process_is_served_in_any_order() {
    let lined = Lined::postgres();
    let pooler = PgBouncer::start(shared_postgres(), 3);
    let mut holder = lined.holder();
    let through = lined.store.through(&pooler.url());
    let mut shells: Vec<Shell> = (0..4).map(|_| through.shell()).collect();
    for shell in &mut shells {
        shell.send(r#""$S" run --sleep-seconds 1 -- true 2> /dev/null"#);
    }
    // Queued waiters do not wait for waiters that cannot queue.
    let mut first = lined.line(2);
    holder.unlock();
    for shell in first.iter_mut().chain(&mut shells) {
        assert_eq!(shell.answer().0, 0);
    }
    assert_eq!(lined.order(), [0, 1]);
}
