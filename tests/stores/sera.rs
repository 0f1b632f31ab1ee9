//! The statements of docs/migrating.md for users of sera, line by line, each on one machine and on
//! two hosts that share MariaDB.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::cluster::{Cluster, Kind, end};
use crate::support::servers::MariaDb;
use crate::support::{Ended, Locks, PROGRAM, Waiter, ended, first_line};

const PAGE: &str = include_str!("../../docs/migrating.md");

/// Does not end while a test runs.
const LONG: Duration = Duration::from_secs(600);

/// The rows of the table behind `<!-- sera: NAME -->`.
fn table(name: &str) -> impl Iterator<Item = Vec<&'static str>> {
    let (_, table) =
        PAGE.split_once(&format!("<!-- sera: {name} -->\n")).expect("there is a table");
    let rows = table.lines().take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect())
}

/// What is written here instead of a call of sera.
fn ours(sera: &str) -> &'static str {
    let row = table("calls").find(|row| row[0].trim_matches('`') == sera);
    row.unwrap_or_else(|| panic!("nothing about {sera}"))[2].trim_matches('`')
}

/// Our exit codes instead of one of sera's, by a server and on one machine.
fn codes(sera: &str, place: &HostIdentity) -> Vec<i32> {
    let row =
        table("codes").find(|row| row[0] == sera).unwrap_or_else(|| panic!("nothing about {sera}"));
    let column = if matches!(place, HostIdentity::Hosts(_)) { 2 } else { 3 };
    row[column].split(", ").map(|code| code.parse().expect("an exit code")).collect()
}

/// The option by which the number is kept.
fn keeping(sera: &str) -> &'static str {
    table("codes").find(|row| row[0] == sera).expect("there is a row")[4]
        .trim_matches(|c| c == '`' || c == '|' || c == ' ')
}

/// Where the two of a test are.
enum HostIdentity {
    /// On one machine, with its files.
    Machine(Locks),
    Hosts(Box<Cluster>),
}

impl HostIdentity {
    fn both() -> [Self; 2] {
        let places =
            [Self::Machine(Locks::new()), Self::Hosts(Box::new(Cluster::new(Kind::MariaDb, LONG)))];
        for place in &places {
            fs::create_dir(place.dir().join("bin")).expect("a directory");
            std::os::unix::fs::symlink(PROGRAM, place.dir().join("bin/serializer"))
                .expect("a link");
            // It is in the command line, so that no other test has the same.
            let command = place.dir().join("job");
            let script = r#"printf '#!/bin/bash\n%s\n' "$1" > "$2"; chmod +x "$2""#;
            let work = "echo begun; [ -p go.$# ] && read -r code < go.$#; echo done >> log; exit \
                        ${code:-0}";
            assert_eq!(
                ended(Command::new("sh").args(["-c", script, "sh", work]).arg(&command)).code,
                0
            );
        }
        places
    }

    fn dir(&self) -> &Path {
        match self {
            Self::Machine(locks) => locks.dir(),
            Self::Hosts(cluster) => cluster.locks.dir(),
        }
    }

    fn job(&self) -> String {
        self.dir().join("job").display().to_string()
    }

    /// A line of the page, for this command, run by a shell as one of two.
    fn line(&self, host: usize, line: &str, command: &str) -> Command {
        let line = format!("exec {}", line.replace("COMMAND", command));
        let mut shell = match self {
            Self::Machine(locks) => locks.command("bash"),
            Self::Hosts(cluster) => cluster.command(host, "bash"),
        };
        let path =
            format!("{}/bin:{}", self.dir().display(), std::env::var("PATH").expect("UTF-8"));
        shell.args(["-c", &format!("PATH={path}; {line}")]).current_dir(self.dir());
        shell
    }

    fn run(&self, host: usize, line: &str, command: &str) -> Ended {
        ended(&mut self.line(host, line, command))
    }

    /// Returns when the command has begun; it goes on when it is told its exit code.
    fn begin(&self, line: &str, command: &str) -> Child {
        self.begin_with(0, line, command)
    }

    /// The same for a command with so many arguments.
    fn begin_with(&self, arguments: usize, line: &str, command: &str) -> Child {
        let go = self.dir().join(format!("go.{arguments}"));
        if !go.exists() {
            assert_eq!(ended(Command::new("mkfifo").arg(go)).code, 0);
        }
        let mut command = self.line(0, line, command);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        assert_eq!(first_line(&mut child), "begun");
        child
    }

    /// Lets the command end.
    fn let_go(&self, code: &str) {
        self.let_go_with(0, code);
    }

    fn let_go_with(&self, arguments: usize, code: &str) {
        fs::write(self.dir().join(format!("go.{arguments}")), format!("{code}\n"))
            .expect("it is read");
    }

