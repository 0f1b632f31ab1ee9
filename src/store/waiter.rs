//! A waiter, as other processes see it.

use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use rustix::process::{Pid, getpid};
use rustix::system::uname;
use serde::Serialize;

use crate::record::mode::Mode;
use crate::sys::process::{self, parse_pid};
use crate::sys::{clock, text};

/// What a label begins with.
const NAME: &str = "serializer ";

/// How this process wants to hold the lock that it waits for.
pub static WANTED: OnceLock<Mode> = OnceLock::new();

/// A waiter, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Waiter {
    /// The process that waits, on its host.
    pub pid: Option<i32>,
    /// The command that it waits for, for people.
    pub command: Option<String>,
    /// Where it runs; `None` on this machine.
    pub host: Option<String>,
    /// When its process has started, in seconds since 1970.
    pub since: Option<u64>,
    /// How it wants to hold the lock, if it says so itself.
    pub mode: Option<String>,
}

impl Waiter {
    /// A process of this machine.
    pub fn of(pid: Pid) -> Self {
        let arguments = process::arguments(pid);
        let started = process::running(pid).and_then(|process| process.instance.start);
        let since = started.and_then(clock::wall_clock);
        let since = since.and_then(|since| Some(since.duration_since(UNIX_EPOCH).ok()?.as_secs()));
        // `serializer lock` waits for its parent, and that is what people know.
        let word = arguments.iter().skip(1).find(|argument| !argument.starts_with('-'));
        let is_lock = word.is_some_and(|word| word == "lock");
        let arguments =
            is_lock.then(|| process::parent(pid)).flatten().map_or(arguments, process::arguments);
        let (pid, command) = (Some(pid.as_raw_pid()), Some(text::command_line(&arguments)));
        Self { pid, command, since, ..Self::default() }
    }

    /// With what is known of a process of this machine. It costs four files of `/proc`: too much
    /// for each of many waiters that counts the others.
    pub fn described(self) -> Self {
        let pid = self.pid.filter(|_| self.command.is_none() && self.host.is_none());
        pid.and_then(Pid::from_raw).map_or(self, Self::of)
    }

    /// How this process names itself to a server, in at most so many bytes of plain text without a
    /// special meaning in SQL.
    pub fn label(most: usize) -> String {
        let Self { command, since, .. } = Self::of(getpid());
        let host = uname().nodename().to_string_lossy().into_owned();
        let mode = WANTED.get().filter(|mode| **mode != Mode::EXCLUSIVE);
        let mode = mode.map(|mode| format!(" {mode}")).unwrap_or_default();
        let (pid, since, command) =
            (getpid(), since.unwrap_or_default(), command.unwrap_or_default());
        let label = format!("{NAME}{pid}@{host} {since:x}{mode}: {command}").replace('…', "...");
        let is_special = |c: char| !matches!(c, ' '..='~') || "*'\"\\".contains(c);
        label.replace(is_special, "?").chars().take(most).collect()
    }

    /// What a label says.
    pub fn parse(label: &str) -> Option<Self> {
        let (pid, rest) = label.strip_prefix(NAME)?.split_once('@')?;
        let (place, command) = rest.split_once(": ").unwrap_or((rest, ""));
        let mut words = place.splitn(3, ' ');
        let (host, since, mode) = (words.next(), words.next(), words.next());
        let since = since.and_then(|since| u64::from_str_radix(since, 16).ok());
        // Exclusive waiters leave it out. A label that was cut off does not tell.
        let usual = since.filter(|_| !command.is_empty()).map(|_| Mode::EXCLUSIVE.to_string());
        let mode = mode.map(text::field).or(usual);
        let command = Some(text::field(command)).filter(|command| !command.is_empty());
        Some(Self {
            pid: Some(parse_pid(pid)?.as_raw_pid()),
            host: host.map(text::field),
            command,
            since,
            mode,
        })
    }
}
