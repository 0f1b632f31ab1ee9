//! A directory that is mounted twice by sshfs, as by two hosts. Each mount keeps its flocks to
//! itself there. Without a server for ssh: sshfs speaks with the SFTP server over pipes. Needs the
//! right to open `/dev/fuse`.

use crate::support::{Locks, Shell, pid_namespace, skipped};

const SERVER: &str = "/usr/lib/openssh/sftp-server";

/// A shell for which the directory of locks is mounted at `$A` and `$B`.
fn two_mounts(locks: &Locks) -> Option<Shell> {
    let mut shell = pid_namespace(locks);
    let opened = shell.output("(exec 3<>/dev/fuse) 2>&1");
    if opened.0 != 0 && !rustix::process::geteuid().is_root() {
        skipped(&format!("sshfs needs the right to open `/dev/fuse`: {}", opened.1));
        return None;
    }
    assert_eq!(opened.0, 0, "sshfs needs `/dev/fuse`: {}", opened.1);
    must(
        &mut shell,
        "mount -t tmpfs tmpfs /mnt && mkdir /mnt/a /mnt/b && export A=/mnt/a B=/mnt/b",
    );
    for mount in ["/mnt/a", "/mnt/b"] {
        let dir = locks.dir().display();
        // It returns when the directory is mounted.
        let line = format!(
            "mkfifo {mount}.pipe && {{ {SERVER} <{mount}.pipe 2>/dev/null | sshfs -f -o passive \
             server:{dir} {mount} >{mount}.pipe 2>{mount}.said & }}"
        );
        must(&mut shell, &line);
        let mounted = format!(
            "for i in {{1..1000}}; do grep -q ' {mount} fuse.sshfs ' /proc/mounts && break; sleep \
             0.01; done; grep ' {mount} fuse.sshfs ' /proc/mounts || {{ cat {mount}.said; false; }}"
        );
        must(&mut shell, &mounted);
    }
    Some(shell)
}

fn must(shell: &mut Shell, line: &str) -> String {
    let (code, said) = shell.output(&format!("{{ {line}; }} 2>&1"));
    assert_eq!(code, 0, "{line}: {said}");
    said
}

#[test]
fn a_lock_that_is_made_through_one_mount_excludes_the_other() {
    let locks = Locks::new();
    let Some(mut shell) = two_mounts(&locks) else { return };
    // The shell itself is the owner.
    must(&mut shell, "SERIALIZER_DIR=$A $S lock");
    let (code, said) = shell.output("bash -c 'SERIALIZER_DIR=$B $S lock --no-wait; exit $?' 2>&1");
    assert_eq!(code, 75, "{said}");
    must(&mut shell, "SERIALIZER_DIR=$A $S unlock");
    assert_eq!(locks.names(), [""; 0]);
}

#[test]
fn holds_through_two_mounts_do_not_intersect() {
    let locks = Locks::new();
    let Some(mut shell) = two_mounts(&locks) else { return };
    // `inside` exists during a hold: it cannot be made twice.
    let hold = r#""$S" run --sleep-seconds 0.02 -- sh -c 'mkdir /mnt/inside && sleep 0.004 && rmdir /mnt/inside && echo held >>/mnt/holds'"#;
    let holder = |dir: &str| {
        format!(
            "(export SERIALIZER_DIR={dir}; for i in {{1..15}}; do {hold} || exit 1; done) & \
             pids+=($!)"
        )
    };
    let holders = ["$A", "$B", "$A", "$B"].map(holder).join("; ");
    must(
        &mut shell,
        &format!(
            r#"pids=(); {holders}; failed=0; for pid in "${{pids[@]}}"; do wait $pid || failed=1; done; [ $failed = 0 ]"#
        ),
    );
    assert_eq!(must(&mut shell, "wc -l </mnt/holds"), "60\n");
    assert_eq!(locks.names(), [""; 0]);
}

#[test]
fn a_stale_lock_is_not_taken_over_where_flock_is_faked() {
    let locks = Locks::new();
    let Some(mut shell) = two_mounts(&locks) else { return };
    // The shell in between is the owner, and ends.
    must(&mut shell, "bash -c 'SERIALIZER_DIR=$A $S lock; exit $?'");
    let stale = locks.read();
    // Both mounts grant a flock of it at the same time, which is why.
    must(
        &mut shell,
        "exec 5<>$A/serializer.lck 6<>$B/serializer.lck && flock -n 5 && flock -n 6 && exec 5>&- \
         6>&-",
    );
    for mount in ["$A", "$B"] {
        let (code, said) = shell.output(&format!("SERIALIZER_DIR={mount} $S lock --no-wait 2>&1"));
        assert_eq!(code, 1, "{said}");
        assert!(
            said.contains("cannot take over the lock file") && said.contains("(fuse.sshfs)"),
            "{said}"
        );
    }
    assert_eq!(locks.read(), stale);
    // It can be broken.
    must(&mut shell, "SERIALIZER_DIR=$A $S unlock --force");
    assert_eq!(locks.names(), [""; 0]);
}
