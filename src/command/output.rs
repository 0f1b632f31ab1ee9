//! Output to stdout.

use std::io::{self, Write};

use crate::error::Error;

pub fn to_json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string_pretty(value)
        .map(|json| json + "\n")
        .map_err(|error| Error::failed(error.to_string()))
}

pub fn print(text: impl AsRef<[u8]>) -> Result<(), Error> {
    is_read(text.as_ref()).map(drop)
}

/// Writes data to stdout; returns whether stdout still has a reader.
pub fn is_read(text: &[u8]) -> Result<bool, Error> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        // The reader has ended (`| head`).
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io("cannot write to standard output", &error)),
    }
}
