//! Keeps a server for a test: its processes, its directory and its port. All of it is gone when the
//! test is, however that ends.
//!
//! A shell does this, outside of the test: it ends the server and removes the directory when its
//! stdin does, which the kernel closes whatever becomes of the test. `PR_SET_PDEATHSIG` in the test
//! would not do: it is about the thread that starts another process, and a server may be shared by
//! tests that run in threads of their own. But it ends the server should the shell be killed.
//!
//! The server is the first process of a PID namespace. Killing that one kills all, at once, even
//! those that have detached themselves. What they have in shared memory would survive it: they have
//! an IPC namespace and a /dev/shm of their own.

#![allow(dead_code, reason = "each test binary uses another part of this")]

use std::fs;
use std::io::{BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::support::{next_line, until};

/// Each line that it reads is a command to start; it answers with the PID. Such a job has one
/// child, the first process of the namespace, unless it is about to start it or has seen it end.
/// Then the next look finds it, or no job.
const SCRIPT: &str = r#"
    dir=$(mktemp --directory --tmpdir serializer-server-XXXXXXXXXX) || exit
    echo "$dir"
    while IFS= read -r command; do
        eval "exec $command" < /dev/null >> "$dir/log" 2>&1 &
        echo $!
    done
    while jobs=$(jobs -rp) && [ "$jobs" ]; do
        for job in $jobs; do
            kill -KILL $(< "/proc/$job/task/$job/children")
        done
    done 2> /dev/null
    rm -rf "$dir"
"#;

/// How long something may take that takes a second: after that the machine is not slow, but
/// something is wrong.
const LIMIT: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// The user of the servers if the tests run as root, which the servers refuse: `nobody`.
const NOBODY: &str = "65534";

/// The shell.
pub struct Keeper {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    dir: PathBuf,
}

impl Keeper {
    pub fn new() -> Self {
        let mut command = Command::new("bash");
        // Not in the test's process group: what a terminal sends there must not keep it from
        // tidying up.
        command
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .env_clear();
        for name in ["PATH", "TMPDIR"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        let mut child = command.spawn().expect("bash starts");
        let orders = child.stdin.take();
        let mut answers = BufReader::new(child.stdout.take().expect("its output"));
        let dir = next_line(&mut answers);
        let dir = PathBuf::from(dir.trim_end());
        assert!(dir.is_dir(), "a temporary directory");
        let keeper = Self { child, orders, answers, dir };
        keeper.give_away();
        keeper
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of what has this name in the directory.
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).into_os_string().into_string().expect("UTF-8")
    }

    pub fn write(&self, name: &str, content: &str) {
        fs::write(self.dir.join(name), content).expect("a file in the directory");
    }

    pub fn log(&self) -> String {
        fs::read(self.dir.join("log")).map_or_else(
            |error| error.to_string(),
            |log| String::from_utf8_lossy(&log).into_owned(),
        )
    }

    /// Lets the servers have what is in the directory.
    pub fn give_away(&self) {
        if is_root() {
            let owner = format!("{NOBODY}:{NOBODY}");
            let chown = Command::new("chown").args(["--recursive", &owner]).arg(&self.dir).status();
            assert!(chown.expect("chown runs").success());
        }
    }

    /// Starts a command as the first process of its namespaces, and returns what waits for that
    /// one.
    fn order(&mut self, command: &[String]) -> Pid {
        let identity =
            [&format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}"), "--clear-groups"];
        let mut words = vec!["setpriv"];
        words.extend(identity.iter().filter(|_| is_root()));
        words.extend([
            "--pdeathsig=KILL",
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "--pid",
            "--ipc",
            "--fork",
        ]);
        // Root there, for the mounts, and then an ordinary user again. Scripts of servers look for
        // their children in /proc.
        words.extend(["--kill-child", "bash", "-c"]);
        words
            .push(r#"mount -t tmpfs tmpfs /dev/shm && mount -t proc proc /proc && exec "$0" "$@""#);
        words.extend(["unshare", "--user", "--map-user=1000", "--map-group=1000"]);
        words.extend(command.iter().map(String::as_str));
        let words: Vec<_> =
            words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
        writeln!(self.orders.as_mut().expect("it takes orders"), "{}", words.join(" "))
            .expect("it reads them");
        let pid = next_line(&mut self.answers);
        Pid::from_raw(pid.trim().parse().expect("a PID")).expect("a PID")
    }

    /// Runs a script to its end, in the directory, where it says when it has succeeded. It must be
    /// a line.
    pub fn run(&mut self, script: &str) {
        let done = self.dir.join("done");
        let script = format!("set -e; cd '{}'; {script}; touch done", self.dir.display());
        let pid = self.order(&["bash".to_owned(), "-c".to_owned(), script]);
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => self.ended(&pidfd),
            Err(error) => assert_eq!(error, Errno::SRCH),
        }
        assert!(done.exists(), "{}", self.log());
        fs::remove_file(&done).expect("it is ours");
    }

    /// Waits until a process has ended.
    fn ended(&self, pidfd: &OwnedFd) {
        let ready = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&LIMIT));
        assert_eq!(ready, Ok(1), "it does not end: {}", self.log());
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}

