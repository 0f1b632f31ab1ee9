//! Bytes to and from a server, by a deadline: over TCP, with or without TLS, or over a socket file.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustls::{ClientConnection, StreamOwned};

use super::super::network::{Keepalive, lookup};
use super::failure::Trouble;

/// How long to wait before asking again a server that has a full backlog.
const FULL: Duration = Duration::from_millis(20);

/// A socket whose operations end by a deadline.
pub struct Wire {
    socket: Socket,
    pub deadline: Instant,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Wire {
    /// Connects to a socket file.
    pub fn to_file(path: &Path, deadline: Instant) -> Result<Self, Trouble> {
        let address = SocketAddrUnix::new(path).map_err(io::Error::from)?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None);
        let socket = socket.map_err(io::Error::from)?;
        // Ends with the deadline: a server that is stopped lets nobody in, and nothing tells when it does.
        loop {
            match connect(&socket, &address) {
                Ok(()) => return Ok(Self { socket: Socket::Unix(socket.into()), deadline }),
                Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(FULL),
                Err(Errno::AGAIN) => return Err(io::Error::from(ErrorKind::TimedOut).into()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
    }

    /// Connects to the first of a host's addresses that answers.
    pub fn to_host(host: &str, port: u16, deadline: Instant) -> Result<Self, Trouble> {
        let limit = deadline.saturating_duration_since(Instant::now());
        let addresses = lookup::addresses(host, port, limit).map_err(Trouble::Unusable)?;
        let mut last = io::Error::from(ErrorKind::TimedOut);
        for (index, address) in addresses.iter().enumerate() {
            // A silent one must not use up the time of those behind it.
            let shares = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
            let limit = deadline.saturating_duration_since(Instant::now()) / shares;
            if limit.is_zero() {
                break;
            }
            match TcpStream::connect_timeout(address, limit) {
                Ok(stream) => return Ok(Self { socket: Socket::Tcp(tuned(stream)?), deadline }),
                Err(error) => last = error,
            }
        }
        Err(match last.into() {
            Trouble::Broken(why) => Trouble::Broken(format!("cannot connect to `{host}:{port}`: {why}")),
            other => other,
        })
    }

    fn attempt<T>(&mut self, flags: PollFlags, mut operation: impl FnMut(&mut Socket) -> io::Result<T>) -> io::Result<T> {
        // Ends with the deadline.
        loop {
            match operation(&mut self.socket) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                done => return done,
            }
            let limit = self.deadline.saturating_duration_since(Instant::now());
            if !is_ready(self.as_fd(), flags, limit)? && limit.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    }
}

/// Whether it becomes ready within `limit`, as far as it is not interrupted.
pub fn is_ready(fd: BorrowedFd<'_>, flags: PollFlags, limit: Duration) -> io::Result<bool> {
    let limit = Timespec::try_from(limit).map_err(|_| ErrorKind::InvalidInput)?;
    match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&limit)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn tuned(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Keepalive::default().set(&stream)?;
    Ok(stream)
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.attempt(PollFlags::IN, |socket| match socket {
            Socket::Tcp(stream) => stream.read(buffer),
            Socket::Unix(stream) => stream.read(buffer),
        })
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.attempt(PollFlags::OUT, |socket| match socket {
            Socket::Tcp(stream) => stream.write(bytes),
            Socket::Unix(stream) => stream.write(bytes),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What packets travel over.
pub enum Stream {
    Plain(Wire),
    Secure(Box<StreamOwned<ClientConnection, Wire>>),
}

impl Stream {
    pub fn wire(&mut self) -> &mut Wire {
        match self {
            Self::Plain(wire) => wire,
            Self::Secure(stream) => &mut stream.sock,
        }
    }

    /// Whether nobody else on the network can read it.
    pub fn is_secure(&self) -> bool {
        matches!(self, Self::Secure(_))
    }

    /// Whether it does not leave this machine.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Plain(Wire { socket: Socket::Unix(_), .. }))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(wire) => wire.as_fd(),
            Self::Secure(stream) => stream.sock.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(wire) => wire.read(buffer),
            Self::Secure(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(wire) => wire.write(bytes),
            Self::Secure(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(wire) => wire.flush(),
            Self::Secure(stream) => stream.flush(),
        }
    }
}
