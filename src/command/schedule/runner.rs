//! The process that runs a task once: it claims the slot, runs the command, and stores how that ended. It outlives a
//! scheduler that is killed. Its orders come on its stdin, since they hold the store's password.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::signal::SigSet;
use rustix::process::{Signal, getpid, kill_process};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backend::seam::Key;
use crate::backend::{self, Location};
use crate::child::Descendants;
use crate::cli::LogArgs;
use crate::command::job::Job;
use crate::command::run::{INTERRUPTED, Ran, execute, perform};
use crate::config::OnLost;
use crate::error::Error;
use crate::exit_code::{BUSY, DONE};
use crate::local_time::short;
use crate::mode::Mode;
use crate::mutex::Request;
use crate::once::{Claim, Rule, Run};
use crate::owner::Place;
use crate::process::since_boot;
use crate::schedule::definition::Definition;
use crate::verdict::Orphans;
use crate::waiting::Waiting;
use crate::{logging, printable};

/// The argument that makes a process of this program a runner.
const NAME: &str = "run-task";

/// The argument that makes it run a command within a limit.
const LIMITED: &str = "run-limited";

const EXECUTABLE: &str = "/proc/self/exe";

/// The longest part of a line that is written at a time.
const MAX_LINE: u64 = 8 * 1024;

/// How long to wait for output of processes that outlive a task, and for a notification.
const PATIENCE: Duration = Duration::from_secs(1);
const NOTIFYING: Duration = Duration::from_secs(60);

/// What all runs of a scheduler have in common.
pub struct Order {
    pub lease: Option<Duration>,
    pub is_json: bool,
}

/// One run of a task.
#[derive(Serialize, Deserialize)]
pub struct Work {
    task: String,
    location: Location,
    lease: Option<Duration>,
    rule: Rule,
    claim: Claim,
    /// The slot for messages and for the command.
    pub slot: u64,
    command: Vec<String>,
    is_limited: bool,
    /// What runs in place of the command, if there is a limit: the task waits for its place as a part of its run.
    #[serde(skip)]
    limit: Option<Limited>,
    timeout: Option<Duration>,
    had_failed: bool,
    notify: Vec<String>,
    is_json: bool,
}

/// A command that runs while it holds one of several slots of a lock.
#[derive(Serialize, Deserialize)]
struct Limited {
    lock: Location,
    slots: NonZeroU32,
    lease: Option<Duration>,
    command: Vec<String>,
}

impl Order {
    /// The run of this task that `claim` asks for.
    pub fn work(
        &self,
        (name, definition): (&str, &Definition),
        location: &Location,
        (claim, last): (Claim, &Run),
        limits: &BTreeMap<String, NonZeroU32>,
    ) -> Work {
        let limit = definition.limit.as_ref().and_then(|limit| Some((limit, *limits.get(limit)?)));
        let limit = limit.map(|(name, slots)| {
            let key = Key::lock(format!("limit-{name}.lck").as_ref());
            let (lock, lease, command) = (location.sibling(key), self.lease, definition.command.clone());
            Limited { lock, slots, lease, command }
        });
        let rule = Rule { tries: Some(definition.tries), interrupted: definition.interrupted, ..Rule::default() };
        Work {
            task: name.to_owned(),
            location: location.clone(),
            lease: self.lease,
            rule,
            claim,
            slot: claim.slot,
            command: definition.command.clone(),
            is_limited: limit.is_some(),
            limit,
            timeout: definition.timeout,
            had_failed: last.has_failed_before(claim.slot),
            notify: definition.notify.clone(),
            is_json: self.is_json,
        }
    }
}

