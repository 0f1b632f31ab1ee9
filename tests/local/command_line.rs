//! The command line as people, scripts, Meltano and shells use it: spellings, defaults, settings,
//! output.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, pipe};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{self, Ended, Locks, OrdinaryUser, PROGRAM, Shell, Waiter, ended, until};
use serde_json::Value;

const COMMANDS: [&str; 16] = [
    "run",
    "lock",
    "unlock",
    "wait",
    "break",
    "once",
    "schedule",
    "forget",
    "flock",
    "status",
    "initialize",
    "doctor",
    "plugin",
    "describe",
    "completions",
    "man",
];

const VARIABLES: [&str; 11] = [
    "SERIALIZER_FILE_NAME",
    "SERIALIZER_DIR",
    "SERIALIZER_MAX_ATTEMPTS",
    "SERIALIZER_SLEEP_SECONDS",
    "SERIALIZER_OWNER_PID",
    "SERIALIZER_ORPHANS",
    "MELTANO_PROJECT_ROOT",
    "LOG_LEVEL",
    "LOG_TIMESTAMPS",
    "LOG_LEVELS",
    "MELTANO_LOG_JSON",
];

fn json(ended: &Ended) -> Value {
    assert_eq!(ended.code, 0, "{ended:?}");
    serde_json::from_str(&ended.stdout)
        .unwrap_or_else(|error| panic!("JSON, not {error}: {ended:?}"))
}

/// Where the program looks for its lock, also if the directory does not exist.
fn path_of(command: &mut Command) -> String {
    let report: Value = serde_json::from_str(&ended(command).stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("checks");
    let lock = checks.iter().find(|check| check["what"] == "lock").expect("a lock");
    lock["value"].as_str().expect("a path").to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

// Settings.

#[test]
fn the_defaults_are_those_of_the_python_plugin() {
    let locks = Locks::new();
    assert_eq!(
        path_of(locks.serializer(&["doctor", "--json"]).env_remove("SERIALIZER_DIR")),
        "/tmp/serializer.lck"
    );

    let mut holder = Shell::start(&locks);
    holder.lock();
    let mut waiter = locks.serializer(&["lock"]).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut messages = BufReader::new(waiter.stderr.take().expect("its messages"));
    let line = support::next_line(&mut messages);
    waiter.kill().and_then(|()| waiter.wait()).expect("it ends");
    assert!(line.starts_with("serializer: waiting for `serializer.lck`: 1st in line, "), "{line}");
    assert!(
        line.contains(&format!(" by pid {} (bash ", holder.pid())) && !line.contains(" of "),
        "{line}"
    );
}

#[test]
fn the_python_plugins_option_names_are_understood() {
    let locks = Locks::new();
    let dir = Locks::new();
    let names = ["--filename", "old.lck", "--filedir", text(dir.dir())];
    let ended =
        locks.run(&[&["lock", "--sleepseconds", "0.5", "--maxattempts", "1"], &names[..]].concat());
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(dir.names(), ["old.lck"]);
    assert_eq!(
        json(&locks.run(&[&["status", "--json"], &names[..]].concat()))["locks"][0]["state"],
        "held"
    );

    // They are more than accepted.
    let mut other = Shell::start(&locks);
    let (code, said) = other.output(&format!(
        r#""$S" lock --maxattempts 2 --sleepseconds 0.5 --filename old.lck --filedir '{}' 2>&1"#,
        text(dir.dir())
    ));
    assert_eq!(code, 75, "{said}");
    assert!(said.contains("attempt 1 of 2"), "{said}");
    let ended = locks.run(&[&["lock", "--sleepseconds", "abc"], &names[..]].concat());
    assert_eq!(ended.code, 2, "{ended:?}");

    let ended = locks.run(&[&["unlock"], &names[..]].concat());
    assert_eq!((ended.code, dir.names().len()), (0, 0), "{ended:?}");
    assert_eq!(locks.names(), [""; 0]);
}

#[test]
fn the_python_plugins_option_names_are_not_advertised() {
    let locks = Locks::new();
    for command in COMMANDS {
        let help = locks.run(&[command, "--help"]).stdout + &locks.run(&["man", command]).stdout;
        for old in ["filename", "filedir", "sleepseconds", "maxattempts"] {
            assert!(
                !help.contains(&format!("--{old}")) && !help.contains(&format!("\\-\\-{old}")),
                "{command}: {old}"
            );
        }
    }
}

#[test]
fn a_flag_beats_its_variable() {
    let locks = Locks::new();
    let mut command =
        locks.serializer(&["doctor", "--json", "--dir", "/flag", "--file-name", "flag.lck"]);
    assert_eq!(
        path_of(
            command.env("SERIALIZER_DIR", "/variable").env("SERIALIZER_FILE_NAME", "variable.lck")
        ),
        "/flag/flag.lck"
    );
}

#[test]
fn an_absolute_file_name_overrides_the_directory() {
    let locks = Locks::new();
    let mut command = locks.serializer(&["doctor", "--json"]);
    assert_eq!(
        path_of(command.env("SERIALIZER_FILE_NAME", "/elsewhere/x.lck")),
        "/elsewhere/x.lck"
    );
    assert_eq!(
        path_of(&mut locks.serializer(&["doctor", "--json", "--file-name", "/elsewhere/x.lck"])),
        "/elsewhere/x.lck"
    );
    assert_eq!(
        path_of(&mut locks.serializer(&["doctor", "--json", "/elsewhere/x.lck"])),
        "/elsewhere/x.lck"
    );
}

#[test]
fn a_relative_directory_starts_at_the_meltano_project() {
    let locks = Locks::new();
    let project = Locks::new();
    let relative = |args: &[&str]| {
        let mut command = locks.serializer(args);
        command.env("SERIALIZER_DIR", "output/locks").current_dir(locks.dir());
        command
    };
    let expected = project.dir().join("output/locks");
    let mut inside = relative(&["initialize"]);
    let initialized = ended(inside.env("MELTANO_PROJECT_ROOT", project.dir()));
    assert_eq!(initialized.code, 0, "{initialized:?}");
    let ended = ended(relative(&["lock"]).env("MELTANO_PROJECT_ROOT", project.dir()));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(expected.join("serializer.lck").exists());
    assert_eq!(locks.names(), [""; 0]);

    // The flag is a setting like the variable.
    let mut by_flag = locks.serializer(&["doctor", "--json", "--dir", "output/locks"]);
    assert_eq!(
        Path::new(&path_of(by_flag.env("MELTANO_PROJECT_ROOT", project.dir()))),
        expected.join("serializer.lck")
    );
    // Nothing else to start at than the working directory.
    let here = locks.dir().join("output/locks/serializer.lck");
    assert_eq!(Path::new(&path_of(&mut relative(&["doctor", "--json"]))), here);
    assert_eq!(
        Path::new(&path_of(
            relative(&["doctor", "--json"]).env("MELTANO_PROJECT_ROOT", "not/absolute")
        )),
        here
    );
    // An absolute one stays what it is.
    let mut absolute = locks.serializer(&["doctor", "--json"]);
    assert_eq!(
        Path::new(&path_of(absolute.env("MELTANO_PROJECT_ROOT", project.dir()))),
        locks.file()
    );
}

#[test]
fn all_spellings_of_a_path_are_one_lock() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let dir = text(locks.dir());
    fs::create_dir(locks.dir().join("sub")).expect("a directory");
    for spelling in
        [format!("{dir}/"), format!("{dir}/."), format!("{dir}//"), format!("{dir}/sub/..")]
    {
        let ended = locks.run(&["lock", "--max-attempts", "1", "--dir", &spelling]);
        assert_eq!(ended.code, 75, "{spelling}: {ended:?}");
    }
    let ended = locks.run(&["lock", "--max-attempts", "1", "--file-name", "sub/../serializer.lck"]);
    assert_eq!(ended.code, 75, "{ended:?}");
    assert_eq!(ended_in(&locks, &["lock", "--max-attempts", "1", "--dir", "."]).code, 75);
}

fn ended_in(locks: &Locks, args: &[&str]) -> Ended {
    ended(locks.serializer(args).current_dir(locks.dir()))
}

#[test]
fn a_directory_may_be_a_symbolic_link() {
    let locks = Locks::new();
    let elsewhere = Locks::new();
    let link = elsewhere.dir().join("link");
    std::os::unix::fs::symlink(locks.dir(), &link).expect("a link");
    let mut holder = Shell::start(&locks);
    holder.lock();
    let ended = locks.run(&["lock", "--max-attempts", "1", "--dir", text(&link)]);
    assert_eq!(ended.code, 75, "{ended:?}");
    let waiter =
        Waiter::start(locks.serializer(&["lock", "--sleep-seconds", "0.1", "--dir", text(&link)]));
    holder.unlock();
    let ended = waiter.end();
    assert_eq!(ended.code, 0, "{ended:?}");
}

// Initialize.

#[test]
fn initialize_makes_the_directory_and_leaves_nothing_else() {
    let locks = Locks::new();
    let dir = locks.dir().join("a/b c");
    let first = locks.run(&["initialize", "--dir", text(&dir)]);
    assert_eq!((first.code, first.stdout.as_str()), (0, ""), "{first:?}");
    assert!(
        first.stderr.contains(&format!("created the lock directory `{}`", dir.display())),
        "{first:?}"
    );
    assert!(
        first.last_line().contains(&format!(
            "locks can be kept in `{}`; the lock is `serializer.lck`",
            dir.display()
        )),
        "{first:?}"
    );
    assert_eq!(fs::read_dir(&dir).expect("the directory is there").count(), 0);

    let again = locks.run(&["initialize", "--force", "--dir", text(&dir)]);
    assert_eq!(again.code, 0, "{again:?}");
    assert!(!again.stderr.contains("created"), "{again:?}");
    assert_eq!(fs::read_dir(&dir).expect("the directory is there").count(), 0);
}

#[test]
fn initialize_leaves_a_lock_as_it_is() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let before = locks.read();
    assert_eq!(locks.run(&["initialize"]).code, 0);
    assert_eq!((locks.read(), locks.names()), (before, vec!["serializer.lck".to_owned()]));
}

