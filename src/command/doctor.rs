//! `serializer doctor`: which lock is used and why, and problems with it. Changes nothing.

use std::env::{split_paths, var_os};
use std::fmt::Display;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::process::{Pid, getpid, getuid};
use serde_json::{Value, json};

use super::output::{print, to_json};
use super::status::wrapped;
use crate::cli::DoctorArgs;
use crate::config::{Environment, project};
use crate::error::Error;
use crate::exit_code::{DONE, FAILED};
use crate::lock::register::Register;
use crate::logging;
use crate::store::seam::Kind;
use crate::store::{self, Location, engines, file};
use crate::sys::clock::since_1970;
use crate::sys::identity::HostIdentity;
use crate::sys::process::{self, FIRST_PID_NAMESPACE};
use crate::sys::text::{self, io_message};

/// The version of `--json`. A new field does not change it.
const SCHEMA: u32 = 1;

/// The tolerated difference between the clocks of a store and of this host, in milliseconds.
const SKEW: u64 = 5000;

/// The result of a check: `ok`, or a `warning` or an `error` with advice.
fn check(what: &str, state: &str, value: impl AsRef<str>, hint: &str) -> Value {
    let hint = Some(logging::hint(hint)).filter(|hint| !hint.is_empty());
    json!({ "what": what, "state": state, "value": value.as_ref(), "hint": hint })
}

/// `ok`, or a `warning` if there is a problem.
fn judged(what: &str, value: &str, problem: Option<impl Display>, hint: &str) -> Value {
    match problem {
        None => check(what, "ok", value, ""),
        Some(problem) => check(what, "warning", format!("{value}: {problem}"), hint),
    }
}

fn failed(what: &str, state: &str, error: impl Into<Error>) -> Value {
    let error = error.into();
    check(what, state, error.to_string(), error.hint.as_deref().unwrap_or_default())
}

pub fn run(args: &DoctorArgs, environment: &Environment) -> Result<u8, Error> {
    let program = engines::version().replace("\nstores", "; stores");
    let mut all = vec![check("program", "ok", program, "")];
    all.extend(environment.typos().into_iter().map(|typo| failed("variable", "warning", typo)));
    all.extend(environment.unusable().into_iter().map(|why| failed("variable", "error", why)));
    match environment.lock(&args.lock.file, args.lock.name.as_deref()) {
        Err(error) => all.push(failed("lock", "error", error)),
        Ok(lock) => {
            all.push(check("lock", "ok", lock.printable(), ""));
            all.push(check("why", "ok", why(args, environment, &lock), ""));
            let place = match &lock {
                Location::File(directory, _) => local(directory, &lock),
                Location::Store(..) => server(&lock),
            };
            all.extend(place.unwrap_or_else(|why| vec![why]));
        }
    }
    match environment.key(Kind::Once, &args.lock.file.place, "key") {
        Ok(Location::File(directory, _)) => {
            let hint = "for `once`, name another directory with `--dir`, or a store";
            all.push(judged("keys", &text::path(&directory), file::forgets(&directory), hint));
        }
        Ok(Location::Store(..)) => {}
        Err(error) => all.push(failed("keys", "warning", error)),
    }
    all.extend(kernel());
    all.extend(meltano(environment));
    let has = |state: &&str| all.iter().any(|check| check["state"] == **state);
    let state = ["error", "warning"].into_iter().find(has).unwrap_or("ok");
    let row = |check: &Value| {
        let field = |name: &str| check[name].as_str().unwrap_or_default().to_owned();
        let hint = check["hint"].as_str().map(|hint| format!("\n→ {hint}")).unwrap_or_default();
        vec![field("state"), field("what"), field("value") + &hint]
    };
    print(if args.json {
        to_json(&json!({ "schema": SCHEMA, "state": state, "checks": all }))?
    } else {
        wrapped(&["STATE", "WHAT", "VALUE"], all.iter().map(row))
    })?;
    Ok(if state == "error" { FAILED } else { DONE })
}

