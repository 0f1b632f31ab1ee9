//! `serializer initialize`

use std::fs;

use rustix::process::{Pid, getpid};

use crate::backend::{self, Backend, Stored, Write};
use crate::cli::InitializeArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::owner::{Instance, Owner, Place};
use crate::printable;
use crate::record::{self, Record, random_token};

pub fn run(args: &InitializeArgs, environment: &Environment) -> Result<(), Error> {
    let lock_file = environment.lock_file(&args.file)?;
    let directory = lock_file.parent().unwrap_or(&lock_file);
    let shown = printable::path(directory);
    if !directory.is_dir() {
        let cannot = |error| Error::failed(format!("cannot create the lock directory `{shown}`: {}", backend::plain(&error)));
        fs::create_dir_all(directory).map_err(cannot)?;
        tracing::info!("created the lock directory `{shown}`");
    }
    let token =
        random_token().map_err(|error| Error::failed(format!("cannot draw a token: {}", backend::plain(&error.into()))))?;
    let path = directory.join(format!(".serializer.{token}.probe"));
    let tried = try_out(backend::open(&path).as_mut(), &probe(getpid(), token));
    if tried.is_err() {
        // It has a random name, so it is ours. It may not be there.
        let _ = fs::remove_file(&path);
    }
    tried?;
    tracing::info!("locks can be kept in `{shown}`; the lock file is `{}`", printable::path(&lock_file));
    Ok(())
}

fn probe(pid: Pid, token: String) -> Record {
    Record {
        version: Some(record::VERSION),
        owner: Owner { pid, uid: None, place: Place::here(), instance: Instance::default() },
        since: None,
        token: Some(token),
        run: None,
        command: None,
    }
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
