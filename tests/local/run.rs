//! `run` is the command, but for the lock: its exit code, stdin, output, descriptors and ignored
//! signals. The lock is the command's from before its first instruction to its end, whichever
//! process is killed meanwhile.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::{self, Ended, Locks, OrdinaryUser, Shell, Waiter, ended, rounds, until};

fn run(locks: &Locks, args: &[&str]) -> Command {
    let mut command = locks.serializer(&["run"]);
    command.args(args);
    command
}

/// Runs a command, which must not need the terminal, and leaves no lock.
fn ran(locks: &Locks, args: &[&str]) -> Ended {
    let ended = ended(&mut run(locks, args));
    assert_eq!(locks.names(), Vec::<String>::new(), "nothing is left: {ended:?}");
    ended
}

#[test]
fn the_exit_code_is_the_commands() {
    let locks = Locks::new();
    for code in [0, 1, 7, 75, 255] {
        let ended = ran(&locks, &["--", "sh", "-c", &format!("exit {code}")]);
        assert_eq!((ended.code, ended.stderr.as_str()), (code, ""), "nothing is said about it");
    }
}

#[test]
fn a_command_that_a_signal_ends_gives_128_and_its_number() {
    let locks = Locks::new();
    for (signal, code) in [("TERM", 143), ("KILL", 137), ("INT", 130), ("SEGV", 139)] {
        // A shell's background job ignores SIGINT, and so do the processes that it starts.
        let shell = ["env", "--default-signal=INT,QUIT", "sh", "-c", &format!("kill -{signal} $$")];
        let output = run(&locks, &shell).output().expect("it runs");
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert_eq!(output.status.signal(), None);
    }
}

#[test]
fn options_after_the_command_are_its_own() {
    let locks = Locks::new();
    for args in
        [&["printf", "%s.", "--dir", "-n", "--"][..], &["--", "printf", "%s.", "--dir", "-n", "--"]]
    {
        assert_eq!(ran(&locks, args).stdout, "--dir.-n.--.", "{args:?}");
    }
    let ended = ran(&locks, &["--no-such-option", "true"]);
    assert_eq!(ended.code, 2, "{ended:?}");
    assert_eq!(ran(&locks, &[]).code, 2);
    assert_eq!(ran(&locks, &["-c", "true", "true"]).code, 2);
}

#[test]
fn a_script_is_run_by_the_users_shell() {
    let locks = Locks::new();
    assert_eq!(ran(&locks, &["-c", "echo $0 && exit 3"]).code, 3);
    assert_eq!(
        ended(run(&locks, &["-c", "echo $0"]).env("SHELL", "/bin/echo")).stdout,
        "-c echo $0\n"
    );
    assert_eq!(ended(run(&locks, &["-c", "echo $0"]).env("SHELL", "")).stdout, "/bin/sh\n");
}

#[test]
fn a_directory_of_the_path_that_may_not_be_looked_into_has_no_commands() {
    let locks = Locks::new();
    let user = OrdinaryUser::new(&locks);
    let hidden = locks.dir().join("hidden");
    fs::create_dir(&hidden).expect("a directory");
    let set =
        |mode| fs::set_permissions(&hidden, fs::Permissions::from_mode(mode)).expect("it is ours");
    set(0);
    let run = |command: &str| {
        let line = format!("PATH={}:$PATH exec \"$S\" run -- {command}", hidden.display());
        ended(&mut user.command(&locks, "bash", &["-c", &line]))
    };
    let codes = ["no-such-command", "true"].map(|command| run(command).code);
    set(0o700);
    assert_eq!(codes, [127, 0]);
}

