//! Order and wake-ups in PostgreSQL.
//!
//! A waiter takes a ticket: the next number, as an advisory lock of its session on the pair of the
//! queue and the number; `pg_locks` shows those that are taken. It listens on a channel of its
//! ticket. A release, and a waiter that leaves, notify the lowest ticket. Nothing waits in a
//! statement, whose snapshot would keep `VACUUM` from its work in the whole database.
//!
//! Behind a pooler there is no session of one's own: waiters poll, in no order.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{Postgres, Session};
use crate::store::failure::Failure;
use crate::store::seam::{Key, Queue};
use crate::store::sql::failure::Phase;
use crate::store::sql::session::wait;
use crate::store::sql::{Sql, UNQUEUED, hex};
use crate::store::waiter::Waiter;
use crate::sys::random::{jittered, random_token};

/// How long the first waiter sleeps at most without a notification, which can be lost with a
/// server.
const FIRST_POLL: Duration = Duration::from_secs(10);

/// Whether there is room for one more waiter: they use three quarters of the connections, and leave
/// the rest to holders, which need them to renew and release. The kind of others' sessions is
/// hidden from ordinary roles, but not their database.
const ROOM: &str = "(SELECT count(*) * 4 < 3 * (current_setting('max_connections')::integer
                           - current_setting('superuser_reserved_connections')::integer)
   AND (min(base.datconnlimit) < 0 OR count(*) FILTER (WHERE client.datid = base.oid) * 4 < 3 * min(base.datconnlimit))
   AND (min(role.rolconnlimit) < 0 OR count(*) FILTER (WHERE client.usesysid = role.oid) * 4 < 3 * min(role.rolconnlimit))
FROM pg_catalog.pg_stat_activity AS client, pg_catalog.pg_database AS base, pg_catalog.pg_roles AS \
role
WHERE client.datid IS NOT NULL AND base.datname = current_database() AND role.rolname = \
session_user)";

/// The number of a name's queue in the server. Two names with the same number share a queue. The
/// table is part of it, so that tables of the same name in different schemas have queues of their
/// own.
fn line(name: &str) -> String {
    let number =
        Sha256::digest(name).iter().take(4).fold(0, |number, byte| number << 8 | i32::from(*byte));
    format!("(({number}) # 'serializer_locks'::regclass::oid::integer)")
}

/// The advisory locks that are tickets of a queue.
fn tickets(name: &str) -> String {
    format!(
        "pg_catalog.pg_locks AS taken WHERE taken.locktype = 'advisory' AND taken.objsubid = 2 AND \
         taken.granted AND taken.mode = 'ExclusiveLock' AND taken.classid = {}::oid AND \
         taken.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = \
         current_database())",
        line(name)
    )
}

/// Whether tickets before this one are taken; before a new one, where it is none.
pub fn are_others_first(name: &str, ticket: Option<u32>) -> String {
    format!(
        "EXISTS (SELECT FROM {} AND taken.objid::bigint < {})",
        tickets(name),
        ticket.map_or(i64::MAX, i64::from)
    )
}

/// The beginning of the channels of a lock; the ticket follows.
fn channel(name: &str) -> String {
    format!("serializer_{}_", hex(&Sha256::digest(name)[..16]))
}

/// Wakes the first waiters.
pub fn wake(name: &str, most: u32) -> String {
    let (channel, tickets) = (channel(name), tickets(name));
    format!(
        "SELECT pg_notify('{channel}' || ticket, '') FROM (SELECT taken.objid::bigint AS ticket \
         FROM {tickets} ORDER BY 1 LIMIT {most}) AS first"
    )
}

/// Lists the waiters in their order.
fn waiters(name: &str) -> String {
    format!(
        "SELECT client.application_name, host(client.client_addr) FROM (SELECT taken.pid, \
         taken.objid::bigint FROM {}) AS taken LEFT JOIN pg_catalog.pg_stat_activity AS client ON \
         client.pid = taken.pid ORDER BY taken.objid",
        tickets(name)
    )
}

impl Sql<Postgres> {
    /// The place in the queue.
    pub fn ticket(&self) -> Option<u32> {
        match &self.session {
            Some(Session::Own { ticket, .. }) => *ticket,
            _ => None,
        }
    }

