//! Connections between processes of this program: a stream of messages, each after its length.
//! (macOS has no packets that tell when the other end is closed.) A message may carry a file.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::{FdFlags, fcntl_setfd, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::sys::poll::is_readable;

/// Larger than any message with a file.
const MAX_MESSAGE: usize = 8 * 1024;

const LENGTH: usize = size_of::<u32>();

/// Two ends of a connection that preserves the boundaries of messages.
pub fn connection() -> io::Result<(OwnedFd, OwnedFd)> {
    let (one, two) = UnixStream::pair()?;
    Ok((one.into(), two.into()))
}

/// Sends a message with a file. Fails without a reader, because Rust's runtime ignores SIGPIPE.
pub fn pass(channel: &OwnedFd, message: &[u8], file: BorrowedFd<'_>) -> io::Result<()> {
    let files = [file];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&files));
    let message = framed(message)?;
    let sent = sendmsg(channel, &[IoSlice::new(&message)], &mut control, SendFlags::empty())?;
    stream(channel)?.write_all(&message[sent..])
}

/// Sends a message.
pub fn send(channel: &OwnedFd, message: &[u8]) -> io::Result<()> {
    stream(channel)?.write_all(&framed(message)?)
}

/// Waits for a message with a file.
pub fn receive_with_file(channel: &OwnedFd) -> io::Result<(Vec<u8>, OwnedFd)> {
    let (message, file) = receive_any(channel, MAX_MESSAGE)?;
    Ok((message, file.ok_or(io::ErrorKind::UnexpectedEof)?))
}

/// Waits for a message of at most `most` bytes; returns an empty one if the other end is closed.
pub fn receive(channel: &OwnedFd, most: usize) -> io::Result<Vec<u8>> {
    receive_any(channel, most).map(|(message, _)| message)
}

/// A message that has arrived, or `WouldBlock`.
pub fn receive_now(channel: &OwnedFd, most: usize) -> io::Result<Vec<u8>> {
    // The rest of a message follows at once: one process writes it in one go.
    if is_readable(channel) {
        receive(channel, most)
    } else {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

fn receive_any(channel: &OwnedFd, most: usize) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut length = [0; LENGTH];
    let buffers = &mut [IoSliceMut::new(&mut length)];
    let receive = || recvmsg(channel, buffers, &mut control, RecvFlags::empty());
    let received = retry_on_intr(receive)?.bytes;
    // A file comes with the first byte.
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    file.as_ref().map_or(Ok(()), |file| fcntl_setfd(file, FdFlags::CLOEXEC))?;
    if received == 0 {
        return Ok((Vec::new(), None));
    }
    let mut stream = stream(channel)?;
    stream.read_exact(&mut length[received..])?;
    let length = u32::from_ne_bytes(length) as usize;
    if length > most {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message)?;
    Ok((message, file))
}

fn stream(channel: &OwnedFd) -> io::Result<UnixStream> {
    channel.try_clone().map(UnixStream::from)
}

fn framed(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    Ok([&length.to_ne_bytes(), message].concat())
}
