//! Order and wake-ups in PostgreSQL.
//!
//! A waiter takes a ticket: the next number, as an advisory lock of its session on the pair of the
//! queue and the number. `pg_locks` shows which numbers are taken. The lowest is first, and only it
//! listens for notifications. Each other waiter sleeps in a statement that waits for the ticket
//! before its own, so that only the end of that ticket wakes it. The server gives up the tickets of
//! a session that ends.
//!
//! One lock for all waiters would not do: a statement that waits has a snapshot, which keeps
//! `VACUUM` from removing rows in the whole database. So it has to end after a while, which would
//! cost the place. A ticket stays.
//!
//! A place costs one of the server's connections, which holders need to renew and release. So
//! waiters use three quarters of those that may be had (of the server's, the database's or the
//! role's); the others come back now and then.
//!
//! Behind a pooler there is no session of one's own, hence neither tickets nor notifications:
//! waiters poll, in no order.

use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::time::Duration;

use sqlx::Error;

use super::Postgres;
use super::session::{Link, column, connect, refusal};
use super::tickets::{Place, ROOM, channel, line, stand, take, tickets};
use crate::backend::failure::Failure;
use crate::backend::plain;
use crate::backend::retry::jittered;
use crate::backend::seam::{Key, Notifier, Queue, Store};
use crate::backend::sleep;
use crate::backend::sql::Driver;
use crate::backend::sql::failure::Phase;
use crate::record::random_token;
use crate::waiter::Waiter;
use crate::waiting::Crowd;

/// How long the first waiter sleeps at most without a notification, which can be lost with a
/// server.
const FIRST_POLL: Duration = Duration::from_secs(10);

/// How long other waiters sleep at most in one statement: it keeps a snapshot.
const STANDING: Duration = Duration::from_secs(60);

/// How often a waiter behind a pooler polls.
const POOLED_POLL: Duration = Duration::from_millis(2500);

/// How long a statement that ends by itself may take for that.
const ANSWERING: Duration = Duration::from_millis(500);

/// A session that sleeps in the queue, and comes back when that ends.
type Standing = Pin<Box<dyn Future<Output = (Link, Result<(), Error>)> + Send>>;

/// The queue, as a waiter sees it.
pub struct Line {
    /// Whether the server has what tickets need.
    pub is_supported: bool,
    /// The ticket right before the own one, or the last one without an own one, as of the last
    /// look.
    pub ahead: Option<i32>,
    /// Whether a pooler lends out sessions; `None` until it was tried.
    is_pooled: Option<bool>,
    place: Option<Place>,
    standing: Option<Standing>,
    /// Whether the session is notified.
    listens: bool,
    crowd: Crowd,
}

impl Default for Line {
    fn default() -> Self {
        let crowd = Crowd::default();
        Self { is_supported: true, ahead: None, is_pooled: None, place: None, standing: None, listens: false, crowd }
    }
}

impl Line {
    /// The ticket right before the own one, as a column.
    pub fn ahead(&self, name: &str) -> String {
        let own = self.place.map_or(i64::MAX, |place| place.ticket.into());
        format!(
            "(SELECT max(taken.objid::bigint)::integer FROM pg_catalog.pg_locks AS taken WHERE {} AND taken.objid::bigint < {own})",
            tickets(line(name))
        )
    }

    /// Whether a pooler lends out the sessions, as far as it is known.
    pub fn is_pooled(&self) -> bool {
        self.is_pooled == Some(true)
    }

    /// Whether the session sleeps in the queue.
    pub fn is_standing(&self) -> bool {
        self.standing.is_some()
    }

    /// The session ends, and the place with it.
    pub fn forget(&mut self, driver: &mut Driver) {
        driver.discard(self.standing.take());
        (self.place, self.listens) = (None, false);
    }
}

fn slept(slept: rustix::io::Result<()>) -> Result<(), Failure> {
    slept.map_err(|error| Failure::permanent(format!("cannot sleep: {}", plain(&error.into()))))
}

