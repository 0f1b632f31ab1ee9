//! Which hosts see the flocks of a file: some file systems grant a flock to every host at once.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use super::{on_one_machine, opened, trouble};
use crate::store::failure::Failure;
use crate::sys::filesystem::{is_local, mount};
use crate::sys::text;

/// A mount with one of these keeps flocks on its host.
pub const LOCAL_FLOCKS: [&str; 5] =
    ["nolock", "local_lock=all", "local_lock=flock", "localflocks", "lockproto=lock_nolock"];

/// The file that confirms that a directory is right: a line for each kind of file system.
const MARKER: &str = ".serializer-shared";

/// The marker's line for a directory of one machine.
const MACHINE: &str = "machine";

/// Fails if registers cannot be kept on the file system of `file`. Returns whether record locks are
/// needed beside flocks: a file server takes record locks for the flocks of its clients.
pub fn check(directory: &Path, file: &File) -> Result<bool, Failure> {
    match line(file)? {
        None => Ok(false),
        // NFS takes record locks for flocks, too: a file cannot have both.
        Some(line) if is_declared(directory, &line) => Ok(line != "nfs"),
        Some(line) => {
            let hint = "mount the file system that the hosts share (NFS with `vers=4.2`); or, if \
                        this directory is right (containers, the file server itself, a cluster's \
                        file system), run `serializer initialize`";
            let hint = hint.to_owned() + on_one_machine(directory);
            Err(Failure::refused(doubt(directory, &line), hint))
        }
    }
}

fn doubt(directory: &Path, line: &str) -> String {
    let shown = text::path(directory);
    match line {
        MACHINE => format!("`{shown}` is on a local disk: it does not lock out other hosts"),
        _ => format!(
            "`{shown}` is on {line}, and its mount does not tell whether it locks out other hosts"
        ),
    }
}

fn is_declared(directory: &Path, line: &str) -> bool {
    let marker = fs::read_to_string(directory.join(MARKER));
    marker.is_ok_and(|text| text.lines().any(|one| one == line))
}

/// Records the user's confirmation: a directory of this machine is right, or one locks out other
/// hosts. The marker is in the shared directory, so the file server's confirmation does not count
/// for its clients, which see another kind of file system.
pub fn declare(directory: &Path) -> Result<(), Failure> {
    let Some(line) = line(&opened(directory)?)? else { return Ok(()) };
    tracing::warn!("{}; it is used as told", doubt(directory, &line));
    if is_declared(directory, &line) {
        return Ok(());
    }
    let marker = File::options().create(true).append(true).open(directory.join(MARKER));
    marker.and_then(|mut marker| writeln!(marker, "{line}")).map_err(trouble)
}

/// The line that the marker must have; `None` where all hosts see a flock, and a host that has lost
/// one can no longer write. Fails where flocks are this host's alone, or nothing is known of them.
fn line(file: &File) -> Result<Option<String>, Failure> {
    if is_local(file) {
        return Ok(Some(MACHINE.to_owned()));
    }
    let (name, options) = mount(file).unwrap_or(("mounted out of sight".to_owned(), String::new()));
    as_mounted(&name, &options)
}

/// The same for a file system that is not local, by the name and the options of its mount.
pub fn as_mounted(name: &str, options: &str) -> Result<Option<String>, Failure> {
    let what = match (name, options.split(',').find(|option| LOCAL_FLOCKS.contains(option))) {
        (_, Some(option)) => format!("{name}, mounted with `{option}`"),
        ("ceph" | "nfs4", _) => return Ok(None),
        // Unclear from the mount; or a flock may outlive its host (NFS before version 4).
        ("nfs" | "gfs2" | "ocfs2", _) => return Ok(Some(name.to_owned())),
        _ => name.to_owned(),
    };
    let hint = "NFS mounted without `nolock` and `local_lock` does; or name a store, such as \
                `postgres://…`";
    let why = format!("flocks on its file system ({what}) are not known to lock out other hosts");
    Err(Failure::refused(why, hint))
}
