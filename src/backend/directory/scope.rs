//! Which hosts see the flocks of a file. Some file systems grant a flock to every host at once,
//! always or with some mount options.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use rustix::fs::{FsWord, NFS_SUPER_MAGIC, fstatfs};

use super::trouble;
use crate::backend::failure::Failure;
use crate::backend::file::filesystem::{is_local, mount};
use crate::printable;

/// CephFS, GFS2 and OCFS2: `linux/magic.h` and their own sources.
const CEPH: FsWord = 0x00C3_6400;
const GFS2: FsWord = 0x0116_1970;
const OCFS2: FsWord = 0x7461_636F;

/// A mount with one of these keeps flocks on its host.
const LOCAL_FLOCKS: [&str; 5] = ["nolock", "local_lock=all", "local_lock=flock", "localflocks", "lockproto=lock_nolock"];

/// The file that confirms that a directory is the right one. The name of a register's file never
/// begins with a dot.
const MARKER: &str = ".serializer-shared";

/// The marker's line for a directory of one machine.
const MACHINE: &str = "machine";

/// Which hosts see the flocks of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum FlockScope {
    /// All hosts; a host that has lost a flock can no longer write.
    Hosts,
    /// This machine, as far as the file system tells.
    Machine,
    /// Unclear from the mount, or an old flock may stay (NFS before version 4). With the file
    /// system's name.
    Untold(String),
    /// This host alone, or unknown. With the file system's name, and its mount's option.
    Unknown(String),
}

/// Fails if registers cannot be kept on the file system of `file`. Returns whether record locks are
/// needed beside flocks: a file server takes record locks for the flocks of its clients.
pub fn check(directory: &Path, file: &File) -> Result<bool, Failure> {
    let is_declared = |name: &str| is_declared(directory, name);
    let shown = printable::path(directory);
    match scope(file) {
        FlockScope::Hosts => Ok(false),
        FlockScope::Machine if is_declared(MACHINE) => Ok(true),
        // NFS takes record locks for flocks, too: a file cannot have both.
        FlockScope::Untold(name) if is_declared(&name) => Ok(!name.starts_with("nfs")),
        FlockScope::Machine => Err(Failure::permanent(format!("`{shown}` is on a local disk: it does not lock out other hosts"))
            .with_hint(
                "mount the file system that the hosts share; or, if this directory is right (containers, the file server itself), \
                 run `serializer initialize`"
                    .to_owned()
                    + super::on_one_machine(directory),
            )),
        FlockScope::Untold(name) => Err(Failure::permanent(format!(
            "its mount does not tell whether flocks on its file system ({name}) lock out other hosts"
        ))
        .with_hint("NFS version 4 (`vers=4.2`) does; if this one does, too, say so with `serializer initialize`")),
        FlockScope::Unknown(name) => {
            Err(Failure::permanent(format!("flocks on its file system ({name}) are not known to lock out other hosts"))
                .with_hint("NFS mounted without `nolock` and `local_lock` does; or name a store, such as `postgres://…`"))
        }
    }
}

/// Whether the marker names this kind of file system. An older program left an empty marker, which
/// does not count for NFS.
fn is_declared(directory: &Path, name: &str) -> bool {
    let marker = fs::read_to_string(directory.join(MARKER));
    marker.is_ok_and(|text| text.lines().any(|line| line == name) || text.is_empty() && name != "nfs")
}

/// Records the user's confirmation: a directory of this machine is right, or one locks out other
/// hosts. The marker names the kind of file system, because it is in the shared directory: the file
/// server's confirmation does not count for its clients.
pub fn declare(directory: &Path) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| trouble(directory, &error);
    let shown = printable::path(directory);
    let name = match scope(&File::open(directory).map_err(cannot)?) {
        FlockScope::Machine => {
            tracing::warn!("`{shown}` is on a local disk: it does not lock out other hosts");
            MACHINE.to_owned()
        }
        FlockScope::Untold(name) => {
            tracing::warn!(
                "`{shown}` is on {name}, whose mount does not tell whether it locks out other hosts; assuming that it does"
            );
            name
        }
        FlockScope::Hosts | FlockScope::Unknown(_) => return Ok(()),
    };
    if is_declared(directory, &name) {
        return Ok(());
    }
    let marker = File::options().create(true).append(true).open(directory.join(MARKER));
    marker.and_then(|mut marker| writeln!(marker, "{name}")).map_err(cannot)
}

fn scope(file: &File) -> FlockScope {
    if is_local(file) {
        return FlockScope::Machine;
    }
    match fstatfs(file) {
        Ok(file_system) => {
            let mount = mount(file);
            as_mounted(file_system.f_type, mount.as_ref().map(|(name, options)| (name.as_str(), options.as_str())))
        }
        Err(_) => FlockScope::Unknown("of an unknown kind".to_owned()),
    }
}

/// The scope on a kind of file system, given the name and the options of its mount.
fn as_mounted(kind: FsWord, mount: Option<(&str, &str)>) -> FlockScope {
    let Some((name, options)) = mount else {
        return FlockScope::Unknown(format!("type {kind:#x}, mounted out of sight"));
    };
    if let Some(option) = options.split(',').find(|option| LOCAL_FLOCKS.contains(option)) {
        return FlockScope::Unknown(format!("{name}, mounted with `{option}`"));
    }
    match kind {
        NFS_SUPER_MAGIC if name == "nfs4" => FlockScope::Hosts,
        CEPH => FlockScope::Hosts,
        NFS_SUPER_MAGIC | GFS2 | OCFS2 => FlockScope::Untold(name.to_owned()),
        _ => FlockScope::Unknown(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FsWord, NFS_SUPER_MAGIC};

    use super::{CEPH, FlockScope, GFS2, LOCAL_FLOCKS, OCFS2, as_mounted};

    fn scope(kind: FsWord, mount: &str) -> FlockScope {
        as_mounted(kind, mount.split_once(' '))
    }

    #[test]
    fn a_mount_that_keeps_flocks_to_itself_is_never_taken_for_a_shared_one() {
        for (kind, name) in [(NFS_SUPER_MAGIC, "nfs4"), (NFS_SUPER_MAGIC, "nfs"), (GFS2, "gfs2"), (OCFS2, "ocfs2")] {
            for option in LOCAL_FLOCKS {
                let scope = scope(kind, &format!("{name} rw,vers=3,{option},addr=192.0.2.1"));
                assert!(matches!(scope, FlockScope::Unknown(_)), "{name} {option}: {scope:?}");
            }
        }
        assert!(matches!(scope(0x6573_5546, "fuse.sshfs rw"), FlockScope::Unknown(_)));
        assert!(matches!(as_mounted(NFS_SUPER_MAGIC, None), FlockScope::Unknown(_)));
    }

    #[test]
    fn a_mount_that_does_not_tell_needs_the_users_word() {
        let untold = |name: &str| FlockScope::Untold(name.to_owned());
        assert_eq!(scope(NFS_SUPER_MAGIC, "nfs4 rw,vers=4.2,local_lock=none"), FlockScope::Hosts);
        assert_eq!(scope(CEPH, "ceph rw"), FlockScope::Hosts);
        assert_eq!(scope(NFS_SUPER_MAGIC, "nfs rw,vers=3,local_lock=none"), untold("nfs"));
        assert_eq!(scope(GFS2, "gfs2 rw"), untold("gfs2"));
        assert_eq!(scope(OCFS2, "ocfs2 rw,heartbeat=local"), untold("ocfs2"));
    }
}
