//! The Python package: `serializer` on PyPI is another project, and its program would replace this
//! one.

use std::path::Path;
use std::process::Command;

use crate::CHECKOUT;
use crate::support::ended;

/// Packs Meltano's installation of this checkout as a wheel again, in a second version with another
/// program, and the other project beside it.
const PACK: &str = r##"
import importlib.metadata, pathlib, sys, zipfile

venv, to = map(pathlib.Path, sys.argv[1:])
[site] = venv.glob("lib/python3*/site-packages")
[found] = importlib.metadata.distributions(path=[str(site)])
LATER = "9999"

def wheel(name, version, content):
    content[f"{name}-{version}.dist-info/RECORD"] = "".join(f"{path},,\n" for path in content)
    with zipfile.ZipFile(to / f"{name}-{version}-py3-none-any.whl", "w") as file:
        for path, data in content.items():
            file.writestr(path, data)

def pack(version, program):
    name = found.metadata["Name"].replace("-", "_")
    content = {f"{name}-{version}.data/scripts/serializer": program}
    for file in found.files:
        path = file.as_posix().replace(f"-{found.version}.", f"-{version}.")
        if path.endswith((".py", ".typed")):
            content[path] = file.read_binary()
        elif path.endswith(("/METADATA", "/WHEEL")):
            old, new = (f"\nVersion: {it}\n" for it in (found.version, version))
            content[path] = file.read_text().replace(old, new)
    wheel(name, version, content)

pack(found.version, (venv / "bin/serializer").read_bytes())
pack(LATER, "#!/bin/sh\necho serializer " + LATER)
other = f"serializer-{LATER}"
wheel("serializer", LATER, {
    f"{other}.data/scripts/serializer": "#!/bin/sh\necho another project",
    f"{other}.dist-info/METADATA":
        f"Metadata-Version: 2.1\nName: serializer\nVersion: {LATER}\n",
    f"{other}.dist-info/WHEEL":
        "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
})
"##;

#[test]
fn the_package_is_installed_and_upgraded_by_a_name_of_its_own() {
    let meltano = Path::new(CHECKOUT).join("target/meltano");
    let of_meltano = |name: &str| Command::new(meltano.join("venv/bin").join(name));
    let dir = tempfile::TempDir::with_prefix("serializer-package-").expect("a directory");
    let runs = |command: &mut Command| {
        let ended = ended(command);
        assert_eq!(ended.code, 0, "{ended:?}");
        ended.stdout
    };
    let installed = meltano.join("project/.meltano/utilities/dbtmutex/venv");
    runs(of_meltano("python").args(["-c", PACK]).args([installed.as_path(), dir.path()]));
    let venv = dir.path().join("venv");
    runs(of_meltano("uv").args(["venv", "--quiet", "--offline"]).arg(&venv));
    let installs = |args: &[&str]| {
        let mut uv = of_meltano("uv");
        uv.args(["pip", "install", "--offline", "--no-cache", "--no-index", "--find-links"]);
        runs(uv.arg(dir.path()).arg("--python").arg(venv.join("bin/python")).args(args));
        runs(Command::new(venv.join("bin/serializer")).arg("--version"))
    };
    let version = env!("CARGO_PKG_VERSION");
    let first = installs(&[&format!("{}=={version}", env!("CARGO_PKG_NAME"))]);
    assert!(first.starts_with(&format!("serializer {version}\n")), "{first}");
    runs(Command::new(venv.join("bin/python")).args(["-c", "import meltano_serializer"]));
    assert_eq!(installs(&["--upgrade", env!("CARGO_PKG_NAME")]), "serializer 9999\n");
}
