//! Containers that share a directory of locks: PID namespaces made by `unshare`. A live holder in
//! another one is never robbed, and its end is noticed wherever it can be seen.

use std::process::Command;

use crate::support::{self, Ended, Locks, Shell, Waiter, pid_namespace, until};

/// Runs the program in a container.
fn inside(shell: &mut Shell, args: &str) -> Ended {
    let (code, stdout) = shell.output(&format!(r#""$S" {args} 2>&1"#));
    Ended { code, stderr: stdout.clone(), stdout }
}

fn lock_once(locks: &Locks) -> Command {
    locks.serializer(&["lock", "--sleep-seconds", "3600"])
}

/// Whether the tests run where every process of the machine is seen.
fn is_first_namespace() -> bool {
    let namespace = std::fs::read_link("/proc/self/ns/pid").expect("a namespace");
    namespace.as_os_str() == "pid:[4026531836]"
}

#[test]
fn a_holder_in_another_container_is_not_robbed_and_the_message_says_what_to_set() {
    let locks = Locks::new();
    let (mut one, mut two) = (pid_namespace(&locks), pid_namespace(&locks));
    one.lock();
    let ended = inside(&mut two, "lock --no-wait");
    assert_eq!(ended.code, 75, "{ended:?}");
    assert!(ended.last_line().contains("held by pid 1 (bash"), "{ended:?}");
    assert!(ended.last_line().contains("its process is in another container"), "{ended:?}");
    for hint in ["--pid=host", "shareProcessNamespace", "serializer break "] {
        assert!(ended.last_line().contains(hint), "{ended:?}");
    }
    assert_eq!(inside(&mut two, "unlock").code, 77);
    // Nor can it be seen that it is gone.
    one.reap();
    assert_eq!(inside(&mut two, "lock --no-wait").code, 75);
    assert_eq!(inside(&mut two, "unlock --force").code, 0);
    two.lock();
}

#[test]
fn a_waiter_in_another_container_gets_a_lock_that_is_released() {
    let locks = Locks::new();
    let (mut one, mut two) = (pid_namespace(&locks), pid_namespace(&locks));
    one.lock();
    // Two seconds for the attempt and an hour to the next: only what does not depend on it can
    // help.
    two.send(r#""$S" lock --sleep-seconds 3600 2>/dev/null"#);
    until("it waits", || locks.names() == ["serializer.lck", "serializer.lck.queue"]);
    one.unlock();
    assert_eq!(two.answer().0, 0);
    two.unlock();
    assert_eq!(locks.names(), [""; 0]);
}

#[test]
fn from_outside_a_holder_in_a_container_is_seen_alive_and_its_end_is_noticed() {
    let locks = Locks::new();
    let mut container = pid_namespace(&locks);
    container.lock();
    assert_eq!(locks.read().lines().next(), Some("1"), "the shell is PID 1 there");
    assert_eq!(locks.state(), ("held".to_owned(), "its process is running".to_owned()));
    assert_eq!(locks.run(&["lock", "--no-wait"]).code, 75);
    assert_eq!(locks.run(&["unlock"]).code, 77);
    let waiter = Waiter::start(lock_once(&locks));
    waiter.asleep();
    container.reap();
    let ended = waiter.end();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.contains("taken over from pid 1 (bash"), "{ended:?}");
}

#[test]
fn a_container_has_a_host_name_of_its_own_and_is_seen_all_the_same() {
    let locks = Locks::new();
    let mut container = support::unshared_shell(
        &locks,
        &["--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"],
    );
    assert_eq!(container.run("hostname a-container"), 0);
    container.lock();
    assert!(locks.read().contains("\nhost=a-container\n"), "{}", locks.read());
    assert_eq!(locks.state(), ("held".to_owned(), "its process is running".to_owned()));
    assert_eq!(
        container.run(r#""$S" unlock 2>/dev/null && "$S" lock --hold-at-least 10ms 2>/dev/null && "$S" unlock 2>/dev/null"#),
        0
    );
    // What is only to be held for a time is over for every container.
    let waiter = locks.serializer(&["lock", "--timeout", "60s"]).output().expect("it runs");
    assert!(waiter.status.success(), "{waiter:?}");
}

#[test]
fn a_container_in_a_container_is_seen_by_the_outer_one() {
    let locks = Locks::new();
    let mut outer = pid_namespace(&locks);
    let nested = r#"unshare --pid --fork --kill-child bash -c '"$S" lock 2>/dev/null && echo locked && read -r' <&8 >&9"#;
    assert_eq!(
        outer.run(&format!(
            "cd {}; mkfifo in out; exec 8<>in 9<>out; {nested} & inner=$!",
            locks.dir().display()
        )),
        0
    );
    assert_eq!(outer.run("read -r line <&9; test $line = locked"), 0);
    assert!(inside(&mut outer, "status --json").stdout.contains("\"its process is running\""));
    outer.send(r#""$S" lock --sleep-seconds 3600 2>said; code=$?; cat said; (exit $code)"#);
    until("it waits", || locks.names().contains(&"serializer.lck.queue".to_owned()));
    // The holder's process ends, and its namespace with it.
    std::fs::write(locks.dir().join("in"), "\n").expect("the inner shell reads");
    let (code, said) = outer.answer();
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("taken over from pid 1"), "{said}");
}

#[test]
fn where_all_processes_are_seen_a_holder_that_died_in_its_container_is_proved_gone() {
    if !is_first_namespace() {
        support::skipped("not in the first PID namespace, where every process is seen");
        return;
    }
    let locks = Locks::new();
    let mut container = pid_namespace(&locks);
    container.lock();
    container.reap();
    // The kernel kills it after `unshare`.
    while locks.state().0 == "held" {}
    assert_eq!(locks.state(), ("stale".to_owned(), "its process is gone".to_owned()));
    assert_eq!(locks.run(&["lock", "--no-wait"]).code, 0);
}

#[test]
fn a_command_that_is_started_from_outside_its_container_is_told_what_to_do() {
    let locks = Locks::new();
    let container = pid_namespace(&locks);
    // As `docker exec` does: the parent is in no namespace that is seen inside.
    let child = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", container.pid()))
        .expect("its children");
    let mut command = locks.command("nsenter");
    command.args([
        "--target",
        child.trim(),
        "--user",
        "--preserve-credentials",
        "--pid",
        "--mount",
        support::PROGRAM,
        "lock",
    ]);
    let ended = support::ended(&mut command);
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.last_line().contains("the parent process is in another container"), "{ended:?}");
    assert!(ended.last_line().contains("--owner-pid"), "{ended:?}");
    assert!(ended.last_line().contains("serializer run"), "{ended:?}");
}

/// `serializer ARGS…` as PID 1 of a container.
fn as_init(locks: &Locks, args: &[&str]) -> Command {
    let mut command = locks.command("unshare");
    command.args([
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    // A shell's background job ignores SIGINT, and so do the processes that it starts.
    command.args(["env", "--default-signal=INT,QUIT", support::PROGRAM]).args(args);
    command
}

/// The PID, as it is known here, of what `unshare` has started.
fn child_of(pid: u32) -> Option<rustix::process::Pid> {
    let children =
        std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
    rustix::process::Pid::from_raw(
        children.split_ascii_whitespace().next()?.parse().expect("a PID"),
    )
}

#[test]
fn a_run_with_a_process_group_led_from_outside_its_container_stays_in_it() {
    let locks = Locks::new();
    // It says which group it is in when it has passed a signal on.
    let script = r#"
        got=; trap got=1 USR1
        kill -USR1 1
        until [ "$got" ]; do :; done
        cut -d" " -f5 /proc/1/stat; exit 3"#;
    let ended =
        support::ended(&mut as_init(&locks, &["run", "--sleep-seconds=3600", "sh", "-c", script]));
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (3, "0\n", ""));
    assert_eq!(locks.names(), [""; 0]);
}

#[test]
fn the_first_process_of_a_container_can_be_ended_while_it_waits() {
    use rustix::process::Signal;
    let (run, wait) = (&["run", "--sleep-seconds=3600", "touch", "ran"][..], &["wait"][..]);
    for (args, signal) in
        [(run, Signal::TERM), (run, Signal::INT), (wait, Signal::TERM), (wait, Signal::INT)]
    {
        let locks = Locks::new();
        let mut holder = Shell::start(&locks);
        holder.lock();
        let waiter = Waiter::start(as_init(&locks, args));
        rustix::process::kill_process(child_of(waiter.pid()).expect("it runs"), signal)
            .expect("it runs");
        assert_eq!(waiter.end().code, 128 + signal.as_raw());
        holder.unlock();
        assert_eq!(locks.names(), [""; 0]);
    }
}

#[test]
fn a_run_that_is_the_first_process_of_its_container_gives_the_command_its_signals_and_leaves_no_zombies()
 {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let script = r#"grep SigBlk /proc/self/status; for i in 1 2 3; do (true &); done
        while grep -s "^State:.Z" /proc/[0-9]*/status > /dev/null; do :; done; exit 4"#;
    let mut run = as_init(&locks, &["run", "--sleep-seconds=3600", "sh", "-c", script]);
    let child = run
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("it starts");
    until("it waits", || locks.names().contains(&"serializer.lck.queue".to_owned()));
    holder.unlock();
    let ended = Ended::from(child.wait_with_output().expect("it ends"));
    assert_eq!((ended.code, ended.stdout.as_str()), (4, "SigBlk:\t0000000000000000\n"));
}
