//! Where the definitions of tasks come from, and when they are read again.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::cli::CatalogArgs;
use crate::error::Error;
use crate::schedule::definition::Catalog;
use crate::schedule::{crontab, meltano, toml_file};

/// How often the schedules of Meltano are read.
const ASK_MELTANO: Duration = Duration::from_secs(300);

const USUAL: &str = "serializer.toml";

#[derive(Clone)]
enum From {
    Toml(PathBuf),
    Crontab(PathBuf),
    Meltano,
}

/// Inode, time and size of a file.
type Fingerprint = (u64, i64, i64, u64);

pub struct Source {
    from: From,
    fingerprint: Option<Fingerprint>,
    must_read: bool,
    read_at: Instant,
    /// A reader thread: Meltano needs seconds.
    reading: Option<JoinHandle<Result<Catalog, String>>>,
}

impl Source {
    pub fn new(args: &CatalogArgs) -> Self {
        let from = match (&args.crontab, args.state.meltano) {
            (Some(crontab), _) => From::Crontab(crontab.clone()),
            (None, true) => From::Meltano,
            (None, false) => From::Toml(args.file.clone().unwrap_or_else(|| USUAL.into())),
        };
        Self { from, fingerprint: None, must_read: false, read_at: Instant::now(), reading: None }
    }

    /// The source in the arguments; `None` without one and without the usual file.
    pub fn if_any(args: &CatalogArgs) -> Option<Self> {
        let is_named = args.file.is_some() || args.crontab.is_some() || args.state.meltano;
        (is_named || PathBuf::from(USUAL).exists()).then(|| Self::new(args))
    }

    /// Reads the definitions.
    pub fn read(&mut self) -> Result<Catalog, Error> {
        self.fingerprint = self.from.fingerprint();
        self.from.read().map_err(Error::usage)
    }

    /// Reads them again as soon as possible.
    pub fn reload(&mut self) {
        self.must_read = true;
    }

    /// The definitions, if they have changed or a reload is due. Reports invalid ones instead.
    pub fn changed(&mut self) -> Option<Catalog> {
        let is_meltano = matches!(self.from, From::Meltano);
        let is_old = is_meltano && self.read_at.elapsed() > ASK_MELTANO;
        let now = self.from.fingerprint();
        if self.reading.is_none() && (self.must_read || is_old || now != self.fingerprint) {
            (self.must_read, self.read_at, self.fingerprint) = (false, Instant::now(), now);
            let from = self.from.clone();
            self.reading = Some(thread::spawn(move || from.read()));
        }
        // A file is read in no time.
        let reading = self.reading.take_if(|reading| !is_meltano || reading.is_finished())?;
        let read = reading.join().unwrap_or_else(|_| Err("cannot read the tasks".to_owned()));
        read.inspect_err(|why| tracing::error!("{why} (the tasks stay as they were)")).ok()
    }
}

impl From {
    fn read(&self) -> Result<Catalog, String> {
        match self {
            Self::Toml(path) => toml_file::read(path),
            Self::Crontab(path) => crontab::read(path),
            Self::Meltano => meltano::read(),
        }
    }

    fn fingerprint(&self) -> Option<Fingerprint> {
        let (Self::Toml(path) | Self::Crontab(path)) = self else { return None };
        let metadata = path.metadata().ok()?;
        Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size()))
    }
}
