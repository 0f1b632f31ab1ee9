//! `serializer initialize`

use std::fs;
use std::path::Path;

use rustix::process::getpid;

use crate::backend::{self, Location};
use crate::cli::InitializeArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::mutex::register::{KEPT, Register, Write};
use crate::owner::{Instance, Owner, Place};
use crate::printable;
use crate::record::{Entry, Record, random_token};

pub fn run(args: &InitializeArgs, environment: &Environment) -> Result<(), Error> {
    let lock = environment.lock(&args.file)?;
    match &lock {
        Location::Store(settings, _) if args.print_sql => match backend::open_store(settings)?.schema() {
            Some(statements) => super::print(statements.as_bytes()),
            None => Err(Error::usage(format!("cannot print SQL: `{}` is no database that takes it", settings.url), None)),
        },
        _ if args.print_sql => {
            let hint = "name one with `--store` or `SERIALIZER_STORE`";
            Err(Error::usage("cannot print SQL: locks are files as long as no store is named", Some(hint.to_owned())))
        }
        Location::Store(settings, _) => {
            // One for all processes that try, since not every store can remove it.
            let probed = Location::Store(settings.clone(), ".serializer.probe".into());
            let mut register = backend::open(&probed)?;
            register.verify_conditional_writes()?;
            try_out(&mut register, &probe().map_err(cannot_draw)?)?;
            if let Some(advice) = register.advice() {
                tracing::warn!("{advice}");
            }
            register.remove_unused(KEPT);
            tracing::info!("locks can be kept in `{}`; the lock is `{}`", settings.url, lock.printable());
            Ok(())
        }
        Location::File(path) => initialize_directory(path),
    }
}

fn initialize_directory(lock_file: &Path) -> Result<(), Error> {
    let directory = lock_file.parent().unwrap_or(lock_file);
    let shown = printable::path(directory);
    if !directory.is_dir() {
        let cannot = |error| Error::failed(format!("cannot create the lock directory `{shown}`: {}", backend::plain(&error)));
        fs::create_dir_all(directory).map_err(cannot)?;
        tracing::info!("created the lock directory `{shown}`");
    }
    let probe = probe().map_err(cannot_draw)?;
    let path = directory.join(format!(".serializer.{}.probe", token()?));
    let tried = try_out(&mut backend::open(&Location::File(path.clone()))?, &probe);
    if tried.is_err() {
        // It has a random name, so it is ours. It may not be there.
        let _ = fs::remove_file(&path);
    }
    tried?;
    tracing::info!("locks can be kept in `{shown}`; the lock file is `{}`", printable::path(lock_file));
    Ok(())
}

fn cannot_draw(error: std::io::Error) -> Error {
    Error::failed(format!("cannot draw a token: {}", backend::plain(&error)))
}

fn token() -> Result<String, Error> {
    random_token().map_err(|error| cannot_draw(error.into()))
}

fn probe() -> std::io::Result<Record> {
    let owner = Owner { pid: getpid(), uid: None, place: Place::here(), instance: Instance::default() };
    Record::of(vec![Entry::new(owner, None, None)?]).ok_or_else(|| std::io::ErrorKind::FileTooLarge.into())
}

/// How often to begin again when somebody else tries it out at the same time.
const MAX_ROUNDS: usize = 16;

/// Does all that locks will need: a file system may refuse links, flock or writing, a database the rights to.
fn try_out(register: &mut Register, record: &Record) -> Result<(), Error> {
    for _ in 0..MAX_ROUNDS {
        let created = match register.load()? {
            // Left behind by one that was killed.
            Some(seen) => register.replace(&seen, record)?,
            // The first time, it may only make the place.
            None => register.create(record)?,
        };
        let Some(seen) = register.load()?.filter(|_| created == Write::Done) else { continue };
        let replaced = register.replace(&seen, record)?;
        let Some(seen) = register.load()?.filter(|_| replaced == Write::Done) else { continue };
        if register.delete(&seen)? == Write::Done {
            return Ok(());
        }
    }
    Err(Error::failed(format!("what is written to `{}` is not kept there", register.location())))
}
