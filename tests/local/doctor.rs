//! `serializer doctor` names the lock and the settings that determine it, finds problems, and
//! changes nothing.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use crate::support::{Locks, OrdinaryUser, PROGRAM, ended};

const PAGE: &str = include_str!("../../docs/troubleshooting.md");

fn doctor(locks: &Locks) -> Command {
    locks.serializer(&["doctor", "--json"])
}

/// The exit code, and the report.
fn examined(command: &mut Command) -> (i32, Value) {
    let ended = ended(command);
    let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!((report["schema"].as_u64(), ended.stderr.as_str()), (Some(1), ""), "{ended:?}");
    assert_eq!(ended.code == 0, report["state"] != "error", "{ended:?}");
    (ended.code, report)
}

/// The states, values and hints of all checks with this name.
fn lines(report: &Value, what: &str) -> Vec<String> {
    let checks = report["checks"].as_array().expect("checks").iter();
    let line = |check: &Value| {
        let field = |name: &str| check[name].as_str().unwrap_or_default().to_owned();
        format!("{} {} → {}", field("state"), field("value"), field("hint"))
    };
    checks.filter(|check| check["what"] == what).map(line).collect()
}

fn line(report: &Value, what: &str) -> String {
    let lines = lines(report, what);
    assert_eq!(lines.len(), 1, "{what}: {report:#}");
    lines.concat()
}

