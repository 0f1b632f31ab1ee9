//! Looking names up, within a time: the system's resolver takes as long as it likes.
//!
//! In a thread of its own, which gets no signals: those that `run` reads from a descriptor, the end of its command among them, would be
//! lost on a thread that does not block them. It ends with the answer, or with the process.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::backend::failure::Failure;
use crate::backend::plain;
use crate::printable;

/// The addresses of `name`, within `limit`; at least one.
///
/// # Errors
/// When there is none, or no answer.
pub fn addresses(name: &str, port: u16, limit: Duration) -> Result<Vec<SocketAddr>, Failure> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(vec![(address, port).into()]);
    }
    let found = look_up(name, port, limit).map_err(|error| failure(name, &error))?;
    if found.is_empty() {
        return Err(Failure::permanent(format!("`{}` has no address", printable::field(name))));
    }
    Ok(found)
}

fn look_up(name: &str, port: u16, limit: Duration) -> io::Result<Vec<SocketAddr>> {
    let (answer, answers) = mpsc::sync_channel(1);
    let asked = name.to_owned();
    let look = move || {
        let found = (asked.as_str(), port).to_socket_addrs().map(Iterator::collect);
        // If nobody waits any more, it took too long.
        let _ = answer.send(found);
    };
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let started = thread::Builder::new().name("lookup".to_owned()).spawn(look);
    // The mask that was there fits.
    before.thread_set_mask()?;
    started?;
    answers.recv_timeout(limit).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// What the system says about a name.
fn failure(name: &str, error: &io::Error) -> Failure {
    let why = plain(error).to_string();
    let why = why.rsplit(": ").next().unwrap_or("").to_lowercase();
    // The only thing in which the two kinds differ is the text; an unknown name stays unknown.
    let is_passing = error.kind() == io::ErrorKind::TimedOut || why.contains("try again") || why.contains("temporary");
    let why = format!("cannot find the address of `{}`: {why}", printable::field(name));
    if is_passing { Failure::transient(why) } else { Failure::permanent(why) }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use super::{addresses, failure};
    use crate::backend::failure::Cause;

    #[test]
    fn what_is_an_address_is_not_looked_up() {
        for (name, expected) in [("127.0.0.1", "127.0.0.1:7"), ("::1", "[::1]:7")] {
            let found = addresses(name, 7, Duration::ZERO).expect(name);
            assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
        }
    }

    #[test]
    fn a_resolver_that_fails_may_answer_soon_and_an_unknown_name_stays_unknown() {
        let of = |text: &str| failure("db", &io::Error::other(text.to_owned()));
        let passing = of("failed to lookup address information: Temporary failure in name resolution");
        assert_eq!((passing.cause, passing.why.contains("temporary failure")), (Cause::Transient, true), "{}", passing.why);
        assert_eq!(of("failed to lookup address information: Name or service not known").cause, Cause::Permanent);
        assert_eq!(failure("db", &io::ErrorKind::TimedOut.into()).cause, Cause::Transient);
    }
}
