//! The snippets of `docs/recipes.md`, run as they stand there by their real interpreter: a shell,
//! make, or `/bin/sh -c` with cron's environment. A stand-in replaces each command that they start
//! (dbt, node, a script) and waits to be released, so overlaps are certain. The comment `<!--
//! recipe: NAME -->` in front of a snippet names it.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::{Ended, Locks, PROGRAM, Waiter, ended, until};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const RECIPES: &str = include_str!("../../docs/recipes.md");

/// Says that it has begun, waits for the exit code that it is to have, and says that it ends.
const STAND_IN: &str = r#"#!/bin/sh
case "$1" in deps) exit ;; esac
mkfifo "$WORK/gate.$$"
echo "in $$ ${0##*/} $*" >> "$WORK/log"
read -r code < "$WORK/gate.$$"
echo "out $$ ${0##*/} $*" >> "$WORK/log"
exit "$code"
"#;

/// Name and text of each snippet that is marked.
fn recipes() -> Vec<(&'static str, &'static str)> {
    let marked = RECIPES.split("<!-- recipe: ").skip(1);
    let parse = |rest: &'static str| {
        let (name, rest) = rest.split_once(" -->\n```")?;
        let (_language, rest) = rest.split_once('\n')?;
        Some((name, rest.split_once("```")?.0))
    };
    marked.map(|rest| parse(rest).expect("a snippet stands behind its name")).collect()
}

fn recipe(name: &str) -> &'static str {
    recipes()
        .into_iter()
        .find(|(other, _)| *other == name)
        .unwrap_or_else(|| panic!("no recipe {name}"))
        .1
}

/// The commands of a crontab, as cron hands them to the shell.
fn crontab(name: &str) -> Vec<String> {
    let lines = recipe(name)
        .lines()
        .filter(|line| line.starts_with(|c: char| c == '*' || c.is_ascii_digit()));
    let command = |line: &str| {
        let mut fields = line.splitn(6, ' ').map(str::trim_start);
        let command = fields.nth(5).expect("five fields and a command").to_owned();
        assert!(!command.replace(r"\%", "").contains('%'), "{command}");
        command.replace(r"\%", "%")
    };
    lines.map(command).collect()
}

/// A directory to work in, stand-ins, and locks.
struct Site {
    locks: Locks,
    work: TempDir,
}

impl Site {
    fn new() -> Self {
        let site = Self {
            locks: Locks::new(),
            work: TempDir::with_prefix("serializer-recipes-").expect("a directory"),
        };
        fs::create_dir(site.path().join("bin")).expect("a directory for programs");
        symlink(PROGRAM, site.path().join("bin/serializer")).expect("a link");
        for name in ["bin/dbt", "bin/node", "bin/meltano", "bin/pipelinewise"] {
            site.stand_in(name);
        }
        for name in ["sync.sh", "report.sh", "dump.sh", "refresh-cache.sh", "cleanup.sh"] {
            site.stand_in(name);
        }
        site
    }

    fn path(&self) -> &Path {
        self.work.path()
    }

    /// Written by another process: while this one had it open for writing, a child of another test
    /// could inherit that, and the text file would be busy.
    fn stand_in(&self, name: &str) {
        let write = r#"printf %s "$1" > "$2" && chmod +x "$2""#;
        let status = Command::new("sh")
            .args(["-c", write, "sh", STAND_IN])
            .arg(self.path().join(name))
            .status();
        assert!(status.expect("sh runs").success());
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = self.locks.command(program);
        let path = std::env::var("PATH").expect("PATH is UTF-8");
        command
            .env("PATH", format!("{}/bin:{path}", self.path().display()))
            .env("WORK", self.path());
        command.args(args).current_dir(self.path());
        command
    }

    /// A script by `sh`, and its arguments.
    fn script(&self, script: &str, args: &[&str]) -> Command {
        let mut command = self.command("sh", &["-c", script]);
        if !args.is_empty() {
            command.arg("script").args(args);
        }
        command
    }

    /// A line of a crontab, with cron's environment and no more; `PATH` is set in the crontab.
    fn cron(&self, line: &str) -> Command {
        let mut command = self.command("/bin/sh", &["-c", line]);
        command.env("HOME", self.path()).env("LOGNAME", "etl").env("SHELL", "/bin/sh");
        command
    }