#[test]
fn a_usable_directory_has_no_errors_and_stays_as_it_is() {
    let locks = Locks::durable();
    let (code, report) = examined(&mut doctor(&locks));
    assert_eq!(code, 0, "{report:#}");
    let lock = locks.file();
    assert_eq!(line(&report, "lock"), format!("ok {} → ", lock.display()));
    assert!(line(&report, "program").contains(env!("CARGO_PKG_VERSION")));
    assert!(line(&report, "file system").contains("flock works"), "{report:#}");
    assert_eq!(locks.names(), [""; 0]);
    let ended = locks.run(&["doctor", "a name that is much longer than a line of the table"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    for line in ended.stdout.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let coloured = locks.run(&["doctor", "--color", "always"]).stdout;
    assert!(coloured.contains("\u{1b}[32mok\u{1b}[0m"), "{coloured}");
}

#[test]
fn each_setting_that_determines_the_lock_is_named() {
    let locks = Locks::durable();
    let project = Locks::durable();
    fs::write(project.dir().join("meltano.yml"), "plugins: {utilities: [{name: dbtmutex}]}\n")
        .expect("a project");
    fs::write(project.dir().join(".env"), "export SERIALIZER_FILE_NAME=x.lck\n").expect("a file");
    let root = project.dir().to_str().expect("UTF-8");
    let absolute = project.file();
    let absolute = absolute.to_str().expect("UTF-8");
    for (variables, args, expected) in [
        (&[][..], &[][..], "name: the default; directory: `SERIALIZER_DIR`"),
        (&[("SERIALIZER_DIR", "")], &[], "name: the default; directory: the default"),
        (&[], &["--dir", root], "name: the default; directory: `--dir`"),
        (&[], &["x.lck"], "name: the command line; directory: `SERIALIZER_DIR`"),
        (
            &[("SERIALIZER_FILE_NAME", absolute)],
            &[],
            "name: `SERIALIZER_FILE_NAME`; directory: from",
        ),
        (
            &[("SERIALIZER_DIR", "."), ("MELTANO_PROJECT_ROOT", root), ("DBTMUTEX_DIR", ".")],
            &[],
            "directory: `SERIALIZER_DIR` from Meltano's settings, in `MELTANO_PROJECT_ROOT`",
        ),
        (
            &[("SERIALIZER_FILE_NAME", "x.lck"), ("MELTANO_PROJECT_ROOT", root)],
            &[],
            "name: `SERIALIZER_FILE_NAME` from `.env`",
        ),
        (&[("SERIALIZER_STORE", "ftp://x")], &["--dir", root], "directory: `--dir`"),
        (
            &[("SERIALIZER_LEASE_SECONDS", "60")],
            &["--dir", root],
            "directory: `--dir`; lease: `SERIALIZER_LEASE_SECONDS`",
        ),
        (
            &[],
            &["--store", "file:///", "--lease-seconds", "9"],
            "name: the default; store: `--store`; lease: `--lease-seconds`",
        ),
    ] {
        let mut command = doctor(&locks);
        let (_, report) = examined(command.envs(variables.iter().copied()).args(args));
        assert!(line(&report, "why").contains(expected), "{expected}: {report:#}");
    }
    let (_, report) = examined(doctor(&locks).env("MELTANO_PROJECT_ROOT", root));
    assert!(lines(&report, "project")[0].ends_with("with the plugin `dbtmutex` → "), "{report:#}");
    // Started in the project, but not by Meltano, which alone reads the file.
    let (code, report) = examined(doctor(&locks).current_dir(project.dir()));
    let [project, dotenv] = &lines(&report, "project")[..] else { panic!("{report:#}") };
    assert!(code == 0 && project.contains("with the plugin `dbtmutex`; its settings are not"));
    assert!(project.ends_with("→ `meltano invoke dbtmutex:doctor` sees them"), "{project}");
    assert!(dotenv.starts_with("warning `.env` sets `SERIALIZER_FILE_NAME` for Meltano only"));
}

#[test]
fn an_unusable_lock_is_an_error_with_advice() {
    let locks = Locks::durable();
    let text = locks.dir().join("notes.txt");
    fs::write(&text, "hello\n").expect("a file");
    for (variables, args, what, words) in [
        (&[][..], &["--dir", "/nowhere/at/all"][..], "rights", ["no such file", "initialize"]),
        (&[], &["notes.txt"], "lock file", ["is not a lock file", "was not changed"]),
        (&[("SERIALIZER_TIMEOUT", "soon")], &[], "variable", ["SERIALIZER_TIMEOUT", "expected"]),
        (&[("SERIALIZER_STORE", "")], &[], "lock", ["`SERIALIZER_STORE`: it is empty", "unset it"]),
        (&[("SERIALIZER_STORE", "ftp://me:hunter2@x")], &[], "lock", ["unsupported", "ftp://"]),
        (&[], &["--store", "file:///nowhere"], "server", ["does not exist", "mount it"]),
        (&[], &["--store", "postgres://me:hunter2@127.0.0.1:1/x"], "server", ["postgres", " → "]),
    ] {
        let mut command = doctor(&locks);
        let (code, report) = examined(command.envs(variables.iter().copied()).args(args));
        let line = line(&report, what);
        assert!(code == 1 && line.starts_with("error "), "{report:#}");
        for word in words {
            assert!(line.contains(word), "{word}: {line}");
        }
        assert!(!report.to_string().contains("hunter2"), "{report:#}");
        assert!(["variable", "lock"].contains(&what) || !line.ends_with("→ "), "advice: {line}");
    }
    let (code, report) = examined(doctor(&locks).env("SERIALIZER_SLTOS", "3"));
    assert_eq!(
        (code, &*line(&report, "variable")),
        (0, "warning unknown variable `SERIALIZER_SLTOS` has no effect → `SERIALIZER_SLOTS`")
    );
    // Only a task has a slot.
    let (_, report) = examined(doctor(&locks).env("SERIALIZER_SLOT", "3"));
    assert!(line(&report, "variable").contains("`SERIALIZER_SLOT` has no effect"), "{report:#}");
    let of_task = [("SERIALIZER_SLOT", "3"), ("SERIALIZER_TASK", "load")];
    let (_, report) = examined(doctor(&locks).envs(of_task));
    assert!(!report.to_string().contains("has no effect"), "{report:#}");
    assert_eq!(locks.names(), ["notes.txt"]);
}

#[test]
fn problems_with_rights_of_several_users_are_found() {
    let locks = Locks::new();
    let user = OrdinaryUser::new(&locks);
    let report = |mode| {
        fs::set_permissions(locks.dir(), Permissions::from_mode(mode)).expect("it is ours");
        let ended = user.run(&locks, &["doctor", "--json"]);
        line(&serde_json::from_str(&ended.stdout).expect("JSON"), "rights")
    };
    let denied = report(0o555);
    assert!(denied.starts_with("error mode 555, umask "), "{denied}");
    assert!(denied.contains("of one user; cannot write: permission denied"), "{denied}");
    assert!(report(0o777).starts_with("ok mode 777"));
    locks.write("1\n");
    let sticky = report(0o1777);
    // If the tests run as an ordinary user, that user owns the file.
    let of_another = rustix::process::geteuid().is_root();
    assert_eq!(sticky.starts_with("warning mode 1777"), of_another, "{sticky}");
    assert_eq!(sticky.contains("sticky: only another user"), of_another, "{sticky}");
    let hiding = ended(locks.command("bash").args(["-c", "umask 077; \"$S\" doctor"])).stdout;
    assert!(hiding.contains("their waiters cannot join your queue"), "{hiding}");
}

#[test]
fn the_path_of_meltano_and_missing_facilities_of_the_kernel_are_shown() {
    let locks = Locks::durable();
    let program = locks.dir().join("meltano");
    fs::write(&program, "").expect("a file");
    let (_, report) = examined(doctor(&locks).env("PATH", locks.dir()));
    assert_eq!(line(&report, "meltano"), format!("ok {} → ", program.display()));
    let (_, report) = examined(locks.command("strace").args([
        "-D",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "inject=pidfd_open:error=ENOSYS",
        PROGRAM,
        "doctor",
        "--json",
    ]));
    assert!(
        line(&report, "processes").starts_with("warning no pidfd → use Linux 5.3"),
        "{report:#}"
    );
}

#[test]
fn files_of_a_project_that_would_be_waited_for_are_not_read() {
    let locks = Locks::new();
    for name in [".env", "meltano.yml"] {
        let path = locks.dir().join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).expect("a FIFO");
    }
    let (_, report) = examined(doctor(&locks).env("MELTANO_PROJECT_ROOT", locks.dir()));
    for name in [".env", "meltano.yml"] {
        let why = format!("{name}`: it is not a regular file");
        assert!(report.to_string().contains(&why), "{report:#}");
    }
    assert_eq!(report["state"], "warning", "{report:#}");
}

#[test]
fn each_check_is_documented() {
    let source = include_str!("../../src/command/doctor.rs");
    let calls = ["check(\"", "judged(\"", "failed(\""];
    let names = calls.iter().flat_map(|call| source.split(call).skip(1));
    let names: BTreeSet<_> = names.filter_map(|rest| rest.split('"').next()).collect();
    assert!(names.len() > 8, "{names:?}");
    for name in names.iter().chain(&["processes", "/proc", "container", "machine-id"]) {
        assert!(PAGE.contains(&format!("\n| `{name}` | ")), "`{name}` is not documented");
    }
}
