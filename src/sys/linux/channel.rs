//! Connections between processes of this program: packets, which may carry a file.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send as send_packet,
    sendmsg, socketpair,
};

/// Larger than any message with a file.
const MAX_MESSAGE: usize = 8 * 1024;

/// Two ends of a connection that preserves the boundaries of messages.
pub fn connection() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends a message with a file.
pub fn pass(channel: &OwnedFd, message: &[u8], file: BorrowedFd<'_>) -> io::Result<()> {
    let files = [file];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&files));
    sendmsg(channel, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits for a message with a file.
pub fn receive_with_file(channel: &OwnedFd) -> io::Result<(Vec<u8>, OwnedFd)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut message = vec![0; MAX_MESSAGE];
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(
            channel,
            &mut [IoSliceMut::new(&mut message)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    message.truncate(received.bytes);
    Ok((message, file.ok_or(io::ErrorKind::UnexpectedEof)?))
}

/// Sends a message.
pub fn send(channel: &OwnedFd, message: &[u8]) -> io::Result<()> {
    send_packet(channel, message, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits for a message of at most `most` bytes; returns an empty one if the other end is closed.
pub fn receive(channel: &OwnedFd, most: usize) -> io::Result<Vec<u8>> {
    receive_by(channel, most, RecvFlags::empty())
}

/// A message that has arrived, or `WouldBlock`.
pub fn receive_now(channel: &OwnedFd, most: usize) -> io::Result<Vec<u8>> {
    receive_by(channel, most, RecvFlags::DONTWAIT)
}

fn receive_by(channel: &OwnedFd, most: usize, flags: RecvFlags) -> io::Result<Vec<u8>> {
    let mut message = vec![0; most];
    let (_, length) = rustix::io::retry_on_intr(|| recv(channel, &mut message, flags))?;
    message.truncate(length);
    Ok(message)
}
