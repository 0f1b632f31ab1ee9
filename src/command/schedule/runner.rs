//! The process that runs a task once: it claims the slot, unless its scheduler has, runs the
//! command, and stores the result. It outlives a killed scheduler. Its orders contain the store's
//! password, and come through stdin.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::sys::signal::SigSet;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::process::{Pid, Signal, getpid, kill_process};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::work::{ATTEMPT, LIMITED, Limited, NAME, Work, shown_slot};
use crate::command::job::{INTERRUPTED, Job, Ran};
use crate::command::run::{execute, perform};
use crate::error::Error;
use crate::events::{self, emit};
use crate::exit_code::{BUSY, DONE};
use crate::lock::Request;
use crate::lock::staleness::Orphans;
use crate::lock::waiting::Waiting;
use crate::logging::{self, LogArgs};
use crate::record::mode::Mode;
use crate::run::{Descendants, Program};
use crate::sys::channel::receive_with_file;
use crate::sys::clock::{millis, since_1970, since_boot};
use crate::sys::files::anonymous_file;
use crate::sys::identity::HostIdentity;
use crate::sys::local_time::short;
use crate::sys::poll;
use crate::sys::process::{Process, running};
use crate::sys::random::random_token;
use crate::sys::text;

const NOTIFYING: Duration = Duration::from_secs(60);

/// Ends the last line of a command's output, unless it is complete.
const END_OF_LINE: &[u8] = b"\0\n";

/// The longest part of a line that is written at a time.
const MAX_LINE: u64 = 8 * 1024;

/// How long to wait for output of processes that outlive a task.
const LINGERING: Duration = Duration::from_secs(1);

/// How long to wait for a reader that does not read: the task holds a job meanwhile.
const UNREAD: Duration = Duration::from_secs(60);

/// Acts as a runner, if this process was started as one.
pub fn help() -> Option<ExitCode> {
    let ended = match std::env::args_os().nth(1)?.to_str() {
        Some(NAME) => run(),
        Some(LIMITED) => run_limited(),
        _ => return None,
    };
    let ended = ended.unwrap_or_else(|error| {
        // Does nothing if the orders were read.
        logging::start(&LogArgs::default());
        logging::report(&error);
        error.code
    });
    Some(ended.into())
}

fn run() -> Result<u8, Error> {
    // Its threads inherit that: signals are for the first one alone.
    let _ = SigSet::all().thread_block();
    let scheduler = io::stdin().as_fd().try_clone_to_owned().map_err(cannot)?;
    let (_, file) = receive_with_file(&scheduler).map_err(cannot)?;
    let work: Work = orders(file)?;
    let slot = work.is_json.then(|| shown_slot(work.claim.slot));
    let relay = Relay::start(&work.task, slot).map_err(cannot)?;
    let ended = work.run(scheduler);
    // Before its output ends.
    if let Err(error) = &ended {
        logging::report(error);
    }
    relay.end();
    Ok(ended.unwrap_or_else(|error| error.code))
}

fn run_limited() -> Result<u8, Error> {
    let file = io::stdin().as_fd().try_clone_to_owned().map_err(cannot)?;
    let Limited { lock, slots, lease } = orders(file)?;
    let request = Request { mode: Mode::Slots(slots), lease, ..Request::default() };
    let program = Program { command: std::env::args_os().skip(2).collect(), ..Program::default() };
    // This process holds the lock of the task.
    execute(&lock, &job(request, Waiting::default(), program, true))
}

fn cannot(error: io::Error) -> Error {
    Error::io("cannot run a task", &error)
}

/// A job with a task's command, which signals end; so does the loss of the lock (`with_the_lock`).
fn job(request: Request, waiting: Waiting, program: Program, with_the_lock: bool) -> Job {
    let descendants = Descendants {
        end_with_the_lock: with_the_lock,
        end_by_signals: true,
        ..Descendants::default()
    };
    let (orphans, skipped_exit_code) = (Orphans::Ignore, BUSY);
    Job { request, waiting, program, descendants, orphans, skipped_exit_code, ..Job::default() }
}

