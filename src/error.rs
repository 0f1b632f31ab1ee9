//! Everything that can end a command, as one line for people, with an exit code and a hint.

use std::fmt;

use serde_json::json;

use crate::events::emit;
use crate::exit_code::{BUSY, FAILED, GIVEN_UP, LOST, REFUSED, USAGE};
use crate::lock;
use crate::lock::holder::listed;
use crate::lock::staleness::{Held, Holding, Unknown};
use crate::store::seam::Kind;
use crate::store::{self, Location};
use crate::sys::local_time::short;
use crate::sys::text::{io_message, quoted};

/// The hint after a loss.
const OVERLAP: &str = "work done since then may have overlapped with another process";

/// Why a command failed. The message is complete.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    message: String,
    pub hint: Option<String>,
    pub code: u8,
}

impl Error {
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(FAILED, message)
    }

    /// An action that failed with an error of the operating system.
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        Self::failed(format!("{what}: {}", io_message(error)))
    }

    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Says what it was that could not be done.
    pub fn during(self, action: &str) -> Self {
        Self { message: format!("{action}: {self}"), ..self }
    }

    /// A lock that was lost while it was held, and its present holders. The line is the same for
    /// all causes.
    pub fn lost(lock: &Location, why: impl fmt::Display, holders: &[Holding]) -> Self {
        let location = lock.printable();
        let now = holders.first().map(|_| format!("; held now by {}", listed(holders)));
        let now = now.unwrap_or_default();
        emit("loss", lock, json!({ "why": why.to_string() }));
        Self::new(LOST, format!("lost `{location}`: {why}{now}")).with_hint(OVERLAP)
    }

    /// A mutex's answer to `verb` (lock, unlock).
    pub fn mutex(verb: &str, lock: &Location, error: lock::Error) -> Self {
        use lock::Error as E;
        let location = &lock.printable();
        let cannot =
            |code, why: &str| Self::new(code, format!("cannot {verb} `{location}`: {why}"));
        let why = error.to_string();
        let hint_for =
            |holders: &[Holding]| holders.iter().find_map(|holding| hint_for(holding, lock));
        match error {
            E::Store(error) => error.into(),
            E::Busy(waited, holders) => {
                let held = match waited.as_secs() {
                    0 => "held".to_owned(),
                    _ => format!("still held after {}", short(waited)),
                };
                let why = format!("{held} by {}", listed(&holders));
                Self { hint: hint_for(&holders), ..cannot(BUSY, &why) }
            }
            E::NotOurs(holders) => {
                let breaking = breaking(holders.first(), lock);
                let is_reserved =
                    |held: &Holding| held.entry.as_ref().is_some_and(|it| it.released.is_some());
                let owner = || match holders.iter().all(is_reserved) {
                    true => format!("it was released; to break it: {breaking}"),
                    false => format!("only its owner can {verb} it; to break it: {breaking}"),
                };
                let hint = hint_for(&holders).unwrap_or_else(owner);
                cannot(REFUSED, &format!("held by {}", listed(&holders))).with_hint(hint)
            }
            E::Lost(how, holders) => {
                let lost = Self::lost(lock, how, &holders);
                let again = || format!("{OVERLAP}; run `lock` again to continue");
                if verb == "lock" { lost.with_hint(again()) } else { lost }
            }
            E::HeldOtherwise(_) => cannot(FAILED, &why).with_hint("`serializer unlock` first"),
            E::NoClock => cannot(USAGE, &why).with_hint(
                "`--hold-at-least` works with PostgreSQL, MySQL and MariaDB, and on one machine",
            ),
            E::NotLocked if location.contains("://") => cannot(FAILED, &why).with_hint(
                "a lock is released when its owner ends, by default the process that started \
                 `lock`: `--owner-pid $$`",
            ),
            E::GivenUp(why) => {
                let key = quoted(&lock.key().name.to_string_lossy());
                Self { code: GIVEN_UP, ..Self::failed(format!("key {key} is given up: {why}")) }
                    .with_hint(format!("`serializer forget {}{key}` lets it run again", dir(lock)))
            }
            E::Absent | E::NotLocked | E::Entry(_) => cannot(FAILED, &why),
        }
    }

    /// Ends with the exit code `code` instead of `usual`.
    pub fn or_if(self, usual: u8, code: u8) -> Self {
        if self.code == usual { Self { code, ..self } } else { self }
    }
}

/// Does `work` for each item, even after a failure. Fails with the last error, and reports the
/// others.
pub fn for_each<T>(
    all: impl IntoIterator<Item = T>,
    mut work: impl FnMut(T) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut failed = Ok(());
    for error in all.into_iter().filter_map(|one| work(one).err()) {
        if let Err(earlier) = std::mem::replace(&mut failed, Err(error)) {
            tracing::error!("{earlier}");
        }
    }
    failed
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        let code = if error.cause == store::Cause::Unusable { USAGE } else { FAILED };
        Self { message: error.to_string(), hint: error.hint, code }
    }
}

/// The command that breaks the lock of this holder, and of no other one.
pub fn breaking(holder: Option<&Holding>, lock: &Location) -> String {
    let (kind, name) = (lock.key().kind, quoted(&lock.name()));
    let option = if kind == Kind::Once { "--once" } else { "--task" };
    let name = match (lock, kind) {
        (Location::File(..), Kind::Lock) => quoted(&lock.printable()),
        (Location::Store(..), Kind::Lock) => name,
        (_, _) => format!("{}{option} {name}", dir(lock)),
    };
    match holder.and_then(|holder| holder.entry.as_ref()?.token.as_ref()) {
        Some(token) => format!("`serializer break {name} --token {token}`"),
        None => "`serializer unlock --force`".to_owned(),
    }
}

/// The option that names the directory of a key.
fn dir(key: &Location) -> String {
    match key {
        Location::File(..) => format!("--dir {} ", quoted(&key.shown_place())),
        Location::Store(..) => String::new(),
    }
}

fn hint_for(holding: &Holding, lock: &Location) -> Option<String> {
    let lease = holding.entry.as_ref().and_then(|entry| entry.lease);
    let certain =
        || format!("when you are certain that it has ended, {}", breaking(Some(holding), lock));
    Some(match holding.verdict {
        Held::RunGoesOn { .. } => {
            "`SERIALIZER_ORPHANS=ignore` does not wait for such processes".to_owned()
        }
        Held::Unknown(Unknown::OtherPidNamespace) => {
            "containers that share a PID namespace see each other's processes (`docker run \
             --pid=host`, `shareProcessNamespace: true`); "
                .to_owned()
                + &certain()
        }
        // Without a clock, only a process that watches for so long can tell.
        Held::Leased(remaining) if lease.is_some_and(|lease| lease.expires.is_none()) => {
            let seconds = remaining.as_secs() + 5;
            format!("waiting for longer shows whether it is renewed: `--timeout {seconds}s`")
        }
        Held::Unknown(Unknown::OtherHost | Unknown::OtherBoot) => certain(),
        _ => return None,
    })
}
