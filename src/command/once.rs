//! `serializer once` and `serializer forget`.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use super::job::Job;
use super::run::execute;
use super::status::exists;
use crate::cli::{ForgetArgs, OnceArgs, PlaceArgs, words_after_dashes};
use crate::config::{Environment, state_directory};
use crate::error::{Error, for_each};
use crate::exit_code::BUSY;
use crate::lease::TokenHolder;
use crate::lock::once::State;
use crate::lock::staleness::LocalLiveness;
use crate::lock::{Mutex, ReleaseScope};
use crate::record::Outcome;
use crate::store::seam::Kind;
use crate::store::{Location, file};
use crate::sys::clock;
use crate::sys::text;

const FORGET: &str =
    "`serializer forget --force KEY` forgets the running key; its run counts as lost";

pub fn run(args: &OnceArgs, environment: &Environment) -> Result<u8, Error> {
    // `once -- CMD ARG`
    if args.command.script.is_none() && words_after_dashes() > args.command.command.len() {
        let why = "the following required arguments were not provided: <KEY>";
        return Err(Error::usage(why).with_hint("for usage: `serializer once --help`"));
    }
    let key = open(environment, &args.place, &args.key)?;
    let request = environment.once(&args.rule, environment.lease(&args.place, &key)?)?;
    let (options, reason) = ((&args.command, &args.waiting, args.on_lost), args.reason.as_deref());
    let job = Job::new(options, reason, environment, request)?;
    let ended = execute(&key, &Job { skipped_exit_code: args.skipped_exit_code, ..job });
    ended.map_err(|error| error.or_if(BUSY, args.waiting.conflict_exit_code))
}

/// The location of a key. Creates the default directory; refuses one that a reboot empties.
pub fn open(environment: &Environment, args: &PlaceArgs, key: &str) -> Result<Location, Error> {
    made(environment.key(Kind::Once, args, key)?)
}

pub fn made(location: Location) -> Result<Location, Error> {
    let Location::File(directory, _) = &location else { return Ok(location) };
    let (shown, is_usual) =
        (text::path(directory), state_directory().ok().as_ref() == Some(directory));
    if is_usual && !directory.exists() {
        let what = format!("cannot create the directory `{shown}`");
        make(directory).map_err(|error| Error::io(what, &error))?;
    }
    let Some(why) = file::forgets(directory) else { return Ok(location) };
    let hint = "name another directory with `--dir` or `SERIALIZER_DIR`, or a store with \
                `SERIALIZER_STORE`";
    Err(Error::usage(format!("cannot keep keys in `{shown}`: {why}")).with_hint(hint))
}

/// Makes a directory. It and its keys must survive a power cut.
fn make(directory: &Path) -> io::Result<()> {
    let missing: Vec<_> = directory.ancestors().take_while(|it| !it.exists()).collect();
    fs::create_dir_all(directory)?;
    let mut parents = missing.into_iter().filter_map(Path::parent);
    parents.try_for_each(|parent| File::open(parent)?.sync_all())
}

pub fn forget(args: &ForgetArgs, environment: &Environment) -> Result<(), Error> {
    let judge = LocalLiveness::here(environment.orphans(None)?);
    let locations = match args.done_before {
        Some(_) => environment.all(Kind::Once, &args.place)?,
        None => {
            let keys = args.keys.iter().map(|key| open(environment, &args.place, key));
            keys.collect::<Result<_, _>>()?
        }
    };
    for_each(locations, |location| forget_one(args, &location, &judge))
}

fn forget_one(args: &ForgetArgs, location: &Location, judge: &LocalLiveness) -> Result<(), Error> {
    let shown = location.name();
    let cannot = |error| Error::mutex("forget", location, error).with_hint(FORGET);
    let mut mutex = Mutex::open(location, judge)?;
    exists(location)?;
    let Some(key) = mutex.inspect()? else {
        if args.done_before.is_none() {
            tracing::info!("nothing to forget: no run of `{shown}` is recorded");
        }
        return Ok(());
    };
    if let Some(age) = args.done_before {
        let is_done = matches!(key.state, State::Done | State::Expired);
        let ended = Duration::from_millis(key.run.ended());
        let now = Duration::from_millis(clock::since_1970());
        if !is_done || now.saturating_sub(ended) < age {
            return Ok(());
        }
    }
    // Without a clock in the store, a lease has to be watched.
    if !args.force && key.unproved_lease().is_some() {
        tracing::info!("watching whether the lease of `{shown}` is renewed");
    }
    let Some(key) = (if args.force { Some(key) } else { mutex.prove(Some(key))? }) else {
        return Ok(());
    };
    let is_running = key.state == State::Running;
    if args.dry_run {
        let would = if is_running && !args.force { "would not" } else { "would" };
        tracing::info!("{would} forget `{shown}`, which is {}", key.state);
        return Ok(());
    }
    if is_running && args.force {
        mutex.release(&TokenHolder(""), ReleaseScope::Force, Outcome::Unknown).map_err(cannot)?;
    } else {
        mutex.forget(&key).map_err(cannot)?;
    }
    tracing::info!("forgot `{shown}`, which was {}", key.state);
    Ok(())
}
