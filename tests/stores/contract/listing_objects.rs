//! What DynamoDB and object stores list, and that they purge nothing.

use std::ffi::OsString;
use std::time::Duration;

use serializer::store::address::{StoreSettings, StoreUrl};
use serializer::store::seam::{Key, Kind, Next, State, Store, Write};
use serializer::store::{Cause, open_store};
use serializer::sys::random::random_token;

use crate::support::servers::buckets::{s3_url_at, shared_azure, shared_s3};
use crate::support::servers::emulators::shared_dynalite;

const KINDS: [Kind; 4] = [Kind::Lock, Kind::Once, Kind::Schedule, Kind::Session];

fn open(url: &str) -> Box<dyn Store> {
    let url = StoreUrl::parse(url).expect("an address");
    let settings = StoreSettings { url, password_file: None, timeout: Duration::from_secs(20) };
    open_store(&settings).unwrap_or_else(|failure| panic!("{}", failure.why))
}

/// With a place of its own in each store, in which there is nothing yet.
fn addresses() -> [String; 3] {
    let token = random_token().expect("random numbers");
    [
        shared_dynalite().url().replace("serializer-locks", &token),
        s3_url_at(shared_s3().address()).replace("meltano/state", &token),
        shared_azure().url().replace("meltano/state", &token),
    ]
}

fn key(kind: Kind, name: &str) -> Key {
    Key { kind, name: name.into() }
}

/// The state of a register; that of one that was never written where there is none.
fn state_of(store: &mut dyn Store, key: &Key) -> State {
    match store.get(key) {
        Ok(state) => state,
        Err(failure) if failure.cause == Cause::NotPrepared => State::default(),
        Err(failure) => panic!("{}", failure.why),
    }
}

/// Writes a register, whatever its state is, and returns the new one.
fn write(store: &mut dyn Store, key: &Key, value: Option<&str>) -> State {
    if state_of(store, key).version.is_none() {
        store.create_schema(key).unwrap_or_else(|failure| panic!("{}", failure.why));
    }
    let seen = state_of(store, key);
    let next = Next { number: seen.number + 7, value, keep: None };
    let written = store.put(key, &seen, &next).unwrap_or_else(|failure| panic!("{}", failure.why));
    assert_eq!(written, Write::Done);
    let now = state_of(store, key);
    assert_eq!((now.number, now.value.as_deref()), (next.number, value));
    now
}

fn names(store: &mut dyn Store, kind: Kind, after: Option<&str>) -> Vec<OsString> {
    let page = store
        .list(kind, after.map(str::as_ref))
        .unwrap_or_else(|failure| panic!("{}", failure.why));
    assert_eq!(page.next, None);
    page.entries.into_iter().map(|(name, _)| name).collect()
}

#[test]
fn registers_are_listed_by_kind_and_in_order_under_names_that_open_them() {
    for url in addresses() {
        let mut store = open(&url);
        let store = store.as_mut();
        let long = "long".repeat(100);
        let all = ["b", "a", "ä/b c", "once/a", long.as_str()];
        for kind in KINDS {
            for name in all {
                write(store, &key(kind, name), Some(name));
            }
            write(store, &key(kind, "released"), Some("x"));
            write(store, &key(kind, "released"), None);
        }
        for kind in KINDS {
            let page = store.list(kind, None).unwrap_or_else(|failure| panic!("{}", failure.why));
            let listed: Vec<_> = page.entries.iter().map(|(name, _)| name.clone()).collect();
            assert!(listed.is_sorted() && listed.len() == all.len() + 1, "{url}: {listed:?}");
            let mut values: Vec<_> =
                page.entries.iter().filter_map(|(_, state)| state.value.as_deref()).collect();
            let mut expected = all.to_vec();
            values.sort_unstable();
            expected.sort_unstable();
            assert_eq!(values, expected, "{url}");
            for (name, state) in &page.entries {
                assert_eq!(
                    state_of(store, &Key { kind, name: name.clone() }),
                    *state,
                    "{url}: {name:?}"
                );
            }
            let rest: Vec<_> =
                listed.iter().filter(|name| name.as_os_str() > "b").cloned().collect();
            assert_eq!(names(store, kind, Some("b")), rest, "{url}");
        }
    }
}

#[test]
fn what_the_store_itself_removes_is_not_purged() {
    for url in addresses() {
        let mut store = open(&url);
        let key = key(Kind::Once, "daily");
        let free = write(store.as_mut(), &key, None);
        let refused = store.purge(&key, &free).expect_err("a rule of the store removes it");
        assert!(
            store.expires() && refused.cause == Cause::Permanent && !refused.is_indefinite,
            "{url}: {refused:?}"
        );
        assert_eq!(state_of(store.as_mut(), &key), free, "{url}");
    }
}