    /// Makes the session one of its own, which no pooler lends out, and returns whether it is.
    fn own_session(&mut self) -> Result<bool, Failure> {
        // The other session makes room for it.
        self.close_session();
        // A server keeps a setting that a session begins with; a pooler refuses it, or forgets it.
        let word = random_token()
            .map_err(|error| Failure::permanent(format!("no random numbers: {error}")))?;
        self.engine.word = Some(word.clone());
        let connected = self.connect();
        self.engine.word = None;
        self.session = match connected {
            Ok(session) => Some(session),
            Err(failure) if failure.cause.passes() => return Err(failure),
            Err(_) => return Ok(false),
        };
        // The server also frees the place of a waiter whose host vanishes.
        let own =
            format!("coalesce(current_setting('serializer.session', true) = '{word}', false)");
        let keepalives = "SELECT set_config(name, CASE name WHEN 'tcp_keepalives_count' THEN '3' \
                          ELSE '10' END, false) FROM pg_catalog.pg_settings WHERE name LIKE \
                          'tcp_keepalives_%'";
        Ok(self.ask(format!("SELECT {own}; {keepalives} AND {own}"), Phase::Read)?.is_true(0, 0))
    }

    /// Takes a ticket, and returns whether there was room.
    fn enqueue(&mut self, name: &str) -> Result<bool, Failure> {
        // Before it opens a session, so that looking for room takes none.
        if !self.ask(format!("SELECT {ROOM}"), Phase::Read)?.is_true(0, 0) {
            return Ok(false);
        }
        if !self.own_session()? {
            // Those that are queued by another way are not waited for, either.
            self.engine.is_pooled = true;
            return Err(Failure::permanent("a pooler lends out the sessions"));
        }
        // Several waiters at the same time get different tickets.
        let take = format!(
            "SELECT ticket FROM (SELECT coalesce(max(taken.objid::bigint), 0) AS number FROM {}) \
             AS last, LATERAL generate_series(last.number + 1, last.number + 100) AS ticket WHERE \
             {ROOM} AND pg_try_advisory_lock({}, ticket::integer) LIMIT 1",
            tickets(name),
            line(name)
        );
        let taken = self.ask(take, Phase::Read)?;
        let Some(number) = taken.text(0, 0) else { return Ok(false) };
        self.ask(format!("LISTEN {}{number}", channel(name)), Phase::Read)?;
        if let Some(Session::Own { ticket, .. }) = &mut self.session {
            *ticket = number.parse().ok();
        }
        Ok(true)
    }
}

impl Queue for Sql<Postgres> {
    fn wait_in_turn(
        &mut self,
        key: &Key,
        limit: Duration,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Failure> {
        if self.ticket().is_none() && self.has_queue {
            match self.enqueue(&key.stored_name()) {
                // The row is to be read once more before it sleeps: a release before was told to
                // others.
                Ok(true) => {
                    self.are_others_first = false;
                    self.full_since = None;
                    return Ok(());
                }
                Ok(false) => return self.stay_away(limit, fds),
                Err(failure) => {
                    tracing::debug!("no queue before the lock: {}", failure.why);
                    if failure.cause.passes() {
                        return self.stay_away(limit, fds);
                    }
                    self.has_queue = false;
                    self.close_session();
                }
            }
        }
        if self.ticket().is_none() {
            return self.doze(limit.min(jittered(UNQUEUED)), fds);
        }
        let limit = if self.are_others_first { limit } else { limit.min(jittered(FIRST_POLL)) };
        let Self { session: Some(Session::Own { listener, .. }), runtime, .. } = self else {
            return Ok(());
        };
        if matches!(wait(runtime, limit, fds, listener.try_recv())?, Some(Ok(None) | Err(_))) {
            tracing::debug!("the place in the queue is lost");
            self.close_session();
        }
        Ok(())
    }

    fn is_first(&mut self, _key: &Key) -> bool {
        !self.are_others_first
    }

    fn is_queued(&mut self, _key: &Key) -> bool {
        self.ticket().is_some() && self.are_others_first
    }

    fn is_turned_away(&mut self) -> bool {
        // Without a queue, polls are further apart than attempts.
        self.full_since.is_some() || !self.has_queue
    }

    fn leave(&mut self, key: &Key) {
        let Some(number) = self.ticket() else { return };
        let name = key.stored_name();
        if self
            .ask(
                format!("SELECT pg_advisory_unlock({}, {number}); {}", line(&name), wake(&name, 1)),
                Phase::Read,
            )
            .is_err()
        {
            self.close_session();
        }
        if let Some(Session::Own { ticket, .. }) = &mut self.session {
            *ticket = None;
        }
    }

    fn waiters(&mut self, key: &Key) -> Vec<Waiter> {
        self.listed(waiters(&key.stored_name()))
    }
}
