//! Tasks on a schedule: a file of them, schedulers that read it, and what their commands write
//! down.

#![allow(dead_code, reason = "each test binary uses another part of this")]

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::faults::Logged;
use crate::support::{Ended, ended, until};

/// What a command of a task begins with. Two runs of one task at a time would meet in the flock,
/// which ends with its process.
const TELL: &str = r#"exec 8>> "lock.$SERIALIZER_TASK"; flock -n -E 9 8; [ $? != 9 ] || echo overlap >> log
echo "$SERIALIZER_TASK $SERIALIZER_SLOT $SERIALIZER_TRY $NODE" >> log
"#;

/// Makes `serializer ARGS…` on a host.
type Make<'a> = Box<dyn Fn(usize, &[&str]) -> Command + Sync + 'a>;

/// A line that a task has written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    pub task: String,
    pub slot: String,
    pub number: u32,
    pub node: String,
}

impl Line {
    /// In milliseconds since 1970.
    pub fn time(&self) -> i64 {
        self.slot.parse::<jiff::Timestamp>().expect("a time").as_millisecond()
    }
}

/// Tasks, in a directory with their file.
pub struct Tasks<'a> {
    dir: PathBuf,
    make: Make<'a>,
}

impl<'a> Tasks<'a> {
    /// `text` is the file's; commands begin with `. ./tell`.
    pub fn new(dir: PathBuf, text: &str, make: Make<'a>) -> Self {
        let made = Command::new("mkfifo").arg(dir.join("go")).status();
        assert!(made.expect("it runs").success());
        fs::write(dir.join("tell"), TELL).expect("a file");
        let tasks = Self { dir, make };
        tasks.define(text);
        tasks
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Replaces the file.
    pub fn define(&self, text: &str) {
        fs::write(self.dir.join("new"), text).expect("a file");
        fs::rename(self.dir.join("new"), self.dir.join("serializer.toml"))
            .expect("it can be renamed");
    }

    /// `serializer schedule ARGS…` on a host.
    pub fn command(&self, host: usize, args: &[&str]) -> Command {
        let mut command = (self.make)(host, &[&["schedule"], args].concat());
        command.env("NODE", host.to_string());
        command
    }

    /// The same, as arguments of another program, with its environment and its directory.
    pub fn within(&self, program: &[&str], args: &[&str]) -> Command {
        let inner = self.command(0, args);
        let mut command = Command::new(program[0]);
        command
            .args(&program[1..])
            .arg(inner.get_program())
            .args(inner.get_args())
            .current_dir(&self.dir);
        command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    /// Runs it to its end on the first host.
    pub fn run(&self, args: &[&str]) -> Ended {
        ended(&mut self.command(0, args))
    }

    /// A scheduler on a host, with its messages and tasks' output in a file.
    pub fn start(&self, host: usize, args: &[&str]) -> Logged {
        let log = self.dir.join(format!("log.{host}"));
        let file = fs::File::options().create(true).append(true).open(&log).expect("a file");
        let mut command = self.command(host, &[&["start"], args].concat());
        command.stdout(file.try_clone().expect("it can be shared")).stderr(file);
        Logged::of(command, log)
    }

    /// What is in a file of the directory; nothing if there is none.
    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.dir.join(file)).unwrap_or_default()
    }

    pub fn events(&self) -> Vec<String> {
        let event = |line: &str| {
            serde_json::from_str::<Value>(line).expect("JSON")["event"].as_str().map(str::to_owned)
        };
        self.read("events").lines().filter_map(event).collect()
    }

    /// Returns when this stands in the file.
    pub fn until_in(&self, file: &str, what: &str) {
        until(&format!("`{what}` does not come"), || self.read(file).contains(what));
    }

    /// Tells the command that reads `go`, or the first one that will.
    pub fn go(&self, line: &str) {
        fs::write(self.dir.join("go"), format!("{line}\n")).expect("it is read");
    }

    /// What the runs of a task have written; no two of any task are the same, or were there at a
    /// time.
    pub fn lines(&self, task: &str) -> Vec<Line> {
        let (log, mut seen) = (self.read("log"), HashSet::new());
        let mut lines = Vec::new();
        for line in log.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            assert!(words.len() == 4, "{line} in {log}");
            assert!(seen.insert(words[..3].to_vec()), "{line} is there twice: {log}");
            let [name, slot, number, node] = [0, 1, 2, 3].map(|index| words[index].to_owned());
            lines.push(Line { task: name, slot, number: number.parse().expect("a number"), node });
        }
        lines.retain(|line| line.task == task);
        lines
    }

    /// Returns when a task has written so many lines more than `before`.
    pub fn until_lines(&self, task: &str, before: usize, count: usize) {
        until(&format!("`{task}` does not run"), || self.lines(task).len() >= before + count);
    }

    /// Returns when it has written so many more.
    pub fn until_more(&self, task: &str, count: usize) {
        self.until_lines(task, self.lines(task).len(), count);
    }

    /// Each PID that commands have written to a file is gone.
    pub fn are_gone(&self, file: &str) {
        let pids = self.read(file);
        until("its processes are there", || {
            !pids.lines().any(|pid| Path::new("/proc").join(pid).exists())
        });
    }

    /// What `status --json` says of a task.
    pub fn status(&self, task: &str) -> Value {
        // Other tests keep other things in the same store, which need not be readable.
        let ended = self.run(&["status", "--json"]);
        assert!(ended.code <= 1, "{ended:?}");
        let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        let tasks = report["tasks"].as_array().expect("a list");
        tasks
            .iter()
            .find(|row| row["task"] == task)
            .unwrap_or_else(|| panic!("{task} is not in {report}"))
            .clone()
    }

    /// Its status and how its last run ended.
    pub fn state(&self, task: &str) -> (String, String) {
        let row = self.status(task);
        let text = |key: &str| row[key].as_str().unwrap_or("").to_owned();
        (text("status"), text("result"))
    }
}

/// Checks that a task with a slot each second has run each of them, once.
pub fn assert_each_is_run_once(lines: &[Line]) {
    let is_next = |pair: &[Line]| pair[1].time() - pair[0].time() == 1000;
    assert!(
        lines.windows(2).all(is_next) && lines.iter().all(|line| line.number == 1),
        "{lines:?}"
    );
}
