//! Flags and variables, resolved into what the subcommands work with. A flag beats its variable, an
//! empty variable counts as unset, and a malformed one fails only the subcommands that use it.

mod places;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use rustix::process::Pid;

use crate::cli::{RequestArgs, RuleArgs, WaitingArgs};
use crate::error::Error;
use crate::lease::OnLost;
use crate::lock::Request;
use crate::lock::staleness::Orphans;
use crate::lock::waiting::Waiting;
use crate::record::mode::{MAX_SLOTS, Mode};
use crate::record::run::Rule;
use crate::sys::local_time::named_zone;
use crate::sys::text;
use crate::values::{
    parse_duration, parse_max_attempts, parse_owner_pid, parse_positive, parse_sleep_seconds,
    parse_word,
};
pub use places::{ANY, PROBE, lock_file_at, project, state_directory};

const PREFIX: &str = "SERIALIZER_";

/// The rest of the names of all variables that are read, or that commands find.
const KNOWN: &str = "FILE_NAME DIR STORE PASSWORD_FILE LEASE_SECONDS ON_LOST OWNER_PID ORPHANS \
                     REASON SLOTS MAX_ATTEMPTS SLEEP_SECONDS TIMEOUT EVENTS PIP_URL FENCING_TOKEN \
                     TRY ONCE_KEY TASK";

/// Those of tasks, and of programs that are told of their events.
const OF_TASKS: &str = "SLOT EVENT EXIT_CODE SKIPPED HOST";

const MAX_KEY: usize = 1000;

/// The longest time to wait for an answer of a store.
const MAX_ANSWER: Duration = Duration::from_secs(5);

/// The `SERIALIZER_*` variables by the rest of their names, not parsed yet.
pub struct Environment(HashMap<String, String>);

impl Environment {
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
        envy::from_iter(ours).map(Self).map_err(cannot)
    }

    /// Unknown variables, one typo away from a known one, and without effect; each with a hint.
    pub fn typos(&self) -> Vec<Error> {
        let is_of_task = |name: &String| OF_TASKS.split(' ').any(|known| known == name);
        let is_known = |name: &String| {
            KNOWN.split(' ').any(|known| known == name) || self.is_set("TASK") && is_of_task(name)
        };
        let names = self.0.keys().map(|name| name.to_ascii_uppercase());
        let typo = |name: String| {
            let known = KNOWN.split(' ').find(|it| strsim::osa_distance(&name, it) == 1)?;
            let why = format!("unknown variable `{PREFIX}{}` has no effect", text::field(&name));
            Some(Error::usage(why).with_hint(format!("`{PREFIX}{known}`")))
        };
        names.filter(|name| !is_known(name)).filter_map(typo).collect()
    }

    /// Errors in variables, except those of the place.
    pub fn unusable(&self) -> Vec<Error> {
        let others = [
            self.resolve(None, "MAX_ATTEMPTS", parse_max_attempts).map(drop),
            self.resolve(None, "SLEEP_SECONDS", parse_sleep_seconds).map(drop),
            self.resolve(None, "TIMEOUT", parse_duration).map(drop),
            self.resolve(None, "SLOTS", parse_positive::<MAX_SLOTS>).map(drop),
            self.owner_pid(None).map(drop),
            self.orphans(None).map(drop),
            self.on_lost(None, OnLost::Warn).map(drop),
            self.reason(None).map(drop),
        ];
        others.into_iter().filter_map(Result::err).collect()
    }

    pub fn waiting(&self, args: &WaitingArgs) -> Result<Waiting, Error> {
        // A flag that limits the waiting beats the variables that do.
        let flag =
            if args.no_wait { Some(1) } else { args.max_attempts.or(args.timeout.map(|_| 0)) };
        let max = self.resolve(flag, "MAX_ATTEMPTS", parse_max_attempts)?;
        let timeout = match flag {
            Some(_) => args.timeout,
            None => self.resolve(None, "TIMEOUT", parse_duration)?,
        };
        let sleep = self.resolve(args.sleep_seconds, "SLEEP_SECONDS", parse_sleep_seconds)?;
        let (max_attempts, warn_after) = (max.and_then(NonZeroU32::new), args.warn_after);
        let sleep = sleep.unwrap_or(Waiting::default().sleep);
        Ok(Waiting { max_attempts, sleep, timeout, warn_after })
    }

    pub fn request(&self, args: &RequestArgs, lease: Option<Duration>) -> Result<Request, Error> {
        let mode = if args.shared {
            Mode::Shared
        } else {
            self.resolve(args.slots, "SLOTS", parse_positive::<MAX_SLOTS>)?
                .map_or(Mode::EXCLUSIVE, Mode::Slots)
        };
        if lease.is_none() && self.is_set("LEASE_SECONDS") {
            tracing::warn!(
                "`{PREFIX}LEASE_SECONDS` has no effect without `{PREFIX}STORE` or `{PREFIX}DIR`: \
                 the lock is one of this machine alone"
            );
        }
        let at_least = args.hold_at_least.filter(|at_least| !at_least.is_zero());
        Ok(Request { mode, at_least, lease, ..Request::default() })
    }

    /// How to run a key once.
    pub fn once(&self, args: &RuleArgs, lease: Option<Duration>) -> Result<Request, Error> {
        let RuleArgs { per, valid_for, tries, interrupted } = *args;
        if let (Some(_), Err(name)) = (per, named_zone()) {
            let what = format!("`TZ` is `{}`, which is not a time zone", text::field(&name));
            let error = Error::usage(format!("cannot tell when a period begins: {what}"));
            return Err(error.with_hint("`ls /usr/share/zoneinfo` shows which there are"));
        }
        let rule = Rule { per, valid_for, tries, interrupted: interrupted.unwrap_or_default() };
        Ok(Request { lease, once: Some(rule), ..Request::default() })
    }

    pub fn owner_pid(&self, flag: Option<Pid>) -> Result<Option<Pid>, Error> {
        self.resolve(flag, "OWNER_PID", parse_owner_pid)
    }

    pub fn orphans(&self, flag: Option<Orphans>) -> Result<Orphans, Error> {
        Ok(self.resolve(flag, "ORPHANS", parse_word)?.unwrap_or_default())
    }

    pub fn on_lost(&self, flag: Option<OnLost>, default: OnLost) -> Result<OnLost, Error> {
        Ok(self.resolve(flag, "ON_LOST", parse_word)?.unwrap_or(default))
    }

    /// Why a lock is held, in the user's words.
    pub fn reason(&self, flag: Option<&str>) -> Result<Option<String>, Error> {
        let reason = self.resolve(flag.map(str::to_owned), "REASON", |text| Ok(text.to_owned()))?;
        Ok(reason.map(|reason| text::reason(&reason)).filter(|reason| !reason.is_empty()))
    }

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
