//! Sessions with a server, and the queue in it, as far as the engines share them.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::unix::pipe::Receiver;
use tokio::time::timeout;

use super::Sql;
use super::address::Address;
use super::engine::{Answer, Engine, Phase, no_answer, of};
use crate::store::backoff::pause_outside;
use crate::store::failure::{Failure, Result};
use crate::store::pause;
use crate::store::runtime::PrivateRuntime;
use crate::store::seam::{Fds, Kind, Queue};
use crate::store::waiter::Waiter;
use crate::sys::random::jittered;
use crate::sys::text::{self, io_message};

/// How long closing a connection politely may take: it only saves a line in the server's log.
const GOODBYE: Duration = Duration::from_millis(100);

/// How often a process polls that wants no place in the queue.
const WATCHED: Duration = Duration::from_secs(1);

/// Poll interval of a waiter without a queue.
const UNQUEUED: Duration = Duration::from_secs(3);

impl<E: Engine> Sql<E> {
    /// Whether processes may wait for it in a queue. None does for a task on a schedule.
    pub fn queues(&self, name: &str) -> bool {
        self.has_queue && !name.starts_with(Kind::Schedule.prefix())
    }

    /// Opens a session with the first server that grants one. After a failure, nothing was sent.
    pub fn connect(&mut self, is_own: bool) -> Result<E::Session> {
        let read = || Address::read::<E>(&self.settings);
        let address = self.address.take().map_or_else(read, Ok)?;
        // A silent server leaves time for the next one.
        let share = address.timeout / u32::try_from(address.servers.len()).unwrap_or(1).max(1);
        let mut failure: Option<Failure> = None;
        for server in &address.servers {
            let connecting = E::connect(&address, server, is_own);
            let next = match self.runtime.block_on(async { timeout(share, connecting).await })? {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(error)) => {
                    let (host, port) = server;
                    let server = format!("`{}:{port}`", text::field(host));
                    let failure = of::<E>(&error, Phase::Connect, &server);
                    match address.tls.unused.clone().filter(|_| failure.why.contains("28000")) {
                        Some(unused) => failure.with_hint(unused),
                        None => failure,
                    }
                }
                Err(_) => no_answer(Phase::Connect),
            };
            // If one of them may be back soon, trying again is of use.
            failure = failure.filter(|failure| failure.cause.passes()).or(Some(next));
        }
        Err(failure.unwrap_or_else(|| no_answer(Phase::Connect)))
    }

    /// Sends statements in the existing session, or in a new one. A failure ends the session: a
    /// late answer must not be taken for the answer to the next statement.
    pub fn ask(&mut self, statement: impl Into<String>, phase: Phase) -> Result<Answer> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.connect(false)?,
        };
        let limit = self.settings.timeout;
        let asked = E::ask(&mut session, statement.into(), phase, limit);
        let asked = self.runtime.block_on(async { timeout(limit, asked).await });
        self.session = Some(session);
        let failure = match asked? {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => of::<E>(&error, phase, "the server"),
            Err(_) => no_answer(phase),
        };
        self.place.take_if(|place| E::ends_with_session(place));
        self.close_session();
        Err(failure)
    }

    /// Closes the session politely, if there is one. Best effort: the server also notices the end
    /// of a connection.
    pub fn close_session(&mut self) {
        if let Some(session) = self.session.take() {
            let closing = async { timeout(GOODBYE, E::close(session)).await };
            let _ = self.runtime.block_on(closing);
        }
    }

    pub fn end(&mut self) {
        self.place = None;
        self.close_session();
        // A pool returns a session in a task of the runtime.
        self.runtime.shut_down();
    }
}

impl<E: Engine> Queue for Sql<E> {
    fn wait(&mut self, beside: bool, limit: Duration, fds: Fds<'_>) -> Result<()> {
        if beside {
            return pause(limit.min(jittered(WATCHED)), fds);
        } else if self.place.is_some() {
            return E::wait_in_line(self, limit, fds);
        }
        let name = self.name.clone();
        match self.queues(&name).then(|| E::enqueue(self, &name)) {
            Some(Ok(Some(place))) => {
                (self.place, self.full_since) = (Some(place), None);
                return Ok(());
            }
            Some(Err(failure)) if !failure.cause.passes() => {
                tracing::debug!("no queue before the lock: {}", failure.why);
                self.has_queue = false;
            }
            Some(_) => {
                self.end();
                return pause(limit.min(pause_outside(&mut self.full_since)), fds);
            }
            None => {}
        }
        pause(limit.min(jittered(UNQUEUED)), fds)
    }

    fn notify(&mut self) {
        if self.session.is_some()
            && self.queues(&self.name)
            && let Some(statement) = E::wake(&self.name)
        {
            // Waiters poll, too.
            let _ = self.ask(statement, Phase::Read);
        }
    }

    fn is_first(&mut self) -> bool {
        !(self.queues(&self.name) && self.are_others_first)
    }

    fn is_queued(&mut self) -> bool {
        self.place.is_some() && self.are_others_first
    }

    fn is_turned_away(&mut self) -> bool {
        // Without a queue, polls are further apart than attempts.
        self.full_since.is_some() || !self.has_queue
    }

    fn leave(&mut self) {
        if let Some(place) = self.place.take()
            && let Some(statement) = E::leave(self, place, &self.name)
        {
            // A failure ends the session, and the place with it.
            let _ = self.ask(statement, Phase::Read);
        }
    }

    fn waiters(&mut self) -> Vec<Waiter> {
        let asked = self.ask(E::waiters(self, &self.name), Phase::Read);
        let waiter = |row: Vec<Option<String>>| {
            let [label, host] = row.try_into().unwrap_or_default();
            // The label of another role's session may be hidden.
            let told = label.as_deref().and_then(Waiter::parse).unwrap_or_default();
            Waiter { host: told.host.or(host), ..told }
        };
        asked.unwrap_or_default().0.into_iter().map(waiter).collect()
    }
}

impl PrivateRuntime {
    /// Waits for `event`, at most `limit`, or until one of `fds` is readable; `None` if it has not
    /// happened.
    pub fn wait<T, F>(&mut self, event: F, limit: Duration, fds: Fds<'_>) -> Result<Option<T>>
    where
        F: Future<Output = T>,
    {
        let waited = self.block_on(async {
            // The runtime owns a copy of each descriptor, and takes any that can be polled.
            let copies = fds.iter().map(|fd| fd.try_clone_to_owned());
            let pipes = copies.map(|copy| Receiver::from_owned_fd_unchecked(copy?));
            let pipes = pipes.collect::<io::Result<Vec<_>>>()?;
            let mut event = pin!(event);
            let happened = poll_fn(|context| {
                let is_over = pipes.iter().any(|pipe| pipe.poll_read_ready(context).is_ready());
                match event.as_mut().poll(context) {
                    Poll::Ready(happened) => Poll::Ready(Some(happened)),
                    Poll::Pending if is_over => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                }
            });
            Ok::<_, io::Error>(timeout(limit, happened).await.unwrap_or(None))
        })?;
        waited.map_err(|error| Failure::permanent(format!("cannot wait: {}", io_message(&error))))
    }
}
