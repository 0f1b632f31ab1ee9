//! Who sees the flocks of a file? Some file systems grant one to every host at once, as they always do or as they are mounted.

use std::fs::File;

use rustix::fs::{FsWord, NFS_SUPER_MAGIC, fstatfs};

use crate::backend::file::filesystem::{is_local, mount};

/// CephFS, GFS2 and OCFS2: `linux/magic.h` and their own sources. As their makers say, they pass flocks on, and show what was written before
/// one was given up to whoever gets it next. NFS does, too.
const CEPH: FsWord = 0x00C3_6400;
const GFS2: FsWord = 0x0116_1970;
const OCFS2: FsWord = 0x7461_636F;

/// Who sees the flocks of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// This machine, as far as is known: nobody else has the file, or others have it from here.
    Machine,
    /// All hosts, and whoever has lost one cannot write any more.
    Hosts,
    /// All hosts; but what was on its way when one was lost may be written all the same, and one whose host has died may stay: NFS
    /// before version 4.
    HostsUnfenced,
    /// All hosts or this one: this file system can do both, and its mount does not say which.
    Untold(String),
    /// This host alone, although others have the file; or nobody knows. With the file system's name, and what its mount says.
    Unknown(String),
}

/// Who sees the flocks of the file.
pub fn reach(file: &File) -> Reach {
    if is_local(file) {
        return Reach::Machine;
    }
    match fstatfs(file) {
        Ok(file_system) => {
            as_mounted(file_system.f_type, mount(file).as_ref().map(|(name, options)| (name.as_str(), options.as_str())))
        }
        Err(_) => Reach::Unknown("of an unknown kind".to_owned()),
    }
}

