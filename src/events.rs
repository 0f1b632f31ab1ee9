//! The event log, for operators: a line of JSON for each lock that is acquired, taken over,
//! released, broken or lost, and for each command that has run under one.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::store::Location;
use crate::sys::identity::HostIdentity;
use crate::sys::text::{self, io_message};

static LOG: OnceLock<File> = OnceLock::new();

/// Appends events to the file that the flag or `SERIALIZER_EVENTS` names.
pub fn start(flag: Option<&PathBuf>) {
    let variable =
        std::env::var_os("SERIALIZER_EVENTS").filter(|path| !path.is_empty()).map(PathBuf::from);
    let Some(path) = flag.cloned().or(variable) else { return };
    match OpenOptions::new().append(true).create(true).open(&path) {
        Ok(file) => drop(LOG.set(file)),
        // A lock matters more than its log.
        Err(error) => {
            let (path, why) = (text::path(&path), io_message(&error));
            tracing::warn!("cannot open the event log `{path}`: {why}");
        }
    }
}

/// Writes an event of a lock, with more fields.
pub fn emit(event: &str, lock: &Location, more: Value) {
    let Some(mut log) = LOG.get() else { return };
    let (time, host) = (Timestamp::now().to_string(), HostIdentity::here().host);
    let (pid, lock) = (std::process::id(), lock.printable());
    let mut line = json!({ "time": time, "event": event, "lock": lock, "pid": pid, "host": host });
    if let (Value::Object(line), Value::Object(more)) = (&mut line, more) {
        line.extend(more);
    }
    // In one piece: other processes write there, too.
    if let Err(error) = log.write_all(format!("{line}\n").as_bytes()) {
        tracing::warn!("cannot write the event log: {}", io_message(&error));
    }
}
