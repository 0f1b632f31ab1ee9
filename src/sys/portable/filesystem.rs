//! Kinds of file systems of macOS: some are of one machine only. A file is exchanged on no other.

use std::fs::File;

use nix::sys::statfs::fstatfs;

/// File systems of one machine alone.
const LOCAL: [&str; 5] = ["apfs", "hfs", "tmpfs", "exfat", "msdos"];

fn kind(file: &File) -> Option<String> {
    fstatfs(file).ok().map(|found| found.filesystem_type_name().to_owned())
}

/// Whether the file is gone after a reboot.
pub fn is_in_memory(file: &File) -> bool {
    kind(file).is_some_and(|kind| kind == "tmpfs")
}

/// Whether the file is certainly seen by this machine alone.
pub fn is_local(file: &File) -> bool {
    kind(file).is_some_and(|kind| LOCAL.contains(&kind.as_str()))
}

/// The name of a file system on which hosts may not agree that a file was exchanged: all that are
/// not local.
pub fn without_exchange(file: &File) -> Option<String> {
    let kind = kind(file).unwrap_or_else(|| "of an unknown kind".to_owned());
    (!LOCAL.contains(&kind.as_str())).then_some(kind)
}

/// A name for the file's file system. Not the plain name: which flocks other hosts see is known of
/// Linux's alone.
pub fn mount(file: &File) -> Option<(String, String)> {
    Some((format!("{} of this system", kind(file)?), String::new()))
}
