//! A signal that is sent to `run` alone reaches the command once, and one to the whole process
//! group once or twice, and none is lost; and a job stops and goes on as one. (Those of terminals:
//! tests/local/run_terminal.rs.)

use std::fs;
use std::io::BufReader;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use crate::support::{Locks, PROGRAM, TELLER, next_line, rounds, until};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

const SIX: [(Signal, &str); 6] = [
    (Signal::TERM, "SIGTERM"),
    (Signal::HUP, "SIGHUP"),
    (Signal::INT, "SIGINT"),
    (Signal::QUIT, "SIGQUIT"),
    (Signal::USR1, "SIGUSR1"),
    (Signal::USR2, "SIGUSR2"),
];

/// A `run` that leads a process group of its own, and its command.
struct Job {
    child: Child,
    command: Pid,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Job {
    /// Returns when the command, which begins with a line `ready PID`, runs.
    fn start(locks: &Locks, args: &[&str]) -> Self {
        let mut run = locks.command("env");
        run.args(["--default-signal", PROGRAM, "run"]).args(args);
        let mut child = run
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let stdin = child.stdin.take().expect("its stdin");
        let mut stdout = BufReader::new(child.stdout.take().expect("its output"));
        let command = line(&mut stdout)
            .strip_prefix("ready ")
            .and_then(|pid| pid.parse().ok())
            .and_then(Pid::from_raw);
        Self { child, command: command.expect("it says its PID"), stdin, stdout }
    }

    fn teller(locks: &Locks) -> Self {
        Self::start(locks, &["python3", "-c", TELLER])
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Returns when `run` has taken the signal.
    fn taken(&self, signal: Signal) {
        until("it takes the signal", || {
            let status =
                fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
            let bits = status
                .lines()
                .filter(|line| line.starts_with("SigPnd") || line.starts_with("ShdPnd"));
            let mut bits = bits.map(|line| {
                u64::from_str_radix(line.rsplit('\t').next().unwrap_or(""), 16).expect("bits")
            });
            bits.all(|bits| bits >> (signal.as_raw() - 1) & 1 == 0)
        });
    }

    /// What the command has got when `run` has done all that it does about `signal`, which was sent
    /// to it.
    fn told(&mut self, signal: Signal) -> Vec<String> {
        self.taken(signal);
        // It takes one after another.
        let (mark, name) = if signal == Signal::USR1 { SIX[5] } else { SIX[4] };
        let mut told = Vec::new();
        for _ in 0..2 {
            // Signals that arrive together are told in the order of their numbers, signals that
            // arrive meanwhile before the rest.
            until("the command has told what it has got", || state(self.command) == 'S');
            kill_process(self.pid(), mark).expect("it runs");
            loop {
                let next = line(&mut self.stdout);
                assert_ne!(next, "", "the command goes on");
                if next == name {
                    break;
                }
                told.push(next);
            }
        }
        told
    }

    fn end(mut self) -> i32 {
        drop(self.stdin);
        assert_eq!(line(&mut self.stdout), "end");
        self.child.wait().expect("it ends").code().expect("an exit code")
    }
}

fn line(from: &mut BufReader<ChildStdout>) -> String {
    next_line(from).trim_end().to_owned()
}

fn state(pid: Pid) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    stat.rsplit_once(") ").expect("a state").1.chars().next().expect("a state")
}

#[test]
fn a_signal_to_run_alone_reaches_the_command_once() {
    let locks = Locks::new();
    let mut job = Job::teller(&locks);
    for _ in 0..rounds(5) {
        for (signal, name) in SIX {
            kill_process(job.pid(), signal).expect("it runs");
            assert_eq!(job.told(signal), [name]);
        }
    }
    assert_eq!(job.end(), 0);
    assert_eq!(locks.names(), Vec::<String>::new());
}

#[test]
fn signals_to_all_reach_the_command_and_those_to_run_alone_once_in_any_order() {
    let locks = Locks::new();
    let mut job = Job::teller(&locks);
    for round in 0..rounds(100) {
        for (signal, name) in SIX {
            if round % 2 == 0 {
                kill_process_group(job.pid(), signal).expect("it runs");
                let told = job.told(signal);
                assert!(is_once_or_twice(&told, name), "to all: {name}, {told:?}");
            }
            kill_process(job.pid(), signal).expect("it runs");
            assert_eq!(job.told(signal), [name], "to one");
        }
    }
    assert_eq!(job.end(), 0);
}

fn is_once_or_twice(told: &[String], name: &str) -> bool {
    (1..=2).contains(&told.len()) && told.iter().all(|one| one == name)
}

#[test]
fn signals_to_the_group_that_come_together_all_reach_the_command() {
    let locks = Locks::new();
    let mut job = Job::teller(&locks);
    for _ in 0..rounds(50) {
        for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
            kill_process_group(job.pid(), signal).expect("it runs");
        }
        for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
            job.taken(signal);
        }
        let mut told = job.told(Signal::TERM);
        assert!(told.len() <= 6, "{told:?}");
        told.sort();
        told.dedup();
        assert_eq!(told, ["SIGHUP", "SIGINT", "SIGTERM"]);
    }
    assert_eq!(job.end(), 0);
}

