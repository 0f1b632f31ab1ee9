//! `serializer initialize`

use std::fs;

use rustix::process::getpid;

use crate::backend::{self, Backend, Stored, Write};
use crate::cli::InitializeArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::owner::{Instance, Owner, Place};
use crate::printable;
use crate::record::{Entry, Record, random_token};

pub fn run(args: &InitializeArgs, environment: &Environment) -> Result<(), Error> {
    let lock_file = environment.lock_file(&args.file)?;
    let directory = lock_file.parent().unwrap_or(&lock_file);
    let shown = printable::path(directory);
    if !directory.is_dir() {
        let cannot = |error| Error::failed(format!("cannot create the lock directory `{shown}`: {}", backend::plain(&error)));
        fs::create_dir_all(directory).map_err(cannot)?;
        tracing::info!("created the lock directory `{shown}`");
    }
    let cannot = |error| Error::failed(format!("cannot draw a token: {}", backend::plain(&error)));
    let token = random_token().map_err(|error| cannot(error.into()))?;
    let probe = probe().map_err(cannot)?;
    let path = directory.join(format!(".serializer.{token}.probe"));
    let tried = try_out(backend::open(&path).as_mut(), &probe);
    if tried.is_err() {
        // It has a random name, so it is ours. It may not be there.
        let _ = fs::remove_file(&path);
    }
    tried?;
    tracing::info!("locks can be kept in `{shown}`; the lock file is `{}`", printable::path(&lock_file));
    Ok(())
}

fn probe() -> std::io::Result<Record> {
    let owner = Owner { pid: getpid(), uid: None, place: Place::here(), instance: Instance::default() };
    Record::of(vec![Entry::new(owner, None, None)?]).ok_or_else(|| std::io::ErrorKind::FileTooLarge.into())
}

/// Does all that locks will need: a file system may refuse links, flock or writing.
fn try_out(backend: &mut dyn Backend, record: &Record) -> Result<(), Error> {
    let location = backend.location();
    let unexpected = || Error::failed(format!("the file system does not keep what is written to `{location}`"));
    let load = |backend: &mut dyn Backend| -> Result<Stored, Error> { backend.load()?.ok_or_else(unexpected) };
    let _ = backend.create(record)?;
    let seen = load(backend)?;
    let replaced = backend.replace(&seen, record)?;
    let seen = load(backend)?;
    let deleted = backend.delete(&seen)?;
    if replaced == Write::Done && deleted == Write::Done { Ok(()) } else { Err(unexpected()) }
}
