//! Noticing that the other end of a silent connection is gone.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;

/// When the system asks whether the other end of a silent connection is still there: while somebody waits, nothing else tells that;
/// and firewalls forget silent connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// After silence for so long.
    pub idle: Duration,
    /// And so often, if there is no answer.
    pub interval: Duration,
    /// So many times.
    pub count: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(20), interval: Duration::from_secs(5), count: 3 }
    }
}

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
