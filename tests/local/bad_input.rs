//! Whatever is wrong with the lock file, its directory, the settings or the command line: one clear
//! line, the right exit code, and nothing changed.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use crate::support::{
    self, Ended, Locks, OrdinaryUser, PROGRAM, Shell, Waiter, copy_program, ended, unshared_shell,
};

/// `lock`, `unlock` and `status` in all the ways that touch the file.
const ALL: [&[&str]; 5] = [
    &["lock", "--max-attempts", "1"],
    &["unlock"],
    &["unlock", "--force"],
    &["status"],
    &["status", "--json"],
];

const LOCK: &[&str] = &["lock", "--max-attempts", "1"];

/// `serializer ARGS…` in a shell, ended by `timeout` (which may not own a lock) if it hangs.
fn limited(locks: &Locks, args: &[&str]) -> Command {
    let mut command = locks.command("timeout");
    command.args(["60", "bash", "-c", r#""$0" "$@"; exit $?"#, PROGRAM]).args(args);
    command
}

fn run(locks: &Locks, args: &[&str]) -> Ended {
    ended(&mut limited(locks, args))
}

/// It failed with that code and told why in one line that holds `parts`.
#[track_caller]
fn refused(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code, code, "{ended:?}");
    assert_eq!(ended.stdout, "", "{ended:?}");
    one_line(&ended.stderr);
    for part in parts {
        assert!(ended.stderr.contains(part), "`{part}` is not in {ended:?}");
    }
}

#[track_caller]
fn one_line(stderr: &str) {
    let line = stderr.strip_suffix('\n').unwrap_or_else(|| panic!("a whole line: {stderr:?}"));
    assert!(!line.chars().any(char::is_control), "one line without control characters: {stderr:?}");
    let message =
        line.strip_prefix("serializer: ").unwrap_or_else(|| panic!("by whom: {stderr:?}"));
    assert!(
        message.starts_with(|first: char| first.is_lowercase() || first == '`'),
        "lower case: {stderr:?}"
    );
    assert!(!message.ends_with(['.', '!']), "no final period: {stderr:?}");
    assert!(
        !message.contains("os error")
            && !message.contains("panicked")
            && !message.contains("Error"),
        "{stderr:?}"
    );
    assert!(line.len() < 1000, "bounded: {stderr:?}");
}

/// Everything about a directory's content that a command could change.
fn snapshot(dir: &Path) -> Vec<String> {
    let mut entries: Vec<_> = fs::read_dir(dir)
        .expect("the directory can be read")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let metadata = fs::symlink_metadata(&path).expect("the entry is there");
            let content = if metadata.is_file() { fs::read(&path).ok() } else { None };
            let target = fs::read_link(&path).ok();
            let (inode, mode, modified) =
                (metadata.ino(), metadata.mode(), metadata.modified().expect("a time"));
            format!("{} {inode} {mode:o} {modified:?} {target:?} {content:?}", path.display())
        })
        .collect();
    entries.sort();
    entries
}

/// All of [`ALL`] refuse what is at the lock's path, and leave it alone.
#[track_caller]
fn not_a_lock(locks: &Locks, why: &str) {
    let before = snapshot(locks.dir());
    for args in ALL {
        let ended = run(locks, args);
        let message = format!("`{}` is not a lock file: {why} (hint: ", locks.file().display());
        refused(&ended, 1, &[&message]);
        assert_eq!(snapshot(locks.dir()), before, "`{args:?}` changed nothing");
    }
}

/// A lock record of a vanished owner.
fn stale_record() -> String {
    let locks = Locks::new();
    let mut shell = Shell::start(&locks);
    shell.lock();
    let record = locks.read();
    shell.reap();
    record
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("its mode can be set");
}

// Files that are not lock files.

#[test]
fn a_file_of_other_text_is_left_alone() {
    let locks = Locks::new();
    for text in [
        "garbage\n",
        "\n",
        "  \n",
        "pid=4121\n",
        "{\"pid\": 4121}\n",
        "#!/bin/sh\n",
        "4121 \n",
        " 4121\n",
        "4121x\n",
        "٤١٢١\n",
    ] {
        locks.write(text);
        not_a_lock(&locks, "its first line is not a process id");
    }
}

#[test]
fn a_file_with_a_number_that_is_no_process_id_is_left_alone() {
    let locks = Locks::new();
    for pid in [
        "0",
        "-1",
        "+1",
        "1e3",
        "4121.0",
        "0x1019",
        "2147483648",
        "4294967297",
        "100000000000000000000",
    ] {
        for rest in ["", "\n", "\n2026-11-22 08:00:00\n", "\n2026-11-22 08:00:00\nv=1\nhost=a\n"] {
            locks.write(format!("{pid}{rest}"));
            not_a_lock(&locks, "its first line is not a process id");
        }
    }
}

#[test]
fn a_text_that_begins_with_a_number_is_left_alone() {
    let locks = Locks::new();
    for text in [
        "42\nis the answer\n",
        "1\n2\n3\n",
        "4121\n2026-11-22 08:00:00\nand a line more\n",
        "4121\n2026-13-22 08:00:00\n",
    ] {
        locks.write(text);
        not_a_lock(&locks, "its second line is not a time");
    }
}

#[test]
fn a_binary_file_is_left_alone() {
    let locks = Locks::new();
    let program = fs::read(PROGRAM).expect("the program can be read");
    for bytes in
        [&[0; 16][..], &[0xff; 100], b"\x1b[2J\x1b]0;x\x07", b"12\x0034\n", &program[..4000]]
    {
        locks.write(bytes);
        not_a_lock(&locks, "its first line is not a process id");
    }
}

#[test]
fn a_huge_file_is_left_alone() {
    let locks = Locks::new();
    let huge = 1 << 20;
    let mut after_a_pid = b"4121\n2026-11-22 08:00:00\n".to_vec();
    after_a_pid.resize(huge, b'\n');
    let mut after_a_record = stale_record().into_bytes();
    after_a_record.resize(huge, b'x');
    let mut a_byte_too_many = stale_record().into_bytes();
    a_byte_too_many.resize(65_537, b'x');
    for bytes in [
        vec![b'x'; huge],
        vec![0; huge],
        vec![b'1'; huge],
        after_a_pid,
        after_a_record,
        a_byte_too_many,
    ] {
        locks.write(bytes);
        not_a_lock(&locks, "it is larger than 64 KiB");
    }
}

#[test]
fn the_largest_record_is_still_one() {
    let locks = Locks::new();
    let mut record = stale_record().into_bytes();
    record.resize(4096, b'x');
    locks.write(record);
    assert_eq!(locks.state().0, "stale");
}

#[test]
fn a_directory_is_left_alone() {
    let locks = Locks::new();
    fs::create_dir(locks.file()).expect("a directory");
    fs::write(locks.file().join("in it"), "x").expect("a file in it");
    not_a_lock(&locks, "it is a directory");
    assert!(locks.file().join("in it").exists());
}

#[test]
fn a_fifo_is_left_alone_and_not_waited_for() {
    let locks = Locks::new();
    assert_eq!(ended(locks.command("mkfifo").arg(locks.file())).code, 0);
    not_a_lock(&locks, "it is not a regular file");
}

