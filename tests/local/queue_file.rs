//! The file in which waiters queue: foreign data is not taken for it, it may be another user's, and
//! it does not stay.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use crate::support::{Locks, OrdinaryUser, Shell, Waiter, until};

/// Locks, waiting for it, and says nothing.
const LOCK: &str = r#""$S" lock --sleep-seconds 3600 2> /dev/null"#;

/// One waits, and is killed.
fn kill_a_lone_waiter(locks: &Locks) {
    let mut shell = Shell::start(locks);
    shell.send(LOCK);
    until("it is in line", || locks.pids("waiters").len() == 1);
    let pid = locks.pids("waiters")[0].to_string();
    assert!(Command::new("kill").args(["-KILL", &pid]).status().expect("kill runs").success());
    assert_eq!(shell.answer().0, 137);
    until("nobody waits", || locks.pids("waiters").is_empty());
    assert_eq!(locks.names(), ["serializer.lck", "serializer.lck.queue"], "a kill leaves it");
}

#[test]
fn the_queue_file_of_a_killed_waiter_is_removed_by_the_next_unlock() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    kill_a_lone_waiter(&locks);
    holder.unlock();
    assert_eq!(locks.names(), Vec::<String>::new());
}

#[test]
fn the_queue_file_of_a_killed_waiter_is_removed_by_the_next_lock_if_no_process_unlocks() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    kill_a_lone_waiter(&locks);
    holder.reap();
    let mut next = Shell::start(&locks);
    assert_eq!(next.run(r#""$S" lock -n 2> /dev/null"#), 0);
    assert_eq!(locks.names(), ["serializer.lck"]);
}

/// A waiter gets the lock in a directory where something is in the place of the queue file.
fn can_be_waited_for(locks: &Locks) {
    let mut holder = Shell::start(locks);
    holder.lock();
    let waiter = Waiter::start(locks.serializer(&["lock", "--sleep-seconds", "3600"]));
    waiter.asleep();
    holder.unlock();
    assert_eq!(waiter.end().code, 0);
    assert_eq!(locks.run(&["unlock"]).code, 0);
    assert!(!locks.file().exists());
}

#[test]
fn foreign_data_in_the_place_of_the_queue_file_is_left_alone() {
    let locks = Locks::new();
    let queue = locks.dir().join("serializer.lck.queue");
    fs::write(&queue, "important\n").expect("somebody's file");
    let before = fs::metadata(&queue).and_then(|metadata| metadata.modified()).expect("its time");
    can_be_waited_for(&locks);
    assert_eq!(fs::read_to_string(&queue).expect("it is still there"), "important\n");
    assert_eq!(
        fs::metadata(&queue).and_then(|metadata| metadata.modified()).expect("its time"),
        before
    );
    fs::remove_file(&queue).expect("it can be removed");

    fs::create_dir(&queue).expect("somebody's directory");
    can_be_waited_for(&locks);
    fs::remove_dir(&queue).expect("it is still there");

    fs::write(locks.dir().join("target"), "").expect("somebody's file");
    symlink("target", &queue).expect("somebody's link");
    can_be_waited_for(&locks);
    fs::remove_file(&queue).expect("it is still there");
    assert!(locks.dir().join("target").exists());

    assert!(Command::new("mkfifo").arg(&queue).status().expect("mkfifo runs").success());
    can_be_waited_for(&locks);
    assert_eq!(locks.names(), ["serializer.lck.queue", "target"]);
}

#[test]
fn a_queue_file_that_cannot_be_read_only_means_that_no_order_is_kept() {
    let locks = Locks::new();
    let user = OrdinaryUser::new(&locks);
    let queue = locks.dir().join("serializer.lck.queue");
    fs::write(&queue, "secret").expect("somebody's file");
    fs::set_permissions(&queue, fs::Permissions::from_mode(0o000)).expect("nobody may read it");
    let mut shell = Shell::start_with(user.command(&locks, "bash", &[]));
    shell.lock();
    let waiter = Waiter::start(user.command(
        &locks,
        "bash",
        &["-c", &format!("{LOCK}; true").replace("2> /dev/null", "")],
    ));
    shell.unlock();
    assert_eq!(waiter.end().code, 0);
    assert_eq!(fs::metadata(&queue).expect("it is still there").len(), 6);
}

#[test]
fn another_user_takes_his_turn_in_a_sticky_directory() {
    let locks = Locks::new();
    let user = OrdinaryUser::new(&locks);
    fs::set_permissions(locks.dir(), fs::Permissions::from_mode(0o1777))
        .expect("a directory like /tmp");
    let mut holder = Shell::start(&locks);
    holder.lock();
    // The queue file is the first one's, and the last one cannot remove it.
    let mut first = Shell::start(&locks);
    first.send(LOCK);
    until("it is in line", || locks.pids("waiters").len() == 1);
    let mut second = Shell::start_with(user.command(&locks, "bash", &[]));
    second.send(LOCK);
    until("it is in line", || locks.pids("waiters").len() == 2);
    holder.unlock();
    assert_eq!(first.answer().0, 0);
    // The second one may just be lining up at a new queue file.
    until("the second one is in line", || locks.pids("waiters").len() == 1);
    first.unlock();
    assert_eq!(second.answer().0, 0);
    assert_eq!(first.run(r#""$S" lock -n 2> /dev/null"#), 75);
    second.unlock();
    // Its owner does.
    first.lock();
    first.unlock();
    assert_eq!(locks.names(), Vec::<String>::new());
}
