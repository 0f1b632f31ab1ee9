//! The mutex as a plugin of a real Meltano, in the project of `examples/meltano`, which `setup.sh`
//! there has installed. Where nothing but time has to pass, a script of the project stands in for
//! dbt (a stage); where dbt itself matters, it is the real one.

#![cfg(target_os = "linux")]

mod package;
mod schedules;
mod small_build;
#[path = "../support/mod.rs"]
mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::servers::shared_postgres;
use crate::support::{Locks, PROGRAM, Shell, until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};

/// How long an event may take until it counts as missing. Meltano and dbt need seconds to start,
/// several at a time more.
const PATIENCE: Duration = Duration::from_secs(300);

const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");

/// Plugins of the tests, beside those of the example.
const PLUGINS: &str = "
plugins:
  utilities:
  - name: stage
    namespace: stage
    executable: ./stage
    commands:
      works: works
      fails: fails
      waits: waits
  - name: heir
    inherit_from: dbtmutex
    config:
      file_name: heir.lck
  - name: shared
    inherit_from: dbtmutex
    config:
      store: $A_DATABASE_URI
  # As the README of the Python plugin has it.
  - name: oldmutex
    namespace: serializer
    executable: ./serializer
    settings:
    - name: serializer_max_attempts
      kind: integer
      value: 6
      description: How many times to try to get the lock
      env: SERIALIZER_MAX_ATTEMPTS
    - name: serializer_sleep_seconds
      kind: integer
      value: 10
      description: How long to wait between lock attempts
      env: SERIALIZER_SLEEP_SECONDS
    - name: serializer_file_name
      value: old.lck
      description: Name of the file to use for locking
      env: SERIALIZER_FILE_NAME
    commands:
      lock:
        args: lock
        description: Acquire a lock
      unlock:
        args: unlock
        description: Release a lock
jobs:
- name: guarded
  tasks:
  - dbtmutex:lock stage:works
  - dbtmutex:unlock
";

const STAGE: &str = r#"#!/bin/bash
case $1 in
works) echo "worked" ;;
fails) exit 3 ;;
waits) echo "pid $$ waits" && read -r < "$MELTANO_PROJECT_ROOT/gate" ;;
esac
"#;

/// A model that is built when the gate has been opened; until then dbt keeps the database open.
const WAITING_MODEL: &str = r#"
{{ config(materialized='table') }}
select * from read_csv('{{ env_var("MELTANO_PROJECT_ROOT") }}/gate', columns = {line: 'varchar'}, auto_detect = false, header = false)
"#;

/// A copy of the example, with the program under test as its mutex. The mutex `dbtmutex` is
/// [`Locks::file`].
struct Project {
    root: PathBuf,
    meltano: PathBuf,
    /// Holds the project, too.
    locks: Locks,
    _dir: tempfile::TempDir,
}

impl Project {
    fn new() -> Self {
        Self::with_config(&Path::new(CHECKOUT).join("examples/meltano/meltano.yml"))
    }