#[test]
fn a_socket_is_left_alone() {
    let locks = Locks::new();
    let _socket = UnixListener::bind(locks.file()).expect("a socket");
    not_a_lock(&locks, "it is not a regular file");
}

#[test]
fn a_symbolic_link_is_left_alone_wherever_it_leads() {
    let locks = Locks::new();
    let elsewhere = Locks::new();
    elsewhere.write(stale_record());
    let before = snapshot(elsewhere.dir());
    for target in [
        elsewhere.file(),
        elsewhere.dir().join("nothing"),
        elsewhere.dir().to_owned(),
        locks.file(),
    ] {
        symlink(&target, locks.file()).expect("a link");
        not_a_lock(&locks, "it is a symbolic link");
        assert_eq!(snapshot(elsewhere.dir()), before);
        fs::remove_file(locks.file()).expect("it is removed");
    }
}

#[test]
fn what_an_attacker_wrote_into_a_record_is_not_echoed_raw() {
    let locks = Locks::new();
    let record = stale_record();
    let nasty = "\x1b[2J\x1b]0;owned\x07\u{9b}31m\u{202e}\r\x08\x7f\u{2028}a\tb\\\"";
    let long = "y".repeat(3000);
    for key in ["command", "host", "machine", "boot", "run", "token", "since", "uid", "unknown"] {
        for value in [nasty, &long] {
            for pid in
                [record.lines().next().expect("a PID").to_owned(), std::process::id().to_string()]
            {
                let prefix = format!("{key}=");
                let mut lines: Vec<_> =
                    record.lines().skip(1).filter(|line| !line.starts_with(&prefix)).collect();
                let line = format!("{prefix}{value}");
                lines.push(&line);
                locks.write(format!("{pid}\n{}\n", lines.join("\n")));
                for args in ALL.into_iter().rev().chain([LOCK]) {
                    let ended = run(&locks, args);
                    for text in [&ended.stdout, &ended.stderr] {
                        let harmless = |c: char| {
                            c == '\n' || !(c.is_control() || "\u{202e}\u{2028}".contains(c))
                        };
                        assert!(text.chars().all(harmless), "{key} {args:?}: {ended:?}");
                        assert!(
                            text.lines().all(|line| line.len() < 1000),
                            "{key} {args:?}: {ended:?}"
                        );
                    }
                    assert!(ended.stderr.lines().count() <= 1, "{key} {args:?}: {ended:?}");
                    if args.contains(&"--json") {
                        serde_json::from_str::<serde_json::Value>(&ended.stdout).expect("JSON");
                    }
                }
            }
        }
    }
}

#[test]
fn a_record_with_a_line_of_65_kib_is_refused_without_showing_it() {
    let locks = Locks::new();
    locks.write(format!("{}command={}\n", stale_record(), "\x1b[31mz".repeat(65_536 / 6)));
    not_a_lock(&locks, "it is larger than 64 KiB");
}

// Places where no lock can be.

#[test]
fn a_directory_that_is_not_there_is_not_made_by_the_way() {
    let locks = Locks::new();
    let dir = locks.dir().join("nope/deeper");
    let dir = dir.to_str().expect("UTF-8");
    let ended = run(&locks, &["lock", "--max-attempts", "1", "--dir", dir]);
    refused(
        &ended,
        1,
        &[
            "cannot create the lock file",
            "no such file or directory",
            "(hint: create the directory with",
        ],
    );
    refused(&run(&locks, &["unlock", "--dir", dir]), 1, &["it is not locked"]);
    let (listed, named, judged) =
        (&["status"][..], &["status", "x.lck"], &["status", "--exit-code"]);
    for (args, code) in [(listed, 1), (named, 1), (judged, 4), (&["wait", "-n"], 1)] {
        let ended = run(&locks, &[args, &["--dir", dir]].concat());
        refused(&ended, code, &["deeper` does not exist", "initialize --dir ", " creates it"]);
    }
    refused(
        &run(&locks, &["status", "--all", "--dir", dir]),
        1,
        &["cannot list the lock directory", "no such file or directory"],
    );
    assert_eq!(locks.names(), [""; 0]);
}

#[test]
fn a_file_is_no_directory() {
    let locks = Locks::new();
    locks.write(stale_record());
    let before = snapshot(locks.dir());
    for command in ALL {
        let ended = ended(limited(&locks, command).env("SERIALIZER_DIR", locks.file()));
        refused(&ended, 1, &["the lock file", "serializer.lck/serializer.lck", "not a directory"]);
    }
    for command in [&["initialize"][..], &["status", "--all"]] {
        let ended = ended(limited(&locks, command).env("SERIALIZER_DIR", locks.file()));
        refused(&ended, 1, &["the lock directory", "serializer.lck"]);
    }
    assert_eq!(snapshot(locks.dir()), before);
}

#[test]
fn a_directory_that_may_not_be_written_to_is_named() {
    let locks = Locks::new();
    let user = OrdinaryUser::new(&locks);
    set_mode(locks.dir(), 0o555);
    let ended = user.run(&locks, LOCK);
    refused(
        &ended,
        1,
        &[
            "cannot create the lock file",
            "permission denied (hint: name a directory that you can write to",
        ],
    );
    refused(&user.run(&locks, &["unlock"]), 1, &["it is not locked"]);
    refused(
        &user.run(&locks, &["initialize"]),
        1,
        &["cannot create the lock file", "permission denied"],
    );
    assert_eq!(locks.names(), [""; 0]);
    set_mode(locks.dir(), 0o755);
}

#[test]
fn a_stale_lock_that_may_not_be_changed_stays() {
    let locks = Locks::new();
    let user = OrdinaryUser::new(&locks);
    locks.write(stale_record());
    set_mode(&locks.file(), 0o444);
    set_mode(locks.dir(), 0o555);
    let before = snapshot(locks.dir());
    refused(
        &user.run(&locks, LOCK),
        1,
        &[
            "cannot take over the lock file",
            "permission denied (hint: in a directory with the sticky bit, only",
        ],
    );
    refused(
        &user.run(&locks, &["unlock"]),
        1,
        &["the lock file", "permission denied (hint: in a directory with the sticky bit"],
    );
    refused(&user.run(&locks, &["unlock", "--force"]), 1, &["the lock file", "permission denied"]);
    assert_eq!(user.run(&locks, &["status"]).code, 0);
    assert_eq!(snapshot(locks.dir()), before);
    set_mode(locks.dir(), 0o755);
}

#[test]
fn a_stale_lock_of_a_file_that_may_not_be_written_to_is_replaced_where_it_may_be_removed() {
    let locks = Locks::new();
    let user = OrdinaryUser::new(&locks);
    locks.write(stale_record());
    set_mode(&locks.file(), 0o444);
    let ended = user.run(&locks, LOCK);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(locks.read().starts_with(&format!("{}\n", std::process::id())));
    assert_eq!(locks.names(), ["serializer.lck"]);
}

