//! Where locks, keys and tasks are: flags and variables, resolved into locations.

use std::env::var_os;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::cli::{LockFileArgs, PlaceArgs};
use crate::error::Error;
use crate::store::Location;
use crate::store::address::{StoreSettings, StoreUrl};
use crate::store::file::is_temporary;
use crate::store::seam::{Key, Kind};
use crate::sys::text;
use crate::values::parse_lease_seconds;

use super::{Environment, MAX_ANSWER, MAX_KEY, PREFIX};

/// The name of a register if only its place matters.
pub const ANY: &str = "any";

/// The lock with which `initialize` tries out a store, which not every store can remove: one name.
pub const PROBE: &str = ".serializer.probe";

impl Environment {
    /// The lock `name`, or the configured one.
    pub fn lock(&self, args: &LockFileArgs, name: Option<&Path>) -> Result<Location, Error> {
        let name = name.map(Path::to_owned).or_else(|| args.file_name.clone());
        let name = self.resolve(name, "FILE_NAME", |text| Ok(text.into()))?;
        let name = name.unwrap_or_else(|| "serializer.lck".into());
        let Some(store) = self.store(Kind::Lock, &args.place, Some(&name))? else {
            let path = self.directory(Kind::Lock, &args.place)?.join(&name);
            return Ok(Location::file(&lock_path(path, &name)?));
        };
        let Some(directory) = store.url.directory() else {
            return Ok(Location::store(store, lock_path(name.clone(), &name)?.as_os_str()));
        };
        // The name may be a path of its own. All spellings of a file's path are one lock.
        let path = lock_path(directory.join(&name), &name)?;
        let url = store.url.in_directory(path.parent().unwrap_or(&directory));
        Ok(Location::store(StoreSettings { url, ..store }, path.file_name().unwrap_or_default()))
    }

    pub fn locks(&self, args: &LockFileArgs, names: &[PathBuf]) -> Result<Vec<Location>, Error> {
        match names {
            [] => self.lock(args, None).map(|lock| vec![lock]),
            names => names.iter().map(|name| self.lock(args, Some(name))).collect(),
        }
    }

    /// All locks or keys of a directory or store.
    pub fn all(&self, kind: Kind, args: &PlaceArgs) -> Result<Vec<Location>, Error> {
        Ok(self.key(kind, args, ANY)?.all(kind)?)
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
            let error = Error::usage(format!("cannot use `{PREFIX}STORE`: it is empty"));
            let hint = "set it to an address, or unset it for locks of this machine alone";
            return Err(error.with_hint(hint));
        }
        let (has_flag, has_lease_flag) = (args.store.is_some(), args.lease_seconds.is_some());
        let url = if args.dir.is_none() && (has_flag || self.is_set("STORE")) {
            let source = if has_flag { "--store" } else { "SERIALIZER_STORE" };
            let url =
                self.resolve(args.store.clone(), "STORE", |text| Ok(StoreUrl::parse(text)))?;
            let cannot = |expected| Error::usage(format!("cannot use `{source}`: {expected}"));
            url.transpose().map_err(cannot)?
        } else {
            // A directory and a lease say that hosts share it; the lease alone does so as a flag.
            let is_named = args.dir.is_some()
                || has_lease_flag && kind == Kind::Lock
                || self.is_set("DIR")
                || name.is_some_and(Path::is_absolute);
            let is_shared = is_named && (has_lease_flag || self.is_set("LEASE_SECONDS"));
            let directory = is_shared.then(|| self.directory(kind, args)).transpose()?;
            directory.as_deref().map(StoreUrl::of_directory)
        };
        let Some(url) = url else { return Ok(None) };
        let password_file = self.resolve(None, "PASSWORD_FILE", |text| Ok(text.into()))?;
        // Several answers have to fit into the rest of a lease that is renewed.
        let timeout = (self.lease_seconds(args)? / 6).min(MAX_ANSWER);
        Ok(Some(StoreSettings { url, password_file, timeout }))
    }

    /// The lease of a lock or key, where it needs one.
    pub fn lease(&self, args: &PlaceArgs, of: &Location) -> Result<Option<Duration>, Error> {
        of.is_shared().then(|| self.lease_seconds(args)).transpose()
    }

    fn lease_seconds(&self, args: &PlaceArgs) -> Result<Duration, Error> {
        let lease = self.resolve(args.lease_seconds, "LEASE_SECONDS", parse_lease_seconds)?;
        Ok(lease.unwrap_or(Duration::from_secs(30)))
    }

    pub fn directory(&self, kind: Kind, args: &PlaceArgs) -> Result<PathBuf, Error> {
        let directory = self.resolve(args.dir.clone(), "DIR", |text| Ok(text.into()))?;
        if directory.is_none() && kind != Kind::Lock {
            return state_directory();
        }
        // Meltano runs plugins in the user's working directory, where two runs would use two files.
        let root = named("MELTANO_PROJECT_ROOT").unwrap_or_default();
        let directory = root.join(directory.unwrap_or_else(|| "/tmp".into()));
        // Fails only in a working directory that was removed.
        Ok(std::path::absolute(&directory).unwrap_or(directory))
    }
}

pub fn lock_file_at(path: &Path) -> Result<Location, Error> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    Ok(Location::file(&lock_path(absolute, path)?))
}

fn named(name: &str) -> Option<PathBuf> {
    var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The Meltano project of the run, or around the working directory.
pub fn project() -> Option<PathBuf> {
    let around = || {
        let here = std::env::current_dir().ok()?;
        here.ancestors().find(|it| it.join("meltano.yml").is_file()).map(PathBuf::from)
    };
    named("MELTANO_PROJECT_ROOT").or_else(around)
}

/// The directory of files that survive a reboot: in the Meltano project or the home directory.
pub fn state_directory() -> Result<PathBuf, Error> {
    let project = project().map(|root| root.join(".meltano/serializer"));
    let home = || Some(named("HOME")?.join(".local/state"));
    let state = || Some(named("XDG_STATE_HOME").or_else(home)?.join("serializer"));
    let none = || {
        Error::usage("no directory for keys: `HOME` is not set").with_hint("name one with `--dir`")
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
    } else if name.file_name().is_some_and(|it| is_temporary(it) || it == PROBE) {
        "this program's own files have such names"
    } else {
        return Ok(path);
    };
    Err(Error::usage(format!("cannot use `{}` as a lock file: {why}", text::path(&path))))
}
