//! Other hosts, simulated: a network of their own with a cable that can be pulled, a name, a
//! machine's and a boot's identity and processes of their own. All in a user namespace, which
//! requires no privileges.

#![allow(dead_code, reason = "each test binary uses another part of this")]

use std::collections::HashMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use crate::support::proxy::Proxy;
use crate::support::{Shell, guard, until};

/// At this end of each host's cable.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// Listens in the network of the process that runs it, and gives the socket away.
const LISTENER: &str = r"
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
socket.send_fds(socket.socket(fileno=0), [b'x'], [listener.fileno()])
";

/// Succeeds if all threads are stopped or have ended, but those of the first process and its own.
const ARE_STOPPED: &str = r#"
for status in /proc/[0-9]*/task/[0-9]*/status; do
    case $status in /proc/1/* | "/proc/$$/"*) continue ;; esac
    while read -r key value _; do
        [ "$key" != State: ] || [ "$value" = T ] || [ "$value" = Z ] || exit 1
    done < "$status"
done 2> /dev/null
exit 0"#;

/// A host. All of its processes end when it is dropped.
pub struct Host {
    /// What leads to the servers, by port. Before the shells, so that connections end first.
    relays: Mutex<HashMap<u16, Proxy>>,
    /// The first process of the host is this shell. It is the one that `inside` has started.
    inside: Shell,
    first: Pid,
    first_fd: OwnedFd,
    /// Has the other end of the cable.
    outside: Mutex<Shell>,
    outside_pid: u32,
    address: Ipv4Addr,
    name: String,
    machine: u32,
    boot: u32,
}

impl Host {
    pub fn new(name: &str) -> Self {
        let number = next_number();
        Self::with(name, number, number)
    }

    /// With the same name and the same machine's identity, as containers of one image have them.
    pub fn like(other: &Self) -> Self {
        Self::with(&other.name, other.machine, next_number())
    }

    /// And with the same boot's identity, as containers of one image on one machine have it, and
    /// copies of a virtual machine.
    pub fn copy_of(other: &Self) -> Self {
        Self::with(&other.name, other.machine, other.boot)
    }

    fn with(name: &str, machine: u32, boot: u32) -> Self {
        let number = next_number();
        // Each is alone with its cable: addresses may come again.
        let address =
            Ipv4Addr::new(10, 99, 0, u8::try_from(number % 250 + 2).expect("less than 252"));

        let mut outside = plain("unshare");
        outside.args(["--user", "--map-root-user", "--net", "bash"]);
        let mut outside = Shell::start_with(outside);
        run(&mut outside, "test $(id -u) = 0");

        let mut inside = enter(outside.pid(), &["--net"]);
        inside.args([
            "unshare",
            "--net",
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "bash",
        ]);
        // Where its child was killed it says that it cannot unblock that signal for itself.
        inside.stderr(Stdio::null());
        let mut inside = Shell::start_with(inside);
        run(&mut inside, "test $$ = 1");
        let pid = inside.pid();
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
        let first = Pid::from_raw(children.trim().parse().expect("a PID")).expect("a PID");
        let first_fd = pidfd_open(first, PidfdFlags::empty()).expect("it runs");

        run(
            &mut outside,
            &format!(
                "ip link add name cable type veth peer name eth0 netns {}",
                first.as_raw_nonzero()
            ),
        );
        run(
            &mut outside,
            &format!("ip address add {OUTSIDE}/24 dev cable && ip link set cable up"),
        );
        run(
            &mut inside,
            &format!(
                "ip address add {address}/24 dev eth0 && ip link set eth0 up && ip link set lo up"
            ),
        );
        // Known for ever: a pulled cable loses packets, without an error about a missing neighbour.
        run(
            &mut inside,
            &format!(
                "ip neighbour replace {OUTSIDE} dev eth0 nud permanent lladdr {}",
                mac(&mut outside)
            ),
        );
        run(&mut inside, &format!("hostname {name}"));
        // The files are hidden as soon as they are bound to their places, and leave no trace.
        run(
            &mut inside,
            &format!(
                "mount -t tmpfs tmpfs /tmp && printf '%032x\\n' {machine} > /tmp/machine-id && \
                 printf '{boot:08x}-0000-4000-8000-000000000000\\n' > /tmp/boot_id && mount --bind \
                 /tmp/machine-id /etc/machine-id && mount --bind /tmp/boot_id \
                 /proc/sys/kernel/random/boot_id && umount /tmp"
            ),
        );
        let outside_pid = outside.pid();
        let (relays, outside, name) = (Mutex::default(), Mutex::new(outside), name.to_owned());
        Self { relays, inside, first, first_fd, outside, outside_pid, address, name, machine, boot }
    }

    /// Its own address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// `program` as root of this host, in `/`, with nothing in its environment but the PATH. What
    /// is killed is the program.
    pub fn command(&self, program: &str) -> Command {
        let first = u32::try_from(self.first.as_raw_nonzero().get()).expect("a PID");
        let mut command = enter(first, &["--net", "--mount", "--uts", "--ipc", "--pid"]);
        // It is the child of what enters, which is all that a test can kill.
        command.args(["setpriv", "--pdeathsig=KILL", program]);
        command
    }

    /// Stops all of its processes at once, as if it slept. Its clocks go on.
    pub fn suspend(&self) {
        // While a process starts another one (vfork), the signal may stop the new one alone, for
        // which the other then waits.
        until("all of it is stopped", || {
            self.signal_all("STOP");
            let is_stopped =
                self.command("bash").args(["-c", ARE_STOPPED]).status().expect("it runs").success();
            if !is_stopped {
                self.signal_all("CONT");
            }
            is_stopped
        });
    }

    /// Lets them all go on, after [`suspend`](Self::suspend), and those that have been made by
    /// [`command`](Self::command) of which these are the PIDs.
    pub fn resume(&self, entered: &[u32]) {
        self.signal_all("CONT");
        for pid in entered {
            // The process that has entered the host stops itself as soon as it sees its child
            // stopped, and no process there can let it go on.
            let state =
                || std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it is there");
            until("it does not stop with its child", || state().contains(") T "));
            let pid = Pid::from_raw(i32::try_from(*pid).expect("a PID")).expect("a PID");
            kill_process(pid, Signal::CONT).expect("it can be signalled");
        }
    }

    /// Every process but the first one and that which sends the signal.
    fn signal_all(&self, signal: &str) {
        let sent = self.command("kill").args([&format!("-{signal}"), "--", "-1"]).status();
        assert!(sent.expect("it runs").success());
    }

    /// Where a server that listens at this port of the loopback interface can be reached from this
    /// host.
    pub fn address_of_server(&self, port: u16) -> SocketAddr {
        let address = SocketAddr::from((OUTSIDE, port));
        let mut relays = self.relays.lock().expect("no panic");
        let relay =
            || Proxy::on(self.listen(address), SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        relays.entry(port).or_insert_with(relay);
        address
    }

    /// A socket that listens at the other end of the cable, for use in this process, which has
    /// another network.
    fn listen(&self, address: SocketAddr) -> TcpListener {
        let (here, there) = UnixStream::pair().expect("a pair of sockets");
        let mut command = enter(self.outside_pid, &["--net"]);
        command.args([
            "python3",
            "-c",
            LISTENER,
            &address.ip().to_string(),
            &address.port().to_string(),
        ]);
        let made = command.stdin(Stdio::from(OwnedFd::from(there))).status().expect("it runs");
        assert!(made.success(), "{command:?}");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&here, &mut [IoSliceMut::new(&mut [0])], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            .expect("it was sent");
        let sockets = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        });
        TcpListener::from(sockets.flatten().next().expect("a socket"))
    }

    /// Pulls the cable: packets are lost, both ways, without an error.
    pub fn link_down(&self) {
        run(&mut self.outside.lock().expect("no panic"), "ip link set cable down");
    }

    pub fn link_up(&self) {
        run(&mut self.outside.lock().expect("no panic"), "ip link set cable up");
    }

    /// A crash of the whole host: its peers get no message. Its processes are gone when this
    /// returns.
    pub fn lose_power(&self) {
        self.link_down();
        self.kill();
    }

    fn kill(&self) {
        let _ = pidfd_send_signal(&self.first_fd, Signal::KILL);
        let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
        // The first process of a namespace is gone when all of them are.
        let ended = poll(&mut [PollFd::new(&self.first_fd, PollFlags::IN)], Some(&limit));
        assert_eq!(ended, Ok(1), "the host's processes do not end");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.kill();
        }
    }
}

fn next_number() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

fn plain(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", path()).stdin(Stdio::null());
    guard::mark(&mut command);
    command
}

/// With the directory of `ip`, which the PATH may lack.
fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Into the user namespace of a process and its other `namespaces`, as root there.
fn enter(pid: u32, namespaces: &[&str]) -> Command {
    let mut command = plain("nsenter");
    command
        .args(["--target", &pid.to_string(), "--user", "--preserve-credentials"])
        .args(namespaces);
    command
}

fn run(shell: &mut Shell, line: &str) {
    let (code, said) = shell.output(&format!("{line} 2>&1"));
    assert_eq!(code, 0, "{line}: {said}");
}

/// The address of the cable's outer end.
fn mac(outside: &mut Shell) -> String {
    let (code, said) = outside.output("ip -brief link show cable");
    assert_eq!(code, 0, "{said}");
    said.split_ascii_whitespace().nth(2).expect("its address").to_owned()
}