#[test]
fn initialize_fails_where_no_directory_can_be_made() {
    let locks = Locks::new();
    let user = OrdinaryUser::new(&locks);
    fs::set_permissions(locks.dir(), Permissions::from_mode(0o555)).expect("its mode can be set");
    let dir = locks.dir().join("new");
    let ended = user.run(&locks, &["initialize", "--dir", text(&dir)]);
    assert_eq!((ended.code, ended.stderr.lines().count()), (1, 1), "{ended:?}");
    let message =
        format!("cannot create the lock directory `{}`: permission denied", dir.display());
    assert!(ended.stderr.contains(&message), "{ended:?}");
    fs::set_permissions(locks.dir(), Permissions::from_mode(0o755)).expect("its mode can be set");
    assert_eq!(locks.names(), [""; 0]);
}

// Help, version, descriptions.

#[test]
fn the_version_is_printed() {
    let locks = Locks::new();
    let version = format!("serializer {}\n", env!("CARGO_PKG_VERSION"));
    let all = [
        ("file", true),
        ("postgres", cfg!(feature = "postgres")),
        ("mysql", cfg!(feature = "mysql")),
        ("dynamodb", cfg!(feature = "dynamodb")),
        ("s3", cfg!(feature = "object-store")),
        ("az", cfg!(feature = "object-store")),
        ("gs", cfg!(feature = "object-store")),
    ];
    let built_in: Vec<_> =
        all.iter().filter(|(_, is_built_in)| *is_built_in).map(|(name, _)| *name).collect();
    let stores = format!("{version}stores: {}\n", built_in.join(", "));
    for (flag, expected) in [("--version", stores), ("-V", version)] {
        let ended = locks.run(&[flag]);
        assert_eq!((ended.code, ended.stdout, ended.stderr), (0, expected, String::new()));
    }
}

#[test]
fn the_help_names_every_command_variable_and_exit_code() {
    let locks = Locks::new();
    for flag in ["--help", "-h", "help"] {
        let ended = locks.run(&[flag]);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
        let first_words: BTreeSet<_> =
            ended.stdout.lines().filter_map(|line| line.split_whitespace().next()).collect();
        let rest = ["0", "1", "2", "75", "77", "Examples:", "Files:"];
        for word in COMMANDS.iter().chain(rest.iter().filter(|_| flag != "-h")) {
            assert!(first_words.contains(word), "{flag}: no line for `{word}` in {}", ended.stdout);
        }
        for variable in VARIABLES {
            assert_eq!(ended.stdout.contains(variable), flag != "-h", "{flag}: {variable}");
        }
    }
}

