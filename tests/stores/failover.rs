//! A standby of PostgreSQL that takes over for its primary: whatever was granted is still held, and
//! nothing is granted before.

use crate::support::faults::{Logged, proxied, renewals};
use crate::support::servers::Postgres;
use crate::support::stores::Store;
use crate::support::until;

#[test]
fn a_standby_that_takes_over_has_all_locks_that_were_granted_and_grants_none_before() {
    let mut primary = Postgres::start();
    let standby = Postgres::standby_of(&primary);
    // From now on, nothing is committed that the standby has not got.
    primary.psql("ALTER SYSTEM SET synchronous_standby_names = '*'");
    primary.psql("SELECT pg_reload_conf()");
    let synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
    until("the standby is not waited for", || primary.psql(synchronous).trim() == "1");

    let at_primary = Store { lease: "30".to_owned(), ..Store::at(&primary.url()) };
    let (proxy, store) = proxied(&at_primary);
    let store = Store { lease: "30".to_owned(), ..store };
    let mut owner = store.shell();
    owner.lock();
    let number = store.holder("fencing_token").as_u64().expect("a number");
    let waiter = Logged::start(&store, &["run", "-v", "true"]);
    waiter.until_said("waiting for `");

    // The name of the server leads to the standby now, which does not know yet.
    primary.kill();
    proxy.cut();
    proxy.lead_to(standby.address());
    proxy.mend();
    let free = Store::at(&store.url);
    until("it is not asked for", || free.run(&["status"]).code == 0);
    let refused = free.run(&["run", "-n", "true"]);
    assert!(refused.code == 1 && refused.stderr.contains("read-only"), "{refused:?}");
    assert!(refused.stderr.contains("the server is a standby"), "{refused:?}");
    assert_eq!(store.run(&["lock", "-n"]).code, 75);
    let owner_is_known =
        |store: &Store| store.holder("pid").as_u64() == Some(u64::from(owner.pid()));
    assert!(owner_is_known(&store));

    assert_eq!(standby.psql("SELECT pg_promote()"), "t\n");
    let before = renewals(&store);
    until("it is not renewed", || renewals(&store) > before);
    assert!(owner_is_known(&store));
    assert_eq!(store.run(&["lock", "-n"]).code, 75);
    assert_eq!(free.run(&["run", "-n", "true"]).code, 0);
    owner.unlock();
    let (code, said) = waiter.end();
    assert!(code == 0 && said.contains("locked"), "{code} {said}");
    let mut next = store.shell();
    next.lock();
    assert!(store.holder("fencing_token").as_u64().expect("a number") > number);
    next.unlock();
}