    fn with_config(config: &Path) -> Self {
        let installed = Path::new(CHECKOUT).join("target/meltano");
        let plugins = installed.join("project/.meltano");
        let meltano = installed.join("venv/bin/meltano");
        let is_set_up = meltano.exists() && plugins.join("utilities/dbt/venv/bin/dbt").exists();
        assert!(is_set_up, "the example is not set up: run examples/meltano/setup.sh first");

        let dir =
            tempfile::TempDir::with_prefix("serializer-meltano-").expect("a temporary directory");
        let root = dir.path().join("project");
        let project = Self { root, meltano, locks: Locks::new(), _dir: dir };
        let example = Path::new(CHECKOUT).join("examples/meltano");
        project.create_dir("");
        project
            .write("meltano.yml", &format!("include_paths:\n- ./*.meltano.yml\n{}", read(config)));
        project.write("test.meltano.yml", PLUGINS);
        project.write_program("stage", STAGE);
        project.write_program("tap-shop", &read(&example.join("tap-shop")));
        for name in ["dbt_project.yml", "profiles.yml", "models/similar_customers.sql"] {
            let name = format!("transform/{name}");
            project.write(&name, &read(&example.join(&name)));
        }
        for plugin in ["loaders/target-jsonl", "utilities/dbt"] {
            project.create_dir(&format!(".meltano/{plugin}"));
            project.link(&plugins.join(plugin).join("venv"), &format!(".meltano/{plugin}/venv"));
        }
        project.create_dir(".meltano/utilities/dbtmutex/venv/bin");
        project.link(Path::new(PROGRAM), ".meltano/utilities/dbtmutex/venv/bin/serializer");
        project.link(Path::new(PROGRAM), "serializer");
        project.create_dir("home");
        rustix::fs::mkfifoat(rustix::fs::CWD, project.path("gate"), 0o600.into()).expect("a FIFO");
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn create_dir(&self, name: &str) {
        fs::create_dir_all(self.path(name)).expect("a directory");
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it is in the project")).expect("a directory");
        fs::write(path, content).expect("a file");
    }

    fn write_program(&self, name: &str, content: &str) {
        self.write(name, content);
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755))
            .expect("its mode can be set");
    }

    fn link(&self, to: &Path, name: &str) {
        symlink(to, self.path(name)).expect("a link");
    }

    /// `program` where it knows of Meltano and the project, in its directory.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root).env_clear().stdin(Stdio::null());
        support::guard::mark(&mut command);
        command
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"));
        command.env("S", PROGRAM).env("MELTANO", &self.meltano);
        command
            .env("MELTANO_SEND_ANONYMOUS_USAGE_STATS", "false")
            .env("MELTANO_CLI_DISABLE_VERSION_CHECK", "true");
        // The plugins are where Meltano would have installed them.
        command.env("MELTANO_AUTO_INSTALL", "false");
        command.env("DBTMUTEX_DIR", self.locks.dir()).env("DBTMUTEX_FILE_NAME", "serializer.lck");
        command
    }

    fn meltano(&self, args: &[&str]) -> Command {
        // A shell's background job ignores SIGINT, and so would Meltano, a Python program.
        let mut command = self.command("env");
        command.arg("--default-signal=INT,QUIT").arg(&self.meltano).args(args);
        command
    }

    /// Runs `meltano ARGS…` to its end.
    fn run(&self, args: &[&str]) -> Ended {
        Run::start(self.meltano(args)).end()
    }

    /// Lets the stage or dbt that waits go on; returns when it has begun to.
    fn open_gate(&self) {
        let gate = self.path("gate");
        let (sender, opened) = mpsc::channel();
        // Opening it blocks until the other side has come to read.
        thread::spawn(move || sender.send(fs::write(gate, "go\n")));
        opened
            .recv_timeout(PATIENCE)
            .expect("somebody waits at the gate")
            .expect("the gate can be opened");
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// A Meltano that runs, in a process group of its own, as a shell would have started it. All that
/// is left of the group is killed when this is dropped.
struct Run {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

/// What a Meltano has said, and how it ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    lines: Vec<String>,
}

impl Run {
    fn start(mut command: Command) -> Self {
        let mut child = command
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let (sender, lines) = mpsc::channel();
        forward(child.stdout.take().expect("its output"), sender.clone());
        forward(child.stderr.take().expect("its messages"), sender);
        Self { child, lines, seen: Vec::new() }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for a line that contains all of `texts`, and returns it.
    fn line_with(&mut self, texts: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if texts.iter().all(|text| line.contains(text)) {
                        return line;
                    }
                }
                Err(error) => {
                    panic!("no line with {texts:?} ({error}) but:\n{}", self.seen.join("\n"))
                }
            }
        }
    }

    /// The one process that it has started and that still runs.
    fn plugin(&self) -> Process {
        let children = children(self.pid());
        let [pid] = children[..] else {
            panic!("Meltano runs {children:?} instead of one process")
        };
        Process::open(pid)
    }

    fn send(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("Meltano can be signalled");
    }

    /// What the terminal does at Ctrl-C: all processes of the group get it.
    fn interrupt(&self) {
        kill_process_group(self.pid(), Signal::INT).expect("Meltano can be signalled");
    }

    /// Waits until it ends, and has nothing more to say.
    fn end(mut self) -> Ended {
        let process = Process::open(self.pid());
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("Meltano has not ended but said:\n{}", self.seen.join("\n"))
                }
            }
        }
        assert!(process.ends_within(PATIENCE), "Meltano has closed its output, and has not ended");
        let status = self.child.wait().expect("it ends");
        let code =
            status.code().or(status.signal().map(|signal| 128 + signal)).expect("an exit code");
        Ended { code, lines: std::mem::take(&mut self.seen) }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Ended {
    fn said(&self, texts: &[&str]) -> bool {
        self.lines.iter().any(|line| texts.iter().all(|text| line.contains(text)))
    }

    /// What a plugin has said, without what Meltano puts before each line.
    fn of<'a>(&'a self, plugin: &str) -> Vec<&'a str> {
        let texts =
            self.lines.iter().filter_map(|line| line.split_once(" ] ").or(line.split_once("] ")));
        let of_plugin = texts.filter_map(|(_, text)| text.strip_prefix(plugin)?.strip_prefix(' '));
        of_plugin.map(str::trim).collect()
    }
}