#[test]
fn short_help_is_short_and_long_help_has_headings() {
    let locks = Locks::new();
    for command in ["run", "lock", "unlock", "wait", "once", "status"] {
        let (short, long) =
            (locks.run(&[command, "-h"]).stdout, locks.run(&[command, "--help"]).stdout);
        assert!(short.lines().count() < 60 && !short.contains("--log-level"), "{short}");
        for heading in ["Stores:", "Messages:", "Examples:"] {
            assert!(long.lines().any(|line| line == heading), "{command}: {heading} {long}");
        }
    }
    let long = locks.run(&["lock", "--help"]).stdout;
    for heading in ["Lock:", "Waiting:", "Sharing:", "Keys:"] {
        assert!(long.lines().any(|line| line == heading), "{heading} {long}");
    }
}

#[test]
fn a_lock_is_named_by_an_argument_or_an_option() {
    let locks = Locks::new();
    for args in [&["lock", "a"][..], &["lock", "--name", "b"], &["lock", "--file-name", "c"]] {
        assert_eq!(locks.run(args).code, 0, "{args:?}");
    }
    assert_eq!(locks.names(), ["a", "b", "c"]);
    for args in [&["unlock", "c"][..], &["unlock", "--name", "a"], &["unlock", "--file-name", "b"]]
    {
        assert_eq!(locks.run(args).code, 0, "{args:?}");
    }
    assert_eq!(locks.names(), [""; 0]);
}

#[test]
fn a_variable_limits_the_waiting_unless_a_flag_does() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let run = |timeout: &str, args: &[&str]| {
        ended(locks.serializer(args).env("SERIALIZER_TIMEOUT", timeout)).code
    };
    for args in [&["lock"][..], &["run", "true"], &["wait"]] {
        assert_eq!(run("0.1", args), 75, "{args:?}");
        assert_eq!(run("no time", args), 2, "{args:?}");
        assert_eq!(run("1h", &[&args[..1], &["--no-wait"], &args[1..]].concat()), 75, "{args:?}");
    }
    let mut waiter = locks.serializer(&["lock", "--max-attempts", "0"]);
    waiter.env("SERIALIZER_TIMEOUT", "0");
    let waiter = Waiter::start(waiter);
    holder.unlock();
    assert_eq!(waiter.end().code, 0);
}

#[test]
fn an_unknown_variable_is_warned_of_if_it_is_one_typo_away_from_a_known_one() {
    let locks = Locks::new();
    for (name, meant) in
        [("SERIALIZER_FILENAME", "SERIALIZER_FILE_NAME"), ("SERIALIZER_SLTOS", "SERIALIZER_SLOTS")]
    {
        let ended = ended(locks.serializer(&["status"]).env(name, "3"));
        let warning = format!(
            "serializer: warning: unknown variable `{name}` has no effect (hint: `{meant}`)\n"
        );
        assert_eq!((ended.code, ended.stderr), (0, warning));
    }
    for name in
        ["SERIALIZER_TIMEOUT", "SERIALIZER_FOO", "SERIALIZER_SERIALIZER_DIR", "SERIALIZER_PIP_URL"]
    {
        assert_eq!(ended(locks.serializer(&["status"]).env(name, "3")).stderr, "", "{name}");
    }
    // Tasks and notifications have these.
    for name in ["SERIALIZER_SLOT", "SERIALIZER_EVENT"] {
        let mut status = locks.serializer(&["status"]);
        assert!(ended(status.env(name, "3")).stderr.contains("has no effect"), "{name}");
        assert_eq!(ended(status.env("SERIALIZER_TASK", "load")).stderr, "", "{name}");
    }
}

#[test]
fn quiet_leaves_warnings_and_errors() {
    let locks = Locks::new();
    for (args, is_silent) in [
        (&["lock", "-q"][..], true),
        (&["--quiet", "lock"], false),
        (&["unlock", "-q"], true),
        (&["unlock", "-q"], false),
    ] {
        assert_eq!(locks.run(args).stderr.is_empty(), is_silent, "{args:?}");
    }
    assert_eq!(locks.run(&["lock", "-q", "--log-level", "debug"]).code, 2);
}

#[test]
fn each_commands_help_names_its_variables() {
    let locks = Locks::new();
    let files = ["SERIALIZER_FILE_NAME", "SERIALIZER_DIR"];
    let owners = ["SERIALIZER_OWNER_PID", "SERIALIZER_ORPHANS"];
    let waiting = ["SERIALIZER_MAX_ATTEMPTS", "SERIALIZER_SLEEP_SECONDS"];
    let logs = ["LOG_LEVEL", "LOG_TIMESTAMPS", "LOG_LEVELS", "MELTANO_LOG_JSON"];
    for (command, variables) in [
        ("lock", [&files[..], &owners, &waiting, &logs].concat()),
        ("unlock", [&files[..], &owners, &logs].concat()),
        ("status", [&files[..], &logs].concat()),
        ("initialize", [&files[..], &logs].concat()),
        ("plugin", logs.to_vec()),
        ("describe", logs.to_vec()),
        ("completions", logs.to_vec()),
        ("man", logs.to_vec()),
    ] {
        let ended = locks.run(&[command, "--help"]);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
        // The terminal's width may break the line within the brackets.
        let words = ended.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        for variable in variables {
            assert!(words.contains(&format!("[env: {variable}]")), "{command}: {variable}");
        }
    }
    for (command, code) in [("lock", "75"), ("unlock", "77")] {
        assert!(
            locks.run(&[command, "--help"]).stdout.contains(&format!("exit code {code}")),
            "{command}"
        );
    }
}

