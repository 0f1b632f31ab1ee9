//! Locks in real stores, for programs: each test has a lock of its own in a server that the tests of a program share.

#![allow(dead_code, reason = "each test binary uses another part of this")]

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use serializer::record::random_token;

use super::common::{Ended, Locks, PROGRAM, Shell, Waiter, ended};
use super::servers::buckets::{s3_url_at, shared_s3};
use super::servers::{shared_mariadb, shared_postgres};

/// One lock in a store.
pub struct Store {
    /// For what needs a directory.
    pub locks: Locks,
    pub url: String,
    pub name: String,
    /// In seconds.
    pub lease: String,
}

impl Store {
    /// At an address.
    pub fn at(url: &str) -> Self {
        let name = random_token().expect("random numbers");
        Self { locks: Locks::new(), url: url.to_owned(), name, lease: "600".to_owned() }
    }

    /// One of each kind, whose leases last so long.
    pub fn all(lease: Duration) -> Vec<Self> {
        let without_clock = Self::of([s3_url_at(shared_s3().address())], lease);
        Self::with_clocks(lease).into_iter().chain(without_clock).collect()
    }

    /// One of each kind that has a clock: one look tells there whether a lease is over.
    pub fn with_clocks(lease: Duration) -> Vec<Self> {
        Self::of([shared_postgres().url(), shared_mariadb().url()], lease)
    }

    fn of<const N: usize>(urls: [String; N], lease: Duration) -> Vec<Self> {
        urls.map(|url| Self { lease: lease.as_secs_f64().to_string(), ..Self::at(&url) }).into()
    }

    /// Where its server listens.
    pub fn address(&self) -> SocketAddr {
        let at = self.url.find("127.0.0.1:").expect("it is of this machine");
        let address: String = self.url[at..].chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect();
        address.parse().expect("an address")
    }

    pub fn is_s3(&self) -> bool {
        self.url.starts_with("s3:")
    }

    /// The same lock, reached by another address.
    pub fn through(&self, url: &str) -> Self {
        Self { locks: Locks::new(), url: url.to_owned(), name: self.name.clone(), lease: self.lease.clone() }
    }

    /// `program` with the store, and little else, in its environment.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.locks.command(program);
        command.env("SERIALIZER_STORE", &self.url).env("SERIALIZER_FILE_NAME", &self.name);
        command.env("SERIALIZER_LEASE_SECONDS", &self.lease).current_dir(self.locks.dir());
        command
    }

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

    pub fn shell(&self) -> Shell {
        Shell::start_with(self.command("bash"))
    }

    /// A `serializer ARGS…` that waits.
    pub fn waiter(&self, args: &[&str]) -> Waiter {
        Waiter::start(self.serializer(args))
    }

    /// `serializer status --json`'s answer.
    pub fn report(&self) -> Value {
        let ended = self.run(&["status", "--json"]);
        assert_eq!(ended.code, 0, "{ended:?}");
        let mut report: Value = serde_json::from_str(&ended.stdout).expect("status prints JSON");
        report["locks"][0].take()
    }

    pub fn state(&self) -> String {
        self.report()["state"].as_str().expect("a state").to_owned()
    }

    /// Something about the first holder.
    pub fn holder(&self, key: &str) -> Value {
        self.report()["holder"][key].take()
    }

    /// What keeps the lease.
    pub fn keeper(&self) -> u32 {
        self.holder("keeper_pid").as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("there is a keeper")
    }
}