    /// What was said, a line each without the PID.
    fn log(&self) -> Vec<String> {
        let words = |line: &str| line.splitn(3, ' ').map(str::to_owned).collect::<Vec<_>>();
        self.lines()
            .iter()
            .map(|line| words(line))
            .map(|words| format!("{} {}", words[0], words[2].trim_end()))
            .collect()
    }

    fn lines(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path().join("log")).unwrap_or_default();
        // The last line may be on its way.
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        whole.lines().map(str::to_owned).collect()
    }

    /// The PIDs of those that are at work.
    fn at_work(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        for line in self.lines() {
            let mut words = line.split(' ');
            let (what, pid) =
                (words.next(), words.next().and_then(|pid| pid.parse().ok()).expect("a PID"));
            if what == Some("in") { pids.push(pid) } else { pids.retain(|other| *other != pid) }
        }
        pids
    }

    fn until_at_work(&self, number: usize) -> Vec<i32> {
        until(&format!("{number} at work: {:?}", self.log()), || self.at_work().len() == number);
        self.at_work()
    }

    /// Lets one end with an exit code.
    fn let_go(&self, pid: i32, code: u8) {
        fs::write(self.path().join(format!("gate.{pid}")), format!("{code}\n"))
            .expect("it waits for its code");
    }

    fn status(&self, lock: &str) -> serde_json::Value {
        let ended = ended(&mut self.command("serializer", &["status", "--json", lock]));
        let mut report: serde_json::Value =
            serde_json::from_str(&ended.stdout).expect("status prints JSON");
        report["locks"][0].take()
    }

    fn until_waiting(&self, lock: &str, number: usize) {
        until(&format!("{number} wait for {lock}"), || {
            self.status(lock)["waiters"].as_array().is_some_and(|waiters| waiters.len() == number)
        });
    }

    /// Lets all go that come to work, until all jobs have ended well; tells how many were at work
    /// at the same time at most.
    fn drive(&self, jobs: &mut [Job]) -> usize {
        let mut let_go = HashSet::new();
        until("the jobs end", || {
            for pid in self.at_work() {
                if let_go.insert(pid) {
                    self.let_go(pid, 0);
                }
            }
            jobs.iter_mut().all(Job::has_ended)
        });
        for job in jobs {
            assert_eq!(job.end(), 0, "{:?}", self.log());
        }
        let mut at_work = 0;
        let counts = self.log().into_iter().map(|line| {
            if line.starts_with("in") {
                at_work += 1
            } else {
                at_work -= 1
            }
            at_work
        });
        counts.max().unwrap_or(0)
    }

    /// Starts one, then the other, which must wait for `lock`; lets both end, and tells what they
    /// did.
    fn take_turns(&self, one: Command, other: Command, lock: &str) -> Vec<String> {
        let one = Job::start(one);
        self.until_at_work(1);
        let other = Job::start(other);
        self.until_waiting(lock, 1);
        assert_eq!(self.at_work().len(), 1);
        assert_eq!(self.drive(&mut [one, other]), 1);
        assert_eq!(self.status(lock)["state"], "free");
        self.log()
    }
}

impl Drop for Site {
    /// A failed test releases the stand-ins that still wait at a gate.
    fn drop(&mut self) {
        for entry in fs::read_dir(self.path()).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("gate.") {
                let no_wait = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
                let _ = fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(no_wait)
                    .open(entry.path());
            }
        }
    }
}

/// Something that runs; killed when dropped.
struct Job {
    child: Child,
}

