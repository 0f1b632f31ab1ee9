//! The files of a directory that hosts share: their names, and which state they are in after a
//! crash at any byte of a write.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use serializer::record::MAX_BYTES;
use serializer::store::address::{StoreSettings, StoreUrl};
use serializer::store::directory::scope::{LOCAL_FLOCKS, as_mounted};
use serializer::store::open_store;
use serializer::store::seam::{Key, Kind, Next, State, Store, Write};

use crate::support::{Locks, until};

struct Directory {
    locks: Locks,
    store: Box<dyn Store>,
}

impl Directory {
    fn new() -> Self {
        let locks = Locks::new();
        locks.is_shared();
        let url = StoreUrl::of_directory(locks.dir());
        // A process that another test starts has all open files, with their flocks, for a moment.
        let timeout = Duration::from_secs(30);
        let settings = StoreSettings { url, password_file: None, timeout };
        Self { store: open_store(&settings).expect("a directory"), locks }
    }

    fn put(&mut self, key: &Key, number: u64, value: Option<&str>) {
        let before = self.store.get(key).expect("readable");
        let put = self.store.put(key, &before, &Next { number, value, keep: None });
        assert_eq!(put.expect("written"), Write::Done);
    }

    fn file(&self) -> PathBuf {
        self.locks.dir().join("a")
    }

    /// What is read of a file with this content, or why it is refused.
    fn of(&mut self, content: &[u8]) -> Result<State, String> {
        fs::write(self.file(), content).expect("written");
        self.store.get(&Key::lock(OsStr::new("a"))).map_err(|failure| failure.why)
    }

    /// Those of a register before its first write, and after each.
    fn contents(&mut self, values: &[Option<&str>]) -> Vec<Vec<u8>> {
        let key = Key::lock(OsStr::new("a"));
        let mut number = 6;
        let write = |value: &Option<&str>| {
            number += 1;
            self.put(&key, number, *value);
            fs::read(self.file()).expect("readable")
        };
        values.iter().map(write).collect()
    }
}

#[test]
fn each_register_has_a_file_of_its_own_that_leads_back_to_it() {
    let mut directory = Directory::new();
    let long = "é%".repeat(150);
    let dots = [b'.'; 300];
    let names: [&[u8]; 18] = [
        b"a",
        b"A",
        b".a",
        b"once/a",
        b"once%2Fa",
        b"",
        b".",
        b"..",
        b"../a",
        b"a/b",
        b"a%2Fb",
        b"a~b",
        b"\xff",
        b"\n",
        "dbt run é".as_bytes(),
        &dots,
        long.as_bytes(),
        &long.as_bytes()[3..],
    ];
    let kinds = [Kind::Lock, Kind::Once, Kind::Schedule, Kind::Session];
    let all = kinds.iter().flat_map(|kind| names.map(|name| (*kind, OsStr::from_bytes(name))));
    for (at, (kind, name)) in all.clone().enumerate() {
        directory.put(&Key { kind, name: name.to_owned() }, 7, Some(&at.to_string()));
    }
    // Other programs' files: registers would be called otherwise.
    for file in ["%41", "%2e", "a%2fb", "%", "%zz"] {
        fs::copy(directory.file(), directory.locks.dir().join(file)).expect("copied");
    }
    for kind in kinds {
        let page = directory.store.list(kind, None).expect("listed");
        assert_eq!(page.entries.len(), names.len(), "{kind:?}: {page:?}");
        let mut found = HashSet::new();
        for (listed, state) in page.entries {
            let read = directory.store.get(&Key { kind, name: listed.clone() }).expect("readable");
            let at: usize = read.value.as_deref().expect("a value").parse().expect("a number");
            // A list does not wait for a flock: such a register is listed without its state.
            let listed_later = |store: &mut Box<dyn Store>| {
                let page = store.list(kind, None).expect("listed");
                page.entries.into_iter().any(|(name, state)| name == listed && state == read)
            };
            if state != read {
                until("it is listed with its state", || listed_later(&mut directory.store));
            }
            let (_, name) = all.clone().nth(at).expect("one of these");
            assert!(found.insert(at), "{listed:?}");
            // A name that is too long for a file is listed as a shorter one, for the same register.
            let is_short = name.len() > 150
                || name.is_empty()
                || kind == Kind::Lock && Kind::is_reserved(name);
            assert!(is_short || listed == name, "{listed:?} {name:?}");
        }
    }
    // Usual names stay what they are.
    for name in ["a", "dbt run é", "a~b"] {
        assert!(directory.locks.dir().join(name).exists(), "{name}");
    }
}

