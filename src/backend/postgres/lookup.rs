//! Looking names up, within a time: the system's resolver takes as long as it likes.
//!
//! In a thread of our own rather than one of the runtime's, because of signals: those that `run` reads from a descriptor, the end of its
//! command among them, would be lost on a thread that does not block them, and the runtime keeps its threads.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};

/// The addresses of `name`, within `limit`.
pub fn addresses(name: &str, port: u16, limit: Duration) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(vec![(address, port).into()]);
    }
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
