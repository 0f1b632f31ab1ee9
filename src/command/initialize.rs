//! `serializer initialize`

use std::fs;
use std::path::Path;

use rustix::process::getpid;

use crate::cli::InitializeArgs;
use crate::config::Environment;
use crate::error::Error;
use crate::lock::register::{Register, Write};
use crate::record::owner::Owner;
use crate::record::{Entry, KEPT, Record};
use crate::store::{self, Location};
use crate::sys::identity::HostIdentity;
use crate::sys::text::{self, io_message};

pub fn run(args: &InitializeArgs, environment: &Environment) -> Result<(), Error> {
    let lock = environment.lock(&args.file, None)?;
    if args.print_sql {
        return print_sql(&lock);
    }
    let entry =
        Owner::of(getpid(), &HostIdentity::here()).and_then(|owner| Entry::new(owner, None, None));
    let entry = entry
        .map_err(|error| Error::failed(format!("cannot write a record: {}", io_message(&error))))?;
    let token = entry.token.clone().unwrap_or_default();
    let (place, probe) = match &lock {
        // One for all processes that try, since not every store can remove it.
        Location::Store(settings, _) => (
            settings.url.to_string(),
            Location::store(settings.clone(), ".serializer.probe".as_ref()),
        ),
        Location::File(directory, _) => {
            create(directory)?;
            (
                text::path(directory),
                Location::file(&directory.join(format!(".serializer.{token}.probe"))),
            )
        }
    };
    let mut register = Register::open(&probe)?;
    register.verify_conditional_writes()?;
    let tried = try_out(&mut register, Record::of(vec![entry]).as_ref());
    if let (Err(_), Location::File(directory, key)) = (&tried, &probe) {
        // Its name is random, so it is ours.
        let _ = fs::remove_file(directory.join(&key.name));
    }
    tried?;
    register.remove_unused(KEPT);
    register.notify();
    tracing::info!("locks can be kept in `{place}`; the lock is `{}`", lock.name());
    Ok(())
}

fn print_sql(lock: &Location) -> Result<(), Error> {
    let Location::Store(settings, _) = lock else {
        return Err(Error::usage("`--print-sql` needs a database: pass `--store`"));
    };
    match store::open_store(settings)?.schema() {
        Some(statements) => super::print(statements.as_bytes()),
        None => Err(Error::usage(format!(
            "cannot print SQL: `{}` is not a database that takes it",
            settings.url
        ))),
    }
}

fn create(directory: &Path) -> Result<(), Error> {
    if !directory.is_dir() {
        let shown = text::path(directory);
        let cannot = |error| {
            Error::failed(format!(
                "cannot create the lock directory `{shown}`: {}",
                io_message(&error)
            ))
        };
        fs::create_dir_all(directory).map_err(cannot)?;
        tracing::info!("created the lock directory `{shown}`");
    }
    Ok(())
}

/// How often to begin again when another process tries it out at the same time.
const MAX_ROUNDS: usize = 16;

/// Does all that locks will need: file systems and databases may refuse parts of it.
fn try_out(register: &mut Register, record: Option<&Record>) -> Result<(), Error> {
    for _ in 0..MAX_ROUNDS {
        // A killed process may have left one. The first write may only make the place.
        let left = register.load()?;
        let created = register.put(left.as_ref(), record)?;
        let Some(seen) = register.load()?.filter(|_| created == Write::Done) else { continue };
        let replaced = register.put(Some(&seen), record)?;
        let Some(seen) = register.load()?.filter(|_| replaced == Write::Done) else { continue };
        if register.put(Some(&seen), None)? == Write::Done {
            return Ok(());
        }
    }
    Err(Error::failed(format!("what is written to `{}` is not kept there", register.location())))
}
