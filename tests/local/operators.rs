//! What operators read: metrics, the log of events, and a warning after a long wait.

use std::fs;

use crate::support::{Locks, Shell, Waiter, until};

fn has(metrics: &str, line: &str) -> bool {
    metrics.lines().any(|known| known == line)
}

#[test]
fn metrics_tell_of_a_lock_its_waiters_and_a_key() {
    let locks = Locks::durable();
    let lock = locks.file().display().to_string();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let mut waiter = Waiter::start(locks.serializer(&["run", "--", "true"]));
    assert!(waiter.is_waiting());
    let metrics = || locks.run(&["status", "--metrics"]).stdout;
    // It says that it waits before it queues.
    let queued = format!("serializer_lock_waiters{{lock=\"{lock}\"}} 1");
    until("the waiter is queued", || has(&metrics(), &queued));
    let metrics = metrics();
    for (name, value) in [("held", 1), ("holders", 1)] {
        assert!(
            has(&metrics, &format!("serializer_lock_{name}{{lock=\"{lock}\"}} {value}")),
            "{name}: {metrics}"
        );
    }
    assert!(metrics.contains("serializer_lock_held_seconds{"), "{metrics}");
    holder.unlock();
    assert_eq!(waiter.end().code, 0);
    let metrics = locks.run(&["status", "--metrics"]).stdout;
    assert!(has(&metrics, &format!("serializer_lock_held{{lock=\"{lock}\"}} 0")), "{metrics}");
    // Each metric is described once, and no line is anything else.
    for line in metrics.lines() {
        assert!(
            ["# HELP serializer_lock_", "# TYPE serializer_lock_", "serializer_lock_"]
                .iter()
                .any(|begin| line.starts_with(begin))
        );
    }

    assert_eq!(locks.run(&["once", "a \"key\"", "--", "true"]).code, 0);
    assert_eq!(locks.run(&["once", "bad", "--", "false"]).code, 1);
    let metrics = locks.run(&["status", "--once", "--metrics"]).stdout;
    let place = format!("place=\"{}\"", locks.dir().display());
    let success = "serializer_key_last_success_timestamp_seconds{key=";
    assert!(metrics.contains(&format!("{success}\"a \\\"key\\\"\",{place}}} 1")), "{metrics}");
    assert!(has(&metrics, &format!("serializer_key_failed{{key=\"bad\",{place}}} 1")), "{metrics}");
    assert!(!metrics.contains(&format!("{success}\"bad\"")), "{metrics}");

    // The success of a script, and one before many failures, are not forgotten.
    let script = r#""$S" lock --once script; "$S" unlock --once script"#;
    assert_eq!(holder.run(&format!("{{ {script}; }} 2>/dev/null")), 0);
    let again = ["once", "old", "--valid-for", "0.1s", "--"];
    assert_eq!(locks.run(&[&again[..], &["true"]].concat()).code, 0);
    let fails = || locks.run(&[&again[..], &["false"]].concat()).code == 1;
    until("it has expired", fails);
    assert!((0..6).all(|_| fails()));
    // What cannot be read is neither held nor free.
    fs::create_dir(locks.dir().join("directory.lck")).expect("a directory");
    let metrics = locks.run(&["status", "--once", "--metrics"]).stdout;
    for key in ["script", "old"] {
        assert!(metrics.contains(&format!("{success}\"{key}\"")), "{key}: {metrics}");
    }
    let unread = locks.run(&["status", "--metrics", "directory.lck", "serializer.lck"]).stdout;
    assert_eq!(unread.matches("serializer_lock_held{").count(), 1, "{unread}");
}

#[test]
fn events_tell_how_each_lock_was_acquired_and_released() {
    let locks = Locks::new();
    let log = locks.dir().join("events");
    let run = |args: &[&str]| {
        let ended = crate::support::ended(locks.serializer(args).env("SERIALIZER_EVENTS", &log));
        let text = fs::read_to_string(&log).unwrap_or_default();
        let events =
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        (ended.code, events.collect::<Vec<_>>())
    };
    let (code, events) = run(&["run", "--", "sh", "-c", "exit 7"]);
    let names: Vec<_> =
        events.iter().map(|event| event["event"].as_str().expect("a name")).collect();
    assert_eq!((code, names), (7, vec!["acquire", "release"]));
    assert!(events[0]["waited_seconds"].is_number() && events[1]["exit_code"] == 7, "{events:?}");
    assert!(
        events.iter().all(|event| event["lock"] == locks.file().display().to_string()
            && event["time"].is_string())
    );
    // A holder that dies, and one that is broken.
    let mut holder = Shell::start(&locks);
    holder.lock();
    holder.kill();
    assert_eq!(run(&["run", "--", "true"]).1[2]["event"], "takeover");
    let mut holder = Shell::start(&locks);
    holder.lock();
    let (code, events) = run(&["unlock", "--force"]);
    assert_eq!((code, events.last().map(|event| &event["event"])), (0, Some(&"break".into())));
}

#[test]
fn an_event_log_that_cannot_be_opened_stops_nothing() {
    let locks = Locks::new();
    let ran = locks.run(&["--events", "/nonexistent/log", "run", "--", "true"]);
    assert!(
        ran.code == 0 && ran.stderr.contains("cannot open the event log `/nonexistent/log`"),
        "{ran:?}"
    );
}

#[test]
fn a_long_wait_is_warned_of_once() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let said = locks.dir().join("said");
    let mut waiter = locks.serializer(&["run", "--warn-after", "0.1", "--", "true"]);
    let mut waiter =
        waiter.stderr(fs::File::create(&said).expect("a file")).spawn().expect("it starts");
    let said = || fs::read_to_string(&said).expect("a file");
    until("it is not warned of", || said().contains("still waiting for `serializer.lck`: "));
    holder.unlock();
    until("it does not end", || waiter.try_wait().expect("it can be asked").is_some());
    assert_eq!(said().matches("still waiting for `serializer.lck`: ").count(), 1);
}
