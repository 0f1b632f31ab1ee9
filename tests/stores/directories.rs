//! Locks in a directory that hosts share: settings, refusals, and what a crash leaves behind. That
//! hosts exclude each other there is shown by `nfs.rs`, on NFS.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::stores::Store;
use crate::support::{self, Ended, Locks, Shell, ended};

/// A directory that is shared because a lease is named.
fn shared(locks: &Locks, args: &[&str]) -> Ended {
    ended(locks.serializer(args).env("SERIALIZER_LEASE_SECONDS", "60"))
}

/// A directory that is meant to be shared.
fn locks() -> Locks {
    let locks = Locks::new();
    locks.is_shared();
    locks
}

#[test]
fn a_directory_and_a_lease_are_a_store() {
    let locks = locks();
    let script = r#""$S" lock && "$S" status && "$S" unlock"#;
    let locked =
        ended(locks.command("bash").env("SERIALIZER_LEASE_SECONDS", "60").args(["-c", script]));
    assert_eq!(locked.code, 0, "{locked:?}");
    assert!(locked.stderr.contains("unlocked `serializer.lck`"), "{locked:?}");
    assert!(
        locked.stdout.starts_with(&format!("file://{}\n", locks.dir().display())),
        "{locked:?}"
    );
    assert!(locked.stdout.contains("\nserializer.lck  held"), "{locked:?}");
    assert!(locks.read().starts_with("serializer-lock 1 "), "{}", locks.read());
    // By its address, it is the same one.
    let store = format!("file://{}", locks.dir().display());
    let number = |ended: Ended| ended.stdout.trim().parse::<u64>().expect("a number");
    let print = ["run", "--", "sh", "-c", "echo $SERIALIZER_FENCING_TOKEN"];
    let first = number(shared(&locks, &print));
    let second = number(ended(
        locks.serializer(&print).env_remove("SERIALIZER_DIR").env("SERIALIZER_STORE", store),
    ));
    let file = locks.file().display().to_string();
    let named = [&["run", "--file-name", &file][..], &print[1..]].concat();
    let third = number(shared(&locks, &named));
    let fourth = number(ended(
        locks
            .serializer(&named)
            .env_remove("SERIALIZER_DIR")
            .env("SERIALIZER_STORE", "file:///tmp"),
    ));
    assert!(third < fourth, "{third} {fourth}");
    let fifth = number(ended(
        locks.serializer(&named).env_remove("SERIALIZER_DIR").env("SERIALIZER_LEASE_SECONDS", "60"),
    ));
    assert!(fourth < fifth, "{fourth} {fifth}");
    assert!(first < second && second < third, "{first} {second} {third}");
}

#[test]
fn a_command_that_ignores_sigpipe_has_its_fencing_token_once_and_the_rest_of_the_environment() {
    let locks = locks();
    let script = r#"export X=x SERIALIZER_FENCING_TOKEN=old; trap '' PIPE; "$S" run -- env"#;
    let ended =
        ended(locks.command("bash").env("SERIALIZER_LEASE_SECONDS", "60").args(["-c", script]));
    let of = |name: &str| {
        ended.stdout.lines().filter_map(|line| line.strip_prefix(name)).collect::<Vec<_>>()
    };
    assert_eq!(of("X="), ["x"], "{ended:?}");
    assert!(
        matches!(of("SERIALIZER_FENCING_TOKEN=")[..], [token] if token.parse::<u64>().is_ok()),
        "{ended:?}"
    );
}

#[test]
fn without_a_directory_a_lease_makes_no_store_and_a_flag_does() {
    let locks = locks();
    let mut plain = locks.serializer(&["describe"]);
    assert_eq!(
        ended(plain.env_remove("SERIALIZER_DIR").env("SERIALIZER_LEASE_SECONDS", "60")).code,
        0
    );
    let name = locks.file().display().to_string();
    let status = ["status", "--json", "--file-name", &name];
    let ended_as = |lease: &str| {
        ended(
            locks
                .serializer(&status)
                .env_remove("SERIALIZER_DIR")
                .env("SERIALIZER_LEASE_SECONDS", lease),
        )
    };
    let marked = ended_as("60");
    assert!(marked.stdout.contains("file://"), "an absolute name names a directory: {marked:?}");
    let dir = locks.dir().display().to_string();
    let flags = ended(
        locks
            .serializer(&[&status[..], &["--dir", &dir, "--lease-seconds", "9"]].concat())
            .env_remove("SERIALIZER_DIR"),
    );
    assert!(flags.stdout.contains("file://"), "{flags:?}");
}