    fn wait(&self, line: &str, command: &str) -> Waiter {
        Waiter::start(self.line(1, line, command))
    }

    fn log(&self) -> usize {
        fs::read_to_string(self.dir().join("log")).unwrap_or_default().lines().count()
    }
}

#[test]
fn each_waits_for_its_turn_and_runs() {
    let line = ours("sera 90 COMMAND");
    for place in HostIdentity::both() {
        let first = place.begin(line, &place.job());
        let second = place.wait(line, &place.job());
        // The second one is asked for its code, too.
        place.let_go("0");
        assert_eq!(end(first).code, 0);
        place.let_go("4");
        assert_eq!((second.end().code, place.log()), (4, 2));
    }
}

#[test]
fn a_process_that_has_waited_for_too_long_says_so() {
    let line = ours("sera 90 COMMAND").replace(" 90s ", " 500ms ");
    assert_ne!(line, ours("sera 90 COMMAND"));
    let kept = line.replace(" -- ", &format!(" {} -- ", keeping("204")));
    for place in HostIdentity::both() {
        let first = place.begin(&line, &place.job());
        for (line, codes) in [(&line, codes("204", &place)), (&kept, vec![204])] {
            let ended = place.run(1, line, &place.job());
            assert!(
                codes == [ended.code] && ended.stderr.contains(", which has had it"),
                "{ended:?}"
            );
        }
        place.let_go("0");
        assert_eq!((end(first).code, place.log()), (0, 1));
    }
}

#[test]
fn a_process_that_does_not_wait_says_at_once_that_it_runs_elsewhere() {
    let line = ours("sera 0 COMMAND");
    let kept = line.replace(" -- ", &format!(" {} -- ", keeping("204")));
    for place in HostIdentity::both() {
        let first = place.begin(line, &place.job());
        let second = place.run(1, line, &place.job());
        assert!(
            codes("204", &place) == [second.code]
                && second.stderr.contains(": held by ")
                && !second.stderr.contains("waiting for"),
            "{second:?}"
        );
        assert_eq!(place.run(1, &kept, &place.job()).code, 204);
        place.let_go("0");
        assert_eq!((end(first).code, place.log()), (0, 1));
    }
}

