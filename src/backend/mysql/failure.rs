//! What the refusals of MySQL and MariaDB mean, and of proxies before them.

use sqlx::mysql::MySqlDatabaseError;

use crate::backend::failure::{Cause, Failure};
use crate::backend::network::sentence;

/// What a server's refusal means. Nothing was done, unless it [may be](may_be_done).
pub fn refusal(error: &MySqlDatabaseError) -> Failure {
    let code = error.number();
    let why = format!("{} (error {code})", sentence(error.message()));
    Failure { why, cause: cause(code), hint: hint(code).map(str::to_owned), is_indefinite: false, action: None }
}

/// Whether a server refuses writes because it is read-only.
pub fn is_read_only(code: u16) -> bool {
    matches!(code, 1290 | 1792 | 1836)
}

/// Codes of what passes: full (disk, memory, tables), starting, ending, killed, deadlock (of
/// Galera, too), waited too long, read-only (a fail-over is under way), node without a cluster.
const PASSING: [u16; 38] = [
    1021, 1037, 1038, 1041, 1047, 1053, 1077, 1079, 1080, 1114, 1135, 1152, 1158, 1159, 1160, 1161, 1180, 1184, 1205, 1206, 1213,
    1290, 1317, 1412, 1436, 1614, 1615, 1637, 1792, 1836, 1927, 1969, 3024, 3058, 3100, 3101, 3572, 4031,
];

fn cause(code: u16) -> Cause {
    match code {
        1146 => Cause::NotPrepared,
        1040 | 1203 | 1226 => Cause::Full,
        // What proxies say for servers that they have lost, in the words of clients or in their own
        // (ProxySQL, MaxScale).
        2000..3000 | 9000..10000 => Cause::Transient,
        code if PASSING.contains(&code) => Cause::Transient,
        _ => Cause::Permanent,
    }
}

/// Whether a server may have done, or yet do, what it says has failed. A node of a cluster (Galera,
/// group replication) that loses the others while it commits does not know whether they have it, a
/// session that is ended may be ended after its commit, and a proxy may lose a server that has done
/// it.
pub fn may_be_done(code: u16) -> bool {
    matches!(code, 1047 | 1053 | 1158..=1161 | 1180 | 1213 | 1317 | 1927 | 1969 | 3024 | 3100 | 3101 | 4031)
        || (2000..3000).contains(&code)
        || (9000..10000).contains(&code)
}

fn hint(code: u16) -> Option<&'static str> {
    Some(match code {
        1045 | 1698 => "check user and password: that of the address, else the first line of `SERIALIZER_PASSWORD_FILE`",
        1044 | 1049 => {
            "check the database's name in the address; `CREATE DATABASE` makes it, and `GRANT SELECT, INSERT, UPDATE ON \
             DATABASE.serializer_locks TO USER` lets a user in"
        }
        1142 | 1143 | 1227 => {
            "`serializer initialize --print-sql` prints the statements for an administrator; the user needs `GRANT SELECT, INSERT, \
             UPDATE ON DATABASE.serializer_locks TO USER`, and `DELETE` to tidy up"
        }
        1129 => "too many connections from this host have failed; `mariadb-admin flush-hosts` lets it in again",
        1130 => "the server lets no user in from this host; `CREATE USER … @'%'` makes one that may connect from anywhere",
        1040 | 1203 | 1226 => "each command that waits needs one connection; `max_connections` is how many there may be",
        1290 | 1792 | 1836 => "a replica cannot be written to: name the primary in the address; on a primary, `read_only` is set",
        1054 | 1364 | 1406 => "another program's table is called `serializer_locks`; name another database",
        1820 | 1862 => "the user's password has expired, and has to be changed first",
        3159 => "the server wants TLS; leave out `ssl_disabled` and `ssl_mode=DISABLED`",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{cause, may_be_done};
    use crate::backend::failure::Cause;

    #[test]
    fn what_may_pass_is_told_from_what_will_not() {
        for code in [1047, 1053, 1205, 1213, 1290, 1836, 1927, 2013, 9001] {
            assert_eq!(cause(code), Cause::Transient, "{code}");
        }
        for code in [1044, 1045, 1049, 1064, 1142, 1143] {
            assert_eq!(cause(code), Cause::Permanent, "{code}");
        }
        for code in [1040, 1203, 1226] {
            assert_eq!(cause(code), Cause::Full, "{code}");
        }
        assert_eq!(cause(1146), Cause::NotPrepared);
    }

    #[test]
    fn only_what_passes_may_have_been_done() {
        for code in (1000..10000).filter(|code| may_be_done(*code)) {
            assert_eq!(cause(code), Cause::Transient, "{code}");
        }
        // What a row or a right forbids was not done.
        for code in [1062, 1142, 1205, 1290] {
            assert!(!may_be_done(code), "{code}");
        }
    }
}
