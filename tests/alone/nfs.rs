//! Lock files on a directory that two hosts have mounted from an NFS server, by a kernel that runs
//! as an ordinary process: `tests/alone/nfs/bed.sh` says how.

use std::process::Command;

use crate::support::{Ended, PROGRAM, ended};

/// Runs the workload with these settings. Panics where it cannot be run.
fn bed(settings: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/alone/nfs/bed.sh"));
    command.arg(PROGRAM).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    // Far more than it takes, on a busy machine, too.
    command.env("NFS_SECONDS", "400").envs(settings.iter().copied());
    let ended = ended(&mut command);
    assert!([0, 1].contains(&ended.code), "{}\n{}", ended.stdout, ended.stderr);
    ended
}

/// Two processes on each of two hosts hold a lock in turn.
fn holds_do_not_intersect(settings: &[(&str, &str)]) {
    let ended = bed(settings);
    assert_eq!(ended.code, 0, "{}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains(" 0 intersections\n"), "{}", ended.stdout);
}

#[test]
fn over_nfs_3_hosts_hold_a_lock_one_after_the_other() {
    // NFS version 3: a flock excludes record locks (fcntl) of other processes, by which the queue
    // is seen. Without those, a turn would come only with the poll every ten seconds.
    holds_do_not_intersect(&[("NFS_VERSION", "3"), ("NFS_HOLDS", "25"), ("NFS_QUEUE", "none")]);
}

#[test]
fn over_nfs_4_2_hosts_hold_a_lock_one_after_the_other() {
    // A reader of the file gets it delegated, and the server has to call the delegation back before
    // the lock can be released: that takes tenths of a second.
    holds_do_not_intersect(&[("NFS_VERSION", "4.2"), ("NFS_HOLDS", "20")]);
}

#[test]
fn over_nfs_4_2_without_delegations_hosts_hold_a_lock_one_after_the_other() {
    let settings = [("NFS_DELEGATIONS", "no"), ("NFS_HOLDS", "20")];
    holds_do_not_intersect(&settings);
}

#[test]
fn what_does_not_exclude_over_nfs_is_seen_not_to() {
    for version in ["3", "4.2"] {
        let ended = bed(&[("NFS_VERSION", version), ("NFS_LOCKER", "naive"), ("NFS_HOLDS", "25")]);
        assert_eq!(ended.code, 1, "{}", ended.stdout);
        assert!(
            ended.stdout.contains("100 holds in ") && !ended.stdout.contains(" 0 intersections"),
            "{}",
            ended.stdout
        );
    }
}

/// A directory that hosts share under leases.
fn shared(version: &str, workload: &str) -> Ended {
    bed(&[
        ("NFS_VERSION", version),
        ("NFS_WORKLOAD", workload),
        ("NFS_HOLDS", "25"),
        ("SERIALIZER_LEASE_SECONDS", "6"),
        ("SERIALIZER_STORE", "file:///mnt/nfs"),
    ])
}

#[test]
fn over_nfs_3_a_lock_that_hosts_share_is_held_by_one_after_the_other() {
    let ended = shared("3", "exclusion");
    assert!(
        ended.code == 0 && ended.stdout.contains(" 0 intersections\n"),
        "{}\n{}",
        ended.stdout,
        ended.stderr
    );
}

#[test]
fn over_nfs_4_2_a_lock_that_hosts_share_is_held_by_one_after_the_other() {
    let ended = shared("4.2", "exclusion");
    assert!(
        ended.code == 0 && ended.stdout.contains(" 0 intersections\n"),
        "{}\n{}",
        ended.stdout,
        ended.stderr
    );
}

#[test]
fn over_nfs_what_a_host_that_died_has_held_is_free_after_the_lease_and_not_before() {
    for version in ["3", "4.2"] {
        let ended = shared(version, "lease");
        assert_eq!(ended.code, 0, "{}\n{}", ended.stdout, ended.stderr);
    }
}
