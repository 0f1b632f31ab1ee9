//! Helpers: this program again, doing a small part of the work in a process of its own.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::Pid;

/// Larger than any message with a file.
const MAX_MESSAGE: usize = 8 * 1024;

/// Two ends of a connection, which keeps messages apart.
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
pub fn receive(channel: &OwnedFd) -> io::Result<(Vec<u8>, OwnedFd)> {
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

/// This program again, with a connection as its stdin.
pub fn spawn(
    name: &str,
    adapt: impl FnOnce(&mut Command) -> &mut Command,
) -> io::Result<(Pid, OwnedFd)> {
    let (ours, theirs) = connection()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("serializer").arg(name).stdin(theirs);
    // Then this program is not found, and not the one that it is to run.
    let child = adapt(&mut command).spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::other("/proc is not mounted"),
        _ => error,
    })?;
    Ok((Pid::from_child(&child), ours))
}