#[test]
fn a_lock_file_that_may_not_be_read_counts_as_held() {
    let locks = Locks::new();
    let user = OrdinaryUser::new(&locks);
    locks.write(stale_record());
    set_mode(&locks.file(), 0o000);
    let inode = fs::metadata(locks.file()).expect("it is there").ino();
    for args in ALL {
        refused(
            &user.run(&locks, args),
            1,
            &["cannot read the lock file", "permission denied (hint: `ls -l "],
        );
    }
    assert_eq!(fs::metadata(locks.file()).expect("it is there").ino(), inode);
    assert_eq!(locks.names(), ["serializer.lck"]);
}

#[test]
fn a_holder_with_a_strict_umask_is_waited_for_by_other_users() {
    let locks = Locks::new();
    let user = OrdinaryUser::new(&locks);
    let mut holder = Shell::start(&locks);
    assert_eq!(holder.run("umask 077"), 0);
    holder.lock();
    let ended = user.run(&locks, LOCK);
    refused(&ended, 75, &[&format!("held by pid {} (bash", holder.pid())]);
    let mode = fs::metadata(locks.file()).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "it may be read, and not written to");
}

/// Runs a command of the program in a shell, and tells what it said.
fn in_shell(shell: &mut Shell, args: &str) -> Ended {
    let (code, stderr) = shell.output(&format!(r#""$S" {args} 2>&1 >/dev/null"#));
    Ended { code, stdout: String::new(), stderr }
}

/// What [`snapshot`] tells, of a directory that only `shell` sees.
fn snapshot_in(shell: &mut Shell) -> String {
    let look = r#"cd "$SERIALIZER_DIR" && find . -mindepth 1 -printf '%p %i %s %m %T@\n' | sort && cat -- * 2>/dev/null | cksum; cd - >/dev/null"#;
    shell.output(look).1
}

/// A shell that sees a small file system of its own in the directory.
fn with_small_disk(locks: &Locks, options: &str) -> Shell {
    let mut shell = unshared_shell(locks, &["--mount"]);
    assert_eq!(shell.run(&format!(r#"mount -t tmpfs -o {options} small "$SERIALIZER_DIR""#)), 0);
    shell
}

#[test]
fn a_read_only_file_system_is_named() {
    let locks = Locks::new();
    let mut shell = with_small_disk(&locks, "size=64k");
    assert_eq!(shell.run(r#"mount -o remount,bind,ro "$SERIALIZER_DIR""#), 0);
    let why = "read-only file system (hint: name another directory with `SERIALIZER_DIR`)";
    refused(
        &in_shell(&mut shell, "lock --max-attempts 1"),
        1,
        &["cannot create the lock file", why],
    );
    refused(&in_shell(&mut shell, "initialize"), 1, &["cannot create the lock file", why]);
    refused(&in_shell(&mut shell, "unlock"), 1, &["it is not locked"]);

    let record = stale_record();
    let fill = format!(
        r#"mount -o remount,bind,rw "$SERIALIZER_DIR" && printf '%s' '{record}' > "$SERIALIZER_DIR"/serializer.lck"#
    );
    assert_eq!(shell.run(&fill.replace('\n', "'$'\\n''")), 0);
    assert_eq!(shell.run(r#"mount -o remount,bind,ro "$SERIALIZER_DIR""#), 0);
    let before = snapshot_in(&mut shell);
    assert!(before.contains("./serializer.lck"), "{before}");
    refused(
        &in_shell(&mut shell, "lock --max-attempts 1"),
        1,
        &["cannot take over the lock file", why],
    );
    refused(&in_shell(&mut shell, "unlock"), 1, &["the lock file", why]);
    assert_eq!(in_shell(&mut shell, "status").code, 0);
    assert_eq!(snapshot_in(&mut shell), before);
}

#[test]
fn a_full_disk_is_named_and_nothing_is_left_on_it() {
    let locks = Locks::new();
    let mut shell = with_small_disk(&locks, "size=64k");
    let fill = r#": > "$SERIALIZER_DIR"/empty && ! head -c 1M /dev/zero 2>/dev/null > "$SERIALIZER_DIR"/full 2>/dev/null"#;
    assert_eq!(shell.run(fill), 0, "the disk is full");
    let before = snapshot_in(&mut shell);
    let why = "no space left on device (hint: make room there: another directory would have";
    refused(
        &in_shell(&mut shell, "lock --max-attempts 1"),
        1,
        &["cannot create the lock file", why],
    );
    refused(&in_shell(&mut shell, "initialize"), 1, &["cannot create the lock file", why]);
    assert_eq!(snapshot_in(&mut shell), before);

    assert_eq!(shell.run(r#"touch -d '1 minute ago' "$SERIALIZER_DIR"/empty"#), 0);
    let before = snapshot_in(&mut shell);
    refused(
        &in_shell(&mut shell, "lock --max-attempts 1 --file-name empty"),
        1,
        &["cannot take over the lock file", why],
    );
    assert_eq!(snapshot_in(&mut shell), before);
    // What is stale is taken over before it is removed.
    refused(&in_shell(&mut shell, "unlock --file-name empty"), 1, &["the lock file", why]);
    assert_eq!(snapshot_in(&mut shell), before);
    assert_eq!(shell.run(r#"rm "$SERIALIZER_DIR"/full"#), 0);
    assert_eq!(in_shell(&mut shell, "unlock --file-name empty").code, 0);
}

#[test]
fn a_lock_that_one_holds_is_released_on_a_full_disk() {
    let locks = Locks::new();
    let mut shell = with_small_disk(&locks, "size=64k");
    shell.lock();
    assert_eq!(
        shell.run(r#"! head -c 1M /dev/zero 2>/dev/null > "$SERIALIZER_DIR"/full 2>/dev/null"#),
        0,
        "the disk is full"
    );
    shell.unlock();
    assert_eq!(shell.output(r#"ls -A "$SERIALIZER_DIR""#).1, "full\n");
}

#[test]
fn anothers_lock_in_a_directory_that_may_not_be_written_to_stays_even_by_force() {
    let locks = Locks::new();
    let user = OrdinaryUser::new(&locks);
    let mut holder = Shell::start(&locks);
    holder.lock();
    set_mode(locks.dir(), 0o555);
    let before = snapshot(locks.dir());
    refused(
        &user.run(&locks, &["unlock", "--force"]),
        1,
        &["cannot remove the lock file", "permission denied (hint: `ls -l "],
    );
    assert_eq!(snapshot(locks.dir()), before);
    set_mode(locks.dir(), 0o755);
}

#[test]
fn a_disk_without_room_for_another_file_is_named() {
    let locks = Locks::new();
    let mut shell = with_small_disk(&locks, "nr_inodes=2");
    assert_eq!(shell.run(r#": > "$SERIALIZER_DIR"/last"#), 0);
    let before = snapshot_in(&mut shell);
    refused(
        &in_shell(&mut shell, "lock --max-attempts 1"),
        1,
        &["cannot create the lock file", "no space left on device"],
    );
    assert_eq!(snapshot_in(&mut shell), before);
}

#[test]
fn a_stale_lock_on_a_full_disk_stays_until_there_is_room() {
    let locks = Locks::new();
    let mut shell = with_small_disk(&locks, "size=64k");
    assert_eq!(
        shell.run(r#"sleep infinity & owner=$!; "$S" lock --owner-pid $owner 2>/dev/null"#),
        0
    );
    assert_eq!(
        shell.run(r#"! head -c 1M /dev/zero 2>/dev/null > "$SERIALIZER_DIR"/full 2>/dev/null"#),
        0,
        "the disk is full"
    );
    assert_eq!(shell.run("kill -9 $owner; wait $owner 2>/dev/null; true"), 0);
    let before = snapshot_in(&mut shell);
    let ended = in_shell(&mut shell, "lock --max-attempts 1");
    refused(
        &ended,
        1,
        &["cannot take over the lock file", "no space left on device (hint: make room there"],
    );
    assert_eq!(snapshot_in(&mut shell), before);
    assert_eq!(shell.run(r#"rm "$SERIALIZER_DIR"/full"#), 0);
    let ended = in_shell(&mut shell, "lock --max-attempts 1");
    assert!(ended.code == 0 && ended.stderr.contains("taken over"), "{ended:?}");
}

// File names.

#[test]
fn a_file_name_that_would_break_lines_is_refused() {
    let locks = Locks::new();
    for name in [
        "a\nb",
        "a\rb",
        "a\tb",
        "\x1b[2Jx",
        "a\x07",
        "a\x7f",
        "a\u{85}b",
        "a\u{9b}b",
        "a\u{2028}b",
        "a\u{202e}b",
    ] {
        for command in [LOCK, &["unlock"], &["status"]] {
            let ended = run(&locks, &[command, &["--file-name", name]].concat());
            refused(&ended, 2, &["as a lock file: its name contains a control character"]);
            let ended = support::ended(limited(&locks, command).env("SERIALIZER_FILE_NAME", name));
            refused(&ended, 2, &["as a lock file: its name contains a control character"]);
        }
        refused(&run(&locks, &["status", name]), 2, &["its name contains a control character"]);
    }
    assert_eq!(locks.names(), [""; 0]);
}

#[test]
fn a_file_name_that_names_a_directory_is_refused() {
    let locks = Locks::new();
    fs::create_dir(locks.dir().join("sub")).expect("a directory");
    let before = snapshot(locks.dir());
    for name in ["..", ".", "/", "sub", "sub/", "sub/.", "sub/..", "./", "nothing/"] {
        for command in [LOCK, &["unlock"], &["unlock", "--force"], &["status"]] {
            let ended = run(&locks, &[command, &["--file-name", name]].concat());
            assert!([1, 2].contains(&ended.code), "{name}: {ended:?}");
            refused(&ended, ended.code, &["directory", "lock file"]);
        }
    }
    assert_eq!(snapshot(locks.dir()), before);
}

#[test]
fn a_name_of_our_own_files_is_refused() {
    let locks = Locks::new();
    let token = "0123456789abcdef".repeat(2);
    let temporary = &*format!(".serializer.{token}.tmp");
    for command in ALL {
        for name in [temporary, ".serializer.probe", &format!("sub/.serializer.{token}.probe")] {
            let ended = run(&locks, &[command, &["--file-name", name]].concat());
            refused(&ended, 2, &["as a lock file: this program's own files have such names"]);
        }
    }
    // A kill has left one with a record.
    let mut shell = Shell::start(&locks);
    shell.lock();
    std::fs::copy(locks.file(), locks.dir().join(temporary)).expect("copied");
    let (_, listed) = shell.output(r#""$S" status"#);
    assert!(listed.contains("serializer.lck") && !listed.contains(temporary), "{listed}");

    // Locks with similar names are not removed.
    let similar = [".serializer.job.tmp", ".serializer.job.probe", &temporary.to_uppercase()];
    for name in similar {
        assert_eq!(shell.run(&format!(r#""$S" lock {name} 2>/dev/null"#)), 0, "{name}");
    }
    for name in similar.iter().chain([&temporary]) {
        let file = File::options().write(true).open(locks.dir().join(name)).expect("it is there");
        let old = SystemTime::now() - Duration::from_secs(120);
        file.set_modified(old).expect("it can be old");
    }
    assert_eq!(locks.run(&["initialize"]).code, 0);
    let is_there = |name: &str| locks.dir().join(name).exists();
    assert!(similar.into_iter().all(is_there) && !is_there(temporary));
    for name in similar {
        assert_eq!(shell.run(&format!(r#""$S" unlock {name} 2>/dev/null"#)), 0, "{name}");
    }
}

#[test]
fn a_file_name_that_is_too_long_is_refused() {
    let locks = Locks::new();
    let name = "x".repeat(300);
    for command in ALL {
        let ended = run(&locks, &[command, &["--file-name", &name]].concat());
        refused(&ended, 1, &["the lock file", "file name too long"]);
    }
    assert_eq!(locks.names(), [""; 0]);
}

#[test]
fn an_unusual_file_name_is_none_of_our_business() {
    let locks = Locks::new();
    let mut shell = Shell::start(&locks);
    let long = "x".repeat(255);
    let hidden = ".serializer.lck";
    for name in ["two words.lck", "-x", "ü€𝄞", "a'b\"c", "*", "%s{}", ".hidden", hidden, &long]
    {
        let quoted = name.replace('\'', r"'\''");
        assert_eq!(
            shell.run(&format!("\"$S\" lock --file-name='{quoted}' 2>/dev/null")),
            0,
            "{name}"
        );
        assert_eq!(locks.names(), [name]);
        assert_eq!(
            shell.run(&format!("\"$S\" unlock --file-name='{quoted}' 2>/dev/null")),
            0,
            "{name}"
        );
        assert_eq!(locks.names(), [""; 0]);
    }
}

#[test]
fn an_argument_that_is_not_utf_8_is_refused_in_one_line() {
    let locks = Locks::new();
    let odd = OsStr::from_bytes(b"\xff");
    for command in [&["once"][..], &["forget"], &["schedule", "run"], &["lock", "--slots"]] {
        let mut command = limited(&locks, command);
        refused(&ended(command.arg(odd)), 2, &["invalid"]);
    }
}

#[test]
fn a_file_name_need_not_be_utf_8() {
    let locks = Locks::new();
    let name = OsStr::from_bytes(b"a\xffb.lck");
    let ended = ended(locks.serializer(LOCK).arg("--file-name").arg(name));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(locks.dir().join(name).exists());
}

// Settings.

/// Each variable, values that it cannot have, and what is expected of it instead.
const VARIABLES: [(&str, &[&str], &str); 4] = [
    (
        "SERIALIZER_MAX_ATTEMPTS",
        &["abc", "-1", "1e3", "1.5", "+1", "1 2", "4294967296", "99999999999999999999999", "1\n2"],
        "expected a whole number from 0 (try for ever) to 4294967295",
    ),
    (
        "SERIALIZER_SLEEP_SECONDS",
        &[
            "abc",
            "-1",
            "1e3",
            "inf",
            "NaN",
            "+1",
            "1s",
            "1 2",
            ".",
            "31536001",
            "99999999999999999999999",
            "1\n2",
        ],
        "expected a number of seconds from 0 to 31536000, such as 1 or 0.5",
    ),
    (
        "SERIALIZER_OWNER_PID",
        &["abc", "-1", "1e3", "0", "+1", "1 2", "2147483648", "99999999999999999999999", "1\n2"],
        "expected a process id, a whole number from 1 to 2147483647",
    ),
    (
        "SERIALIZER_ORPHANS",
        &["abc", "-1", "1e3", "Wait", "ignore ", "yes"],
        "expected `wait` or `ignore`",
    ),
];

fn flag(variable: &str) -> String {
    format!("--{}", variable.trim_start_matches("SERIALIZER_").to_lowercase().replace('_', "-"))
}

#[test]
fn a_malformed_variable_is_named_in_full_with_what_was_expected() {
    let locks = Locks::new();
    for (variable, values, expected) in VARIABLES {
        for value in values {
            let ended = ended(limited(&locks, &["lock"]).env(variable, value));
            refused(&ended, 2, &[&format!("`{variable}`"), expected]);
            assert_eq!(locks.names(), [""; 0]);
        }
    }
}

#[test]
fn blanks_around_a_number_do_not_count_and_those_of_a_word_are_shown() {
    let locks = Locks::new();
    let mut command = limited(&locks, &["lock", "--slots", " 2", "--sleep-seconds", "1 "]);
    assert_eq!(ended(command.env("SERIALIZER_SLOTS", "3 ")).code, 0);
    let ended = ended(limited(&locks, &["lock"]).env("SERIALIZER_ORPHANS", "ignore "));
    refused(&ended, 2, &["cannot use `SERIALIZER_ORPHANS` `ignore `: expected"]);
}

#[test]
fn a_malformed_variable_is_quoted_within_bounds() {
    let locks = Locks::new();
    let ended =
        ended(limited(&locks, &["lock"]).env("SERIALIZER_MAX_ATTEMPTS", "\x1b[2J9".repeat(20_000)));
    refused(&ended, 2, &["`SERIALIZER_MAX_ATTEMPTS`"]);
}

#[test]
fn a_variable_that_is_not_utf_8_is_named_in_full() {
    let locks = Locks::new();
    let value = OsStr::from_bytes(b"1\xff");
    for variable in VARIABLES
        .map(|(variable, ..)| variable)
        .into_iter()
        .chain(["SERIALIZER_FILE_NAME", "SERIALIZER_DIR"])
    {
        let ended = ended(limited(&locks, &["lock"]).env(variable, value));
        refused(&ended, 2, &[&format!("cannot use `{variable}`: it is not valid UTF-8")]);
        assert_eq!(locks.names(), [""; 0]);
    }
}

#[test]
fn a_malformed_flag_is_named_with_what_was_expected() {
    let locks = Locks::new();
    for (variable, values, expected) in VARIABLES {
        let flag = flag(variable);
        let expected = if flag == "--orphans" { "wait, ignore" } else { expected };
        for value in values.iter().chain(&[""]) {
            refused(&run(&locks, &["lock", &format!("{flag}={value}")]), 2, &[&flag, expected]);
            // A negative word looks like a flag.
            if flag != "--orphans" || !value.starts_with('-') {
                refused(&run(&locks, &["lock", &flag, value]), 2, &[&flag, expected]);
            }
            assert_eq!(locks.names(), [""; 0]);
        }
    }
}

/// `lock` with a good flag and the variable.
fn lock_by_flag(variable: &str, value: &OsStr) -> Ended {
    let locks = Locks::new();
    let good = match variable {
        "SERIALIZER_OWNER_PID" => std::process::id().to_string(),
        "SERIALIZER_ORPHANS" => "wait".to_owned(),
        _ => "1".to_owned(),
    };
    ended(locks.serializer(&["lock", &flag(variable), &good]).env(variable, value))
}

#[test]
fn a_flag_beats_a_malformed_variable() {
    for (variable, values, _) in VARIABLES {
        for value in values {
            let ended = lock_by_flag(variable, OsStr::new(value));
            assert_eq!(ended.code, 0, "{variable}={value:?}: {ended:?}");
        }
    }
}

#[test]
fn a_flag_beats_a_variable_that_is_not_utf_8() {
    for (variable, ..) in VARIABLES {
        let ended = lock_by_flag(variable, OsStr::from_bytes(b"1\xff"));
        assert_eq!(ended.code, 0, "{variable}: {ended:?}");
    }
}

/// Commands, and variables that are nothing to them.
const NOT_USED: [(&str, &[&str]); 5] = [
    ("status", &["SERIALIZER_MAX_ATTEMPTS", "SERIALIZER_SLEEP_SECONDS", "SERIALIZER_OWNER_PID"]),
    (
        "initialize",
        &[
            "SERIALIZER_MAX_ATTEMPTS",
            "SERIALIZER_SLEEP_SECONDS",
            "SERIALIZER_OWNER_PID",
            "SERIALIZER_ORPHANS",
        ],
    ),
    ("plugin", &["SERIALIZER_MAX_ATTEMPTS", "SERIALIZER_DIR", "SERIALIZER_FILE_NAME"]),
    ("describe", &["SERIALIZER_MAX_ATTEMPTS", "SERIALIZER_DIR", "SERIALIZER_FILE_NAME"]),
    ("man", &["SERIALIZER_MAX_ATTEMPTS", "SERIALIZER_DIR", "SERIALIZER_FILE_NAME"]),
];

#[test]
fn a_malformed_variable_that_is_not_used_does_no_harm() {
    let locks = Locks::new();
    for (command, variables) in NOT_USED {
        for variable in variables {
            let ended = ended(limited(&locks, &[command]).env(variable, "abc"));
            assert_eq!(ended.code, 0, "{command}, {variable}: {ended:?}");
        }
    }
}

#[test]
fn a_variable_that_is_not_utf_8_and_not_used_does_no_harm() {
    let locks = Locks::new();
    for (command, variables) in NOT_USED {
        for variable in variables.iter().chain(&["SERIALIZER_UNHEARD_OF"]) {
            let ended =
                ended(limited(&locks, &[command]).env(variable, OsStr::from_bytes(b"1\xff")));
            assert_eq!(ended.code, 0, "{command}, {variable}: {ended:?}");
        }
    }
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let locks = Locks::new();
    let mut command = locks.serializer(&["lock"]);
    for variable in
        VARIABLES.map(|(variable, ..)| variable).into_iter().chain(["SERIALIZER_FILE_NAME"])
    {
        command.env(variable, "");
    }
    let ended = ended(
        command.env("MELTANO_PROJECT_ROOT", "").env("LOG_LEVEL", "").env("MELTANO_LOG_JSON", ""),
    );
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.starts_with("serializer: locked "), "{ended:?}");
    assert_eq!(locks.names(), ["serializer.lck"]);
}

#[test]
fn an_empty_store_is_no_lock_of_this_machine() {
    // The result of `SERIALIZER_STORE=$MELTANO_DATABASE_URI` if that variable is not set: other
    // hosts would not be excluded.
    let locks = Locks::new();
    for args in
        [&["lock"][..], &["run", "true"], &["status"], &["status", "--all"], &["unlock"], &["wait"]]
    {
        let ended = ended(locks.serializer(args).env("SERIALIZER_STORE", ""));
        refused(&ended, 2, &["cannot use `SERIALIZER_STORE`: it is empty", "unset it"]);
    }
    // Nor one of hosts that share a directory.
    let in_a_directory = ended(
        locks
            .serializer(&["lock"])
            .env("SERIALIZER_STORE", "")
            .env("SERIALIZER_LEASE_SECONDS", "6"),
    );
    refused(&in_a_directory, 2, &["cannot use `SERIALIZER_STORE`: it is empty"]);
    assert!(locks.names().is_empty());
    // A flag that names another place makes the meaning clear.
    let elsewhere = locks.dir().display().to_string();
    let ended =
        ended(locks.serializer(&["run", "--dir", &elsewhere, "true"]).env("SERIALIZER_STORE", ""));
    assert_eq!(ended.code, 0, "{ended:?}");
}

#[test]
fn zero_attempts_by_flag_means_for_ever_whatever_the_variable_says() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let mut command = locks.serializer(&["lock", "--max-attempts", "0"]);
    command.env("SERIALIZER_MAX_ATTEMPTS", "1").env("SERIALIZER_SLEEP_SECONDS", "0.05");
    let waiter = Waiter::start(command);
    holder.unlock();
    let ended = waiter.end();
    assert_eq!(ended.code, 0, "{ended:?}");
}

#[test]
fn the_number_of_attempts_is_taken_from_the_variable() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let mut command = limited(&locks, &["lock"]);
    command.env("SERIALIZER_MAX_ATTEMPTS", "3").env("SERIALIZER_SLEEP_SECONDS", "0.01");
    let ended = ended(&mut command);
    assert_eq!(ended.code, 75, "{ended:?}");
    assert!(ended.stderr.contains("attempt 1 of 3"), "{ended:?}");
}

#[test]
fn what_other_programs_have_in_the_environment_does_no_harm() {
    let locks = Locks::new();
    let odd = OsStr::from_bytes(b"\xff\xfe\x1b\n");
    for name in [
        &b"FOREIGN"[..],
        b"FOREIGN\xff",
        b"MELTANO_PARENT_CONTEXT_UUID",
        b"LOG_LEVEL",
        b"LOG_LEVELS",
        b"MELTANO_LOG_JSON",
        b"TZ",
    ] {
        let mut command = locks.serializer(LOCK);
        let ended = ended(command.env(OsStr::from_bytes(name), odd));
        assert_eq!(ended.code, 0, "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        assert_eq!(locks.run(&["unlock"]).code, 0);
    }
}

#[test]
fn a_wrong_command_line_is_told_in_one_line() {
    let locks = Locks::new();
    for (args, part) in [
        (&["nonsense"][..], "nonsense"),
        (&["lokc"], "lokc"),
        (&["lock", "--bogus"], "--bogus"),
        (&["lock", "--max-atempts", "3"], "--max-attempts"),
        (&["lock", "one", "two"], "two"),
        (&["lock", "one", "--name", "two"], "--name"),
        (&["unlock", "one", "--once", "two"], "--once"),
        (&["unlock", "--max-attempts", "1"], "--max-attempts"),
        (&["lock", "--max-attempts"], "--max-attempts"),
        (&["lock", "--dir"], "--dir"),
        (&["lock", "--file-name", ""], "--name"),
        (&["lock", "--max-attempts", "1", "--max-attempts", "2"], "--max-attempts"),
        (&["status", "a", "--all"], "--all"),
        (&["status", "a", "--file-name", "b"], "--name"),
        (&["describe", "--format", "xml"], "xml"),
        (&["completions"], "<SHELL>"),
        (&["once", "--", "true"], "<KEY>"),
        (&["once", "--per", "day", "--", "echo", "hello"], "<KEY>"),
        (&["once", "key", "--"], "<CMD>"),
        (&["completions", "command.com"], "command.com"),
        (&["man", "nonsense"], "nonsense"),
        (&["lock", "--\x1b[2Jx\ny"], "unexpected argument"),
    ] {
        refused(&run(&locks, args), 2, &[part]);
    }
    assert_eq!(locks.names(), [""; 0]);
}

#[test]
fn a_typo_gets_one_tip() {
    let locks = Locks::new();
    for (args, tip) in [
        (
            &["flock", "--exklusive", "f", "true"][..],
            "(hint: a similar argument exists: '--exclusive')",
        ),
        (&["run", "--no-wiat", "true"], "(hint: a similar argument exists: '--no-wait')"),
        (&["lokc"], "(hint: some similar subcommands exist: 'unlock', 'flock', 'lock')"),
        (&["--meltano-log-json", "lock", "--bogus"], "(hint: for usage: `serializer lock --help`)"),
    ] {
        let ended = run(&locks, args);
        assert!(ended.code == 2 && ended.stderr.contains(tip), "{ended:?}");
        assert!(!ended.stderr.contains("tip:"), "{ended:?}");
        let is_json = serde_json::from_str::<serde_json::Value>(&ended.stderr).is_ok();
        assert_eq!(is_json, args.contains(&"--meltano-log-json"), "{ended:?}");
    }
}

#[test]
fn without_a_command_the_help_is_shown_as_an_error() {
    let locks = Locks::new();
    let ended = run(&locks, &[]);
    assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{ended:?}");
    assert!(ended.stderr.contains("Usage: serializer"), "{ended:?}");
}

// Other people's locks.

#[test]
fn what_is_not_locked_cannot_be_unlocked() {
    let locks = Locks::new();
    for args in [&["unlock"][..], &["unlock", "--force"]] {
        let message = format!("cannot unlock `{}`: it is not locked", locks.file().display());
        refused(&run(&locks, args), 1, &[&message]);
        assert_eq!(locks.names(), [""; 0]);
    }
}

#[test]
fn anothers_lock_is_not_unlocked_unless_by_force() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let before = snapshot(locks.dir());
    let named = format!("held by pid {} (bash ", holder.pid());
    refused(
        &locks.run(&["unlock"]),
        77,
        &[
            "cannot unlock",
            &named,
            " on ",
            ", which has had it for ",
            "(hint: ",
            "`serializer break ",
        ],
    );
    assert_eq!(snapshot(locks.dir()), before);

    let forced = locks.run(&["unlock", "--force"]);
    assert_eq!(forced.code, 0, "{forced:?}");
    assert!(
        forced
            .stderr
            .contains(&format!("broke lock `serializer.lck` of pid {} (bash ", holder.pid())),
        "{forced:?}"
    );
    assert!(!locks.file().exists(), "{:?}", locks.names());

    // The stale holder is told, once, whether another process has the lock now.
    let told = format!("serializer: lost `{}`: it was broken", locks.file().display());
    let unlock = r#""$S" unlock 2>&1"#;
    let (code, said) = holder.output(unlock);
    assert!(code == 76 && said.starts_with(&told) && !said.contains("force"), "{code} {said}");
    assert_eq!(locks.names(), [""; 0]);
    assert_eq!(holder.run(r#""$S" unlock 2>/dev/null"#), 1);

    holder.lock();
    assert_eq!(locks.run(&["unlock", "--force"]).code, 0);
    let mut other = Shell::start(&locks);
    other.lock();
    let (code, said) = holder.output(unlock);
    let held = format!("{told}; held now by pid {} ", other.pid());
    assert!(code == 76 && said.starts_with(&held) && !said.contains("force"), "{code} {said}");
    assert_eq!(locks.names(), ["serializer.lck"]);
    assert_eq!(holder.run(r#""$S" unlock 2>/dev/null"#), 77);
    assert_eq!(other.run(r#""$S" unlock"#), 0);

    // Also when it locks again, before it relies on that.
    for other in [None, Some(other)] {
        holder.lock();
        assert_eq!(locks.run(&["unlock", "--force"]).code, 0);
        let other = other.map(|mut other| {
            other.lock();
            other
        });
        let (code, said) = holder.output(r#""$S" lock -n 2>&1"#);
        let held = other.as_ref().map(|other| format!("{told}; held now by pid {} ", other.pid()));
        assert!(code == 76 && said.starts_with(held.as_ref().unwrap_or(&told)), "{code} {said}");
        if let Some(mut other) = other {
            assert_eq!(holder.run(r#""$S" lock -n 2>/dev/null"#), 75);
            assert_eq!(other.run(r#""$S" unlock"#), 0);
        }
        holder.lock();
        assert_eq!(holder.run(r#""$S" unlock"#), 0);
    }
}

#[test]
fn a_notice_of_a_broken_lock_ends_with_its_owner_and_disturbs_nothing() {
    let locks = Locks::new();
    let notices = locks.dir().join("serializer.lck.broken");
    let mut first = Shell::start(&locks);
    first.lock();
    let token = locks.report()["holder"]["token"].as_str().expect("a token").to_owned();
    assert_eq!(locks.run(&["break", "--token", &token]).code, 0);
    assert!(
        fs::read_to_string(&notices).is_ok_and(|text| text.contains(&token)),
        "{:?}",
        locks.names()
    );
    first.reap();

    // The next one that is left removes what is not asked for any more.
    let mut second = Shell::start(&locks);
    second.lock();
    assert_eq!(locks.run(&["unlock", "--force"]).code, 0);
    assert!(fs::read_to_string(&notices).is_ok_and(|text| !text.contains(&token)));
    assert_eq!(second.run(r#""$S" unlock 2>/dev/null"#), 76);
    assert_eq!(locks.names(), [""; 0]);

    // A file that is not a notice stays as it is.
    fs::write(&notices, "something else\n").expect("a file");
    second.lock();
    assert_eq!(locks.run(&["unlock", "--force"]).code, 0);
    assert_eq!(second.run(r#""$S" unlock 2>/dev/null"#), 1);
    assert_eq!(fs::read_to_string(&notices).expect("it is there"), "something else\n");

    // Nor is a lock of that name.
    fs::remove_file(&notices).expect("a file");
    assert_eq!(second.run(r#""$S" lock --file-name serializer.lck.broken"#), 0);
    let record = fs::read_to_string(&notices).expect("a lock");
    second.lock();
    assert_eq!(locks.run(&["unlock", "--force"]).code, 0);
    second.lock();
    assert_eq!(fs::read_to_string(&notices).expect("a lock"), record);
}

// Owners.

#[test]
fn an_owner_must_run() {
    let locks = Locks::new();
    let shell = Shell::start(&locks);
    let pid = shell.pid().to_string();
    shell.reap();
    let message =
        format!("no such process: {pid} (hint: check `--owner-pid` or `SERIALIZER_OWNER_PID`)");
    refused(&run(&locks, &["lock", "--owner-pid", &pid]), 2, &["cannot lock", &message]);
    refused(&ended(limited(&locks, &["lock"]).env("SERIALIZER_OWNER_PID", &pid)), 2, &[&message]);
    assert_eq!(locks.names(), [""; 0]);
    refused(&run(&locks, &["unlock", "--owner-pid", &pid]), 1, &["it is not locked"]);
}

#[test]
fn a_command_that_exits_at_once_does_not_own_a_lock() {
    let locks = Locks::new();
    // bash runs its last command in its own place.
    let own = ended(locks.command("bash").args(["-c", r#"exec "$S" lock --owner-pid $$"#]));
    refused(&own, 2, &["is this very command, which exits at once", "`serializer run -- COMMAND`"]);
    let unlocked = locks.script(r#""$S" lock --owner-pid $$ && exec "$S" unlock --owner-pid $$"#);
    assert_eq!(unlocked.code, 0, "{unlocked:?}");
    assert_eq!(locks.names(), [""; 0]);
}

/// Adopts what a shell in a session of its own leaves behind, and waits for it.
const ADOPTER: &str = r#"
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)
subprocess.run(["setsid", "--wait", "bash", "-c", sys.argv[1]])
os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
"#;

#[test]
fn what_has_adopted_a_command_does_not_own_its_lock() {
    let locks = Locks::new();
    let orphan =
        r#"(shell=$$; while kill -0 $shell; do sleep 0.01; done 2> /dev/null; exec "$S" lock) &"#;
    let ended = ended(locks.command("python3").args(["-c", ADOPTER, orphan]));
    refused(
        &ended,
        1,
        &["cannot lock", "the parent process has ended", "`serializer run -- COMMAND`"],
    );
    assert_eq!(locks.names(), [""; 0]);
}

#[test]
fn few_file_descriptors_are_enough_and_too_few_are_named() {
    let locks = Locks::new();
    let limited = |files: u32| {
        locks.script(&format!(r#"ulimit -n {files}; "$S" lock && "$S" unlock; exit $?"#))
    };
    assert_eq!(limited(8).code, 0);
    refused(&limited(4), 1, &["too many open files"]);
}

#[test]
fn an_owner_that_waits_to_be_reaped_does_not_run() {
    let locks = Locks::new();
    let mut zombie = locks.command("true").spawn().expect("it starts");
    let pid = zombie.id();
    rustix::process::waitid(
        rustix::process::WaitId::Pid(rustix::process::Pid::from_child(&zombie)),
        rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
    )
    .expect("a child to wait for");
    refused(
        &run(&locks, &["lock", "--owner-pid", &pid.to_string()]),
        2,
        &[&format!("no such process: {pid}")],
    );
    zombie.wait().expect("it is reaped");
    assert_eq!(locks.names(), [""; 0]);
}

const IN_A_CONTAINER: [&str; 7] =
    ["--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// A bash that the process table shows as `name`.
fn bash_named(locks: &Locks, name: &str) -> String {
    let path = locks.dir().join(name);
    let bash = ended(locks.command("bash").args(["-c", "type -P bash"])).stdout;
    copy_program(Path::new(bash.trim()), &path);
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn a_first_process_that_adopts_orphans_owns_no_lock() {
    let programs = Locks::new();
    let locks = Locks::new();
    for name in ["tini", "systemd", "init", "dumb-init", "docker-init"] {
        let mut command = locks.command("unshare");
        command.args(IN_A_CONTAINER).arg(bash_named(&programs, name));
        let mut shell = Shell::start_with(command);
        assert_eq!(shell.run("test $$ = 1"), 0);
        let ended = in_shell(&mut shell, "lock");
        let why = format!("the parent process, pid 1 ({name} ");
        refused(
            &ended,
            2,
            &[
                "cannot lock",
                &why,
                "never exits, so the lock would never be released",
                "`--owner-pid $$`",
            ],
        );
        assert_eq!(locks.names(), [""; 0]);
        // A request that names the owner is granted.
        assert_eq!(in_shell(&mut shell, "lock --owner-pid 1").code, 0);
        assert_eq!(in_shell(&mut shell, "unlock --owner-pid 1").code, 0);
    }
}

#[test]
fn a_service_manager_owns_no_lock_even_if_it_is_not_the_first_process() {
    let programs = Locks::new();
    let locks = Locks::new();
    let mut shell = Shell::start_with(locks.command(&bash_named(&programs, "systemd")));
    let why = format!("the parent process, pid {} (systemd ", shell.pid());
    refused(&in_shell(&mut shell, "lock"), 2, &[&why, "`--owner-pid $$`"]);
    assert_eq!(locks.names(), [""; 0]);
}

#[test]
fn a_shell_that_is_a_containers_first_process_owns_locks() {
    let locks = Locks::new();
    let mut command = locks.command("unshare");
    command.args(IN_A_CONTAINER).arg("bash");
    let mut shell = Shell::start_with(command);
    assert_eq!(shell.run("test $$ = 1"), 0);
    shell.lock();
    assert!(locks.read().starts_with("1\n"));
    shell.unlock();
}

#[test]
fn a_parent_in_another_container_owns_no_lock() {
    let locks = Locks::new();
    // Executed in place of unshare's child it is the first process there, and its parent is
    // outside.
    let mut command = locks.command("timeout");
    let ended = ended(command.args(["60", "unshare"]).args(IN_A_CONTAINER).args([PROGRAM, "lock"]));
    let why = "the parent process is in another container (PID namespace), so it cannot own a lock";
    refused(&ended, 2, &["cannot lock", why, "serializer run -- COMMAND", "`--owner-pid $$`"]);
    assert_eq!(locks.names(), [""; 0]);
}

// Secrets.

/// A script with these arguments, which ends when it is dropped.
struct Process(Child);

impl Process {
    fn start(locks: &Locks, args: &[&str]) -> Self {
        fs::write(locks.dir().join("x.sh"), "read").expect("a script");
        let mut command = locks.command("bash");
        command.current_dir(locks.dir()).arg("./x.sh").args(args).stdin(Stdio::piped());
        Self(command.spawn().expect("it starts"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A lock of a process with these arguments never shows `hunter2`, in the file or in any message.
#[track_caller]
fn keeps_secret(args: &[&str], shown: &str) {
    let locks = Locks::new();
    let owner = Process::start(&locks, args);
    let pid = owner.0.id().to_string();
    let locked = locks.run(&["lock", "--owner-pid", &pid]);
    assert_eq!(locked.code, 0, "{locked:?}");
    assert!(locked.stderr.contains(shown), "`{shown}` is not in {locked:?}");
    let record = locks.read();
    let mut said = format!("{record}{locked:?}");
    for legacy in [false, true] {
        if legacy {
            locks.write(format!("{pid}\n2026-11-22 08:00:00\n"));
        }
        for args in [
            LOCK,
            &["unlock"],
            &["status"],
            &["status", "--json"],
            &["lock", "--log-level", "debug", "--max-attempts", "1"],
        ] {
            said += &format!("\n{args:?}: {:?}", locks.run(args));
        }
        let ended = locks.run(&["unlock", "--force"]);
        assert_eq!(ended.code, 0, "{ended:?}");
        said += &format!("{ended:?}");
    }
    let told: Vec<_> = said.lines().filter(|line| line.contains("hunter2")).collect();
    assert!(told.is_empty(), "{} lines, such as {}", told.len(), told[0]);
}

#[test]
fn a_password_in_a_url_is_shown_nowhere() {
    for url in [
        "postgres://me:hunter2@db/x",
        "postgres://me:p@hunter2@db/x",
        "redis://:hunter2@db",
        "mysql://me:hunter2/x@db/x",
    ] {
        keeps_secret(&["orders", url, "eu"], "(bash ./x.sh orders …)");
        keeps_secret(&[&format!("--url={url}")], "(bash ./x.sh …)");
    }
    keeps_secret(&["postgres://db/x?user=me&password=hunter2"], "(bash ./x.sh …)");
}

#[test]
fn a_password_in_an_option_is_shown_nowhere() {
    keeps_secret(&["orders", "--password", "hunter2", "eu"], "(bash ./x.sh orders …)");
    keeps_secret(&["--password=hunter2"], "(bash ./x.sh …)");
    keeps_secret(&["--db-password=x=hunter2"], "(bash ./x.sh …)");
    keeps_secret(&["-phunter2", "orders"], "(bash ./x.sh …)");
    keeps_secret(&["PGPASSWORD=hunter2"], "(bash ./x.sh …)");
}

#[test]
fn a_password_of_several_words_is_shown_nowhere() {
    keeps_secret(&["--password", "correct hunter2"], "(bash ./x.sh …)");
    keeps_secret(&["--password=correct hunter2"], "(bash ./x.sh …)");
    keeps_secret(&["correct hunter2"], "(bash ./x.sh …)");
}

#[test]
fn a_parent_that_ends_with_the_command_cannot_own_a_lock() {
    let locks = Locks::new();
    let python = r#"python3 -c 'import os; os.system(os.environ["S"] + " lock")'; exit 2"#;
    for script in [r#"timeout 60 "$S" lock; exit $?"#, r#"flock x "$S" lock; exit $?"#, python] {
        let ended = ended(locks.command("bash").current_dir(locks.dir()).args(["-c", script]));
        assert_eq!(ended.code, 2, "{ended:?}");
        assert!(
            ended
                .last_line()
                .contains("only runs this command, so the lock would be released immediately"),
            "{ended:?}"
        );
        assert!(!locks.file().exists());
    }
    let ended = locks.script(r#"timeout 60 "$S" lock --owner-pid $$ && "$S" unlock; exit $?"#);
    assert_eq!(ended.code, 0, "{ended:?}");
}

#[test]
fn a_variable_that_only_begins_with_ours_is_not_ours() {
    let locks = Locks::new();
    // Meltano exports it for a setting named as in the Python plugin's README.
    let mut command = locks.serializer(&["status"]);
    command
        .env("SERIALIZER_FILE_NAME", "mine.lck")
        .env("SERIALIZER_SERIALIZER_FILE_NAME", "other.lck");
    let ended = ended(&mut command);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains("\nmine.lck  free\n"), "{ended:?}");
}
