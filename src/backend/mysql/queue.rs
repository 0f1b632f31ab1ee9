//! Order in MySQL and MariaDB. A courtesy: exclusion never depends on it.
//!
//! Waiters ask the server for a lock of its own by `GET_LOCK`, which is granted in the order in
//! which it was asked for (it is a metadata lock). The waiter that has it is first, and the only
//! one that polls the row; all others sleep in that one statement. A server ends a waiter's place
//! within a second of its connection's end. The queue is per server: with Galera there are as many
//! as nodes, or none where `GET_LOCK` is refused, and then all waiters poll.
//!
//! A place costs one of the server's connections, which holders need to renew and release. So
//! waiters use three quarters of those that may be had; the others come back now and then.

use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use sqlx::Error;
use sqlx::mysql::MySqlDatabaseError;

use super::session::{Answer, Link, Trouble, literal, text};
use super::{MySql, POLL};
use crate::backend::failure::Failure;
use crate::backend::retry::jittered;
use crate::backend::seam::{Key, Queue};
use crate::backend::sql::failure::Phase;
use crate::backend::{plain, sleep};
use crate::waiter::Waiter;
use crate::waiting::Crowd;

/// How often the first waiter polls the row at first, and in the end.
const FIRST_POLL: Duration = Duration::from_millis(50);
const LAST_POLL: Duration = Duration::from_millis(500);

/// It has waited for so many times as long as there is between two polls.
const POLL_GROWS: u32 = 20;

/// For how long one statement waits in the queue, in seconds. A waiter that asks again stands
/// behind all others.
const STANDING: u32 = 6 * 3600;

/// Of what is told about a waiter, in bytes.
const MAX_LABEL: usize = 120;

/// How long to look whether an answer has come.
const LISTENING: Duration = Duration::from_millis(1);

/// How many connections there are; how many there may be, how many this user may have (0 for any
/// number), and how many it has.
const ROOM: &str = "SHOW GLOBAL STATUS LIKE 'Threads_connected'; \
    SELECT @@max_connections, @@max_user_connections, COUNT(*) FROM information_schema.processlist \
    WHERE user = SUBSTRING_INDEX(USER(), '@', 1)";

/// Where a waiter stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nowhere, or it waits without a queue.
    None,
    /// The statement was sent; its answer comes with the turn.
    Queued,
    /// It has the server's lock.
    First,
}

/// A connection that waits in the queue, and comes back when that ends.
type Standing = Pin<Box<dyn Future<Output = (Link, Result<Answer, Error>)> + Send>>;

/// The queue, as a waiter sees it.
pub struct Line {
    database: String,
    /// Whether the server has such locks.
    pub is_supported: bool,
    place: Place,
    standing: Option<Standing>,
    /// The server's lock that it waits for, or has.
    taken: String,
    first_since: Option<Instant>,
    /// Whether a waiter was first when the row was last read, and the row's number then.
    has_first: bool,
    seen: u64,
    crowd: Crowd,
}

impl Line {
    pub fn new(database: &str) -> Self {
        let (place, crowd) = (Place::None, Crowd::default());
        let database = database.to_owned();
        let taken = String::new();
        Self { database, is_supported: true, place, standing: None, taken, first_since: None, has_first: false, seen: 0, crowd }
    }

    /// What the server's lock is called. It may have 64 characters, and is the same for all
    /// databases of a server.
    fn name(&self, key: &str) -> String {
        let hash = Sha256::digest(format!("{}\0{key}", self.database).as_bytes());
        let hash: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("serializer:{hash}")
    }

    /// As a column: the connection of the first waiter, or NULL.
    pub fn first(&self, key: &str) -> String {
        format!("IS_USED_LOCK('{}')", self.name(key))
    }

    /// The row was read.
    pub fn look(&mut self, has_first: bool, seen: u64) {
        (self.has_first, self.seen) = (has_first, seen);
    }

    /// Whether the connection waits in the queue.
    pub fn is_standing(&self) -> bool {
        self.standing.is_some()
    }

    /// The connection ends, and the place with it.
    pub fn forget(&mut self) {
        (self.standing, self.place) = (None, Place::None);
    }
}

/// Whether there is no room for another waiter.
fn is_crowded(answer: &Answer) -> bool {
    let connected = answer.rows.first().and_then(|row| text(row, 1)?.parse::<u64>().ok());
    let fills = |used: Option<u64>, most: Option<u64>| {
        used.zip(most.filter(|most| *most > 0)).is_some_and(|(used, most)| used.saturating_mul(4) >= most.saturating_mul(3))
    };
    fills(connected, answer.number(1, 0)) || fills(answer.number(1, 2), answer.number(1, 1))
}

/// Whether a server's answer means that it has no such locks: Galera, proxies, programs that only
/// speak like MySQL.
pub fn is_unsupported(code: u16) -> bool {
    matches!(code, 1064 | 1105 | 1128 | 1148 | 1227 | 1235 | 1289 | 1295 | 1305 | 1370 | 4121 | 8003)
}

fn slept(slept: rustix::io::Result<()>) -> Result<(), Failure> {
    slept.map_err(|error| Failure::permanent(format!("cannot sleep: {}", plain(&error.into()))))
}

impl MySql {
    /// Takes notice of the answer to having lined up, if it has come.
    pub(super) fn hear_of_turn(&mut self) {
        if self.line.is_standing() {
            // It only looks; without a runtime there would not be a place.
            let _ = self.stand(LISTENING, &[]);
        }
    }

