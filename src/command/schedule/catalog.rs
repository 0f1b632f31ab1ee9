//! Where the definitions of tasks come from, and when they are read again.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::cli::CatalogArgs;
use crate::error::Error;
use crate::schedule::definition::Catalog;
use crate::schedule::{crontab, meltano, toml_file};
use crate::sys::local_time;
use crate::sys::text::{self, io_message};

const ASK_MELTANO: Duration = Duration::from_secs(300);

const USUAL: &str = "serializer.toml";

type Table = (PathBuf, fn(&str, &Path) -> Result<Catalog, String>);

pub struct Source {
    /// `None` for Meltano.
    table: Option<Table>,
    /// Inode, time and size of the file.
    fingerprint: Option<(u64, i64, i64, u64)>,
    /// `None` if a reload is due.
    read_at: Option<Instant>,
    /// A reader thread: Meltano needs seconds.
    reading: Option<JoinHandle<Result<Catalog, String>>>,
}

impl Source {
    pub fn new(args: &CatalogArgs) -> Self {
        let table: Option<Table> = match &args.crontab {
            _ if args.meltano => None,
            Some(crontab) => Some((crontab.clone(), |text, path| {
                let home = std::env::var("HOME").ok();
                crontab::parse(text, path, home.as_deref(), local_time::zone())
            })),
            None => Some((args.file.clone().unwrap_or_else(|| USUAL.into()), toml_file::parse)),
        };
        Self { table, fingerprint: None, read_at: Some(Instant::now()), reading: None }
    }

    /// The definitions of the source in the arguments; none without one and without the usual file.
    pub fn read_if_any(args: &CatalogArgs) -> Result<Catalog, Error> {
        let is_named = args.file.is_some() || args.crontab.is_some() || args.meltano;
        let is_there = is_named || Path::new(USUAL).exists();
        if is_there { Self::new(args).read() } else { Ok(Catalog::default()) }
    }

    pub fn read(&mut self) -> Result<Catalog, Error> {
        self.fingerprint = self.fingerprint();
        read(self.table.as_ref()).map_err(Error::usage)
    }

    pub fn reload(&mut self) {
        self.read_at = None;
    }

    /// The definitions, if they have changed or a reload is due. Reports invalid ones instead.
    pub fn changed(&mut self) -> Option<Catalog> {
        let is_meltano = self.table.is_none();
        let is_due = self.read_at.is_none_or(|at| is_meltano && at.elapsed() > ASK_MELTANO);
        let now = self.fingerprint();
        if self.reading.is_none() && (is_due || now != self.fingerprint) {
            (self.read_at, self.fingerprint) = (Some(Instant::now()), now);
            let table = self.table.clone();
            self.reading = Some(thread::spawn(move || read(table.as_ref())));
        }
        // A file is read in no time.
        let reading = self.reading.take_if(|reading| !is_meltano || reading.is_finished())?;
        let read = reading.join().unwrap_or_else(|_| Err("cannot read the tasks".to_owned()));
        read.inspect_err(|why| tracing::error!("{why} (the tasks stay as they were)")).ok()
    }

    fn fingerprint(&self) -> Option<(u64, i64, i64, u64)> {
        let metadata = self.table.as_ref()?.0.metadata().ok()?;
        Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size()))
    }
}

fn read(table: Option<&Table>) -> Result<Catalog, String> {
    let Some((path, parse)) = table else {
        return meltano::ask(&mut Command::new(meltano::program()));
    };
    let text = std::fs::read_to_string(path);
    let why = |error| format!("cannot read `{}`: {}", text::path(path), io_message(&error));
    parse(&text.map_err(why)?, path)
}