/// Starts a runner, in a process group of its own: Ctrl-C is for the scheduler alone. It has the environment of the task.
pub fn start(work: &Work, definition: &Definition) -> io::Result<Child> {
    let mut command = Command::new(EXECUTABLE);
    command.arg0("serializer").arg(NAME).arg(&work.task).process_group(0).stdin(Stdio::piped());
    command.envs(&definition.env).env("SERIALIZER_TASK", &work.task).env("SERIALIZER_SLOT", shown_slot(work.slot));
    if let Some(directory) = &definition.directory {
        command.current_dir(directory);
    }
    let mut text = serde_json::to_string(work)? + "\n";
    if let Some(limit) = &work.limit {
        text += &(serde_json::to_string(limit)? + "\n");
    }
    // What follows is for the command.
    text += definition.stdin.as_deref().unwrap_or("");
    let mut child = command.spawn()?;
    child.stdin.take().map_or(Ok(()), |mut orders| orders.write_all(text.as_bytes()))?;
    Ok(child)
}

/// Acts as a runner, if this process was started as one.
pub fn help() -> Option<ExitCode> {
    let name = std::env::args_os().nth(1)?;
    let run = if name == NAME {
        run
    } else if name == LIMITED {
        run_limited
    } else {
        return None;
    };
    logging::start(&LogArgs::default());
    let ended = run().unwrap_or_else(|error| {
        logging::report(&error);
        error.code
    });
    Some(ended.into())
}

fn run() -> Result<u8, Error> {
    let work: Work = orders()?;
    let relay = Relay::start(&work).map_err(cannot)?;
    let ended = work.run();
    // Before its output ends.
    if let Err(error) = &ended {
        logging::report(error);
    }
    relay.end();
    Ok(ended.unwrap_or_else(|error| error.code))
}

fn run_limited() -> Result<u8, Error> {
    let Limited { lock, slots, lease, command } = orders()?;
    let request = Request { mode: Mode::Slots(slots), lease, ..Request::default() };
    let waiting = Waiting { max_attempts: None, sleep: PATIENCE, timeout: None };
    execute(&job(lock, request, waiting, command))
}

fn cannot(error: io::Error) -> Error {
    Error::failed(format!("cannot run a task: {}", backend::plain(&error)))
}

fn job(lock: Location, request: Request, waiting: Waiting, command: Vec<String>) -> Job {
    let (are_awaited, end_with_the_lock, end_by_signals) = (false, lock.is_shared(), true);
    Job {
        request,
        waiting,
        orphans: Orphans::Ignore,
        command: command.into_iter().map(OsString::from).collect(),
        descendants: Descendants { are_awaited, end_with_the_lock, end_by_signals },
        on_lost: OnLost::Terminate,
        lock,
        skipped_exit_code: BUSY,
        is_verbose: false,
        waits_silently: false,
        task_ends_at: None,
    }
}

/// The first line of stdin, and not a byte more: the rest is the command's.
fn orders<T: DeserializeOwned>() -> Result<T, Error> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    let mut read = || rustix::io::retry_on_intr(|| rustix::io::read(io::stdin(), &mut byte)).map(|length| (length, byte[0]));
    loop {
        match read().map_err(|error| cannot(error.into()))? {
            (1, byte) if byte != b'\n' => line.push(byte),
            _ => return serde_json::from_slice(&line).map_err(|error| cannot(error.into())),
        }
    }
}

