//! Flags and environment, resolved into typed values. A flag beats its variable, an empty variable counts as unset, and what
//! a command does not use it does not complain about.

mod values;

use std::num::NonZeroU32;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::process::Pid;
use serde::Deserialize;
use values::parse_path;
pub use values::{
    parse_duration, parse_lease_seconds, parse_max_attempts, parse_on_lost, parse_orphans, parse_owner_pid, parse_sleep_seconds,
    parse_slots,
};

use crate::backend::Location;
use crate::cli::{LockFileArgs, OwnerArgs, RequestArgs, WaitingArgs};
use crate::error::Error;
use crate::mode::Mode;
use crate::mutex::Request;
use crate::printable;
use crate::store::{StoreSettings, StoreUrl, Unread};
use crate::verdict::Orphans;
use crate::waiting::Waiting;

/// What all our variables begin with.
const PREFIX: &str = "SERIALIZER_";

const DEFAULT_DIR: &str = "/tmp";
const DEFAULT_FILE_NAME: &str = "serializer.lck";
const DEFAULT_SLEEP: Duration = Duration::from_secs(1);

const DEFAULT_LEASE: Duration = Duration::from_secs(30);

/// The longest time to wait for an answer of a store.
const MAX_ANSWER: Duration = Duration::from_secs(5);

/// The `SERIALIZER_*` variables, as they are written.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Environment {
    file_name: Option<String>,
    dir: Option<String>,
    max_attempts: Option<String>,
    sleep_seconds: Option<String>,
    slots: Option<String>,
    owner_pid: Option<String>,
    orphans: Option<String>,
    store: Option<String>,
    password_file: Option<String>,
    lease_seconds: Option<String>,
    on_lost: Option<String>,
    /// Whether `SERIALIZER_STORE` is there, and has no value.
    #[serde(skip)]
    has_empty_store: bool,
    /// The names of those that are not UTF-8, without the prefix.
    #[serde(skip)]
    not_utf8: Vec<String>,
    /// `MELTANO_PROJECT_ROOT`, where relative directories start.
    #[serde(skip)]
    project_root: Option<PathBuf>,
}

impl Environment {
    /// Reads the environment of this process.
    ///
    /// # Errors
    /// When the variables cannot be read at all.
    pub fn read() -> Result<Self, Error> {
        let mut variables = Vec::new();
        let mut not_utf8 = Vec::new();
        // envy panics on what is not UTF-8, wherever in the environment it is.
        for (name, value) in std::env::vars_os().filter(|(_, value)| !value.is_empty()) {
            // Not by `envy::prefixed`: it takes the prefix off again and again, and Meltano also exports variables such as
            // `SERIALIZER_SERIALIZER_DIR`, which are not ours.
            let Some(name) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
            // envy does not tell `SERIALIZER_dir` from `SERIALIZER_DIR`; the shell does.
            if name.chars().any(char::is_lowercase) {
                continue;
            }
            match value.into_string() {
                Ok(value) => variables.push((name.to_owned(), value)),
                Err(_) => not_utf8.push(name.to_owned()),
            }
        }
        let environment: Self = envy::from_iter(variables)
            .map_err(|error| Error::usage(format!("cannot read the `{PREFIX}*` variables: {error}"), None))?;
        let project_root = std::env::var_os("MELTANO_PROJECT_ROOT").map(PathBuf::from).filter(|root| root.is_absolute());
        let has_empty_store = std::env::var_os(format!("{PREFIX}STORE")).is_some_and(|store| store.is_empty());
        Ok(Self { has_empty_store, not_utf8, project_root, ..environment })
    }

    /// Which lock is set up.
    ///
    /// # Errors
    /// When a setting cannot be used.
    pub fn lock(&self, args: &LockFileArgs) -> Result<Location, Error> {
        let name = self.resolve(args.file_name.clone(), "FILE_NAME", self.file_name.as_deref(), parse_path)?;
        self.lock_named(args, &name.unwrap_or_else(|| DEFAULT_FILE_NAME.into()))
    }

    /// The lock of that name.
    ///
    /// # Errors
    /// When a setting, or the name, cannot be used.
    pub fn lock_named(&self, args: &LockFileArgs, name: &Path) -> Result<Location, Error> {
        let Some(store) = self.store_for(args, Some(name))? else {
            return check_lock_file(self.directory(args)?.join(name), name);
        };
        let Some(directory) = store.url.directory() else {
            return Ok(Location::Store(store, check_name(name)?.as_os_str().to_owned()));
        };
        // The name may be a path of its own. However a file is named, it is one lock.
        let path = directory.join(name);
        check_path(&path, name)?;
        let url = store.url.in_directory(path.parent().unwrap_or(&directory));
        Ok(Location::Store(StoreSettings { url, ..store }, path.file_name().unwrap_or_default().to_owned()))
    }

