//! What every store promises of its registers: `list` and `purge`, which the policy of locks does
//! not need.

use std::ffi::{OsStr, OsString};

use serializer::store::seam::{Key, Kind, Next, State, Store, Write};
use serializer::sys::random::random_token;

use super::subject::Subject;

const KINDS: [Kind; 4] = [Kind::Lock, Kind::Once, Kind::Schedule, Kind::Session];

/// More than any number of pages in a test.
const MAX_PAGES: usize = 10_000;

fn get(store: &mut dyn Store, key: &Key) -> State {
    store.get(key).unwrap_or_else(|failure| panic!("{}", failure.why))
}

/// Writes over whatever is there, and returns the new state.
fn put(store: &mut dyn Store, key: &Key, value: Option<&str>) -> State {
    let seen = get(store, key);
    let next = Next { number: seen.number + 1, value, keep: None };
    let written = store.put(key, &seen, &next).unwrap_or_else(|failure| panic!("{}", failure.why));
    assert_eq!(written, Write::Done);
    get(store, key)
}

/// All registers of a kind with names that begin with `prefix`, which no other test uses.
fn listed(store: &mut dyn Store, kind: Kind, prefix: &str) -> Vec<(OsString, State)> {
    let (mut all, mut after) = (Vec::new(), None::<OsString>);
    for _ in 0..MAX_PAGES {
        let page =
            store.list(kind, after.as_deref()).unwrap_or_else(|failure| panic!("{}", failure.why));
        let is_ours = |name: &OsStr| name.to_str().is_some_and(|name| name.starts_with(prefix));
        all.extend(page.entries.into_iter().filter(|(name, _)| is_ours(name)));
        match page.next {
            Some(next) => after = Some(next),
            None => return all,
        }
    }
    panic!("the pages do not end");
}

fn is_same(one: &State, other: &State) -> bool {
    (one.number, &one.value) == (other.number, &other.value)
}

/// For a store with a schema.
pub fn registers_are_listed_by_kind_with_their_states(subject: &Subject) {
    let store = &mut *subject.store();
    let prefix = random_token().expect("random numbers");
    let names =
        ["a", "b", "released", "ä%_'\\"].map(|name| OsString::from(format!("{prefix}{name}")));
    for (kind, number) in KINDS.into_iter().zip(1..) {
        for name in &names {
            let key = Key { kind, name: name.clone() };
            put(store, &key, Some(&format!("{number}\n")));
            if name.to_str().is_some_and(|name| name.ends_with("released")) {
                put(store, &key, None);
            }
        }
    }
    for kind in KINDS {
        let mut listed = listed(store, kind, &prefix);
        listed.sort_by(|one, other| one.0.cmp(&other.0));
        let mut expected = names.to_vec();
        expected.sort();
        assert_eq!(
            listed.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(),
            expected,
            "{kind:?}"
        );
        for (name, state) in listed {
            let found = get(store, &Key { kind, name });
            assert!(is_same(&state, &found), "{state:?} is not {found:?}");
        }
    }
}

/// For a store with a schema.
pub fn a_listed_name_opens_its_register(subject: &Subject) {
    let store = &mut *subject.store();
    let prefix = random_token().expect("random numbers")[..20].to_owned();
    let long = format!("{prefix}{}", "x".repeat(500));
    for kind in KINDS {
        let key = Key { kind, name: long.clone().into() };
        let state = put(store, &key, Some("7\n"));
        let listed = listed(store, kind, &prefix);
        assert_eq!(listed.len(), 1, "{kind:?}: {listed:?}");
        assert!(is_same(&get(store, &Key { kind, name: listed[0].0.clone() }), &state), "{kind:?}");
    }
    // A lock with a name that looks like that of another kind is not one of those.
    for kind in [Kind::Once, Kind::Schedule, Kind::Session] {
        let name = format!("{prefix}{kind:?}").to_lowercase();
        let lookalike =
            Key::lock(OsStr::new(&format!("{}/{name}", format!("{kind:?}").to_lowercase())));
        put(store, &lookalike, Some("lock\n"));
        assert_eq!(get(store, &Key { kind, name: name.clone().into() }).version, None);
        assert!(listed(store, kind, &name).is_empty());
    }
}

/// For a store with a schema.
pub fn a_page_begins_after_a_name(subject: &Subject) {
    let store = &mut *subject.store();
    let prefix = random_token().expect("random numbers");
    let names = ["a", "b", "c"].map(|name| format!("{prefix}{name}"));
    for kind in KINDS {
        for name in &names {
            put(store, &Key { kind, name: name.into() }, Some("1\n"));
        }
        let page = store
            .list(kind, Some(OsStr::new(&names[0])))
            .unwrap_or_else(|failure| panic!("{}", failure.why));
        let found: Vec<_> = page.entries.iter().filter_map(|(name, _)| name.to_str()).collect();
        assert!(found.starts_with(&[&names[1], &names[2]]), "{kind:?}: {found:?}");
    }
}

/// For a store with a schema.
pub fn only_the_state_that_was_seen_is_purged(subject: &Subject) {
    let store = &mut *subject.store();
    let name = random_token().expect("random numbers");
    for kind in KINDS {
        let key = Key { kind, name: name.clone().into() };
        let old = put(store, &key, Some("1\n"));
        let new = put(store, &key, None);
        let purge = |store: &mut dyn Store, state: &State| {
            store.purge(&key, state).unwrap_or_else(|failure| panic!("{}", failure.why))
        };
        // The same number, and another value: as after a restored backup.
        let other = State { value: Some("2\n".to_owned()), ..new.clone() };
        assert_eq!([purge(store, &old), purge(store, &other)], [Write::Conflict; 2], "{kind:?}");
        assert!(is_same(&get(store, &key), &new));
        assert_eq!(purge(store, &new), Write::Done);
        let gone = get(store, &key);
        assert_eq!((gone.version, gone.number, gone.value), (None, 0, None), "{kind:?}");
        assert_eq!(purge(store, &new), Write::Conflict);
        assert!(listed(store, kind, &name).is_empty());
        // A name can be used again.
        put(store, &key, Some("3\n"));
    }
}
