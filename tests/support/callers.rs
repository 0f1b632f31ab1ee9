//! Many callers of a few keys that run once, some of which are killed.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

/// How many call at a time.
const TOGETHER: usize = 6;

/// One of so many callers is killed.
const KILLED: usize = 20;

/// What a key runs, in the directory of `log`. Two runs of one key at a time would meet in the
/// flock, which ends with its process.
const SCRIPT: &str = r#"exec 8> "lock.$SERIALIZER_ONCE_KEY"; flock -n 8 || echo overlap >> log
    echo "$SERIALIZER_ONCE_KEY $SERIALIZER_TRY" >> log; sleep 0.02"#;

/// So many callers for each of the keys. `command` is given the arguments of `serializer`, and
/// `status` shows a key.
pub fn run_each_key_once(
    keys: &[String],
    each: usize,
    dir: &Path,
    command: &(dyn Fn(&[&str]) -> Command + Sync),
    status: &dyn Fn(&str) -> Value,
) {
    let callers = each * keys.len();
    let call = &|caller: usize, is_killed: bool| {
        let key = &keys[caller % keys.len()];
        let mut command =
            command(&["once", key, "--sleep-seconds", "0.2", "--", "bash", "-c", SCRIPT]);
        let mut child = command.current_dir(dir).stderr(Stdio::null()).spawn().expect("it starts");
        if is_killed {
            // Somewhere on its way; where does not matter.
            thread::sleep(Duration::from_millis((caller as u64 * 7) % 100));
            child.kill().expect("it can be killed");
        }
        let code = child.wait().expect("it ends").code();
        assert!(code == Some(0) || is_killed, "caller {caller}: {code:?}");
    };
    thread::scope(|scope| {
        for first in 0..TOGETHER {
            scope.spawn(move || {
                (first..callers)
                    .step_by(TOGETHER)
                    .for_each(|caller| call(caller, (caller + caller / keys.len()) % KILLED == 3))
            });
        }
    });
    // Keys of a killed last caller, too.
    (0..keys.len()).for_each(|key| call(key, false));
    let log = fs::read_to_string(dir.join("log")).expect("a log");
    let mut seen = HashSet::new();
    for line in log.lines() {
        assert!(line != "overlap" && seen.insert(line), "{line} is there twice: {log}");
    }
    let mut interruptions = 0;
    for key in keys {
        let status = status(key);
        let runs = status["try"].as_u64().unwrap_or(0);
        // Nothing but an interruption has led to another run.
        let ends = status["ends"].as_array().map_or(&[][..], Vec::as_slice);
        let is_interrupted =
            |end: &Value| end["how"].as_str().is_some_and(|how| how.starts_with("interrupted: "));
        let is_right = ends.split_last().is_some_and(|(last, earlier)| {
            (&last["try"], &last["code"]) == (&runs.into(), &0.into())
                && earlier.len() as u64 == (runs - 1).min(4)
                && earlier.iter().all(is_interrupted)
        });
        assert!(status["state"] == "done" && is_right, "{key}: {status} {log}");
        assert!(
            seen.contains(&*format!("{key} {runs}")),
            "{key}: its last run, {runs}, has not run: {log}"
        );
        let begun = seen.iter().filter(|line| line.starts_with(&format!("{key} "))).count() as u64;
        assert!(begun <= runs, "{key}: {begun} of {runs} runs: {log}");
        interruptions += runs - 1;
    }
    println!(
        "{callers} callers, {} keys: {} of {} runs begun, {interruptions} interrupted",
        keys.len(),
        seen.len(),
        keys.len() as u64 + interruptions
    );
    assert!(
        interruptions <= callers.div_ceil(KILLED) as u64,
        "{interruptions} runs more than keys: {log}"
    );
}