impl Postgres {
    /// Makes the session one of its own, which no pooler lends out, and returns whether it is.
    fn own_session(&mut self) -> Result<bool, Failure> {
        if matches!(self.link, Some(Link::Own(..))) {
            return Ok(true);
        }
        if self.line.is_pooled() || !self.line.is_supported {
            return Ok(false);
        }
        let word = random_token().map_err(|error| Failure::permanent(format!("no random numbers: {error}")))?;
        let options = self.options()?;
        // The other session makes room for it.
        if let Some(link) = self.link.take() {
            self.driver.close(link.close());
        }
        // A server keeps what a session was begun with; a pooler refuses it, or forgets it.
        let session = ("serializer.session".to_owned(), word.clone());
        match self.driver.run(connect(&options, self.settings.timeout, Some(&session)))? {
            Ok(link) => self.link = Some(link),
            Err(failure) if failure.cause.passes() => return Err(failure),
            Err(failure) => {
                tracing::debug!("no session of its own: {}", failure.why);
                self.line.is_pooled = Some(true);
                return Ok(false);
            }
        }
        // The server also frees the place of a waiter that is killed while it sleeps (since
        // PostgreSQL 14).
        let own = format!("current_setting('serializer.session', true) = '{word}'");
        let answer = self.ask(
            format!(
                "SELECT coalesce({own}, false), (SELECT set_config(name, '2s', false) FROM pg_catalog.pg_settings \
                 WHERE name = 'client_connection_check_interval' AND {own})"
            ),
            Phase::Read,
        )?;
        let is_own = answer.rows.first().map(|row| column::<bool>(row, 0)).transpose()? == Some(true);
        self.line.is_pooled = Some(!is_own);
        if !is_own {
            tracing::debug!("a pooler lends out the sessions: polling");
            self.disconnect_session();
        }
        Ok(is_own)
    }

    fn disconnect_session(&mut self) {
        if let Some(link) = self.link.take() {
            self.driver.close(link.close());
        }
    }

    /// Takes a ticket, and returns whether there was room; `None` where there is no queue.
    fn enqueue(&mut self, name: &str) -> Result<Option<bool>, Failure> {
        // Before it opens a session, so that looking for room takes none.
        if !matches!(self.link, Some(Link::Own(..))) {
            let answer = self.ask(format!("SELECT {ROOM}"), Phase::Read)?;
            if answer.rows.first().map(|row| column::<bool>(row, 0)).transpose()? != Some(true) {
                return Ok(Some(false));
            }
        }
        if !self.own_session()? {
            return Ok(None);
        }
        let answer = self.ask(take(line(name)), Phase::Read)?;
        let Some(row) = answer.rows.first() else { return Ok(Some(false)) };
        self.line.place = Some(Place { line: column(row, 0)?, ticket: column(row, 1)? });
        Ok(Some(true))
    }

    /// Sleeps until the ticket `ahead` is given back.
    fn stand(&mut self, place: Place, ahead: i32, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        if self.line.standing.is_none() {
            let Some(mut link) = self.link.take() else { return Ok(()) };
            let statement = stand(place, ahead, limit.min(STANDING)).join("; ");
            self.line.standing = Some(Box::pin(async move {
                let answer = link.ask(statement, Phase::Read).await.map(drop);
                (link, answer)
            }));
        }
        let Some(standing) = &mut self.line.standing else { return Ok(()) };
        // It ends by itself; that takes a moment more.
        let ended = self.driver.wait(limit + ANSWERING, fds, standing.as_mut())?;
        if let Some((link, answer)) = ended {
            self.line.standing = None;
            match answer {
                Ok(()) => self.link = Some(link),
                Err(error) => {
                    tracing::debug!("the place in the queue is lost: {error}");
                    self.driver.discard(link);
                    match error {
                        // Without the right to use PL/pgSQL, for example.
                        Error::Database(error) => self.without_queue(&refusal(error.downcast_ref(), Phase::Read)),
                        _ => self.line.forget(&mut self.driver),
                    }
                }
            }
        }
        Ok(())
    }

    fn without_queue(&mut self, failure: &Failure) {
        tracing::debug!("no queue before the lock: {}", failure.why);
        self.line.is_supported &= failure.cause.passes();
        self.disconnect();
    }

