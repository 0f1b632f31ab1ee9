//! `docs/reference.md` is made from the help of the program.

use std::fmt::Write;
use std::{env, fs};

use crate::support::{Locks, ended};

const COMMANDS: [&str; 9] =
    ["run", "lock", "unlock", "wait", "break", "once", "forget", "status", "initialize"];

const HEAD: &str = "# Settings and exit codes

This page is for users of any command. After reading it you know each option with its variable and its default, and each exit code.
The page is made from the help of the program: `UPDATE_DOCUMENTS=1 cargo test --test local reference` writes it anew.

## Commands

";

const SETTINGS: &str = "
`serializer COMMAND --help` has examples. `serializer flock --help` lists the options of flock(1), and `serializer schedule --help`
the commands of [schedule](schedule.md).

## Settings

A flag beats its variable. An empty variable counts as unset, except `SERIALIZER_STORE`, which is refused if it is empty: hosts
would not exclude each other if `SERIALIZER_STORE=$MELTANO_DATABASE_URI` expanded to nothing. `--dir` beats `SERIALIZER_STORE`, which
beats `SERIALIZER_DIR`. A relative directory starts at `MELTANO_PROJECT_ROOT` if that is set. `--lease-seconds` together with a
directory means that hosts share that directory.

* `SERIALIZER_PASSWORD_FILE` has no option. It names a file with the password of the store in its first line.
* `--on-lost` is `terminate` for `run` and `once`, and `warn` for `lock`. `--log-level` is `info`.
* `--slots` is 100 at most, `--lease-seconds` 1 to 86400, and `--reason` 80 characters at most.
* A variable for a yes or no, such as `LOG_LEVELS`, is `1` or `0`.
";

const CODES: &str = "
## Exit codes

";

const FILES: &str = "
* 1: also `unlock` of a lock that is not held, and a `lock` after the end of its owner during the wait.
* 2: nothing was tried. Also a parent that cannot own a lock.
* 75: `-E` chooses another code.
* 76: the command of `run` succeeded, but its lock was lost or broken meanwhile, or `run` stopped the command for that. Also
  `unlock` of a lock that was lost or broken, or `lock` again, once.
* 77: also `break`, if the holder is another one than the one that it names.

After a failure, the last line on stderr names the reason.

## Files

";

/// An option, and the commands that have it.
struct Setting {
    heading: String,
    flags: String,
    help: String,
    commands: Vec<&'static str>,
}

/// The options that stand in a help, as heading, flags and explanation.
fn options(help: &str) -> Vec<(String, String, String)> {
    let (mut heading, mut options) = (String::new(), Vec::<(String, String, String)>::new());
    for line in help.lines() {
        let text = line.trim();
        if let Some(title) = line.strip_suffix(':').filter(|title| !title.starts_with(' ')) {
            title.clone_into(&mut heading);
        } else if heading == "Examples" || heading == "Arguments" || heading.is_empty() {
        } else if text.starts_with(['-', '[', '<']) && line.len() - text.len() < 8 {
            options.push((heading.clone(), text.to_owned(), String::new()));
        } else if line.starts_with("      ") {
            let (_, _, help) = options.last_mut().expect("an option stands before its help");
            *help += &format!("{text} ");
        }
    }
    options
}

/// Takes `[NAME: VALUE]` out of a text.
fn take(text: &mut String, name: &str) -> String {
    let Some((before, rest)) = text.split_once(&format!("[{name}: ")) else { return String::new() };
    let (value, after) = rest.split_once(']').expect("it is closed");
    let (value, rest) = (value.to_owned(), format!("{before}{}", after.trim_start()));
    *text = rest;
    value
}

