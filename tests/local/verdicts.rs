//! Is the owner that a record names alive? Every row of the table in `src/lock/staleness.rs`, seen
//! through `status` and through the effect of `lock` and `unlock` on the file. Wherever something
//! else than its process must decide about a record, that process would suggest the opposite.

use std::fs::{self, File};
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime};

use crate::support::{
    self, Ended, Locks, OrdinaryUser, Shell, Waiter, ended, pid_namespace, rounds, unshared_shell,
};
use rustix::process::{Pid, WaitId, WaitIdOptions, test_kill_process, waitid};
use serde_json::Value;

const HOUR: Duration = Duration::from_secs(3600);

/// scripts/test.sh sets the variable where these tests are for the portable implementation.
#[test]
fn the_program_has_the_implementation_that_is_to_be_tested() {
    let is_portable = cfg!(serializer_portable);
    assert!(is_portable || std::env::var_os("SERIALIZER_TEST_PORTABLE").is_none());
    let doctor = Locks::new().run(&["doctor", "--json"]);
    assert_eq!(doctor.stdout.contains("polled for their end"), is_portable, "{doctor:?}");
}

// What is expected of a record.

/// The lock counts as held for every user, and the file stays as it is. `state` is `held` or
/// `unknown`.
fn expect_held(
    locks: &Locks,
    run: &mut dyn FnMut(&[&str]) -> Ended,
    state: &str,
    pid: u32,
    reason: &str,
) {
    let before = (locks.read(), locks.names());
    let lock = &status(run)["locks"][0];
    assert_eq!(lock["state"], state, "{lock}");
    assert!(lock["why"].as_str().is_some_and(|why| why.contains(reason)), "{lock}");
    assert_eq!(lock["holder"]["pid"], pid, "{lock}");

    let ended = run(&["lock", "--max-attempts", "1"]);
    assert_eq!(ended.code, 75, "{ended:?}");
    assert!(ended.last_line().contains(&format!("held by pid {pid}")), "{ended:?}");
    // A holder's process usually runs; any other reason must be said.
    assert!(reason == RUNNING || ended.last_line().contains(reason), "{ended:?}");

    let ended = run(&["unlock"]);
    assert_eq!(ended.code, 77, "{ended:?}");
    assert!(ended.last_line().contains(&format!("held by pid {pid}")), "{ended:?}");
    assert_eq!((locks.read(), locks.names()), before, "nothing was changed");
}