#[test]
fn describe_lists_exactly_the_commands_that_there_are() {
    let locks = Locks::new();
    let help = locks.run(&["--help"]).stdout;
    let listed = help
        .split("\nCommands:\n")
        .nth(1)
        .and_then(|rest| rest.split("\n\n").next())
        .expect("a list of commands");
    let commands = listed.lines().filter_map(|line| line.trim().split_once("  "));
    let commands: Vec<_> = commands
        .filter(|(name, _)| *name != "help")
        .map(|(name, about)| (name, about.trim()))
        .collect();
    assert_eq!(commands.iter().map(|(name, _)| *name).collect::<Vec<_>>(), COMMANDS);

    for args in
        [&["describe"][..], &["describe", "--format", "text"], &["describe", "--format=text"]]
    {
        let described = locks.run(args).stdout;
        let described: Vec<_> = described
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, about)| (name, about.trim()))
            .collect();
        assert_eq!(described, commands);
    }
    let entry =
        |(name, about): &(&str, &str)| serde_json::json!({ "name": name, "description": about });
    let expected =
        serde_json::json!({ "commands": commands.iter().map(entry).collect::<Vec<_>>() });
    // YAML can be written as JSON.
    for format in ["json", "yaml"] {
        assert_eq!(json(&locks.run(&["describe", "--format", format])), expected);
    }

    for command in COMMANDS {
        assert_eq!(locks.run(&[command, "--help"]).code, 0, "{command}");
    }
}

#[test]
fn the_completions_work_in_bash() {
    let locks = Locks::new();
    let script = locks.dir().join("completions");
    let completions = locks.run(&["completions", "bash"]);
    fs::write(&script, &completions.stdout).expect("a file");
    let parsed = ended(locks.command("bash").arg("-n").arg(&script));
    assert_eq!((completions.code, parsed.code, parsed.stderr.as_str()), (0, 0, ""), "{parsed:?}");

    for name in ["a.lck", "b.lck"] {
        assert_eq!(locks.run(&["lock", name]).code, 0);
    }
    for (words, expected) in [
        ("lo", "lock"),
        ("lock --max", "--max-attempts"),
        ("describe --format j", "json"),
        ("unlock --fo", "--force"),
        ("unlock ''", "a.lck b.lck"),
        ("break b", "b.lck"),
        ("run --name a", "a.lck"),
        ("run -- serializer-of-this-te", "serializer-of-this-test"),
    ] {
        let complete = format!(
            "serializer() {{ \"$S\" \"$@\"; }}; serializer-of-this-test() {{ :; }}; source '{}'; \
             COMP_WORDS=(serializer {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _serializer_words serializer \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \
             \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let completed = locks.script(&complete);
        assert_eq!(completed.stdout.trim(), expected, "{words}: {completed:?}");
    }
}

#[test]
fn there_are_completions_for_other_shells() {
    let locks = Locks::new();
    for (shell, beginning) in [
        ("zsh", "#compdef serializer\n"),
        ("fish", "#"),
        ("elvish", "\nuse builtin;"),
        ("powershell", "\nusing namespace"),
    ] {
        let ended = locks.run(&["completions", shell]);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{shell}: {ended:?}");
        assert!(ended.stdout.starts_with(beginning), "{shell}: {}", ended.stdout);
        for part in ["max-attempts", "initialize"] {
            assert!(ended.stdout.contains(part), "{shell}: {part}");
        }
        let offers_names = ended.stdout.contains("serializer completions --names");
        assert_eq!(offers_names, ["zsh", "fish"].contains(&shell), "{shell}");
        assert!(!ended.stdout.contains("_hosts"), "{shell}: nothing is the name of a host");
    }
}

/// The pages, with the name that each must have.
fn pages(locks: &Locks) -> Vec<(String, String)> {
    let mut pages = vec![("serializer".to_owned(), locks.run(&["man"]))];
    pages.extend(
        COMMANDS.map(|command| (format!("serializer-{command}"), locks.run(&["man", command]))),
    );
    for command in ["start", "tick", "status", "next", "run", "pause", "resume", "stop", "forget"] {
        pages.push((
            format!("serializer-schedule-{command}"),
            locks.run(&["man", "schedule", command]),
        ));
    }
    let page = |(name, ended): (String, Ended)| {
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{name}: {ended:?}");
        (name, ended.stdout)
    };
    pages.into_iter().map(page).collect()
}

#[test]
fn the_manual_pages_are_named_after_their_commands() {
    let locks = Locks::new();
    for (name, page) in pages(&locks) {
        assert!(
            page.lines().any(|line| line.starts_with(&format!(".TH {name} 1 "))),
            "{name}: {page}"
        );
        for section in
            ["NAME", "SYNOPSIS", "ENVIRONMENT", "\"EXIT STATUS\"", "FILES", "\"SEE ALSO\""]
        {
            assert!(page.contains(&format!(".SH {section}\n")), "{name}: {section} {page}");
        }
        let has_examples =
            locks.run(&[&["help"], &name.split('-').skip(1).collect::<Vec<_>>()[..]].concat());
        assert_eq!(
            page.contains(".SH EXAMPLES\n"),
            has_examples.stdout.contains("\nExamples:\n"),
            "{name}"
        );
    }
}

#[test]
fn the_manual_pages_refer_to_pages_that_exist() {
    let locks = Locks::new();
    let pages = pages(&locks);
    for (name, page) in &pages {
        let page = page.replace("\\-", "-");
        let words = page
            .split(|c: char| c.is_whitespace() || c == ',')
            .filter_map(|word| word.strip_suffix("(1)"));
        for other in words.filter(|word| *word != "flock") {
            assert!(pages.iter().any(|(page, _)| page == other), "{name}: {other}");
        }
    }
}

#[test]
fn the_manual_pages_render_without_warnings() {
    let locks = Locks::new();
    let has_groff = locks.script("type -P groff").code == 0;
    for (name, page) in pages(&locks) {
        let path = locks.dir().join(&name);
        fs::write(&path, &page).expect("a file");
        if has_groff {
            let rendered = ended(
                locks.command("groff").args(["-man", "-ww", "-Tascii", "-P-cbou"]).arg(&path),
            );
            assert_eq!((rendered.code, rendered.stderr.as_str()), (0, ""), "{name}");
            assert!(rendered.stdout.contains("\nSYNOPSIS\n"), "{name}: {}", rendered.stdout);
        } else {
            assert!(page.contains(&format!("\n.TH {name} 1 ")), "{name}");
        }
    }
}

#[test]
fn the_manual_pages_explain_every_option() {
    let locks = Locks::new();
    for (name, page) in pages(&locks) {
        let lines: Vec<_> = page.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let after_title = number.checked_sub(1).is_some_and(|before| lines[before] == ".TP");
            if after_title && line.contains("\\-\\-") {
                let explanation = lines.get(number + 1).copied().unwrap_or("");
                assert!(
                    !explanation.is_empty() && !explanation.starts_with('.'),
                    "{name}: {line} is not explained"
                );
            }
        }
    }
}

