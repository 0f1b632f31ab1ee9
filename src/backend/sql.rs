//! The common parts of PostgreSQL and MySQL. `sqlx` speaks their protocols.
//!
//! The table has one row for each name: `name`, `version` (the number of the state), `record` (the
//! text, or NULL), `changed` (for people) and `format` (of the table: another number means that a
//! later program has changed the columns).
//!
//! Statements are simple queries whose values are hexadecimal literals. A pooler may send each of
//! them to another session, so nothing is prepared, and nothing that a statement sets outlives its
//! transaction.

pub mod address;
pub mod failure;

use std::ffi::{OsStr, OsString};
use std::future::poll_fn;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use tokio::net::unix::pipe::Receiver;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::failure::{Cause, Failure};
use super::plain;
use super::seam::{Kind, State};

/// The table's `format` that this program understands.
pub const FORMAT: i16 = 1;

/// The action that frees a lock whose row has a foreign value.
pub const REPAIR: &str = "setting `record` to NULL in its row";

/// How many rows a page of `list` has.
pub const PAGE: usize = 500;

/// How long closing a connection politely may take: it only saves a line in the server's log.
const GOODBYE: Duration = Duration::from_millis(100);

/// How long a read-only server counts as failing over. A longer read-only state ends only by an
/// administrator.
const FAIL_OVER: Duration = Duration::from_secs(120);

/// Runs the futures of a store on the calling thread. Starts when it is first used.
#[derive(Default)]
pub struct Driver(Option<Runtime>);

impl Driver {
    /// The runtime.
    ///
    /// # Errors
    /// When the system does not provide one.
    fn runtime(&mut self) -> Result<&Runtime, Failure> {
        if self.0.is_none() {
            // Where a name is not verified, sqlx uses the provider of the process, which may be
            // set.
            let _ = rustls::crypto::ring::default_provider().install_default();
            // `run` reads signals from a descriptor. A thread that resolves host names must not
            // consume them.
            let block_signals = || SigSet::all().thread_block().unwrap_or_default();
            let built = Builder::new_current_thread().enable_all().on_thread_start(block_signals).build();
            let cannot = |error| Failure::permanent(format!("cannot set up connections: {}", plain(&error)));
            self.0 = Some(built.map_err(cannot)?);
        }
        self.0.as_ref().ok_or_else(|| Failure::permanent("cannot set up connections"))
    }

    /// Runs a future to its end.
    ///
    /// # Errors
    /// When there is no runtime.
    pub fn run<F: Future>(&mut self, future: F) -> Result<F::Output, Failure> {
        Ok(self.runtime()?.block_on(future))
    }

    /// Runs a future for at most `limit`; `None` if it has not ended by then.
    ///
    /// # Errors
    /// When there is no runtime.
    pub fn run_within<F: Future>(&mut self, limit: Duration, future: F) -> Result<Option<F::Output>, Failure> {
        self.run(async { timeout(limit, future).await.ok() })
    }

