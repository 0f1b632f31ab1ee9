//! `serializer initialize`

use std::fs;
use std::path::Path;

use rustix::process::getpid;

use crate::backend::{self, Location};
use crate::cli::InitializeArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::mutex::register::{Register, Write};
use crate::owner::{Instance, Owner, Place};
use crate::printable;
use crate::record::{Entry, KEPT, Record};

pub fn run(args: &InitializeArgs, environment: &Environment) -> Result<(), Error> {
    let lock = environment.lock(&args.file, None)?;
    match &lock {
        Location::Store(settings, _) if args.print_sql => match backend::open_store(settings)?.schema() {
            Some(statements) => super::print(statements.as_bytes()),
            None => Err(Error::usage(format!("cannot print SQL: `{}` is not a database that takes it", settings.url))),
        },
        Location::File(..) if args.print_sql => {
            let hint = "name one with `--store` or `SERIALIZER_STORE`";
            Err(Error::usage("`--print-sql` needs a database").with_hint(hint))
        }
        Location::Store(settings, _) => {
            // One for all processes that try, since not every store can remove it.
            let mut register = backend::open(&Location::store(settings.clone(), ".serializer.probe".as_ref()))?;
            register.verify_conditional_writes()?;
            try_out(&mut register, &probe()?)?;
            if let Some(advice) = register.advice() {
                tracing::warn!("{advice}");
            }
            register.remove_unused(KEPT);
            tracing::info!("locks can be kept in `{}`; the lock is `{}`", settings.url, lock.printable());
            Ok(())
        }
        Location::File(directory, _) => initialize_directory(directory, &lock),
    }
}

fn initialize_directory(directory: &Path, lock: &Location) -> Result<(), Error> {
    let shown = printable::path(directory);
    if !directory.is_dir() {
        let cannot = |error| Error::failed(format!("cannot create the lock directory `{shown}`: {}", backend::plain(&error)));
        fs::create_dir_all(directory).map_err(cannot)?;
        tracing::info!("created the lock directory `{shown}`");
    }
    let probe = probe()?;
    let token = probe.entries().first().and_then(|entry| entry.token.as_deref()).unwrap_or_default();
    let path = directory.join(format!(".serializer.{token}.probe"));
    let tried = try_out(&mut backend::open(&Location::file(&path))?, &probe);
    if tried.is_err() {
        // Its name is random, so it is ours.
        let _ = fs::remove_file(&path);
    }
    tried?;
    tracing::info!("locks can be kept in `{shown}`; the lock file is `{}`", lock.printable());
    Ok(())
}

fn probe() -> Result<Record, Error> {
    let owner = Owner { pid: getpid(), uid: None, place: Place::here(), instance: Instance::default() };
    let record = Entry::new(owner, None, None).map(|entry| Record::of(vec![entry]));
    let record = record.map_err(|error| Error::failed(format!("cannot draw a token: {}", backend::plain(&error))))?;
    record.ok_or_else(|| Error::failed("cannot write down who holds a lock: it is too large"))
}

/// How often to begin again when another process tries it out at the same time.
const MAX_ROUNDS: usize = 16;

/// Does all that locks will need: a file system may refuse links, flock or writing, a database the rights to.
fn try_out(register: &mut Register, record: &Record) -> Result<(), Error> {
    for _ in 0..MAX_ROUNDS {
        // One may be left behind by a process that was killed. The first time, it may only make the place.
        let left = register.load()?;
        let created = register.put(left.as_ref(), Some(record))?;
        let Some(seen) = register.load()?.filter(|_| created == Write::Done) else { continue };
        let replaced = register.put(Some(&seen), Some(record))?;
        let Some(seen) = register.load()?.filter(|_| replaced == Write::Done) else { continue };
        if register.put(Some(&seen), None)? == Write::Done {
            return Ok(());
        }
    }
    Err(Error::failed(format!("what is written to `{}` is not kept there", register.location())))
}
