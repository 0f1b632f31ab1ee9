//! Servers of all kinds, for tests that break them, and networks between them and the program.

#![allow(dead_code, reason = "each test binary uses another part of this")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::proxy::Proxy;
use crate::support::servers::buckets::{
    Azurite, azure_url_at, s3_url_at, shared_azure, shared_s3, start_s3,
};
use crate::support::servers::emulators::{Dynalite, Moto};
use crate::support::servers::{MariaDb, Options, Postgres};
use crate::support::stores::{Kind, Store};
use crate::support::{Ended, until};

/// A server of a test's own.
pub enum Server {
    Postgres(Postgres),
    MariaDb(MariaDb),
    Dynalite(Dynalite),
    /// It goes and comes back as its users see that: the emulator would forget everything. Without
    /// an emulator of its own it is a way to the one that tests share.
    S3(Option<Moto>, Proxy),
    /// The same.
    Azure(Option<Azurite>, Proxy),
    /// An emulator that tests share, for tests that break the network before it.
    Shared(Kind),
}

/// The same for all but buckets.
macro_rules! of_all {
    ($self:expr, $server:ident => $what:expr, $moto:pat, $proxy:pat => $else:expr) => {
        match $self {
            Server::Postgres($server) => $what,
            Server::MariaDb($server) => $what,
            Server::Dynalite($server) => $what,
            Server::S3($moto, $proxy) => $else,
            Server::Azure($moto, $proxy) => $else,
            Server::Shared(kind) => panic!("tests share {kind:?}"),
        }
    };
}

impl Server {
    /// One of each kind, which can be killed and stopped.
    pub fn all() -> Vec<Self> {
        let s3 = Self::S3(None, Proxy::to(shared_s3().address()));
        let azure = Self::Azure(None, Proxy::to(shared_azure().address()));
        Self::databases_and([s3, azure])
    }

    /// The same, which can be paused, too.
    pub fn all_alone() -> Vec<Self> {
        let (moto, azurite) = (start_s3(), Azurite::start());
        let (s3, azure) = (Proxy::to(moto.address()), Proxy::to(azurite.address()));
        Self::databases_and([Self::S3(Some(moto), s3), Self::Azure(Some(azurite), azure)])
    }

    fn databases_and(buckets: [Self; 2]) -> Vec<Self> {
        Self::both().into_iter().chain([Self::Dynalite(Dynalite::start())]).chain(buckets).collect()
    }

    /// Those that tests share.
    pub fn shared() -> [Self; 5] {
        [Kind::Postgres, Kind::MariaDb, Kind::DynamoDb, Kind::S3, Kind::Azure].map(Self::Shared)
    }

    /// Databases, which have clocks.
    pub fn both() -> [Self; 2] {
        Self::both_with(Options::default())
    }

    pub fn both_with(options: Options) -> [Self; 2] {
        [Self::Postgres(Postgres::start_with(options)), Self::MariaDb(MariaDb::start_with(options))]
    }

    /// A lock there, with leases of this length.
    pub fn store(&self, lease: Duration) -> Store {
        Store { lease: lease.as_secs_f64().to_string(), ..Store::at(&self.url()) }
    }

    pub fn url(&self) -> String {
        match self {
            Self::S3(_, proxy) => s3_url_at(proxy.addr()),
            Self::Azure(_, proxy) => azure_url_at(proxy.addr()),
            Self::Shared(kind) => Store::of(*kind, Duration::ZERO).url,
            server => of_all!(server, server => server.url(), _, _ => panic!("a bucket")),
        }
    }

    pub fn address(&self) -> SocketAddr {
        of_all!(self, server => server.address(), _, proxy => proxy.addr())
    }

    pub fn kill(&mut self) {
        of_all!(self, server => server.kill(), _, proxy => proxy.cut());
    }

    pub fn stop(&mut self) {
        of_all!(self, server => server.stop(), _, proxy => proxy.cut());
    }

    pub fn restart(&mut self) {
        of_all!(self, server => server.restart(), _, proxy => proxy.mend());
    }

    pub fn pause(&self) {
        of_all!(self, server => server.pause(), moto, _ => moto.as_ref().expect("one of its \
            own").pause());
    }

