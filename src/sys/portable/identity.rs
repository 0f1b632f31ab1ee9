//! The identities of this machine and its boot, from programs of the system: calls would be unsafe
//! code. Without an identity (`None`), no lock is acquired, and none counts as stale.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

/// How far start times of the same process may differ, in seconds. macOS keeps them; on Linux (for
/// tests), sysinfo computes them from the boot time, which changes when the clock is set.
const START_MARGIN: u64 = 2;

/// The length of an id of a boot. Any other answer would make each holder one of an earlier boot.
const UUID: usize = 36;

/// Whether a process that started at one of these times may have started at the other one.
pub fn is_same_start(one: u64, two: u64) -> bool {
    one.abs_diff(two) <= START_MARGIN
}

/// `/etc/machine-id`, or the number of a Mac's hardware.
pub fn machine() -> Option<String> {
    fs::read_to_string("/etc/machine-id").ok().or_else(|| {
        let told = output("/usr/sbin/ioreg", &["-rd1", "-c", "IOPlatformExpertDevice"])?;
        let line = told.lines().find(|line| line.contains("\"IOPlatformUUID\""))?;
        Some(line.split('"').nth(3)?.to_owned())
    })
}

/// The random id of this boot, on macOS or Linux. Not the boot time: it changes when the clock is
/// set, and each holder would then seem to be from an earlier boot.
pub fn boot() -> Option<String> {
    ["kern.bootsessionuuid", "kernel.random.boot_id"]
        .iter()
        .filter_map(|name| output("/usr/sbin/sysctl", &["-n", name]))
        .find(|id| id.trim().len() == UUID)
}

/// The same for all processes: the system has no PID namespaces. Linux never uses this number, so
/// each implementation treats the other's holders, with other start times, as unknown.
pub fn pid_namespace() -> Option<u64> {
    Some(super::process::FIRST_PID_NAMESPACE)
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let mut text = String::new();
    let read = child.stdout.take()?.read_to_string(&mut text);
    // An error means that SIGCHLD is ignored.
    let _ = child.wait();
    read.ok().map(|_| text)
}
