//! The program looks names up by the C library of the system that it runs on, also where that is
//! newer than the one that it was built with, and has modules that the program does not know
//! (`hosts: files myhostname dns`, the default of Fedora and RHEL). A program that is linked
//! statically against glibc dies of signal 11 there.

use std::path::Path;

use crate::support::{self, Ended, Locks, PROGRAM, ended};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/foreign-root");

/// `lock` in a root with another C library, without a network.
fn locked(locks: &Locks, store: &str) -> Ended {
    let script = r#"mount --rbind /proc "$1/proc" && mount --bind /etc/ssl "$1/etc/ssl" && mount --bind "$2" "$1/serializer" && exec chroot "$1" /serializer lock -n"#;
    let mut command = locks.command("unshare");
    command.args(["-rmn", "sh", "-c", script, "sh", ROOT, PROGRAM]);
    ended(command.env_remove("SERIALIZER_DIR").env("SERIALIZER_STORE", store))
}

#[test]
fn names_are_looked_up_by_the_c_library_of_the_system_with_the_modules_that_it_has() {
    if !Path::new(ROOT).join("serializer").exists() {
        return support::skipped(
            "scripts/foreign-root.sh has not made a root with another C library",
        );
    }
    let locks = Locks::new();
    for address in [
        "postgres://me:hunter2@HOST/x",
        "mysql://me:hunter2@HOST/x",
        "dynamodb://a:hunter2@locks?region=eu-west-1&endpoint=http://HOST:80",
        "s3://a:hunter2@b/p?region=eu-west-1&endpoint=http://HOST:80",
    ] {
        let unknown = locked(&locks, &address.replace("HOST", "nowhere.invalid"));
        assert_eq!(unknown.code, 1, "{unknown:?}");
        let said = unknown.last_line();
        assert!(
            said.contains("nowhere.invalid") && said.contains("name resolution"),
            "{unknown:?}"
        );
        // Only the module `myhostname` knows this one.
        let known = locked(&locks, &address.replace("HOST", "any.localhost"));
        assert_eq!(known.code, 1, "{known:?}");
        let is_connecting = ["cannot connect to", "cannot be reached"]
            .iter()
            .any(|text| known.stderr.contains(text));
        assert!(is_connecting && !known.stderr.contains("name resolution"), "{known:?}");
        assert!(!unknown.stderr.contains("hunter2") && !known.stderr.contains("hunter2"));
    }
}