fn forward(output: impl Read + Send + 'static, lines: Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { return };
            // Fails when the receiver is gone.
            let _ = lines.send(String::from_utf8_lossy(&line).into_owned());
        }
    });
}

/// A process that no other one can replace.
struct Process {
    pid: Pid,
    fd: OwnedFd,
}

impl Process {
    fn open(pid: Pid) -> Self {
        let fd = pidfd_open(pid, PidfdFlags::empty())
            .unwrap_or_else(|error| panic!("process {pid} does not run: {error}"));
        Self { pid, fd }
    }

    fn ends_within(&self, time: Duration) -> bool {
        let timeout = Timespec::try_from(time).expect("a short time");
        poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&timeout))
            .expect("a process can be waited for")
            == 1
    }

    fn is_running(&self) -> bool {
        !self.ends_within(Duration::ZERO)
    }
}

fn children(pid: Pid) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let lists =
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    let pids =
        lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    pids.map(|pid| pid.parse().ok().and_then(Pid::from_raw).expect("a process id")).collect()
}

#[test]
fn one_run_locks_and_unlocks() {
    let project = Project::new();
    for options in [&["run"][..], &["run", "--force"]] {
        let blocks = ["dbtmutex:lock", "dbtmutex:status", "stage:works", "dbtmutex:unlock"];
        let run = Run::start(project.meltano(&[options, &blocks].concat()));
        let pid = run.pid();
        let ended = run.end();
        assert_eq!(ended.code, 0, "{ended:#?}");
        let said = ended.of("dbtmutex");
        assert_eq!(said.len(), 5, "{ended:#?}");
        assert!(
            said[0].starts_with(&format!("locked `serializer.lck` for pid {pid} (meltano run ")),
            "{said:#?}"
        );
        // Below the directory and the names of the columns.
        let held = said[3].split_whitespace().collect::<Vec<_>>();
        assert_eq!((held[0], held[1], held[3]), ("serializer.lck", "held", &*pid.to_string()));
        assert_eq!(said[4], "unlocked `serializer.lck`");
        assert_eq!(ended.of("stage"), ["worked"]);
        assert_eq!(project.locks.names(), Vec::<String>::new());
    }
}

#[test]
fn a_job_locks_and_unlocks() {
    let project = Project::new();
    let ended = project.run(&["run", "guarded"]);
    assert_eq!(ended.code, 0, "{ended:#?}");
    assert!(ended.of("dbtmutex")[0].ends_with("(meltano run guarded)"), "{ended:#?}");
    assert_eq!(ended.of("stage"), ["worked"]);
    assert_eq!(project.locks.names(), Vec::<String>::new());
}