// Status.

#[test]
fn status_tells_programs_everything() {
    let locks = Locks::new();
    let free = json(&locks.run(&["status", "--json"]));
    let path = text(&locks.file()).to_owned();
    let nobody: [(); 0] = [];
    let lock = serde_json::json!({
        "name": "serializer.lck", "path": path, "store": null, "state": "free", "why": null, "is_used": false,
        "holder": null, "holders": nobody, "waiters": nobody,
    });
    assert_eq!(free, serde_json::json!({ "schema": 1, "locks": [lock] }));

    let mut command = locks.command("bash");
    command.env("MELTANO_PARENT_CONTEXT_UUID", "a-run").env("SERIALIZER_REASON", " month\u{7}end ");
    let mut holder = Shell::start_with(command);
    holder.lock();
    let report = json(&locks.run(&["status", "--json"]));
    let lock = &report["locks"][0];
    let expected = [("path", path.as_str()), ("state", "held"), ("why", "its process is running")];
    for (key, value) in expected {
        assert_eq!(lock[key], value, "{lock}");
    }
    let known = &lock["holder"];
    assert_eq!(lock["holders"], serde_json::json!([known]));
    assert_eq!(known["state"], "held");
    assert_eq!(known["why"], "its process is running");
    assert_eq!(known["mode"], "exclusive");
    assert_eq!(known["pid"], holder.pid());
    assert_eq!(known["uid"], rustix::process::getuid().as_raw());
    assert_eq!((&known["run"], &known["reason"]), (&"a-run".into(), &"month end".into()));
    assert_eq!(known["host"], rustix::system::uname().nodename().to_str().expect("ASCII"));
    assert!(
        known["command"].as_str().is_some_and(|command| command == "bash -c while …"),
        "{known}"
    );
    assert!(known["token"].as_str().is_some_and(|token| token.len() == 32), "{known}");
    assert!(
        known["since"].as_str().is_some_and(|since| since.parse::<jiff::Timestamp>().is_ok()),
        "{known}"
    );
    assert!(known["held_seconds"].is_u64(), "{known}");

    let pid = holder.pid();
    holder.reap();
    let lock = &json(&locks.run(&["status", "--json"]))["locks"][0];
    assert_eq!(
        (&lock["state"], &lock["holder"]["pid"]),
        (&Value::from("stale"), &Value::from(pid)),
        "{lock}"
    );
}

/// The lines of a table, each split where two columns are apart.
fn table(ended: &Ended) -> Vec<Vec<&str>> {
    assert_eq!(ended.code, 0, "{ended:?}");
    ended
        .stdout
        .lines()
        .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect()
}