    /// Waits in the queue until one of `fds` is readable, or until the turn.
    fn stand(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let Self { line, driver, .. } = self;
        let Some(standing) = &mut line.standing else { return Ok(()) };
        let Some((link, answer)) = driver.wait(limit, fds, standing.as_mut())? else { return Ok(()) };
        line.standing = None;
        line.place = Place::None;
        match answer {
            Ok(answer) => {
                if answer.number(0, 0) == Some(1) {
                    line.place = Place::First;
                }
                line.first_since = Some(Instant::now());
                self.link = Some(link);
            }
            Err(Error::Database(error)) => {
                let error = error.downcast_ref::<MySqlDatabaseError>();
                tracing::debug!("no queue before the lock: {} (error {})", error.message(), error.number());
                line.is_supported &= !is_unsupported(error.number());
                self.close(link);
            }
            Err(error) => tracing::debug!("the place in the queue is lost: {error}"),
        }
        Ok(())
    }

    /// Takes a place in the queue.
    fn enqueue(&mut self, name: &str) -> Result<(), Failure> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => self.connect()?,
        };
        // The list of processes shows it to others.
        let label = Waiter::label(MAX_LABEL);
        self.line.taken = self.line.name(name);
        let statement = format!("SELECT GET_LOCK('{}', {STANDING}) /* {label} */", self.line.taken);
        self.line.crowd.end();
        self.line.place = Place::Queued;
        self.line.standing = Some(Box::pin(async move {
            let answer = link.ask(&statement, Phase::Read).await;
            (link, answer)
        }));
        // A waiter that is alone is first at once.
        self.hear_of_turn();
        Ok(())
    }

    /// Waits until one of `fds` is readable, or until the row has changed.
    fn poll_row(&mut self, name: &str, deadline: Instant, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let statement = format!("SELECT version FROM serializer_locks WHERE name = {}", literal(name));
        // Ends with the deadline.
        loop {
            let limit = deadline.saturating_duration_since(Instant::now());
            let waited = self.line.first_since.map(|since| since.elapsed()).unwrap_or_default();
            let pause = limit.min(jittered((waited / POLL_GROWS).clamp(FIRST_POLL, LAST_POLL)));
            let begun = Instant::now();
            slept(sleep(pause, fds))?;
            // It was woken, or it is over.
            if begun.elapsed() < pause || limit.is_zero() {
                return Ok(());
            }
            match self.ask(&statement, Phase::Read) {
                Ok(answer) if answer.number(0, 0).unwrap_or(0) == self.line.seen => {}
                // The next look tells what has happened, or what is in the way.
                Ok(_) | Err(_) => return Ok(()),
            }
        }
    }
}

impl Queue for MySql {
    fn wait_in_turn(&mut self, key: &Key, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        let name = key.stored_name();
        if self.line.place == Place::None && self.line.is_supported {
            // A server that does not tell has room.
            if self.ask(ROOM, Phase::Read).is_ok_and(|answer| is_crowded(&answer)) {
                if let Some(link) = self.link.take() {
                    self.close(link);
                }
                return slept(sleep(limit.min(self.line.crowd.pause()), fds));
            }
            match self.enqueue(&name) {
                // What wakes one that stands alone is not to wake one that stands behind others.
                Ok(()) => return Ok(()),
                Err(failure) => tracing::debug!("no queue before the lock: {}", failure.why),
            }
        }
        match self.line.place {
            Place::Queued => self.stand(limit, fds),
            Place::First => self.poll_row(&name, deadline, fds),
            Place::None => slept(sleep(limit.min(jittered(POLL)), fds)),
        }
    }

    fn is_first(&mut self, _key: &Key) -> bool {
        self.hear_of_turn();
        match self.line.place {
            Place::First => true,
            Place::Queued => false,
            Place::None => !self.line.has_first,
        }
    }

    fn is_queued(&mut self, _key: &Key) -> bool {
        self.hear_of_turn();
        self.line.place == Place::Queued
    }

    fn is_turned_away(&mut self) -> bool {
        self.line.crowd.is_kept_out()
    }

    fn leave(&mut self, _key: &Key) {
        self.hear_of_turn();
        // A queued connection is ended: the server takes its place away.
        let has_left = match self.line.place {
            Place::First => self.ask(&format!("DO RELEASE_LOCK('{}')", self.line.taken), Phase::Read).is_ok(),
            Place::Queued => false,
            Place::None => true,
        };
        if !has_left {
            self.line.forget();
            self.link = None;
        }
        self.line.place = Place::None;
    }

    fn waiters(&mut self, key: &Key) -> Vec<Waiter> {
        if !self.line.is_supported {
            return Vec::new();
        }
        let name = key.stored_name();
        let waiting = format!("SELECT GET_LOCK(''{}'', ", self.line.name(&name));
        let first = format!("id = {}", self.line.first(&name));
        let statement = format!(
            "SELECT info, host FROM information_schema.processlist WHERE {first} OR info LIKE '{waiting}%' \
             ORDER BY {first} DESC, time DESC, id"
        );
        let asked = self.ask(&statement, Phase::Read);
        let asked = asked.inspect_err(|trouble: &Trouble| tracing::debug!("cannot list waiters: {}", trouble.failure.why));
        let rows = asked.map(|answer| answer.rows).unwrap_or_default();
        let waiter = |row| {
            let label = |info: String| Waiter::parse(info.split_once("/* ")?.1.trim_end_matches(" */"));
            let told = text(row, 0).and_then(label).unwrap_or_default();
            // An address with a port.
            let host = || Some(text(row, 1)?.rsplit_once(':')?.0.to_owned());
            Waiter { host: told.host.or_else(host), ..told }
        };
        rows.iter().map(waiter).collect()
    }
}
