//! Crontabs as Debian's cron reads them, run as in `cron.rs`.

use std::collections::BTreeSet;
use std::path::Path;

use jiff::tz::TimeZone;
use serializer::schedule::crontab;
use tempfile::TempDir;

use crate::cron::{clock, run};

/// Commands with blanks, percent signs and backslashes, between lines that set variables.
const TABLE: &str = r#"
# A comment
  # name: a
	*  *	* * *  	 a blanks  b 
A=b
 * * * * * b A=b
'A b' = c
* * * * * c # not a comment
A	=	"it's" 	
* * * * * d +\%F\%T
A==b
* * * * * e \\ \\\\ \n \
* * * * * f \\%input
* * * * * g \\\%command%input\%%more
A = "b	"
* * * * * h%
CRON_TZ=UTC
* * * * * i ü%
"#;

/// Lines of neither kind.
const BAD: [&str; 7] = ["A=", "A= ", "A='b' c", "A='b", "\"A=b\"=c", "A b=c", "A=\"b\"c\""];

/// A minute.
const TIME: [i64; 2] = [1_790_000_000, 1_790_000_085];

#[test]
fn a_crontab_has_the_commands_that_debians_cron_runs() {
    let directory = TempDir::with_prefix("serializer-test-").expect("a temporary directory");
    let ended = run(&clock(directory.path()), TABLE, "UTC", TIME);
    let started = ended.stdout.lines().filter_map(|line| Some(line.split_once(' ')?.1));
    let catalog = crontab::parse(TABLE, Path::new("tab"), None, TimeZone::UTC).expect("valid");
    let read = catalog.tasks.values().map(|task| task.command[2].as_str());
    let (started, read): (BTreeSet<_>, BTreeSet<_>) = (started.collect(), read.collect());
    assert_eq!((read.len(), read), (9, started), "{}", ended.stderr);
}

#[test]
fn a_line_that_debians_cron_refuses_is_refused() {
    let directory = TempDir::with_prefix("serializer-test-").expect("a temporary directory");
    let clock = clock(directory.path());
    for line in BAD {
        let ended = run(&clock, &format!("{line}\n"), "UTC", TIME);
        assert!(ended.stderr.contains("Error: bad minute"), "{line}: {}", ended.stderr);
        let error = crontab::parse(line, Path::new("tab"), None, TimeZone::UTC).expect_err(line);
        assert!(error.starts_with("cannot use `tab`: line 1: expected `NAME=value`"), "{error}");
    }
}
