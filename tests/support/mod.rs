//! What the tests of the program share: a directory of its own for each test, the program in a
//! clean environment, and shells that own locks.

#![allow(dead_code, reason = "each test binary uses another part of this")]

pub mod callers;
pub mod calls;
pub mod cluster;
pub mod faults;
pub mod guard;
pub mod hosts;
pub mod injector;
pub mod memory;
pub mod namespace;
pub mod proxy;
pub mod servers;
pub mod session;
pub mod simulated;
pub mod stores;
pub mod tasks;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Output, Stdio};

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_serializer");

/// A directory of locks.
pub struct Locks {
    dir: TempDir,
}

impl Locks {
    pub fn new() -> Self {
        Self { dir: TempDir::with_prefix("serializer-test-").expect("a temporary directory") }
    }

    /// One for keys that run once, which must not be in memory; `/tmp` may be.
    pub fn durable() -> Self {
        let dir = TempDir::with_prefix_in("serializer-test-", env!("CARGO_TARGET_TMPDIR"));
        Self { dir: dir.expect("a temporary directory") }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Says that hosts share it, as `serializer initialize` does.
    pub fn is_shared(&self) {
        fs::write(self.dir().join(".serializer-shared"), "machine\n")
            .expect("the directory can be written to");
    }

    /// The default lock file.
    pub fn file(&self) -> PathBuf {
        self.dir().join("serializer.lck")
    }

    /// `program` with nothing in its environment but the directory; the test process is its parent,
    /// and so its owner.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("SERIALIZER_DIR", self.dir()).env("S", PROGRAM).stdin(Stdio::null());
        guard::mark(&mut command);
        command
    }

    /// `serializer ARGS…`, not yet started.
    pub fn serializer(&self, args: &[&str]) -> Command {
        let mut command = self.command(PROGRAM);
        command.args(args);
        command
    }

    /// Runs `serializer ARGS…` to its end.
    pub fn run(&self, args: &[&str]) -> Ended {
        ended(&mut self.serializer(args))
    }

    /// Runs a bash script to its end; `"$S"` is the program.
    pub fn script(&self, script: &str) -> Ended {
        ended(self.command("bash").args(["-c", script]))
    }

    pub fn write(&self, content: impl AsRef<[u8]>) {
        fs::write(self.file(), content).expect("the lock file can be written");
    }

    pub fn read(&self) -> String {
        fs::read_to_string(self.file()).expect("the lock file can be read")
    }

    /// What is in the directory.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir()).expect("the directory can be read");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// `serializer status --json`'s answer for the default lock.
    pub fn report(&self) -> serde_json::Value {
        let ended = self.run(&["status", "--json"]);
        assert_eq!(ended.code, 0, "{ended:?}");
        let mut report: serde_json::Value =
            serde_json::from_str(&ended.stdout).expect("status prints JSON");
        report["locks"][0].take()
    }

    /// Its state and the reason.
    pub fn state(&self) -> (String, String) {
        let report = self.report();
        let text = |key: &str| report[key].as_str().unwrap_or("").to_owned();
        (text("state"), text("why"))
    }

    /// The PIDs in its list of `holders` or `waiters`.
    pub fn pids(&self, list: &str) -> Vec<u32> {
        let report = self.report();
        let pids = report[list].as_array().expect("a list").iter();
        pids.map(|one| one["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid"))
            .collect()
    }
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; 128 + n when signal n killed it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn last_line(&self) -> &str {
        self.stderr.lines().last().unwrap_or("")
    }
}

/// The first line of a child with a pipe as its output.
pub fn first_line(child: &mut Child) -> String {
    // Not read to its end, which would wait for the child's.
    let output = child.stdout.as_mut().expect("its output is a pipe");
    next_line(&mut BufReader::with_capacity(1, output)).trim_end().to_owned()
}

/// The next line that a process writes, or nothing at its end; waits for it, with a limit.
pub fn next_line<R: Read + AsFd>(from: &mut BufReader<R>) -> String {
    let is_there = !from.buffer().is_empty() || is_readable(from.get_ref(), 3 * LIMIT);
    assert!(is_there, "the process says nothing");
    let mut line = String::new();
    from.read_line(&mut line).expect("it can be read");
    line
}

