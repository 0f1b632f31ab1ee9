//! Flags and environment, resolved into typed values. A flag beats its variable, an empty variable counts as unset, and what
//! a command does not use it does not complain about.

use std::num::NonZeroU32;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;
use rustix::process::Pid;
use serde::Deserialize;

use crate::cli::{LockFileArgs, OwnerArgs, RequestArgs, WaitingArgs};
use crate::error::Error;
use crate::mode::{MAX_SLOTS, Mode};
use crate::mutex::Request;
use crate::verdict::Orphans;
use crate::waiting::Waiting;
use crate::{printable, record};

/// What all our variables begin with.
const PREFIX: &str = "SERIALIZER_";

const DEFAULT_DIR: &str = "/tmp";
const DEFAULT_FILE_NAME: &str = "serializer.lck";
const DEFAULT_SLEEP: Duration = Duration::from_secs(1);

/// The longest time between two tries, in seconds: a year, far from what overflows a clock.
const MAX_SLEEP_SECONDS: u64 = 31_536_000;

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
        Ok(Self { not_utf8, project_root, ..environment })
    }

    /// Where the lock file is.
    ///
    /// # Errors
    /// When the path cannot be one of a lock file.
    pub fn lock_file(&self, args: &LockFileArgs) -> Result<PathBuf, Error> {
        let name = self.resolve(args.file_name.clone(), "FILE_NAME", self.file_name.as_deref(), parse_path)?;
        self.path_in_directory(args, &name.unwrap_or_else(|| DEFAULT_FILE_NAME.into()))
    }

    /// Where the lock file `name` is.
    ///
    /// # Errors
    /// When the path cannot be one of a lock file.
    pub fn path_in_directory(&self, args: &LockFileArgs, name: &Path) -> Result<PathBuf, Error> {
        check_lock_file(self.directory(args)?.join(name), name)
    }

    /// Where the lock files `names` are, or the one that is set up if there are no names.
    ///
    /// # Errors
    /// When a path cannot be one of a lock file.
    pub fn named_lock_files(&self, args: &LockFileArgs, names: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
        if names.is_empty() {
            return Ok(vec![self.lock_file(args)?]);
        }
        names.iter().map(|name| self.path_in_directory(args, name)).collect()
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
    pub fn request(&self, args: &RequestArgs) -> Result<Request, Error> {
        let mode = if args.shared {
            Mode::Shared
        } else {
            let slots = self.resolve(args.slots, "SLOTS", self.slots.as_deref(), parse_slots)?;
            slots.map_or(Mode::EXCLUSIVE, Mode::Slots)
        };
        Ok(Request { mode, at_least: args.hold_at_least.filter(|at_least| !at_least.is_zero()), skip_if_done: false })
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

/// The lock file at a path as it stands, from the working directory.
///
/// # Errors
/// When the path cannot be one of a lock file.
pub fn lock_file_at(path: &Path) -> Result<PathBuf, Error> {
    check_lock_file(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()), path)
}

/// The path, given the name by which it was made.
fn check_lock_file(path: PathBuf, name: &Path) -> Result<PathBuf, Error> {
    let shown = printable::path(&path);
    if !path.to_string_lossy().chars().all(printable::is_safe) {
        let message = format!("cannot use `{shown}` as a lock file: its name contains a control character");
        return Err(Error::usage(message, None));
    }
    let names_a_file = matches!(name.components().next_back(), Some(Component::Normal(_)));
    if !names_a_file || name.as_os_str().as_bytes().ends_with(b"/") {
        return Err(Error::usage(format!("cannot use `{shown}` as a lock file: it names a directory"), None));
    }
    Ok(path)
}

fn parse_path(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}

/// A number of attempts.
///
/// # Errors
/// What was expected instead.
pub fn parse_max_attempts(text: &str) -> Result<u32, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number.ok_or_else(|| format!("expected a whole number from 0 (try for ever) to {}", u32::MAX))
}

/// A number of slots.
///
/// # Errors
/// What was expected instead.
pub fn parse_slots(text: &str) -> Result<NonZeroU32, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().and_then(NonZeroU32::new).filter(|number| digits && number.get() <= MAX_SLOTS);
    number.ok_or_else(|| format!("expected a whole number from 1 to {MAX_SLOTS}"))
}

/// Seconds, with a fraction or without.
///
/// # Errors
/// What was expected instead.
pub fn parse_sleep_seconds(text: &str) -> Result<Duration, String> {
    // Rust's numbers also come as `inf`, `nan`, `1e3` and `+1`.
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds = text.parse::<f64>().ok().filter(|seconds| plain && *seconds <= MAX_SLEEP_SECONDS as f64);
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.ok_or_else(|| format!("expected a number of seconds from 0 to {MAX_SLEEP_SECONDS}, such as 1 or 0.5"))
}

/// A duration with units.
///
/// # Errors
/// What was expected instead.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = text.parse::<SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
    let duration = duration.filter(|duration| duration.as_secs() <= MAX_SLEEP_SECONDS);
    duration.ok_or_else(|| "expected a duration with units up to a year, such as 90s, 2m or 1h30m".to_owned())
}

/// A process id.
///
/// # Errors
/// What was expected instead.
pub fn parse_owner_pid(text: &str) -> Result<Pid, String> {
    record::parse_pid(text).ok_or_else(|| format!("expected a process id, a whole number from 1 to {}", i32::MAX))
}

/// What to make of orphans.
///
/// # Errors
/// What was expected instead.
pub fn parse_orphans(text: &str) -> Result<Orphans, String> {
    match text {
        "wait" => Ok(Orphans::Wait),
        "ignore" => Ok(Orphans::Ignore),
        _ => Err("expected `wait` or `ignore`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{parse_duration, parse_max_attempts, parse_sleep_seconds};

    #[test]
    fn attempts_are_whole_numbers() {
        assert_eq!(parse_max_attempts("0"), Ok(0));
        assert_eq!(parse_max_attempts("60"), Ok(60));
        for bad in ["", "abc", "-1", "+1", "1e3", "1.5", " 1", "4294967296"] {
            assert!(parse_max_attempts(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn seconds_may_have_a_fraction_and_nothing_else() {
        assert_eq!(parse_sleep_seconds("0"), Ok(Duration::ZERO));
        assert_eq!(parse_sleep_seconds("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_sleep_seconds("0.25"), Ok(Duration::from_millis(250)));
        for bad in ["", "abc", "-1", "+1", "1e3", "inf", "nan", "1s", ".", "31536001", "1.2.3"] {
            assert!(parse_sleep_seconds(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_timeout_has_a_unit() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        for bad in ["", "90", "-1s", "1s ago", "1 fortnight", "9999h9999h", "400000h", "1y"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }
}