impl Job {
    fn start(mut command: Command) -> Self {
        Self {
            child: command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"),
        }
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it can be asked").is_some()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Its exit code, when it has ended.
    fn end(&mut self) -> i32 {
        let status = self.child.wait().expect("it ends");
        status.code().or(status.signal().map(|signal| 128 + signal)).expect("an exit code")
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command that must not come to work, where it would stay.
fn ends_by_itself(command: &mut Command) -> Ended {
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    until("it ends without having come to work", || {
        child.try_wait().expect("it can be asked").is_some()
    });
    Ended::from(child.wait_with_output().expect("it has ended"))
}

/// `command` while another one is at work, which goes on until after it.
fn while_busy(site: &Site, holder: Command, command: &mut Command) -> Ended {
    let mut holder = Job::start(holder);
    let pid = site.until_at_work(1)[0];
    let ended = ends_by_itself(command);
    assert_eq!(site.log().len(), 1, "it did not come to work: {:?}", site.log());
    site.let_go(pid, 0);
    assert_eq!(holder.end(), 0);
    ended
}

#[test]
fn every_marked_snippet_is_tried_here() {
    let source = include_str!("recipes.rs");
    for (name, _) in recipes() {
        let is_tried = ["recipe", "crontab"]
            .iter()
            .any(|function| source.contains(&format!("{function}(\"{name}\")")));
        assert!(is_tried, "no test runs {name}");
    }
}

#[test]
fn scripts_with_run_take_turns_at_the_step_that_it_is_for() {
    let site = Site::new();
    let script = recipe("script-run");
    let log = site.take_turns(site.script(script, &[]), site.script(script, &[]), "warehouse.lck");
    assert_eq!(log, ["in dbt run", "out dbt run", "in dbt run", "out dbt run"]);
}

#[test]
fn scripts_that_lock_and_unlock_take_turns_with_all_their_steps() {
    let site = Site::new();
    let script = recipe("script-lock");
    let log = site.take_turns(site.script(script, &[]), site.script(script, &[]), "warehouse.lck");
    let once = ["in dbt run", "out dbt run", "in dbt test", "out dbt test"];
    assert_eq!(log, [once, once].concat());
}

#[test]
fn the_lock_of_a_script_that_fails_or_is_killed_is_taken_over() {
    let site = Site::new();
    let script = || site.script(recipe("script-lock"), &[]);
    let mut failing = Job::start(script());
    let pid = site.until_at_work(1)[0];
    site.let_go(pid, 3);
    assert_eq!(failing.end(), 3);
    assert_eq!(site.status("warehouse.lck")["state"], "stale");

    let killed = Job::start(script());
    let left = site.until_at_work(1)[0];
    killed.signal(Signal::KILL);
    let mut next = [Job::start(script())];
    site.until_at_work(2);
    assert!(next[0].child.try_wait().expect("it can be asked").is_none());
    site.let_go(left, 0);
    until("what was left ends", || !site.at_work().contains(&left));
    site.drive(&mut next);
}

#[test]
fn a_cron_job_that_still_runs_is_not_started_again() {
    let site = Site::new();
    let line = &crontab("crontab")[0];
    let ended = while_busy(&site, site.cron(line), &mut site.cron(line));
    assert_eq!(ended.code, 75, "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
}

#[test]
fn cron_jobs_wait_for_each_other_and_say_nothing_about_it() {
    let site = Site::new();
    let line = &crontab("crontab")[1];
    let mut other = site.cron(line);
    let mut holder = Job::start(site.cron(line));
    let pid = site.until_at_work(1)[0];
    let waiter = other.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    site.until_waiting("warehouse.lck", 1);
    site.let_go(pid, 0);
    assert_eq!(holder.end(), 0);
    let pid = site.until_at_work(1)[0];
    site.let_go(pid, 0);
    let ended = Ended::from(waiter.wait_with_output().expect("it ends"));
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (0, "", ""));
}

#[test]
fn cron_sends_mail_about_a_job_that_has_failed_and_not_about_one_that_was_skipped() {
    let site = Site::new();
    let line = &crontab("crontab")[2];
    let ended = while_busy(&site, site.cron(line), &mut site.cron(line));
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (0, "", ""));
    let log = fs::read_to_string(site.path().join("report.log")).expect("the log");
    assert!(log.contains("held by pid"), "{log}");

    let failing = site.cron(line).stdout(Stdio::piped()).spawn().expect("it starts");
    let pid = site.until_at_work(1)[0];
    site.let_go(pid, 1);
    let ended = Ended::from(failing.wait_with_output().expect("it ends"));
    assert!(!ended.stdout.is_empty(), "that is what cron mails");
}

#[test]
fn a_percent_sign_in_a_crontab_is_escaped() {
    let site = Site::new();
    let line = &crontab("crontab")[3];
    assert!(recipe("crontab").contains(r"date +\%F"));
    assert_eq!(site.drive(&mut [Job::start(site.cron(line))]), 1);
    let names = fs::read_dir(site.path())
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name());
    assert!(
        names
            .map(|name| name.to_string_lossy().into_owned())
            .any(|name| name.starts_with("dump-20"))
    );
}

#[test]
fn a_crontab_is_switched_from_flock_by_a_word() {
    let site = Site::new();
    let (before, after) = (&crontab("crontab-before")[0], &crontab("crontab-after")[0]);
    assert_eq!(&before.replace("flock", "serializer flock"), after);
    // In a directory of our own.
    let here = |line: &str| line.replace("/tmp/", &format!("{}/", site.path().display()));
    let (before, after) = (here(before), here(after));
    let ended = while_busy(&site, site.cron(&before), &mut site.cron(&before));
    assert_eq!((ended.code, ended.stderr.as_str()), (1, ""));
    fs::remove_file(site.path().join("log")).expect("a new log");

    // What flock has left there is old enough not to be a file that is just being written.
    let touched = Command::new("touch")
        .args(["-d", "1 minute ago"])
        .arg(site.path().join("sync.lock"))
        .status();
    assert!(touched.expect("touch runs").success());
    let ended = while_busy(&site, site.cron(&after), &mut site.cron(&after));
    assert_eq!((ended.code, ended.stderr.as_str()), (1, ""), "as silent as before");
}

#[test]
fn targets_of_a_parallel_make_take_turns() {
    let site = Site::new();
    fs::write(site.path().join("Makefile"), recipe("makefile")).expect("a makefile");
    let job = Job::start(site.command("make", &["-j2"]));
    site.until_at_work(1);
    site.until_waiting("warehouse.lck", 1);
    assert_eq!(site.drive(&mut [job]), 1);
    let mut log = site.log();
    log.sort();
    let selected = ["dbt run --select customers", "dbt run --select orders"];
    assert_eq!(
        log,
        ["in", "out"].map(|what| selected.map(|command| format!("{what} {command}"))).concat()
    );
}

#[test]
fn targets_of_a_parallel_make_take_turns_with_all_their_lines() {
    let site = Site::new();
    fs::write(site.path().join("Makefile"), recipe("makefile-oneshell")).expect("a makefile");
    let job = Job::start(site.command("make", &["-j2"]));
    site.until_at_work(1);
    site.until_waiting("warehouse.lck", 1);
    assert_eq!(site.drive(&mut [job]), 1);
    let log = site.log();
    assert_eq!(log.len(), 8);
    for target in log.chunks(4) {
        let name = target[0].rsplit(' ').next().expect("a name");
        let lines = ["in dbt run", "out dbt run", "in dbt test", "out dbt test"];
        assert_eq!(target, lines.map(|line| format!("{line} --select {name}")));
    }
}

#[test]
fn a_line_that_fails_ends_the_make_and_leaves_a_stale_lock() {
    let site = Site::new();
    fs::write(site.path().join("Makefile"), recipe("makefile-oneshell")).expect("a makefile");
    let mut job = Job::start(site.command("make", &["orders"]));
    let pid = site.until_at_work(1)[0];
    site.let_go(pid, 1);
    assert_eq!(job.end(), 2);
    assert_eq!(site.log(), ["in dbt run --select orders", "out dbt run --select orders"]);
    assert_eq!(site.status("warehouse.lck")["state"], "stale");
}

#[test]
fn two_makes_of_one_tree_take_turns() {
    let site = Site::new();
    fs::write(site.path().join("Makefile"), "all:\n\tdbt run\n").expect("a makefile");
    let make = || site.script(recipe("make-tree"), &[]);
    let lock = site.path().join(".build.lck");
    site.take_turns(make(), make(), lock.to_str().expect("UTF-8"));
}

/// A script of the `package.json`. npm runs it like that.
fn npm_script(site: &Site, name: &str) -> Command {
    let package: serde_json::Value =
        serde_json::from_str(recipe("package.json")).expect("it is JSON");
    site.script(package["scripts"][name].as_str().expect("a script"), &[])
}

#[test]
fn npm_scripts_take_turns() {
    let site = Site::new();
    let log = site.take_turns(npm_script(&site, "deploy"), npm_script(&site, "release"), "d.lck");
    let steps = ["deploy.js", "build.js", "deploy.js"]
        .map(|step| [format!("in node {step}"), format!("out node {step}")]);
    assert_eq!(log, steps.concat());
}

#[test]
fn an_npm_script_that_does_nothing_but_lock_is_refused() {
    let site = Site::new();
    let ended = ended(&mut site.script("serializer lock --file-name deploy.lck", &[]));
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.last_line().contains("only runs this command"), "{ended:?}");
}

