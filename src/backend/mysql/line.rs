//! Whose turn it is, as a courtesy: exclusion never depends on it.
//!
//! Waiters ask the server for a lock of its own, by `GET_LOCK`, which MariaDB and MySQL grant in the order in which it was asked for
//! (it is a metadata lock). Whoever has it is first, and the only one that looks at the row; all others sleep in that one
//! statement. A server ends a waiter's place within a second of its connection's end, so that nobody has to tidy up. It is
//! per server: with Galera there are as many lines as nodes, or none where it is refused, and then everybody looks now and then.
//!
//! A place costs one of the server's connections, which whoever renews or releases a lock needs more. So nobody takes one when
//! three quarters of those that may be had are in use: it comes back now and then.

use sha2::{Digest, Sha256};

use super::connection::Answer;
use crate::waiter::Waiter;

/// For how long one statement stands in line, in seconds. Who asks again stands behind all others, so that it is long; the end
/// of a server that says nothing is noticed by the connection's keep-alive.
const STAND: u32 = 6 * 3600;

/// Of what is told about who waits, in bytes.
const MAX_LABEL: usize = 120;

/// Where one waiter stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// It does not wait, or waits without a line.
    #[default]
    None,
    /// The statement has been sent; its answer comes with the turn.
    InLine,
    /// It has the server's lock.
    First,
}

/// The line before one lock.
pub struct Line {
    /// What the server's lock is called. It may have 64 characters, and is the same for all databases of a server.
    name: String,
}

impl Line {
    pub fn of(database: &str, key: &str) -> Self {
        let hash = Sha256::digest(format!("{database}\0{key}").as_bytes());
        let hash: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Self { name: format!("serializer:{hash}") }
    }

    /// Answers 1 when it is one's turn, 0 when that takes too long.
    pub fn stand(&self) -> String {
        // Others see in the list of processes who waits.
        format!("{}{STAND}) /* {} */", self.waiting(), Waiter::label(MAX_LABEL))
    }

    fn waiting(&self) -> String {
        format!("SELECT GET_LOCK('{}', ", self.name)
    }

    /// Who waits, in turn: what they are doing, and where they come from. The first one does nothing at most times.
    pub fn waiters(&self) -> String {
        let waiting = self.waiting().replace('\'', "''");
        let first = format!("id = {}", self.first());
        format!(
            "SELECT info, host FROM information_schema.processlist WHERE {first} OR info LIKE '{waiting}%' \
             ORDER BY {first} DESC, time DESC, id"
        )
    }

    /// Lets the next one come.
    pub fn leave(&self) -> String {
        format!("DO RELEASE_LOCK('{}')", self.name)
    }

    /// As a column: the connection of whoever is first, or NULL.
    pub fn first(&self) -> String {
        format!("IS_USED_LOCK('{}')", self.name)
    }
}

/// How many connections there are, as the second column.
pub const CONNECTED: &str = "SHOW GLOBAL STATUS LIKE 'Threads_connected'";

/// How many there may be, how many this user may have (0 if as many as there are), and how many it has.
pub const LIMITS: &str = "SELECT @@max_connections, @@max_user_connections, COUNT(*) FROM information_schema.processlist \
                          WHERE user = SUBSTRING_INDEX(USER(), '@', 1)";

/// Whether there is no room for those who only wait, as [`CONNECTED`] and [`LIMITS`] were answered.
pub fn is_crowded(connected: &Answer, limits: &Answer) -> bool {
    let fills = |used: Option<u64>, most: Option<u64>| {
        used.zip(most.filter(|most| *most > 0)).is_some_and(|(used, most)| used.saturating_mul(4) >= most.saturating_mul(3))
    };
    fills(connected.number(1), limits.number(0)) || fills(limits.number(2), limits.number(1))
}

/// Whether a server's answer means that it has no such locks: Galera, proxies, and programs that only speak like MySQL.
pub fn is_unsupported(code: u16) -> bool {
    matches!(code, 1064 | 1105 | 1128 | 1148 | 1227 | 1235 | 1289 | 1295 | 1305 | 1370 | 4121 | 8003)
}
