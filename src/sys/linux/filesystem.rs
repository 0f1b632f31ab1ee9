//! Kinds of file systems: some are seen by one machine only, on some a file cannot be exchanged.

use std::fs::{self, File};

use rustix::fs::{FsWord, NFS_SUPER_MAGIC, fstat, fstatfs, major, minor};

/// `FUSE_SUPER_MAGIC` of `linux/magic.h`.
const FUSE_SUPER_MAGIC: FsWord = 0x6573_5546;

/// File systems of one machine alone, `linux/magic.h` and their own sources: ext2 to ext4, XFS,
/// Btrfs, F2FS, bcachefs, ZFS, tmpfs, and overlayfs; its writable part cannot be a network's.
const LOCAL: [FsWord; 8] =
    [0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0xCA451A4E, 0x2FC12FC1, 0x01021994, 0x794C7630];

/// `RAMFS_MAGIC` and `TMPFS_MAGIC` of `linux/magic.h`.
const IN_MEMORY: [FsWord; 2] = [0x8584_58F6, 0x0102_1994];

/// Whether the file is gone after a reboot.
pub fn is_in_memory(file: &File) -> bool {
    fstatfs(file).is_ok_and(|file_system| IN_MEMORY.contains(&file_system.f_type))
}

/// Whether the file is certainly seen by this machine alone.
pub fn is_local(file: &File) -> bool {
    fstatfs(file).is_ok_and(|file_system| LOCAL.contains(&file_system.f_type))
}

/// The name of a file system on which hosts do not agree that a file was exchanged: NFS may tell
/// late, and moves an open file away before another one gets its name; sshfs keeps flocks to
/// its host.
pub fn without_exchange(file: &File) -> Option<String> {
    let kind = fstatfs(file).ok()?.f_type;
    match kind {
        NFS_SUPER_MAGIC => Some(mount(file).map_or_else(|| "nfs".to_owned(), |(name, _)| name)),
        // The list of mounts is long on some machines.
        FUSE_SUPER_MAGIC => mount(file).map(|(name, _)| name).filter(|name| name == "fuse.sshfs"),
        _ => None,
    }
}

/// Name and options of the file's file system, from `/proc/self/mountinfo` (proc(5)).
pub fn mount(file: &File) -> Option<(String, String)> {
    let device = fstat(file).ok()?.st_dev;
    let device = format!("{}:{}", major(device), minor(device));
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mountinfo.lines().find(|line| line.split(' ').nth(2) == Some(&device))?;
    let mut fields = line.split_once(" - ")?.1.split(' ');
    Some((fields.next()?.to_owned(), fields.nth(1).unwrap_or("").to_owned()))
}
