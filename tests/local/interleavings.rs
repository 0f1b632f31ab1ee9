//! A command is stopped between two of its system calls, and other commands run in between.
//! Requires strace.

use std::fs;
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{Locks, OrdinaryUser, Shell, Waiter, ended, unshared_shell};
use serializer::lock::register::{self, Register};
use serializer::store;

/// A command of a shell that is stopped (SIGSTOP) when it has made its first system call `call`.
struct Stopped {
    shell: Shell,
    trace: PathBuf,
    pid: String,
}

impl Stopped {
    fn start(locks: &Locks, call: &str, command: &str) -> Self {
        Self::start_with(locks, call, &format!("-e inject={call}:signal=STOP:when=1"), command)
    }

    /// `inject`: what strace is to do.
    fn start_with(locks: &Locks, call: &str, inject: &str, command: &str) -> Self {
        let mut shell = Shell::start(locks);
        let trace = locks.dir().join("trace");
        // `-D`: not strace is the parent. `-q` leaves the line that tells that it has ended.
        shell.send(&format!(
            r#"strace -D -q -o {} -e trace={call} {inject} "$S" {command} 2> /dev/null"#,
            trace.display()
        ));
        let stopped = Self { shell, trace, pid: String::new() };
        stopped.until_traced("stopped by SIGSTOP");
        let children = Command::new("pgrep")
            .args(["-P", &stopped.shell.pid().to_string(), "-x", "serializer"])
            .output();
        let pid = String::from_utf8(children.expect("pgrep runs").stdout)
            .expect("a number")
            .trim()
            .to_owned();
        Self { pid, ..stopped }
    }

    fn until_traced(&self, what: &str) {
        let limit = Instant::now() + Duration::from_secs(60);
        while !fs::read_to_string(&self.trace).is_ok_and(|trace| trace.contains(what)) {
            assert!(Instant::now() < limit, "{what}");
            std::thread::yield_now();
        }
    }

    fn go_on(&self) {
        assert!(
            Command::new("kill").args(["-CONT", &self.pid]).status().expect("kill runs").success()
        );
    }
}

/// Returns when a new record is at the path.
fn until_ours(path: &Path) {
    while !fs::read_to_string(path).is_ok_and(|text| text.contains("v=1")) {
        std::thread::yield_now();
    }
}

/// The record of a killed holder with a PID that is free again; no lock is left.
fn record_of_a_dead_holder(locks: &Locks) -> String {
    let mut holder = Shell::start(locks);
    holder.lock();
    holder.reap();
    let record = locks.read();
    fs::remove_file(locks.file()).expect("it is there");
    record
}

