//! Ends what tests have started when their program has ended, however that was: what waits for a
//! lock in a store would try again for ever.

use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// In the environment of all that tests start, with the test program's PID.
const MARK: &str = "STARTED_BY_TESTS";

/// Reads its stdin to the end, which the kernel closes with the test program. What has the mark is
/// killed, again and again while there is any: it may be about to start more. One that cannot be
/// killed is another user's, hence the limit.
const SCRIPT: &str = r#"
    read -r _
    for attempt in {1..20}; do
        marked=$(grep -lzxF -- "$1" /proc/[0-9]*/environ) || break
        pids=${marked//[^0-9$'\n']/}
        kill -KILL $pids
    done 2> /dev/null
"#;

/// Marks a command to be ended with this program.
pub fn mark(command: &mut Command) {
    static GUARD: OnceLock<Child> = OnceLock::new();
    let pid = std::process::id();
    GUARD.get_or_init(|| {
        let mut guard = Command::new("bash");
        guard.args(["-c", SCRIPT, "bash", &format!("{MARK}={pid}")]).stdin(Stdio::piped());
        // What a terminal or a shell sends to the tests must not end it.
        std::os::unix::process::CommandExt::process_group(&mut guard, 0);
        guard.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("bash starts")
    });
    command.env(MARK, pid.to_string());
}
