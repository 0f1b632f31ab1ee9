//! The Python package, by its own tests in tests/python (pytest), on files and in DynamoDB.

use std::io::Write;
use std::path::Path;

use crate::support::servers::emulators::{installed, shared_dynalite};
use crate::support::{Locks, PROGRAM, ended};

#[test]
fn the_python_package_passes_its_tests() {
    let (locks, root) = (Locks::durable(), Path::new(env!("CARGO_MANIFEST_DIR")));
    let programs = Path::new(PROGRAM).parent().expect("a directory").display().to_string();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut pytest = locks.command(&installed("pytest/bin/python"));
    pytest.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/python"]);
    pytest.arg(format!("--basetemp={}", locks.dir().join("tests").display()));
    pytest.env("PYTHONPATH", root.join("python")).env("PYTHONDONTWRITEBYTECODE", "1");
    pytest.env("PATH", format!("{programs}:{path}")).env_remove("SERIALIZER_DIR");
    pytest.env("TEST_STORE", shared_dynalite().url()).current_dir(root);
    let ended = ended(&mut pytest);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    // Not captured by the harness, because scripts/test.sh counts these tests.
    let counts = ended.stdout.lines().last().unwrap_or_default();
    assert!(counts.contains(" passed in ") && !counts.contains("skipped"), "{counts}");
    writeln!(std::io::stdout(), "\nPYTEST: {counts}").expect("it can be said");
}