fn settings(locks: &Locks) -> Vec<Setting> {
    let mut settings = Vec::<Setting>::new();
    for command in COMMANDS {
        let help = ended(&mut locks.serializer(&[command, "--help"])).stdout;
        for (heading, flags, help) in options(&help) {
            match settings.iter_mut().find(|known| known.flags == flags && known.help == help) {
                Some(known) => known.commands.push(command),
                None => settings.push(Setting { heading, flags, help, commands: vec![command] }),
            }
        }
    }
    // Arguments, and what each command has.
    settings.retain(|it| it.flags.starts_with('-') && !it.flags.contains("--help"));
    settings
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{}`", text.replace('|', "\\|")) }
}

fn table(page: &mut String, settings: &[Setting], heading: &str) {
    let title = if heading == "Options" { "Of one command" } else { heading };
    let first =
        "| option | variable | default | meaning | commands |\n| --- | --- | --- | --- | --- |";
    writeln!(page, "\n### {title}\n\n{first}").expect("a text");
    for setting in settings.iter().filter(|setting| setting.heading == heading) {
        let mut help = setting.help.clone();
        let alias = take(&mut help, "alias") + &take(&mut help, "aliases");
        let variable = take(&mut help, "env");
        let variables = variable.split(", ").map(code).collect::<Vec<_>>().join(", ");
        let default = take(&mut help, "default");
        let values = take(&mut help, "possible values");
        let values = if values.is_empty() { values } else { format!(": {values}") };
        let other = if alias.is_empty() { alias } else { format!(", {}", code(&alias)) };
        let flags = setting.flags.split(", ").map(code).collect::<Vec<_>>().join(", ");
        let commands = if setting.commands.len() == COMMANDS.len() {
            "all".to_owned()
        } else {
            setting.commands.join(", ")
        };
        let help = help.trim().replace('|', "\\|");
        writeln!(
            page,
            "| {flags}{other} | {variables} | {} | {help}{values} | {commands} |",
            if default.contains(' ') { default } else { code(&default) }
        )
        .expect("a text");
    }
}

/// A paragraph of the help as the rows of a table: a word, or a file, and its explanation.
fn rows(help: &str, begin: &str) -> String {
    let (_, rest) = help.split_once(&format!("\n{begin}:\n")).expect("the paragraph");
    let paragraph = rest.split("\n\n").next().unwrap_or_default();
    // Each command has one.
    let lines = paragraph.lines().map(str::trim).filter(|line| !line.starts_with("help "));
    let mut rows = String::from("| | |\n| --- | --- |\n");
    for line in lines {
        let row = match line.split_once("  ") {
            Some((first, rest)) => format!("| {} | {} |", code(first), rest.trim()),
            None => match line.split_once(' ') {
                Some((first, rest)) if first.parse::<u8>().is_ok() => {
                    format!("| {} | {rest} |", code(first))
                }
                // "Otherwise, …".
                _ => format!("| any other | {line} |"),
            },
        };
        rows += &(row + "\n");
    }
    rows
}

#[test]
fn the_reference_is_that_of_the_program() {
    let locks = Locks::new();
    let help = ended(&mut locks.serializer(&["--help"])).stdout;
    let settings = settings(&locks);
    let mut page = HEAD.to_owned() + &rows(&help, "Commands") + SETTINGS;
    let mut headings = Vec::new();
    for setting in &settings {
        if !headings.contains(&&setting.heading) {
            headings.push(&setting.heading);
        }
    }
    for heading in &headings {
        table(&mut page, &settings, heading);
    }
    page += &(CODES.to_owned() + &rows(&help, "Exit codes") + FILES + &rows(&help, "Files"));
    for word in help.split(|c: char| !(c.is_ascii_uppercase() || c == '_')) {
        let is_variable = word.starts_with("SERIALIZER_") || word.starts_with("LOG_");
        assert!(!is_variable || page.contains(&format!("`{word}`")), "{word} is missing");
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference.md");
    if env::var_os("UPDATE_DOCUMENTS").is_some() {
        fs::write(path, &page).expect("it can be written");
    }
    let known = fs::read_to_string(path).unwrap_or_default();
    assert_eq!(known, page, "docs/reference.md: `UPDATE_DOCUMENTS=1` writes it anew");
}
