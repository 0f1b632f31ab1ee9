//! The statements of the [queue](super::queue).

use std::time::Duration;

use sha2::{Digest, Sha256};

/// Which advisory locks are tickets of a queue. The table is part of the queue, so that tables of
/// the same name in different schemas have queues of their own.
pub fn tickets(line: i32) -> String {
    format!(
        "taken.locktype = 'advisory' AND taken.objsubid = 2 AND taken.mode = 'ExclusiveLock' AND taken.granted \
         AND taken.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) \
         AND taken.classid = {}::oid",
        number(line)
    )
}

/// The queue's number in the server.
fn number(line: i32) -> String {
    format!("(({line}) # 'serializer_locks'::regclass::oid::integer)")
}

/// Whether there is room for one more waiter. The kind of others' sessions is hidden from ordinary
/// roles, but not their database.
pub const ROOM: &str = "(\
SELECT count(*) * 4 < 3 * (current_setting('max_connections')::integer
                           - current_setting('superuser_reserved_connections')::integer)
   AND (min(base.datconnlimit) < 0 OR count(*) FILTER (WHERE client.datid = base.oid) * 4 < 3 * min(base.datconnlimit))
   AND (min(role.rolconnlimit) < 0 OR count(*) FILTER (WHERE client.usesysid = role.oid) * 4 < 3 * min(role.rolconnlimit))
FROM pg_catalog.pg_stat_activity AS client, pg_catalog.pg_database AS base, pg_catalog.pg_roles AS role
WHERE client.datid IS NOT NULL AND base.datname = current_database() AND role.rolname = session_user)";

/// Takes the next ticket. Several waiters at the same time get different ones.
pub fn take(line: i32) -> String {
    format!(
        "SELECT line.number, ticket::integer FROM (SELECT {} AS number) AS line, \
         LATERAL (SELECT coalesce(max(taken.objid::bigint), 0) AS number FROM pg_catalog.pg_locks AS taken WHERE {}) AS last, \
         LATERAL generate_series(last.number + 1, last.number + 100) AS ticket \
         WHERE {ROOM} AND pg_try_advisory_lock(line.number, ticket::integer) LIMIT 1",
        number(line),
        tickets(line)
    )
}

/// Ends when the ticket `ahead` was given back, or after `limit`. It catches its own end, so that
/// no error is logged, and its text is always the same, of which `pg_stat_statements` keeps one.
pub fn stand(place: Place, ahead: i32, limit: Duration) -> [String; 2] {
    let set = format!(
        "SELECT set_config('serializer.line', '{}', false), set_config('serializer.ahead', '{ahead}', false), \
         set_config('serializer.limit', '{}', false)",
        place.line,
        limit.as_millis().max(1)
    );
    let wait = "DO $$BEGIN
    PERFORM set_config('lock_timeout', current_setting('serializer.limit'), true);
    PERFORM pg_advisory_xact_lock_shared(
        current_setting('serializer.line')::integer, current_setting('serializer.ahead')::integer);
EXCEPTION WHEN lock_not_available OR query_canceled THEN NULL;
END$$";
    [set, wait.to_owned()]
}

/// A ticket.
#[derive(Clone, Copy)]
pub struct Place {
    /// The number of its queue.
    pub line: i32,
    /// The lower, the earlier.
    pub ticket: i32,
}

/// The number of a name's queue. Waiters of two names with the same number sleep behind each other,
/// and poll now and then.
pub fn line(name: &str) -> i32 {
    Sha256::digest(name).iter().take(4).fold(0, |number, byte| number << 8 | i32::from(*byte))
}

/// What changes of a name are told on.
pub fn channel(name: &str) -> String {
    let hash: String = Sha256::digest(name).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("serializer_{hash}")
}