/// The lock is taken over at once.
fn expect_stale(locks: &Locks, run: &mut dyn FnMut(&[&str]) -> Ended, pid: u32, reason: &str) {
    let lock = &status(run)["locks"][0];
    assert_eq!(lock["state"], "stale", "{lock}");
    assert_eq!(lock["why"], reason, "{lock}");
    assert_eq!(lock["holder"]["pid"], pid, "{lock}");

    let ended = run(&["lock", "--max-attempts", "1"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.contains(&format!("taken over from pid {pid}")), "{ended:?}");
    assert!(ended.stderr.trim_end().ends_with(reason), "{ended:?}");
    assert!(
        !locks.read().starts_with(&format!("{pid}\n")),
        "another owner is written down: {}",
        locks.read()
    );
    assert_eq!(locks.names(), ["serializer.lck"]);
}

/// `unlock` removes a stale lock for any process.
fn expect_removable(locks: &Locks, run: &mut dyn FnMut(&[&str]) -> Ended, pid: u32, reason: &str) {
    let ended = run(&["unlock"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.contains("removed stale lock"), "{ended:?}");
    assert!(ended.stderr.contains(&format!("of pid {pid}")), "{ended:?}");
    assert!(ended.stderr.trim_end().ends_with(reason), "{ended:?}");
    assert_eq!(locks.names(), [""; 0]);
}

fn held(locks: &Locks, pid: u32) {
    expect_held(locks, &mut |args| locks.run(args), "held", pid, RUNNING);
}

fn unknown(locks: &Locks, pid: u32, reason: &str) {
    expect_held(locks, &mut |args| locks.run(args), "unknown", pid, reason);
}

/// Both ways to get rid of a stale lock.
fn stale(locks: &Locks, pid: u32, reason: &str) {
    let content = locks.read();
    let written = modified(locks);
    expect_removable(locks, &mut |args| locks.run(args), pid, reason);
    locks.write(&content);
    set_modified(locks, written);
    expect_stale(locks, &mut |args| locks.run(args), pid, reason);
}

fn status(run: &mut dyn FnMut(&[&str]) -> Ended) -> Value {
    let ended = run(&["status", "--json"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    serde_json::from_str(&ended.stdout)
        .unwrap_or_else(|error| panic!("status prints JSON, not {error}: {ended:?}"))
}

const RUNNING: &str = "its process is running";
const GONE: &str = "its process is gone";
const THREAD: &str = "its process is gone (a thread has its id)";
const ENDED: &str = "its process has ended";
const REUSED: &str = "its process is gone (another one has its id)";
const REBOOTED: &str = "the machine has rebooted";

// Records and processes.

/// `record` with another value of `key`, or without it.
fn with(record: &str, key: &str, value: Option<&str>) -> String {
    let prefix = format!("{key}=");
    let kept = record.lines().filter(|line| !line.starts_with(&prefix));
    let new = value.map(|value| format!("{key}={value}"));
    kept.map(str::to_owned).chain(new).fold(String::new(), |text, line| text + &line + "\n")
}

/// `record`, but about the process `pid`.
fn about(record: &str, pid: u32) -> String {
    let (_, rest) = record.split_once('\n').expect("a record has lines");
    format!("{pid}\n{rest}")
}

/// As the Python plugin writes it.
fn legacy(pid: u32) -> String {
    format!("{pid}\n2026-11-22 08:00:00\n")
}

fn value_of<'a>(record: &'a str, key: &str) -> Option<&'a str> {
    record.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

/// A shell that holds the lock, and its record.
fn locked_by_a_shell(locks: &Locks) -> (Shell, String) {
    let mut shell = Shell::start(locks);
    shell.lock();
    let record = locks.read();
    (shell, record)
}

/// The PID of a process that is gone, and the record it left.
fn left_by_a_dead_shell(locks: &Locks) -> (u32, String) {
    let (shell, record) = locked_by_a_shell(locks);
    let pid = shell.pid();
    shell.reap();
    (pid, record)
}

fn modified(locks: &Locks) -> SystemTime {
    fs::metadata(locks.file())
        .and_then(|metadata| metadata.modified())
        .expect("the file has a time")
}

fn set_modified(locks: &Locks, time: SystemTime) {
    let file = File::options().write(true).open(locks.file()).expect("the lock file opens");
    file.set_modified(time).expect("its time can be set");
}

/// Field 22 of `/proc/…/stat`; without pidfds, in seconds since 1970.
fn start_ticks(of: &str) -> String {
    let stat =
        fs::read_to_string(format!("/proc/{of}/stat")).expect("the process can be looked at");
    let words = stat.rsplit_once(')').expect("a name").1;
    let ticks = words.split_ascii_whitespace().nth(19).expect("a start time");
    if cfg!(not(serializer_portable)) {
        return ticks.to_owned();
    }
    let stat = fs::read_to_string("/proc/stat").expect("the time of the boot can be looked at");
    let boot = stat.lines().find_map(|line| line.strip_prefix("btime ")).expect("a time");
    let number = |text: &str| text.parse::<u64>().expect("a number");
    (number(boot) + number(ticks) / rustix::param::clock_ticks_per_second()).to_string()
}

/// The state as `ps` shows it.
fn shown_as(pid: u32) -> String {
    let stat =
        fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process can be looked at");
    stat.rsplit_once(')')
        .expect("a name")
        .1
        .split_ascii_whitespace()
        .next()
        .expect("a state")
        .to_owned()
}

fn as_pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("a PID")).expect("not 0")
}

/// Returns when the child has ended, and leaves its zombie.
fn wait_for_zombie(pid: u32) {
    waitid(WaitId::Pid(as_pid(pid)), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        .expect("a child to wait for");
    assert_eq!(shown_as(pid), "Z");
}

/// Whether the inode number of a pidfd is an identity: Linux 6.9 and newer.
fn kernel_has_pidfs() -> bool {
    let uname = rustix::system::uname();
    let mut numbers = uname
        .release()
        .to_str()
        .expect("a release")
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    cfg!(not(serializer_portable)) && (numbers.next(), numbers.next()) >= (Some(6), Some(9))
}

/// A shell in namespaces of its own, as the runner of a command.
fn inside(shell: &mut Shell) -> impl FnMut(&[&str]) -> Ended {
    runner(shell, "")
}

/// The same, with `prefix` before the program.
fn runner(shell: &mut Shell, prefix: &str) -> impl FnMut(&[&str]) -> Ended {
    move |args| {
        let (code, stdout) = shell.output(&format!(r#"{prefix} "$S" {} 2>&1"#, args.join(" ")));
        Ended { code, stderr: stdout.clone(), stdout }
    }
}

// Another place.

#[test]
fn a_lock_of_another_machine_is_held() {
    let locks = Locks::new();
    let (pid, record) = left_by_a_dead_shell(&locks);
    let record = with(&record, "boot", Some("00000000-1111-2222-3333-444444444444"));
    locks.write(with(
        &with(&record, "machine", Some("0123456789abcdef0123456789abcdef")),
        "host",
        None,
    ));
    let mut elsewhere = machine(&locks, "fedcba9876543210fedcba9876543210");
    expect_held(
        &locks,
        &mut inside(&mut elsewhere),
        "unknown",
        pid,
        "its process is on another host",
    );
}

#[test]
fn a_lock_of_another_host_is_held() {
    let locks = Locks::new();
    let (pid, record) = left_by_a_dead_shell(&locks);
    let record = with(&record, "boot", Some("00000000-1111-2222-3333-444444444444"));
    for machine in [value_of(&record, "machine"), None] {
        locks.write(with(&with(&record, "host", Some("elsewhere.example")), "machine", machine));
        unknown(&locks, pid, "its process is on another host");
        let ended = locks.run(&["lock", "--max-attempts", "1"]);
        assert!(
            ended.last_line().contains("on elsewhere.example"),
            "the holder is named with its host: {ended:?}"
        );
        assert!(ended.last_line().contains("(hint: when you are certain"), "{ended:?}");
    }
}

#[test]
fn a_lock_of_another_name_and_this_boot_is_judged_by_its_process_where_only_this_machine_can_have_written_it()
 {
    let locks = Locks::new();
    let named = |record: &str| {
        with(&with(record, "host", Some("a-container")), "machine", Some("0123456789abcdef"))
    };
    let (shell, record) = locked_by_a_shell(&locks);
    locks.write(named(&record));
    held(&locks, shell.pid());
    shell.reap();
    assert_eq!(locks.state(), ("stale".to_owned(), GONE.to_owned()));

    // Clones of a virtual machine have one boot id, and may share a file system that is not known
    // to be of one machine.
    let mut anywhere = locks.command("strace");
    anywhere.args([
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=fstatfs",
        "-e",
        "inject=fstatfs:error=ENOSYS",
    ]);
    let ended = support::ended(anywhere.args([support::PROGRAM, "status"]));
    assert!(ended.stdout.contains("its process is on another host"), "{ended:?}");
}

#[test]
fn a_lock_from_before_a_reboot_is_stale_even_if_a_process_has_its_id_again() {
    let locks = Locks::new();
    let mut shell = machine(&locks, "0123456789abcdef0123456789abcdef");
    shell.lock();
    let record = locks.read();
    assert_eq!(value_of(&record, "machine"), Some("0123456789abcdef0123456789abcdef"));
    let mut alive = Shell::start(&locks);
    assert_eq!(alive.run("true"), 0);
    let before =
        with(&about(&record, alive.pid()), "boot", Some("00000000-1111-2222-3333-444444444444"));

    locks.write(&before);
    expect_removable(&locks, &mut inside(&mut shell), alive.pid(), REBOOTED);
    locks.write(&before);
    expect_stale(&locks, &mut inside(&mut shell), alive.pid(), REBOOTED);
}

#[test]
fn a_run_does_not_outlive_a_reboot() {
    let locks = Locks::new();
    let mut shell = machine(&locks, "0123456789abcdef0123456789abcdef");
    shell.lock();
    let run = run_id(&locks);
    let _relative = of_run(&locks, &run);
    let record = with(&locks.read(), "boot", Some("00000000-1111-2222-3333-444444444444"));
    locks.write(with(&about(&record, std::process::id()), "run", Some(&run)));
    expect_stale(&locks, &mut inside(&mut shell), std::process::id(), REBOOTED);
}

#[test]
fn a_lock_of_another_boot_is_held_unless_both_sides_know_the_machine() {
    let locks = Locks::new();
    let why = "held by another machine, or by this one before a reboot";
    let (pid, record) = left_by_a_dead_shell(&locks);
    let other_boot = with(&record, "boot", Some("00000000-1111-2222-3333-444444444444"));

    locks.write(with(&other_boot, "machine", None));
    unknown(&locks, pid, why);
    locks.write(with(&record, "boot", None));
    unknown(&locks, pid, why);

    for not_known in ["", "uninitialized"] {
        let mut nameless = machine(&locks, not_known);
        locks.write(with(&other_boot, "machine", Some("0123456789abcdef0123456789abcdef")));
        expect_held(&locks, &mut inside(&mut nameless), "unknown", pid, why);
    }
}

#[test]
fn a_lock_with_a_pid_of_another_namespace_is_held() {
    if support::lacks("PID namespaces") {
        return;
    }
    let locks = Locks::new();
    let (pid, record) = left_by_a_dead_shell(&locks);
    let mut container = pid_namespace(&locks);
    for pid_namespace in [Some("12345"), None] {
        locks.write(with(&record, "pidns", pid_namespace));
        expect_held(
            &locks,
            &mut inside(&mut container),
            "unknown",
            pid,
            "its process is in another container",
        );
    }
    // Without the marks that tell processes of all namespaces apart, the answer is unknown.
    locks.write(with(&with(&record, "pidns", Some("12345")), "pidfd", None));
    unknown(&locks, pid, "its process is in another container");
}

/// A shell on a machine with that id, in the PID namespace of the tests.
fn machine(locks: &Locks, id: &str) -> Shell {
    let mut shell = unshared_shell(locks, &["--mount"]);
    assert_eq!(shell.run(&format!("mount -t tmpfs etc /etc && echo '{id}' > /etc/machine-id")), 0);
    shell
}

// Its process.

#[test]
fn a_lock_of_a_running_process_is_held() {
    let locks = Locks::new();
    let (shell, _) = locked_by_a_shell(&locks);
    held(&locks, shell.pid());
    locks.write(legacy(shell.pid()));
    held(&locks, shell.pid());
}

#[test]
fn a_legacy_record_with_nothing_but_a_pid_is_judged_by_it() {
    let locks = Locks::new();
    let shell = Shell::start(&locks);
    locks.write(shell.pid().to_string());
    held(&locks, shell.pid());
    let pid = shell.pid();
    shell.reap();
    stale(&locks, pid, GONE);
}

#[test]
fn a_lock_of_a_vanished_process_is_stale() {
    let locks = Locks::new();
    let (pid, _) = left_by_a_dead_shell(&locks);
    stale(&locks, pid, GONE);
    locks.write(legacy(pid));
    stale(&locks, pid, GONE);
}

#[test]
fn a_lock_with_the_pid_of_a_thread_is_stale() {
    if support::lacks("thread ids") {
        return;
    }
    let locks = Locks::new();
    let (_shell, record) = locked_by_a_shell(&locks);
    // Not the thread of the test itself: with `--test-threads=1` that is the process.
    let judge = || {
        let path = fs::read_link("/proc/thread-self").expect("threads have directories");
        let path = path.to_str().expect("digits").to_owned();
        let tid: u32 = path.rsplit_once('/').expect("PID/task/TID").1.parse().expect("a thread id");
        assert_ne!(tid, std::process::id());
        assert!(test_kill_process(as_pid(tid)).is_ok(), "`kill` finds threads");

        let start = start_ticks(&path);
        locks.write(with(&with(&about(&record, tid), "start", Some(&start)), "pidfd", None));
        stale(&locks, tid, THREAD);
        locks.write(legacy(tid));
        stale(&locks, tid, THREAD);
    };
    std::thread::scope(|scope| scope.spawn(judge).join()).expect("the verdicts are right");
}

#[test]
fn a_lock_of_a_process_that_has_ended_unreaped_is_stale() {
    let locks = Locks::new();
    let (mut shell, _) = locked_by_a_shell(&locks);
    shell.kill();
    wait_for_zombie(shell.pid());
    stale(&locks, shell.pid(), ENDED);
    locks.write(legacy(shell.pid()));
    stale(&locks, shell.pid(), ENDED);
}

#[test]
fn a_process_without_its_main_thread_holds_its_lock_until_its_other_threads_end() {
    if support::lacks("pidfds") {
        return;
    }
    let locks = Locks::new();
    let mut process = process_without_main_thread(&locks);
    let pid = process.id();
    assert_eq!(shown_as(pid), "Z", "it looks like a zombie");

    let ended = locks.run(&["lock", "--owner-pid", &pid.to_string()]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let record = locks.read();
    held(&locks, pid);
    locks.write(legacy(pid));
    held(&locks, pid);

    drop(process.stdin.take());
    waitid(WaitId::Pid(as_pid(pid)), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        .expect("a child to wait for");
    stale(&locks, pid, ENDED);
    locks.write(record);
    stale(&locks, pid, ENDED);
    process.wait().expect("it is reaped");
}

/// It ends when its stdin is closed.
fn process_without_main_thread(locks: &Locks) -> Child {
    let script = r#"
import ctypes, os, sys, threading
def rest():
    main = f"/proc/self/task/{os.getpid()}/stat"
    while open(main).read().rsplit(")", 1)[1].split()[0] != "Z":
        pass
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=rest).start()
ctypes.CDLL(None).pthread_exit(None)
"#;
    let mut command = locks.command("python3");
    command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = command.spawn().expect("python3 starts");
    assert_eq!(support::first_line(&mut process), "ready");
    process
}

// Another process with its PID.

#[test]
fn a_lock_with_a_reused_pid_is_stale() {
    if support::lacks("PID namespaces") {
        return;
    }
    let locks = Locks::new();
    let mut container = pid_namespace(&locks);
    for round in 0..rounds(40) {
        let (code, owner) = container.output(
            r#"sleep infinity & owner=$!; "$S" lock --owner-pid $owner 2>/dev/null && echo $owner"#,
        );
        assert_eq!(code, 0, "round {round}");
        let owner: u32 = owner.trim().parse().expect("a PID");
        // Nothing happens in between, so that many of the new processes start in the same clock
        // tick as the old ones.
        let reuse = "kill -9 $owner; wait $owner 2>/dev/null; echo $((owner - 1)) > \
                     /proc/sys/kernel/ns_last_pid; sleep infinity & test $! = $owner";
        assert_eq!(container.run(reuse), 0, "the PID is given to another process");
        let (code, now) = container.output("cut -d' ' -f22 /proc/$owner/stat");
        assert_eq!(code, 0, "the other process runs");

        let record = locks.read();
        let same_tick = value_of(&record, "start") == Some(now.trim());
        if kernel_has_pidfs() || !same_tick {
            expect_stale(&locks, &mut inside(&mut container), owner, REUSED);
        }
        if !same_tick {
            // As on a kernel with pidfds that have no identity.
            locks.write(with(&record, "pidfd", None));
            expect_stale(&locks, &mut inside(&mut container), owner, REUSED);
        }
        assert_eq!(container.run("kill -9 $owner; wait $owner 2>/dev/null; true"), 0);
        container.unlock();
    }
}

#[test]
fn the_pidfd_tells_processes_apart_that_started_in_the_same_tick() {
    let locks = Locks::new();
    let (shell, record) = locked_by_a_shell(&locks);
    let pid = shell.pid();
    assert_eq!(value_of(&record, "start"), Some(start_ticks(&pid.to_string()).as_str()));
    assert_eq!(value_of(&record, "pidfd").is_some(), kernel_has_pidfs(), "{record}");

    if let Some(pidfd) = value_of(&record, "pidfd") {
        let other: u64 = pidfd.parse::<u64>().expect("a number") - 1;
        locks.write(with(&record, "pidfd", Some(&other.to_string())));
        stale(&locks, pid, REUSED);
        // In another time namespace the same process seems to have started at another time.
        locks.write(with(&record, "start", Some("1")));
        held(&locks, pid);
    }
    locks.write(with(&record, "pidfd", None));
    held(&locks, pid);
    locks.write(with(&with(&record, "pidfd", None), "start", Some("1")));
    stale(&locks, pid, REUSED);
    // Nothing to compare proves nothing.
    locks.write(with(&with(&record, "pidfd", None), "start", None));
    held(&locks, pid);
}

#[test]
fn a_legacy_lock_is_stale_if_its_process_started_after_it_was_written() {
    let locks = Locks::new();
    let shell = Shell::start(&locks);
    for (written, is_stale) in [
        (SystemTime::now() - HOUR, true),
        (SystemTime::now(), false),
        (SystemTime::now() + HOUR, false),
    ] {
        locks.write(legacy(shell.pid()));
        set_modified(&locks, written);
        if is_stale { stale(&locks, shell.pid(), REUSED) } else { held(&locks, shell.pid()) }
    }
}

// What may not be looked at.

#[test]
fn a_lock_of_another_users_process_is_held() {
    let locks = Locks::new();
    let user = OrdinaryUser::new(&locks);
    let (shell, record) = locked_by_a_shell(&locks);
    // Root's process, seen by another user: the shell, or else the first process.
    let pid = if rustix::process::getuid().is_root() { shell.pid() } else { 1 };
    let (record, start) = (about(&record, pid), start_ticks(&pid.to_string()));
    let ended = ended(&mut user.command(&locks, "bash", &["-c", &format!("kill -0 {pid}")]));
    assert!(
        ended.code == 1 && ended.stderr.contains("not permitted"),
        "pid {pid} must be another user's: {ended:?}"
    );

    for content in
        [with(&with(&record, "start", Some(&start)), "pidfd", None), legacy(pid), pid.to_string()]
    {
        locks.write(content);
        expect_held(&locks, &mut |args| user.run(&locks, args), "held", pid, RUNNING);
    }
}

#[test]
fn a_lock_of_a_hidden_process_is_held() {
    if support::lacks("PID namespaces") {
        return;
    }
    let locks = Locks::new();
    // From root's group nothing is hidden.
    let user = OrdinaryUser::new(&locks);
    let flags = [
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "bash",
    ];
    let mut container = Shell::start_with(user.command(&locks, "unshare", &flags));
    let (code, owner) = container.output(
        r#"sleep infinity & owner=$!; "$S" lock --owner-pid $owner 2>/dev/null && mount -t proc -o hidepid=2 proc /proc && echo $owner"#,
    );
    assert_eq!(code, 0);
    let owner: u32 = owner.trim().parse().expect("a PID");
    // A process without a capability of another process must not look at it.
    let powerless =
        "setpriv --securebits=+noroot --bounding-set=-all --inh-caps=-all --ambient-caps=-all";
    assert_eq!(container.run(&format!("test -e /proc/{owner}")), 0);
    assert_ne!(
        container.run(&format!("{powerless} test -e /proc/{owner}")),
        0,
        "the process is hidden"
    );

    expect_held(&locks, &mut runner(&mut container, powerless), "held", owner, RUNNING);
    locks.write(legacy(owner));
    expect_held(&locks, &mut runner(&mut container, powerless), "held", owner, RUNNING);
    assert_eq!(container.run("kill -9 $owner; wait $owner 2>/dev/null; true"), 0);
    expect_removable(&locks, &mut runner(&mut container, powerless), owner, GONE);
}

#[test]
fn where_there_is_no_proc_nothing_is_stale_but_what_is_certainly_gone() {
    if support::lacks("pidfds") {
        return;
    }
    let locks = Locks::new();
    let (shell, record) = locked_by_a_shell(&locks);
    let pid = shell.pid();
    let mut blind = unshared_shell(&locks, &["--mount"]);
    assert_eq!(blind.run("mount -t tmpfs nothing /proc && test ! -e /proc/self"), 0);
    let mut blind = inside(&mut blind);
    let mut expect_unchanged = |state: &str, reason: &str| {
        let before = (locks.read(), locks.names());
        let lock = &status(&mut blind)["locks"][0];
        assert_eq!(
            (&lock["state"], &lock["why"]),
            (&Value::from(state), &Value::from(reason)),
            "{lock}"
        );
        let refused = blind(&["lock", "--max-attempts", "1"]);
        assert!(
            refused.code == 2 && refused.stderr.contains("/proc is not mounted"),
            "nobody could be an owner: {refused:?}"
        );
        let refused = blind(&["unlock"]);
        assert_eq!(refused.code, 77, "{refused:?}");
        assert_eq!((locks.read(), locks.names()), before);
    };

    let why = "held by another machine, or by this one before a reboot";
    expect_unchanged("unknown", why);
    locks.write(legacy(pid));
    expect_unchanged("held", RUNNING);
    shell.reap();
    locks.write(&record);
    expect_unchanged("unknown", why);
    locks.write(legacy(pid));
    expect_removable(&locks, &mut blind, pid, GONE);
}

// What is written.

#[test]
fn a_lock_that_a_newer_version_wrote_is_held() {
    let locks = Locks::new();
    let (pid, record) = left_by_a_dead_shell(&locks);
    locks.write(with(&record, "v", Some("4")));
    unknown(&locks, pid, "a newer version of serializer wrote the lock");

    // Its owner does not change it, either.
    fs::remove_file(locks.file()).expect("a file");
    let (mut shell, record) = locked_by_a_shell(&locks);
    let newer = with(&format!("{record}released=lost\n"), "v", Some("4"));
    locks.write(&newer);
    assert_eq!(shell.run(r#""$S" lock -n 2> /dev/null"#), 75);
    assert_eq!(locks.read(), newer);
}

#[test]
fn what_a_newer_version_may_add_to_a_record_is_ignored() {
    let locks = Locks::new();
    let (shell, record) = locked_by_a_shell(&locks);
    locks.write(format!("{record}colour=blue\na line of no kind\n"));
    held(&locks, shell.pid());
}

#[test]
fn an_empty_file_is_being_written_while_it_is_young() {
    let locks = Locks::new();
    let empty = |time| {
        locks.write("");
        set_modified(&locks, time);
    };
    // A file from the future is never old, so that it does not matter how long this takes.
    for time in [SystemTime::now, || SystemTime::now() + HOUR] {
        empty(time());
        let (state, reason) = locks.state();
        assert_eq!(
            (state.as_str(), reason.as_str()),
            ("unknown", "the lock file is just being written")
        );
        empty(time());
        let ended = locks.run(&["lock", "--max-attempts", "1"]);
        assert_eq!(ended.code, 75, "{ended:?}");
        assert!(
            ended.last_line().contains("held by an unknown process (the file is empty)"),
            "{ended:?}"
        );
        empty(time());
        let ended = locks.run(&["unlock"]);
        assert_eq!(ended.code, 77, "{ended:?}");
        assert_eq!(locks.read(), "");
    }
}

#[test]
fn an_empty_file_that_was_left_behind_is_taken_over() {
    let locks = Locks::new();
    let abandon = || {
        locks.write("");
        set_modified(&locks, SystemTime::now() - Duration::from_secs(3));
    };
    abandon();
    let (state, reason) = locks.state();
    assert_eq!((state.as_str(), reason.as_str()), ("stale", "the lock file was left empty"));
    let ended = locks.run(&["unlock"]);
    assert_eq!((ended.code, locks.names().len()), (0, 0), "{ended:?}");
    abandon();
    let ended = locks.run(&["lock", "--max-attempts", "1"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.contains("the lock file was left empty"), "{ended:?}");
    assert!(locks.read().starts_with(&format!("{}\n", std::process::id())));
}

#[test]
fn an_empty_file_from_the_future_is_taken_over_when_it_has_been_watched_for_long_enough() {
    let locks = Locks::new();
    locks.write("");
    set_modified(&locks, SystemTime::now() + HOUR);
    let waiter = Waiter::start(locks.serializer(&["lock", "--sleep-seconds", "0.1"]));
    let ended = waiter.end();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.contains("the lock file was left empty"), "{ended:?}");
}

// Orphans.

/// No other test's run.
fn run_id(locks: &Locks) -> String {
    format!("run-{}", locks.dir().file_name().expect("a name").to_str().expect("ASCII"))
}

/// A shell that belongs to a pipeline run.
fn of_run(locks: &Locks, run: &str) -> Shell {
    let mut command = locks.command("bash");
    command.env("MELTANO_PARENT_CONTEXT_UUID", run);
    let mut shell = Shell::start_with(command);
    assert_eq!(shell.run("true"), 0);
    shell
}

/// A dead owner's lock, and a process of its run that goes on.
fn orphaned(locks: &Locks) -> (u32, Shell) {
    let run = run_id(locks);
    let mut owner = of_run(locks, &run);
    owner.lock();
    assert_eq!(value_of(&locks.read(), "run"), Some(run.as_str()));
    let relative = of_run(locks, &run);
    let pid = owner.pid();
    owner.reap();
    (pid, relative)
}

#[test]
fn a_dead_owners_lock_is_held_while_a_process_of_its_run_goes_on() {
    let locks = Locks::new();
    let (pid, relative) = orphaned(&locks);
    let reason = format!("its process is gone, but pid {} (bash ", relative.pid());
    expect_held(&locks, &mut |args| locks.run(args), "held", pid, &reason);
    let ended = locks.run(&["lock", "--max-attempts", "1"]);
    assert!(ended.last_line().contains("of the same run goes on"), "{ended:?}");
    assert!(ended.last_line().contains("(hint: `SERIALIZER_ORPHANS=ignore`"), "{ended:?}");

    relative.reap();
    stale(&locks, pid, GONE);
}

#[test]
fn of_the_processes_of_a_run_the_oldest_is_named_whatever_its_pid() {
    if support::lacks("PID namespaces") {
        return;
    }
    let locks = Locks::new();
    let mut container = pid_namespace(&locks);
    // The younger one gets the lower PID, as after the numbers have begun again, and starts in a
    // later tick of the clock.
    let (code, oldest) = container.output(
        "export MELTANO_PARENT_CONTEXT_UUID=a-run; \
         at() { echo $(($1 - 1)) > /proc/sys/kernel/ns_last_pid; }; \
         started() { cut -d' ' -f22 /proc/$1/stat; }; \
         sleep infinity & owner=$!; \
         \"$S\" lock --owner-pid $owner 2>/dev/null; \
         at 4000; sleep infinity & oldest=$!; \
         while test \"$(started self)\" = \"$(started $oldest)\"; do :; done; \
         at 3000; sleep infinity & younger=$!; \
         unset MELTANO_PARENT_CONTEXT_UUID; \
         kill -9 $owner; wait $owner 2>/dev/null; \
         test $younger -lt $oldest && echo $oldest",
    );
    assert_eq!(code, 0, "both run");
    let ended = inside(&mut container)(&["lock", "--max-attempts", "1"]);
    let named = format!("but pid {} (sleep infinity) of the same run goes on", oldest.trim());
    assert!(ended.stderr.contains(&named), "{ended:?}");
}

#[test]
fn a_zombie_of_the_run_holds_nothing() {
    let locks = Locks::new();
    let (pid, mut relative) = orphaned(&locks);
    relative.kill();
    wait_for_zombie(relative.pid());
    stale(&locks, pid, GONE);
}

#[test]
fn processes_of_another_run_or_of_none_hold_nothing() {
    let locks = Locks::new();
    let run = run_id(&locks);
    let (pid, record) = left_by_a_dead_shell(&locks);
    let _longer = of_run(&locks, &format!("{run}x"));
    let _without = Shell::start(&locks);
    locks.write(with(&record, "run", Some(&run)));
    stale(&locks, pid, GONE);
    locks.write(with(&record, "run", Some("")));
    stale(&locks, pid, GONE);
}

#[test]
fn orphans_can_be_ignored_by_flag_and_by_variable() {
    let locks = Locks::new();
    let (pid, _relative) = orphaned(&locks);
    let record = locks.read();
    let with_variable =
        |args: &[&str]| ended(locks.serializer(args).env("SERIALIZER_ORPHANS", "ignore"));
    let with_flag = |args: &[&str]| locks.run(&[args, &["--orphans", "ignore"]].concat());

    expect_stale(&locks, &mut |args| with_variable(args), pid, GONE);
    locks.write(&record);
    expect_stale(&locks, &mut |args| with_flag(args), pid, GONE);
    locks.write(&record);
    expect_removable(&locks, &mut |args| with_variable(args), pid, GONE);
    locks.write(&record);
    expect_removable(&locks, &mut |args| with_flag(args), pid, GONE);
    // The flag beats the variable.
    locks.write(&record);
    let ended = ended(
        locks
            .serializer(&["lock", "--max-attempts", "1", "--orphans", "wait"])
            .env("SERIALIZER_ORPHANS", "ignore"),
    );
    assert_eq!(ended.code, 75, "{ended:?}");
}

#[test]
fn a_waiter_wakes_when_the_last_process_of_the_run_has_ended() {
    let locks = Locks::new();
    let (_, relative) = orphaned(&locks);
    let owner = Shell::start(&locks);
    let owner_pid = owner.pid().to_string();
    let waiter = Waiter::start(locks.serializer(&[
        "lock",
        "--sleep-seconds",
        "3600",
        "--owner-pid",
        &owner_pid,
    ]));
    waiter.asleep();
    relative.reap();
    let ended = waiter.end();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(locks.read().starts_with(&format!("{owner_pid}\n")));
}

#[test]
fn a_process_that_asks_and_its_ancestors_are_no_orphans() {
    let locks = Locks::new();
    let (pid, mut relative) = orphaned(&locks);
    // A later block of the same run; in the view of other processes, the run goes on.
    assert_eq!(locks.state().0, "held");
    expect_stale(&locks, &mut inside(&mut relative), pid, GONE);
}

#[test]
fn a_process_that_waits_in_the_same_run_is_no_orphan() {
    let locks = Locks::new();
    let (pid, relative) = orphaned(&locks);
    let mut other = Shell::start(&locks);
    assert_eq!(other.run(r#""$S" lock --file-name other.lck 2>/dev/null"#), 0);
    let mut command = locks.serializer(&["lock", "--file-name", "other.lck"]);
    command.env("MELTANO_PARENT_CONTEXT_UUID", run_id(&locks));
    let mut waiter = Waiter::start(command);
    relative.reap();
    assert_eq!(locks.state(), ("stale".to_owned(), GONE.to_owned()), "pid {pid}");
    assert!(waiter.is_waiting());
}

#[test]
fn a_proc_of_another_namespace_is_not_asked() {
    if support::lacks("PID namespaces") {
        return;
    }
    let locks = Locks::new();
    // A PID namespace of its own, but the /proc of the one outside: there, the shell's number is
    // another process's.
    let mut shell = unshared_shell(&locks, &["--pid", "--fork", "--kill-child"]);
    assert_eq!(shell.run("test $$ = 1 && test $$ != $(readlink /proc/self)"), 0);
    let outside = Locks::new();
    assert_eq!(outside.run(&["lock"]).code, 0);
    if !outside.read().contains("\npidfd=") {
        // Before Linux 6.9 nothing would tell the owner from other processes.
        assert_eq!(shell.run(r#""$S" lock 2> /dev/null"#), 2);
        return;
    }
    shell.lock();
    let record = locks.read();
    assert!(record.starts_with("1\n") && record.contains("\npidfd="), "{record}");
    assert!(
        !record.contains("\nstart=") && !record.contains("\ncommand="),
        "what another process's would be: {record}"
    );
    assert_eq!(shell.run(r#""$S" status --json | grep -q '"held"'"#), 0);
    shell.unlock();
}