#[test]
fn the_job_of_the_example_runs_dbt() {
    let project = Project::new();
    let ended = project.run(&["run", "orders"]);
    assert_eq!(ended.code, 0, "{ended:#?}");
    assert!(ended.said(&["dbt ", "PASS=1"]), "{ended:#?}");
    assert!(ended.of("dbtmutex")[1].starts_with("unlocked "), "{ended:#?}");
    assert_eq!(project.locks.names(), Vec::<String>::new());
}

#[test]
fn the_demonstration_shows_a_failure_and_then_turns() {
    let project = Project::new();
    // Creates Meltano's database first: two runs at once may fail to.
    assert_eq!(project.run(&["run", "stage:works"]).code, 0);
    let mut command = project.command(Path::new(CHECKOUT).join("examples/meltano/demo.sh"));
    command.env_remove("DBTMUTEX_DIR").env_remove("DBTMUTEX_FILE_NAME");
    command.env("DEMO_PROJECT", &project.root);
    let mut run = Run::start(command);
    // The demonstration prints its lines as they occur.
    run.line_with(&[" | dbt ", "START sql table model"]);
    assert!(run.child.try_wait().expect("it can be asked").is_none());
    let ended = run.end();
    assert_eq!(ended.code, 0, "{ended:#?}");
    assert!(ended.said(&["orders are made up"]), "{ended:#?}");
    let begin = ended.lines.iter().position(|line| line.contains("== With the mutex"));
    let (without, with) = ended.lines.split_at(begin.expect("the second part"));
    assert!(without.iter().any(|line| line.contains("IO Error: Could not set lock on file")));
    let shown: Vec<_> = with.iter().filter(|line| line.contains(" | ")).collect();
    let place = |text: &str| {
        let found = shown.iter().position(|line| line.contains(text));
        found.unwrap_or_else(|| panic!("{text}: {with:#?}"))
    };
    // Merges both logs, in which each line has its time.
    assert!(place("waiting for `dbt.lck`") < place("dbtmutex     unlocked"), "{with:#?}");
    let is_time = |text: &str| text.len() == 8 && text.matches(':').count() == 2;
    assert!(shown.iter().all(|line| line.split_whitespace().next().is_some_and(is_time)));
    for text in ["600 orders; warehouse.duckdb has:", "similar_customers: "] {
        assert!(with.iter().any(|line| line.contains(text)), "{text}: {with:#?}");
    }
}

#[test]
fn the_example_configuration_runs() {
    let project = Project::with_config(&Path::new(CHECKOUT).join("meltano.yml.example"));
    let mut command = project.meltano(&["run", "north"]);
    command.env_remove("DBTMUTEX_DIR").env_remove("DBTMUTEX_FILE_NAME");
    let ended = Run::start(command).end();
    assert_eq!(ended.code, 0, "{ended:#?}");
    assert!(ended.said(&["dbt ", "PASS=1"]), "{ended:#?}");
    for (mutex, name) in [("loadmutex", "load.lck"), ("dbtmutex", "dbt.lck")] {
        let file = project.path(".meltano").join(name);
        let said = ended.of(mutex);
        assert!(said[0].starts_with(&format!("locked `{name}` ")), "{ended:#?}");
        assert_eq!(said[1], format!("unlocked `{name}`"));
        assert!(!file.exists());
    }
}

#[test]
fn a_configuration_of_the_python_plugin_goes_on_working() {
    let project = Project::new();
    let ended = project.run(&["run", "oldmutex:lock", "stage:works", "oldmutex:unlock"]);
    assert_eq!(ended.code, 0, "{ended:#?}");
    let said = ended.of("oldmutex");
    assert!(said[0].starts_with("locked `old.lck` for pid "), "{ended:#?}");
}

