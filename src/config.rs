//! Flags and variables, resolved into what the subcommands work with. A flag beats its variable, an
//! empty variable counts as unset, and a malformed one fails only the subcommands that use it.

use std::collections::HashMap;
use std::env::var_os;
use std::num::NonZeroU32;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::process::Pid;

use crate::cli::{LockFileArgs, PlaceArgs, RequestArgs, RuleArgs, WaitingArgs};
use crate::error::Error;
use crate::lease::OnLost;
use crate::lock::Request;
use crate::lock::staleness::Orphans;
use crate::lock::waiting::Waiting;
use crate::record::mode::Mode;
use crate::record::run::Rule;
use crate::store::address::{StoreSettings, StoreUrl};
use crate::store::seam::{Key, Kind};
use crate::store::{self, Location, file};
use crate::sys::local_time::named_zone;
use crate::sys::text;
use crate::values::{
    parse_duration, parse_lease_seconds, parse_max_attempts, parse_owner_pid, parse_sleep_seconds,
    parse_slots, parse_word,
};

/// Begins the names of all our variables.
const PREFIX: &str = "SERIALIZER_";

/// The rest of the names of all variables that are read, or that commands find.
const KNOWN: &str = "FILE_NAME DIR STORE PASSWORD_FILE LEASE_SECONDS ON_LOST OWNER_PID ORPHANS \
                     REASON SLOTS MAX_ATTEMPTS SLEEP_SECONDS TIMEOUT EVENTS PIP_URL FENCING_TOKEN \
                     TRY ONCE_KEY";

/// The longest key, in bytes.
const MAX_KEY: usize = 1000;

/// The longest time to wait for an answer of a store.
const MAX_ANSWER: Duration = Duration::from_secs(5);

/// The `SERIALIZER_*` variables by the rest of their names, not parsed yet.
pub struct Environment(HashMap<String, String>);

