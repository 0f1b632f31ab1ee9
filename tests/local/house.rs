//! The rooms of the source are its top modules: none depends on one that depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Adds what each room below `directory` depends on.
fn read(directory: &Path, room: Option<&str>, rooms: &mut BTreeMap<String, BTreeSet<String>>) {
    for entry in fs::read_dir(directory).expect("the source is here") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a plain name");
        let room = room.unwrap_or(name);
        if path.is_dir() {
            read(&path, Some(room), rooms);
            continue;
        }
        let text = fs::read_to_string(&path).expect("source text");
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let uses = rooms.entry(room.to_owned()).or_default();
        for rest in code.flat_map(|line| line.split("crate::").skip(1)) {
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
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), None, &mut rooms);
    // These two depend on all other rooms.
    assert!(rooms.remove("lib").is_some() && rooms.remove("main").is_some());
    assert!(rooms.len() > 10, "{rooms:?}");
    // Removes the lowest rooms, floor by floor.
    while let Some(lowest) = rooms.iter().find(|(_, uses)| uses.is_empty()) {
        let lowest = lowest.0.clone();
        rooms.remove(&lowest);
        rooms.values_mut().for_each(|uses| uses.retain(|used| *used != lowest));
    }
    assert!(rooms.is_empty(), "these depend on each other: {rooms:?}");
}
