//! `serializer initialize`

use std::fs;

use crate::cli::InitializeArgs;
use crate::command::output::print;
use crate::config::{Environment, PROBE};
use crate::error::Error;
use crate::lock::register::{Register, Write};
use crate::record::{Entry, KEPT, Record};
use crate::store::seam::Key;
use crate::store::{self, Location, file};
use crate::sys::text;

pub fn run(args: &InitializeArgs, environment: &Environment) -> Result<(), Error> {
    let lock = environment.lock(&args.file, None)?;
    if args.print_sql {
        return print_sql(&lock);
    }
    let entry = Entry::of_this_process(None);
    let entry = entry.map_err(|error| Error::io("cannot write a record", &error))?;
    let probe = match &lock {
        Location::Store(..) => PROBE.to_owned(),
        Location::File(directory, _) => {
            if !directory.is_dir() {
                let shown = text::path(directory);
                let cannot = format!("cannot create the lock directory `{shown}`");
                fs::create_dir_all(directory).map_err(|error| Error::io(cannot, &error))?;
                tracing::info!("created the lock directory `{shown}`");
            }
            format!(".serializer.{}.probe", entry.token.as_deref().unwrap_or_default())
        }
    };
    let probe = lock.sibling(Key::lock(probe.as_ref()));
    let mut register = Register::open(&probe)?;
    // The whole place is at fault, not this name, which users do not know.
    let at_place = |failure| store::Error { location: Some(lock.shown_place()), ..failure };
    register.verify_conditional_writes().map_err(at_place)?;
    let tried = try_out(&mut register, Record::of(vec![entry]).as_ref());
    if let Location::File(directory, key) = &probe {
        if tried.is_err() {
            // The name is random, so the file is ours.
            let _ = fs::remove_file(directory.join(&key.name));
        }
        // Not at each release, because this reads the whole directory.
        file::sweep(directory);
    }
    tried?;
    register.remove_unused(KEPT);
    let (place, name) = (lock.shown_place(), lock.name());
    tracing::info!("locks can be kept in `{place}`; the lock is `{name}`");
    Ok(())
}

fn print_sql(lock: &Location) -> Result<(), Error> {
    let Location::Store(settings, _) = lock else {
        return Err(Error::usage("`--print-sql` needs a database: pass `--store`"));
    };
    match store::open_store(settings)?.schema() {
        Some(statements) => print(statements),
        None => {
            let why = format!("`{}` is not a database that takes it", settings.url);
            Err(Error::usage(format!("cannot print SQL: {why}")))
        }
    }
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