    /// Waits for `event`, at most `limit`, or until one of `fds` is readable; `None` if it has not
    /// happened.
    ///
    /// # Errors
    /// When it cannot wait.
    pub fn wait<T>(
        &mut self,
        limit: Duration,
        fds: &[BorrowedFd<'_>],
        event: impl Future<Output = T>,
    ) -> Result<Option<T>, Failure> {
        self.run(async {
            let (mut event, mut interrupted) = (pin!(event), pin!(timeout(limit, readable(fds))));
            poll_fn(|context| match event.as_mut().poll(context) {
                Poll::Ready(happened) => Poll::Ready(Ok(Some(happened))),
                Poll::Pending => interrupted.as_mut().poll(context).map(|ended| ended.unwrap_or(Ok(())).map(|()| None)),
            })
            .await
        })?
        .map_err(|error: std::io::Error| Failure::permanent(format!("cannot wait: {}", plain(&error))))
    }

    /// Drops a value whose drop needs a runtime.
    pub fn discard<T>(&mut self, value: T) {
        let _entered = self.0.as_ref().map(Runtime::enter);
        drop(value);
    }

    /// Ends the remaining connections: a pool returns a session in a task, which runs only while
    /// this driver runs a future.
    pub fn end(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }

    /// Closes a connection politely.
    pub fn close(&mut self, closing: impl Future) {
        // Best effort: the server also notices the end of a connection that was not closed.
        let _ = self.run(async { drop(timeout(GOODBYE, closing).await) });
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Without waiting: the lookup of a host name can take a minute.
        self.end();
    }
}

/// Ends when one of `fds` is readable.
async fn readable(fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    // The runtime owns a copy of each descriptor. It takes any descriptor that can be polled.
    let copy = |fd: &BorrowedFd<'_>| Receiver::from_owned_fd_unchecked(fd.try_clone_to_owned()?);
    let copies = fds.iter().map(copy).collect::<Result<Vec<_>, _>>()?;
    let mut all: Vec<Pin<Box<_>>> = copies.iter().map(|copy| Box::pin(copy.readable())).collect();
    poll_fn(|context| {
        let ready = all.iter_mut().find_map(|one| match one.as_mut().poll(context) {
            Poll::Ready(ready) => Some(ready),
            Poll::Pending => None,
        });
        ready.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// When a server first and last refused a write because it is read-only.
#[derive(Default)]
pub struct ReadOnly(Option<(Instant, Instant)>);

impl ReadOnly {
    /// Records a write that was not refused for that reason.
    pub fn end(&mut self) {
        self.0 = None;
    }

    /// The refusal of a write, as transient for as long as a fail-over takes.
    pub fn judge(&mut self, failure: Failure) -> Failure {
        let now = Instant::now();
        // A refusal long ago belongs to an earlier fail-over.
        let since = self.0.filter(|(_, last)| last.elapsed() < FAIL_OVER).map_or(now, |(since, _)| since);
        self.0 = Some((since, now));
        let cause = if since.elapsed() < FAIL_OVER { Cause::Transient } else { Cause::Permanent };
        Failure { cause, ..failure }
    }
}

/// How much TLS a connection has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    /// None.
    Disable,
    /// Only if the server requires it.
    Allow,
    /// If the server has it.
    Prefer,
    /// With any certificate.
    Require,
    /// With a certificate from a trusted authority.
    VerifyCa,
    /// With a certificate from a trusted authority, for this host.
    VerifyFull,
}

/// How a connection is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// How much TLS.
    pub mode: TlsMode,
    /// A file with authorities to trust beside the system's.
    pub roots: Option<PathBuf>,
    /// The client's certificate and key, for a server that requires them.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |half: u8| char::from(DIGITS[usize::from(half & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

/// The condition on a column that selects a page of names of a kind. `literal` writes a text as a
/// literal of the engine.
pub fn condition(kind: Kind, after: Option<&OsStr>, column: &str, literal: impl Fn(&str) -> String) -> String {
    let range = |kind: Kind| {
        let prefix = kind.prefix();
        // The next character after `/` is `0`.
        let end = prefix.replace('/', "0");
        format!("({column} >= {} AND {column} < {})", literal(prefix), literal(&end))
    };
    let of_kind = match kind {
        Kind::Lock => Kind::PREFIXED.map(|kind| format!("NOT {}", range(kind))).join(" AND "),
        kind => range(kind),
    };
    let after = after.and_then(OsStr::to_str);
    let after = after.map(|after| format!(" AND {column} > {}", literal(&format!("{}{after}", kind.prefix()))));
    of_kind + &after.unwrap_or_default()
}

/// A stored name without the prefix of its kind.
pub fn listed(kind: Kind, stored: &str) -> OsString {
    stored.strip_prefix(kind.prefix()).unwrap_or(stored).into()
}

/// A page of these entries, with the name to continue after.
pub fn page(entries: Vec<(OsString, State)>) -> super::seam::Page {
    let next = if entries.len() < PAGE { None } else { entries.last().map(|(name, _)| name.clone()) };
    super::seam::Page { entries, next }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use super::{Driver, FAIL_OVER, ReadOnly, condition, listed};
    use crate::backend::failure::{Cause, Failure};
    use crate::backend::seam::Kind;

    #[test]
    fn a_read_only_server_is_waited_for_as_long_as_a_fail_over_takes() {
        let mut read_only = ReadOnly::default();
        let cause = |read_only: &mut ReadOnly| read_only.judge(Failure::transient("read-only")).cause;
        assert_eq!(cause(&mut read_only), Cause::Transient);
        let (now, before) = (Instant::now(), Instant::now().checked_sub(FAIL_OVER).expect("the machine runs for longer"));
        read_only.0 = Some((before, now));
        assert_eq!(cause(&mut read_only), Cause::Permanent);
        // Another fail-over.
        read_only.0 = Some((before, before));
        assert_eq!(cause(&mut read_only), Cause::Transient);
        read_only.end();
        assert_eq!(cause(&mut read_only), Cause::Transient);
    }

    #[test]
    fn a_readable_descriptor_ends_waiting_and_stays_readable() {
        let (mut one, mut other) = UnixStream::pair().expect("a pair");
        let mut driver = Driver::default();
        let never = || std::future::pending::<()>();
        assert!(driver.wait(Duration::from_millis(1), &[one.as_fd()], never()).is_ok_and(|event| event.is_none()));
        other.write_all(b"x").expect("it can be written");
        let long = Duration::from_secs(3600);
        for _ in 0..2 {
            assert!(driver.wait(long, &[one.as_fd()], never()).is_ok_and(|event| event.is_none()));
        }
        assert!(driver.wait(long, &[], async { 7 }).is_ok_and(|event| event == Some(7)));
        one.read_exact(&mut [0]).expect("it can be read");
    }

    #[test]
    fn pages_have_the_names_of_one_kind() {
        let literal = |text: &str| format!("'{text}'");
        let once = condition(Kind::Once, Some("a".as_ref()), "name", literal);
        assert_eq!(once, "(name >= 'once/' AND name < 'once0') AND name > 'once/a'");
        assert!(condition(Kind::Lock, None, "name", literal).starts_with("NOT (name >= 'once/'"));
        assert_eq!(listed(Kind::Session, "session/a"), "a");
    }
}