#[test]
fn a_lock_file_of_one_machine_and_one_that_hosts_share_are_not_taken_for_each_other() {
    let locks = locks();
    let script = r#""$S" lock && ( "$S" lock -n; export SERIALIZER_LEASE_SECONDS=60; "$S" lock -n ); echo $?; "$S" unlock"#;
    let mixed = locks.script(script);
    assert_eq!((mixed.code, mixed.stdout.as_str()), (0, "1\n"), "{mixed:?}");
    assert!(mixed.stderr.contains("it is not a lock that hosts share"), "{mixed:?}");
    assert_eq!(shared(&locks, &["run", "true"]).code, 0);
    let before = fs::read(locks.file()).expect("it stays");
    for command in [&["lock", "-n"][..], &["unlock", "--force"], &["status"], &["run", "true"]] {
        let refused = locks.run(command);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(
            refused.stderr.contains("a lock that hosts share, under leases")
                && refused.stderr.contains("SERIALIZER_LEASE_SECONDS"),
            "{refused:?}"
        );
    }
    assert_eq!(fs::read(locks.file()).expect("it stays"), before);
}

#[test]
fn what_cannot_be_used_is_refused_with_the_reason_and_left_alone() {
    let locks = locks();
    let dir = locks.dir();
    fs::write(dir.join("other"), "something else\n").expect("written");
    fs::write(dir.join("newer"), "serializer-lock 2 x\n").expect("written");
    // A held one that was cut off since.
    let mut holders = Vec::new();
    for (name, length) in [("cut-off", 1000), ("emptied", 0)] {
        let mut command = locks.command("bash");
        command.env("SERIALIZER_LEASE_SECONDS", "60");
        let mut shell = Shell::start_with(command);
        assert_eq!(shell.run(&format!(r#""$S" lock --file-name {name}"#)), 0);
        let file = fs::File::options().write(true).open(dir.join(name)).expect("it is there");
        file.set_len(length).expect("cut off");
        file.set_modified(std::time::UNIX_EPOCH).expect("its time");
        holders.push(shell);
    }
    fs::create_dir(dir.join("directory")).expect("made");
    symlink("other", dir.join("link")).expect("made");
    for (name, why) in [
        ("other", "it is not a lock that hosts share"),
        ("newer", "a newer version of this program has written it"),
        ("cut-off", "or is damaged"),
        ("emptied", "or is damaged"),
        ("directory", "directory"),
        ("link", "it is a symbolic link"),
    ] {
        for command in ["lock", "run", "status"] {
            let args = [command, "--file-name", name, "-n", "true"];
            let refused = shared(
                &locks,
                if command == "run" {
                    &args
                } else if command == "lock" {
                    &args[..4]
                } else {
                    &args[..3]
                },
            );
            assert_eq!(refused.code, 1, "{refused:?}");
            assert!(refused.last_line().contains(why), "{refused:?}");
        }
    }
    assert_eq!(fs::read_to_string(dir.join("other")).expect("it is there"), "something else\n");
    for (store, why, code) in [
        ("file:///nowhere/at/all", "directory `/nowhere/at/all` does not exist", 1),
        ("file:///sys/kernel", "(sysfs) are not known to lock out other hosts", 1),
        ("file://relative", "its address has no absolute path", 2),
        ("file:///tmp?x=1", "the address of a directory has no options", 2),
        (
            "file:///tmp?nfs=3",
            "the address of a directory has no options (hint: instead of `nfs=3`, run",
            2,
        ),
    ] {
        for command in [&["lock", "-n"][..], &["initialize"], &["run", "true"]] {
            // One that is there, because nothing is made in the file systems of the kernel.
            let name = if store.contains("sys") { "notes" } else { "x" };
            let refused = ended(
                locks
                    .command(support::PROGRAM)
                    .env("SERIALIZER_STORE", store)
                    .env("SERIALIZER_FILE_NAME", name)
                    .env_remove("SERIALIZER_DIR")
                    .args(command),
            );
            if command[0] == "initialize" && name == "notes" {
                continue;
            }
            assert!(!refused.stderr.contains(".probe"), "{refused:?}");
            assert_eq!(refused.code, code, "{refused:?}");
            assert!(refused.last_line().contains(why), "{refused:?}");
        }
    }
}

#[test]
fn what_needs_a_clock_is_refused() {
    for mut store in [Store::in_a_directory()] {
        store.lease = "60".to_owned();
        for command in
            [&["run", "--hold-at-least", "1m", "true"][..], &["lock", "--hold-at-least", "1m"]]
        {
            let refused = store.run(command);
            assert_eq!(refused.code, 2, "{refused:?}");
            assert!(refused.stderr.contains("has no clock"), "{refused:?}");
        }
        assert_eq!(store.state(), "free");
    }
}

#[test]
fn a_process_that_gives_up_at_once_is_told_how_to_see_whether_a_lease_goes_on() {
    let store = Store::in_a_directory();
    let mut holder = store.shell();
    holder.lock();
    let keeper = store.keeper();
    assert_eq!(holder.run(&format!("kill -KILL {keeper}")), 0);
    support::until("it is not killed", || !Path::new(&format!("/proc/{keeper}")).exists());
    holder.reap();
    let busy = store.run(&["lock", "-n"]);
    assert_eq!(busy.code, 75, "{busy:?}");
    assert!(busy.stderr.contains("--timeout 605s"), "{busy:?}");
}

#[test]
fn all_locks_of_a_directory_are_listed_and_nothing_else() {
    let locks = locks();
    fs::write(locks.dir().join("other"), "something else\n").expect("written");
    let script = r#"export SERIALIZER_LEASE_SECONDS=60; for name in "a b" é .c d%; do "$S" lock --file-name "$name" || exit 9; done
        "$S" run --file-name free true; "$S" status --all --json; for name in "a b" é .c d%; do "$S" unlock --file-name "$name"; done"#;
    let listed = locks.script(script);
    assert_eq!(listed.code, 0, "{listed:?}");
    let report: serde_json::Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let names = report["locks"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|lock| lock["name"].as_str().expect("a name"));
    assert_eq!(names.collect::<Vec<_>>(), [".c", "a b", "d%", "é"]);
    assert_eq!(report["locks"][0]["store"], format!("file://{}", locks.dir().display()));
}

/// `status --all --json`: each lock's name and state, and how it ended.
fn listed(store: &Store) -> (Vec<(String, String)>, Ended) {
    let ended = store.run(&["status", "--all", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let locks = report["locks"].as_array().expect("a list").iter();
    (locks.map(|lock| (text(&lock["name"]), text(&lock["state"]))).collect(), ended)
}

#[test]
fn a_lock_with_a_name_too_long_for_a_file_is_listed_as_what_it_is_and_named_so() {
    let store = Store::in_a_directory();
    let mut holder = store.shell();
    let long = format!(".{}", "é%".repeat(150));
    assert_eq!(holder.run(&format!(r#""$S" lock --file-name '{long}' 2> /dev/null"#)), 0);
    // This name is unfit for typing, too.
    assert_eq!(holder.run(r#""$S" lock --file-name $'\xff' 2> /dev/null"#), 0);
    let (locks, ended) = listed(&store);
    let states: Vec<_> = locks.iter().map(|(_, state)| state.as_str()).collect();
    assert_eq!(states, ["held", "held"], "{ended:?}");
    let name = locks.iter().find_map(|(name, _)| name.strip_prefix("2E")).expect("the long one");
    assert_eq!(holder.run(&format!(r#""$S" unlock --file-name '2E{name}' 2> /dev/null"#)), 0);
    assert_eq!(holder.run(&format!(r#""$S" unlock --file-name '{long}' 2> /dev/null"#)), 1);
}

/// A file that is kept flocked, until this is dropped.
fn flocked(path: &Path) -> fs::File {
    let file = fs::File::open(path).expect("it is there");
    fs4::FileExt::lock(&file).expect("nobody else has it");
    file
}

#[test]
fn locks_are_listed_although_others_keep_files_locked() {
    let store = Store { lease: "3".to_owned(), ..Store::in_a_directory() };
    let mut holder = store.shell();
    for name in ["a", "b", "c"] {
        assert_eq!(holder.run(&format!(r#""$S" lock --file-name {name} 2> /dev/null"#)), 0);
    }
    let dir = store.locks.dir();
    fs::write(dir.join("other"), "something else\n").expect("written");
    fs::write(dir.join("empty"), "").expect("written");
    let _others = ["other", "empty"].map(|name| flocked(&dir.join(name)));
    // What is none of ours is not even asked for.
    let trace =
        r#"strace -f -qq -o trace -e trace=flock -y "$S" status --all > /dev/null; cat trace"#;
    let trace = store.script(trace).stdout;
    assert!(
        trace.contains("/a>") && !trace.contains("/other>") && !trace.contains("/empty>"),
        "{trace}"
    );
    let busy = flocked(&dir.join("b"));
    let (locks, ended) = listed(&store);
    let expected = [("a", "held"), ("b", "error"), ("c", "held")];
    assert_eq!(
        locks,
        expected.map(|(name, state)| (name.to_owned(), state.to_owned())),
        "{ended:?}"
    );
    assert!(
        ended.code == 1 && ended.stderr.contains("another process keeps it locked"),
        "{ended:?}"
    );
    drop(busy);
    let (locks, ended) = listed(&store);
    assert_eq!((locks.len(), ended.code), (3, 0), "{ended:?}");
    for name in ["a", "b", "c"] {
        assert_eq!(holder.run(&format!(r#""$S" unlock --file-name {name} 2> /dev/null"#)), 0);
    }
    assert_eq!(listed(&store).0, []);
}

#[test]
fn a_crash_at_any_moment_leaves_a_lock_that_others_get() {
    let store = Store { lease: "1".to_owned(), ..Store::in_a_directory() };
    assert_eq!(store.run(&["run", "true"]).code, 0);
    let file = store.locks.dir().join(&store.name);
    for command in [r#"$TRACE "$S" lock -n"#, r#""$S" lock -n && $TRACE "$S" unlock"#] {
        for call in ["flock", "pread64", "pwrite64", "fdatasync", "openat"] {
            let mut killed = 0;
            for when in 1..=3 {
                // Only what is done to the lock's file.
                let trace = format!(
                    "strace -D -f -qq -o /dev/null -P {} -e trace={call} -e \
                     inject={call}:signal=KILL:when={when}",
                    file.display()
                );
                let ended =
                    store.script(&format!("{}; exit $?", command.replace("$TRACE", &trace)));
                assert!([0, 137].contains(&ended.code), "{call} {when} of `{command}`: {ended:?}");
                killed += i32::from(ended.code == 137);
                let next = store.run(&["run", "--timeout", "30s", "true"]);
                assert_eq!(next.code, 0, "{call} {when} of `{command}`: {next:?}");
                assert_eq!(store.state(), "free", "{call} {when} of `{command}`");
            }
            assert!(killed > 0, "{call} of `{command}`");
        }
    }
}

#[test]
fn a_file_server_that_fails_grants_nothing_and_says_what_is_not_known() {
    let store = Store { lease: "60".to_owned(), ..Store::in_a_directory() };
    assert_eq!(store.run(&["run", "true"]).code, 0);
    let file = store.locks.dir().join(&store.name);
    // What is there already is written and synced again first.
    for (call, error, when, is_known) in [
        ("fdatasync", "EIO", "1+", true),
        ("fdatasync", "EIO", "2+", false),
        ("pwrite64", "ENOSPC", "1+", true),
        ("pwrite64", "ENOSPC", "2+", false),
        ("flock", "ENOLCK", "1+", true),
        ("openat", "EACCES", "1+", true),
    ] {
        let failing = format!(
            "strace -D -f -qq -o /dev/null -P {} -e trace={call} -e \
             inject={call}:error={error}:when={when}",
            file.display()
        );
        let failed = store.script(&format!(r#"{failing} "$S" run -n -- echo ran"#));
        assert_eq!((failed.code, failed.stdout.as_str()), (1, ""), "{call} {when}: {failed:?}");
        assert_eq!(
            failed.stderr.contains("the write may or may not have happened"),
            !is_known,
            "{call} {when}: {failed:?}"
        );
        let is_free = store.state() == "free";
        assert_eq!(is_free, is_known || call == "pwrite64", "{call} {when}");
        assert_eq!(store.run(&["unlock", "--force"]).code, i32::from(is_free));
    }
}

#[test]
fn a_directory_of_one_machine_is_used_once_a_user_has_said_that_it_is_meant() {
    let locks = Locks::new();
    for command in [&["lock", "-n"][..], &["run", "true"], &["status"], &["status", "--all"]] {
        let refused = shared(&locks, command);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(
            refused.stderr.contains("is on a local disk: it does not lock out other hosts")
                && refused.stderr.contains("mount"),
            "{refused:?}"
        );
    }
    assert_eq!(locks.names(), Vec::<String>::new());
    assert_eq!(shared(&locks, &["initialize"]).code, 0);
    assert_eq!(shared(&locks, &["run", "true"]).code, 0);
}

#[test]
fn a_process_that_takes_the_address_of_meltano_s_states_on_one_machine_is_told_what_to_do() {
    let locks = Locks::new();
    let states = locks.dir().join("project/.meltano/state");
    let store = format!("file://{}", states.display());
    let lock = || {
        ended(
            locks
                .serializer(&["lock", "-n"])
                .env_remove("SERIALIZER_DIR")
                .env("SERIALIZER_STORE", &store),
        )
    };
    for why in ["does not exist", "is on a local disk: it does not lock out other hosts"] {
        let refused = lock();
        assert_eq!(refused.code, 1, "{refused:?}");
        let advice =
            "for Meltano on one machine, leave the store out, and set `SERIALIZER_DIR=.meltano`";
        assert!(refused.stderr.contains(why) && refused.stderr.contains(advice), "{refused:?}");
        fs::create_dir_all(&states).expect("made");
    }
    assert_eq!(fs::read_dir(&states).expect("it is there").count(), 0);
    let elsewhere = shared(&locks, &["lock", "-n"]);
    assert!(!elsewhere.stderr.contains("Meltano"), "{elsewhere:?}");
}

/// What a file server holds in the name of a client of NFS.
const RECORD_LOCK: &str = "import fcntl, sys\nfile = open(sys.argv[1], 'r+')\nfcntl.lockf(file, \
                           fcntl.LOCK_EX)\nprint('held', flush=True)\nsys.stdin.read()";

#[test]
fn a_process_that_uses_the_directory_on_the_file_server_itself_waits_for_its_clients() {
    let store = Store { lease: "6".to_owned(), ..Store::in_a_directory() };
    assert_eq!(store.run(&["run", "true"]).code, 0);
    let file = store.locks.dir().join(&store.name).display().to_string();
    let mut client = Command::new("python3");
    let mut client = client
        .args(["-c", RECORD_LOCK, &file])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 runs");
    assert_eq!(support::first_line(&mut client), "held");
    let refused = store.run(&["run", "-n", "true"]);
    assert!(
        refused.code == 1 && refused.stderr.contains("another process keeps it locked"),
        "{refused:?}"
    );
    drop(client.stdin.take());
    assert!(client.wait().expect("it ends").success());
    assert_eq!(store.run(&["run", "-n", "true"]).code, 0);
}
