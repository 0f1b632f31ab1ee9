//! What stores that are reached over a network have in common, whatever they speak.

pub mod address;
pub mod lookup;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub mod passwords;
pub mod tls;

#[cfg(any(feature = "postgres", feature = "mysql"))]
use std::io;
#[cfg(any(feature = "postgres", feature = "mysql"))]
use std::os::fd::AsFd;
#[cfg(any(feature = "postgres", feature = "mysql"))]
use std::time::Duration;

#[cfg(any(feature = "postgres", feature = "mysql"))]
use rustix::net::sockopt;

use crate::printable;

/// The longest text of a server that is repeated, in characters.
const MAX_TEXT: usize = 300;

/// When the system asks whether the other end of a silent connection is still there: while somebody waits, nothing else tells that;
/// and firewalls forget silent connections.
#[cfg(any(feature = "postgres", feature = "mysql"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// After silence for so long.
    pub idle: Duration,
    /// And so often, if there is no answer.
    pub interval: Duration,
    /// So many times.
    pub count: u32,
}

#[cfg(any(feature = "postgres", feature = "mysql"))]
impl Default for Keepalive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(20), interval: Duration::from_secs(5), count: 3 }
    }
}

#[cfg(any(feature = "postgres", feature = "mysql"))]
impl Keepalive {
    /// Asks the system for it.
    ///
    /// # Errors
    /// When the system does not do it.
    pub fn set(&self, socket: impl AsFd) -> io::Result<()> {
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, self.idle)?;
        sockopt::set_tcp_keepintvl(&socket, self.interval)?;
        Ok(sockopt::set_tcp_keepcnt(&socket, self.count)?)
    }
}

/// A server's words as part of a sentence: on one line, lower case where it is a word, and without its end.
pub fn sentence(text: &str) -> String {
    let text: String = text.chars().map(|c| if printable::is_safe(c) { c } else { ' ' }).take(MAX_TEXT).collect();
    let text = text.trim().trim_end_matches('.');
    let mut letters = text.chars();
    let (Some(first), second) = (letters.next(), text.chars().nth(1)) else { return "unknown error".to_owned() };
    // An abbreviation stays one.
    if second.is_some_and(char::is_uppercase) {
        return text.to_owned();
    }
    first.to_lowercase().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::sentence;
    use crate::backend::remote::jittered;

    #[test]
    fn what_the_server_says_becomes_part_of_a_sentence() {
        assert_eq!(sentence("Too many\nconnections."), "too many connections");
        assert_eq!(sentence("WSREP has not yet prepared node"), "WSREP has not yet prepared node");
        assert_eq!(sentence(""), "unknown error");
    }

    #[test]
    fn pauses_are_about_as_long_as_they_are_meant_to_be() {
        let pause = Duration::from_secs(8);
        assert!((0..1000).all(|_| (Duration::from_secs(6)..=Duration::from_secs(10)).contains(&jittered(pause))));
    }
}
