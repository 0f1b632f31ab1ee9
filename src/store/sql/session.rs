//! Sessions with a server: opening one, asking it, and waiting beside it.

use std::future::{pending, poll_fn};
use std::os::fd::BorrowedFd;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use sqlx::Error;
use tokio::net::unix::pipe::Receiver;
use tokio::time::{sleep, timeout};

use super::Sql;
use super::address::Address;
use super::engine::{Answer, Engine};
use super::failure::{Phase, no_answer, of};
use crate::store::backoff::pause_outside;
use crate::store::failure::Failure;
use crate::store::network::variable;
use crate::store::runtime::PrivateRuntime;
use crate::store::waiter::Waiter;
use crate::sys::text::{self, io_message};

/// How long closing a connection politely may take: it only saves a line in the server's log.
const GOODBYE: Duration = Duration::from_millis(100);

impl<E: Engine> Sql<E> {
    /// Opens a session with the first server that grants one. After a failure, nothing was sent.
    pub fn connect(&mut self) -> Result<E::Session, Failure> {
        let address = match self.address.take() {
            Some(address) => address,
            None => Address::read(&self.settings, &E::USUAL, &variable)?,
        };
        let Self { engine, runtime, .. } = self;
        // A silent server leaves time for the next one.
        let share = address.timeout / u32::try_from(address.servers.len()).unwrap_or(1).max(1);
        let mut failure: Option<Failure> = None;
        for server in &address.servers {
            let tried = runtime
                .block_on(async { timeout(share, engine.connect(&address, server)).await })?;
            let next = match tried {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(Error::Database(error))) => E::refusal(&*error, Phase::Connect),
                Ok(Err(error)) => {
                    let (host, port) = server;
                    of(
                        &error,
                        Phase::Connect,
                        &format!("`{}:{port}`", text::field(host)),
                        &E::USUAL,
                    )
                }
                Err(_) => no_answer(),
            };
            // If one of them may be back soon, trying again is of use.
            failure = failure.filter(|failure| failure.cause.passes()).or(Some(next));
        }
        Err(failure.unwrap_or_else(no_answer))
    }

    /// Sends statements in the existing session, or in a new one.
    pub fn ask(&mut self, statement: impl Into<String>, phase: Phase) -> Result<Answer, Failure> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.connect()?,
        };
        let (runtime, limit) = (&mut self.runtime, self.timeout);
        // A timer begins within the runtime.
        let asked =
            async { timeout(limit, E::ask(&mut session, statement.into(), phase, limit)).await };
        let (failure, is_usable) = match runtime.block_on(asked)? {
            Ok(Ok(answer)) => {
                self.keep(session);
                return Ok(answer);
            }
            Ok(Err(Error::Database(error))) if error.is_unique_violation() => {
                // The row is there.
                self.keep(session);
                return Ok(Answer::default());
            }
            Ok(Err(Error::Database(error))) => {
                let failure = E::refusal(&*error, phase);
                let is_usable = !failure.cause.passes();
                (failure, is_usable)
            }
            Ok(Err(error)) => (of(&error, phase, "the server", &E::USUAL), false),
            Err(_) if phase == Phase::Write => (no_answer().indefinite(), false),
            Err(_) => (no_answer(), false),
        };
        // A late answer must not be taken for the answer to the next statement.
        if is_usable {
            self.keep(session);
        } else {
            self.close(session);
        }
        Err(failure)
    }

    /// Keeps a session for the next statement, unless another one of this process is queued.
    fn keep(&mut self, session: E::Session) {
        if self.engine.is_session_queued() {
            self.close(session)
        } else {
            self.session = Some(session)
        }
    }

    /// Closes a session politely. Best effort: the server also notices the end of a connection.
    pub fn close(&mut self, session: E::Session) {
        let _ = self.runtime.block_on(async { timeout(GOODBYE, E::close(session)).await });
    }

    /// Closes the session, if there is one.
    pub fn close_session(&mut self) {
        if let Some(session) = self.session.take() {
            self.close(session);
        }
    }

    /// Closes all sessions.
    pub fn end(&mut self) {
        self.engine.forget();
        self.close_session();
        // A pool returns a session in a task of the runtime.
        self.runtime.shut_down();
    }

    /// Sleeps at most `limit`, or until one of `fds` is readable.
    pub fn doze(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        wait(&mut self.runtime, limit, fds, pending::<()>()).map(drop)
    }

    /// Stays away for a while from a server without room for another waiter.
    pub fn stay_away(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        self.end();
        let pause = pause_outside(&mut self.full_since);
        self.doze(limit.min(pause), fds)
    }

    /// The waiters that a statement lists by label and address.
    pub fn listed(&mut self, statement: String) -> Vec<Waiter> {
        let asked = self.ask(statement, Phase::Read);
        let asked = asked
            .inspect_err(|failure| tracing::debug!("cannot list waiters: {}", failure.why))
            .unwrap_or_default();
        let waiter = |row| {
            // The label of another role's session may be hidden.
            let told = asked.text(row, 0).and_then(Waiter::parse).unwrap_or_default();
            Waiter { host: told.host.or_else(|| asked.text(row, 1).map(str::to_owned)), ..told }
        };
        (0..asked.rows.len()).map(waiter).collect()
    }
}

/// Waits for `event`, at most `limit`, or until one of `fds` is readable; `None` if it has not
/// happened.
pub fn wait<T>(
    runtime: &mut PrivateRuntime,
    limit: Duration,
    fds: &[BorrowedFd<'_>],
    event: impl Future<Output = T>,
) -> Result<Option<T>, Failure> {
    let waited = runtime.block_on(async {
        // The runtime owns a copy of each descriptor. It takes any descriptor that can be polled.
        let copy =
            |fd: &BorrowedFd<'_>| Receiver::from_owned_fd_unchecked(fd.try_clone_to_owned()?);
        let fds = fds.iter().map(copy).collect::<Result<Vec<_>, _>>()?;
        let (mut event, mut end) = (pin!(event), pin!(sleep(limit)));
        let happened = poll_fn(|context| {
            if let Poll::Ready(happened) = event.as_mut().poll(context) {
                return Poll::Ready(Some(happened));
            }
            let is_readable = fds.iter().any(|fd| fd.poll_read_ready(context).is_ready());
            if is_readable || end.as_mut().poll(context).is_ready() {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        });
        Ok::<_, std::io::Error>(happened.await)
    })?;
    waited.map_err(|error| Failure::permanent(format!("cannot wait: {}", io_message(&error))))
}
