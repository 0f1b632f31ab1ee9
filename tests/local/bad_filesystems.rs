//! File systems that cannot do all that the usual way needs: simulated by making the system call
//! fail (strace).

use std::fs::File;
use std::time::{Duration, SystemTime};

use crate::support::{Ended, Locks, Shell, Waiter, ended};

/// Locks and unlocks in one shell while each named system call of `lock` fails as given.
fn with_failing(locks: &Locks, failing: &[&str]) -> Ended {
    let inject: String = failing.iter().map(|failing| format!(" -e inject={failing}")).collect();
    ended(locks.command("bash").args([
        "-c",
        &format!(r#"strace -D -qq -o /dev/null{inject} "$S" lock --max-attempts 1 || exit; cat "$SERIALIZER_DIR"/serializer.lck; "$S" unlock; exit $?"#),
    ]))
}

#[test]
fn where_there_are_no_unnamed_files_a_named_one_is_linked() {
    let locks = Locks::new();
    let ended = with_failing(&locks, &["linkat:error=EOPNOTSUPP:when=1"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains("v=1"), "{ended:?}");
    assert_eq!(locks.names(), Vec::<String>::new(), "nothing is left behind");
}

#[test]
fn where_there_are_no_hard_links_the_file_is_created_in_place() {
    let locks = Locks::new();
    let ended = with_failing(&locks, &["linkat:error=EPERM"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains("v=1"), "{ended:?}");
    assert_eq!(locks.names(), Vec::<String>::new(), "nothing is left behind");
}

#[test]
fn a_name_that_a_file_server_refuses_is_not_waited_for() {
    let locks = Locks::new();
    let only = format!("linkat:error=EPERM -P {}", locks.file().display());
    let ended = with_failing(&locks, &[&only, "openat:error=EPERM:when=2+"]);
    let why = "cannot create the lock file";
    assert!(ended.code == 1 && ended.last_line().contains(why), "{ended:?}");
    assert!(ended.last_line().contains("operation not permitted"), "{ended:?}");
    assert_eq!(locks.names(), Vec::<String>::new(), "nothing is left behind");
}

#[test]
fn where_flock_does_not_work_nothing_is_locked() {
    for error in ["ENOLCK", "ENOSYS", "EOPNOTSUPP"] {
        let locks = Locks::new();
        let ended = with_failing(&locks, &[&format!("flock:error={error}")]);
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(ended.last_line().contains("cannot create the lock file"), "{ended:?}");
        let file_system = locks.script(r#"df --output=fstype "$SERIALIZER_DIR" | tail -1"#).stdout;
        let why = format!("flock does not work on its file system ({}): ", file_system.trim());
        assert!(ended.last_line().contains(&why), "{why}: {ended:?}");
        assert_eq!(locks.names(), Vec::<String>::new(), "nothing is left behind");
    }
}

#[test]
fn what_a_kill_has_left_is_removed_by_initialize() {
    let locks = Locks::new();
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    // Of an old one, one that is flocked, and a new one.
    let [old, flocked, new] = ["a", "b", "c"].map(|c| format!(".serializer.{}.tmp", c.repeat(32)));
    for name in [&old, &flocked, &new, ".serializer.old.tmp", "other.tmp"] {
        let file = File::create(locks.dir().join(name)).expect("a file");
        if *name != *new {
            file.set_modified(long_ago).expect("a time");
        }
    }
    let file = File::open(locks.dir().join(&flocked)).expect("it is there");
    file.lock().expect("it is free");
    assert_eq!(locks.run(&["initialize"]).code, 0);
    let left = [&flocked, &new, ".serializer.old.tmp", "other.tmp"];
    assert_eq!(locks.names(), left);
}

#[test]
fn where_no_order_can_be_kept_a_waiter_leaves_no_queue_file() {
    // NFS locks no file like this that is not open for writing.
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let queue = locks.dir().join("serializer.lck.queue");
    let failing =
        format!("strace -D -f -qq -o /dev/null -P {} -e inject=flock:error=EBADF", queue.display());
    let mut parent = locks.command("bash");
    parent.args([
        "-c",
        &format!(r#"{failing} "$S" lock --sleep-seconds 3600 && {failing} "$S" unlock; exit $?"#),
    ]);
    let waiter = Waiter::start(parent);
    holder.unlock();
    let ended = waiter.end();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(locks.names(), Vec::<String>::new());
}
