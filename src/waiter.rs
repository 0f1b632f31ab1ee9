//! A waiter, as other processes see it.

use rustix::process::{Pid, getpid};
use rustix::system::uname;

use crate::record::parse_pid;
use crate::{printable, process};

/// What a label begins with.
const NAME: &str = "serializer ";

/// A waiter, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiter {
    /// The process that waits, on its host.
    pub pid: Option<Pid>,
    /// Where it runs; `None` on this machine.
    pub host: Option<String>,
    /// The command that it waits for, for people.
    pub command: Option<String>,
}

impl Waiter {
    /// A process of this machine.
    pub fn of(pid: Pid) -> Self {
        let arguments = process::arguments(pid);
        // `serializer lock` waits for its parent, and that is what people know.
        let is_lock = arguments.iter().skip(1).find(|argument| !argument.starts_with('-')).is_some_and(|word| word == "lock");
        let arguments = is_lock.then(|| process::parent(pid)).flatten().map_or(arguments, process::arguments);
        Self { pid: Some(pid), host: None, command: Some(printable::command_line(&arguments)) }
    }

    /// How this process names itself to a server, in at most so many bytes of plain text. It has no special meaning in SQL, and
    /// ends no comment.
    pub fn label(most: usize) -> String {
        let command = Self::of(getpid()).command.unwrap_or_default();
        let host = uname().nodename().to_string_lossy().into_owned();
        let label = format!("{NAME}{}@{host}: {command}", getpid()).replace('…', "...");
        let plain = |c: char| if (c.is_ascii_graphic() || c == ' ') && !"*'\"\\".contains(c) { c } else { '?' };
        label.chars().map(plain).take(most).collect()
    }

    /// What a label says.
    pub fn parse(label: &str) -> Option<Self> {
        let (pid, rest) = label.strip_prefix(NAME)?.split_once('@')?;
        let (host, command) = rest.split_once(": ").unwrap_or((rest, ""));
        let command = Some(printable::field(command)).filter(|command| !command.is_empty());
        Some(Self { pid: Some(parse_pid(pid)?), host: Some(printable::field(host)), command })
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::getpid;

    use super::Waiter;

    #[test]
    fn a_label_is_short_and_plain_and_names_the_waiter() {
        for most in [10, 63, 120] {
            let label = Waiter::label(most);
            assert!(label.len() <= most && label.is_ascii() && !label.contains(['*', '\'', '\n']), "{label}");
        }
        assert_eq!(Waiter::parse(&Waiter::label(120)).and_then(|waiter| waiter.pid), Some(getpid()));
        let waiter = Waiter::parse("serializer 4388@etl2: bash ./hourly.sh").expect("a label");
        assert_eq!((waiter.host.as_deref(), waiter.command.as_deref()), (Some("etl2"), Some("bash ./hourly.sh")));
        // Cut off.
        assert_eq!(Waiter::parse("serializer 4388@etl").and_then(|waiter| waiter.host).as_deref(), Some("etl"));
        for other in ["", "serializer", "serializer x@y: z", "psql", "serializer 0@y"] {
            assert_eq!(Waiter::parse(other), None, "{other}");
        }
    }
}
