//! Takeovers beside the Python plugin `meltano-pipeline-serializer`, while people migrate from it.
//!
//! It creates with `O_EXCL`, which excludes `link` and is excluded by it. It takes over by truncating and rewriting the file in
//! place, without any lock and without looking again. Between its look at the old record and its writing there is a gap, in
//! which our takeover may come. So where such a taker may be about, a takeover waits longer than the gap is, and then looks at
//! both files: if the plugin got at the new one, that now shows its PID; if it had opened the old one, which we keep open,
//! that does. Either way the plugin thinks that it holds the lock, and we yield.
//!
//! Not even that helps against a plugin that stops for longer within its gap, or that unlocks what it does not hold: it
//! removes any lock file.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::lock_file::{leads_to, read};
use crate::process;
use crate::verdict::BEING_WRITTEN;

/// How long a Python plugin has to show that it took the lock over at the same time. Between its look and its write it takes
/// well below a millisecond; this leaves a hundred times that for a busy machine.
const SETTLE: Duration = Duration::from_millis(100);

/// What a process of the plugin looks like: `/…/bin/python /…/bin/serializer lock`.
const SCRIPT: &str = "serializer";

/// Who holds the lock after a takeover.
pub enum Settled {
    /// We do.
    Ours,
    /// Whoever the file at the path says.
    Lost,
    /// A Python plugin that had opened the old file and wrote this to it.
    Plugins(Vec<u8>),
}

/// Whether a text may be the plugin's, which writes two lines, or has not written yet.
fn is_legacy(text: &str) -> bool {
    text.lines().skip(2).all(str::is_empty)
}

/// Whether a text is the plugin's, or the record of a plain mutex, which has been proved stale if it is replaced.
pub fn has_one_holder(text: &str) -> bool {
    is_legacy(text) || text.lines().nth(2) == Some("v=1")
}

/// Finds out whether the lock is ours after `new`, which holds `text`, has replaced `old`, which held `seen_text` in the state
/// `seen`.
pub fn settle(path: &Path, seen: &[u8], seen_text: &str, old: &File, new: &File, text: &[u8]) -> io::Result<Settled> {
    let was_legacy = is_legacy(seen_text);
    // A plugin that looked before we wrote is about by now, or has written. Where nobody can tell, it may be.
    if was_legacy || process::any_runs_python_script(SCRIPT).unwrap_or(true) {
        std::thread::sleep(SETTLE);
    }
    let (mut old_bytes, version) = read(old)?;
    // Truncated and not yet written: its PID will be here.
    for _ in 0..BEING_WRITTEN.as_millis() / SETTLE.as_millis() {
        if version == seen || !old_bytes.is_empty() {
            break;
        }
        std::thread::sleep(SETTLE);
        (old_bytes, _) = read(old)?;
    }
    let (new_bytes, _) = read(new)?;
    if new_bytes != text || !leads_to(path, new)? {
        Ok(Settled::Lost)
    } else if version == seen {
        Ok(Settled::Ours)
    } else {
        Ok(Settled::Plugins(old_bytes))
    }
}
