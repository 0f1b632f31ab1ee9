//! What kind of file system is this? Some grant a flock to every host at once; some are seen by one machine only.

use std::fs::{self, File};

use rustix::fs::{FsWord, NFS_SUPER_MAGIC, fstat, fstatfs, major, minor};

/// `FUSE_SUPER_MAGIC` of `linux/magic.h`.
const FUSE_SUPER_MAGIC: FsWord = 0x6573_5546;

/// File systems of one machine alone, `linux/magic.h` and their own sources: ext2 to ext4, XFS, Btrfs, F2FS, bcachefs, ZFS, tmpfs, and
/// overlayfs, whose writable part may not be a network's.
const LOCAL: [FsWord; 8] = [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0xCA45_1A4E, 0x2FC1_2FC1, 0x0102_1994, 0x794C_7630];

/// File systems of many machines that pass flocks on, and show what was written before one was given up to whoever gets it next,
/// as their makers say: CephFS, GFS2, OCFS2. NFS does unless its mount says otherwise.
const SHARED: [FsWord; 3] = [0x00C3_6400, 0x0116_1970, 0x7461_636F];

/// Whether the file is certainly seen by this machine alone.
pub fn is_local(file: &File) -> bool {
    fstatfs(file).is_ok_and(|file_system| LOCAL.contains(&file_system.f_type))
}

/// The name of the file's file system if it is known to keep flocks to itself: sshfs, and NFS mounted with `nolock` or
/// `local_lock`.
pub fn with_faked_flock(file: &File) -> Option<String> {
    // All others are local, or pass flocks on; the list of mounts is long on some machines.
    if ![FUSE_SUPER_MAGIC, NFS_SUPER_MAGIC].contains(&fstatfs(file).ok()?.f_type) {
        return None;
    }
    let device = fstat(file).ok()?.st_dev;
    faked(&fs::read_to_string("/proc/self/mountinfo").ok()?, &format!("{}:{}", major(device), minor(device)))
}

/// Whether all who see the file also see its flocks.
///
/// # Errors
/// The name of its file system, if that is not known.
pub fn check_shared(file: &File) -> Result<(), String> {
    let unknown = |_| "of an unknown kind".to_owned();
    let kind = fstatfs(file).map_err(unknown)?.f_type;
    if LOCAL.contains(&kind) || SHARED.contains(&kind) {
        return Ok(());
    }
    let device = fstat(file).map_err(unknown)?.st_dev;
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let device = format!("{}:{}", major(device), minor(device));
    match (kind == NFS_SUPER_MAGIC, mounted(&mountinfo, &device)) {
        (true, Some(_)) if faked(&mountinfo, &device).is_none() => Ok(()),
        (_, Some((name, _))) => Err(name.to_owned()),
        (_, None) => Err(format!("type {kind:#x}")),
    }
}

/// Looks a device up in the text of `/proc/self/mountinfo`, see proc(5): name and options of its file system.
fn mounted<'a>(mountinfo: &'a str, device: &str) -> Option<(&'a str, &'a str)> {
    let line = mountinfo.lines().find(|line| line.split(' ').nth(2) == Some(device))?;
    let (_, file_system) = line.split_once(" - ")?;
    let mut fields = file_system.split(' ');
    Some((fields.next()?, fields.nth(1).unwrap_or("")))
}

/// The name of a device's file system, if it keeps flocks to itself.
fn faked(mountinfo: &str, device: &str) -> Option<String> {
    let (name, options) = mounted(mountinfo, device)?;
    let keeps_locks = |option| matches!(option, "nolock" | "local_lock=all" | "local_lock=flock");
    let is_faked = name == "fuse.sshfs" || name.starts_with("nfs") && options.split(',').any(keeps_locks);
    is_faked.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::faked;

    #[test]
    fn file_systems_that_keep_flocks_to_themselves_are_known() {
        let mountinfo = "\
25 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
90 25 0:45 / /mnt/a rw,nosuid shared:40 - fuse.sshfs me@host:/dir rw,user_id=0
91 25 0:46 / /mnt/b rw shared:41 master:2 - nfs4 host:/dir rw,vers=4.2,local_lock=none
92 25 0:47 / /mnt/c rw - nfs host:/dir rw,vers=3,nolock,local_lock=all
93 25 0:48 / /mnt/d rw - fuse.gocryptfs /x rw
";
        assert_eq!(faked(mountinfo, "0:45").as_deref(), Some("fuse.sshfs"));
        assert_eq!(faked(mountinfo, "0:47").as_deref(), Some("nfs"));
        for device in ["254:0", "0:46", "0:48", "9:9"] {
            assert_eq!(faked(mountinfo, device), None, "{device}");
        }
    }
}
