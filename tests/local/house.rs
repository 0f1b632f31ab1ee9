//! The rooms of the source are its top modules, and the modules of `command`: their dependencies
//! have no circles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

type Rooms = BTreeMap<String, BTreeSet<String>>;

/// Adds the dependencies of each room below `directory`. The first of `begins` precedes names of
/// rooms everywhere, the others only in a room's own file.
fn read(directory: &Path, room: Option<&str>, begins: &[&str], rooms: &mut Rooms) {
    for entry in fs::read_dir(directory).expect("the source is here") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a plain name");
        let room = room.unwrap_or(name);
        if path.is_dir() {
            read(&path, Some(room), &begins[..1], rooms);
            continue;
        }
        let text = fs::read_to_string(&path).expect("source text");
        assert!(!text.contains("[test]"), "{}: tests here are not run", path.display());
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let uses = rooms.entry(room.to_owned()).or_default();
        let parts = |begin| code.clone().flat_map(move |line| line.split(begin).skip(1));
        for rest in begins.iter().copied().flat_map(parts) {
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let used = rest.split(|c| !is_part(c)).next().unwrap_or_default();
            assert!(!used.is_empty(), "{}: one import a line: {rest}", path.display());
            uses.insert(used.to_owned());
        }
        uses.remove(room);
    }
}

#[test]
fn no_room_of_the_source_depends_on_one_that_depends_on_it() {
    let mut rooms = BTreeMap::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), None, &["crate::"], &mut rooms);
    // These two depend on all other rooms.
    assert!(rooms.remove("lib").is_some() && rooms.remove("main").is_some());
    has_floors(rooms);
}

#[test]
fn no_room_of_the_commands_depends_on_one_that_depends_on_it() {
    let mut rooms = BTreeMap::new();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/command");
    read(&directory, None, &["crate::command::", "super::"], &mut rooms);
    has_floors(rooms);
}

fn has_floors(mut rooms: Rooms) {
    assert!(rooms.len() > 10, "{rooms:?}");
    let is_room = |used: &String| rooms.contains_key(used);
    assert!(rooms.values().flatten().all(is_room), "what rooms share is a room, too: {rooms:?}");
    // Removes the lowest rooms, floor by floor.
    while let Some(lowest) = rooms.iter().find(|(_, uses)| uses.is_empty()) {
        let lowest = lowest.0.clone();
        rooms.remove(&lowest);
        rooms.values_mut().for_each(|uses| uses.retain(|used| *used != lowest));
    }
    assert!(rooms.is_empty(), "these depend on each other: {rooms:?}");
}