    /// The locks `names`, or the one that is set up if there are no names.
    ///
    /// # Errors
    /// When a setting, or a name, cannot be used.
    pub fn locks_named(&self, args: &LockFileArgs, names: &[PathBuf]) -> Result<Vec<Location>, Error> {
        if names.is_empty() {
            return Ok(vec![self.lock(args)?]);
        }
        names.iter().map(|name| self.lock_named(args, name)).collect()
    }

    /// The store that locks are kept in; `None` where they are files of one machine.
    ///
    /// # Errors
    /// When a setting cannot be used.
    pub fn store(&self, args: &LockFileArgs) -> Result<Option<StoreSettings>, Error> {
        self.store_for(args, None)
    }

    /// The one for a lock of that name.
    fn store_for(&self, args: &LockFileArgs, name: Option<&Path>) -> Result<Option<StoreSettings>, Error> {
        // Whoever has written `SERIALIZER_STORE=$MELTANO_DATABASE_URI` where that is not set believes that hosts exclude each other.
        if self.has_empty_store && args.store.is_none() && args.dir.is_none() {
            let hint = "set it to an address, or unset it for locks of this machine alone";
            return Err(Error::usage(format!("cannot use `{PREFIX}STORE`: it is empty"), Some(hint.into())));
        }
        if let Some(directory) = self.shared_directory(args, name)? {
            return self.store_at(args, StoreUrl::of_directory(&directory)).map(Some);
        }
        // A flag beats a variable.
        if args.dir.is_some() {
            return Ok(None);
        }
        let (given, name) = match &args.store {
            Some(flag) => (Some(flag.clone()), "--store".to_owned()),
            None => {
                (self.resolve(None, "STORE", self.store.as_deref(), |text| Ok(Unread::from(text)))?, format!("{PREFIX}STORE"))
            }
        };
        let Some(given) = given else { return Ok(None) };
        let url = given.read().map_err(|expected| Error::usage(format!("cannot use `{name}`: {expected}"), None))?;
        self.store_at(args, url).map(Some)
    }

    /// The directory that locks are kept in, if many hosts are to share it: whoever names a lease and a directory says so, and whoever
    /// gives a lease as a flag.
    fn shared_directory(&self, args: &LockFileArgs, name: Option<&Path>) -> Result<Option<PathBuf>, Error> {
        let is_in_a_store = args.dir.is_none() && (args.store.is_some() || self.has_store());
        let is_named = args.dir.is_some() || args.lease_seconds.is_some() || self.is_set("DIR", self.dir.as_deref());
        let is_named = is_named || name.is_some_and(Path::is_absolute);
        let has_lease = args.lease_seconds.is_some() || self.is_set("LEASE_SECONDS", self.lease_seconds.as_deref());
        (!is_in_a_store && is_named && has_lease).then(|| self.directory(args)).transpose()
    }

    fn store_at(&self, args: &LockFileArgs, url: StoreUrl) -> Result<StoreSettings, Error> {
        let password_file = self.resolve(None, "PASSWORD_FILE", self.password_file.as_deref(), parse_path)?;
        let lease = self.lease(args)?;
        // Several answers have to fit into what is left of a lease when it is renewed.
        let timeout = (lease / 6).min(MAX_ANSWER);
        Ok(StoreSettings { url, password_file, timeout })
    }

    /// For how long a lock of a store is held unless that is renewed.
    fn lease(&self, args: &LockFileArgs) -> Result<Duration, Error> {
        let lease = self.resolve(args.lease_seconds, "LEASE_SECONDS", self.lease_seconds.as_deref(), parse_lease_seconds)?;
        Ok(lease.unwrap_or(DEFAULT_LEASE))
    }

    /// What to do when a lock is lost while it is held; `None` if nobody has said.
    ///
    /// # Errors
    /// When the variable is malformed.
    pub fn on_lost(&self, flag: Option<OnLost>) -> Result<Option<OnLost>, Error> {
        self.resolve(flag, "ON_LOST", self.on_lost.as_deref(), parse_on_lost)
    }

    /// Where lock files are.
    ///
    /// # Errors
    /// When the variable cannot be used.
    pub fn directory(&self, args: &LockFileArgs) -> Result<PathBuf, Error> {
        let directory = self.resolve(args.dir.clone(), "DIR", self.dir.as_deref(), parse_path)?;
        // Meltano runs plugins in the user's working directory, where two runs would use two different files.
        let root = self.project_root.as_deref().unwrap_or(Path::new(""));
        let directory = root.join(directory.unwrap_or_else(|| DEFAULT_DIR.into()));
        // Only a working directory that was removed has no absolute path.
        Ok(std::path::absolute(&directory).unwrap_or(directory))
    }