#[test]
fn the_signal_that_ends_the_command_is_its_exit_code_and_the_lock_is_released() {
    let locks = Locks::new();
    for to_all in [false, true] {
        let mut job = Job::start(&locks, &["bash", "-c", "echo ready $$; exec cat"]);
        let kill = if to_all { kill_process_group } else { kill_process };
        kill(job.pid(), Signal::TERM).expect("it runs");
        assert_eq!(job.child.wait().expect("it ends").code(), Some(143), "to all: {to_all}");
        assert_eq!(locks.names(), Vec::<String>::new());
    }
}

#[test]
fn a_command_that_cleans_up_is_waited_for() {
    let locks = Locks::new();
    // Not a trap of bash, which does not run for a signal that comes just before a read begins.
    let script = r#"
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.write(1, b"ready %d\n" % os.getpid())
signal.sigwait([signal.SIGTERM])
os.system('"$S" status --json | grep "\"state\""')
os._exit(5)
"#;
    let mut job = Job::start(&locks, &["python3", "-c", script]);
    kill_process(job.pid(), Signal::TERM).expect("it runs");
    assert_eq!(line(&mut job.stdout).trim(), r#""state": "held","#);
    assert_eq!(job.child.wait().expect("it ends").code(), Some(5));
}

#[test]
fn a_stop_that_is_sent_to_run_alone_stops_the_job_and_its_end_lets_it_go_on() {
    let locks = Locks::new();
    for signal in [Signal::TSTP, Signal::TTIN, Signal::TTOU] {
        let mut job = Job::teller(&locks);
        for _ in 0..rounds(3) {
            kill_process(job.pid(), signal).expect("it runs");
            until("the command stops", || state(job.command) == 'T');
            until("run stops", || state(job.pid()) == 'T');
            kill_process(job.pid(), Signal::CONT).expect("it runs");
            assert_eq!(line(&mut job.stdout), "SIGCONT");
            assert_eq!(job.told(Signal::CONT), Vec::<String>::new(), "once");
        }
        assert_eq!(job.end(), 0);
    }
}

#[test]
fn a_stop_of_the_group_that_is_taken_back_at_once_leaves_no_process_behind() {
    let locks = Locks::new();
    let mut job = Job::teller(&locks);
    for _ in 0..rounds(200) {
        kill_process_group(job.pid(), Signal::TSTP).expect("it runs");
        kill_process_group(job.pid(), Signal::CONT).expect("it runs");
        until("run goes on", || state(job.pid()) != 'T');
        // Both count as one or two, if the second comes before the first is dealt with.
        job.taken(Signal::CONT);
        until("the command goes on", || state(job.command) != 'T');
        let told = job.told(Signal::TSTP);
        assert!(is_once_or_twice(&told, "SIGCONT"), "{told:?}");
    }
    assert_eq!(job.end(), 0);
}

#[test]
fn a_command_that_others_stop_and_let_go_on_is_waited_for() {
    let locks = Locks::new();
    // A session without another process has no watcher of its jobs.
    let mut run = locks.command("setsid");
    run.args(["env", "--default-signal", PROGRAM, "run", "python3", "-c", TELLER]);
    let mut child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut stdout = BufReader::new(child.stdout.take().expect("its output"));
    let ready = line(&mut stdout);
    let command =
        Pid::from_raw(ready.trim_start_matches("ready ").parse().expect("a PID")).expect("a PID");
    for _ in 0..rounds(20) {
        kill_process(command, Signal::STOP).expect("it runs");
        until("the command stops", || state(command) == 'T');
        kill_process(command, Signal::CONT).expect("it runs");
        assert_eq!(line(&mut stdout), "SIGCONT");
    }
    drop(child.stdin.take());
    assert_eq!(line(&mut stdout), "end");
    until("it ends", || {
        child.try_wait().expect("it can be asked").is_some_and(|status| status.success())
    });
}

#[test]
fn a_signal_to_the_group_reaches_a_command_that_has_made_one_of_its_own() {
    let locks = Locks::new();
    let leaver = format!("import os\nos.setpgid(0, 0)\n{TELLER}");
    let mut job = Job::start(&locks, &["python3", "-c", &leaver]);
    for (signal, name) in SIX {
        kill_process_group(job.pid(), signal).expect("it runs");
        assert_eq!(job.told(signal), [name]);
    }
    assert_eq!(job.end(), 0);
}