#[test]
fn commands_with_other_arguments_do_not_wait_for_each_other() {
    let line = ours("sera 0 COMMAND");
    for place in HostIdentity::both() {
        let running = ["", "'a b c'", "a 'b c'", "a b c"]
            .map(|arguments| format!("{} {arguments}", place.job()));
        let running: Vec<_> = running
            .iter()
            .enumerate()
            .map(|(number, command)| (number, place.begin_with(number, line, command)))
            .collect();
        // The same as one of them.
        let again = place.run(1, line, &format!(r#"{} "a"  b\ c"#, place.job()));
        assert_eq!(codes("204", &place), [again.code], "{again:?}");
        for (number, child) in running {
            place.let_go_with(number, "0");
            assert_eq!(end(child).code, 0);
        }
    }
}

#[test]
fn only_the_first_one_does_it_and_those_that_waited_skip_it() {
    let quiet = ours("sera --wait-and-skip -- 30 COMMAND");
    let detailed = ours("sera --wait-and-skip --detailed-exit-codes -- 30 COMMAND");
    assert_eq!(detailed.replace(&format!("{} ", keeping("205")), ""), quiet);
    for place in HostIdentity::both() {
        let first = place.begin(quiet, &place.job());
        let waiters = [quiet, detailed].map(|line| place.wait(line, &place.job()));
        place.let_go("0");
        assert_eq!(end(first).code, 0);
        let told = waiters.map(|waiter| waiter.end().code);
        assert_eq!((told.to_vec(), place.log()), ([codes("205", &place), vec![205]].concat(), 1));
    }
}

#[test]
fn what_has_failed_is_not_skipped() {
    let line = ours("sera --wait-and-skip --detailed-exit-codes -- 30 COMMAND");
    for place in HostIdentity::both() {
        let first = place.begin(line, &place.job());
        let second = place.wait(line, &place.job());
        place.let_go("3");
        assert_eq!(end(first).code, 3);
        place.let_go("0");
        assert_eq!((second.end().code, place.log()), (0, 2));
    }
}

#[test]
fn the_exit_code_is_the_commands() {
    let line = ours("sera 90 COMMAND");
    for place in HostIdentity::both() {
        for (command, code) in [
            ("bash -c 'exit 7'", 7),
            ("bash -c 'exit 205'", 205),
            ("bash -c 'kill -TERM $$'", 128 + 15),
        ] {
            assert_eq!(place.run(0, line, command).code, code, "{command}");
        }
        let cannot = [place.dir().display().to_string(), "no-such-command".to_owned()]
            .map(|it| place.run(0, line, &it).code);
        assert_eq!(cannot.to_vec(), codes("203", &place));
    }
}

#[test]
fn a_wrong_setting_or_call_is_not_tried() {
    let line = ours("sera 90 COMMAND");
    for place in HostIdentity::both() {
        for setting in
            ["SERIALIZER_STORE=sera:secret@tcp(db:3306)/", "SERIALIZER_SLEEP_SECONDS=soon"]
        {
            let ended = place.run(0, &format!("env '{setting}' {line}"), &place.job());
            assert!(
                codes("200", &place) == [ended.code] && !ended.stderr.contains("secret"),
                "{ended:?}"
            );
        }
        for line in [
            &line.replace("COMMAND", ""),
            &line.replace("90s", "soon"),
            &line.replace("run", "run --no-such"),
        ] {
            assert_eq!(codes("201", &place), [place.run(0, line, &place.job()).code], "{line}");
        }
        assert_eq!(place.log(), 0);
    }
}

#[test]
fn without_a_place_for_locks_nothing_runs() {
    let lines =
        [ours("sera 0 COMMAND").to_owned(), ours("sera 90 COMMAND").replace("90s", "500ms")];
    let mut server = MariaDb::start();
    let url = server.url();
    // A user without any permission there.
    server.sql("CREATE USER nobody@'%' IDENTIFIED BY 'secret'");
    let without_right = format!("mysql://nobody:secret@{}/meltano", server.host_port());
    let place = HostIdentity::both().into_iter().next().expect("one machine");
    let refused =
        place.run(0, &format!("env 'SERIALIZER_STORE={without_right}' {}", lines[0]), &place.job());
    assert!(refused.code == 1 && !refused.stderr.contains("secret"), "{refused:?}");
    let without_database = url.trim_end_matches("meltano");
    let refused = place.run(
        0,
        &format!("env 'SERIALIZER_STORE={without_database}' {}", lines[0]),
        &place.job(),
    );
    assert!(refused.code == 2 && refused.stderr.contains("database"), "{refused:?}");
    server.kill();
    for line in lines {
        for setting in
            [format!("SERIALIZER_STORE={url}"), "SERIALIZER_DIR=/no/such/directory".to_owned()]
        {
            let ended = place.run(0, &format!("env '{setting}' {line}"), &place.job());
            assert_eq!(codes("202", &place), [ended.code], "{ended:?}");
            let mistyped = place.run(0, &format!("env '{setting}' {line}"), "no-such-command");
            assert!(codes("203", &place).contains(&mistyped.code), "{mistyped:?}");
        }
    }
    assert_eq!(place.log(), 0);
}

#[test]
fn a_lock_that_was_lost_meanwhile_has_an_exit_code_of_its_own() {
    let line = ours("sera 90 COMMAND");
    for place in HostIdentity::both() {
        // With an argument that no other test has.
        let mark = place.dir().file_name().and_then(|name| name.to_str()).expect("UTF-8");
        let job = place.begin_with(
            1,
            &line.replace("run", "run --on-lost warn"),
            &format!("{} {mark}", place.job()),
        );
        let all = place.run(1, "serializer status --all --json", "").stdout;
        let all: serde_json::Value = serde_json::from_str(&all).expect("status prints JSON");
        let is_ours =
            |lock: &&serde_json::Value| lock["holder"]["command"] == format!("job {mark}");
        let lock = all["locks"]
            .as_array()
            .expect("a list")
            .iter()
            .find(is_ours)
            .unwrap_or_else(|| panic!("{all}"));
        let name = lock["name"].as_str().expect("a name");
        let taken = place.run(1, &format!("serializer unlock --force --file-name '{name}'"), "");
        assert_eq!(taken.code, 0, "{name} {taken:?}");
        place.let_go_with(1, "0");
        assert_eq!(codes("none", &place), [end(job).code]);
    }
}

#[test]
fn messages_go_to_stderr_and_there_are_more_if_they_are_wanted() {
    let line = ours("sera 90 COMMAND");
    for place in HostIdentity::both() {
        let quiet = place.run(0, line, "true");
        assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
        let verbose = place.run(0, &line.replace("run", "run --verbose"), "true");
        assert!(verbose.stdout.is_empty() && verbose.stderr.contains(": locked `"), "{verbose:?}");
    }
}

#[test]
fn every_call_in_the_table_is_tried_here() {
    let source = include_str!("sera.rs");
    let calls: Vec<_> =
        table("calls").map(|row| row[0]).filter(|call| call.starts_with("`sera ")).collect();
    assert_eq!(calls.len(), 4);
    for call in calls {
        assert!(source.contains(&format!("ours(\"{}\")", call.trim_matches('`'))), "{call}");
    }
}
