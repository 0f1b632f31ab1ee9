//! Tests in PID namespaces of their own: a scan of every process then finds a few, whatever else
//! the machine runs.

use std::process::Command;

/// Set for a test that is in its namespace.
const INSIDE: &str = "SERIALIZER_TEST_IS_ALONE";

/// Makes tests of `name: what it does;`, each in a PID namespace of its own.
#[allow(unused_macros, reason = "not every test program has such tests")]
macro_rules! in_pid_namespaces {
    ($($(#[$attribute:meta])* $name:ident: $body:expr;)*) => {
        $($(#[$attribute])* #[test]
        fn $name() {
            let path = concat!(module_path!(), "::", stringify!($name));
            if crate::support::namespace::is_inside_or_runs(path) {
                $body;
            }
        })*
    };
}

#[allow(unused_imports, reason = "not every test program has such tests")]
pub(crate) use in_pid_namespaces;

/// Whether this is the namespace of that test. Otherwise it has run there, and has passed.
pub fn is_inside_or_runs(path: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let (_, name) = path.split_once("::").expect("the name of the test program");
    let program = std::env::current_exe().expect("a path");
    let mut command = Command::new("unshare");
    command.args([
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    // The first process there is to take leave of those that lose their parent.
    command.args(["bash", "-c", r#""$0" "$@"; exit $?"#]).arg(program);
    command.args(["--exact", name, "--nocapture", "--test-threads=2"]).env(INSIDE, "1");
    let ended = super::ended(&mut command);
    // Indented, since scripts/test.sh counts the results at the beginning of a line.
    let said = format!("{}{}", ended.stdout, ended.stderr).replace('\n', "\n    ");
    print!("    {said}");
    assert!(ended.code == 0 && said.contains(" 1 passed;"), "{name} failed in its PID namespace");
    false
}