#[test]
fn a_command_that_is_not_found_does_not_wait_for_the_lock() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let dir = locks.dir().to_str().expect("UTF-8");
    let file = format!("{dir}/file");
    fs::write(&file, "").expect("a file");
    for (program, code) in [
        ("no-such-command", 127),
        ("./no/such", 127),
        (&file, 126),
        (dir, 126),
        ("", 127),
        ("../../../../../etc/passwd/x", 127),
    ] {
        let ended = ended(&mut run(&locks, &["--sleep-seconds", "3600", "--", program]));
        assert_eq!(ended.code, code, "{program:?}: {ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        assert!(!ended.stderr.contains("waiting"), "{ended:?}");
    }
    let ended = ended(run(&locks, &["--", "x"]).env("PATH", format!("{dir}/nowhere:{dir}")));
    assert_eq!(ended.code, 127, "{ended:?}");
    fs::rename(&file, format!("{dir}/x")).expect("it can be renamed");
    let ended =
        support::ended(run(&locks, &["--", "x"]).env("PATH", format!("{dir}/nowhere:{dir}")));
    assert_eq!(ended.code, 126, "{ended:?}");
}

#[test]
fn a_command_that_cannot_be_run_after_all_releases_the_lock() {
    let locks = Locks::new();
    let mut shell = Shell::start(&locks);
    let script = r#"cd "$SERIALIZER_DIR"; printf '#!/no/such/interpreter\n' > a; printf '#!/\n' > b; chmod +x a b"#;
    assert_eq!(shell.run(script), 0);
    for (program, code) in [("a", 127), ("b", 126)] {
        let ended = support::ended(&mut run(
            &locks,
            &["--", locks.dir().join(program).to_str().expect("UTF-8")],
        ));
        assert_eq!(ended.code, code, "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        assert!(!locks.file().exists(), "{program}");
    }
}

#[test]
fn what_is_piped_in_and_out_is_the_commands() {
    let locks = Locks::new();
    let ended = locks.script(r#"seq 100000 | "$S" run cat | "$S" run --file-name other.lck wc -l; echo "${PIPESTATUS[@]}""#);
    assert_eq!(ended.stdout, "100000\n0 0 0\n", "{ended:?}");
    // A closed pipe ends it.
    let ended = locks.script(r#""$S" run yes | head -n 1; echo "${PIPESTATUS[@]}""#);
    assert_eq!(ended.stdout, "y\n141 0\n", "{ended:?}");
    if support::lacks("ignored signals") {
        return;
    }
    // Unless it was started so that it is told instead, as by a service manager.
    let ended = locks.script(r#"trap '' PIPE; "$S" run yes | head -n 1; echo "${PIPESTATUS[@]}""#);
    assert_eq!(ended.stdout, "y\n1 0\n", "{ended:?}");
    // Where a user's many groups stand before them in /proc/self/status.
    let script = r#"trap '' PIPE; "$S" run yes | head -n 1; echo "${PIPESTATUS[@]}""#;
    fs::write(locks.dir().join("grouped"), script).expect("it can be written");
    let grouped = r#"python3 -c 'import os
try: os.setgroups(range(10 ** 9, 10 ** 9 + 1000))
except PermissionError: os._exit(9)
os.execvp("bash", ["bash", os.environ["SERIALIZER_DIR"] + "/grouped"])'"#;
    let ended = locks.script(grouped);
    if ended.code == 9 {
        return support::skipped("groups cannot be set");
    }
    assert_eq!(ended.stdout, "y\n1 0\n", "{ended:?}");
}

#[test]
fn no_descriptor_of_ours_reaches_the_command() {
    let locks = Locks::new();
    // The parent of the tests may have left some open; bash opens one for its script.
    let close = "for fd in $(ls /proc/$$/fd); do [ $fd -gt 2 ] && eval \"exec $fd>&-\"; done";
    let ended = locks.script(&format!(r#"{close}; exec "$S" run -- ls /proc/self/fd"#));
    // The last one is the directory that it reads.
    assert_eq!(ended.stdout, "0\n1\n2\n3\n", "{ended:?}");
    let ended =
        locks.script(&format!(r#"{close}; exec 7</dev/null; exec "$S" run -- ls /proc/self/fd"#));
    assert_eq!(ended.stdout, "0\n1\n2\n3\n7\n", "what we were given is the command's: {ended:?}");
}

#[test]
fn signals_are_ignored_and_blocked_as_without_us() {
    if support::lacks("ignored signals") {
        return;
    }
    let locks = Locks::new();
    let options =
        ["--default-signal", "--ignore-signal=HUP,INT,QUIT,TSTP", "--block-signal=TERM,USR1,CHLD"];
    let options = options
        .into_iter()
        .chain(["--ignore-signal=PIPE", "--ignore-signal=TERM,USR1,USR2,ALRM,TTIN,TTOU,CONT"]);
    for options in options {
        let show = |command: &str| {
            let grep = "grep -E '^Sig(Blk|Ign)' /proc/self/status";
            let ended =
                locks.script(&format!("exec env --default-signal {options} {command} {grep}"));
            // The C library's own two (32 and 33) are ignored in whatever it starts.
            let bits = |line: &str| {
                u64::from_str_radix(line.rsplit('\t').next().unwrap_or(""), 16).expect("bits")
                    & 0x7fff_ffff
            };
            ended.stdout.lines().map(bits).collect::<Vec<_>>()
        };
        let without = show("");
        assert_eq!(without.len(), 2);
        assert_eq!(show(r#""$S" run --"#), without, "{options}");
        assert_eq!(show(r#""$S" flock "$SERIALIZER_DIR/other""#), without, "{options}");
    }
}

#[test]
fn streams_that_are_closed_do_no_harm() {
    let locks = Locks::new();
    for close in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let ended = locks.script(&format!(
            r#""$S" run sh -c 'cat; echo x; echo x >&2; exit 5' {close}; echo $? >&1"#
        ));
        assert!(ended.stdout.ends_with("5\n"), "{close}: {ended:?}");
    }
}

#[test]
fn a_parent_that_ignores_the_ends_of_its_children_is_told_so() {
    let locks = Locks::new();
    let ended =
        locks.script(r#"exec env --ignore-signal=CHLD "$S" run touch "$SERIALIZER_DIR/ran""#);
    assert_eq!(locks.names(), Vec::<String>::new(), "{ended:?}");
    // There, the program that tells the id of the boot cannot be awaited.
    assert_eq!(ended.code, if cfg!(serializer_portable) { 126 } else { 1 }, "{ended:?}");
    if support::lacks("ignored signals") {
        return;
    }
    assert!(ended.last_line().contains("SIGCHLD is ignored"), "{ended:?}");
}

#[test]
fn without_proc_it_is_said_what_is_missing() {
    if support::lacks("/proc") {
        return;
    }
    let locks = Locks::new();
    let mut shell = support::unshared_shell(&locks, &["--mount"]);
    let (code, said) = shell.output(r#"mount -t tmpfs none /proc; "$S" run true 2>&1"#);
    assert_eq!(
        (code, said.as_str()),
        (126, "serializer: cannot run `true`: /proc is not mounted\n")
    );
    assert_eq!(locks.names(), Vec::<String>::new());
}

/// A first act that proves that the lock is the command's own.
const PROVE: &str = r#"[ "$("$S" status --json | grep -m1 '"pid"' | tr -dc 0-9)" = $$ ] && "$S" status --json | grep -m1 '"state"' | grep -q held"#;

#[test]
fn the_lock_is_the_commands_own_from_the_start() {
    let locks = Locks::new();
    for _ in 0..rounds(10) {
        let ended = ran(&locks, &["bash", "-c", PROVE]);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
}

#[test]
fn a_second_run_waits_for_the_first() {
    let locks = Locks::new();
    let script = r#"for i in 1 2 3 4 5 6 7 8; do "$S" run --sleep-seconds 0.01 bash -c 'n=$(<"$SERIALIZER_DIR/n"); echo $((n + 1)) > "$SERIALIZER_DIR/n"' 2>/dev/null || exit; done"#;
    fs::write(locks.dir().join("n"), "0\n").expect("a counter");
    let mut shells: Vec<Shell> = (0..4).map(|_| Shell::start(&locks)).collect();
    for _ in 0..rounds(3) {
        shells.iter_mut().for_each(|shell| shell.send(&format!("( {script} )")));
        for shell in &mut shells {
            assert_eq!(shell.answer().0, 0);
        }
    }
    let counted = fs::read_to_string(locks.dir().join("n")).expect("the counter");
    assert_eq!(counted.trim(), (4 * 8 * rounds(3)).to_string());
}

#[test]
fn a_lock_that_is_held_makes_it_end_with_the_code_for_that() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let ended = ended(&mut run(&locks, &["--no-wait", "touch", "x"]));
    assert_eq!(ended.code, 75, "{ended:?}");
    assert_eq!(support::ended(&mut run(&locks, &["-n", "-E", "9", "touch", "x"])).code, 9);
}

#[test]
fn a_lock_that_was_taken_away_spoils_a_success() {
    let locks = Locks::new();
    for (end, code) in [("true", 76), ("exit 4", 4)] {
        let ended = ended(&mut run(
            &locks,
            &["bash", "-c", &format!(r#""$S" unlock --force 2> /dev/null; {end}"#)],
        ));
        assert_eq!(ended.code, code, "{ended:?}");
        assert!(ended.last_line().contains("was not held any more when"), "{ended:?}");
    }
    // Another's lock is not removed.
    let script = r#""$S" unlock --force && "$S" lock --owner-pid "$OTHER""#;
    let other = Shell::start(&locks);
    let ended = ended(run(&locks, &["bash", "-c", script]).env("OTHER", other.pid().to_string()));
    assert_eq!(ended.code, 76, "{ended:?}");
    assert_eq!(locks.state().0, "held");
}

#[test]
fn what_the_command_leaves_behind_keeps_neither_the_lock_nor_us() {
    let locks = Locks::new();
    let mut shell = Shell::start(&locks);
    let (code, pid) = shell.output(r#""$S" run bash -c 'sleep 600 > /dev/null & echo $!'"#);
    assert_eq!(code, 0);
    assert!(!locks.file().exists());
    assert_eq!(shell.run(&format!("kill {pid}")), 0, "it goes on");
}

#[test]
fn what_the_command_leaves_behind_is_waited_for_on_request() {
    if support::lacks("adopted orphans") {
        return;
    }
    let locks = Locks::new();
    let fifo = locks.dir().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo runs").success());
    let script = r#"( setsid bash -c 'read line < "$SERIALIZER_DIR/fifo"; echo done > "$SERIALIZER_DIR/done"' & ) & exit 3"#;
    let mut child = run(&locks, &["--until-children-exit", "bash", "-c", script])
        .stderr(Stdio::null())
        .spawn()
        .expect("it runs");
    // Opens only when the one that was left behind reads.
    let mut fifo = fs::OpenOptions::new().write(true).open(fifo).expect("it can be written to");
    assert!(child.try_wait().expect("it can be asked").is_none());
    until("the command ends", || locks.state().1.starts_with("its process has ended, but pid "));
    assert_eq!(ended(&mut run(&locks, &["-n", "true"])).code, 75);
    fifo.write_all(b"go\n").expect("it reads");
    assert_eq!(child.wait().expect("it ends").code(), Some(3));
    assert!(locks.dir().join("done").exists(), "it was waited for");
}

#[test]
fn a_run_that_is_killed_leaves_the_lock_to_the_command() {
    let locks = Locks::new();
    let mut child = run(&locks, &["bash", "-c", "echo $$; read line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut stdin = child.stdin.take().expect("its stdin");
    let mut pid = [0; 1];
    child.stdout.as_mut().expect("its output").read_exact(&mut pid).expect("the command runs");
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    assert_eq!(locks.state().0, "held", "the command goes on");
    let waiter = Waiter::start(run(&locks, &["--sleep-seconds", "3600", "true"]));
    stdin.write_all(b"\n").expect("the command reads");
    let ended = waiter.end();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.last_line().contains("taken over from"), "{ended:?}");
}

#[test]
fn a_waiter_that_is_ended_by_a_signal_leaves_nothing() {
    for (signal, code) in [("TERM", 143), ("INT", 130), ("HUP", 129)] {
        let locks = Locks::new();
        let mut holder = Shell::start(&locks);
        holder.lock();
        let mut command = locks.command("env");
        command.args([
            "--default-signal",
            support::PROGRAM,
            "run",
            "--sleep-seconds",
            "3600",
            "touch",
            "ran",
        ]);
        let waiter = Waiter::start(command);
        waiter.asleep();
        assert_eq!(holder.run(&format!("kill -{signal} {}", waiter.pid())), 0);
        assert_eq!(waiter.end().code, code);
        assert_eq!(holder.run(r#""$S" unlock 2> /dev/null"#), 0);
        assert_eq!(locks.names(), Vec::<String>::new());
    }
}

#[test]
fn what_waits_for_our_turn_takes_no_signals_that_are_for_the_command() {
    if support::lacks("a queue") {
        return;
    }
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let start = || Waiter::start(run(&locks, &["--sleep-seconds", "3600", "true"]));
    let (first, second) = (start(), start());
    // Each has said that it waits, and then takes its place.
    let thread = || {
        let threads = |waiter: &Waiter| {
            fs::read_dir(format!("/proc/{}/task", waiter.pid())).expect("its threads")
        };
        let is_queue = |path: &PathBuf| {
            fs::read_to_string(path.join("comm")).is_ok_and(|name| name == "queue\n")
        };
        threads(&first)
            .chain(threads(&second))
            .find_map(|thread| Some(thread.ok()?.path()).filter(is_queue))
    };
    until("one of them waits in line", || thread().is_some());
    let status =
        fs::read_to_string(thread().expect("it waits").join("status")).expect("it can be read");
    let bits =
        status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).expect("what it blocks");
    let bits = u64::from_str_radix(bits, 16).expect("bits");
    for signal in [1, 2, 3, 10, 12, 15, 18, 20, 21, 22] {
        assert!(bits >> (signal - 1) & 1 == 1, "{signal}: {bits:x}");
    }
    holder.unlock();
    assert_eq!((first.end().code, second.end().code), (0, 0));
}

#[test]
fn a_run_that_is_killed_at_any_system_call_never_leaves_a_command_without_the_lock() {
    if support::lacks("packets") {
        return;
    }
    let locks = Locks::new();
    // bash reports each kill.
    let mut quiet = locks.command("bash");
    quiet.stderr(Stdio::null());
    let mut shell = Shell::start_with(quiet);
    let log = locks.dir().join("log");
    let command = format!(
        r#"bash -c '{{ {} && echo locked || echo free; }} >> "$SERIALIZER_DIR/log"; : gone >&9' "#,
        PROVE.replace('\'', "'\\''")
    );
    // The command, or its stand-in, has ended when no process has the pipe open any more.
    let line = |options: &str| {
        format!(
            r#"{{ cd "$SERIALIZER_DIR"; strace -D -qq -o trace {options} "$S" run {command} 9>&1 > /dev/null 2>&1; }} | cat > /dev/null; : "#
        )
    };
    shell.run(&line(""));
    assert_eq!(fs::read_to_string(&log).expect("a log"), "locked\n");
    let trace = fs::read_to_string(locks.dir().join("trace")).expect("a trace");
    let calls: Vec<&str> = trace.lines().filter_map(|line| Some(line.split_once('(')?.0)).collect();
    assert!(calls.contains(&"sendmsg"), "{trace}");
    let mut count = std::collections::HashMap::new();
    let mut has_run_before_go = false;
    for (position, name) in calls.iter().enumerate() {
        let ordinal: &mut usize = count.entry(*name).or_default();
        *ordinal += 1;
        // From the making of the file on; before that, nothing can go wrong, and there is much of
        // it.
        let begins = calls
            .iter()
            .position(|name| name.starts_with("socketpair"))
            .expect("there is a connection");
        if position < begins || *name == "execve" || *name == "exit_group" {
            continue;
        }
        let _ = fs::remove_file(&log);
        shell.run(&line(&format!(
            "-e trace={name},sendmsg -e inject={name}:signal=KILL:when={ordinal}"
        )));
        let said = fs::read_to_string(&log).unwrap_or_default();
        // Not by the position: how often a file of /proc is read depends on its length.
        let is_before_go =
            !fs::read_to_string(locks.dir().join("trace")).expect("a trace").contains("sendmsg(");
        has_run_before_go |= is_before_go && !said.is_empty();
        assert!(said.is_empty() || said == "locked\n", "{name} {ordinal}: {said}");
        // It is free, or stale as soon as the command is gone, which closes its files before that.
        assert_eq!(
            shell.run(r#""$S" run --timeout 60s true 2> /dev/null"#),
            0,
            "{name} {ordinal}: the next one gets it"
        );
    }
    assert!(!has_run_before_go, "nothing runs before it is told to");
}

#[test]
fn a_run_that_is_killed_at_any_moment_never_leaves_a_command_without_the_lock() {
    let locks = Locks::new();
    let script = format!(r#"{{ {PROVE} && echo locked || echo free; }} >> "$SERIALIZER_DIR/log""#);
    let mut kills = 0;
    for round in 0..rounds(200) {
        let mut child = run(&locks, &["bash", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it runs");
        // Some way on, which differs from machine to machine, and is another one each time.
        for _ in 0..round % 100 * 20 {
            std::thread::yield_now();
        }
        kills += usize::from(child.try_wait().expect("it can be asked").is_none());
        let _ = child.kill();
        let mut stdout = child.stdout.take().expect("its output");
        child.wait().expect("it ends");
        stdout.read_to_end(&mut Vec::new()).expect("the command ends, too");
    }
    assert!(kills > 0, "none of them was killed in time");
    let log = fs::read_to_string(locks.dir().join("log")).unwrap_or_default();
    assert!(!log.contains("free"), "{log}");
    until("the lock can be taken", || ended(&mut run(&locks, &["-n", "true"])).code == 0);
}

#[test]
fn a_process_that_waits_for_its_own_ancestor_is_told_so() {
    let locks = Locks::new();
    let nested = support::ended(
        run(
            &locks,
            &[support::PROGRAM, "run", "--max-attempts", "2", "--sleep-seconds", "0.01", "true"],
        )
        .stdin(Stdio::null()),
    );
    assert_eq!(nested.code, 75, "{nested:?}");
    assert!(
        nested.stderr.contains("possible deadlock: `serializer.lck` is held by pid "),
        "{nested:?}"
    );
    let mut holder = Shell::start(&locks);
    holder.lock();
    let (code, said) = holder.output(r#""$S" run --max-attempts 2 --sleep-seconds 0.01 true 2>&1"#);
    assert_eq!(code, 75);
    assert!(
        said.contains(&format!(
            "`serializer.lck` is held by pid {}, which started this command",
            holder.pid()
        )),
        "{said}"
    );
    let stranger =
        ended(&mut run(&locks, &["--max-attempts", "2", "--sleep-seconds", "0.01", "true"]));
    assert_eq!(stranger.code, 75, "{stranger:?}");
    assert!(!stranger.stderr.contains("possible deadlock"), "{stranger:?}");
}

#[test]
fn a_whole_line_as_the_command_is_answered_by_the_way_to_run_one() {
    let locks = Locks::new();
    let ended = ran(&locks, &["--", "echo a; echo b"]);
    assert_eq!(ended.code, 127);
    assert!(ended.last_line().ends_with("(hint: `-c` runs a script)"), "{ended:?}");
}

#[test]
fn a_process_that_takes_a_held_lock_for_a_success_need_not_hear_of_it() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let ended = ended(&mut run(&locks, &["-n", "-E", "0", "--log-level", "warning", "true"]));
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let told = support::ended(&mut run(&locks, &["-n", "-E", "0", "true"]));
    assert!(told.last_line().contains("held by pid"), "{told:?}");
}

#[test]
fn flags_that_stand_for_one_holder_beat_the_variable_for_several() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    assert_eq!(holder.run(r#""$S" lock --slots 2 2>/dev/null"#), 0);
    let code = |args: &[&str]| ended(run(&locks, args).env("SERIALIZER_SLOTS", "2")).code;
    assert_eq!(code(&["-n", "true"]), 0);
    assert_eq!(code(&["-n", "--exclusive", "true"]), 75);
    assert_eq!(code(&["-n", "--wait-and-skip", "true"]), 75);
}
