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

/// In the styles of programs and hosts that write crontabs.
const FOREIGN: [&str; 6] = [
    // Debian's, with the user of /etc/crontab, which is a part of the command here.
    "SHELL=/bin/sh\nPATH=/usr/sbin:/usr/bin\n\n# m h dom mon dow user\tcommand\n17 *\t* * *\troot    \
     cd / && run-parts --report /etc/cron.hourly\n47 6\t* * 7\troot\ttest -x /usr/sbin/anacron || \
     { cd / && run-parts /etc/cron.weekly; }\n30 7-23 * * * root [ -x /etc/init.d/anacron ] && \
     invoke-rc.d anacron start >/dev/null\n#\n",
    // Of panels: Plesk and cPanel.
    "MAILTO=\"\"\nSHELL=\"/bin/bash\"\n0,30\t*/6\t*\t*\t*\t/usr/bin/php -f \
     '/var/www/vhosts/shop.example/cron.php' >/dev/null 2>&1\n15\t5\t*\t*\t0,6\t/usr/bin/curl -s \
     'https://shop.example/cron?q=a%26b' \n",
    "MAILTO=\"owner@shop.example\"\nSHELL=\"/usr/local/bin/jailshell\"\n5,20,35,50 0-23/8 * \
     jan-dec mon-fri cd /home/owner && php artisan schedule:run >> log 2>&1\n@weekly wget -q -O - \
     \"http://shop.example/wp-cron.php?doing_wp_cron\" # weekly\n@midnight find /home/owner/tmp \
     -name 'sess_*' -mtime +1 -exec rm {} \\;\n",
    // By hand, as manuals show it.
    "# use /bin/bash to run commands, whatever /etc/passwd says\nMAILTO = paul\n5 0 * * *       \
     $HOME/bin/daily.job >> $HOME/tmp/out 2>&1\n0 22 * * 1-5    mail -s \"It's 10pm\" \
     joe%Joe,%%Where are your kids?%\n0 4 1-7 * *     test $(date +\\%u) -eq 6 && echo \"1st \
     Saturday\"\n15 14 1 * *     $HOME/bin/monthly\n23 0-23/2 * * Sun,2 echo \"run 23 minutes \
     after\"\n",
    // Of tools that mark their lines.
    "#Ansible: rotate logs\n*/20 1 * * * /usr/sbin/logrotate /etc/logrotate.conf\n#Ansible: \
     None\n# 0 1 * * * disabled\n\n# Begin Whenever generated tasks for: shop\n0 0,12 1-31/2 * * \
     /bin/bash -l -c 'cd /srv/shop && bin/rails runner '\\''Sync.run'\\'''\n# End Whenever \
     generated tasks for: shop\n@hourly  \t certbot -q renew\n",
    // From an editor on Windows.
    "A=b\r\n# name: a\r\n0 3 * * * /srv/load.sh \"a b\"\r\n@daily\techo 100\\%\r\n",
];

/// Nine days around the beginning of a month.
const DAYS: [i64; 2] = [1_790_630_000, 1_790_630_000 + 9 * 24 * 3600];

#[test]
fn crontabs_of_other_programs_are_run_as_debians_cron_runs_them() {
    let directory = TempDir::with_prefix("serializer-test-").expect("a temporary directory");
    let clock = clock(directory.path());
    for table in FOREIGN {
        let ended = run(&clock, table, "UTC", DAYS);
        assert!(!ended.stderr.contains("Error"), "{table}: {}", ended.stderr);
        // Only here, the end of a line may have two characters.
        let started = ended.stdout.lines().map(|line| line.trim_end_matches('\r').to_owned());
        let started: BTreeSet<String> = started.collect();
        let catalog = crontab::parse(table, Path::new("tab"), None, TimeZone::UTC).expect("valid");
        let [begin, end] = DAYS.map(|time| u64::try_from(time).expect("a time") * 1000);
        let slots = catalog.tasks.values().flat_map(|task| {
            let timetable = task.timetable.as_ref().expect("a timetable");
            let slots = timetable.between(begin, end - 1, usize::MAX).into_iter();
            slots.map(|slot| format!("{} {}", slot / 60_000, task.command[2]))
        });
        assert_eq!(slots.collect::<BTreeSet<_>>(), started, "{table}");
        let commands = started.iter().filter_map(|line| Some(line.split_once(' ')?.1));
        let commands: BTreeSet<_> = commands.collect();
        assert_eq!(commands.len(), catalog.tasks.len(), "each is started: {started:?}");
    }
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
