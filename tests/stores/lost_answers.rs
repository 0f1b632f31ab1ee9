//! Networks that lose a request to a store, or its answer: the requester finds out whether it was
//! done, and does it once.

use std::fs;
use std::process::Command;
use std::sync::Once;
use std::thread;
use std::time::Duration;

use crate::support::faults::{end, proxied, start, until_renewed};
use crate::support::proxy::Proxy;
use crate::support::servers::shared_mariadb;
use crate::support::stores::{Kind, Store, of_each};
use crate::support::{Shell, ended, rounds, until};
use serializer::sys::random::random_token;

/// Does not end while a test runs.
const LONG: Duration = Duration::from_secs(600);

/// Renewed every two seconds.
const RENEWED: Duration = Duration::from_secs(6);

/// What is sent, in the order of [`Store::markers`].
#[derive(Clone, Copy, Debug)]
pub enum Marker {
    Read,
    Insert,
    Update,
}

use Marker::{Insert, Read, Update};

impl Marker {
    pub fn of(self, store: &Store) -> &'static [u8] {
        store.markers()[self as usize]
    }
}

/// The request that grants a fresh lock: a bucket's object is made and tried out before.
fn granting(store: &Store) -> &'static [u8] {
    if !store.is_bucket() {
        return Insert.of(store);
    }
    assert_eq!(store.run(&["run", "true"]).code, 0);
    Update.of(store)
}

/// What is lost.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    /// The statement does not arrive.
    Statement,
    /// It was done, without an answer.
    Answer,
}

impl Loss {
    pub const BOTH: [Self; 2] = [Self::Statement, Self::Answer];

    pub fn at(self, proxy: &Proxy, marker: &[u8]) {
        match self {
            Self::Statement => proxy.cut_before(marker),
            Self::Answer => proxy.swallow_answer_then_cut(marker),
        }
    }
}

/// A fresh lock, in a store where tables are made.
fn store(kind: Kind, lease: Duration) -> Store {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        Store::over_networks(LONG)
            .iter()
            .for_each(|store| assert_eq!(store.run(&["run", "true"]).code, 0))
    });
    Store::of(kind, lease)
}

fn holders(store: &Store) -> Vec<u64> {
    let report = store.report();
    let holders = report["holders"].as_array().expect("a list").iter();
    holders.map(|holder| holder["pid"].as_u64().expect("a PID")).collect()
}