impl Environment {
    /// Reads the environment of this process.
    pub fn read() -> Result<Self, Error> {
        // Not `envy::prefixed`: it panics on variables that are not UTF-8, ignores case, and strips
        // the prefix repeatedly; Meltano exports `SERIALIZER_SERIALIZER_DIR`, which is not ours.
        let ours = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.to_str()?.strip_prefix(PREFIX)?.to_owned();
            let is_ours = !name.chars().any(char::is_lowercase);
            is_ours.then(|| (name, value.to_string_lossy().into_owned()))
        });
        let cannot =
            |error| Error::usage(format!("cannot read the `{PREFIX}*` variables: {error}"));
        let read = envy::from_iter(ours).map(Self).map_err(cannot)?;
        read.warn_of_typos();
        Ok(read)
    }

    /// Warns of unknown variables that are one typo away from a known one, which would have no
    /// effect.
    fn warn_of_typos(&self) {
        let is_known = |name: &str| KNOWN.split(' ').any(|known| known == name);
        for name in
            self.0.keys().map(|name| name.to_ascii_uppercase()).filter(|name| !is_known(name))
        {
            if let Some(known) =
                KNOWN.split(' ').find(|known| strsim::osa_distance(&name, known) == 1)
            {
                let name = text::field(&name);
                tracing::warn!(
                    "unknown variable `{PREFIX}{name}` has no effect (hint: `{PREFIX}{known}`)"
                );
            }
        }
    }

    /// The lock `name`, or the configured one.
    pub fn lock(&self, args: &LockFileArgs, name: Option<&Path>) -> Result<Location, Error> {
        let name = name.map(Path::to_owned).or_else(|| args.file_name.clone());
        let name = self
            .resolve(name, "FILE_NAME", |text| Ok(text.into()))?
            .unwrap_or_else(|| "serializer.lck".into());
        let Some(store) = self.store(Kind::Lock, &args.place, Some(&name))? else {
            return Ok(Location::file(&lock_path(
                self.directory(Kind::Lock, &args.place)?.join(&name),
                &name,
            )?));
        };
        let Some(directory) = store.url.directory() else {
            return Ok(Location::store(store, lock_path(name.clone(), &name)?.as_os_str()));
        };
        // The name may be a path of its own. All spellings of a file's path are one lock.
        let path = lock_path(directory.join(&name), &name)?;
        let url = store.url.in_directory(path.parent().unwrap_or(&directory));
        Ok(Location::store(StoreSettings { url, ..store }, path.file_name().unwrap_or_default()))
    }

    /// The locks `names`, or the configured one if there are no names.
    pub fn locks(&self, args: &LockFileArgs, names: &[PathBuf]) -> Result<Vec<Location>, Error> {
        let names =
            names.iter().map(|name| Some(name.as_path())).chain(names.is_empty().then_some(None));
        names.map(|name| self.lock(args, name)).collect()
    }

    /// All locks or keys of a directory or store.
    pub fn all(&self, kind: Kind, args: &PlaceArgs) -> Result<Vec<Location>, Error> {
        Ok(match self.store(kind, args, None)? {
            Some(store) => store::all_in(&store, kind)?,
            None => file::all_in(&self.directory(kind, args)?, kind)?,
        })
    }

    /// Where they are, for messages.
    pub fn place(&self, kind: Kind, args: &PlaceArgs) -> Result<String, Error> {
        Ok(match self.store(kind, args, None)? {
            Some(store) => store.url.to_string(),
            None => text::path(&self.directory(kind, args)?),
        })
    }

    /// A key that runs once, or a task.
    pub fn key(&self, kind: Kind, args: &PlaceArgs, key: &str) -> Result<Location, Error> {
        let is_valid = (1..=MAX_KEY).contains(&key.len()) && !key.chars().any(char::is_control);
        if !is_valid {
            let why = format!("expected 1 to {MAX_KEY} bytes of text without control characters");
            return Err(Error::usage(format!("cannot use the key `{}`: {why}", text::field(key))));
        }
        let key = Key { kind, name: key.into() };
        Ok(match self.store(kind, args, None)? {
            Some(store) => Location::Store(store, key),
            None => Location::File(self.directory(kind, args)?, key),
        })
    }

    /// The store of a register of that kind and name; `None` for a file of this machine.
    pub fn store(
        &self,
        kind: Kind,
        args: &PlaceArgs,
        name: Option<&Path>,
    ) -> Result<Option<StoreSettings>, Error> {
        // `SERIALIZER_STORE=$UNSET` must not become a local lock.
        if self.get("STORE") == Some("") && args.store.is_none() && args.dir.is_none() {
            let hint = "set it to an address, or unset it for locks of this machine alone";
            return Err(
                Error::usage(format!("cannot use `{PREFIX}STORE`: it is empty")).with_hint(hint)
            );
        }
        let url = if args.dir.is_none() && (args.store.is_some() || self.is_set("STORE")) {
            let source = if args.store.is_some() { "--store" } else { "SERIALIZER_STORE" };
            let url = self
                .resolve(args.store.clone(), "STORE", |text| Ok(StoreUrl::parse(text)))?
                .transpose();
            url.map_err(|expected| Error::usage(format!("cannot use `{source}`: {expected}")))?
        } else {
            // A directory and a lease say that hosts share it; the lease alone does so as a flag.
            let is_lease_enough = args.lease_seconds.is_some() && kind == Kind::Lock;
            let is_named = args.dir.is_some()
                || is_lease_enough
                || self.is_set("DIR")
                || name.is_some_and(Path::is_absolute);
            let has_lease = args.lease_seconds.is_some() || self.is_set("LEASE_SECONDS");
            let is_shared = is_named && has_lease;
            is_shared
                .then(|| self.directory(kind, args))
                .transpose()?
                .as_deref()
                .map(StoreUrl::of_directory)
        };
        let Some(url) = url else { return Ok(None) };
        let password_file = self.resolve(None, "PASSWORD_FILE", |text| Ok(text.into()))?;
        // Several answers have to fit into the rest of a lease that is renewed.
        let timeout = (self.lease(args)? / 6).min(MAX_ANSWER);
        Ok(Some(StoreSettings { url, password_file, timeout }))
    }

    /// The duration of leases.
    pub fn lease(&self, args: &PlaceArgs) -> Result<Duration, Error> {
        let lease = self.resolve(args.lease_seconds, "LEASE_SECONDS", parse_lease_seconds)?;
        Ok(lease.unwrap_or(Duration::from_secs(30)))
    }

    /// The directory of files.
    pub fn directory(&self, kind: Kind, args: &PlaceArgs) -> Result<PathBuf, Error> {
        let directory = self.resolve(args.dir.clone(), "DIR", |text| Ok(text.into()))?;
        if directory.is_none() && kind != Kind::Lock {
            return state_directory();
        }
        // Meltano runs plugins in the user's working directory, where two runs would use two files.
        let root =
            var_os("MELTANO_PROJECT_ROOT").map(PathBuf::from).filter(|root| root.is_absolute());
        let directory = root.unwrap_or_default().join(directory.unwrap_or_else(|| "/tmp".into()));
        // Fails only in a working directory that was removed.
        Ok(std::path::absolute(&directory).unwrap_or(directory))
    }

    /// How to wait.
    pub fn waiting(&self, args: &WaitingArgs) -> Result<Waiting, Error> {
        // A flag that limits the waiting beats the variables that do.
        let flag =
            if args.no_wait { Some(1) } else { args.max_attempts.or(args.timeout.map(|_| 0)) };
        let max = self.resolve(flag, "MAX_ATTEMPTS", parse_max_attempts)?;
        let timeout = if flag.is_some() {
            args.timeout
        } else {
            self.resolve(None, "TIMEOUT", parse_duration)?
        };
        let sleep = self.resolve(args.sleep_seconds, "SLEEP_SECONDS", parse_sleep_seconds)?;
        let max_attempts = max.and_then(NonZeroU32::new);
        Ok(Waiting {
            max_attempts,
            sleep: sleep.unwrap_or(Duration::from_secs(1)),
            timeout,
            warn_after: args.warn_after,
        })
    }

    /// What to ask for.
    pub fn request(
        &self,
        args: &RequestArgs,
        place: &PlaceArgs,
        location: &Location,
    ) -> Result<Request, Error> {
        let mode = if args.shared {
            Mode::Shared
        } else {
            self.resolve(args.slots, "SLOTS", parse_slots)?.map_or(Mode::EXCLUSIVE, Mode::Slots)
        };
        let lease = location.is_shared().then(|| self.lease(place)).transpose()?;
        if lease.is_none() && self.is_set("LEASE_SECONDS") {
            tracing::warn!(
                "`{PREFIX}LEASE_SECONDS` has no effect without `{PREFIX}STORE` or `{PREFIX}DIR`: \
                 the lock is one of this machine alone"
            );
        }
        let at_least = args.hold_at_least.filter(|at_least| !at_least.is_zero());
        Ok(Request { mode, at_least, lease, ..Request::default() })
    }

    /// How to run a key once, which is in `location`.
    pub fn once(
        &self,
        args: &RuleArgs,
        place: &PlaceArgs,
        location: &Location,
    ) -> Result<Request, Error> {
        let RuleArgs { per, valid_for, tries, interrupted } = *args;
        if let (Some(_), Err(name)) = (per, named_zone()) {
            let why = format!(
                "cannot tell when a period begins: `TZ` is `{}`, which is not a time zone",
                text::field(&name)
            );
            return Err(
                Error::usage(why).with_hint("`ls /usr/share/zoneinfo` shows which there are")
            );
        }
        let rule = Rule { per, valid_for, tries, interrupted: interrupted.unwrap_or_default() };
        let lease = location.is_shared().then(|| self.lease(place)).transpose()?;
        Ok(Request { lease, once: Some(rule), ..Request::default() })
    }

    /// The process that is to own the lock; `None` for the parent.
    pub fn owner_pid(&self, flag: Option<Pid>) -> Result<Option<Pid>, Error> {
        self.resolve(flag, "OWNER_PID", parse_owner_pid)
    }

    /// Whether to wait for what outlives a holder.
    pub fn orphans(&self, flag: Option<Orphans>) -> Result<Orphans, Error> {
        Ok(self.resolve(flag, "ORPHANS", parse_word)?.unwrap_or_default())
    }

    /// What to do when a lock is lost while it is held.
    pub fn on_lost(&self, flag: Option<OnLost>, default: OnLost) -> Result<OnLost, Error> {
        Ok(self.resolve(flag, "ON_LOST", parse_word)?.unwrap_or(default))
    }

    /// Why a lock is held, in the user's words.
    pub fn reason(&self, flag: Option<&str>) -> Result<Option<String>, Error> {
        let reason = self.resolve(flag.map(str::to_owned), "REASON", |text| Ok(text.to_owned()))?;
        Ok(reason.map(|reason| text::reason(&reason)).filter(|reason| !reason.is_empty()))
    }

    /// Whether a variable has a value, good or bad.
    pub fn is_set(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !value.is_empty())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(&name.to_ascii_lowercase()).map(String::as_str)
    }

    /// The flag, or else the variable.
    fn resolve<T>(
        &self,
        flag: Option<T>,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(name).filter(|value| flag.is_none() && !value.is_empty()) else {
            return Ok(flag);
        };
        let cannot = |why| Err(Error::usage(format!("cannot use `{PREFIX}{name}`{why}")));
        // Stands in place of what is not UTF-8.
        if value.contains(char::REPLACEMENT_CHARACTER) {
            return cannot(": it is not valid UTF-8".to_owned());
        }
        match parse(value) {
            Ok(parsed) => Ok(Some(parsed)),
            Err(expected) => cannot(format!(" `{}`: {expected}", text::value(value))),
        }
    }
}