#[test]
fn what_was_written_halfway_was_never_written() {
    let mut directory = Directory::new();
    let (long, full) = ("0123456789".repeat(1000), "x".repeat(MAX_BYTES));
    let values =
        [Some("old"), None, Some(&*full), Some(""), Some(&*long), Some("short"), Some("é")];
    let contents = directory.contents(&values);
    for (at, pair) in contents.windows(2).enumerate() {
        let (before, after) = (&pair[0], &pair[1]);
        let value = |content: &[u8], directory: &mut Directory| {
            directory.of(content).expect("a state").value
        };
        assert_eq!(value(before, &mut directory).as_deref(), values[at]);
        assert_eq!(value(after, &mut directory).as_deref(), values[at + 1]);
        let differs = |at: &usize| before[*at] != after[*at];
        let first = (0..before.len()).find(differs).expect("another state");
        let last = (0..before.len()).rfind(differs).expect("another state");
        let steps = [1, 2, 3, 30, 60, 90, 100, 110, 200, 4095, 4096, 5000].map(|step| first + step);
        for end in steps.into_iter().filter(|end| *end <= last).chain([last]) {
            let half = [&after[..end], &before[end..]].concat();
            assert_eq!(value(&half, &mut directory).as_deref(), values[at], "{at}: {end}");
        }
    }
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_damaged_and_not_free() {
    let mut directory = Directory::new();
    for whole in directory.contents(&[Some("held"), None, Some("held"), Some("again")]) {
        let second = whole.len() / 2;
        for length in
            [0, 1, 100, 500, second - 1, second, second + 1, second + 100, whole.len() - 1]
        {
            let why = directory.of(&whole[..length]).expect_err("it is damaged");
            assert!(why.contains("is damaged"), "{length}: {why}");
        }
    }
}

#[test]
fn what_others_have_written_is_left_alone() {
    let mut directory = Directory::new();
    for (text, why) in [
        ("4121\n2026-11-22 08:00:00\nv=1\n", "not a lock that hosts share, or is damaged"),
        ("hello", "not a lock that hosts share, or is damaged"),
        ("serialized", "not a lock that hosts share, or is damaged"),
        ("serializer-lock 2 x\n", "newer"),
    ] {
        let found = directory.of(text.as_bytes());
        assert!(found.as_ref().is_err_and(|found| found.contains(why)), "{text}: {found:?}");
        // Nor is it listed as a lock.
        let listed = directory.store.list(Kind::Lock, None).expect("listed").entries;
        assert_eq!(listed.is_empty(), why != "newer", "{listed:?}");
        assert_eq!(fs::read(directory.file()).expect("readable"), text.as_bytes());
    }
}

#[test]
fn a_mount_that_keeps_flocks_to_itself_is_never_taken_for_a_shared_one() {
    let line = |name, options: &str| as_mounted(name, options).map_err(|failure| failure.why);
    for (name, options, expected) in [
        ("nfs4", "rw,vers=4.2,local_lock=none", Some(None)),
        ("ceph", "rw", Some(None)),
        ("nfs", "rw,vers=3,local_lock=none", Some(Some("nfs"))),
        ("gfs2", "rw", Some(Some("gfs2"))),
        ("ocfs2", "rw,heartbeat=local", Some(Some("ocfs2"))),
        ("fuse.sshfs", "rw", None),
    ] {
        let found = line(name, options);
        assert_eq!(found.as_ref().ok().map(Option::as_deref), expected, "{found:?}");
        for option in LOCAL_FLOCKS {
            let refused = line(name, &format!("rw,{option},addr=192.0.2.1"));
            assert!(refused.is_err_and(|why| why.contains(option)), "{name} {option}");
        }
    }
}
