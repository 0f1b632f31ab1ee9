//! Kinds of file systems of macOS. A file is replaced only on those of a single machine.

use std::fs::File;

use nix::sys::statfs::fstatfs;

const LOCAL: [&str; 5] = ["apfs", "hfs", "tmpfs", "exfat", "msdos"];

fn kind(file: &File) -> Option<String> {
    fstatfs(file).ok().map(|found| found.filesystem_type_name().to_owned())
}

pub fn is_in_memory(file: &File) -> bool {
    kind(file).is_some_and(|kind| kind == "tmpfs")
}

pub fn is_local(file: &File) -> bool {
    kind(file).is_some_and(|kind| LOCAL.contains(&kind.as_str()))
}

/// The name of a file system that hosts may share: any that is not local.
pub fn without_exchange(file: &File) -> Option<String> {
    let kind = kind(file).unwrap_or_else(|| "of an unknown kind".to_owned());
    (!LOCAL.contains(&kind.as_str())).then_some(kind)
}

/// A name that is not one of Linux's: only of those is it known whether other hosts see flocks.
pub fn mount(file: &File) -> Option<(String, String)> {
    Some((format!("{} of this system", kind(file)?), String::new()))
}