#[test]
fn the_next_run_takes_over_what_a_failing_block_left_locked() {
    let project = Project::new();
    let run =
        Run::start(project.meltano(&["run", "dbtmutex:lock", "stage:fails", "dbtmutex:unlock"]));
    let pid = run.pid();
    let ended = run.end();
    assert_eq!(ended.code, 1, "{ended:#?}");
    assert_eq!(
        project.locks.names(),
        ["serializer.lck"],
        "Meltano skips what comes after a failure: {ended:#?}"
    );

    let ended = project.run(&["run", "dbtmutex:lock", "stage:works", "dbtmutex:unlock"]);
    assert_eq!(ended.code, 0, "{ended:#?}");
    let said = ended.of("dbtmutex");
    assert!(
        said[0].contains(&format!("taken over from pid {pid} (meltano run ")),
        "at once: {ended:#?}"
    );
    assert!(said[0].ends_with("its process is gone"), "{ended:#?}");
    assert_eq!(project.locks.names(), Vec::<String>::new());
}

/// How long what Meltano leaves behind may take to notice. Less than the half a minute after which
/// a waiter writes its next line, into the pipe that Meltano has left, and might die of that
/// instead.
const NOTICING: Duration = Duration::from_secs(10);

/// Ends a Meltano while its `lock` waits, and looks for processes that are left of it.
fn no_waiter_outlives_meltano(end: impl FnOnce(&Run)) {
    let project = Project::new();
    let mut holder = Shell::start(&project.locks);
    holder.lock();
    let mut run =
        Run::start(project.meltano(&["run", "dbtmutex:lock", "stage:works", "dbtmutex:unlock"]));
    run.line_with(&["dbtmutex", "waiting for `", &format!(" by pid {}", holder.pid())]);
    let waiter = run.plugin();

    let meltano = Process::open(run.pid());
    end(&run);
    assert!(meltano.ends_within(PATIENCE), "Meltano ends");
    // The lock is still held, so that nothing but Meltano's end can make the waiter end.
    assert!(waiter.ends_within(NOTICING), "`lock` waits on without Meltano");
    let ended = run.end();
    assert_ne!(ended.code, 0, "{ended:#?}");
    assert_eq!(ended.of("stage"), Vec::<&str>::new(), "{ended:#?}");
    assert!(
        project.locks.read().starts_with(&format!("{}\n", holder.pid())),
        "it is still the holder's"
    );
    holder.unlock();
    assert_eq!(project.locks.names(), Vec::<String>::new());
}

#[test]
fn ctrl_c_ends_a_waiting_lock() {
    no_waiter_outlives_meltano(Run::interrupt);
}

#[test]
fn a_waiting_lock_does_not_outlive_a_terminated_meltano() {
    no_waiter_outlives_meltano(|run| run.send(Signal::TERM));
}

#[test]
fn a_waiting_lock_does_not_outlive_a_killed_meltano() {
    no_waiter_outlives_meltano(|run| run.send(Signal::KILL));
}

/// Ends a Meltano while its dbt works; the next run must wait for that dbt.
fn the_next_run_waits_for_the_orphaned_dbt(signal: Signal) {
    let project = Project::new();
    project.write("transform/models/similar_customers.sql", WAITING_MODEL);
    let blocks = ["run", "dbtmutex:lock", "dbt:run", "dbtmutex:unlock"];
    let mut first = Run::start(project.meltano(&blocks));
    first.line_with(&["START sql table model"]);
    let dbt = first.plugin();
    let pid = first.pid();
    first.send(signal);
    let process = Process::open(pid);
    assert!(process.ends_within(PATIENCE), "Meltano ends");
    assert!(dbt.is_running(), "dbt outlives Meltano");

    project.write(
        "transform/models/similar_customers.sql",
        "{{ config(materialized='table') }} select 1 as one",
    );
    let mut next = Run::start(project.meltano(&blocks));
    let line = next.line_with(&["dbtmutex", "waiting for"]);
    assert!(line.contains(&format!(" by pid {pid} (meltano run ")), "{line}");
    // Not the helper that Python starts for it, although that may have a lower PID: PIDs begin
    // again now and then.
    let goes_on = format!("but pid {} (dbt run) of the same run goes on", dbt.pid);
    assert!(line.contains(&goes_on), "{line}");
    assert!(dbt.is_running(), "the next run has not waited for nothing");
    project.open_gate();
    let ended = next.end();
    assert!(!dbt.is_running(), "the next run has waited for the end of dbt");
    assert_eq!(ended.code, 0, "{ended:#?}");
    assert!(ended.said(&["locked ", &format!("taken over from pid {pid} ")]), "{ended:#?}");
    assert!(ended.said(&["dbt ", "PASS=1"]), "{ended:#?}");
    assert_eq!(project.locks.names(), Vec::<String>::new());
}