#[test]
fn a_signal_to_what_a_scheduler_has_started_reaches_the_command() {
    for script in [recipe("cronicle"), recipe("pipelinewise")] {
        let site = Site::new();
        let mut job = Job::start(site.script(script, &["tap", "target"]));
        site.until_at_work(1);
        job.signal(Signal::TERM);
        assert_eq!(job.end(), 143);
        assert_eq!(site.log().len(), 1, "it has not ended by itself");
        assert_eq!(site.locks.names(), [""; 0], "no lock is left");
    }
    let site = Site::new();
    let mut job = Job::start(npm_script(&site, "deploy"));
    site.until_at_work(1);
    job.signal(Signal::TERM);
    assert_eq!(job.end(), 143);
}

#[test]
fn one_tap_runs_once_at_a_time_and_others_beside_it() {
    let site = Site::new();
    let tap = |tap: &str| {
        let mut command = site.script(recipe("pipelinewise-tap"), &[]);
        command.env("tap", tap).env("target", "warehouse");
        Job::start(command)
    };
    let mut jobs = vec![tap("orders")];
    site.until_at_work(1);
    jobs.push(tap("orders"));
    site.until_waiting("orders.lck", 1);
    jobs.push(tap("customers"));
    site.until_at_work(2);
    assert_eq!(site.drive(&mut jobs), 2);
}