#[test]
fn status_tells_people_in_a_table() {
    let locks = Locks::new();
    let free = locks.run(&["status"]);
    assert_eq!(
        table(&free),
        [&[text(locks.dir())][..], &["LOCK", "STATE"], &["serializer.lck", "free"]]
    );

    let mut holder = Shell::start(&locks);
    assert_eq!(holder.run(r#""$S" lock --reason "month  end, ask Ann" 2>/dev/null"#), 0);
    let waiter = Waiter::start(locks.serializer(&["run", "--shared", "--", "true"]));
    until("it is in line", || !locks.pids("waiters").is_empty());
    let held = locks.run(&["status"]);
    let (rows, pid) = (table(&held), holder.pid().to_string());
    assert_eq!(rows[1], ["LOCK", "STATE", "FOR", "PID", "WAITING", "COMMAND", "WHY"], "{held:?}");
    let [row] = &rows[2..] else { panic!("{held:?}") };
    assert_eq!(
        [row[0], row[1], row[3], row[4]],
        ["serializer.lck", "held", &*pid, "1"],
        "{held:?}"
    );
    assert!(row[5].starts_with("bash -c while") && row[6] == "month", "{held:?}");
    // A lock that is named is shown in full.
    let named = locks.run(&["status", "serializer.lck"]);
    let rows = table(&named);
    assert_eq!(
        (rows.len(), rows[3][1], rows[3].last()),
        (4, "waits", Some(&"1st in line; shared")),
        "{named:?}"
    );
    // On a terminal, nothing is wider than that, and states have colours.
    let mut terminal = locks.command("script");
    let ended = ended(terminal.env("TERM", "xterm").args([
        "-qefc",
        r#"stty cols 60; "$S" status"#,
        "/dev/null",
    ]));
    assert!(
        ended.stdout.contains("  \u{1b}[33mheld\u{1b}[0m  ") && ended.stdout.contains('…'),
        "{ended:?}"
    );
    let lines: Vec<_> = ended
        .stdout
        .lines()
        .map(|line| line.replace("\u{1b}[33m", "").replace("\u{1b}[0m", ""))
        .collect();
    assert!(
        lines.len() == 3 && lines.iter().all(|line| line.trim_end().chars().count() <= 60),
        "{ended:?}"
    );
    holder.unlock();
    assert_eq!(waiter.end().code, 0);
}

#[test]
fn a_watched_status_fits_its_screen_and_leaves_the_terminal_as_it_was() {
    let locks = Locks::new();
    let (shown, pid) = (locks.dir().join("shown"), locks.dir().join("pid"));
    let mut holder = Shell::start(&locks);
    for name in ["a.lck", "b.lck", "c.lck", "d.lck", "e.lck"] {
        assert_eq!(holder.run(&format!(r#""$S" lock --file-name {name} 2>/dev/null"#)), 0);
    }
    let script = r#"stty rows 5 cols 60; echo $$ > "$SERIALIZER_DIR/pid"; exec env --default-signal=INT "$S" status --watch"#;
    let mut terminal = locks.command("script");
    terminal
        .env("TERM", "xterm")
        .env("SHELL", "/bin/bash")
        .args(["-qefc", script])
        .arg(&shown)
        .stdout(Stdio::null());
    let mut terminal = terminal.spawn().expect("script starts");
    let text = || fs::read_to_string(&shown).unwrap_or_default();
    until("it shows how many more there are", || text().contains("+4 more"));
    let pid = fs::read_to_string(pid)
        .expect("its pid")
        .trim()
        .parse()
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.expect("a pid"), rustix::process::Signal::INT)
        .expect("it is there");
    until("it ends", || terminal.try_wait().expect("it can be asked").is_some());
    let text = text();
    assert!(
        text.contains("\u{1b}[?1049h") && text.contains("\u{1b}[?25h\u{1b}[?1049l"),
        "{text:?}"
    );
    let frame = text.split("\u{1b}[H").nth(1).expect("a frame");
    assert_eq!(frame.matches("\r\n").count(), 4, "{frame:?}");
}

#[test]
fn a_watched_status_in_json_is_a_line_for_each_change() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    let mut watch = locks
        .serializer(&["status", "--watch", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(watch.stdout.take().expect("its output")).lines();
    let mut state = || {
        let line = lines.next().expect("a line").expect("text");
        serde_json::from_str::<Value>(&line).expect("JSON")["locks"][0]["state"]
            .as_str()
            .map(str::to_owned)
    };
    assert_eq!(state().as_deref(), Some("free"));
    holder.lock();
    assert_eq!(state().as_deref(), Some("held"));
    holder.unlock();
    assert_eq!(state().as_deref(), Some("free"));
    watch.kill().and_then(|()| watch.wait()).expect("it ends");
}

#[test]
fn status_shows_the_locks_that_are_named() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    assert_eq!(holder.run(r#""$S" lock --file-name b.lck 2>/dev/null"#), 0);
    let other = Locks::new();
    let elsewhere = other.dir().join("c.lck");
    let report = json(&locks.run(&["status", "--json", "b.lck", "a.lck", text(&elsewhere)]));
    let found: Vec<_> = report["locks"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|lock| (&lock["path"], &lock["state"]))
        .collect();
    let path = |name: &str| Value::from(text(&locks.dir().join(name)));
    let (held, free) = (Value::from("held"), Value::from("free"));
    assert_eq!(
        found,
        [(&path("b.lck"), &held), (&path("a.lck"), &free), (&Value::from(text(&elsewhere)), &free)]
    );
}

#[test]
fn status_shows_all_locks_in_the_directory_and_nothing_else() {
    let locks = Locks::new();
    let none = locks.run(&["status", "--all"]);
    assert_eq!((none.code, none.stdout.as_str()), (0, ""), "{none:?}");
    assert!(none.stderr.contains(&format!("no locks in `{}`", text(locks.dir()))), "{none:?}");
    assert_eq!(
        json(&locks.run(&["status", "--all", "--json"])),
        serde_json::json!({ "schema": 1, "locks": [] })
    );

    let mut holder = Shell::start(&locks);
    for name in ["b.lck", "a.lock", "c.txt"] {
        assert_eq!(holder.run(&format!(r#""$S" lock --file-name {name} 2>/dev/null"#)), 0);
    }
    fs::write(locks.dir().join("other.lock"), "what another program keeps\n").expect("a file");
    fs::create_dir(locks.dir().join("directory.lck")).expect("a directory");
    std::os::unix::fs::symlink(locks.dir().join("b.lck"), locks.dir().join("link.lck"))
        .expect("a link");
    // A PID alone is a lock only if the name says so.
    fs::write(locks.dir().join("daemon.pid"), "1\n").expect("a file");
    let names = |ended: &Ended| {
        table(ended).iter().skip(2).map(|row| row[0].to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&locks.run(&["status", "--all"])), ["a.lock", "b.lck", "c.txt"]);
    assert_eq!(
        names(&locks.run(&["status"])),
        ["serializer.lck", "a.lock", "b.lck", "c.txt"],
        "the usual one first"
    );
    let mut set = locks.serializer(&["status"]);
    assert_eq!(names(&ended(set.env("SERIALIZER_FILE_NAME", "b.lck"))), ["b.lck"]);
    // What was probably meant.
    let mistyped = locks.run(&["status", "b.lock"]);
    assert!(
        mistyped
            .last_line()
            .ends_with("`b.lock` is not in use; locks in use: `a.lock`, `b.lck`, `c.txt`"),
        "{mistyped:?}"
    );
}

#[test]
fn status_tells_scripts_by_its_exit_code() {
    let locks = Locks::new();
    let code = |names: &[&str]| locks.run(&[&["status", "--exit-code"], names].concat()).code;
    assert_eq!(code(&[]), 0);
    let mut holder = Shell::start(&locks);
    holder.lock();
    assert_eq!((code(&[]), code(&["other"]), code(&["other", "serializer.lck"])), (1, 0, 1));
    let record = locks.read();
    holder.reap();
    assert_eq!(code(&[]), 0, "stale");
    locks.write(
        record
            .lines()
            .map(
                |line| {
                    if line.starts_with("v=") { "v=99\n".to_owned() } else { format!("{line}\n") }
                },
            )
            .collect::<String>(),
    );
    assert_eq!(code(&[]), 3, "unknown");
    locks.write("of another program\n");
    assert_eq!((code(&["serializer.lck"]), code(&["--all"])), (4, 0));
    assert_eq!(code(&["--once"]), 2);
}

#[test]
fn a_file_that_may_not_be_read_does_not_hide_the_other_locks() {
    let locks = Locks::new();
    let user = OrdinaryUser::new(&locks);
    let mut holder = Shell::start(&locks);
    assert_eq!(holder.run(r#""$S" lock --file-name b.lck 2>/dev/null"#), 0);
    let private = locks.dir().join("a.lock");
    fs::write(&private, "what another user keeps\n").expect("a file");
    fs::set_permissions(&private, Permissions::from_mode(0o000)).expect("its mode can be set");
    let ended = user.run(&locks, &["status", "--all"]);
    assert_eq!(ended.code, 1, "it does not pass over what it could not see: {ended:?}");
    let states: Vec<_> =
        ended.stdout.lines().skip(2).filter_map(|row| row.split_whitespace().nth(1)).collect();
    assert_eq!(states, ["error", "held"], "{ended:?}");
}

// Messages.

#[test]
fn messages_name_the_program_except_to_meltano() {
    let locks = Locks::new();
    let alone = locks.run(&["lock"]);
    assert!(alone.stderr.starts_with("serializer: locked `"), "{alone:?}");
    let by_meltano =
        |args: &[&str]| ended(locks.serializer(args).env("MELTANO_PROJECT_ROOT", "/project"));
    let again = by_meltano(&["lock"]);
    assert!(again.stderr.starts_with("warning: `"), "{again:?}");
    let unlocked = by_meltano(&["unlock"]);
    assert!(unlocked.stderr.starts_with("unlocked `"), "{unlocked:?}");
    for args in [&["unlock"][..], &["nonsense"], &["lock", "--bogus"]] {
        let failed = by_meltano(args);
        assert!(failed.code != 0 && !failed.stderr.contains("serializer: "), "{failed:?}");
    }
    let missing = |command| by_meltano(&[command, "--dir", "/nowhere/at/all"]).stderr;
    for command in ["lock", "status"] {
        let stderr = missing(command);
        assert!(stderr.contains("`meltano invoke dbtmutex:initialize"), "{stderr}");
    }
    let mistyped = by_meltano(&["lock", "--bogus"]).stderr;
    assert!(mistyped.contains("`serializer lock --help`"), "{mistyped}");
    // Without a project it is not Meltano that calls.
    assert!(
        ended(locks.serializer(&["unlock"]).env("MELTANO_PROJECT_ROOT", ""))
            .stderr
            .starts_with("serializer: ")
    );
}

#[test]
fn messages_below_the_level_are_left_out() {
    for (level, shows_info, shows_warning) in [
        ("debug", true, true),
        ("info", true, true),
        ("INFO", true, true),
        ("warning", false, true),
        ("WARN", false, true),
        ("error", false, false),
        ("critical", false, false),
        ("no level", true, true),
    ] {
        for by_flag in [false, true] {
            // The variable is not ours alone, the flag is.
            if by_flag && level == "no level" {
                assert_eq!(Locks::new().run(&["lock", "--log-level", level]).code, 2);
                continue;
            }
            let locks = Locks::new();
            let run = |command: &str| {
                let mut command = locks.serializer(&[command]);
                if by_flag {
                    command.args(["--log-level", level]).env("LOG_LEVEL", "debug")
                } else {
                    command.env("LOG_LEVEL", level)
                };
                ended(&mut command)
            };
            assert_eq!(!run("lock").stderr.is_empty(), shows_info, "{level}");
            assert_eq!(!run("lock").stderr.is_empty(), shows_warning, "{level}");
            assert_eq!(!run("unlock").stderr.is_empty(), shows_info, "{level}");
            let failed = run("unlock");
            assert!(
                failed.code == 1 && failed.stderr.contains("it is not locked"),
                "errors are always shown: {failed:?}"
            );
        }
    }
}

#[test]
fn times_and_levels_are_added_on_request() {
    for yes in ["1", "true", "YES", "on"] {
        let locks = Locks::new();
        let ended =
            ended(locks.serializer(&["lock"]).env("LOG_TIMESTAMPS", yes).env("LOG_LEVELS", yes));
        let (time, rest) =
            ended.stderr.split_at_checked("2026-11-22 08:00:00 ".len()).expect("a time");
        assert!(
            jiff::civil::DateTime::strptime("%Y-%m-%d %H:%M:%S", time.trim_end()).is_ok(),
            "{ended:?}"
        );
        assert!(rest.starts_with("serializer: info: locked `"), "{ended:?}");
    }
    for no in ["0", "false", "no", "off", ""] {
        let locks = Locks::new();
        let ended = ended(
            locks
                .serializer(&["lock"])
                .env("LOG_TIMESTAMPS", no)
                .env("LOG_LEVELS", no)
                .env("MELTANO_LOG_JSON", no),
        );
        assert!(ended.stderr.starts_with("serializer: locked `"), "{ended:?}");
    }
    let locks = Locks::new();
    let ended = locks.run(&["unlock", "--log-levels"]);
    assert!(ended.stderr.starts_with("serializer: error: cannot unlock `"), "{ended:?}");
}

#[test]
fn messages_are_json_on_request() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let by_variable = |args: &[&str]| ended(locks.serializer(args).env("MELTANO_LOG_JSON", "1"));
    let by_flag = |args: &[&str]| locks.run(&[args, &["--meltano-log-json"]].concat());
    let attempts = ["lock", "--max-attempts", "2", "--sleep-seconds", "0.01"];
    for ended in [
        by_variable(&attempts),
        by_flag(&attempts),
        by_variable(&["nonsense"]),
        by_variable(&["lock", "--max-attempts", "x"]),
    ] {
        assert!(!ended.stderr.is_empty());
        for line in ended.stderr.lines() {
            let message: Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert!(message["event"].as_str().is_some_and(|event| !event.is_empty()), "{line}");
            assert!(
                message["timestamp"]
                    .as_str()
                    .is_some_and(|time| time.parse::<jiff::Timestamp>().is_ok()),
                "{line}"
            );
            assert!(["info", "error"].contains(&message["level"].as_str().unwrap_or("")), "{line}");
        }
        let last: Value = serde_json::from_str(ended.last_line()).expect("JSON");
        assert_eq!(last["level"], "error", "{ended:?}");
    }
}

#[test]
fn data_goes_to_stdout_and_messages_to_stderr() {
    let locks = Locks::new();
    for args in [&["lock"][..], &["lock"], &["unlock"], &["initialize"]] {
        let ended = locks.run(args);
        assert!(
            ended.code == 0 && ended.stdout.is_empty() && !ended.stderr.is_empty(),
            "{args:?}: {ended:?}"
        );
    }
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["plugin"],
        &["describe"],
        &["man"],
        &["completions", "bash"],
        &["--help"],
        &["--version"],
    ] {
        let ended = locks.run(args);
        assert!(
            ended.code == 0 && !ended.stdout.is_empty() && ended.stderr.is_empty(),
            "{args:?}: {ended:?}"
        );
    }
}

#[test]
fn a_process_that_stops_reading_has_read_enough() {
    let locks = Locks::new();
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["status", "--all", "--json"],
        &["describe"],
        &["man"],
        &["completions", "bash"],
        &["--help"],
        &["lock", "--help"],
        &["--version"],
    ] {
        let (reader, writer) = pipe().expect("a pipe");
        drop(reader);
        let output = locks
            .serializer(args)
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .and_then(|child| child.wait_with_output());
        let ended = Ended::from(output.expect("it runs"));
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{args:?}");
    }
}

#[test]
fn output_that_is_lost_is_a_failure() {
    let locks = Locks::new();
    for args in ["status", "status --json", "describe", "man", "completions bash"] {
        let ended = locks.script(&format!(r#""$S" {args} > /dev/full"#));
        assert_eq!(ended.code, 1, "{args}: {ended:?}");
        assert_eq!(
            ended.stderr, "serializer: cannot write to standard output: no space left on device\n",
            "{args}"
        );
    }
}

#[test]
fn a_lock_does_not_depend_on_any_process_reading_its_messages() {
    let locks = Locks::new();
    let unheard = |args: &[&str]| {
        let (reader, writer) = pipe().expect("a pipe");
        drop(reader);
        let status = locks.serializer(args).stderr(writer).status().expect("it runs");
        status.code().unwrap_or_else(|| panic!("{args:?}: {status}"))
    };
    assert_eq!(unheard(&["lock"]), 0);
    assert_eq!(locks.names(), ["serializer.lck"]);
    assert_eq!(unheard(&["lock"]), 0);
    assert_eq!(unheard(&["unlock"]), 0);
    assert_eq!(locks.names(), [""; 0]);
    assert_eq!(unheard(&["unlock"]), 1);
    assert_eq!(unheard(&["nonsense"]), 2);

    let mut holder = Shell::start(&locks);
    holder.lock();
    assert_eq!(unheard(&["lock", "--max-attempts", "2", "--sleep-seconds", "0.01"]), 75);
    assert_eq!(unheard(&["unlock"]), 77);
}

#[test]
fn a_lock_does_not_depend_on_standard_streams() {
    let locks = Locks::new();
    for streams in ["<&- >&- 2>&-", "<&- >/dev/full 2>/dev/full", "2>/dev/full", "2>&-"] {
        let ended = locks.script(&format!(
            r#""$S" lock {streams}; a=$?; head -1 "$SERIALIZER_DIR"/serializer.lck; "$S" unlock {streams}; b=$?; "$S" unlock {streams}; echo $$ $a $b $?"#
        ));
        let lines: Vec<_> = ended.stdout.lines().collect();
        let pid = lines.first().expect("a record");
        assert_eq!(lines, [*pid, &format!("{pid} 0 0 1")], "{streams}: {ended:?}");
        assert_eq!(locks.names(), [""; 0]);
    }
}

// The lock itself.

#[test]
fn what_one_holds_already_is_locked_with_a_warning() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let before = locks.read();
    let (code, said) = holder.output(r#""$S" lock 2>&1"#);
    assert_eq!(code, 0);
    assert!(
        said.starts_with("serializer: warning: `")
            && said.contains("already locked by this process (pid "),
        "{said}"
    );
    assert_eq!(locks.read(), before);
}

#[test]
fn the_last_command_of_a_shell_may_be_an_unlock() {
    let locks = Locks::new();
    // bash executes it in its own place, so that the program itself is the owner.
    let ended = ended(
        locks.command("bash").args(["-c", &format!("{PROGRAM} lock && exec {PROGRAM} unlock")]),
    );
    assert_eq!((ended.code, locks.names().len()), (0, 0), "{ended:?}");
    assert!(ended.last_line().starts_with("serializer: unlocked"), "{ended:?}");
}

#[test]
fn the_record_begins_as_the_python_plugin_writes_it() {
    let locks = Locks::new();
    let mut holder = Shell::start(&locks);
    holder.lock();
    let record = locks.read();
    let mut lines = record.lines();
    assert_eq!(lines.next(), Some(holder.pid().to_string().as_str()));
    let time = lines.next().expect("a time");
    assert!(
        time.len() == 19 && jiff::civil::DateTime::strptime("%Y-%m-%d %H:%M:%S", time).is_ok(),
        "{record}"
    );
    assert_eq!(lines.next(), Some("v=1"));
    assert!(lines.all(|line| line.contains('=')), "{record}");
}

#[test]
fn a_directory_that_is_named_beats_a_store_that_is_a_variable() {
    let locks = Locks::new();
    let dir = locks.dir().display().to_string();
    let with_store = |args: &[&str]| {
        ended(locks.serializer(args).env("SERIALIZER_STORE", "postgres://me@127.0.0.1:1/x"))
    };
    assert_eq!(with_store(&["lock", "--dir", &dir]).code, 0);
    assert!(locks.file().exists());
    assert_eq!(with_store(&["lock", "-n"]).code, 1);
    let ended = with_store(&["lock", "--dir", &dir, "--store", "postgres://me@127.0.0.1:1/x"]);
    assert_eq!(ended.code, 2, "{ended:?}");
}

#[test]
fn a_store_that_cannot_be_one_is_refused_without_repeating_it() {
    let locks = Locks::new();
    for url in [
        "me:hunter2@db",
        "sqlite:///hunter2/meltano.db",
        "ftp://me:hunter2@db/x",
        "postgres:///x\nhunter2",
    ] {
        for command in [
            &["lock", "-n"][..],
            &["unlock"],
            &["run", "true"],
            &["status"],
            &["status", "--all"],
            &["initialize"],
        ] {
            let by_variable = ended(locks.serializer(command).env("SERIALIZER_STORE", url));
            let by_flag = locks.run(&[&command[..1], &["--store", url], &command[1..]].concat());
            for ended in [by_variable, by_flag] {
                assert!(
                    ended.code == 2
                        && (ended.stderr.contains("STORE") || ended.stderr.contains("--store")),
                    "{ended:?}"
                );
                assert!(!ended.stderr.contains("hunter2"), "{ended:?}");
            }
        }
    }
    let ended = ended(
        locks.serializer(&["lock"]).env("SERIALIZER_STORE", "sqlite:////srv/.meltano/meltano.db"),
    );
    assert!(ended.stderr.contains("SERIALIZER_DIR"), "{ended:?}");
    for (name, value) in [("LEASE_SECONDS", "0"), ("LEASE_SECONDS", "abc"), ("ON_LOST", "explode")]
    {
        let mut lock = locks.serializer(&["lock"]);
        let ended = support::ended(
            lock.env("SERIALIZER_STORE", "postgres://db/x")
                .env(format!("SERIALIZER_{name}"), value),
        );
        assert!(
            ended.code == 2 && ended.stderr.contains(&format!("`SERIALIZER_{name}` `{value}`")),
            "{ended:?}"
        );
    }
    assert_eq!(locks.names(), Vec::<String>::new());
}