#[test]
fn the_next_run_waits_for_the_dbt_of_a_terminated_meltano() {
    the_next_run_waits_for_the_orphaned_dbt(Signal::TERM);
}

#[test]
fn the_next_run_waits_for_the_dbt_of_a_killed_meltano() {
    the_next_run_waits_for_the_orphaned_dbt(Signal::KILL);
}

#[test]
fn orphans_can_be_ignored() {
    let project = Project::new();
    let mut first = Run::start(project.meltano(&["run", "dbtmutex:lock", "stage:waits"]));
    first.line_with(&["stage ", " waits"]);
    let stage = first.plugin();
    let process = Process::open(first.pid());
    first.send(Signal::KILL);
    assert!(process.ends_within(PATIENCE), "Meltano ends");

    let mut next = project.meltano(&["run", "dbtmutex:lock", "dbtmutex:unlock"]);
    next.env("SERIALIZER_ORPHANS", "ignore");
    let ended = Run::start(next).end();
    assert_eq!(ended.code, 0, "{ended:#?}");
    assert!(ended.of("dbtmutex")[0].contains("taken over from"), "{ended:#?}");
    assert!(stage.is_running(), "the stage was there all the time");
}

#[test]
fn meltano_invoke_cannot_lock_and_says_why() {
    let project = Project::new();
    let python = project.meltano.with_file_name("python").display().to_string();
    let meltano = project.meltano.display().to_string();
    let ways = [
        vec![meltano.as_str()],
        // Meltano's own link, which the first one has made.
        vec![".meltano/run/bin"],
        vec![python.as_str(), "-X", "dev", ".meltano/run/bin"],
        vec![python.as_str(), "-uW", "ignore", "-Xutf8", &meltano],
    ];
    for way in ways {
        let mut command = project.command(way[0]);
        command.args(&way[1..]).args(["invoke", "dbtmutex:lock"]);
        let ended = Run::start(command).end();
        assert_eq!(ended.code, 2, "{way:?}: {ended:#?}");
        assert!(ended.said(&["`meltano invoke` exits immediately"]), "{way:?}: {ended:#?}");
        assert!(
            ended.said(&["`SERIALIZER_OWNER_PID=$$ meltano invoke dbtmutex:lock`"]),
            "{way:?}: {ended:#?}"
        );
        assert_eq!(project.locks.names(), Vec::<String>::new());
    }
}

#[test]
fn a_run_by_meltanos_own_link_is_shown_as_one_of_meltano() {
    let project = Project::new();
    project.create_dir(".meltano/run");
    project.link(&project.meltano, ".meltano/run/bin");
    let mut command = project.command(project.path(".meltano/run/bin"));
    command.args(["run", "dbtmutex:lock", "stage:waits"]);
    let mut run = Run::start(command);
    run.line_with(&["stage ", " waits"]);
    let command = project.locks.report()["holder"]["command"].clone();
    assert_eq!(command, "meltano run dbtmutex:lock stage:waits");
}

