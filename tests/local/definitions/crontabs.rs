//! Crontabs of users, as cron takes them.

use std::path::Path;

use jiff::tz::TimeZone;
use serializer::schedule::crontab;
use serializer::schedule::definition::{Catalog, Definition};

use super::zone_of;

/// The tasks of a user's crontab.
fn crontab(text: &str) -> Result<Catalog, String> {
    let zone = TimeZone::posix("EST5").expect("a zone");
    crontab::parse(text, Path::new("/home/me/tab"), Some("/home/me"), zone)
}

/// The task of a crontab that has one.
fn task(text: &str) -> Definition {
    let catalog = crontab(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let tasks: Vec<_> = catalog.tasks.into_values().collect();
    <[_; 1]>::try_from(tasks).unwrap_or_else(|tasks| panic!("{text}: {tasks:?}"))[0].clone()
}

/// What is wrong with the text of a crontab, without the file.
fn error_of(text: &str) -> String {
    let error = crontab(text).expect_err(text);
    let what = error.strip_prefix("cannot use `/home/me/tab`: ");
    what.unwrap_or_else(|| panic!("{error}")).to_owned()
}

/// Of the kind that Debian installs and documents, without the users of /etc/crontab.
const DEBIAN: &str = r#"
# /etc/crontab: system-wide crontab
# m h dom mon dow command

SHELL=/bin/bash
PATH=/usr/local/sbin:/usr/local/bin:/sbin:/bin:/usr/sbin:/usr/bin
MAILTO=paul

# name: hourly
17 *	* * *	cd / && run-parts --report /etc/cron.hourly
  # name: daily
25 6	* * *	test -x /usr/sbin/anacron || run-parts /etc/cron.daily
MAILTO = ""
HOME	=   '/srv/my shop'
CRON_TZ=Asia/Tokyo
#name:weekly
	47 6	* * 7	run-parts --report /etc/cron.weekly 
#  name: annual
@yearly echo "it's a new year"  # not a comment
15 14 1 * *     $HOME/bin/monthly
0 22 * * 1-5    mail -s "It's 10pm" joe%Joe,%%Where are your kids?%
23 0-23/2 * * * echo "run 23 minutes after midn, 2am, 4am ..., everyday"
"#;

#[test]
fn a_crontab_is_read_as_cron_reads_it() {
    let catalog = crontab(DEBIAN).expect("a valid crontab");
    assert_eq!(catalog.warnings, Vec::<String>::new());
    let everyday = "echo \"run 23 minutes after midn, 2am, 4am ..., everyday\"";
    let (bash, tokyo, kids) = ("/bin/bash", "Asia/Tokyo", "Joe,\n\nWhere are your kids?\n");
    for (name, schedule, zone, command, stdin) in [
        ("hourly", "17 * * * *", "", "cd / && run-parts --report /etc/cron.hourly", None),
        ("daily", "25 6 * * *", "", "test -x /usr/sbin/anacron || run-parts /etc/cron.daily", None),
        ("weekly", "47 6 * * 7", tokyo, "run-parts --report /etc/cron.weekly ", None),
        ("annual", "@yearly", tokyo, "echo \"it's a new year\"  # not a comment", None),
        ("a2f62719", "15 14 1 * *", tokyo, "$HOME/bin/monthly", None),
        ("d729e4d9", "0 22 * * 1-5", tokyo, "mail -s \"It's 10pm\" joe", Some(kids)),
        ("b5d6bb20", "23 0-23/2 * * *", tokyo, everyday, None),
    ] {
        let task = catalog.tasks.get(name).unwrap_or_else(|| panic!("{name}: {catalog:?}"));
        assert_eq!(task.schedule, schedule, "{name}");
        assert_eq!(task.command, [bash, "-c", command], "{name}");
        assert_eq!((task.stdin.as_deref(), task.is_enabled()), (stdin, true), "{name}");
        assert_eq!(zone_of(task), if zone.is_empty() { "EST5" } else { zone }, "{name}");
        let home = if zone.is_empty() { "/home/me" } else { "/srv/my shop" };
        assert_eq!(task.directory.as_deref(), Some(Path::new(home)), "{name}");
        let mail = if zone.is_empty() { "paul" } else { "" };
        assert_eq!(task.env["MAILTO"], mail, "{name}");
        assert_eq!(task.env.contains_key("HOME"), !zone.is_empty(), "{name}");
        assert!(task.env["PATH"].ends_with(":/usr/bin"), "{:?}", task.env);
        assert_eq!(task.env["SHELL"], bash);
    }
    assert_eq!(catalog.tasks.len(), 7);
}

#[test]
fn a_variable_is_read_as_cron_reads_it() {
    for (line, name, value) in [
        ("A=b", "A", "b"),
        ("  A  =  b c  ", "A", "b c"),
        ("A=$HOME/b:$PATH", "A", "$HOME/b:$PATH"),
        ("A=b=c", "A", "b=c"),
        ("A=b # c", "A", "b # c"),
        ("A=b\"c\"", "A", "b\"c\""),
        ("A=\" b \"  ", "A", " b "),
        ("A='it is \"b\"'", "A", "it is \"b\""),
        ("A=''", "A", ""),
        ("A=100%", "A", "100%"),
        ("'A b'=c", "A b", "c"),
        ("\"A\" = c", "A", "c"),
    ] {
        let task = task(&format!("{line}\n@daily x"));
        assert_eq!((task.env.len(), task.env[name].as_str()), (1, value), "{line}");
    }
}

#[test]
fn a_variable_counts_for_the_tasks_below_it_until_it_is_set_again() {
    let [a, b, c] = ["a", "b", "c"].map(|name| format!("# name: {name}\n@daily x\n"));
    let catalog = crontab(&format!("{a}A=1\n{b}A=2\n{c}")).expect("valid");
    let values = catalog.tasks.values().map(|task| task.env.get("A").map(String::as_str));
    assert_eq!(values.collect::<Vec<_>>(), [None, Some("1"), Some("2")]);
}

#[test]
fn a_percent_sign_ends_the_command_unless_it_is_escaped() {
    for (text, command, stdin) in [
        ("date", "date", None),
        (r"date +\%F", "date +%F", None),
        (r"date +\%F\%T", "date +%F%T", None),
        (r"echo a\\b\n", r"echo a\b\n", None),
        (r"echo a\\\\b", r"echo a\\b", None),
        (r"echo a\\\%b", r"echo a\%b", None),
        (r"echo a\", r"echo a\", None),
        (r"echo a\\%b", r"echo a\", Some("b\n")),
        (r"cat%a\\b", "cat", Some("a\\\\b\n")),
        ("cat%", "cat", None),
        ("cat%a", "cat", Some("a\n")),
        ("cat%a%b%", "cat", Some("a\nb\n")),
        ("cat%%a", "cat", Some("\na\n")),
        ("cat%%", "cat", Some("\n")),
        (r"cat%\%a\b%", "cat", Some("%a\\b\n")),
        (r"cat%\\%a", "cat", Some("\\%a\n")),
        ("cat <<E%a", "cat <<E", Some("a\n")),
        ("é%ü", "é", Some("ü\n")),
    ] {
        let task = task(&format!("0 3 * * * {text}"));
        assert_eq!((task.command[2].as_str(), task.stdin.as_deref()), (command, stdin), "{text}");
        assert_eq!(task.command[..2], ["/bin/sh", "-c"]);
    }
}

#[test]
fn a_task_without_a_name_is_named_by_a_hash_of_its_line() {
    // The begin of the line's SHA-256.
    let names = |text| crontab(text).expect(text).tasks.into_keys().collect::<Vec<_>>();
    assert_eq!(names("0 3 * * * ./load.sh"), ["dcff83d4"]);
    assert_eq!(names("\n \t0 3 * * * ./load.sh\n"), ["dcff83d4"]);
    assert_eq!(names("# name: a\n0 3 * * * ./load.sh\n0 3 * * * ./load.sh"), ["a", "dcff83d4"]);
}

#[test]
fn a_name_that_is_not_above_a_task_is_warned_of() {
    for between in ["", "# 0 3 * * * ./old.sh", "A=1", "# name: b"] {
        let text = format!("# name: a\n{between}\n0 3 * * * ./load.sh");
        let catalog = crontab(&text).expect("valid");
        assert_eq!(catalog.warnings, ["`# name: a` (line 1) is not above a task"], "{between}");
        let name = if between == "# name: b" { "b" } else { "dcff83d4" };
        assert_eq!(catalog.tasks.keys().collect::<Vec<_>>(), [name]);
    }
    let last = crontab("@daily x\n# name: a").expect("valid").warnings;
    assert_eq!(last, ["`# name: a` (line 2) is not above a task"]);
}

#[test]
fn a_bad_line_of_a_crontab_is_shown_with_its_number() {
    let expected = "expected `NAME=value`, or five fields or an alias, and a command";
    let name = "expected a name of 1 to 100 letters, digits, `.`, `_` and `-`";
    let zone = "`Mars/Base` is not a time zone; `ls /usr/share/zoneinfo` shows which there are";
    let other = |line, name| {
        format!("line {line} has the name `{name}`, too; a comment `# name: …` sets another")
    };
    let (second, first) = (other(2, "a"), other(1, "6989db1e"));
    let reboot = "`@reboot` is unsupported; a systemd unit can start it";
    for (text, line, why) in [
        ("\n\n@reboot ./start.sh", 3, reboot),
        ("0 3 * * *", 1, expected),
        ("0 3 * * *  ", 1, expected),
        ("@daily", 1, expected),
        ("A=", 1, expected),
        ("A='b' c", 1, expected),
        ("A='b", 1, expected),
        ("# name: a b\n@daily x", 1, name),
        ("# name: a\n@daily x\n# name: a\n@hourly y", 4, &second),
        ("@daily x\n\n@daily x", 3, &first),
        ("CRON_TZ=Mars/Base", 1, zone),
        ("0 0 30 2 * x", 1, "it never happens: no such day exists"),
        ("0 25 * * * x", 1, "`25` is not an hour (0-23)"),
    ] {
        assert_eq!(error_of(text), format!("line {line}: {why}"), "{text}");
    }
}
