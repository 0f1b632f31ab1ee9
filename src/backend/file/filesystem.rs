//! What kind of file system is this? On some, a file cannot be exchanged for another; some are seen by one machine only.

use std::fs::{self, File};

use rustix::fs::{FsWord, NFS_SUPER_MAGIC, fstat, fstatfs, major, minor};

/// `FUSE_SUPER_MAGIC` of `linux/magic.h`.
const FUSE_SUPER_MAGIC: FsWord = 0x6573_5546;

/// File systems of one machine alone, `linux/magic.h` and their own sources: ext2 to ext4, XFS, Btrfs, F2FS, bcachefs, ZFS, tmpfs, and
/// overlayfs, whose writable part may not be a network's.
const LOCAL: [FsWord; 8] = [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0xCA45_1A4E, 0x2FC1_2FC1, 0x0102_1994, 0x794C_7630];

/// Whether the file is certainly seen by this machine alone.
pub fn is_local(file: &File) -> bool {
    fstatfs(file).is_ok_and(|file_system| LOCAL.contains(&file_system.f_type))
}

/// The name of the file's file system if a file there cannot be exchanged for another so that all hosts agree on it: NFS, where a host may
/// be told late, and where a file that is open is moved out of the way first, so that for a moment there is none; sshfs, which
/// keeps flocks to itself.
pub fn without_exchange(file: &File) -> Option<String> {
    // All others are local, or not known to do this; the list of mounts is long on some machines.
    let kind = fstatfs(file).ok()?.f_type;
    if ![FUSE_SUPER_MAGIC, NFS_SUPER_MAGIC].contains(&kind) {
        return None;
    }
    let name = mount(file).map(|(name, _)| name);
    (kind == NFS_SUPER_MAGIC || name.as_deref() == Some("fuse.sshfs")).then(|| name.unwrap_or_else(|| "nfs".to_owned()))
}

/// Name and options of the file's file system, as it is mounted.
pub fn mount(file: &File) -> Option<(String, String)> {
    let device = fstat(file).ok()?.st_dev;
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let (name, options) = mounted(&mountinfo, &format!("{}:{}", major(device), minor(device)))?;
    Some((name.to_owned(), options.to_owned()))
}

/// Looks a device up in the text of `/proc/self/mountinfo`, see proc(5): name and options of its file system.
pub fn mounted<'a>(mountinfo: &'a str, device: &str) -> Option<(&'a str, &'a str)> {
    let line = mountinfo.lines().find(|line| line.split(' ').nth(2) == Some(device))?;
    let (_, file_system) = line.split_once(" - ")?;
    let mut fields = file_system.split(' ');
    Some((fields.next()?, fields.nth(1).unwrap_or("")))
}

#[cfg(test)]
mod tests {
    use super::mounted;

    #[test]
    fn a_file_system_is_found_by_its_device() {
        let mountinfo = "\
25 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
90 25 0:45 / /mnt/a rw,nosuid shared:40 - fuse.sshfs me@host:/dir rw,user_id=0
91 25 0:46 / /mnt/b rw shared:41 master:2 - nfs4 host:/dir rw,vers=4.2,local_lock=none
93 25 0:48 / /mnt/d rw - fuse.gocryptfs /x
";
        assert_eq!(mounted(mountinfo, "0:45"), Some(("fuse.sshfs", "rw,user_id=0")));
        assert_eq!(mounted(mountinfo, "0:46"), Some(("nfs4", "rw,vers=4.2,local_lock=none")));
        assert_eq!(mounted(mountinfo, "254:0"), Some(("ext4", "rw,discard")));
        assert_eq!(mounted(mountinfo, "0:48"), Some(("fuse.gocryptfs", "")));
        assert_eq!(mounted(mountinfo, "9:9"), None);
    }
}