#[test]
fn three_taps_at_most_load_one_warehouse() {
    let site = Site::new();
    let tap = |tap: &str| {
        let mut command = site.script(recipe("pipelinewise-slots"), &[]);
        command.env("tap", tap).env("target", "warehouse");
        Job::start(command)
    };
    let mut jobs: Vec<_> = ["a", "b", "c"].into_iter().map(tap).collect();
    site.until_at_work(3);
    jobs.push(tap("d"));
    site.until_waiting("warehouse.slots.lck", 1);
    assert_eq!(site.drive(&mut jobs), 3);
    assert_eq!(site.log().len(), 8);
}

#[test]
fn a_second_run_of_a_tap_does_not_wait_in_a_slot() {
    let site = Site::new();
    let tap = |tap: &str| Job::start(site.script(recipe("pipelinewise"), &[tap, "warehouse"]));
    let mut jobs = vec![tap("a")];
    site.until_at_work(1);
    jobs.push(tap("a"));
    site.until_waiting("a.lck", 1);
    jobs.extend([tap("b"), tap("c")]);
    site.until_at_work(3);
    jobs.push(tap("d"));
    site.until_waiting("warehouse.slots.lck", 1);
    assert_eq!(site.drive(&mut jobs), 3);
    assert_eq!(site.log().len(), 10);
}

#[test]
fn a_nightly_run_is_not_started_twice() {
    let site = Site::new();
    let night = || site.script(recipe("meltano"), &[]);
    assert_eq!(while_busy(&site, night(), &mut night()).code, 75);
}

#[test]
fn readers_run_beside_each_other_and_never_beside_a_writer() {
    let site = Site::new();
    let (read, write) =
        (|| site.script(recipe("dbt-read"), &[]), || site.script(recipe("dbt-write"), &[]));
    let mut jobs = vec![Job::start(read()), Job::start(read())];
    let readers = site.until_at_work(2);
    jobs.push(Job::start(write()));
    site.until_waiting("warehouse.lck", 1);
    for reader in readers {
        assert!(!site.log().contains(&"in dbt run".to_owned()));
        site.let_go(reader, 0);
    }
    until("the writer writes", || site.log().contains(&"in dbt run".to_owned()));
    jobs.push(Job::start(read()));
    site.until_waiting("warehouse.lck", 1);
    let writer = site.until_at_work(1)[0];
    site.let_go(writer, 0);
    let reader = || site.at_work().into_iter().find(|pid| *pid != writer);
    until("the reader reads", || reader().is_some());
    site.let_go(reader().expect("it reads"), 0);
    assert!(jobs.iter_mut().all(|job| job.end() == 0));
    assert_eq!(site.log()[4..], ["in dbt run", "out dbt run", "in dbt test", "out dbt test"]);
}