/// Reads the first line of the file. The rest becomes stdin, in another file: the orders hold the
/// store's password, and a command that opens `/dev/stdin` reads from the beginning.
fn orders<T: DeserializeOwned>(file: OwnedFd) -> Result<T, Error> {
    let read = move || {
        let (mut file, mut line) = (BufReader::new(File::from(file)), String::new());
        file.read_line(&mut line)?;
        let mut rest = anonymous_file()?;
        io::copy(&mut file, &mut rest)?;
        rest.rewind()?;
        dup2_stdin(&rest)?;
        let (log, orders): (LogArgs, T) = serde_json::from_str(&line)?;
        logging::start(&log);
        events::start(log.events.as_ref());
        Ok(orders)
    };
    read().map_err(cannot)
}

impl Work {
    fn run(&self, scheduler: OwnedFd) -> Result<u8, Error> {
        let command = self.command.iter().map(OsString::from).collect();
        let program = Program { command, env: self.env.clone() };
        let mut job = job(self.request(), ATTEMPT, program, self.lease.is_some());
        job.handed_over = self.granted.clone().map(|grant| (grant, scheduler));
        job.task_ends_at = self.timeout.map(|limit| since_boot().saturating_add(millis(limit)));
        if let Some(timeout) = self.timeout {
            thread::spawn(move || {
                thread::sleep(timeout);
                kill_process(getpid(), Signal::TERM)
            });
        }
        // From now on, they reach this thread alone.
        let _ = SigSet::all().thread_unblock();
        let begun = since_boot();
        let ran = match perform(&self.location, &job) {
            Ok(Some(ran)) => ran,
            Err(error) if error.code != BUSY => return Err(error),
            // Another scheduler was faster.
            _ if self.claim.is_forced => {
                let task = text::field(&self.task);
                return Err(Error::new(BUSY, format!("cannot run `{task}`: it is running")));
            }
            _ => return Ok(BUSY),
        };
        Relay::end_line();
        let took = since_boot().saturating_sub(begun);
        self.report(&ran, since_1970().saturating_sub(took), short(Duration::from_millis(took)));
        Ok(ran.code)
    }

    /// Reports the end of the run, and runs the program of `notify`.
    fn report(&self, ran: &Ran, began: u64, took: String) {
        let (name, slot) = (text::field(&self.task), shown_slot(self.claim.slot));
        let is_last = ran.number >= self.rule.tries.map(NonZeroU32::get);
        let event = if ran.code == DONE {
            tracing::info!("`{name}` of {slot} is done after {took}");
            self.had_failed.then_some("recovered")
        } else if ran.how == INTERRUPTED {
            emit("interruption", &self.location, json!({ "slot": slot, "try": ran.number }));
            tracing::warn!("`{name}` of {slot} was interrupted after {took}");
            None
        } else {
            tracing::error!("`{name}` of {slot} failed after {took}: {}", ran.how);
            is_last.then_some("failed")
        };
        let was_skipped = (self.claim.skipped > 0).then_some("skipped");
        let is_first = ran.number == Some(1) && !self.claim.is_forced;
        let was_overdue = (is_first && began > self.overdue_at).then_some("overdue");
        for event in [was_skipped, was_overdue, event].into_iter().flatten() {
            self.notify(event, ran.code);
        }
    }

