//! A waiter, as other processes see it.

use rustix::process::{Pid, getpid};
use rustix::system::uname;
use serde::Serialize;

use crate::sys::process::{self, parse_pid};
use crate::sys::text;

/// What a label begins with.
const NAME: &str = "serializer ";

/// A waiter, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Waiter {
    /// The process that waits, on its host.
    pub pid: Option<i32>,
    /// The command that it waits for, for people.
    pub command: Option<String>,
    /// Where it runs; `None` on this machine.
    pub host: Option<String>,
}

impl Waiter {
    /// A process of this machine.
    pub fn of(pid: Pid) -> Self {
        let arguments = process::arguments(pid);
        // `serializer lock` waits for its parent, and that is what people know.
        let is_lock = arguments
            .iter()
            .skip(1)
            .find(|argument| !argument.starts_with('-'))
            .is_some_and(|word| word == "lock");
        let arguments =
            is_lock.then(|| process::parent(pid)).flatten().map_or(arguments, process::arguments);
        Self {
            pid: Some(pid.as_raw_pid()),
            host: None,
            command: Some(text::command_line(&arguments)),
        }
    }

    /// How this process names itself to a server, in at most so many bytes of plain text without a
    /// special meaning in SQL.
    pub fn label(most: usize) -> String {
        let command = Self::of(getpid()).command.unwrap_or_default();
        let host = uname().nodename().to_string_lossy().into_owned();
        let label = format!("{NAME}{}@{host}: {command}", getpid()).replace('…', "...");
        let plain = |c: char| {
            if (c.is_ascii_graphic() || c == ' ') && !"*'\"\\".contains(c) { c } else { '?' }
        };
        label.chars().map(plain).take(most).collect()
    }

    /// What a label says.
    pub fn parse(label: &str) -> Option<Self> {
        let (pid, rest) = label.strip_prefix(NAME)?.split_once('@')?;
        let (host, command) = rest.split_once(": ").unwrap_or((rest, ""));
        let command = Some(text::field(command)).filter(|command| !command.is_empty());
        Some(Self {
            pid: Some(parse_pid(pid)?.as_raw_pid()),
            host: Some(text::field(host)),
            command,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Waiter;

    #[test]
    fn a_label_is_short_and_plain_and_names_the_waiter() {
        let label = Waiter::label(63);
        assert!(
            label.len() <= 63 && label.is_ascii() && !label.contains(['*', '\'', '\n']),
            "{label}"
        );
        let parsed =
            |label| Waiter::parse(label).map(|Waiter { pid, host, command }| (pid, host, command));
        let waiter = |pid, host: &str, command: Option<&str>| {
            Some((Some(pid), Some(host.to_owned()), command.map(str::to_owned)))
        };
        assert_eq!(
            parsed("serializer 4388@etl2: bash ./hourly.sh"),
            waiter(4388, "etl2", Some("bash ./hourly.sh"))
        );
        // Cut off.
        assert_eq!(parsed("serializer 4388@etl"), waiter(4388, "etl", None));
        for other in ["", "serializer", "serializer x@y: z", "psql", "serializer 0@y"] {
            assert_eq!(Waiter::parse(other), None, "{other}");
        }
    }
}