pub fn ended(command: &mut Command) -> Ended {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    Ended::from(output)
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let code = output
            .status
            .code()
            .or(output.status.signal().map(|signal| 128 + signal))
            .expect("an exit code");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// A bash that does what it is told, line by line: a process that can own locks, and die. Killed
/// when dropped.
pub struct Shell {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Shell {
    pub fn start(locks: &Locks) -> Self {
        Self::start_with(locks.command("bash"))
    }

    /// `command` must be a bash without arguments.
    pub fn start_with(mut command: Command) -> Self {
        let script = r#"while IFS= read -r line; do eval "$line"; echo "rc=$?"; done"#;
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("bash starts");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, stdin, stdout }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Begins to run a line; [`Shell::answer`] tells how it ended.
    pub fn send(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("the shell takes lines");
        writeln!(stdin, "{line}").expect("the shell reads");
    }

    /// The exit code of the line that was sent, and its output.
    pub fn answer(&mut self) -> (i32, String) {
        let mut output = String::new();
        loop {
            let answer = next_line(&mut self.stdout);
            assert_ne!(answer, "", "the shell died; it said {output:?}");
            match answer.strip_prefix("rc=") {
                Some(code) => return (code.trim().parse().expect("an exit code"), output),
                None => output.push_str(&answer),
            }
        }
    }

    /// Runs a line and returns its exit code and its output.
    pub fn output(&mut self, line: &str) -> (i32, String) {
        self.send(line);
        self.answer()
    }

    /// Runs a line and returns its exit code.
    pub fn run(&mut self, line: &str) -> i32 {
        self.output(line).0
    }

    /// `serializer lock`, which must succeed.
    pub fn lock(&mut self) {
        assert_eq!(self.run(r#""$S" lock 2>/dev/null"#), 0, "the shell gets the lock");
    }

    /// `serializer unlock`, which must succeed.
    pub fn unlock(&mut self) {
        assert_eq!(self.run(r#""$S" unlock 2>/dev/null"#), 0, "the shell releases the lock");
    }

    /// SIGKILL; returns when nothing but its zombie is left, which [`Shell::reap`] or dropping
    /// removes.
    pub fn kill(&mut self) {
        self.child.kill().expect("the shell can be killed");
    }

    /// SIGKILL, and waits until the PID is free.
    pub fn reap(mut self) {
        self.kill();
        self.child.wait().expect("the shell ends");
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A `serializer lock` that waits, known to do so by what it says.
pub struct Waiter {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Waiter {
    /// Returns when the program has said that it waits. `command` must be one that comes to that.
    pub fn start(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the waiter starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("its messages"));
        let mut line = String::new();
        while !line.contains("waiting for") {
            line = next_line(&mut stderr);
            assert_ne!(line, "", "the waiter ended without waiting");
        }
        Self { child, stderr }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_waiting(&mut self) -> bool {
        self.child.try_wait().expect("the waiter can be asked").is_none()
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("the waiter can be killed");
    }

    /// Returns when it sleeps: it has looked as often as it does without being woken. What happens
    /// before that would also be noticed by a waiter that nothing wakes.
    pub fn asleep(&self) {
        let what = format!("/proc/{}/wchan", self.pid());
        until(&format!("{what} does not say that the waiter sleeps"), || {
            fs::read_to_string(&what)
                .expect("the waiter runs, and can be looked at")
                .contains("poll")
        });
    }

    /// Waits until it ends, which must not take minutes.
    pub fn end(mut self) -> Ended {
        let pid = rustix::process::Pid::from_child(&self.child);
        if let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            assert!(is_readable(pidfd, LIMIT), "nothing has woken the waiter");
        }
        let mut stderr = String::new();
        self.stderr.read_to_string(&mut stderr).expect("its messages");
        let status = self.child.wait().expect("it ends");
        let code =
            status.code().or(status.signal().map(|signal| 128 + signal)).expect("an exit code");
        Ended { code, stdout: String::new(), stderr }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The Python plugin's algorithm, expressed anew: an exclusive create; on failure a look at the
/// first line, and an overwrite in place, without any lock, if that process cannot be signalled.
pub const LEGACY: &str = r#"
import os, sys, time

path, owner = sys.argv[1], sys.argv[2]

def attempt():
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        os.write(file, f"{owner}\n{time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        os.close(file)
        return True
    except FileExistsError:
        pass
    try:
        with open(path) as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return False
    if not lines:
        return False
    try:
        os.kill(int(lines[0]), 0)
        return False
    except OSError:
        pass
    with open(path, "w") as file:
        file.write(owner)
    return True
"#;

/// How often to repeat what may go wrong once in a while: `usual` times, or
/// `SERIALIZER_TEST_FACTOR` times that.
pub fn rounds(usual: usize) -> usize {
    let factor = std::env::var("SERIALIZER_TEST_FACTOR").ok();
    usual * factor.map_or(1, |factor| factor.parse().expect("SERIALIZER_TEST_FACTOR is a number"))
}

/// A bash in namespaces of its own, made by `unshare` with `flags`. It is root there, whichever
/// user runs the tests.
pub fn unshared_shell(locks: &Locks, flags: &[&str]) -> Shell {
    let mut command = locks.command("unshare");
    command.args(["--user", "--map-root-user"]).args(flags).arg("bash");
    let mut shell = Shell::start_with(command);
    assert_eq!(shell.run("test $(id -u) = 0"), 0, "namespaces can be made");
    shell
}

/// A bash that is PID 1 of a PID namespace of its own, as in a container. Killing `unshare`, its
/// parent, ends it.
pub fn pid_namespace(locks: &Locks) -> Shell {
    let mut shell =
        unshared_shell(locks, &["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    assert_eq!(shell.run("test $$ = 1"), 0);
    shell
}

/// A user without root's powers: the one that runs the tests or, if that is root, `nobody`.
pub struct OrdinaryUser {
    /// A copy, because the build directory may be out of reach.
    program: Option<(TempDir, PathBuf)>,
}

impl OrdinaryUser {
    /// Lets them into the directory.
    pub fn new(locks: &Locks) -> Self {
        if !rustix::process::geteuid().is_root() {
            return Self { program: None };
        }
        let dir = TempDir::with_prefix("serializer-program-").expect("a temporary directory");
        let program = dir.path().join("serializer");
        copy_program(Path::new(PROGRAM), &program);
        for (path, mode) in [(dir.path(), 0o755), (&program, 0o755), (locks.dir(), 0o777)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
                .expect("they can be let in");
        }
        Self { program: Some((dir, program)) }
    }

    /// `program ARGS…` as that user; the test process is its parent.
    pub fn command(&self, locks: &Locks, program: &str, args: &[&str]) -> Command {
        let mut command = match &self.program {
            None => locks.command(program),
            Some((_, copy)) => {
                let mut command = locks.command("setpriv");
                command
                    .args(["--reuid=65534", "--regid=65534", "--clear-groups", program])
                    .env("S", copy);
                command
            }
        };
        command.args(args);
        command
    }

    /// Runs `serializer ARGS…` as that user.
    pub fn run(&self, locks: &Locks, args: &[&str]) -> Ended {
        let program =
            self.program.as_ref().map_or(PROGRAM, |(_, copy)| copy.to_str().expect("UTF-8"));
        ended(&mut self.command(locks, program, args))
    }
}

/// Starts the Python plugin's algorithm, followed by `then`, as the plugin is run: a Python script
/// named `serializer`. Its parent, a shell, is the owner.
pub fn legacy_plugin(locks: &Locks, then: &str) -> Command {
    let dir = locks.dir().join("venv");
    fs::create_dir_all(&dir).expect("a directory for the plugin");
    let script = dir.join("serializer");
    fs::write(&script, format!("{LEGACY}\n{then}")).expect("the plugin's script");
    let mut command = locks.command("bash");
    command.args(["-c", r#"python3 "$0" "$1" "$$"; exit $?"#]).arg(script).arg(locks.file());
    command
}

/// Copies a program in a process of its own: this one may be starting others in another thread,
/// which would inherit the copy while it is open for writing, and make it a text file that is busy.
pub fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").args([from, to]).status().expect("cp runs").success());
}

/// How long to wait for what must come.
const LIMIT: Duration = Duration::from_secs(120);

/// Whether there is something to read within `limit`, or nothing will come any more.
fn is_readable(fd: impl AsFd, limit: Duration) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let limit = Timespec::try_from(limit).expect("a short time");
    poll(&mut fds, Some(&limit)) == Ok(1)
}

/// Waits for what must come, with a limit for when it does not.
pub fn until(what: &str, mut has_come: impl FnMut() -> bool) {
    let limit = Instant::now() + LIMIT;
    let mut pause = Duration::from_millis(1);
    let mut asked = Instant::now();
    while !has_come() {
        assert!(Instant::now() < limit, "{what}");
        // A poll that starts a program must not take the processor from the awaited process.
        let rest = (4 * asked.elapsed()).min(Duration::from_millis(500));
        std::thread::sleep(pause.max(rest));
        pause = (2 * pause).min(Duration::from_millis(64));
        asked = Instant::now();
    }
}

/// A command that tells which signals it gets, a line each, until its stdin ends. Its state in
/// /proc is that of the thread that waits for signals: it sleeps when all are told.
pub const TELLER: &str = r#"
import os, signal, sys, threading
names = ["SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCONT"]
wanted = {getattr(signal, name) for name in names}
# A handler in Python would not run for a signal that comes just before the read begins.
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
def end():
    sys.stdin.buffer.read()
    os.write(1, b"end\n")
    os._exit(0)
threading.Thread(target=end, daemon=True).start()
os.write(1, b"ready %d\n" % os.getpid())
while True:
    os.write(1, f"{signal.Signals(signal.sigwait(wanted)).name}\n".encode())
"#;

/// Reports that a test cannot run if the program uses the portable implementation (`--cfg
/// serializer_portable`).
pub fn lacks(what: &str) -> bool {
    if cfg!(serializer_portable) {
        skipped(&format!("without {what}"));
    }
    cfg!(serializer_portable)
}

/// Says that a test cannot run here, past the harness, which keeps what passing tests print;
/// scripts/test.sh counts it.
pub fn skipped(why: &str) {
    writeln!(std::io::stdout(), "\nSKIPPED: {why}").expect("it can be said");
}
