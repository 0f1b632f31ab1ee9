//! A lock in a store that two simulated hosts share.

#![allow(dead_code, reason = "each test binary uses another part of this")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use serializer::sys::random::random_token;

use crate::support::hosts::Host;
use crate::support::servers::buckets::{azure_url_at, s3_url_at, shared_azure, shared_s3};
use crate::support::servers::emulators::{dynamodb_at, shared_dynalite};
use crate::support::servers::{shared_mariadb, shared_postgres, url_at};
pub use crate::support::stores::Kind;
use crate::support::{Ended, Locks, PROGRAM, Shell, Waiter, ended, first_line};

/// Databases, which have clocks.
pub const KINDS: [Kind; 2] = [Kind::Postgres, Kind::MariaDb];

/// Hosts are told apart by their numbers, 0 and 1.
pub struct Cluster {
    pub hosts: [Host; 2],
    /// A directory that both see.
    pub locks: Locks,
    pub kind: Kind,
    /// The lock's.
    pub name: String,
    pub lease: Duration,
}

impl Cluster {
    /// Hosts named `one` and `two`.
    pub fn new(kind: Kind, lease: Duration) -> Self {
        Self::of(kind, lease, [Host::new("one"), Host::new("two")])
    }

    pub fn of(kind: Kind, lease: Duration, hosts: [Host; 2]) -> Self {
        let name = random_token().expect("random numbers");
        let locks = Locks::new();
        if kind == Kind::Directory {
            locks.is_shared();
        }
        let mode = fs::Permissions::from_mode(0o777);
        fs::set_permissions(locks.dir(), mode).expect("it can be shared");
        Self { hosts, locks, kind, name, lease }
    }

    /// The store's address on a host.
    pub fn url(&self, host: usize) -> String {
        match self.kind {
            Kind::Postgres => url_at(self.hosts[host].address_of_server(shared_postgres().port())),
            Kind::MariaDb => {
                let server = shared_mariadb();
                let address = self.hosts[host].address_of_server(server.port());
                server.url().replace(&server.host_port(), &address.to_string())
            }
            Kind::DynamoDb => {
                dynamodb_at(self.hosts[host].address_of_server(shared_dynalite().port()))
            }
            Kind::S3 => s3_url_at(self.hosts[host].address_of_server(shared_s3().port())),
            Kind::Azure => {
                azure_url_at(self.hosts[host].address_of_server(shared_azure().address().port()))
            }
            // They see the same files.
            Kind::Directory => format!("file://{}", self.locks.dir().display()),
        }
    }

    /// `program` on a host, in the shared directory, with the lock in its environment.
    pub fn command(&self, host: usize, program: &str) -> Command {
        let mut command = self.hosts[host].command("env");
        command.arg(format!("--chdir={}", self.locks.dir().display())).arg(program);
        command
            .env("S", PROGRAM)
            .env("SERIALIZER_STORE", self.url(host))
            .env("SERIALIZER_FILE_NAME", &self.name);
        command.env("SERIALIZER_LEASE_SECONDS", self.lease.as_secs_f64().to_string());
        command
    }

    pub fn serializer(&self, host: usize, args: &[&str]) -> Command {
        let mut command = self.command(host, PROGRAM);
        command.args(args);
        command
    }

    /// Runs `serializer ARGS…` to its end.
    pub fn run(&self, host: usize, args: &[&str]) -> Ended {
        ended(&mut self.serializer(host, args))
    }

    pub fn shell(&self, host: usize) -> Shell {
        Shell::start_with(self.command(host, "bash"))
    }

    /// A `serializer ARGS…` that waits.
    pub fn waiter(&self, host: usize, args: &[&str]) -> Waiter {
        Waiter::start(self.serializer(host, args))
    }

    /// A `serializer run ARGS… bash -c SCRIPT`, after the script's first output.
    pub fn running(&self, host: usize, args: &[&str], script: &str) -> Child {
        let mut command =
            self.serializer(host, &[&["run"], args, &["bash", "-c", script]].concat());
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        assert_ne!(first_line(&mut child), "", "the command does not start");
        child
    }

    /// What `serializer status --json` says there.
    pub fn report(&self, host: usize) -> Value {
        let ended = self.run(host, &["status", "--json"]);
        assert_eq!(ended.code, 0, "{ended:?}");
        let mut report: Value = serde_json::from_str(&ended.stdout).expect("status prints JSON");
        report["locks"][0].take()
    }

    pub fn state(&self, host: usize) -> String {
        self.report(host)["state"].as_str().expect("a state").to_owned()
    }

    /// What is in a file of the shared directory; nothing if there is none.
    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.locks.dir().join(file)).unwrap_or_default()
    }

    /// A pipe by which a command is told to go on.
    pub fn make_fifo(&self, name: &str) {
        assert_eq!(ended(Command::new("mkfifo").arg(self.locks.dir().join(name))).code, 0);
    }

    /// Returns when a process has begun to read it.
    pub fn tell(&self, fifo: &str, line: &str) {
        fs::write(self.locks.dir().join(fifo), format!("{line}\n")).expect("it is read");
    }
}

pub fn end(child: Child) -> Ended {
    child.wait_with_output().expect("it ends").into()
}