    pub fn resume(&self) {
        of_all!(self, server => server.resume(), moto, _ => moto.as_ref().expect("one of its \
            own").resume());
    }

    /// The clock by which leases end.
    pub fn set_clock(&self, clock: &str) {
        of_all!(self, server => server.set_clock(clock), _, _ => panic!("it has none"));
    }

    pub fn certificate(&self) -> String {
        of_all!(self, server => server.certificate(), _, _ => panic!("it has none"))
    }

    /// The answer to statements of the superuser.
    pub fn sql(&self, sql: &str) -> String {
        match self {
            Self::Postgres(server) => server.psql(sql),
            Self::MariaDb(server) => server.sql(sql),
            _ => panic!("it does not take SQL"),
        }
    }
}

/// The same for each of them, side by side: they wait for clocks, and not for the processor.
pub fn each<T: Send>(all: impl IntoIterator<Item = T>, test: impl Fn(T) + Sync) {
    let test = &test;
    thread::scope(|scope| all.into_iter().for_each(|one| drop(scope.spawn(move || test(one)))));
}

/// Another way to the same lock, which can be broken.
pub fn proxied(store: &Store) -> (Proxy, Store) {
    let address = store.address();
    let proxy = Proxy::to(address.parse().expect("an address"));
    let through = store.through(&store.url.replace(&address, &proxy.addr().to_string()));
    (proxy, through)
}

/// How often its lease was renewed.
pub fn renewals(store: &Store) -> u64 {
    // With time for its answers, which short leases leave little of.
    let patient = Store { lease: "600".to_owned(), ..store.through(&store.url) };
    patient.holder("lease_renewals").as_u64().expect("it is held")
}

/// Returns when it was renewed twice more, of which one has begun since.
pub fn until_renewed(store: &Store) {
    let before = renewals(store);
    until("it is not renewed", || renewals(store) > before + 1);
}

/// `serializer ARGS…`, running.
pub fn start(store: &Store, args: &[&str]) -> Child {
    let mut command = store.serializer(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

pub fn end(mut child: Child) -> Ended {
    until("it does not end", || child.try_wait().expect("it can be asked").is_some());
    child.wait_with_output().expect("it ends").into()
}

/// Reports its start, and then logs again and again that it runs, in seconds since boot: all hosts
/// of the tests share that clock. Uses little processor time, and starts no processes: its own load
/// must not delay its end.
pub const WORK: &str = r#"trap 'exit 0' TERM; echo begun; exec {pause}<> <(:) >> first
while read -r up _ < /proc/uptime; do echo "$up"; read -rt 0.01 -u "$pause"; done"#;

/// Logs once.
pub const SUCCESSOR: &str = "read -r up _ < /proc/uptime; echo $up > second";

/// Checks that [`WORK`] had ended when [`SUCCESSOR`] began.
pub fn assert_no_overlap(dir: &Path, what: &str) {
    let seconds = |file: &str| -> f64 {
        let noted = fs::read_to_string(dir.join(file)).expect("it was noted");
        noted.lines().last().expect("it has run").parse().expect("seconds")
    };
    let (last, next) = (seconds("first"), seconds("second"));
    assert!(last <= next, "{what}: still at work at {last}, the next one at {next}");
}

/// A waiter with its messages in a file.
pub struct Logged {
    child: Child,
    log: PathBuf,
}

impl Logged {
    pub fn start(store: &Store, args: &[&str]) -> Self {
        let log = store.locks.dir().join("log");
        let mut command = store.serializer(args);
        command.stderr(fs::File::create(&log).expect("a file"));
        Self::of(command, log)
    }

    /// What it says is in the file.
    pub fn of(mut command: Command, log: PathBuf) -> Self {
        Self { child: command.spawn().expect("it starts"), log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it can be signalled");
    }

    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).expect("it can be read")
    }

    pub fn until_said(&self, what: &str) {
        until("it does not say it", || self.said().contains(what));
    }

    pub fn end(mut self) -> (i32, String) {
        until("it does not end", || self.child.try_wait().expect("it can be asked").is_some());
        (self.child.wait().expect("it ends").code().expect("a code"), self.said())
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
