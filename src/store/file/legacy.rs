//! Takeovers beside the Python plugin `meltano-pipeline-serializer`, while people migrate from it.
//!
//! The plugin truncates and rewrites a stale file in place, without a lock, some time after it has
//! read the file. So a takeover waits longer than that time, and then looks at the old file, which
//! it keeps open: a plugin that had opened the old file has written its PID there.

use std::fs::File;
use std::io;
use std::thread;
use std::time::Duration;

use super::lock_file::read;
use crate::record::BEING_WRITTEN;
use crate::sys::process;

/// The plugin needs well below a millisecond; the rest is for a busy machine.
const SETTLE: Duration = Duration::from_millis(100);

/// The plugin's process: `/…/bin/python /…/bin/serializer lock`.
const SCRIPT: &str = "serializer";

/// Whether a text may be the plugin's, which writes two lines, or has not written yet.
fn is_legacy(text: &str) -> bool {
    text.lines().skip(2).all(str::is_empty)
}

/// Whether a text is the plugin's, or the record of a plain mutex.
pub fn has_one_holder(text: &str) -> bool {
    is_legacy(text) || text.lines().nth(2) == Some("v=1")
}

/// Waits until a plugin that may be taking the lock over has written. Returns its text, if it wrote
/// to the `old` file, which was in the state `seen` and held `seen_text`.
pub fn settle(old: &File, seen: &[u8], seen_text: &str) -> io::Result<Option<Vec<u8>>> {
    // Where the processes cannot be listed, one of them may be the plugin.
    if is_legacy(seen_text) || process::any_runs_python_script(SCRIPT).unwrap_or(true) {
        thread::sleep(SETTLE);
    }
    let (mut bytes, version, _) = read(old)?;
    // The file was truncated, and will have the plugin's PID.
    for _ in 0..BEING_WRITTEN.as_millis() / SETTLE.as_millis() {
        if version == seen || !bytes.is_empty() {
            break;
        }
        thread::sleep(SETTLE);
        (bytes, ..) = read(old)?;
    }
    Ok((version != seen).then_some(bytes))
}