    /// How to wait.
    ///
    /// # Errors
    /// When a variable is malformed.
    pub fn waiting(&self, args: &WaitingArgs) -> Result<Waiting, Error> {
        let timeout = args.timeout.or(args.wait);
        // A flag that says how long to wait beats the variable that does.
        let flag = if args.no_wait { Some(1) } else { args.max_attempts.or(timeout.map(|_| 0)) };
        let max = self.resolve(flag, "MAX_ATTEMPTS", self.max_attempts.as_deref(), parse_max_attempts)?;
        let sleep = self.resolve(args.sleep_seconds, "SLEEP_SECONDS", self.sleep_seconds.as_deref(), parse_sleep_seconds)?;
        Ok(Waiting { max_attempts: max.and_then(NonZeroU32::new), sleep: sleep.unwrap_or(DEFAULT_SLEEP), timeout })
    }

    /// What to ask for.
    ///
    /// # Errors
    /// When a variable is malformed.
    pub fn request(&self, args: &RequestArgs, lock: &LockFileArgs, location: &Location) -> Result<Request, Error> {
        let mode = if args.shared {
            Mode::Shared
        } else {
            let slots = self.resolve(args.slots, "SLOTS", self.slots.as_deref(), parse_slots)?;
            slots.map_or(Mode::EXCLUSIVE, Mode::Slots)
        };
        let lease = location.is_shared().then(|| self.lease(lock)).transpose()?;
        if lease.is_none() && self.is_set("LEASE_SECONDS", self.lease_seconds.as_deref()) {
            tracing::warn!(
                "`{PREFIX}LEASE_SECONDS` has no effect without `{PREFIX}STORE` or `{PREFIX}DIR`: the lock is one of this machine alone"
            );
        }
        let at_least = args.hold_at_least.filter(|at_least| !at_least.is_zero());
        Ok(Request { mode, at_least, skip_if_done: false, lease })
    }

    /// The process that is to own the lock; `None` for the parent.
    ///
    /// # Errors
    /// When the variable is malformed.
    pub fn owner_pid(&self, args: &OwnerArgs) -> Result<Option<Pid>, Error> {
        self.resolve(args.owner_pid, "OWNER_PID", self.owner_pid.as_deref(), parse_owner_pid)
    }

    /// Whether to wait for what outlives a holder.
    ///
    /// # Errors
    /// When the variable is malformed.
    pub fn orphans(&self, flag: Option<Orphans>) -> Result<Orphans, Error> {
        let orphans = self.resolve(flag, "ORPHANS", self.orphans.as_deref(), parse_orphans)?;
        Ok(orphans.unwrap_or(Orphans::Wait))
    }

    /// Whether a store is set up by its variable.
    pub fn has_store(&self) -> bool {
        self.is_set("STORE", self.store.as_deref())
    }

    /// Whether a variable has a value, good or bad.
    fn is_set(&self, variable: &str, value: Option<&str>) -> bool {
        value.is_some() || self.not_utf8.iter().any(|name| name == variable)
    }

    fn resolve<T>(
        &self,
        flag: Option<T>,
        variable: &str,
        value: Option<&str>,
        parse: fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Error> {
        if flag.is_some() {
            return Ok(flag);
        }
        if self.not_utf8.iter().any(|name| name == variable) {
            return Err(Error::usage(format!("cannot use `{PREFIX}{variable}`: it is not valid UTF-8"), None));
        }
        let parsed = value.map(|value| parse(value).map_err(|expected| (value, expected))).transpose();
        parsed.map_err(|(value, expected)| {
            Error::usage(format!("cannot use `{PREFIX}{variable}` `{}`: {expected}", printable::field(value)), None)
        })
    }
}

/// What to do when a lock is lost while it is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum OnLost {
    /// End what runs under it.
    Terminate,
    /// Say so, and leave it alone.
    Warn,
}

/// The lock file at a path as it stands, from the working directory.
///
/// # Errors
/// When the path cannot be one of a lock file.
pub fn lock_file_at(path: &Path) -> Result<Location, Error> {
    check_lock_file(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()), path)
}

/// The path, given the name by which it was made.
fn check_lock_file(path: PathBuf, name: &Path) -> Result<Location, Error> {
    check_path(&path, name)?;
    Ok(Location::File(path))
}

fn check_path(path: &Path, name: &Path) -> Result<(), Error> {
    check_name(path)?;
    let names_a_file = matches!(name.components().next_back(), Some(Component::Normal(_)));
    if !names_a_file || name.as_os_str().as_bytes().ends_with(b"/") {
        let shown = printable::path(path);
        return Err(Error::usage(format!("cannot use `{shown}` as a lock file: it names a directory"), None));
    }
    Ok(())
}

fn check_name(name: &Path) -> Result<&Path, Error> {
    if !name.to_string_lossy().chars().all(printable::is_safe) {
        let shown = printable::path(name);
        let message = format!("cannot use `{shown}` as a lock file: its name contains a control character");
        return Err(Error::usage(message, None));
    }
    Ok(name)
}