/// The same for a kind of file system, given its name and its options.
fn as_mounted(kind: FsWord, mount: Option<(&str, &str)>) -> Reach {
    let Some((name, options)) = mount else { return Reach::Unknown(format!("type {kind:#x}, mounted out of sight")) };
    let has = |wanted: &str| options.split(',').any(|option| option == wanted);
    let local: &[&str] = match kind {
        NFS_SUPER_MAGIC => &["nolock", "local_lock=all", "local_lock=flock"],
        GFS2 => &["localflocks", "lockproto=lock_nolock"],
        OCFS2 => &["localflocks"],
        _ => &[],
    };
    if let Some(option) = local.iter().find(|option| has(option)) {
        return Reach::Unknown(format!("{name}, mounted with `{option}`"));
    }
    match kind {
        NFS_SUPER_MAGIC if name == "nfs4" => Reach::Hosts,
        NFS_SUPER_MAGIC => Reach::HostsUnfenced,
        // Its servers keep all of them.
        CEPH => Reach::Hosts,
        GFS2 if has("lockproto=lock_dlm") => Reach::Hosts,
        // It goes by what stands on the disk if no option says otherwise.
        GFS2 => Reach::Untold(name.to_owned()),
        // Only a cluster has a heartbeat; one that another program manages has none in the kernel. But then, so it is mounted by
        // `nocluster`, which is not shown.
        OCFS2 if has("heartbeat=local") || has("heartbeat=global") => Reach::Hosts,
        OCFS2 if options.split(',').any(|option| option.starts_with("cluster_stack=")) => Reach::Untold(name.to_owned()),
        OCFS2 => Reach::Unknown(format!("{name}, mounted without a cluster")),
        _ => Reach::Unknown(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FsWord, NFS_SUPER_MAGIC};

    use super::{CEPH, GFS2, OCFS2, Reach, as_mounted};
    use crate::backend::file::filesystem::mounted;

    /// What a line of `/proc/self/mountinfo` says about a file system of a kind.
    fn reach(kind: FsWord, mounted_as: &str) -> Reach {
        let mountinfo = format!("25 1 254:0 / / rw - ext4 /dev/vda rw\n90 25 0:45 / /mnt rw,nosuid shared:40 - {mounted_as}\n");
        as_mounted(kind, mounted(&mountinfo, "0:45"))
    }

    /// Whether it is refused, and says why.
    fn is_refused(reach: &Reach, why: &str) -> bool {
        matches!(reach, Reach::Unknown(name) if name.contains(why))
    }

    #[test]
    fn nfs_reaches_all_hosts_unless_it_is_mounted_so_that_flocks_stay() {
        assert_eq!(reach(NFS_SUPER_MAGIC, "nfs4 host:/dir rw,vers=4.2,local_lock=none"), Reach::Hosts);
        assert_eq!(reach(NFS_SUPER_MAGIC, "nfs host:/dir rw,vers=3,local_lock=none"), Reach::HostsUnfenced);
        assert_eq!(reach(NFS_SUPER_MAGIC, "nfs host:/dir rw,vers=3,local_lock=posix"), Reach::HostsUnfenced);
        for option in ["nolock", "local_lock=all", "local_lock=flock"] {
            let mounted = reach(NFS_SUPER_MAGIC, &format!("nfs host:/dir rw,vers=3,{option},addr=192.0.2.1"));
            assert!(is_refused(&mounted, &format!("`{option}`")), "{mounted:?}");
        }
    }

    #[test]
    fn the_servers_of_cephfs_keep_all_flocks() {
        assert_eq!(reach(CEPH, "ceph 192.0.2.1:6789:/ rw,name=etl,secret=<hidden>,acl,recover_session=clean"), Reach::Hosts);
        let by_fuse = reach(0x6573_5546, "fuse.ceph-fuse ceph-fuse rw,user_id=0,allow_other");
        assert!(is_refused(&by_fuse, "fuse.ceph-fuse"), "{by_fuse:?}");
    }

    #[test]
    fn gfs2_reaches_all_hosts_only_if_its_mount_says_so() {
        assert_eq!(reach(GFS2, "gfs2 /dev/vdb rw,lockproto=lock_dlm,locktable=a:b"), Reach::Hosts);
        for options in ["rw", "rw,locktable=a:b,hostdata=jid=0", "rw,noatime,localfl0cks"] {
            assert_eq!(reach(GFS2, &format!("gfs2 /dev/vdb {options}")), Reach::Untold("gfs2".to_owned()), "{options}");
        }
        for options in ["rw,localflocks", "rw,lockproto=lock_dlm,locktable=a:b,localflocks,acl", "rw,lockproto=lock_nolock"] {
            let mounted = reach(GFS2, &format!("gfs2 /dev/vdb {options}"));
            assert!(is_refused(&mounted, "gfs2, mounted with `lo"), "{mounted:?}");
        }
    }

    #[test]
    fn ocfs2_reaches_all_hosts_only_if_it_has_a_heartbeat() {
        for heartbeat in ["local", "global"] {
            let options =
                format!("ocfs2 /dev/vdb rw,_netdev,heartbeat={heartbeat},data=ordered,cluster_stack=o2cb,coherency=full");
            assert_eq!(reach(OCFS2, &options), Reach::Hosts);
            // As the kernel writes it, with a comma too many.
            let local = reach(OCFS2, &format!("{options},localflocks,,acl"));
            assert!(is_refused(&local, "`localflocks`"), "{local:?}");
        }
        let managed = "ocfs2 /dev/vdb rw,heartbeat=none,data=ordered,cluster_stack=pcmk,coherency=full";
        assert_eq!(reach(OCFS2, managed), Reach::Untold("ocfs2".to_owned()));
        for options in ["rw,heartbeat=none,data=ordered", "rw,data=ordered"] {
            let mounted = reach(OCFS2, &format!("ocfs2 /dev/vdb {options}"));
            assert!(is_refused(&mounted, "without a cluster"), "{mounted:?}");
        }
    }

    #[test]
    fn what_is_not_known_or_not_seen_is_refused() {
        for kind in [NFS_SUPER_MAGIC, CEPH, GFS2, OCFS2, 0x6573_5546] {
            assert!(is_refused(&as_mounted(kind, None), "out of sight"));
        }
        for name in ["fuse.sshfs me@host:/dir rw,user_id=0", "9p host rw,trans=virtio", "virtiofs host rw", "cifs //host/dir rw"]
        {
            let mounted = reach(0x6573_5546, name);
            assert!(is_refused(&mounted, name.split(' ').next().expect("a name")), "{mounted:?}");
        }
    }
}
