//! A store under test, with names that no other test uses.

use std::ffi::OsStr;
use std::process::Command;
use std::time::Duration;

use serializer::lock::register::Register;
use serializer::store::address::{StoreSettings, StoreUrl};
use serializer::store::file::Files;
use serializer::store::seam::{Key, Store};
use serializer::store::{Location, open_store};
use serializer::sys::random::random_token;

use crate::support::Locks;
use crate::support::memory::Memory;
use crate::support::servers::buckets::{s3_url_at, shared_azure, shared_s3};
use crate::support::servers::emulators::shared_dynalite;
use crate::support::servers::{shared_mariadb, shared_postgres};

pub struct Subject {
    kind: Kind,
    prefix: String,
    pub locks: Locks,
}

enum Kind {
    Memory(Memory),
    File,
    Store(String),
}

fn settings(url: &str) -> StoreSettings {
    let url = StoreUrl::parse(url).expect("an address");
    StoreSettings { url, password_file: None, timeout: Duration::from_secs(30) }
}

impl Subject {
    fn of(kind: Kind) -> Self {
        Self { kind, prefix: random_token().expect("random numbers"), locks: Locks::new() }
    }

    pub fn memory() -> Self {
        Self::of(Kind::Memory(Memory::shared()))
    }

    pub fn file() -> Self {
        Self::of(Kind::File)
    }

    pub fn directory() -> Self {
        let mut subject = Self::of(Kind::File);
        subject.locks.is_shared();
        subject.kind = Kind::Store(format!("file://{}", subject.locks.dir().display()));
        subject
    }

    pub fn postgres() -> Self {
        Self::of(Kind::Store(shared_postgres().url()))
    }

    pub fn mysql() -> Self {
        Self::of(Kind::Store(shared_mariadb().url()))
    }

    pub fn dynamodb() -> Self {
        Self::of(Kind::Store(shared_dynalite().url()))
    }

    pub fn s3() -> Self {
        Self::of(Kind::Store(s3_url_at(shared_s3().address())))
    }

    pub fn azure() -> Self {
        Self::of(Kind::Store(shared_azure().url()))
    }

    /// Whether it counts acquisitions.
    pub fn has_numbers(&self) -> bool {
        !matches!(self.kind, Kind::File)
    }

    /// Whether the store itself removes what is not used any longer.
    pub fn removes_by_itself(&self) -> bool {
        match &self.kind {
            Kind::Store(url) => {
                url.starts_with("dynamodb") || url.starts_with("s3") || url.starts_with("az")
            }
            Kind::File => true,
            Kind::Memory(_) => false,
        }
    }

    /// The longest name that it takes, in bytes.
    pub fn longest_name(&self) -> usize {
        if matches!(self.kind, Kind::File) { 200 } else { 5000 }
    }

    /// Whether a name may hold a slash.
    pub fn takes_slashes(&self) -> bool {
        !matches!(self.kind, Kind::File)
    }

    /// A register of that name, as another process would open it.
    pub fn open(&self, name: impl AsRef<OsStr>) -> Register {
        let name = name.as_ref();
        match &self.kind {
            Kind::Memory(memory) => {
                Register::new(Box::new(memory.clone()), Key::lock(name), "memory".to_owned())
            }
            Kind::File => Register::open(&Location::file(&self.locks.dir().join(name)))
                .expect("files are always there"),
            Kind::Store(url) => {
                let mut prefixed = std::ffi::OsString::from(&self.prefix);
                prefixed.push(name);
                Register::open(&Location::store(settings(url), &prefixed))
                    .expect("the program was built with it")
            }
        }
    }

    /// All registers, as another process would open them.
    pub fn store(&self) -> Box<dyn Store> {
        let mut store = match &self.kind {
            Kind::Memory(memory) => return Box::new(memory.clone()),
            Kind::File => Box::new(Files::new(self.locks.dir())),
            Kind::Store(url) => open_store(&settings(url)).expect("the program was built with it"),
        };
        let key = Key::lock(OsStr::new("schema"));
        store.create_schema(&key).unwrap_or_else(|failure| panic!("{}", failure.why));
        store
    }

    /// `program` with this store in its environment.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.locks.command(program);
        if let Kind::Store(url) = &self.kind {
            command.env("SERIALIZER_STORE", url);
        }
        command.env("SERIALIZER_FILE_NAME", self.name("serializer.lck"));
        command
    }

    /// A name of a lock, for programs.
    pub fn name(&self, name: &str) -> String {
        if matches!(self.kind, Kind::Store(_)) {
            format!("{}{name}", self.prefix)
        } else {
            name.to_owned()
        }
    }
}
