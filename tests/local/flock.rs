//! `serializer flock` accepts the command line of flock(1) from util-linux and answers as flock
//! does; `run` accepts its options. The scenarios are those of util-linux's own test of flock. A
//! test compares with flock itself where that is possible.

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::support::{self, Ended, Locks, PROGRAM, Shell, until};

/// Which program answers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Peer {
    Ours,
    UtilLinux,
}

const PEERS: [Peer; 2] = [Peer::Ours, Peer::UtilLinux];

struct Scene {
    locks: Locks,
    peer: Peer,
    holder: Option<(Child, Shell)>,
}

impl Scene {
    fn new(peer: Peer) -> Self {
        Self { locks: Locks::new(), peer, holder: None }
    }

    fn flock(&self, args: &[&str]) -> Command {
        let mut command = match self.peer {
            Peer::Ours => self.locks.serializer(&["flock"]),
            Peer::UtilLinux => self.locks.command("flock"),
        };
        command.args(args).current_dir(self.locks.dir());
        command
    }

    fn run(&self, args: &[&str]) -> Ended {
        support::ended(&mut self.flock(args))
    }

    /// Holds `file` until [`Scene::release`].
    fn hold(&mut self, options: &[&str]) {
        let mut shell = Shell::start(&self.locks);
        assert_eq!(
            shell.run(r#"cd "$SERIALIZER_DIR" && mkfifo held go && exec 8<> held 9<> go"#),
            0
        );
        let mut args = options.to_vec();
        args.extend(["file", "sh", "-c", "echo > held; read -r line < go"]);
        let child = self.flock(&args).spawn().expect("it starts");
        assert_eq!(shell.run("read -r line <&8"), 0, "it has the lock");
        self.holder = Some((child, shell));
    }

    fn release(&mut self) {
        let (mut child, mut shell) = self.holder.take().expect("it was held");
        assert_eq!(shell.run("echo >&9"), 0);
        assert!(child.wait().expect("it ends").success());
    }
}

#[test]
fn a_lock_that_is_free_is_had_and_the_command_runs() {
    for peer in PEERS {
        let scene = Scene::new(peer);
        for args in [
            &["file", "echo", "hello"][..],
            &["-x", "file", "echo", "hello"],
            &["-e", "file", "-c", "echo hello"],
        ] {
            let ended = scene.run(args);
            assert_eq!(
                (ended.code, ended.stdout.as_str(), ended.stderr.as_str()),
                (0, "hello\n", ""),
                "{peer:?} {args:?}"
            );
        }
        assert_eq!(scene.run(&["-o", "file", "sh", "-c", "exit 5"]).code, 5, "{peer:?}");
        assert_eq!(scene.run(&["-F", "file", "sh", "-c", "exit 6"]).code, 6, "{peer:?}");
        assert_eq!(scene.run(&["--no-fork", "file", "--command", "exit 7"]).code, 7, "{peer:?}");
    }
}

#[test]
fn without_blocking_a_held_lock_is_a_failure_with_the_code_that_was_asked_for() {
    for peer in PEERS {
        let mut scene = Scene::new(peer);
        scene.hold(&[]);
        for (args, code) in [
            (&["--nonblock", "--conflict-exit-code", "123", "file", "echo", "never"][..], 123),
            (&["--nonblock", "file", "echo", "never"], 1),
            (&["-n", "-E", "0", "file", "echo", "never"], 0),
            (&["--nb", "-E3", "file", "-c", "echo never"], 3),
            (&["-nx", "file", "echo", "never"], 1),
            (&["-sn", "file", "echo", "never"], 1),
        ] {
            let ended = scene.run(args);
            assert_eq!(
                (ended.code, ended.stdout.as_str()),
                (code, ""),
                "{peer:?} {args:?} {ended:?}"
            );
            // A crontab that was switched must not begin to send mail.
            assert_eq!(ended.stderr, "", "{peer:?} {args:?}");
        }
        if peer == Peer::Ours {
            assert!(scene.run(&["-nv", "file", "true"]).stderr.contains("held by pid"));
        }
        scene.release();
        assert_eq!(scene.run(&["--nonblock", "file", "true"]).code, 0, "{peer:?}");
    }
}

#[test]
fn sharers_share_and_exclude_others() {
    for peer in PEERS {
        let mut scene = Scene::new(peer);
        scene.hold(&["--shared"]);
        let ended = scene.run(&["--nonblock", "--shared", "file", "echo", "shared"]);
        assert_eq!((ended.code, ended.stdout.as_str()), (0, "shared\n"), "{peer:?} {ended:?}");
        assert_eq!(
            scene.run(&["--nonblock", "--exclusive", "-E", "123", "file", "true"]).code,
            123,
            "{peer:?}"
        );
        assert_eq!(scene.run(&["-n", "file", "true"]).code, 1, "{peer:?}");
        scene.release();
        assert_eq!(scene.run(&["--nonblock", "--exclusive", "file", "true"]).code, 0, "{peer:?}");
    }
}

#[test]
fn a_timeout_ends_the_waiting_and_zero_does_at_once() {
    for peer in PEERS {
        let mut scene = Scene::new(peer);
        scene.hold(&[]);
        for seconds in ["0", "0.05"] {
            for option in ["--timeout", "--wait", "-w"] {
                assert_eq!(
                    scene.run(&[option, seconds, "-E", "123", "file", "true"]).code,
                    123,
                    "{peer:?} {option} {seconds}"
                );
            }
        }
        scene.release();
        assert_eq!(scene.run(&["-w", "0", "file", "true"]).code, 0, "{peer:?}");
    }
}

#[test]
fn a_lock_that_is_released_in_time_is_had() {
    let mut scene = Scene::new(Peer::Ours);
    scene.hold(&[]);
    let mut command = scene.flock(&["--timeout", "3600", "file", "sh", "-c", "exit 8"]);
    let waiter = command.stderr(Stdio::piped()).spawn().expect("it starts");
    until("it waits", || scene.locks.dir().join("file.queue").exists());
    scene.release();
    let ended = Ended::from(waiter.wait_with_output().expect("it ends"));
    assert_eq!((ended.code, ended.stderr.as_str()), (8, ""), "as silent as flock");
}

#[test]
fn a_numeric_code_out_of_range_is_an_error() {
    let scene = Scene::new(Peer::Ours);
    for code in ["256", "-1", "x"] {
        assert_eq!(scene.run(&["-n", "-E", code, "file", "touch", "ran"]).code, 2, "{code}");
    }
    assert_eq!(scene.locks.names(), [""; 0]);
}

#[test]
fn verbose_tells_of_the_lock() {
    let scene = Scene::new(Peer::Ours);
    let ended = scene.run(&["--verbose", "file", "true"]);
    assert!(
        ended.stderr.contains("for `true` after ") && ended.stderr.contains("unlocked `"),
        "{ended:?}"
    );
    assert_eq!(scene.run(&["file", "true"]).stderr, "");
}

#[test]
fn the_empty_file_that_flock_leaves_is_taken_for_a_lock_file_and_no_other_is() {
    let scene = Scene::new(Peer::Ours);
    assert_eq!(
        support::ended(
            scene.locks.command("flock").args(["old", "true"]).current_dir(scene.locks.dir())
        )
        .code,
        0
    );
    let path = scene.locks.dir().join("old");
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    let file = fs::File::options().write(true).open(&path).expect("flock has made it");
    file.set_modified(long_ago).expect("a time");
    assert_eq!(scene.run(&["-n", "old", "true"]).code, 0);

    fs::write(&path, "#!/bin/sh\n").expect("a script");
    let ended = scene.run(&["-n", "old", "touch", "ran"]);
    // Not the code of a held lock.
    assert_eq!(ended.code, 66, "{ended:?}");
    assert!(ended.last_line().contains("is not a lock file"), "{ended:?}");
    assert_eq!(fs::read_to_string(&path).expect("it is there"), "#!/bin/sh\n");
    assert_eq!(scene.locks.names(), ["old"]);
}

#[test]
fn an_empty_file_is_free_at_once_and_a_takeover_is_silent() {
    let scene = Scene::new(Peer::Ours);
    // As `mktemp` makes it.
    fs::write(scene.locks.dir().join("file"), "").expect("a file");
    let mut holder = Shell::start(&scene.locks);
    assert_eq!(holder.run(r#""$S" lock stale 2> /dev/null"#), 0);
    holder.reap();
    for file in ["file", "stale"] {
        let ended = scene.run(&["-n", file, "echo", "free"]);
        assert_eq!(
            (ended.code, ended.stdout.as_str(), ended.stderr.as_str()),
            (0, "free\n", ""),
            "{file}"
        );
    }
    // Not while flock itself holds it.
    let mut other = Shell::start(&scene.locks);
    assert_eq!(other.run(r#"exec 9> "$SERIALIZER_DIR/file" && flock -n 9"#), 0);
    assert_eq!(scene.run(&["-n", "file", "echo", "never"]).code, 1);
}

#[test]
fn options_have_all_their_names_and_unique_abbreviations() {
    let mut scene = Scene::new(Peer::Ours);
    scene.hold(&[]);
    for options in [
        &["--nonblocking", "-E", "3"][..],
        &["--nonb", "--conflict=3"],
        &["--wai", "0", "--con", "3"],
        &["-n", "-n", "-s", "-x", "--ex", "-E3"],
        &["--time=0", "-e", "-E", "4", "-E", "3"],
    ] {
        assert_eq!(scene.run(&[options, &["file", "true"]].concat()).code, 3, "{options:?}");
    }
    for ambiguous in ["--no", "--c", "--ver"] {
        assert_eq!(scene.run(&[ambiguous, "file", "true"]).code, 2, "{ambiguous}");
    }
    // Locks of the two kinds do not see each other.
    assert_eq!(scene.run(&["--fcntl", "-n", "file", "true"]).code, 0);
    scene.release();
    let ended = scene
        .run(&["--fcntl", "file", PROGRAM, "flock", "--fcntl", "-n", "-E", "5", "file", "true"]);
    assert_eq!(ended.code, 5, "{ended:?}");
    assert!(scene.run(&["-V"]).stdout.contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_directory_is_explained() {
    let scene = Scene::new(Peer::Ours);
    let ended = scene.run(&[".", "true"]);
    assert_eq!(ended.code, 66, "{ended:?}");
    assert!(
        ended
            .last_line()
            .contains("cannot lock the directory `.`: a lock of this program is a file"),
        "{ended:?}"
    );
    for option in ["--fd", "--start", "--length"] {
        let ended = scene.run(&[option, "3", "file", "true"]);
        assert!(ended.code == 2 && ended.last_line().contains(option), "{ended:?}");
    }
    assert_eq!(scene.locks.names(), [""; 0]);
}

#[test]
fn what_is_not_possible_is_explained() {
    let scene = Scene::new(Peer::Ours);
    for args in [&["9"][..], &["-u", "9"], &["-n", "-x", "200"], &["-u", "file"]] {
        let ended = scene.run(args);
        assert_eq!(ended.code, 2, "{ended:?}");
        assert!(ended.last_line().contains("a process, not to a file descriptor"), "{ended:?}");
        assert!(ended.last_line().contains("`serializer lock`"), "{ended:?}");
    }
    for args in [&["file"][..], &["file", "-c"], &["file", "-c", "one", "two"], &[]] {
        assert_eq!(scene.run(args).code, 2, "{args:?}");
    }
    assert_eq!(scene.locks.names(), [""; 0]);
}

#[test]
fn a_file_is_where_it_is_said_to_be_and_not_in_the_directory_of_locks() {
    let scene = Scene::new(Peer::Ours);
    let mut command = scene.flock(&["file", "ls"]);
    let elsewhere = scene.locks.dir().join("elsewhere");
    fs::create_dir(&elsewhere).expect("a directory");
    command
        .env("SERIALIZER_DIR", "/nowhere")
        .env("SERIALIZER_FILE_NAME", "other")
        .current_dir(&elsewhere);
    assert_eq!(support::ended(&mut command).stdout, "file\n");
}

#[test]
fn run_takes_the_options_of_flock() {
    let locks = Locks::new();
    let run = |args: &[&str]| {
        let mut all = vec!["run"];
        all.extend(args);
        locks.run(&all)
    };
    assert_eq!(run(&["-n", "-x", "-o", "-w", "1", "true"]).code, 2, "no waiting, and waiting");
    assert_eq!(run(&["-n", "-x", "-o", "-E", "4", "sh", "-c", "exit 6"]).code, 6);
    assert_eq!(run(&["-s", "-w", "0.5", "-c", "exit 7"]).code, 7);
    assert!(run(&["-v", "true"]).stderr.contains("unlocked `"));
    let mut holder = Shell::start(&locks);
    holder.lock();
    assert_eq!(run(&["-w", "0", "-E", "4", "true"]).code, 4);
    assert_eq!(run(&["-n", "-E", "4", "-c", "true"]).code, 4);
    let quiet =
        locks.serializer(&["run", "-n", "true"]).stdin(Stdio::null()).output().expect("it runs");
    assert_eq!(quiet.status.code(), Some(75));
}