/// What the owner is told in full, which must be that it has the lock, and had not before.
fn locks(owner: &mut Shell, args: &str) {
    owner.send(&format!(r#""$S" lock {args} 2>&1"#));
    has_locked(owner);
}

fn has_locked(owner: &mut Shell) {
    let (code, said) = owner.answer();
    let last = said.lines().last().unwrap_or_default();
    assert!(
        code == 0 && last.starts_with("serializer: locked `") && !last.contains("taken over"),
        "{code} {said}"
    );
}

fn unlocks(owner: &mut Shell) {
    let (code, said) = owner.output(r#""$S" unlock 2>&1"#);
    assert!(code == 0 && said.starts_with("serializer: unlocked `"), "{code} {said}");
}

fn fifo(store: &Store) -> std::path::PathBuf {
    let go = store.locks.dir().join("go");
    assert_eq!(ended(Command::new("mkfifo").arg(&go)).code, 0);
    go
}

of_each! { over_networks:
a_process_that_loses_a_statement_or_its_answer_while_it_locks_has_the_lock_once,
a_process_that_has_one_attempt_needs_no_more_because_of_a_lost_answer,
a_process_that_loses_a_statement_or_its_answer_while_it_unlocks_has_unlocked,
a_command_runs_once_whatever_is_lost_before_and_behind_it,
a_lease_is_renewed_whatever_is_lost_of_a_renewal,
a_process_that_was_granted_a_slot_in_silence_has_it_although_another_has_come_since,
a_command_that_was_granted_a_slot_in_silence_runs_once_although_another_has_come_since,
a_process_that_was_granted_a_lock_in_silence_that_was_taken_away_since_has_to_wait,
a_process_that_has_unlocked_in_silence_is_not_told_that_it_was_another_s_because_that_has_come_since,
a_process_that_takes_a_lock_away_in_silence_takes_it_from_no_process_that_has_come_since,
no_count_is_lost_over_a_network_that_breaks_again_and_again,
an_owner_that_has_unlocked_in_silence_is_not_taken_for_one_that_has_lost_its_lock,
=> Postgres, MariaDb, DynamoDb, S3, Azure }

fn a_process_that_loses_a_statement_or_its_answer_while_it_locks_has_the_lock_once(kind: Kind) {
    for loss in Loss::BOTH {
        let store = store(kind, LONG);
        let (proxy, through) = proxied(&store);
        // The first round finds no row; later rounds find one.
        for marker in [Insert, Update, Read] {
            let mut owner = through.shell();
            loss.at(&proxy, marker.of(&store));
            locks(&mut owner, "");
            proxy.wait_until_hit();
            assert_eq!(holders(&store), [u64::from(owner.pid())], "{loss:?} {}", store.url);
            assert_eq!(store.holder("lease_renewals").as_u64(), Some(0));
            assert_eq!(store.run(&["lock", "-n"]).code, 75);
            owner.unlock();
            assert_eq!(store.state(), "free");
        }
    }
}

fn a_process_that_has_one_attempt_needs_no_more_because_of_a_lost_answer(kind: Kind) {
    for loss in Loss::BOTH {
        let store = store(kind, LONG);
        let (proxy, through) = proxied(&store);
        let mut owner = through.shell();
        loss.at(&proxy, Insert.of(&store));
        locks(&mut owner, "-n");
        proxy.wait_until_hit();
        unlocks(&mut owner);
    }
}

fn a_process_that_loses_a_statement_or_its_answer_while_it_unlocks_has_unlocked(kind: Kind) {
    for loss in Loss::BOTH {
        let store = store(kind, LONG);
        let (proxy, through) = proxied(&store);
        for marker in [Update, Read] {
            let mut owner = through.shell();
            owner.lock();
            loss.at(&proxy, marker.of(&store));
            unlocks(&mut owner);
            proxy.wait_until_hit();
            assert_eq!(store.state(), "free", "{loss:?} {}", store.url);
        }
    }
}

fn a_command_runs_once_whatever_is_lost_before_and_behind_it(kind: Kind) {
    for loss in Loss::BOTH {
        for marker in [Read, Insert, Update] {
            let store = store(kind, LONG);
            let (proxy, through) = proxied(&store);
            loss.at(&proxy, marker.of(&store));
            let ran = through.run(&["run", "sh", "-c", "echo ran; exit 3"]);
            proxy.wait_until_hit();
            assert_eq!(
                (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
                (3, "ran\n", ""),
                "{loss:?} {}",
                store.url
            );
            assert_eq!(store.state(), "free");
        }
    }
}

fn a_lease_is_renewed_whatever_is_lost_of_a_renewal(kind: Kind) {
    for loss in Loss::BOTH {
        let store = store(kind, RENEWED);
        let (proxy, through) = proxied(&store);
        let mut owner = through.shell();
        owner.lock();
        loss.at(&proxy, Update.of(&store));
        proxy.wait_until_hit();
        until_renewed(&store);
        assert_eq!(holders(&store), [u64::from(owner.pid())]);
        unlocks(&mut owner);

        let go = fifo(&through);
        let child = start(&through, &["run", "sh", "-c", "read -r line < go; echo $line"]);
        until("it does not run", || store.state() == "held");
        loss.at(&proxy, Update.of(&store));
        proxy.wait_until_hit();
        until_renewed(&store);
        fs::write(&go, "done\n").expect("it is read");
        let ran = end(child);
        assert_eq!(
            (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
            (0, "done\n", ""),
            "{loss:?} {}",
            store.url
        );
    }
}

/// Returns when the lost write has been done, while its sender does not know that yet.
fn until_done_in_silence(proxy: &Proxy, store: &Store, state: &str) {
    proxy.wait_until_hit();
    until("it is not done", || store.state() == state);
}

fn a_process_that_was_granted_a_slot_in_silence_has_it_although_another_has_come_since(kind: Kind) {
    let store = store(kind, RENEWED);
    let (proxy, through) = proxied(&store);
    let (mut owner, mut other) = (through.shell(), store.shell());
    proxy.swallow_answers_from(granting(&store));
    owner.send(r#""$S" lock --slots 2 2>&1"#);
    until_done_in_silence(&proxy, &store, "held");
    assert_eq!(other.run(r#""$S" lock --slots 2 2> /dev/null"#), 0);
    proxy.mend();
    has_locked(&mut owner);
    let pids = [&owner, &other].map(|shell| u64::from(shell.pid()));
    assert!(
        holders(&store).len() == 2 && pids.iter().all(|pid| holders(&store).contains(pid)),
        "{}",
        store.url
    );
    // No entry of another process is left.
    other.unlock();
    until_renewed(&store);
    unlocks(&mut owner);
    assert_eq!(store.state(), "free");
}

fn a_command_that_was_granted_a_slot_in_silence_runs_once_although_another_has_come_since(
    kind: Kind,
) {
    let store = store(kind, LONG);
    let (proxy, through) = proxied(&store);
    let mut other = store.shell();
    proxy.swallow_answers_from(granting(&store));
    let child = start(&through, &["run", "--slots", "2", "echo", "ran"]);
    until_done_in_silence(&proxy, &store, "held");
    assert_eq!(other.run(r#""$S" lock --slots 2 2> /dev/null"#), 0);
    proxy.mend();
    let ran = end(child);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "ran\n"), "{} {ran:?}", store.url);
    assert_eq!(holders(&store), [u64::from(other.pid())]);
    other.unlock();
}

fn a_process_that_was_granted_a_lock_in_silence_that_was_taken_away_since_has_to_wait(kind: Kind) {
    let store = store(kind, LONG);
    let (proxy, through) = proxied(&store);
    let (mut owner, mut other) = (through.shell(), store.shell());
    proxy.swallow_answers_from(granting(&store));
    owner.send(r#""$S" lock 2>&1"#);
    until_done_in_silence(&proxy, &store, "held");
    assert_eq!(store.run(&["unlock", "--force"]).code, 0);
    other.lock();
    proxy.mend();
    // It has had no answer to its first question yet, which it asks again; then it has to wait.
    assert_eq!(store.run(&["lock", "-n"]).code, 75);
    assert_eq!(holders(&store), [u64::from(other.pid())]);
    other.unlock();
    has_locked(&mut owner);
    unlocks(&mut owner);
}

fn a_process_that_has_unlocked_in_silence_is_not_told_that_it_was_another_s_because_that_has_come_since(
    kind: Kind,
) {
    let store = store(kind, LONG);
    let (proxy, through) = proxied(&store);
    let (mut owner, mut other) = (through.shell(), store.shell());
    owner.lock();
    proxy.swallow_answers_from(Update.of(&store));
    owner.send(r#""$S" unlock 2>&1"#);
    until_done_in_silence(&proxy, &store, "free");
    other.lock();
    proxy.mend();
    let (code, said) = owner.answer();
    assert!(code == 0 && said.starts_with("serializer: unlocked `"), "{} {code} {said}", store.url);
    assert_eq!(holders(&store), [u64::from(other.pid())]);
    other.unlock();

    // Nor is the end of a command taken for a loss.
    let go = fifo(&through);
    let child = start(&through, &["run", "sh", "-c", "read -r line < go"]);
    until("it does not run", || store.state() == "held");
    proxy.swallow_answers_from(Update.of(&store));
    fs::write(&go, "done\n").expect("it is read");
    until_done_in_silence(&proxy, &store, "free");
    other.lock();
    proxy.mend();
    let ran = end(child);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", store.url);
    other.unlock();
}

fn a_process_that_takes_a_lock_away_in_silence_takes_it_from_no_process_that_has_come_since(
    kind: Kind,
) {
    let store = store(kind, LONG);
    let (proxy, through) = proxied(&store);
    let (mut owner, mut other) = (store.shell(), store.shell());
    owner.lock();
    proxy.swallow_answers_from(Update.of(&store));
    let child = start(&through, &["unlock", "--force"]);
    until_done_in_silence(&proxy, &store, "free");
    other.lock();
    proxy.mend();
    let forced = end(child);
    assert!(
        forced.code == 0 && forced.stderr.contains(&format!("pid {} ", owner.pid())),
        "{} {forced:?}",
        store.url
    );
    assert_eq!(holders(&store), [u64::from(other.pid())]);
    other.unlock();
}

/// What a server answers that was cut off from its cluster while it committed: that there was an
/// error.
fn error_while_committing() -> Vec<u8> {
    let text = b"\xff\x9c\x04#HY000Error while committing";
    // A packet is its length, its number and itself.
    [&[u8::try_from(text.len()).expect("short"), 0, 0, 1], text.as_slice()].concat()
}

#[test]
fn a_process_that_is_told_wrongly_that_its_write_has_failed_has_the_lock_and_keeps_it() {
    let store =
        Store { lease: RENEWED.as_secs_f64().to_string(), ..Store::at(&shared_mariadb().url()) };
    assert_eq!(store.run(&["run", "true"]).code, 0);
    let (proxy, through) = proxied(&store);
    let (mut owner, mut other) = (through.shell(), store.shell());
    proxy.answer_wrongly_from(Update.of(&store), &error_while_committing());
    owner.send(r#""$S" lock 2>&1"#);
    until_done_in_silence(&proxy, &store, "held");
    proxy.mend();
    has_locked(&mut owner);
    until_renewed(&store);

    proxy.answer_wrongly_from(Update.of(&store), &error_while_committing());
    owner.send(r#""$S" unlock 2>&1"#);
    until_done_in_silence(&proxy, &store, "free");
    other.lock();
    proxy.mend();
    let (code, said) = owner.answer();
    assert!(code == 0 && said.starts_with("serializer: unlocked `"), "{code} {said}");
    assert_eq!(holders(&store), [u64::from(other.pid())]);
    other.unlock();
}

/// Something that goes wrong, chosen by a number.
fn disturb(proxy: &Proxy, store: &Store, chance: u8) {
    let marker = store.markers()[usize::from(chance / 4 % 3)];
    match chance % 4 {
        0 => proxy.cut(),
        1 => proxy.swallow_answers(),
        2 => proxy.cut_before(marker),
        _ => proxy.swallow_answer_then_cut(marker),
    }
    thread::sleep(Duration::from_millis(u64::from(chance) / 4));
    // What has a marker to wait for goes on with that.
    if chance % 4 < 2 {
        proxy.mend();
    }
    // In between it works for long enough to get something done: `unlock` does not try for ever.
    thread::sleep(Duration::from_millis(100));
}

fn no_count_is_lost_over_a_network_that_breaks_again_and_again(kind: Kind) {
    const WORKERS: usize = 4;
    let count = rounds(4);
    let store = store(kind, Duration::from_secs(60));
    let (proxy, through) = proxied(&store);
    fs::write(through.locks.dir().join("counter"), "0\n").expect("it can be written");
    let script = format!(
        r#"round='read -r n < counter; sleep 0.001; echo $((n + 1)) > counter'
           for i in {{1..{count}}}; do
               "$S" run --sleep-seconds 0.1 -- sh -c "$round" || exit
               "$S" lock --sleep-seconds 0.1 && eval "$round" && "$S" unlock || exit
           done"#
    );
    let script = || {
        let ended = through.script(&script);
        assert!(ended.code == 0 && !ended.stderr.contains("already"), "{ended:?}");
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(script)).collect();
        while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
            let chances = random_token().expect("random numbers");
            for chance in chances.as_bytes().chunks(2) {
                let chance = u8::from_str_radix(std::str::from_utf8(chance).expect("digits"), 16)
                    .expect("digits");
                disturb(&proxy, &store, chance);
            }
        }
    });
    let counted = fs::read_to_string(through.locks.dir().join("counter")).expect("it can be read");
    assert_eq!(counted.trim(), (2 * WORKERS * count).to_string(), "{}", store.url);
    assert_eq!(store.state(), "free");
}

fn an_owner_that_has_unlocked_in_silence_is_not_taken_for_one_that_has_lost_its_lock(kind: Kind) {
    let store = store(kind, LONG);
    let (proxy, through) = proxied(&store);
    let (mut owner, mut other) = (through.shell(), store.shell());
    assert_eq!(owner.run(r#""$S" lock --on-lost terminate 2> /dev/null"#), 0);
    let keeper = store.keeper();
    proxy.swallow_answers_from(Update.of(&store));
    owner.send(r#""$S" unlock 2>&1"#);
    until_done_in_silence(&proxy, &store, "free");
    other.lock();
    proxy.mend();
    assert_eq!(owner.answer().0, 0, "{}", store.url);
    until("its keeper goes on", || !std::path::Path::new(&format!("/proc/{keeper}")).exists());
    assert_eq!(owner.run("true"), 0);
    other.unlock();
}