#[test]
fn one_refreshes_and_the_others_wait_for_that_one() {
    let site = Site::new();
    let refresh = || site.script(recipe("refresh"), &[]);
    let mut one = Job::start(refresh());
    let pid = site.until_at_work(1)[0];
    let others = [Waiter::start(refresh()), Waiter::start(refresh())];
    site.let_go(pid, 0);
    assert_eq!(one.end(), 0);
    for other in others {
        assert_eq!(other.end().code, 0);
    }
    assert_eq!(site.log().len(), 2, "the others did nothing: {:?}", site.log());
}

#[test]
fn a_refresh_that_fails_is_done_by_one_that_waits() {
    let site = Site::new();
    let refresh = || site.script(recipe("refresh"), &[]);
    let mut failing = Job::start(refresh());
    let first = site.until_at_work(1)[0];
    let other = Waiter::start(refresh());
    site.let_go(first, 9);
    assert_eq!(failing.end(), 9);
    let second = || site.at_work().into_iter().find(|pid| *pid != first);
    until("the other one refreshes", || second().is_some());
    site.let_go(second().expect("it is at work"), 0);
    assert_eq!(other.end().code, 0);
}

#[test]
fn equal_commands_exclude_each_other_and_others_do_not() {
    let site = Site::new();
    let orders = recipe("name-from-command");
    let mut jobs = vec![Job::start(site.script(orders, &[]))];
    site.until_at_work(1);
    assert_eq!(ends_by_itself(&mut site.script(orders, &[])).code, 75);
    jobs.push(Job::start(site.script(&orders.replace("orders", "customers"), &[])));
    site.until_at_work(2);
    assert_eq!(site.drive(&mut jobs), 2);
}

#[test]
fn a_short_job_is_not_done_again_right_after() {
    let site = Site::new();
    let job = || site.script(recipe("short"), &[]);
    site.drive(&mut [Job::start(job())]);
    let status = site.status("cleanup.lck");
    assert!(
        status["why"].as_str().is_some_and(|why| why.starts_with("to be held for another ")),
        "{status}"
    );
    assert_eq!(ends_by_itself(&mut job()).code, 0);
    assert_eq!(site.log().len(), 2);
}

#[test]
fn a_lock_that_is_held_for_too_long_is_told_of_and_can_be_broken_by_what_is_told() {
    let site = Site::new();
    let here = |name: &str, snippet: &str| {
        assert!(snippet.contains("/srv/locks"), "{name}");
        snippet.replace("/srv/locks", site.locks.dir().to_str().expect("UTF-8"))
    };
    let alert = here("alert", recipe("watch-jq"));
    let mut job = Job::start(
        site.command("serializer", &["run", "--file-name", "warehouse.lck", "dbt", "run"]),
    );
    let pid = site.until_at_work(1)[0];
    let shown = ended(&mut site.script(&here("status", recipe("watch-status")), &[]));
    assert!(shown.stdout.contains("dbt run"), "{shown:?}");
    assert_eq!(ended(&mut site.script(&alert, &[])).stdout, "", "it has only begun");

    // It has been held for years.
    let file = site.locks.dir().join("warehouse.lck");
    let aged = Command::new("sed")
        .args(["-i", "s/^since=.*/since=2020-01-01T00:00:00Z/"])
        .arg(&file)
        .status();
    assert!(aged.expect("sed runs").success());
    let told = ended(&mut site.script(&alert, &[]));
    assert_eq!(told.code, 0, "{told:?}");
    assert!(told.stdout.contains("warehouse.lck: dbt run (pid "), "{told:?}");
    let token = told.stdout.trim_end().rsplit(' ').next().expect("a token").to_owned();

    let break_it = here("break", recipe("watch-break"));
    assert_eq!(ended(site.script(&break_it, &[]).env("token", &token)).code, 0);
    assert_ne!(
        ended(site.script(&break_it, &[]).env("token", &token)).code,
        0,
        "nobody has that token any more"
    );
    assert_eq!(site.status("warehouse.lck")["state"], "free");
    site.let_go(pid, 0);
    assert_eq!(job.end(), 76);
}