impl Work {
    fn run(&self) -> Result<u8, Error> {
        let limit = self.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX / 2));
        let request = Request { lease: self.lease, once: Some(self.rule), claim: Some(self.claim), ..Request::default() };
        let waiting = Waiting { max_attempts: Some(NonZeroU32::MIN), sleep: PATIENCE, timeout: None };
        let command = if self.is_limited { [EXECUTABLE, LIMITED].map(str::to_owned).to_vec() } else { self.command.clone() };
        let mut job = job(self.location.clone(), request, waiting, command);
        job.task_ends_at = limit.map(|limit| since_boot().saturating_add(limit));
        if let Some(timeout) = self.timeout {
            thread::spawn(move || {
                thread::sleep(timeout);
                kill_process(getpid(), Signal::TERM)
            });
        }
        // The scheduler holds signals back. From now on, they reach this thread alone.
        let _ = SigSet::all().thread_unblock();
        let begun = since_boot();
        let (ran, error) = match perform(&job) {
            Ok(Some(ran)) => (ran, None),
            Err(error) if error.code != BUSY => (Ran { code: error.code, how: error.to_string(), number: None }, Some(error)),
            // Another scheduler was faster.
            _ if self.claim.is_forced => {
                return Err(Error::new(BUSY, format!("cannot run `{}`: it is running", printable::field(&self.task))));
            }
            _ => return Ok(BUSY),
        };
        self.report(&ran, short(Duration::from_millis(since_boot().saturating_sub(begun))));
        error.map_or(Ok(ran.code), Err)
    }

    /// Says how the run ended, and tells the user's program.
    fn report(&self, ran: &Ran, took: String) {
        let (name, slot) = (printable::field(&self.task), shown_slot(self.slot));
        let is_last = ran.number.is_none_or(|number| self.rule.tries.is_some_and(|tries| number >= tries.get()));
        let event = if ran.code == DONE {
            tracing::info!("`{name}` of {slot} is done after {took}");
            self.had_failed.then_some("recovered")
        } else if ran.how == INTERRUPTED {
            tracing::warn!("`{name}` of {slot} was interrupted after {took}");
            None
        } else {
            tracing::error!("`{name}` of {slot} failed after {took}: {}", ran.how);
            is_last.then_some("failed")
        };
        for event in event.into_iter().chain((self.claim.skipped > 0).then_some("skipped")) {
            self.notify(event, ran.code);
        }
    }

    fn notify(&self, event: &str, code: u8) {
        let [program, arguments @ ..] = self.notify.as_slice() else { return };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).env("SERIALIZER_EVENT", event);
        command.env("SERIALIZER_EXIT_CODE", code.to_string());
        command.env("SERIALIZER_SKIPPED", self.claim.skipped.to_string());
        command.env("SERIALIZER_HOST", Place::here().host.unwrap_or_default());
        match command.spawn() {
            Ok(child) => {
                let told = crate::process::running(rustix::process::Pid::from_child(&child));
                let _ = told.iter().try_for_each(|told| backend::sleep(NOTIFYING, told.ended_fd().as_slice()));
            }
            Err(error) => tracing::warn!("cannot run `{}` of `notify`: {}", printable::field(program), backend::plain(&error)),
        }
    }
}

/// A slot in UTC.
pub fn shown_slot(slot: u64) -> String {
    let time = i64::try_from(slot).ok().and_then(|slot| Timestamp::from_millisecond(slot).ok());
    time.unwrap_or_default().to_string()
}

/// Takes the place of stdout and stderr, and writes each line to stdout with the task's name.
struct Relay {
    output: io::PipeWriter,
    done: mpsc::Receiver<()>,
    before: (std::os::fd::OwnedFd, std::os::fd::OwnedFd),
}

impl Relay {
    fn start(work: &Work) -> io::Result<Self> {
        let (lines, output) = io::pipe()?;
        let before = (io::stdout().as_fd().try_clone_to_owned()?, io::stderr().as_fd().try_clone_to_owned()?);
        let mut to = io::PipeWriter::from(before.0.try_clone()?);
        let (sender, done) = mpsc::channel();
        let (name, slot) = (work.task.clone(), work.is_json.then(|| shown_slot(work.slot)));
        thread::Builder::new().spawn(move || {
            let mut lines = BufReader::new(lines);
            // Ends with the processes that may write.
            loop {
                let mut line = Vec::new();
                match lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
                let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
                let whole = match &slot {
                    Some(slot) => {
                        let time = Timestamp::now().to_string();
                        serde_json::json!({ "timestamp": time, "task": name, "slot": slot, "line": text }).to_string()
                    }
                    None => format!("{name} | {text}"),
                };
                // A scheduler whose output is not read must not stop its tasks.
                let _ = to.write_all((whole + "\n").as_bytes());
            }
            drop(sender);
        })?;
        nix::unistd::dup2_stdout(&output)?;
        nix::unistd::dup2_stderr(&output)?;
        Ok(Self { output, done, before })
    }

    /// Waits for what the task has written.
    fn end(self) {
        let _ = nix::unistd::dup2_stdout(&self.before.0).and_then(|_| nix::unistd::dup2_stderr(&self.before.1));
        drop(self.output);
        let _ = self.done.recv_timeout(PATIENCE);
    }
}
