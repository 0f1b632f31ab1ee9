//! Keys that run once in a table of the Python library AtomicExecutionControl, beside the library
//! itself: its real package, in the environment of an emulator (`scripts/emulators.sh`), and its
//! cleaner.

use std::fs;
use std::io::{BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use serializer::sys::random::random_token;

use crate::dynamodb::make_table;
use crate::support::proxy::Proxy;
use crate::support::servers::emulators::{installed, shared_dynalite};
use crate::support::stores::Store;
use crate::support::{Ended, ended, faults, guard, next_line, until};

/// The zone of both: local times are written, and compared.
const ZONE: &str = "Asia/Kolkata";

/// Answers each line, an expression, with its value as JSON.
const PYTHON: &str = r#"
import datetime, json, logging, os, sys, threading, time
logging.disable(logging.CRITICAL)
from atomic_execution_control import AtomicExecutionControl
_, endpoint, table, directory = sys.argv
aec = AtomicExecutionControl(table_name=table, primary_key="day_to_run", region_name="eu-west-1", endpoint_url=endpoint)
is_there = lambda name: os.path.exists(os.path.join(directory, name))
def say(what):
    with open(os.path.join(directory, "events"), "a") as file:
        file.write(what + "\n")
def script(key):
    """What its README says to do."""
    aec.delete_items_finished_or_old(keys=[key], item_execution_valid_for=20)
    if aec.write_atomically_a_key(key=key):
        say("begin " + key)
        while not is_there("gate"):
            time.sleep(0.05)
        say("end " + key)
        aec.update_status(key=key)
        return True
    say("wait " + key)
    return aec.wait_other_instances_finish(keys=[key], timeout=60, time_to_retry=1)
def clean(keys, minutes, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not is_there("clean"):
        aec.delete_items_finished_or_old(keys=keys, item_execution_valid_for=minutes)
        time.sleep(0.1)
    say("cleaned")
def hammer(key):
    while not is_there("clean"):
        if aec.write_atomically_a_key(key):
            try:
                os.mkdir(os.path.join(directory, key))
                time.sleep(0.01)
                os.rmdir(os.path.join(directory, key))
                say("theirs " + key)
            except OSError:
                say("overlap")
            aec.delete_items([key])
        time.sleep(0.01)
def put(key, status, age):
    at = (datetime.datetime.now() - datetime.timedelta(seconds=age)).isoformat(timespec="microseconds")
    aec.table.put_item(Item={"day_to_run": key, "status_execution": status, "created_at": at, "updated_at": at})
item = lambda key: aec.table.get_item(Key={"day_to_run": key}, ConsistentRead=True).get("Item")
threads, values = [], []
def start(work, *args):
    threads.append(threading.Thread(target=lambda: values.append(work(*args)), daemon=True))
    threads[-1].start()
def join():
    while threads:
        threads.pop().join()
    return values
for line in sys.stdin:
    print(json.dumps(eval(line), default=str), flush=True)
"#;

/// A table, a process of the library, and a directory.
struct Both {
    store: Store,
    python: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Both {
    /// With leases of so many seconds.
    fn start(lease: &str) -> Self {
        let server = shared_dynalite();
        let table = format!("aec-{}", random_token().expect("random numbers"));
        make_table(server.address(), &table, &[("day_to_run", "S", "HASH")]);
        let url = server
            .url()
            .replace("serializer-locks?", &format!("{table}?layout=aec&key=day_to_run&"));
        let store = Store { lease: lease.to_owned(), ..Store::at(&url) };
        let mut command = Command::new(installed("moto/bin/python"));
        command
            .env_clear()
            .env("TZ", ZONE)
            .env("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
            .env("AWS_SECRET_ACCESS_KEY", "hunter2");
        command
            .args(["-c", PYTHON, &format!("http://{}", server.address()), &table])
            .arg(store.locks.dir());
        guard::mark(&mut command);
        let mut python =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python starts");
        let orders = python.stdin.take().expect("its input");
        let answers = BufReader::new(python.stdout.take().expect("its output"));
        Self { store, python, orders, answers }
    }

    fn ask(&mut self, expression: &str) -> Value {
        writeln!(self.orders, "{expression}").expect("it reads");
        let answer = next_line(&mut self.answers);
        serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{expression}: {answer}"))
    }

    fn item(&mut self, key: &str) -> Value {
        self.ask(&format!("item('{key}')"))
    }

    fn until_status(&mut self, key: &str, status: &str) {
        until(&format!("`{key}` does not become {status}"), || {
            self.item(key)["status_execution"] == status
        });
    }

    /// Opens what runs wait for, or ends a cleaner.
    fn make(&self, name: &str) {
        fs::write(self.store.locks.dir().join(name), "").expect("a file");
    }

    /// What runs have said, a line each.
    fn events(&self) -> Vec<String> {
        let text = fs::read_to_string(self.store.locks.dir().join("events")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn count(&self, event: &str) -> usize {
        self.events().iter().filter(|one| one.as_str() == event).count()
    }

    fn command(&self, key: &str, options: &[&str], script: &str) -> Command {
        let mut command = self.store.serializer(&["once", key]);
        command.args(options).args(["--", "sh", "-c", script]).env("TZ", ZONE);
        command
    }

    fn spawn(&self, key: &str, options: &[&str], script: &str) -> Child {
        let mut command = self.command(key, options, script);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
    }

    fn once(&self, key: &str, options: &[&str], script: &str) -> Ended {
        ended(&mut self.command(key, options, script))
    }

    /// One that waits, or its end.
    fn waits(child: &mut Child) {
        let mut messages =
            BufReader::with_capacity(1, child.stderr.as_mut().expect("its messages"));
        let mut line = String::new();
        while !line.contains("waiting for") {
            line = next_line(&mut messages);
            assert_ne!(line, "", "it does not wait");
        }
    }
}

impl Drop for Both {
    fn drop(&mut self) {
        let _ = self.python.kill();
        let _ = self.python.wait();
    }
}

/// A run that tells of itself, and ends when the gate is opened.
const GATED: &str = r#"echo "begin $SERIALIZER_ONCE_KEY" >> events; until [ -e gate ]; do sleep 0.05; done
    echo "end $SERIALIZER_ONCE_KEY" >> events"#;

#[test]
fn of_callers_of_both_kinds_one_runs_each_key_and_all_others_are_told_of_its_end() {
    const CALLERS: usize = 3;
    let keys = ["2026-11-26", "2026-11-27", "2026-11-28", "2026-11-29"];
    let mut both = Both::start("30");
    both.ask(&format!("start(clean, {keys:?}, 20, 100)"));
    let mut ours = Vec::new();
    for _ in 0..CALLERS {
        for key in keys {
            ours.push(both.spawn(key, &[], GATED));
            both.ask(&format!("start(script, '{key}')"));
        }
    }
    let has_come = |both: &Both, key: &str| {
        let (begun, waits) =
            (both.count(&format!("begin {key}")), both.count(&format!("wait {key}")));
        begun == 1 && waits >= CALLERS - 1
    };
    until("they have not come", || keys.iter().all(|key| has_come(&both, key)));
    // An entry that is finished while callers wait must not be cleaned away: they would wait for
    // the next run.
    both.make("clean");
    until("the cleaner goes on", || both.count("cleaned") == 1);
    both.make("gate");
    let told = both.ask("join()");
    let told: Vec<_> =
        told.as_array().expect("a list").iter().filter(|value| !value.is_null()).cloned().collect();
    assert_eq!(told, vec![Value::Bool(true); keys.len() * CALLERS]);
    for child in ours {
        let ended = faults::end(child);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    for key in keys {
        assert_eq!(
            (both.count(&format!("begin {key}")), both.count(&format!("end {key}"))),
            (1, 1),
            "{:?}",
            both.events()
        );
        assert_eq!(both.item(key)["status_execution"], "FINISHED");
        let again = both.once(key, &["-n", "--skipped-exit-code", "9"], GATED);
        assert_eq!(again.code, 9, "{again:?}");
    }
}

#[test]
fn runs_of_both_kinds_take_turns_and_never_overlap() {
    let keys = ["one", "two"];
    let mut both = Both::start("30");
    // What each of them has ended is forgotten, so that any may begin.
    let script = r#"while [ ! -e clean ]; do
        "$S" once "$1" -n -- sh -c 'mkdir "$0" && sleep 0.01 && rmdir "$0" && echo "ours $0" >> events || echo overlap >> events' "$1"
        "$S" forget "$1"
    done
    true"#;
    let mut ours = Vec::new();
    for key in keys {
        for _ in 0..2 {
            let mut command = both.store.command("sh");
            command.args(["-c", script, "sh", key]).env("TZ", ZONE).stderr(Stdio::null());
            ours.push(command.spawn().expect("it starts"));
            both.ask(&format!("start(hammer, '{key}')"));
        }
    }
    until("they do not take turns", || {
        let all = keys.iter().flat_map(|key| [format!("ours {key}"), format!("theirs {key}")]);
        both.count("overlap") > 0 || all.into_iter().all(|event| both.count(&event) >= 5)
    });
    both.make("clean");
    both.ask("join()");
    ours.iter_mut().for_each(|child| assert!(child.wait().expect("it ends").success()));
    assert_eq!(both.count("overlap"), 0, "{:?}", both.events());
}

#[test]
fn the_cleaner_spares_a_run_that_is_renewed_and_the_library_sees_how_it_ends() {
    let mut both = Both::start("6");
    let run = both.spawn("ours", &[], GATED);
    both.until_status("ours", "IN_PROGRESS");
    let first = both.item("ours");
    assert_eq!(both.ask("aec.write_atomically_a_key('theirs')"), true);
    // Longer than the cleaner lets anything live here: six seconds.
    both.ask("clean(['ours', 'theirs'], 0.1, 9)");
    assert_eq!(both.item("theirs"), Value::Null);
    let later = both.item("ours");
    assert!(
        later["created_at"] == first["created_at"] && later["updated_at"] != first["updated_at"],
        "{first} {later}"
    );
    assert_eq!(both.ask("aec.write_atomically_a_key('ours')"), false);
    both.ask("start(aec.wait_other_instances_finish, ['ours'], 60, 1)");
    both.make("gate");
    assert_eq!(faults::end(run).code, 0);
    assert_eq!(both.ask("join()")[0], true);

    assert_eq!(both.once("failed", &[], "exit 3").code, 3);
    assert_eq!(both.item("failed")["status_execution"], "FAILED");
    assert_eq!(both.ask("aec.wait_other_instances_finish(['failed'], 1, 1)"), false);
    // Begun in one process and finished in another.
    let run = |args: &[&str]| ended(both.store.serializer(args).env("TZ", ZONE));
    let begun = run(&["lock", "--once", "steps", "--detached", "--print-token"]);
    assert_eq!(begun.code, 0, "{begun:?}");
    let unlocked = ["unlock", "--once", "steps", "--token", begun.stdout.trim()];
    assert_eq!((run(&unlocked).code, run(&["lock", "--once", "steps"]).code), (0, 79));
    assert_eq!(both.item("steps")["status_execution"], "FINISHED");
    // It has no state for what is free.
    assert_eq!(ended(both.store.serializer(&["forget", "failed"]).env("TZ", ZONE)).code, 0);
    assert_eq!(both.ask("aec.write_atomically_a_key('failed')"), true);
}

#[test]
fn once_waits_for_a_run_of_the_library_and_acts_as_it_ends() {
    let mut both = Both::start("30");
    // A key has the library's name for it, also one that resembles a name of this program's.
    for (key, status, said) in [("once/done", "FINISHED", ""), ("é", "FAILED", "try 2\n")] {
        both.ask(&format!("aec.write_atomically_a_key('{key}')"));
        assert_eq!(both.once(key, &["-n"], "true").code, 75);
        let mut waiting = both.spawn(key, &["-v"], "echo try $SERIALIZER_TRY");
        Both::waits(&mut waiting);
        both.ask(&format!("aec.update_status('{key}', '{status}')"));
        let ended = faults::end(waiting);
        assert_eq!((ended.code, ended.stdout.as_str()), (0, said), "{ended:?}");
        both.until_status(key, "FINISHED");
    }
    // What it began and finished in another life has no beginning.
    both.ask("aec.update_status('gone')");
    assert_eq!(both.once("gone", &["--skipped-exit-code", "9"], "true").code, 9);
}

#[test]
fn a_run_of_the_library_that_is_twenty_minutes_old_is_taken_over_by_one() {
    let mut both = Both::start("30");
    both.ask("put('young', 'IN_PROGRESS', 1150)");
    let young = both.item("young");
    let refused = both.once("young", &["-n"], GATED);
    assert!(refused.code == 75 && refused.stderr.contains("AtomicExecutionControl"), "{refused:?}");
    assert_eq!(both.item("young"), young);

    both.ask("put('old', 'IN_PROGRESS', 1201)");
    let mut all: Vec<_> = (0..8).map(|_| both.spawn("old", &["-n"], GATED)).collect();
    let mut ended = || all.iter_mut().filter_map(|one| one.try_wait().expect("a child")).count();
    until("not all but one give up", || ended() == 7);
    both.make("gate");
    let mut codes: Vec<_> = all.into_iter().map(|child| faults::end(child).code).collect();
    codes.sort_unstable();
    assert_eq!(codes, [0, 75, 75, 75, 75, 75, 75, 75]);
    assert_eq!(both.count("begin old"), 1);

    both.ask("put('stopped', 'IN_PROGRESS', 1201)");
    assert_eq!(both.once("stopped", &["-n", "--interrupted", "stop"], GATED).code, 80);

    // A waiter sees it come, and not too early.
    let begun = Instant::now();
    both.ask("put('ripe', 'IN_PROGRESS', 1195)");
    let waited = both.once("ripe", &["--timeout", "60s"], GATED);
    assert!(
        waited.code == 0 && begun.elapsed() > Duration::from_secs(2),
        "{waited:?} {:?}",
        begun.elapsed()
    );
}

#[test]
fn an_item_of_the_library_is_read_as_its_run_and_any_other_is_left_alone() {
    let mut both = Both::start("30");
    let now = "datetime.datetime.now().isoformat()";
    let ahead = "(datetime.datetime.now() + datetime.timedelta(hours=2)).isoformat()";
    for (at, (status, updated, more, code)) in [
        ("'LOADING'", now, "", 75),
        ("'IN_PROGRESS'", ahead, "", 75),
        ("'FINISHED'", "'2026-11-29T08:00:00'", "", 9),
        ("'FINISHED'", "'2026-11-29 08:00:00'", "", 9),
        ("'FINISHED'", "'yesterday'", "", 1),
        ("'FINISHED'", "'2026-11-29T08:00:00Z'", "", 1),
        ("'FINISHED'", "1", "", 1),
        ("'FINISHED'", "None", "", 1),
        ("None", now, "", 1),
        // Of a newer version.
        ("'FINISHED'", now, ", 'format': 2, 'version': 7", 1),
    ]
    .into_iter()
    .enumerate()
    {
        let item = format!(
            "{{'day_to_run': 'k{at}', 'status_execution': {status}, 'updated_at': {updated}{more}}}"
        );
        both.ask(&format!("aec.table.put_item(Item={item})"));
        let before = both.item(&format!("k{at}"));
        let ended = both.once(&format!("k{at}"), &["-n", "--skipped-exit-code", "9"], "true");
        assert_eq!(ended.code, code, "{item}: {ended:?}");
        assert_eq!(both.item(&format!("k{at}")), before);
    }
    // An hour that a clock shows twice is the later one, so that no run ends too early; one that it
    // leaves out is the time that it would have shown.
    for (local, utc) in [
        ("2026-10-25T02:30:00", "2026-10-25T01:30:00Z"),
        ("2026-03-29T02:30:00", "2026-03-29T01:30:00Z"),
        ("2026-07-01T02:30:00", "2026-07-01T00:30:00Z"),
    ] {
        both.ask(&format!(
            "aec.table.put_item(Item={{'day_to_run': '{local}', 'status_execution': 'FINISHED', 'updated_at': '{local}.000001'}})"
        ));
        let mut status = both.store.serializer(&["status", "--json", "--once", "--", local]);
        let shown = ended(status.env("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")).stdout;
        let shown: Value = serde_json::from_str(&shown).expect(&shown);
        let utc: jiff::Timestamp = utc.parse().expect("a time");
        assert_eq!(shown["keys"][0]["since"], utc.as_millisecond(), "{local}: {shown}");
        assert_eq!(shown["keys"][0]["ends"][0]["at"], utc.as_millisecond(), "{local}: {shown}");
    }
    // The library reads times with six digits only.
    assert_eq!(both.once("ours", &[], "true").code, 0);
    let ours = both.item("ours");
    for name in ["created_at", "updated_at"] {
        assert_eq!(
            ours[name].as_str().map(str::len),
            Some("2026-10-25T02:30:00.000001".len()),
            "{ours}"
        );
    }
}

#[test]
fn a_takeover_is_one_write_that_another_run_of_the_library_forestalls_and_a_lost_answer_does_not_repeat()
 {
    let mut both = Both::start("30");
    let server = shared_dynalite().address();
    let proxy = Proxy::to(server);
    let far = |both: &Both| {
        both.store.through(&both.store.url.replace(&server.to_string(), &proxy.addr().to_string()))
    };
    let run = |both: &Both, key: &str| {
        let mut command = far(both).serializer(&["once", key, "-n", "--", "sh", "-c", GATED]);
        command
            .env("TZ", ZONE)
            .current_dir(both.store.locks.dir())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().expect("it starts")
    };
    both.make("gate");
    both.ask("put('forestalled', 'IN_PROGRESS', 1201)");
    // It has read the item; its write is held back.
    proxy.hold_from(b"attribute_not_exists(#format) AND");
    let late = run(&both, "forestalled");
    proxy.wait_until_hit();
    both.ask("aec.delete_items_finished_or_old(['forestalled'])");
    assert_eq!(both.ask("aec.write_atomically_a_key('forestalled')"), true);
    let theirs = both.item("forestalled");
    proxy.mend();
    let ended = faults::end(late);
    assert_eq!((ended.code, both.count("begin forestalled")), (75, 0), "{ended:?}");
    assert_eq!(both.item("forestalled"), theirs);

    both.ask("put('lost', 'IN_PROGRESS', 1201)");
    proxy.swallow_answer_then_cut(b"attribute_not_exists(#format) AND");
    let cut = run(&both, "lost");
    proxy.wait_until_hit();
    let ended = faults::end(cut);
    assert_eq!((ended.code, both.count("begin lost")), (0, 1), "{ended:?}");
    assert_eq!(both.item("lost")["status_execution"], "FINISHED");
    assert!(
        both.item("lost")["record"].as_str().is_some_and(|record| record.contains(r#""try":2"#))
    );
}

#[test]
fn a_run_is_ended_if_the_library_deletes_its_item() {
    let mut both = Both::start("3");
    let run = both.spawn("load", &[], "exec sleep 600");
    both.until_status("load", "IN_PROGRESS");
    both.ask("aec.delete_items(['load'])");
    assert_eq!(both.ask("aec.write_atomically_a_key('load')"), true);
    let theirs = both.item("load");
    let ended = faults::end(run);
    assert_eq!(ended.code, 76, "{ended:?}");
    assert_eq!(both.item("load"), theirs);
}

#[test]
fn anything_but_keys_that_run_once_is_refused_there() {
    let mut both = Both::start("30");
    for args in [
        "run true",
        "lock",
        "unlock",
        "unlock --force",
        "status",
        "status --all",
        "wait",
        "initialize",
        "break x --token t",
    ] {
        let ended = both.store.run(&args.split(' ').collect::<Vec<_>>());
        assert!(
            ended.code == 2 && ended.stderr.contains("`layout=aec` is only for keys that run once"),
            "{args}: {ended:?}"
        );
    }
    assert_eq!(both.ask("aec.table.scan()['Items']"), Value::Array(Vec::new()));
    // A new table would be one of which the library knows nothing.
    let url = both.store.url.replace("aec-", "other-");
    let ended = both.store.through(&url).run(&["once", "x", "--", "true"]);
    assert!(ended.code == 1 && ended.stderr.contains("table `other-"), "{ended:?}");
}