    /// Whether the session is notified from now on, and was not before.
    fn listen(&mut self, name: &str) -> Result<bool, Failure> {
        if self.line.listens || !self.own_session()? {
            return Ok(false);
        }
        self.ask(format!("LISTEN {}", channel(name)), Phase::Read)?;
        self.line.listens = true;
        Ok(true)
    }
}

impl Notifier for Postgres {
    fn wait(&mut self, key: &Key, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        match self.listen(&key.stored_name()) {
            // What has changed before was not told.
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(failure) => self.without_queue(&failure),
        }
        let Self { link: Some(Link::Own(listener, _)), line, driver, .. } = self else {
            return slept(sleep(limit.min(jittered(POOLED_POLL)), fds));
        };
        let told = driver.wait(limit.min(jittered(FIRST_POLL)), fds, listener.try_recv())?;
        if matches!(told, Some(Ok(None) | Err(_))) {
            let link = self.link.take();
            driver.discard(link);
            line.forget(driver);
        }
        Ok(())
    }

    fn notify(&mut self, key: &Key) {
        if self.link.is_some() {
            let told = self.ask(format!("SELECT pg_notify('{}', '')", channel(&key.stored_name())), Phase::Read);
            // Waiters poll, too.
            told.inspect_err(|failure| tracing::debug!("cannot notify waiters: {}", failure.why)).ok();
        }
    }
}

impl Queue for Postgres {
    fn wait_in_turn(&mut self, key: &Key, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        if self.line.place.is_none() && self.line.is_supported && !self.line.is_pooled() {
            match self.enqueue(&key.stored_name()) {
                // The ticket ahead is to be read, and the row once more: what was released before
                // was told to others.
                Ok(Some(true)) => {
                    self.line.crowd.end();
                    return Ok(());
                }
                Ok(Some(false)) => {
                    self.disconnect();
                    return slept(sleep(limit.min(self.line.crowd.pause()), fds));
                }
                Ok(None) => {}
                Err(failure) => {
                    self.without_queue(&failure);
                    if failure.cause.passes() {
                        return slept(sleep(limit.min(self.line.crowd.pause()), fds));
                    }
                }
            }
        }
        match (self.line.place, self.line.ahead) {
            (Some(place), Some(ahead)) => self.stand(place, ahead, limit, fds),
            _ => self.wait(key, limit, fds),
        }
    }

    fn is_first(&mut self, _key: &Key) -> bool {
        // Without a place, one would wait for ever for those that have one.
        self.line.ahead.is_none() || self.line.is_pooled()
    }

    fn is_queued(&mut self, _key: &Key) -> bool {
        self.line.place.is_some() && self.line.ahead.is_some()
    }

    fn is_turned_away(&mut self) -> bool {
        // Behind a pooler, polls are further apart than attempts.
        self.line.crowd.is_kept_out() || self.line.is_pooled()
    }

    fn leave(&mut self, _key: &Key) {
        let Some(place) = self.line.place else { return };
        let statement = format!("SELECT pg_advisory_unlock({}, {})", place.line, place.ticket);
        // Only the end of its session wakes one that sleeps.
        if self.line.is_standing() || self.ask(statement, Phase::Read).is_err() {
            self.disconnect();
        }
        self.line.place = None;
    }

    fn waiters(&mut self, key: &Key) -> Vec<Waiter> {
        let statement = format!(
            "SELECT client.application_name, host(client.client_addr) FROM pg_catalog.pg_locks AS taken \
             LEFT JOIN pg_catalog.pg_stat_activity AS client ON client.pid = taken.pid WHERE {} ORDER BY taken.objid::bigint",
            tickets(line(&key.stored_name()))
        );
        let asked = self.ask(statement, Phase::Read);
        let asked = asked.inspect_err(|failure| tracing::debug!("cannot list waiters: {}", failure.why));
        let rows = asked.map(|answer| answer.rows).unwrap_or_default();
        // Other roles' sessions are hidden from ordinary ones.
        let waiter = |row| {
            let text = |index| column::<Option<String>>(row, index).ok().flatten();
            let told = text(0).and_then(|label| Waiter::parse(&label)).unwrap_or_default();
            Waiter { host: told.host.or_else(|| text(1)), ..told }
        };
        rows.iter().map(waiter).collect()
    }
}
