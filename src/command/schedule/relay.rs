//! The output of a task, with the task's name before each line.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use nix::unistd::{dup2_stderr, dup2_stdout};
use serde_json::json;

/// Ends the last line of a command's output, unless it is complete.
const END_OF_LINE: &[u8] = b"\0\n";

/// The longest part of a line that is written at a time.
const MAX_LINE: u64 = 8 * 1024;

/// How long to wait for output of processes that outlive a task.
const PATIENCE: Duration = Duration::from_secs(1);

/// Takes the place of stdout and stderr, and writes each line to stdout with the task's name.
pub struct Relay {
    output: io::PipeWriter,
    done: mpsc::Receiver<()>,
    before: (OwnedFd, OwnedFd),
}

impl Relay {
    /// Begins to relay. With `slot`, lines are JSON.
    pub fn start(task: &str, slot: Option<String>) -> io::Result<Self> {
        let (lines, output) = io::pipe()?;
        let before = (
            io::stdout().as_fd().try_clone_to_owned()?,
            io::stderr().as_fd().try_clone_to_owned()?,
        );
        let mut to = io::PipeWriter::from(before.0.try_clone()?);
        let (sender, done) = mpsc::channel();
        let name = task.to_owned();
        thread::Builder::new().spawn(move || {
            let (mut lines, mut line) = (BufReader::new(lines), Vec::new());
            // The loop ends with the processes that may write.
            while let Ok(1..) = lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                let part =
                    line.strip_suffix(END_OF_LINE).or(line.strip_suffix(b"\n")).unwrap_or(&line);
                let text = String::from_utf8_lossy(part);
                let whole = match &slot {
                    Some(slot) => {
                        let time = Timestamp::now().to_string();
                        json!({ "timestamp": time, "task": name, "slot": slot, "line": text })
                            .to_string()
                    }
                    None => format!("{name} | {text}"),
                };
                if line != END_OF_LINE {
                    // Unread output blocks a task. Without a reader, the task goes on.
                    let _ = to.write_all((whole + "\n").as_bytes());
                }
                line.clear();
            }
            drop(sender);
        })?;
        dup2_stdout(&output)?;
        dup2_stderr(&output)?;
        Ok(Self { output, done, before })
    }

    /// Begins a new line for what comes after the output of the command.
    pub fn end_line() {
        let _ = io::stdout().write_all(END_OF_LINE).and_then(|()| io::stdout().flush());
    }

    /// Waits for what the task has written.
    pub fn end(self) {
        let _ = dup2_stdout(&self.before.0).and_then(|_| dup2_stderr(&self.before.1));
        drop(self.output);
        let _ = self.done.recv_timeout(PATIENCE);
    }
}