/// What the Python plugin leaves of such a holder.
fn legacy_record_of_a_dead_holder(locks: &Locks) -> String {
    record_of_a_dead_holder(locks).lines().take(2).map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_python_plugin_that_writes_in_the_middle_of_a_takeover_keeps_the_lock() {
    for stale in [record_of_a_dead_holder, legacy_record_of_a_dead_holder] {
        let locks = Locks::new();
        locks.write(stale(&locks));
        let mut taker = Stopped::start(&locks, "pwrite64", "lock --max-attempts 1");
        // What the plugin does after its look: it truncates the file and writes its owner's PID,
        // which is this test's.
        let owner = std::process::id().to_string();
        locks.write(&owner);
        taker.go_on();
        assert_eq!(taker.shell.answer().0, 75, "the taker yields");
        assert_eq!(locks.read(), owner, "the plugin's record stands");
    }
}

#[test]
fn a_lock_in_the_middle_of_an_unlock_does_not_count_on_what_is_removed() {
    let locks = Locks::new();
    locks.write(legacy_record_of_a_dead_holder(&locks));
    let mut unlock = Stopped::start(&locks, "pwrite64", "unlock");
    unlock.go_on();
    until_ours(&locks.file());
    // The same owner locks while its unlock still settles.
    let owner = unlock.shell.pid().to_string();
    let ended = locks.run(&["lock", "--sleep-seconds", "0.05", "--owner-pid", &owner]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(unlock.shell.answer().0, 0);
    assert!(locks.read().starts_with(&format!("{owner}\n")), "it is locked");
}

#[test]
fn a_process_of_another_user_than_the_owners_holds_nothing_by_naming_the_run() {
    let locks = Locks::new();
    let run = format!("run-{}", locks.dir().display());
    let shell = || {
        let mut command = locks.command("bash");
        command.env("MELTANO_PARENT_CONTEXT_UUID", &run);
        Shell::start_with(command)
    };
    let mut owner = shell();
    owner.lock();
    owner.reap();
    let mut relative = shell();
    assert_eq!(relative.run("true"), 0);
    assert_eq!(locks.state().0, "held");
    let uid = rustix::process::getuid().as_raw();
    locks.write(locks.read().replace(&format!("\nuid={uid}\n"), &format!("\nuid={}\n", uid + 1)));
    assert_eq!(locks.state().0, "stale");
}

#[test]
fn a_takeover_fails_if_its_new_file_is_replaced_while_it_settles() {
    let locks = Locks::new();
    locks.write(legacy_record_of_a_dead_holder(&locks));
    let mut taker = Stopped::start(&locks, "pwrite64", "lock --max-attempts 1");
    let owner = std::process::id().to_string();
    let other = locks.dir().join("other");
    fs::write(&other, &owner).expect("another's lock file");
    taker.go_on();
    until_ours(&locks.file());
    // It waits for 100 ms now. The plugin's `unlock` removes any lock file, and then another
    // process creates one.
    fs::rename(&other, locks.file()).expect("another's lock comes in its place");
    assert_eq!(taker.shell.answer().0, 75, "the taker yields");
    assert_eq!(locks.read(), owner);
}

#[test]
fn what_was_acquired_for_no_process_is_given_back_though_its_owner_lives() {
    for stale in [false, true] {
        let locks = Locks::new();
        let owner = Shell::start(&locks);
        if stale {
            locks.write(legacy_record_of_a_dead_holder(&locks));
        }
        let taker = Stopped::start(
            &locks,
            "pwrite64",
            &format!("lock --max-attempts 1 --owner-pid {}", owner.pid()),
        );
        let (pid, trace) = (taker.pid.clone(), taker.trace.clone());
        taker.shell.reap();
        let rest = Stopped { shell: Shell::start(&locks), trace, pid };
        rest.go_on();
        rest.until_traced("+++ exited with 1 +++");
        assert!(!locks.file().exists(), "stale: {stale}");
    }
}

#[test]
fn force_takes_the_lock_only_from_a_process_that_was_seen_to_hold_it() {
    let locks = Locks::new();
    let (one, two) = (Shell::start(&locks), Shell::start(&locks));
    locks.write(one.pid().to_string());
    let mut unlock = Stopped::start(&locks, "flock", "unlock --force");
    // As the Python plugin takes over: in place, so that the inode is the same.
    locks.write(two.pid().to_string());
    unlock.go_on();
    assert_eq!(unlock.shell.answer().0, 77);
    assert_eq!(locks.read(), two.pid().to_string());
}

#[test]
fn a_python_plugin_that_writes_in_the_middle_of_an_unlock_of_a_stale_lock_keeps_it() {
    let locks = Locks::new();
    locks.write(legacy_record_of_a_dead_holder(&locks));
    let mut unlock = Stopped::start(&locks, "pwrite64,unlink,unlinkat", "unlock");
    let owner = std::process::id().to_string();
    locks.write(&owner);
    unlock.go_on();
    assert_eq!(unlock.shell.answer().0, 77, "it is the plugin's now");
    assert_eq!(locks.read(), owner);
}

#[test]
fn a_legacy_record_of_ones_own_pid_is_enough_to_unlock_and_not_to_lock() {
    let locks = Locks::new();
    locks.write(std::process::id().to_string());
    let ended = locks.run(&["lock", "--max-attempts", "1"]);
    assert_eq!(ended.code, 75, "it may be another container's: {ended:?}");
    assert_eq!(locks.run(&["unlock"]).code, 0);
    assert_eq!(locks.names(), Vec::<String>::new());
}

#[test]
fn an_unlock_of_a_stale_lock_that_is_killed_makes_no_process_a_holder() {
    let locks = Locks::new();
    locks.write(legacy_record_of_a_dead_holder(&locks));
    let mut unlock = Stopped::start(&locks, "pwrite64", "unlock");
    unlock.go_on();
    until_ours(&locks.file());
    assert!(
        Command::new("kill").args(["-KILL", &unlock.pid]).status().expect("kill runs").success()
    );
    assert_eq!(unlock.shell.answer().0, 137);
    assert_eq!(locks.state().0, "stale");
}

#[test]
fn a_file_of_the_farthest_future_is_no_reason_to_die() {
    let locks = Locks::new();
    let mut shell = unshared_shell(&locks, &["--mount"]);
    assert_eq!(shell.run(r#"mount -t tmpfs small "$SERIALIZER_DIR" && echo $$ > "$SERIALIZER_DIR"/serializer.lck"#), 0);
    assert_eq!(shell.run(r#"touch -d @9223372036854775807 "$SERIALIZER_DIR"/serializer.lck"#), 0);
    assert_eq!(shell.run(r#""$S" status > /dev/null"#), 0);
}

#[test]
fn an_empty_file_is_looked_at_again_when_it_may_be_abandoned() {
    let locks = Locks::new();
    locks.write("");
    let waiter = Waiter::start(locks.serializer(&["lock", "--sleep-seconds", "3600"]));
    assert_eq!(waiter.end().code, 0);
}

#[test]
fn a_lock_that_cannot_be_given_back_to_the_python_plugin_is_not_ours_either() {
    let locks = Locks::new();
    locks.write(legacy_record_of_a_dead_holder(&locks));
    let mut taker = Stopped::start_with(
        &locks,
        "pwrite64,renameat,renameat2",
        "-e inject=pwrite64:signal=STOP:when=1 -e inject=renameat,renameat2:error=ENOSPC:when=2",
        "lock --max-attempts 1",
    );
    let owner = std::process::id().to_string();
    locks.write(&owner);
    taker.go_on();
    assert_ne!(taker.shell.answer().0, 0);
    assert_eq!(
        taker.shell.run(r#""$S" lock --max-attempts 1 2> /dev/null"#),
        75,
        "the plugin holds it"
    );
}

#[test]
fn a_process_that_waits_for_the_plugin_that_got_its_lock_back_wakes_up_when_that_ends() {
    let locks = Locks::new();
    let mut plugin = Shell::start(&locks);
    locks.write(legacy_record_of_a_dead_holder(&locks));
    let mut taker = Stopped::start(&locks, "pwrite64", "lock --max-attempts 1");
    let mut opened = fs::File::create(locks.file()).expect("it truncates the file");
    taker.go_on();
    until_ours(&locks.file());
    let waiter = Waiter::start(locks.serializer(&["lock", "--sleep-seconds", "3600"]));
    waiter.asleep();
    opened.write_all(plugin.pid().to_string().as_bytes()).expect("it writes");
    assert_eq!(taker.shell.answer().0, 75);
    plugin.kill();
    assert_eq!(waiter.end().code, 0);
}

#[test]
fn a_release_before_the_waiter_listens_is_noticed() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let waiter = Stopped::start(&locks, "socket", "lock --sleep-seconds 3600");
    holder.unlock();
    waiter.go_on();
    waiter.until_traced("+++ exited with 0 +++");
}

#[test]
fn without_pidfds_another_users_process_is_held() {
    let locks = Locks::new();
    locks.write("1\n");
    let user = OrdinaryUser::new(&locks);
    let script = r#"strace -qq -o /dev/null -e inject=pidfd_open:error=ENOSYS "$S" status --json"#;
    let ended = ended(&mut user.command(&locks, "bash", &["-c", script]));
    assert!(ended.stdout.contains(r#""held""#), "{ended:?}");
}

/// Stops when linking the unnamed file has failed, before it is tried by way of a temporary name.
const NO_UNNAMED: &str = "-e inject=linkat:error=EOPNOTSUPP:signal=STOP:when=1";

#[test]
fn a_named_file_is_never_put_over_anothers_lock() {
    let locks = Locks::new();
    let mut taker = Stopped::start_with(&locks, "linkat", NO_UNNAMED, "lock --max-attempts 1");
    let mut holder = Shell::start(&locks);
    holder.lock();
    let record = locks.read();
    taker.go_on();
    assert_eq!(taker.shell.answer().0, 75);
    assert_eq!(locks.read(), record);
    holder.unlock();
}

#[test]
fn a_flood_of_wake_ups_costs_little() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let waiter = Waiter::start(locks.serializer(&["lock", "--sleep-seconds", "3600"]));
    waiter.asleep();
    let dir = fs::metadata(locks.dir()).expect("the directory");
    let name = format!("serializer:{:x}:{:x}:serializer.lck", dir.dev(), dir.ino());
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    let socket = UnixDatagram::unbound().expect("a socket");
    socket.set_nonblocking(true).expect("it need not wait");
    let switches = || {
        let status = fs::read_to_string(format!("/proc/{}/status", waiter.pid())).expect("it runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
            .expect("a number");
        line.trim().parse::<u64>().expect("a number")
    };
    let before = switches();
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        let _ = socket.send_to_addr(b"!", &address);
        // Thousands a second, without taking the processor away from the waiter.
        std::thread::sleep(Duration::from_micros(100));
    }
    // A look every 10 ms sleeps at most twice: in poll, and for the pace.
    let looked = switches() - before;
    assert!(looked < 400, "{looked} sleeps in a second");
}

#[test]
fn a_process_that_slept_between_creating_a_file_and_writing_to_it_has_lost_it() {
    let locks = Locks::new();
    // No hard links. The third flock is that of the file that has the lock's name already, and is
    // empty.
    let inject = "-e inject=linkat:error=EPERM -e inject=flock:error=EAGAIN:signal=STOP:when=3";
    let mut creator = Stopped::start_with(&locks, "linkat,flock", inject, "lock --max-attempts 1");
    assert_eq!(locks.read(), "");
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(10);
    fs::File::options()
        .write(true)
        .open(locks.file())
        .and_then(|file| file.set_modified(long_ago))
        .expect("its time can be set");
    let mut other = Shell::start(&locks);
    other.lock();
    let record = locks.read();
    creator.go_on();
    assert_eq!(creator.shell.answer().0, 75, "the other one took it over");
    assert_eq!(locks.read(), record);
}

#[test]
fn a_file_that_an_sftp_server_refuses_to_create_is_waited_for() {
    let locks = Locks::new();
    // sshfs: no hard link, and EPERM for a file that has come to exist since it was looked for.
    let inject = format!(
        "-P {} -e inject=linkat:error=EPERM -e inject=openat:error=EPERM:signal=STOP:when=2",
        locks.file().display()
    );
    let mut creator =
        Stopped::start_with(&locks, "linkat,openat", &inject, "lock --max-attempts 1");
    let mut holder = Shell::start(&locks);
    holder.lock();
    let record = locks.read();
    creator.go_on();
    assert_eq!(creator.shell.answer().0, 75);
    assert_eq!(locks.read(), record);
    holder.unlock();
}

#[test]
fn a_takeover_that_cannot_see_whether_it_succeeded_leaves_no_lock() {
    let locks = Locks::new();
    locks.write(legacy_record_of_a_dead_holder(&locks));
    let mut taker = Shell::start(&locks);
    // Two reads to look, two to look again under the flock; the fifth is to tell the holder. Reads
    // of other files are the dynamic linker's.
    let trace = format!("strace -D -qq -o /dev/null -P {}", locks.file().display());
    let lock = r#"-e inject=pread64:error=EIO:when=5 "$S" lock --max-attempts 1 2> /dev/null"#;
    assert_eq!(taker.run(&format!("{trace} {lock}")), 1);
    assert_eq!(locks.names(), Vec::<String>::new());
}

#[test]
fn a_lock_file_that_some_process_keeps_flocked_is_not_waited_for_without_end() {
    let locks = Locks::new();
    locks.write(legacy_record_of_a_dead_holder(&locks));
    let mut keeper = Shell::start(&locks);
    keeper.send(r#"flock "$SERIALIZER_DIR"/serializer.lck -c 'echo rc=0; read -r _'"#);
    assert_eq!(keeper.answer().0, 0, "it is flocked");
    assert_eq!(locks.script(r#"timeout 30 "$S" unlock; exit $?"#).code, 1);
    assert_eq!(
        locks.script(r#"timeout 30 "$S" lock --max-attempts 1 --owner-pid $$; exit $?"#).code,
        75
    );
}

#[test]
fn a_python_plugin_that_takes_half_a_second_to_write_keeps_the_lock() {
    let locks = Locks::new();
    locks.write(legacy_record_of_a_dead_holder(&locks));
    let mut taker = Stopped::start(&locks, "pwrite64", "lock --max-attempts 1");
    let owner = std::process::id().to_string();
    let mut opened = fs::File::create(locks.file()).expect("it truncates the file");
    taker.go_on();
    until_ours(&locks.file());
    // Longer than a takeover waits as a rule.
    std::thread::sleep(Duration::from_millis(500));
    opened.write_all(owner.as_bytes()).expect("it writes");
    assert_eq!(taker.shell.answer().0, 75);
    assert_eq!(locks.read(), owner);
}

#[test]
fn an_empty_file_of_another_time_is_another_one() {
    let locks = Locks::new();
    locks.write("");
    let mut file =
        Register::open(&store::Location::file(&locks.file())).expect("files are always there");
    let seen = file.load().expect("it can be read").expect("it is there");
    // Stands for another file that got its inode number.
    let later = std::time::SystemTime::now() + Duration::from_secs(1);
    fs::File::options()
        .write(true)
        .open(locks.file())
        .and_then(|file| file.set_modified(later))
        .expect("its time can be set");
    assert_eq!(file.put(Some(&seen), None).expect("it can be tried"), register::Write::Conflict);
    assert!(locks.file().exists());
}
