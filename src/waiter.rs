//! Somebody who waits for a lock, as others see it.

use rustix::process::{Pid, getpid};
use rustix::system::uname;

use crate::record::parse_pid;
use crate::{printable, process};

/// What a label begins with.
const NAME: &str = "serializer ";

/// Stands where a label was cut off.
const CUT: &str = "...";

/// Somebody who waits, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiter {
    /// The process that waits, on its host.
    pub pid: Option<Pid>,
    /// Where it runs; `None` on this machine.
    pub host: Option<String>,
    /// On whose behalf, for people.
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

    /// What this process tells a server about itself, in at most so many bytes of plain text: for those who ask that who waits, and for
    /// its administrators. Nothing in it means something in SQL or ends a comment.
    pub fn label(most: usize) -> String {
        let command = Self::of(getpid()).command.unwrap_or_default();
        let host = uname().nodename().to_string_lossy().into_owned();
        let label = format!("{NAME}{}@{host}: {command}", getpid());
        let plain = |c: char| if (c.is_ascii_graphic() || c == ' ') && !"*'\"\\".contains(c) { c } else { '?' };
        let label: String = label.chars().map(plain).collect();
        if label.len() <= most { label } else { label[..most.saturating_sub(CUT.len())].to_owned() + CUT }
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
    fn a_label_tells_who_waits() {
        let told = Waiter::parse(&Waiter::label(120)).expect("a label");
        assert_eq!(told.pid, Some(getpid()));
        assert!(told.host.is_some_and(|host| !host.is_empty()) && told.command.is_some());
        let waiter = Waiter::parse("serializer 4388@etl2: bash ./hourly.sh").expect("a label");
        assert_eq!((waiter.host.as_deref(), waiter.command.as_deref()), (Some("etl2"), Some("bash ./hourly.sh")));
        // Cut off.
        assert_eq!(Waiter::parse("serializer 4388@etl").and_then(|waiter| waiter.host).as_deref(), Some("etl"));
        for other in ["", "serializer", "serializer x@y: z", "psql", "serializer 0@y"] {
            assert_eq!(Waiter::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_label_is_short_and_plain() {
        for most in [10, 63, 120] {
            let label = Waiter::label(most);
            assert!(label.len() <= most && label.is_ascii() && !label.contains(['*', '\'', '\n']), "{label}");
        }
    }
}