    fn notify(&self, event: &str, code: u8) {
        let [program, arguments @ ..] = self.notify.as_slice() else { return };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).envs(&self.env).env("SERIALIZER_EVENT", event);
        command.env("SERIALIZER_EXIT_CODE", code.to_string());
        command.env("SERIALIZER_SKIPPED", self.claim.skipped.to_string());
        command.env("SERIALIZER_HOST", HostIdentity::here().host.unwrap_or_default());
        match command.spawn() {
            Ok(mut child) => {
                let (begun, told) = (Instant::now(), running(Pid::from_child(&child)));
                let ended = told.as_ref().and_then(Process::ended_fd);
                while matches!(child.try_wait(), Ok(None)) && begun.elapsed() < NOTIFYING {
                    let _ = poll::sleep(Duration::from_secs(1), ended.as_slice());
                }
            }
            Err(error) => {
                let cannot = format!("cannot notify by `{}`", text::field(program));
                tracing::warn!("{}", Error::io(cannot, &error));
            }
        }
    }
}

/// How much of a part of a line to write now: what is cut, a character or the last line of all
/// (`last` bytes from its zero on), goes on in the next part.
fn complete(part: &[u8], last: usize) -> usize {
    if part.ends_with(b"\n") || (part.len() as u64) < MAX_LINE {
        return part.len();
    }
    let from = part.len() - last;
    match (part[from..].iter().rposition(|byte| *byte == 0), str::from_utf8(part)) {
        (Some(zero), _) => from + zero,
        (None, Err(cut)) if cut.error_len().is_none() => cut.valid_up_to(),
        _ => part.len(),
    }
}

/// Takes the place of stdout and stderr, and writes each line to stdout with the task's name.
pub struct Relay {
    output: io::PipeWriter,
    /// Ends the output of a task, which cannot know it; what follows is of processes that outlive
    /// the task.
    end: Vec<u8>,
    /// Hears of that line, and of the end of the pipe.
    done: mpsc::Receiver<()>,
    before: (OwnedFd, OwnedFd),
}

impl Relay {
    /// Begins to relay. With `slot`, lines are JSON.
    pub fn start(task: &str, slot: Option<String>) -> io::Result<Self> {
        let (lines, output) = io::pipe()?;
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        let before = (stdout, io::stderr().as_fd().try_clone_to_owned()?);
        let mut to = io::PipeWriter::from(before.0.try_clone()?);
        let (sender, done) = mpsc::channel();
        let end = format!("\0{}\n", random_token()?).into_bytes();
        let (name, last) = (task.to_owned(), end.clone());
        thread::Builder::new().spawn(move || {
            let (mut lines, mut line) = (BufReader::new(lines), Vec::new());
            // The loop ends with the processes that may write.
            while let Ok(1..) = lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                let rest = line.split_off(complete(&line, last.len()));
                let ends = [&last, END_OF_LINE, b"\n"];
                let part = ends.iter().find_map(|end| line.strip_suffix(*end)).unwrap_or(&line);
                let text = String::from_utf8_lossy(part);
                let whole = match &slot {
                    Some(slot) => {
                        let time = Timestamp::now().to_string();
                        json!({ "timestamp": time, "task": name, "slot": slot, "line": text })
                            .to_string()
                    }
                    None => format!("{name} | {text}"),
                };
                if line != END_OF_LINE && line != last {
                    // Unread output blocks a task. Without a reader, the task goes on.
                    let _ = to.write_all((whole + "\n").as_bytes());
                }
                if line.ends_with(&last) {
                    let _ = sender.send(());
                }
                line = rest;
            }
            drop(sender);
        })?;
        dup2_stdout(&output)?;
        dup2_stderr(&output)?;
        Ok(Self { output, end, done, before })
    }

    /// Begins a new line for what comes after the output of the command.
    pub fn end_line() {
        let _ = io::stdout().write_all(END_OF_LINE).and_then(|()| io::stdout().flush());
    }

    /// Waits until all that the task has written is read.
    pub fn end(self) {
        let Self { mut output, end, done, before } = self;
        let _ = dup2_stdout(&before.0).and_then(|_| dup2_stderr(&before.1));
        // The pipe may be full.
        thread::spawn(move || output.write_all(&end));
        if done.recv_timeout(UNREAD).is_ok() {
            let _ = done.recv_timeout(LINGERING);
        }
    }
}