#[test]
fn meltano_invoke_locks_for_a_script() {
    let project = Project::new();
    let page = read(&Path::new(CHECKOUT).join("docs/meltano.md"));
    let begin = page.find("export SERIALIZER_OWNER_PID").expect("the script of the page");
    let text = page[begin..].split("```").next().expect("its end");
    let text = text.replace("meltano invoke", "\"$MELTANO\" invoke");
    let mut script = project.command("bash");
    script.args(["-ec", &text.replace("dbt:run", "dbtmutex:status")]);
    let run = Run::start(script);
    let pid = run.pid();
    let ended = run.end();
    assert_eq!(ended.code, 0, "{ended:#?}");
    let held = ["serializer.lck  held ", &format!(" {pid}  bash -ec ")];
    assert!(ended.said(&held), "the script holds it, and not Meltano: {ended:#?}");
    assert!(ended.said(&["unlocked"]), "{ended:#?}");
    assert_eq!(project.locks.names(), Vec::<String>::new());
}

#[test]
fn a_run_that_gives_up_names_the_holder() {
    let project = Project::new();
    let mut holder = Shell::start(&project.locks);
    holder.lock();
    let mut command = project.meltano(&["run", "dbtmutex:lock", "stage:works"]);
    command.env("SERIALIZER_MAX_ATTEMPTS", "2").env("SERIALIZER_SLEEP_SECONDS", "0.1");
    let ended = Run::start(command).end();
    assert_eq!(ended.code, 1, "Meltano's own exit code: {ended:#?}");
    let said = ended.of("dbtmutex");
    let [waiting, gave_up] = said[..] else { panic!("{ended:#?}") };
    let who = format!("pid {} (bash -c ", holder.pid());
    assert!(
        waiting.starts_with("waiting for `serializer.lck`: 1st in line, ")
            && waiting.contains(", attempt 1 of 2; held for "),
        "{waiting}"
    );
    assert!(waiting.contains(&who), "{waiting}");
    let cannot = format!("cannot lock `{}`: ", project.locks.file().display());
    assert!(gave_up.starts_with(&cannot) && gave_up.contains(&who), "{gave_up}");
    assert!(gave_up.contains(", which has had it for "), "{gave_up}");
    assert_eq!(ended.of("stage"), Vec::<&str>::new(), "the run ends there: {ended:#?}");
}

#[test]
fn a_relative_directory_is_one_lock_wherever_meltano_is_started() {
    let project = Project::new();
    // What meltano.yml says counts.
    let here = |args: &[&str]| {
        let mut command = project.meltano(args);
        command
            .env_remove("DBTMUTEX_DIR")
            .env_remove("DBTMUTEX_FILE_NAME")
            .env("SERIALIZER_MAX_ATTEMPTS", "1");
        command
    };
    let mut holder = Run::start(here(&["run", "dbtmutex:lock", "stage:waits", "dbtmutex:unlock"]));
    let pid = holder.pid();
    holder.line_with(&["stage ", " waits"]);
    assert!(project.path(".meltano/dbt.lck").exists());

    let mut below = here(&["run", "dbtmutex:lock"]);
    below.current_dir(project.path("transform"));
    let mut elsewhere = here(&["run", "dbtmutex:lock"]);
    elsewhere.current_dir("/").env("MELTANO_PROJECT_ROOT", &project.root);
    for command in [below, elsewhere] {
        let ended = Run::start(command).end();
        assert_eq!(ended.code, 1, "{ended:#?}");
        assert!(
            ended.of("dbtmutex")[0].contains(&format!(": held by pid {pid} (meltano run ")),
            "{ended:#?}"
        );
    }
    project.open_gate();
    let ended = holder.end();
    assert_eq!(ended.code, 0, "{ended:#?}");
    assert!(!project.path(".meltano/dbt.lck").exists());
}

#[test]
fn an_inherited_mutex_is_another_lock() {
    let project = Project::new();
    let mut command =
        project.meltano(&["run", "dbtmutex:lock", "heir:lock", "dbtmutex:unlock", "heir:unlock"]);
    command.env_remove("DBTMUTEX_FILE_NAME").env("SERIALIZER_FILE_NAME", "not-this-one.lck");
    let ended = Run::start(command).end();
    assert_eq!(ended.code, 0, "{ended:#?}");
    for (mutex, name) in [("dbtmutex", "dbt.lck"), ("heir", "heir.lck")] {
        let said = ended.of(mutex);
        assert!(said[0].starts_with(&format!("locked `{name}` ")), "{ended:#?}");
        assert_eq!(said[1], format!("unlocked `{name}`"));
    }
    assert_eq!(project.locks.names(), Vec::<String>::new());
}

