//! Whose turn it is, as a courtesy: exclusion never depends on it.
//!
//! Whoever waits, in a session of its own, takes a ticket: the next number, as an advisory lock of the session on the pair of the line and
//! the number. All see in `pg_locks` which numbers are taken; the lowest is first, and only that one listens and looks. Everybody
//! else sleeps in a statement that waits for the ticket before it, and so is woken by nothing but the end of that one, whether it
//! has left or was killed: the server gives up the locks of a session that ends.
//!
//! Why not one advisory lock that all wait for: the statement that waits has a snapshot, which keeps `VACUUM` from removing
//! what anybody has changed since, in the whole database. So it has to end after a while, which would cost the place. A ticket
//! stays. And between two such statements, the session is free to look at the row.
//!
//! A place costs one of the server's connections, which whoever renews or releases a lock needs more. So nobody takes one when
//! three quarters of those that may be had (of the server's, the database's or the role's) are in use: it comes back now and then.
//!
//! The statement catches its own time-out (and the server's for statements), so that no error is logged. What it waits for is
//! in settings of the session, so that its text is always the same, of which `pg_stat_statements` keeps one.

use sha2::{Digest, Sha256};

/// What stands behind every ticket that is said to be before this one.
pub const BEHIND_ALL: i64 = i64::MAX;

/// The ticket right before $3 in the line $2, or NULL if there is none, as a column of another statement.
///
/// The table is part of the line, so that tables of the same name in different schemas have lines of their own.
pub const AHEAD: &str = "\
(SELECT max(taken.objid::bigint)::integer FROM pg_catalog.pg_locks AS taken
 WHERE taken.locktype = 'advisory' AND taken.objsubid = 2 AND taken.mode = 'ExclusiveLock' AND taken.granted
   AND taken.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
   AND taken.classid = ($2 # 'serializer_locks'::regclass::oid::integer)::oid AND taken.objid::bigint < $3)";

/// Takes the next ticket of the line $1. Several who do so at the same time get different ones; nobody gets one if too many do, or
/// the server is crowded. (What kind of session others have is hidden from ordinary roles, but not in which database.)
pub const TAKE: &str = "\
SELECT line.number, ticket::integer
FROM (SELECT $1 # 'serializer_locks'::regclass::oid::integer AS number) AS line,
     LATERAL (SELECT coalesce(max(taken.objid::bigint), 0) AS number FROM pg_catalog.pg_locks AS taken
              WHERE taken.locktype = 'advisory' AND taken.objsubid = 2 AND taken.mode = 'ExclusiveLock' AND taken.granted
                AND taken.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
                AND taken.classid = line.number::oid) AS last,
     LATERAL generate_series(last.number + 1, last.number + 100) AS ticket
WHERE (SELECT count(*) * 4 < 3 * (current_setting('max_connections')::integer
                              - current_setting('superuser_reserved_connections')::integer)
              AND (min(base.datconnlimit) < 0 OR count(*) FILTER (WHERE client.datid = base.oid) * 4 < 3 * min(base.datconnlimit))
              AND (min(role.rolconnlimit) < 0 OR count(*) FILTER (WHERE client.usesysid = role.oid) * 4 < 3 * min(role.rolconnlimit))
       FROM pg_catalog.pg_stat_activity AS client, pg_catalog.pg_database AS base, pg_catalog.pg_roles AS role
       WHERE client.datid IS NOT NULL AND base.datname = current_database() AND role.rolname = session_user)
  AND pg_try_advisory_lock(line.number, ticket::integer)
LIMIT 1";

/// Who has a ticket of the line $1, in turn: what they tell about themselves, and where they come from. (Other roles' are hidden from
/// ordinary ones.)
pub const WAITERS: &str = "\
SELECT client.application_name, host(client.client_addr)
FROM pg_catalog.pg_locks AS taken LEFT JOIN pg_catalog.pg_stat_activity AS client ON client.pid = taken.pid
WHERE taken.locktype = 'advisory' AND taken.objsubid = 2 AND taken.mode = 'ExclusiveLock' AND taken.granted
  AND taken.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
  AND taken.classid = ($1 # 'serializer_locks'::regclass::oid::integer)::oid
ORDER BY taken.objid::bigint";

/// Gives a ticket back.
pub const LEAVE: &str = "SELECT pg_advisory_unlock($1, $2)";

/// Says what [`STAND`] is to wait for, and for how many milliseconds.
pub const SET: &str = "\
SELECT set_config('serializer.line', $1::text, false), set_config('serializer.ahead', $2::text, false),
       set_config('serializer.limit', $3::text, false)";

/// Ends when a ticket was given back, or after the time.
pub const STAND: &str = "\
DO $$BEGIN
    PERFORM set_config('lock_timeout', current_setting('serializer.limit'), true);
    PERFORM pg_advisory_xact_lock_shared(
        current_setting('serializer.line')::integer, current_setting('serializer.ahead')::integer);
EXCEPTION WHEN lock_not_available OR query_canceled THEN NULL;
END$$";

/// A place in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which line, as the server numbers it.
    pub line: i32,
    /// Who has a lower one has come before.
    pub ticket: i32,
}

/// The number of a lock's line. Should two of them have the same, those who wait for the one sleep behind those who wait for the
/// other, and look now and then.
pub fn number(key: &str) -> i32 {
    Sha256::digest(key).iter().take(4).fold(0, |number, byte| number << 8 | i32::from(*byte))
}