/// A server, and how to start it.
pub struct Server {
    pub keeper: Keeper,
    port: Port,
    command: Vec<String>,
    /// Whether it answers.
    is_ready: Box<dyn Fn() -> bool + Send + Sync>,
    running: Option<Running>,
}

struct Running {
    /// What waits for the first process of the namespace, which is the last to be gone.
    wrapper: OwnedFd,
    first: Pid,
    first_fd: OwnedFd,
}

impl Server {
    /// Returns when it answers.
    pub fn start(
        keeper: Keeper,
        port: Port,
        command: Vec<String>,
        is_ready: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        let mut server =
            Self { keeper, port, command, is_ready: Box::new(is_ready), running: None };
        server.restart();
        server
    }

    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// Starts it where it was before, and returns when it answers.
    pub fn restart(&mut self) {
        assert!(self.running.is_none(), "it runs");
        let pid = self.keeper.order(&self.command);
        let wrapper = pidfd_open(pid, PidfdFlags::empty())
            .unwrap_or_else(|error| panic!("{error}: {}", self.keeper.log()));
        let has_ended = || {
            poll(&mut [PollFd::new(&wrapper, PollFlags::IN)], Some(&Timespec::default())) != Ok(0)
        };
        let limit = Instant::now() + Duration::from_secs(60);
        let mut first = None;
        // Nothing tells when it answers but asking it. It takes less than a second: recovery has
        // next to nothing to do.
        loop {
            first = first.or_else(|| children(pid).first().copied());
            if first.is_some() && (self.is_ready)() {
                break;
            }
            assert!(
                !has_ended() && Instant::now() < limit,
                "the server does not start:\n{}",
                self.keeper.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        // What answers must be this server.
        assert!(!has_ended(), "{}", self.keeper.log());
        let first = first.expect("it has been seen");
        let first_fd = pidfd_open(first, PidfdFlags::empty()).expect("it runs");
        self.running = Some(Running { wrapper, first, first_fd });
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the server runs")
    }

    /// Sends a signal to its first process, and returns when all of them are gone.
    pub fn end(&mut self, signal: Signal) {
        let running = self.running.take().expect("the server runs");
        pidfd_send_signal(&running.first_fd, signal).expect("it can be ended");
        self.keeper.ended(&running.wrapper);
    }

    /// Stops all of its processes where they are, and returns when none of them moves any more.
    pub fn pause(&self) {
        let first = self.running().first;
        until("the server's processes do not stop", || {
            // The first one first: once it has stopped, no new process starts.
            let moving: Vec<_> = tree(first).into_iter().filter(|pid| is_moving(*pid)).collect();
            for pid in &moving {
                send(*pid, Signal::STOP);
            }
            moving.is_empty()
        });
    }

    pub fn resume(&self) {
        for pid in tree(self.running().first) {
            send(pid, Signal::CONT);
        }
    }
}

/// One that has ended by itself needs no signal.
fn send(pid: Pid, signal: Signal) {
    let sent = rustix::process::kill_process(pid, signal);
    assert!(matches!(sent, Ok(()) | Err(Errno::SRCH)), "{sent:?}");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn threads(pid: Pid) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
    entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The children of all of its threads.
fn children(pid: Pid) -> Vec<Pid> {
    let lists = threads(pid)
        .into_iter()
        .filter_map(|thread| fs::read_to_string(thread.join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_ascii_whitespace()
                .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// A process and all that come from it.
fn tree(pid: Pid) -> Vec<Pid> {
    let mut all = vec![pid];
    for child in children(pid) {
        all.extend(tree(child));
    }
    all
}

fn is_moving(pid: Pid) -> bool {
    threads(pid).into_iter().any(|thread| {
        let stat = fs::read_to_string(thread.join("stat")).unwrap_or_default();
        // After the name, in which there may be anything.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['T', 'Z', 'X']))
    })
}

/// A port of the loopback interface for this test alone, whether the server runs or not.
pub struct Port {
    number: u16,
    /// Bound, and not listening. That keeps other processes from the port, except servers, which
    /// also share it. The kernel does not assign the port as a free one while a socket holds it
    /// that was not shared from the beginning.
    _reserved: OwnedFd,
}

impl Port {
    pub fn reserve() -> Self {
        use rustix::net::{
            AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt,
        };
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .expect("a socket");
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        sockopt::set_socket_reuseaddr(&socket, true).expect("it can be shared");
        let address = getsockname(&socket).expect("it has an address");
        Self {
            number: SocketAddrV4::try_from(address).expect("of this kind").port(),
            _reserved: socket,
        }
    }

    pub fn number(&self) -> u16 {
        self.number
    }
}

/// The path of a program: the PATH may lack those of servers; on Debian it lacks PostgreSQL's.
pub fn find_program(name: &str) -> String {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<_> = std::env::split_paths(&path).collect();
    dirs.extend(["/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/libexec"].map(PathBuf::from));
    let mut versions: Vec<_> =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().collect();
    versions.sort_by_key(|version| version.file_name().to_string_lossy().parse().unwrap_or(0));
    // Before the rest: Debian's `psql` on the PATH is a script that looks for a server of the
    // system.
    dirs.splice(0..0, versions.iter().rev().map(|version| version.path().join("bin")));
    let found = dirs.into_iter().map(|dir| dir.join(name)).find(|program| program.is_file());
    let found =
        found.unwrap_or_else(|| panic!("`{name}` is not installed: scripts/test.sh does that"));
    found.into_os_string().into_string().expect("UTF-8")
}

/// Fills `data` in the keeper's directory from a template that is made once, in the build
/// directory; says whether there was one.
pub fn copy_template(keeper: &Keeper, name: &str) -> bool {
    let template = template(name);
    template.exists() && {
        let copied =
            Command::new("cp").arg("-r").args([&template, &keeper.dir().join("data")]).status();
        let private =
            Command::new("chmod").args(["-R", "u=rwX,go="]).arg(keeper.dir().join("data")).status();
        keeper.give_away();
        copied.expect("cp runs").success() && private.expect("chmod runs").success()
    }
}

/// Makes the template of what `data` is now: completely or not at all, as other tests may be doing
/// so. It is for all users.
pub fn make_template(keeper: &Keeper, name: &str) {
    let Ok(dir) = tempfile::TempDir::with_prefix_in("template-", env!("CARGO_TARGET_TMPDIR"))
    else {
        // Another user's build directory is read-only: then each server is made from scratch.
        return;
    };
    let copied = Command::new("cp")
        .arg("-r")
        .args([&keeper.dir().join("data"), &dir.path().join("data")])
        .status();
    let public = Command::new("chmod").args(["-R", "a+rX"]).arg(dir.path().join("data")).status();
    assert!(copied.expect("cp runs").success() && public.expect("chmod runs").success());
    // It cannot if another one is in its place, which is as good.
    let _ = fs::rename(dir.path().join("data"), template(name));
}

fn template(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}
