//! `serializer unlock` and `serializer break`

use std::io::{self, BufRead, IsTerminal, Read};
use std::path::Path;

use serde_json::json;

use super::once;
use crate::cli::{BreakArgs, UnlockArgs};
use crate::command::job::unlocked;
use crate::command::requester::ProcessRequester;
use crate::config::Environment;
use crate::error::{Error, breaking};
use crate::events::emit;
use crate::exit_code::{DONE, REFUSED};
use crate::lease::{self, TokenHolder};
use crate::lock::Error::NotLocked;
use crate::lock::once::Ending;
use crate::lock::staleness::LocalLiveness;
use crate::lock::{self, Mutex, ReleaseScope, Released};
use crate::record::Outcome;
use crate::store::Location;
use crate::store::seam::Kind;
use crate::sys::text;

/// The longest answer to a question, in bytes.
const MAX_ANSWER: u64 = 100;

pub fn run(args: &UnlockArgs, environment: &Environment) -> Result<(), Error> {
    let lock = match &args.once {
        Some(key) => once::open(environment, &args.lock.file.place, key)?,
        None => environment.lock(&args.lock.file, args.lock.name.as_deref())?,
    };
    let (scope, outcome, usual, is) = match args.once {
        Some(_) if args.failed => {
            (ReleaseScope::Own, Outcome::Failed, "failed", ", which has failed")
        }
        Some(_) => (ReleaseScope::Own, Outcome::Succeeded, "done", ", which is done"),
        None if args.force => (ReleaseScope::Force, Outcome::Unknown, "interrupted", ""),
        None => (ReleaseScope::OwnOrStale, Outcome::Unknown, "interrupted", ""),
    };
    let how = args.note.as_deref().map_or(usual.to_owned(), text::field);
    // A step that is done counts as a command that has succeeded.
    let code = (outcome == Outcome::Succeeded).then_some(DONE);
    let ending = Ending { outcome, how: &how, code };
    let owner_pid = environment.owner_pid(args.owner.owner_pid)?;
    let judge = LocalLiveness::here(environment.orphans(args.owner.orphans)?);
    let mut mutex = Mutex::open(&lock, &judge)?;
    let released = match &args.token {
        Some(token) => mutex.end_run(&TokenHolder(token), token, ending),
        None => mutex.release(&ProcessRequester::discover(owner_pid, false), scope, ending),
    };
    match released {
        Err(NotLocked) if args.once.is_some() => {
            let why = "no run of the key is under way";
            Err(Error::failed(format!("cannot unlock `{}`: {why}", lock.printable())))
        }
        released => tell("unlock", &lock, released, is),
    }
}

pub fn run_break(args: &BreakArgs, environment: &Environment) -> Result<(), Error> {
    let key =
        |kind, name: &Path| environment.key(kind, &args.lock.file.place, &name.to_string_lossy());
    let lock = match &args.lock.name {
        Some(name) if args.once => key(Kind::Once, name),
        Some(name) if args.task => key(Kind::Schedule, name),
        name => environment.lock(&args.lock.file, name.as_deref()),
    }?;
    let judge = LocalLiveness::here(environment.orphans(None)?);
    let token = args.token.clone().map_or_else(|| choose(&lock, &judge), Ok)?;
    // Only the token counts, for a lock of this process as well.
    let (scope, requester) = (ReleaseScope::Token(&token), ProcessRequester::discover(None, false));
    let released = Mutex::open(&lock, &judge)?.release(&requester, scope, Outcome::Unknown);
    let hint = "the lock may have changed hands, or this is a fencing token; `serializer status \
                --json` shows both";
    let told = tell("break", &lock, released, "");
    told.map_err(|error| if error.code == REFUSED { error.with_hint(hint) } else { error })
}

/// Shows the holders on a terminal, and asks which one to break. Returns its token.
fn choose(lock: &Location, judge: &LocalLiveness) -> Result<String, Error> {
    let (name, location) = (lock.name(), lock.printable());
    let cannot = |why: &str| Error::usage(format!("cannot break `{location}`: {why}"));
    let held = Mutex::open(lock, judge)?.holders()?;
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        let mut error = cannot("without a terminal, `--token` is required");
        error.hint = held.first().map(|holder| breaking(Some(holder), lock));
        return Err(error);
    }
    let [first, others @ ..] = held.as_slice() else {
        return Err(Error::mutex("break", lock, NotLocked));
    };
    for (number, holding) in (1..).zip(&held) {
        let number = if others.is_empty() { String::new() } else { format!("{number}. ") };
        eprintln!("{number}`{name}` is held by {holding}: {}", holding.verdict);
    }
    eprint!("Break it? [{}] ", if others.is_empty() { "y/N" } else { "number/N" });
    let mut answer = String::new();
    let _ = io::stdin().lock().take(MAX_ANSWER).read_line(&mut answer);
    let chosen = match (answer.trim(), others) {
        ("y" | "yes", []) => Some(first),
        (_, []) => None,
        (number, _) => number.parse::<usize>().ok().and_then(|it| held.get(it.checked_sub(1)?)),
    };
    let chosen = chosen.ok_or_else(|| Error::failed(format!("did not break `{location}`")))?;
    let token = chosen.entry.as_ref().and_then(|entry| entry.token.clone());
    token.ok_or_else(|| cannot("its record has no token").with_hint("`serializer unlock --force`"))
}

fn tell(
    verb: &str,
    lock: &Location,
    released: Result<Released, lock::Error>,
    is: &str,
) -> Result<(), Error> {
    let name = lock.name();
    match released.map_err(|error| Error::mutex(verb, lock, error))? {
        Released::Own { stays, was } => {
            was.iter().for_each(lease::process::dismiss);
            emit("release", lock, json!({}));
            tracing::info!("{}{is}", unlocked(lock, stays));
        }
        // Perhaps its owner ended too early.
        Released::Stale(former) => {
            tracing::warn!("removed stale lock `{name}` of {former}: {}", former.verdict);
        }
        Released::Forced(holders) => {
            emit("break", lock, json!({}));
            for holding in holders {
                tracing::warn!("broke lock `{name}` of {holding}: {}", holding.verdict);
            }
        }
    }
    Ok(())
}
