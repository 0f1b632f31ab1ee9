//! Which hosts see the flocks of a file. Some file systems grant a flock to every host at once,
//! always or with some mount options.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use rustix::fs::{FsWord, NFS_SUPER_MAGIC, fstatfs};

use super::{on_one_machine, trouble};
use crate::store::failure::Failure;
use crate::store::file::filesystem::{is_local, mount};
use crate::sys::text;

/// CephFS, GFS2 and OCFS2: `linux/magic.h` and their own sources.
const CEPH: FsWord = 0x00C3_6400;
const GFS2: FsWord = 0x0116_1970;
const OCFS2: FsWord = 0x7461_636F;

/// A mount with one of these keeps flocks on its host.
const LOCAL_FLOCKS: [&str; 5] =
    ["nolock", "local_lock=all", "local_lock=flock", "localflocks", "lockproto=lock_nolock"];

/// The file that confirms that a directory is the right one: a line for each kind of file system.
/// The name of a register's file never begins with a dot.
const MARKER: &str = ".serializer-shared";

/// The marker's line for a directory of one machine.
const MACHINE: &str = "machine";

/// Which hosts see the flocks of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum FlockScope {
    /// All hosts; a host that has lost a flock can no longer write.
    Hosts,
    /// One machine, or unclear from the mount, or an old flock may stay (NFS before version 4): the
    /// marker must have this line.
    Declared(String),
    /// This host alone, or unknown. With the file system's name, and its mount's option.
    Unknown(String),
}

/// Fails if registers cannot be kept on the file system of `file`. Returns whether record locks are
/// needed beside flocks: a file server takes record locks for the flocks of its clients.
pub fn check(directory: &Path, file: &File) -> Result<bool, Failure> {
    let (why, hint) = match scope(file) {
        FlockScope::Hosts => return Ok(false),
        // NFS takes record locks for flocks, too: a file cannot have both.
        FlockScope::Declared(name) if is_declared(directory, &name) => {
            return Ok(!name.starts_with("nfs"));
        }
        FlockScope::Declared(name) => (
            doubt(directory, &name),
            "mount the file system that the hosts share (NFS with `vers=4.2`); or, if this \
             directory is right (containers, the file server itself, a cluster's file system), run \
             `serializer initialize`"
                .to_owned()
                + on_one_machine(directory),
        ),
        FlockScope::Unknown(name) => (
            format!("flocks on its file system ({name}) are not known to lock out other hosts"),
            "NFS mounted without `nolock` and `local_lock` does; or name a store, such as \
             `postgres://…`"
                .to_owned(),
        ),
    };
    Err(Failure::permanent(why).with_hint(hint))
}

fn doubt(directory: &Path, name: &str) -> String {
    let shown = text::path(directory);
    match name {
        MACHINE => format!("`{shown}` is on a local disk: it does not lock out other hosts"),
        _ => format!(
            "`{shown}` is on {name}, whose mount does not tell whether it locks out other hosts"
        ),
    }
}

/// An older program left an empty marker, which does not count for NFS.
fn is_declared(directory: &Path, name: &str) -> bool {
    let marker = fs::read_to_string(directory.join(MARKER));
    marker
        .is_ok_and(|text| text.lines().any(|line| line == name) || text.is_empty() && name != "nfs")
}

/// Records the user's confirmation: a directory of this machine is right, or one locks out other
/// hosts. The marker is in the shared directory, so the file server's confirmation does not count
/// for its clients, which see another kind of file system.
pub fn declare(directory: &Path) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| trouble(directory, error);
    let FlockScope::Declared(name) = scope(&File::open(directory).map_err(cannot)?) else {
        return Ok(());
    };
    tracing::warn!("{}; it is used as told", doubt(directory, &name));
    if is_declared(directory, &name) {
        return Ok(());
    }
    let marker = File::options().create(true).append(true).open(directory.join(MARKER));
    marker.and_then(|mut marker| writeln!(marker, "{name}")).map_err(cannot)
}

fn scope(file: &File) -> FlockScope {
    if is_local(file) {
        return FlockScope::Declared(MACHINE.to_owned());
    }
    let kind = fstatfs(file).map_or(0, |file_system| file_system.f_type);
    as_mounted(kind, mount(file).as_ref().map(|(name, options)| (name.as_str(), options.as_str())))
}

/// The scope on a kind of file system, given the name and the options of its mount.
fn as_mounted(kind: FsWord, mount: Option<(&str, &str)>) -> FlockScope {
    let Some((name, options)) = mount else {
        return FlockScope::Unknown(format!("type {kind:#x}, mounted out of sight"));
    };
    match (kind, options.split(',').find(|option| LOCAL_FLOCKS.contains(option))) {
        (_, Some(option)) => FlockScope::Unknown(format!("{name}, mounted with `{option}`")),
        (CEPH, _) => FlockScope::Hosts,
        (NFS_SUPER_MAGIC, _) if name == "nfs4" => FlockScope::Hosts,
        (NFS_SUPER_MAGIC | GFS2 | OCFS2, _) => FlockScope::Declared(name.to_owned()),
        _ => FlockScope::Unknown(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::NFS_SUPER_MAGIC;

    use super::{CEPH, FlockScope, GFS2, LOCAL_FLOCKS, OCFS2, as_mounted};

    #[test]
    fn a_mount_that_keeps_flocks_to_itself_is_never_taken_for_a_shared_one() {
        let declared = |name: &str| FlockScope::Declared(name.to_owned());
        for (kind, name, options, scope) in [
            (NFS_SUPER_MAGIC, "nfs4", "rw,vers=4.2,local_lock=none", FlockScope::Hosts),
            (CEPH, "ceph", "rw", FlockScope::Hosts),
            (NFS_SUPER_MAGIC, "nfs", "rw,vers=3,local_lock=none", declared("nfs")),
            (GFS2, "gfs2", "rw", declared("gfs2")),
            (OCFS2, "ocfs2", "rw,heartbeat=local", declared("ocfs2")),
            (0x6573_5546, "fuse.sshfs", "rw", FlockScope::Unknown("fuse.sshfs".to_owned())),
        ] {
            assert_eq!(as_mounted(kind, Some((name, options))), scope, "{name}");
            assert!(matches!(as_mounted(kind, None), FlockScope::Unknown(_)));
            for option in LOCAL_FLOCKS {
                let scope = as_mounted(kind, Some((name, &format!("rw,{option},addr=192.0.2.1"))));
                assert!(matches!(scope, FlockScope::Unknown(_)), "{name} {option}: {scope:?}");
            }
        }
    }
}