/// The lock file at a path from the working directory.
pub fn lock_file_at(path: &Path) -> Result<Location, Error> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    Ok(Location::file(&lock_path(absolute, path)?))
}

/// The directory of files that outlive a reboot: in the Meltano project, or in the home.
pub fn state_directory() -> Result<PathBuf, Error> {
    let named = |name: &str| var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let around = || {
        std::env::current_dir()
            .ok()?
            .ancestors()
            .find(|it| it.join("meltano.yml").is_file())
            .map(PathBuf::from)
    };
    let project =
        named("MELTANO_PROJECT_ROOT").or_else(around).map(|root| root.join(".meltano/serializer"));
    let home = || Some(named("HOME")?.join(".local/state"));
    let state = || Some(named("XDG_STATE_HOME").or_else(home)?.join("serializer"));
    let none = || {
        Error::usage("there is no directory for keys: `HOME` is not set")
            .with_hint("name one with `--dir`")
    };
    project.or_else(state).ok_or_else(none)
}

/// `path`, which was made from `name`, if a lock file can be there.
fn lock_path(path: PathBuf, name: &Path) -> Result<PathBuf, Error> {
    let names_a_file = matches!(name.components().next_back(), Some(Component::Normal(_)));
    let why = if !path.to_string_lossy().chars().all(text::is_safe) {
        "its name contains a control character"
    } else if !names_a_file || name.as_os_str().as_bytes().ends_with(b"/") {
        "it names a directory"
    } else {
        return Ok(path);
    };
    Err(Error::usage(format!("cannot use `{}` as a lock file: {why}", text::path(&path))))
}