#[test]
fn the_plugin_definition_can_be_added() {
    let project = Project::new();
    project.write(
        "meltano.yml",
        "default_environment: dev\nsend_anonymous_usage_stats: false\nenvironments:\n- name: dev\n",
    );
    // As in a project that has only the wheel.
    let definition = project.locks.run(&["plugin"]).stdout;
    assert!(
        definition.contains(&format!("\npip_url: {}\n", env!("CARGO_PKG_NAME"))),
        "{definition}"
    );
    project.write("dbtmutex.yml", &definition);
    let ended = project.run(&["add", "--no-install", "--from-ref", "dbtmutex.yml", "dbtmutex"]);
    assert_eq!(ended.code, 0, "{ended:#?}");
    let ended = project.run(&["run", "dbtmutex:lock", "dbtmutex:status", "dbtmutex:unlock"]);
    assert_eq!(ended.code, 0, "{ended:#?}");
    assert_eq!(ended.of("dbtmutex").last(), Some(&"unlocked `serializer.lck`"), "{ended:#?}");
}

/// As two machines have it: nothing in common but a database.
#[test]
fn projects_take_turns_by_a_database() {
    let (one, other) = (Project::new(), Project::new());
    let url = shared_postgres().url().replacen("postgresql:", "postgresql+psycopg:", 1);
    let run = |project: &Project, stage: &str| {
        let mut command = project.meltano(&["run", "shared:lock", stage, "shared:unlock"]);
        command.env("A_DATABASE_URI", &url);
        Run::start(command)
    };
    let mut holder = run(&one, "stage:waits");
    holder.line_with(&["stage ", " waits"]);
    let mut waiter = run(&other, "stage:works");
    waiter.line_with(&["shared", "waiting for", "meltano run"]);
    one.open_gate();
    let (holder, waiter) = (holder.end(), waiter.end());
    assert_eq!((holder.code, waiter.code), (0, 0), "{holder:#?} {waiter:#?}");
    assert!(
        waiter.of("shared").last().is_some_and(|line| line.starts_with("unlocked `")),
        "{waiter:#?}"
    );
    let all = [holder.lines, waiter.lines].concat();
    assert!(!all.iter().any(|line| line.contains("hunter2")), "{all:#?}");
}

#[test]
fn a_killed_meltano_frees_its_lock_in_a_database_when_the_last_of_its_run_has_ended() {
    let (one, other) = (Project::new(), Project::new());
    let run = |project: &Project, stage: &str| {
        let mut command = project.meltano(&["run", "dbtmutex:lock", stage, "dbtmutex:unlock"]);
        command.env("DBTMUTEX_STORE", shared_postgres().url()).env("DBTMUTEX_FILE_NAME", "killed");
        command.env("DBTMUTEX_LEASE_SECONDS", "600");
        Run::start(command)
    };
    let mut holder = run(&one, "stage:waits");
    holder.line_with(&["stage ", " waits"]);
    let stage = holder.plugin();
    let mut waiter = run(&other, "stage:works");
    waiter.line_with(&["dbtmutex", "waiting for", "meltano run"]);
    holder.send(Signal::KILL);
    // Meltano is dead, and its run goes on.
    until("it is seen that the keeper keeps it", || {
        let mut status = one.command(PROGRAM);
        status.args(["status", "killed"]).env("SERIALIZER_STORE", shared_postgres().url());
        let output = status.output().expect("it runs");
        String::from_utf8_lossy(&output.stdout).contains("its process has ended, but pid")
    });
    assert!(stage.is_running());
    kill_process(stage.pid, Signal::KILL).expect("it runs");
    let ended = waiter.end();
    assert_eq!(ended.code, 0, "{ended:#?}");
    until("all of it has ended", || !stage.is_running());
}
