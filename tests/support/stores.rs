//! Locks in real stores, for programs: each test has a lock of its own in a server that the tests
//! of a program share.

#![allow(dead_code, reason = "each test binary uses another part of this")]

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use serializer::sys::random::random_token;

use super::servers::buckets::{s3_url_at, shared_azure, shared_s3};
use super::servers::emulators::shared_dynalite;
use super::servers::{shared_mariadb, shared_postgres};
use super::{Ended, Locks, PROGRAM, Shell, Waiter, ended};

/// Makes a test of each kind of store from each function that takes one.
#[allow(unused_macros, reason = "not every test program has such tests")]
macro_rules! of_each {
    ($group:ident: $($test:ident),* $(,)? => $($kind:ident),*) => {
        mod $group {
            crate::support::stores::of_each!(@kinds [$($test),*] $($kind)*);
        }
    };
    (@kinds $tests:tt $($kind:ident)*) => { $(crate::support::stores::of_each!(@tests $tests $kind);)* };
    (@tests [$($test:ident),*] $kind:ident) => {
        #[allow(non_snake_case, reason = "named after the kind")]
        mod $kind {
            $(#[test]
            fn $test() {
                super::super::$test(crate::support::stores::Kind::$kind);
            })*
        }
    };
}
#[allow(unused_imports, reason = "not every test program has such tests")]
pub(crate) use of_each;

/// Which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Postgres,
    MariaDb,
    DynamoDb,
    S3,
    Azure,
    Directory,
}

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

    /// A store of this kind, with leases of this length.
    pub fn of(kind: Kind, lease: Duration) -> Self {
        let store = match kind {
            Kind::Postgres => Self::at(&shared_postgres().url()),
            Kind::MariaDb => Self::at(&shared_mariadb().url()),
            Kind::DynamoDb => Self::at(&shared_dynalite().url()),
            Kind::S3 => Self::at(&s3_url_at(shared_s3().address())),
            Kind::Azure => Self::at(&shared_azure().url()),
            Kind::Directory => Self::in_a_directory(),
        };
        Self { lease: lease.as_secs_f64().to_string(), ..store }
    }

    /// One of each kind that is reached by a network.
    pub fn over_networks(lease: Duration) -> Vec<Self> {
        let kinds = [Kind::Postgres, Kind::MariaDb, Kind::DynamoDb, Kind::S3, Kind::Azure];
        kinds.map(|kind| Self::of(kind, lease)).into()
    }

    /// In a directory of its own.
    pub fn in_a_directory() -> Self {
        let mut store = Self::at("");
        store.locks.is_shared();
        store.url = format!("file://{}", store.locks.dir().display());
        store
    }

    /// A store of each kind with a clock, which shows every observer at once that a lease has
    /// expired. These are databases that also take other statements.
    pub fn with_a_clock(lease: Duration) -> Vec<Self> {
        [Kind::Postgres, Kind::MariaDb].map(|kind| Self::of(kind, lease)).into()
    }

    pub fn is_bucket(&self) -> bool {
        self.url.starts_with("s3:") || self.url.starts_with("azure:")
    }

    /// What a request to look holds, one to write where nothing has been yet, and one to write what
    /// has changed.
    pub fn markers(&self) -> [&'static [u8]; 3] {
        if self.url.starts_with("dynamodb:") {
            return [
                b"DynamoDB_20120810.GetItem",
                b"attribute_not_exists(#key)",
                b"#version = :number AND",
            ];
        }
        if self.is_bucket() {
            return [b"GET /", b"if-none-match", b"if-match"];
        }
        [b"LEFT JOIN serializer_locks", b"INSERT INTO serializer_locks", b"UPDATE serializer_locks"]
    }

    /// The same lock, reached by another address.
    pub fn through(&self, url: &str) -> Self {
        Self {
            locks: Locks::new(),
            url: url.to_owned(),
            name: self.name.clone(),
            lease: self.lease.clone(),
        }
    }

    /// Where its server is.
    pub fn address(&self) -> String {
        let behind_user = || Some(self.url.rsplit_once('@')?.1.split_once('/')?.0);
        let endpoint = self
            .url
            .split_once("endpoint=http://")
            .and_then(|(_, endpoint)| endpoint.split('/').next());
        endpoint.or_else(behind_user).expect("an address").to_owned()
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
        self.holder("keeper_pid")
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok())
            .expect("there is a keeper")
    }
}
