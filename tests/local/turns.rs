//! Waiters are served in the order in which they came, whatever becomes of some of them, and at no
//! cost to the rest. Where a test says an hour between attempts, only a waiter's turn can end the
//! waiting.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{Ended, Locks, Shell, Waiter, ended, until};

/// Locks, waiting for it, and says nothing.
const LOCK: &str = r#""$S" lock --sleep-seconds 3600 2> /dev/null"#;

/// Shells that wait, each of which came when those before it were in line. Afterwards they log
/// their number.
fn line(locks: &Locks, count: usize) -> Vec<Shell> {
    let shells = (0..count).map(|number| {
        let mut shell = Shell::start(locks);
        let log = format!(r#"echo {number} >> "$SERIALIZER_DIR/order""#);
        // All kinds stand in one line.
        match number % 3 {
            2 => shell.send(&format!(r#""$S" run --sleep-seconds 3600 -c '{log}' 2> /dev/null"#)),
            _ => shell.send(&format!(r#"{LOCK} && {log} && "$S" unlock 2> /dev/null"#)),
        }
        until("it is in line", || locks.pids("waiters").len() == number + 1);
        shell
    });
    shells.collect()
}

fn order(locks: &Locks) -> Vec<usize> {
    let text = fs::read_to_string(locks.dir().join("order")).expect("they have logged");
    text.lines().map(|line| line.parse().expect("a number")).collect()
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

/// Returns when the signal has been heard: no thread of it runs any more.
fn stop(pid: u32) {
    signal("STOP", pid);
    let is_stopped =
        |task: &Path| fs::read_to_string(task.join("stat")).is_ok_and(|stat| stat.contains(") T "));
    until("it is stopped", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
        tasks.map(|task| task.expect("a thread").path()).all(|task| is_stopped(&task))
    });
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

#[test]
fn waiters_are_served_in_the_order_in_which_they_came() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let mut shells = line(&locks, 10);
    holder.unlock();
    for shell in &mut shells {
        assert_eq!(shell.answer().0, 0);
    }
    assert_eq!(order(&locks), (0..10).collect::<Vec<_>>());
    assert_eq!(locks.names(), ["order"], "nothing else is left behind");
}

#[test]
fn the_death_of_the_holder_lets_the_first_in_line_in_and_no_other() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let mut shells = line(&locks, 5);
    holder.reap();
    for shell in &mut shells {
        assert_eq!(shell.answer().0, 0);
    }
    assert_eq!(order(&locks), [0, 1, 2, 3, 4]);
    assert_eq!(locks.names(), ["order"]);
}

#[test]
fn waiters_that_are_killed_make_room_and_change_no_order() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let mut shells = line(&locks, 9);
    let mut waiters = locks.pids("waiters");
    let mut numbers: Vec<usize> = (0..9).collect();
    // In the middle, the last one, the first one, and the one that is the first now.
    for place in [3, 7, 0, 0, 2] {
        signal("KILL", waiters.remove(place));
        assert_eq!(shells.remove(place).answer().0, 137);
        numbers.remove(place);
        // The one behind it asks again for its place, which takes a moment.
        until("the others are in line", || locks.pids("waiters") == waiters);
    }
    holder.unlock();
    for shell in &mut shells {
        assert_eq!(shell.answer().0, 0);
    }
    assert_eq!(order(&locks), numbers);
    assert_eq!(locks.names(), ["order"]);
}

#[test]
fn a_newcomer_leaves_what_is_free_to_waiters() {
    const ROUNDS: usize = 5;
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    // It needs a tenth of a second for its last step: long enough for a newcomer to see that the
    // lock is free.
    let slow = "strace -D -qq -o /dev/null -e trace=linkat -e inject=linkat:delay_enter=100000";
    for _ in 0..ROUNDS {
        holder.lock();
        let mut first = Shell::start(&locks);
        first.send(&format!(
            r#"{slow} {LOCK} && echo 0 >> "$SERIALIZER_DIR/order" && "$S" unlock 2> /dev/null"#
        ));
        until("it is first", || locks.pids("waiters").len() == 1);
        // The previous holder comes again at once.
        let again =
            format!(r#""$S" unlock 2> /dev/null; {LOCK} && echo 1 >> "$SERIALIZER_DIR/order""#);
        assert_eq!(holder.run(&again), 0);
        holder.unlock();
        assert_eq!(first.answer().0, 0);
    }
    // On a very busy machine the first one may take so long that it is not waited for.
    let order = order(&locks);
    assert!(order.chunks(2).any(|round| round == [0, 1]), "{order:?}");
}

#[test]
fn a_stopped_waiter_that_is_first_does_not_keep_a_newcomer_out() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let mut shells = line(&locks, 1);
    let first = locks.pids("waiters")[0];
    stop(first);
    holder.unlock();
    let mut newcomer = Shell::start(&locks);
    assert_eq!(newcomer.run(r#""$S" lock -n 2> /dev/null"#), 0);
    assert_eq!(locks.pids("waiters"), [first], "it waits for nobody");
    newcomer.unlock();
    signal("CONT", first);
    assert_eq!(shells[0].answer().0, 0);
    assert_eq!(locks.names(), ["order"]);
}

#[test]
fn a_stopped_waiter_that_is_first_does_not_keep_those_behind_it_out() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let mut shells = line(&locks, 2);
    let first = locks.pids("waiters")[0];
    stop(first);
    holder.unlock();
    assert_eq!(shells[1].answer().0, 0);
    signal("CONT", first);
    assert_eq!(shells[0].answer().0, 0);
    assert_eq!(order(&locks), [1, 0]);
    assert_eq!(locks.names(), ["order"]);
}

#[test]
fn an_owner_that_locks_again_does_not_wait_behind_others() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let mut shells = line(&locks, 2);
    // It would wait for ever: the waiters behind it wait for it.
    let (code, output) = holder.output(&format!("{} 2>&1", LOCK.replace(" 2> /dev/null", "")));
    assert_eq!((code, output.contains("already locked")), (0, true), "{output}");
    holder.unlock();
    for shell in &mut shells {
        assert_eq!(shell.answer().0, 0);
    }
}

#[test]
fn a_hand_off_wakes_the_same_few_however_many_wait() {
    const WAITERS: usize = 30;
    const HAND_OFFS: usize = 5;
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let mut shells: Vec<Shell> = (0..WAITERS).map(|_| Shell::start(&locks)).collect();
    for shell in &mut shells {
        shell.send(&format!(
            "{LOCK} && read -r < \"$SERIALIZER_DIR/go\"; \"$S\" unlock 2> /dev/null"
        ));
    }
    until("all are in line", || locks.pids("waiters").len() == WAITERS);
    assert!(
        Command::new("mkfifo").arg(locks.dir().join("go")).status().expect("mkfifo runs").success()
    );
    let waiters = locks.pids("waiters");
    for waiter in &waiters {
        let thread = format!("/proc/{waiter}/wchan");
        until("it sleeps", || {
            fs::read_to_string(&thread).is_ok_and(|wchan| wchan.starts_with("poll"))
        });
    }
    let before: Vec<u64> = waiters.iter().map(|pid| sleeps(*pid)).collect();
    holder.unlock();
    for had in 1..=HAND_OFFS {
        until("the next one has it", || locks.pids("waiters").as_slice() == &waiters[had..]);
        if had < HAND_OFFS {
            fs::write(locks.dir().join("go"), "\n").expect("the one that has it reads");
        }
    }
    // The one that is first now may be about to go to sleep. Some may have looked by themselves, as
    // they do every 10 s.
    let others = HAND_OFFS + 1..WAITERS;
    let woken = others.clone().filter(|number| sleeps(waiters[*number]) != before[*number]).count();
    assert!(woken < others.len() / 2, "{woken} of {} who had no turn were woken", others.len());
}

#[test]
fn status_lists_waiters_in_turn() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let shells = line(&locks, 3);
    let report = locks.report();
    let waiters = report["waiters"].as_array().expect("a list");
    assert_eq!(waiters.len(), 3, "{report}");
    let table = locks.run(&["status", "serializer.lck"]).stdout;
    let rows: Vec<&str> = table.lines().skip(3).collect();
    let places = ["1st in line", "2nd in line", "3rd in line"];
    for (number, shell) in shells.iter().enumerate() {
        let pid = waiters[number]["pid"].as_u64().expect("a pid");
        let parent = Command::new("ps")
            .args(["-o", "ppid=", "-p", &pid.to_string()])
            .output()
            .expect("ps runs")
            .stdout;
        assert_eq!(
            String::from_utf8_lossy(&parent).trim(),
            shell.pid().to_string(),
            "the one that came as number {number}"
        );
        // What people know of a `lock` is what it was started by.
        let known = if number == 2 { "serializer run " } else { "bash -c " };
        assert!(
            waiters[number]["command"].as_str().is_some_and(|command| command.starts_with(known)),
            "{report}"
        );
        assert!(
            rows[number].contains(" waits ") && rows[number].contains(&format!(" {pid} ")),
            "{table}"
        );
        assert!(rows[number].ends_with(&format!("  {}", places[number])), "{table}");
    }
    assert_eq!(locks.pids("holders"), [holder.pid()]);
}

/// Reports the attempts.
const DEBUG: &str = "--log-level=debug";

/// A first waiter, and a command behind it.
fn behind_another(args: &[&str]) -> (Locks, Ended) {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let _first = line(&locks, 1);
    let first = locks.pids("waiters");
    let ended = ended(&mut locks.serializer(&[&["lock"], args].concat()));
    assert_eq!(locks.pids("waiters"), first, "it waits no more");
    assert_eq!(locks.pids("holders"), [holder.pid()]);
    (locks, ended)
}

#[test]
fn a_process_that_is_in_line_gives_up_after_its_attempts() {
    for (attempts, sleep) in
        [("1", "3600"), ("2", "0.05"), ("7", "0.02"), ("5", "0"), ("100", "0.001")]
    {
        let (_locks, ended) =
            behind_another(&["--max-attempts", attempts, "--sleep-seconds", sleep, DEBUG]);
        assert_eq!(ended.code, 75, "{ended:?}");
        assert!(
            ended.stderr.contains(&format!("gave up, attempts: {attempts}\n")),
            "{attempts}, {sleep}: {ended:?}"
        );
        assert!(ended.last_line().contains(" by pid "), "{ended:?}");
    }
}

#[test]
fn a_process_that_is_in_line_gives_up_after_its_time() {
    let (_locks, ended) = behind_another(&["--timeout", "100ms", "--sleep-seconds", "3600"]);
    assert_eq!(ended.code, 75, "{ended:?}");
    assert!(ended.stderr.contains("waiting for"), "{ended:?}");
}

#[test]
fn a_process_that_is_in_line_leaves_when_no_process_wants_the_lock_any_more() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let mut shells = line(&locks, 1);
    let first = locks.pids("waiters");
    let mut parent = locks.command("bash");
    parent.args(["-c", r#""$S" lock --sleep-seconds 3600; echo not reached"#]);
    let mut parent = Waiter::start(parent);
    until("it is in line", || locks.pids("waiters").len() == 2);
    parent.kill();
    let ended = parent.end();
    assert!(ended.last_line().contains("the process it was for has exited"), "{ended:?}");
    assert_eq!(locks.pids("waiters"), first);
    holder.unlock();
    assert_eq!(shells[0].answer().0, 0);
    assert_eq!(locks.names(), ["order"]);
}