/// The text of a regular file, empty if it does not exist. A FIFO or a device may have no end.
fn read(path: &Path) -> io::Result<String> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => fs::read_to_string(path),
        Ok(_) => Err(io::Error::other("it is not a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// Whether the `.env` of the Meltano project sets a variable.
fn is_in_dotenv(name: &str) -> bool {
    // `meltano` has a line for a file that cannot be read.
    let dotenv = project().and_then(|root| read(&root.join(".env")).ok());
    dotenv.unwrap_or_default().lines().any(|line| {
        let set = line.split('=').next().unwrap_or_default().trim();
        set.trim_start_matches("export ").trim().strip_prefix("SERIALIZER_") == Some(name)
    })
}

/// The settings that determine the name, the place and the lease.
fn why(args: &DoctorArgs, environment: &Environment, lock: &Location) -> String {
    let root = var_os("MELTANO_PROJECT_ROOT");
    let source = |has_flag: bool, flag: &str, name: &str| match format!("`SERIALIZER_{name}`") {
        _ if has_flag => flag.to_owned(),
        _ if !environment.is_set(name) => "the default".to_owned(),
        variable if root.is_some() && is_in_dotenv(name) => variable + " from `.env`",
        // Meltano also exports each setting under the plugin's namespace.
        it if var_os(format!("DBTMUTEX_{name}")).is_some() => it + " from Meltano's settings",
        variable => variable,
    };
    let (file, place) = (&args.lock.file, &args.lock.file.place);
    let has_name = args.lock.name.is_some() || file.file_name.is_some();
    let name = source(has_name, "the command line", "FILE_NAME");
    let has_store = place.dir.is_none() && (place.store.is_some() || environment.is_set("STORE"));
    let place = match (environment.directory(Kind::Lock, place), lock) {
        _ if has_store => format!("store: {}", source(place.store.is_some(), "`--store`", "STORE")),
        (Ok(usual), Location::File(it, _)) if usual != *it => "directory: from the name".to_owned(),
        (usual, _) => {
            let source = source(place.dir.is_some(), "`--dir`", "DIR");
            let is_in = |root| usual.is_ok_and(|usual| usual.starts_with(root));
            let is_in_project = root.as_ref().is_some_and(is_in);
            let root = if is_in_project { ", in `MELTANO_PROJECT_ROOT`" } else { "" };
            format!("directory: {source}{root}")
        }
    };
    let lease = file.place.lease_seconds.is_some();
    let lease = source(lease, "`--lease-seconds`", "LEASE_SECONDS");
    format!("name: {name}; {place}")
        + &if lock.is_shared() { format!("; lease: {lease}") } else { String::new() }
}

/// The directory of a lock file: its rights, its users and its file system.
fn local(directory: &Path, lock: &Location) -> Result<Vec<Value>, Value> {
    let bad = |why, hint| check("rights", "error", why, hint);
    let missing = |error| {
        let why = format!("cannot read the directory: {}", io_message(&error));
        bad(why, "`serializer initialize` creates it")
    };
    let (metadata, this) = (fs::metadata(directory).map_err(missing)?, getuid());
    let mode = metadata.mode() & 0o7777;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    let umask = umask.unwrap_or("unknown").trim();
    let is_hiding = u32::from_str_radix(umask, 8).is_ok_and(|mask| mask & mode << 1 & 0o044 != 0);
    let users = if mode & 0o022 != 0 { "shared with other users" } else { "of one user" };
    let sticky = if mode & 0o1000 != 0 { ", sticky" } else { "" };
    let rights = format!("mode {mode:o}, umask {umask}, {users}{sticky}");
    let access = accessat(CWD, directory, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
    if let Err(error) = access {
        let why = format!("{rights}; cannot write: {}", io_message(&error.into()));
        return Err(bad(why, "set `SERIALIZER_DIR` to another directory"));
    }
    // In a sticky directory, only the file's or the directory's owner can remove the file.
    let file = fs::metadata(directory.join(&lock.key().name)).ok().filter(|_| !sticky.is_empty());
    let is_foreign = |file: Metadata| ![file.uid(), metadata.uid()].contains(&this.as_raw());
    let (problem, hint) = if file.is_some_and(is_foreign) && !this.is_root() {
        let problem = "only another user can remove the lock file";
        (Some(problem), "use a directory without the sticky bit")
    } else {
        (is_hiding.then_some("their waiters cannot join your queue"), "`umask 022`")
    };
    let mut all = vec![judged("rights", &rights, problem, hint)];
    let unknown = || ("unknown".to_owned(), Some("/proc does not show how flock works there"));
    let (name, doubt) = file::file_system(directory).unwrap_or_else(unknown);
    let hint = "for several hosts: a store, or `SERIALIZER_LEASE_SECONDS` with this directory";
    all.push(judged("file system", &name, doubt, hint));
    let loaded = Register::open(lock).and_then(|mut register| register.load());
    all.extend(loaded.err().map(|error| failed("lock file", "error", error)));
    Ok(all)
}

/// Whether a store answers, its server's version, and its clock.
fn server(lock: &Location) -> Result<Vec<Value>, Value> {
    let begun = Instant::now();
    let down = |error: store::Error| {
        let hint = error.hint.clone().unwrap_or_else(|| "start it, or check its address".into());
        failed("server", "error", error.with_hint(hint))
    };
    let mut register = Register::open(lock).map_err(down)?;
    register.load().map_err(down)?;
    let took = begun.elapsed().as_millis();
    let server = register.server().unwrap_or_else(|| lock.shown_place());
    let mut all = vec![check("server", "ok", format!("{server}: answers in {took} ms"), "")];
    if register.next_number().is_none() {
        let hint = "`serializer initialize` creates it; so does the first lock";
        all.push(check("table", "warning", "does not exist yet", hint));
    }
    if let Some(now) = register.now() {
        let skew = now.abs_diff(since_1970());
        let problem = (skew > SKEW).then_some("too large a difference");
        let value = format!("{skew} ms from this host's");
        all.push(judged("clock", &value, problem, "synchronise both (NTP)"));
    }
    Ok(all)
}

fn kernel() -> [Value; 4] {
    let (here, this) = (HostIdentity::here(), process::running(getpid()));
    let has_pidfd = this.as_ref().is_some_and(|this| this.ended_fd().is_some());
    let this = this.map(|this| this.instance).unwrap_or_default();
    let mount = "mount the /proc of this PID namespace";
    let processes = match (has_pidfd, this.pidfd) {
        (false, _) if !process::HAS_PIDFDS => ("ok", "polled for their end", ""),
        (false, _) => {
            ("warning", "no pidfd", "use Linux 5.3 or newer, or allow `pidfd_open` in seccomp")
        }
        (true, None) => ("ok", "pidfd", "Linux 6.9 and newer recognise even quickly reused PIDs"),
        (true, Some(_)) => ("ok", "pidfd with inode numbers", ""),
    };
    let proc = match this.start {
        None if this.pidfd.is_none() => ("error", "cannot be read", mount),
        None => ("warning", "cannot be read", mount),
        Some(_) if process::name(Pid::INIT).is_some() => ("ok", "can be read", ""),
        Some(_) => ("ok", "hides other users' processes", "their commands are not shown"),
    };
    let sharing = "to share locks with other containers: `--pid=host`, or a store";
    let container = match here.pid_namespace {
        Some(FIRST_PID_NAMESPACE) => ("ok", "none", ""),
        Some(_) => ("ok", "own PID namespace", sharing),
        None => ("ok", "unknown", ""),
    };
    let without = "run `systemd-machine-id-setup`; without it, locks stay held after a reboot";
    let machine = here.machine.map_or(("warning", "missing", without), |_| ("ok", "known", ""));
    [("processes", processes), ("/proc", proc), ("container", container), ("machine-id", machine)]
        .map(|(what, (state, value, hint))| check(what, state, value, hint))
}

fn meltano(environment: &Environment) -> Vec<Value> {
    let path = var_os("PATH").unwrap_or_default();
    let program = split_paths(&path).map(|it| it.join("meltano")).find(|it| it.is_file());
    let program = program.map_or("not on the PATH".to_owned(), |it| text::path(&it));
    let mut all = vec![check("meltano", "ok", program, "")];
    let Some(root) = project() else { return all };
    let unreadable = |path: &Path, error| {
        let why = format!("cannot read `{}`: {}", text::path(path), io_message(&error));
        check("project", "warning", why, "let this user read it, or run `doctor` as its user")
    };
    let (file, dotenv) = (root.join("meltano.yml"), root.join(".env"));
    all.push(match read(&file).map(|text| text.contains("name: dbtmutex")) {
        Err(error) => unreadable(&file, error),
        Ok(has_plugin) => {
            let (with, more, hint) = match has_plugin {
                false => ("without", "", "`serializer plugin` prints its definition"),
                true if logging::is_in_meltano() => ("with", "", ""),
                true => {
                    let hint = "`meltano invoke dbtmutex:doctor` sees them";
                    ("with", "; its settings are not seen here", hint)
                }
            };
            let value = format!("{}, {with} the plugin `dbtmutex`{more}", text::path(&file));
            check("project", "ok", value, hint)
        }
    });
    all.extend(read(&dotenv).err().map(|error| unreadable(&dotenv, error)));
    let names = ["STORE", "DIR", "FILE_NAME", "LEASE_SECONDS", "PASSWORD_FILE", "SLOTS"];
    for name in names.iter().filter(|name| is_in_dotenv(name) && !environment.is_set(name)) {
        let why = format!("`.env` sets `SERIALIZER_{name}` for Meltano only");
        let hint = "`set -a; . ./.env` sets it here, too; for Meltano's lock: `meltano invoke \
                    dbtmutex:doctor`";
        all.push(check("project", "warning", why, hint));
    }
    all
}
