//! Order and wake-ups in PostgreSQL: docs/protocol.md, "Databases".

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{Postgres, Session};
use crate::store::failure::Result;
use crate::store::seam::{Fds, Kind};
use crate::store::sql::Sql;
use crate::store::sql::engine::{Line, Phase};
use crate::sys::random::jittered;

/// How long the first waiter sleeps without a notification, which can be lost with a server.
const FIRST_POLL: Duration = Duration::from_secs(10);

/// Whether there is room for one more waiter: they use three quarters of the connections, and
/// holders need the rest. The kind of others' sessions is hidden, but not their database.
const ROOM: &str = "(\
SELECT count(*) * 4 < 3 * (current_setting('max_connections')::integer
                           - current_setting('superuser_reserved_connections')::integer)
   AND (min(datconnlimit) < 0
        OR count(*) FILTER (WHERE client.datid = base.oid) * 4 < 3 * min(datconnlimit))
   AND (min(rolconnlimit) < 0
        OR count(*) FILTER (WHERE client.usesysid = role.oid) * 4 < 3 * min(rolconnlimit))
FROM pg_catalog.pg_stat_activity client, pg_catalog.pg_database base, pg_catalog.pg_roles role
WHERE client.datid IS NOT NULL AND base.datname = current_database() AND rolname = session_user)";

/// The number of a name's queue in the server, of which the table is a part. Two names with the
/// same number share a queue.
fn line(name: &str) -> String {
    let hash = Sha256::digest(name);
    let number = hash[..4].iter().fold(0, |number, byte| number << 8 | i32::from(*byte));
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

fn ticket(sql: &Sql<Postgres>) -> Option<u32> {
    match &sql.session {
        Some(Session::Own(own)) => own.ticket,
        _ => None,
    }
}

impl Line for Postgres {
    /// Whether tickets before this one are taken; before a new one, where it is none.
    fn are_others_first(sql: &Sql<Self>, name: &str) -> String {
        let ticket = ticket(sql).map_or(i64::MAX, i64::from);
        format!("EXISTS (SELECT FROM {} AND taken.objid::bigint < {ticket})", tickets(name))
    }

    fn is_in_line(sql: &Sql<Self>) -> bool {
        ticket(sql).is_some()
    }

    fn enqueue(sql: &mut Sql<Self>, name: &str) -> Result<bool> {
        // Before it opens a session, so that looking for room takes none.
        if !sql.ask(format!("SELECT {ROOM}"), Phase::Read)?.is_true(0, 0) {
            return Ok(false);
        }
        // The other session makes room for it.
        sql.close_session();
        sql.session = Some(sql.connect(true)?);
        // Several waiters at the same time get different tickets.
        let take = format!(
            "SELECT ticket, pg_backend_pid() FROM (SELECT coalesce(max(taken.objid::bigint), 0) AS \
             number FROM {}) AS last, LATERAL generate_series(last.number + 1, last.number + 100) \
             AS ticket WHERE {ROOM} AND pg_try_advisory_lock({}, ticket::integer) LIMIT 1",
            tickets(name),
            line(name)
        );
        let taken = sql.ask(take, Phase::Read)?;
        let Some((number, pid)) = taken.text(0, 0).zip(taken.text(0, 1)) else { return Ok(false) };
        sql.ask(format!("LISTEN serializer_{pid}"), Phase::Read)?;
        if let Some(Session::Own(own)) = &mut sql.session {
            own.ticket = number.parse().ok();
        }
        // The row is to be read once more before it sleeps: a release before was told to others.
        sql.are_others_first = false;
        Ok(true)
    }

    fn wait_in_line(sql: &mut Sql<Self>, limit: Duration, fds: Fds<'_>) -> Result<()> {
        let limit = if sql.are_others_first { limit } else { limit.min(jittered(FIRST_POLL)) };
        let Some(Session::Own(own)) = &mut sql.session else { return Ok(()) };
        let told = sql.runtime.wait(own.listener.try_recv(), limit, fds)?;
        if matches!(told, Some(Ok(None) | Err(_))) {
            tracing::debug!("the place in the queue is lost");
            sql.close_session();
        }
        Ok(())
    }

    fn leave(sql: &mut Sql<Self>, name: &str) -> Option<String> {
        let Some(Session::Own(own)) = &mut sql.session else { return None };
        let number = own.ticket.take()?;
        let unlock = format!("SELECT pg_advisory_unlock({}, {number})", line(name));
        Some(format!("{unlock}; {}", Self::wake(name)?))
    }

    fn waiters(&self, name: &str) -> String {
        format!(
            "SELECT client.application_name, host(client.client_addr) FROM (SELECT taken.pid, \
             taken.objid::bigint FROM {}) AS taken LEFT JOIN pg_catalog.pg_stat_activity AS client \
             ON client.pid = taken.pid ORDER BY taken.objid",
            tickets(name)
        )
    }

    /// Wakes the first waiter. The end of a run that happens once concerns all of them.
    fn wake(name: &str) -> Option<String> {
        let most = if name.starts_with(Kind::Once.prefix()) { u32::MAX } else { 1 };
        let first = format!("{} ORDER BY taken.objid::bigint LIMIT {most}", tickets(name));
        let first = format!("(SELECT taken.pid FROM {first}) AS first");
        Some(format!("SELECT pg_notify('serializer_' || pid, '') FROM {first}"))
    }
}
