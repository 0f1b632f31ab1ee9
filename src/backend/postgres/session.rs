//! Whether a connection is a session of the server's own, or one with a pooler that lends out sessions for a transaction each.
//!
//! It matters for notifications: a `LISTEN` through such a pooler is another's session, who gets what we wait for, and trying it
//! out does not tell: what a session tells itself comes before the end of its transaction, and so through every pooler. But
//! a server says at the beginning which of its processes one speaks to (for requests to cancel), where a pooler has to say
//! something else, because that changes. tokio-postgres keeps that to itself, so it is read on its way, and
//! with it the key for such requests: those that tokio-postgres sends are not fit for poolers, see [`super::cancel`].

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

/// The message that tells the process and its key (`BackendKeyData`), and the one that ends the beginning (`ReadyForQuery`).
const KEY_DATA: u8 = b'K';
const READY: u8 = b'Z';

/// Of a message, its kind and its length, which counts itself.
const HEAD: usize = 5;

/// What is told: four bytes each. A longer key would have to be asked for, with a newer version of the protocol.
pub type Key = [u8; 8];

/// Listens to the beginning of a session.
#[derive(Clone, Default)]
pub struct Ear {
    key: Rc<Cell<Option<Key>>>,
    is_done: bool,
    /// What was read of a message's head, and of what it tells.
    head: Vec<u8>,
    /// How much of the message is of no interest.
    skip: usize,
}

impl Ear {
    /// The process that the other end says to be, once the session has begun.
    pub fn process(&self) -> Option<i32> {
        self.key().map(|[a, b, c, d, ..]| i32::from_be_bytes([a, b, c, d]))
    }

    /// The process, and by what it knows that a request to cancel comes from us, once the session has begun.
    pub fn key(&self) -> Option<Key> {
        self.key.get()
    }

    fn hear(&mut self, mut bytes: &[u8]) {
        while let Some((byte, rest)) = bytes.split_first()
            && !self.is_done
        {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            bytes = rest;
            self.head.push(*byte);
            match self.head.as_slice() {
                [KEY_DATA, _, _, _, _, key @ ..] => {
                    if let Ok(key) = key.try_into() {
                        self.key.set(Some(key));
                        self.is_done = true;
                    }
                }
                [READY, ..] => self.is_done = true,
                [_, a, b, c, d] => {
                    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
                    self.skip = length.saturating_sub(HEAD - 1);
                    self.head.clear();
                }
                _ => {}
            }
        }
    }
}

/// A stream that is listened to.
pub struct Overheard<S> {
    inner: S,
    ear: Ear,
}

impl<S> Overheard<S> {
    /// Listens from now on.
    pub fn new(inner: S, ear: Ear) -> Self {
        Self { inner, ear }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Overheard<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        if !self.ear.is_done {
            self.ear.hear(&buffer.filled()[before..]);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Overheard<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Overheard<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.inner.channel_binding()
    }
}

/// Encrypts, and listens to what was encrypted.
pub struct OverheardTls<T> {
    inner: T,
    ear: Ear,
}

impl<T> OverheardTls<T> {
    /// Listens once it is connected.
    pub fn new(inner: T, ear: Ear) -> Self {
        Self { inner, ear }
    }
}

impl<S, T> TlsConnect<S> for OverheardTls<T>
where
    T: TlsConnect<S>,
    T::Future: 'static,
{
    type Stream = Overheard<T::Stream>;
    type Error = T::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, Self::Error>>>>;

    fn connect(self, stream: S) -> Self::Future {
        let connecting = self.inner.connect(stream);
        Box::pin(async move { Ok(Overheard::new(connecting.await?, self.ear)) })
    }
}

#[cfg(test)]
mod tests {
    use super::Ear;

    #[test]
    fn the_process_is_heard_however_the_bytes_are_cut() {
        let message = |kind: u8, body: &[u8]| {
            let length = u32::try_from(body.len() + 4).expect("short");
            [&[kind][..], &length.to_be_bytes(), body].concat()
        };
        let process = 0x4b5a_0102_i32;
        let all = [
            message(b'R', &[0; 4]),
            message(b'S', b"K\0\0\0\x0c"),
            message(b'S', b""),
            message(b'K', &[&process.to_be_bytes()[..], &[1, 2, 3, 4]].concat()),
            message(b'Z', b"I"),
        ]
        .concat();
        for size in 1..=all.len() {
            let mut ear = Ear::default();
            all.chunks(size).for_each(|chunk| ear.hear(chunk));
            assert_eq!(ear.process(), Some(process), "{size}");
            assert_eq!(ear.key().expect("a key")[4..], [1, 2, 3, 4], "{size}");
        }
        let mut ear = Ear::default();
        ear.hear(&[message(b'R', &[0; 4]), message(b'Z', b"I"), message(b'K', &[1; 8])].concat());
        assert_eq!(ear.process(), None);
    }
}
