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

/// The name of the file's file system if a file there cannot be exchanged for another so that all hosts agree on it: NFS, where a host may
/// be told late, and where a file that is open is moved out of the way first, so that for a moment there is none; sshfs, which
/// keeps flocks to itself.
pub fn without_exchange(file: &File) -> Option<String> {
    // All others are local, or not known to do this; the list of mounts is long on some machines.
    let kind = fstatfs(file).ok()?.f_type;
    if ![FUSE_SUPER_MAGIC, NFS_SUPER_MAGIC].contains(&kind) {
        return None;
    }
    let name = name_of(file);
    (kind == NFS_SUPER_MAGIC || name.as_deref() == Some("fuse.sshfs")).then(|| name.unwrap_or_else(|| "nfs".to_owned()))
}

fn name_of(file: &File) -> Option<String> {
    let device = fstat(file).ok()?.st_dev;
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounted(&mountinfo, &format!("{}:{}", major(device), minor(device))).map(|(name, _)| name.to_owned())
}

/// Who sees the flocks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// This machine, as far as is known: nobody else has the file, or others have it from here.
    Machine,
    /// All hosts, and whoever has lost one cannot write any more.
    Hosts,
    /// All hosts; but what was on its way when one was lost may be written all the same, and one whose host has died may stay: NFS
    /// before version 4.
    HostsUnfenced,
    /// Nobody knows.
    Unknown,
}

/// Who sees the flocks of the file, and the name of its file system.
pub fn reach(file: &File) -> (Reach, String) {
    let Ok(kind) = fstatfs(file).map(|file_system| file_system.f_type) else {
        return (Reach::Unknown, "of an unknown kind".to_owned());
    };
    if LOCAL.contains(&kind) {
        return (Reach::Machine, String::new());
    }
    if SHARED.contains(&kind) {
        return (Reach::Hosts, String::new());
    }
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let device = fstat(file).map(|stat| format!("{}:{}", major(stat.st_dev), minor(stat.st_dev))).unwrap_or_default();
    match mounted(&mountinfo, &device) {
        Some((name, options)) if kind == NFS_SUPER_MAGIC && !keeps_locks(options) => {
            (if name == "nfs4" { Reach::Hosts } else { Reach::HostsUnfenced }, name.to_owned())
        }
        Some((name, _)) => (Reach::Unknown, name.to_owned()),
        None => (Reach::Unknown, format!("type {kind:#x}")),
    }
}

/// Looks a device up in the text of `/proc/self/mountinfo`, see proc(5): name and options of its file system.
fn mounted<'a>(mountinfo: &'a str, device: &str) -> Option<(&'a str, &'a str)> {
    let line = mountinfo.lines().find(|line| line.split(' ').nth(2) == Some(device))?;
    let (_, file_system) = line.split_once(" - ")?;
    let mut fields = file_system.split(' ');
    Some((fields.next()?, fields.nth(1).unwrap_or("")))
}

/// Whether an NFS mount with these options keeps flocks to its host.
fn keeps_locks(options: &str) -> bool {
    options.split(',').any(|option| matches!(option, "nolock" | "local_lock=all" | "local_lock=flock"))
}

#[cfg(test)]
mod tests {
    use super::{keeps_locks, mounted};

    #[test]
    fn mounts_that_keep_flocks_to_themselves_are_known() {
        let mountinfo = "\
25 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
90 25 0:45 / /mnt/a rw,nosuid shared:40 - fuse.sshfs me@host:/dir rw,user_id=0
91 25 0:46 / /mnt/b rw shared:41 master:2 - nfs4 host:/dir rw,vers=4.2,local_lock=none
92 25 0:47 / /mnt/c rw - nfs host:/dir rw,vers=3,nolock,local_lock=all
93 25 0:48 / /mnt/d rw - fuse.gocryptfs /x rw
";
        let keeps = |device| mounted(mountinfo, device).map(|(name, options)| (name, keeps_locks(options)));
        assert_eq!(keeps("0:45"), Some(("fuse.sshfs", false)));
        assert_eq!(keeps("0:46"), Some(("nfs4", false)));
        assert_eq!(keeps("0:47"), Some(("nfs", true)));
        assert_eq!(keeps("254:0"), Some(("ext4", false)));
        assert_eq!(keeps("9:9"), None);
    }
}
