//! Order in MySQL and MariaDB. A courtesy: exclusion never depends on it.
//!
//! Waiters ask the server for a lock of its own by `GET_LOCK`, which is granted in the order in
//! which it was asked for. The waiter that has it is first, and polls the row; all others sleep in
//! that one statement. The queue is per server: with Galera there are as many as nodes.

use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use sqlx::Error;

use super::{MySql, Session};
use crate::store::failure::Failure;
use crate::store::seam::{Key, Queue};
use crate::store::sql::engine::{Answer, Engine};
use crate::store::sql::failure::Phase;
use crate::store::sql::session::wait;
use crate::store::sql::{Sql, UNQUEUED, hex};
use crate::store::waiter::Waiter;
use crate::sys::random::jittered;

/// How often the first waiter polls the row at first, and in the end.
const FIRST_POLL: Duration = Duration::from_millis(50);
const LAST_POLL: Duration = Duration::from_millis(500);

/// It has waited for so many times as long as there is between two polls.
const POLL_GROWS: u32 = 20;

/// For how long one statement waits in the queue, in seconds. A waiter that asks again stands
/// behind all others.
const STANDING: u32 = 6 * 3600;

/// How long a label of a waiter may be.
const MAX_LABEL: usize = 120;

/// How long to look whether an answer has come.
const LISTENING: Duration = Duration::from_millis(1);

/// How many connections there are; how many there may be, how many this user may have (0 for any
/// number), and how many it has.
const ROOM: &str = "SHOW GLOBAL STATUS LIKE 'Threads_connected'; SELECT @@max_connections, \
                    @@max_user_connections, COUNT(*) FROM information_schema.processlist WHERE \
                    user = SUBSTRING_INDEX(USER(), '@', 1)";

/// A statement that waits in the queue, in a session that comes back with its answer.
type Standing = Pin<Box<dyn Future<Output = (Session, Result<Answer, Error>)> + Send>>;

/// Where a waiter stands.
pub enum HostIdentity {
    /// Nowhere.
    None,
    Queued(Standing),
    /// It has the server's lock, for so long.
    First(Instant),
}

impl MySql {
    /// The name of the server's lock. It may have 64 characters, and is the same for all databases
    /// of a server.
    pub fn queue_name(&self, key: &str) -> String {
        let hash = Sha256::digest(format!("{}\0{key}", self.database));
        format!("serializer:{}", hex(&hash[..16]))
    }

    /// Lists the waiters in their order. Their statements end with their labels as comments.
    fn waiters(&self, name: &str) -> String {
        let taken = self.queue_name(name);
        let first = format!("id = IS_USED_LOCK('{taken}')");
        format!(
            "SELECT SUBSTRING_INDEX(SUBSTRING_INDEX(info, '/* ', -1), ' */', 1), \
             SUBSTRING_INDEX(host, ':', 1) FROM information_schema.processlist WHERE {first} OR \
             info LIKE 'SELECT GET_LOCK(''{taken}'', %' ORDER BY {first} DESC, time DESC, id"
        )
    }
}

/// Whether there is no room for another waiter: they use three quarters of the connections, and
/// leave the rest to holders, which need them to renew and release.
fn is_crowded(answer: &Answer) -> bool {
    let number = |row, column| answer.text(row, column).and_then(|text| text.parse::<u64>().ok());
    let fills = |used: Option<u64>, most: Option<u64>| {
        used.zip(most.filter(|most| *most > 0))
            .is_some_and(|(used, most)| used.saturating_mul(4) >= most.saturating_mul(3))
    };
    fills(number(0, 1), number(1, 0)) || fills(number(1, 2), number(1, 1))
}

impl Sql<MySql> {
    /// Waits in the queue until one of `fds` is readable, or until the turn.
    fn stand(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let HostIdentity::Queued(standing) = &mut self.engine.place else { return Ok(()) };
        let ended = wait(&mut self.runtime, limit, fds, standing)?;
        let Some((session, answer)) = ended else { return Ok(()) };
        self.engine.place = HostIdentity::None;
        match answer {
            Ok(answer) => {
                if answer.is_true(0, 0) {
                    self.engine.place = HostIdentity::First(Instant::now());
                }
                self.session = Some(session);
            }
            Err(error) => {
                tracing::debug!("no place in the queue: {error}");
                // Without such locks, others have no order, either.
                let is_refused = matches!(&error, Error::Database(error) if !MySql::refusal(&**error, Phase::Read).cause.passes());
                self.has_queue &= !is_refused;
                self.close(session);
            }
        }
        Ok(())
    }

    /// Takes a place in the queue, if there is room.
    fn enqueue(&mut self, name: &str) -> Result<(), Failure> {
        // The next look tells what is in the way.
        let Some(mut session) = self.session.take() else { return Ok(()) };
        // The list of processes shows the label to others.
        let (taken, label) = (self.engine.queue_name(name), Waiter::label(MAX_LABEL));
        let statement = format!("SELECT GET_LOCK('{taken}', {STANDING}) /* {label} */");
        let limit = self.timeout;
        self.engine.place = HostIdentity::Queued(Box::pin(async move {
            let answer = MySql::ask(&mut session, statement, Phase::Read, limit).await;
            (session, answer)
        }));
        self.full_since = None;
        // A waiter that is alone is first at once.
        self.stand(LISTENING, &[])
    }
}

impl Queue for Sql<MySql> {
    fn wait_in_turn(
        &mut self,
        key: &Key,
        limit: Duration,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Failure> {
        let pause = match &self.engine.place {
            HostIdentity::Queued(_) => return self.stand(limit, fds),
            HostIdentity::First(since) => {
                (since.elapsed() / POLL_GROWS).clamp(FIRST_POLL, LAST_POLL)
            }
            HostIdentity::None if !self.has_queue => UNQUEUED,
            // A server that does not tell has room.
            HostIdentity::None => match self.ask(ROOM, Phase::Read) {
                Ok(answer) if is_crowded(&answer) => return self.stay_away(limit, fds),
                // What wakes one that stands alone is not to wake one that stands behind others.
                _ => return self.enqueue(&key.stored_name()),
            },
        };
        self.doze(limit.min(jittered(pause)), fds)
    }

    fn is_first(&mut self, key: &Key) -> bool {
        if self.is_queued(key) {
            // It only looks; without a runtime there would not be a place.
            let _ = self.stand(LISTENING, &[]);
        }
        match self.engine.place {
            HostIdentity::First(_) => true,
            HostIdentity::Queued(_) => false,
            HostIdentity::None => !self.are_others_first,
        }
    }

    fn is_queued(&mut self, _key: &Key) -> bool {
        matches!(self.engine.place, HostIdentity::Queued(_))
    }

    fn is_turned_away(&mut self) -> bool {
        self.full_since.is_some() || !self.has_queue
    }

    fn leave(&mut self, key: &Key) {
        // The end of a queued connection ends its place.
        let place = std::mem::replace(&mut self.engine.place, HostIdentity::None);
        if matches!(place, HostIdentity::First(_)) {
            let taken = self.engine.queue_name(&key.stored_name());
            if self.ask(format!("DO RELEASE_LOCK('{taken}')"), Phase::Read).is_err() {
                self.close_session();
            }
        }
    }

    fn waiters(&mut self, key: &Key) -> Vec<Waiter> {
        let statement = self.engine.waiters(&key.stored_name());
        self.listed(statement)
    }
}
