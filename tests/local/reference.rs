//! Generates the tables of `docs/reference.md` from the program's help: each is between
//! `<!-- made: NAME -->` and `<!-- end -->`.

use std::fmt::Write;
use std::{env, fs};

use crate::support::{Locks, ended};

const COMMANDS: [&str; 9] =
    ["run", "lock", "unlock", "wait", "break", "once", "forget", "status", "initialize"];

/// An option, and the commands that have it.
struct Setting {
    heading: String,
    flags: String,
    help: String,
    commands: Vec<&'static str>,
}

/// The options in a help text: heading, flags and explanation.
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

/// Removes `[NAME: VALUE]` from a text, and returns the value.
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
    // Without arguments and `--help`.
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

/// A paragraph of the help as rows of a table: a word or a file, and its explanation.
fn rows(help: &str, begin: &str) -> String {
    let (_, rest) = help.split_once(&format!("\n{begin}:\n")).expect("the paragraph");
    let paragraph = rest.split("\n\n").next().unwrap_or_default();
    // Every command has it.
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
fn the_tables_of_the_reference_match_the_help() {
    let locks = Locks::new();
    let help = ended(&mut locks.serializer(&["--help"])).stdout;
    let settings = settings(&locks);
    let mut headings = Vec::new();
    for setting in &settings {
        if !headings.contains(&&setting.heading) {
            headings.push(&setting.heading);
        }
    }
    let mut of_settings = String::new();
    headings.iter().for_each(|heading| table(&mut of_settings, &settings, heading));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference.md");
    let known = fs::read_to_string(path).expect("the page");
    let mut page = known.clone();
    for (name, made) in [
        ("commands", rows(&help, "Commands")),
        ("settings", of_settings),
        ("codes", rows(&help, "Exit codes")),
        ("files", rows(&help, "Files")),
    ] {
        let begin = format!("<!-- made: {name} -->\n");
        let (before, rest) = page.split_once(&begin).expect("the place for a table");
        let (_, after) = rest.split_once("<!-- end -->").expect("its end");
        page = format!("{before}{begin}\n{}\n<!-- end -->{after}", made.trim_start());
    }
    for word in help.split(|c: char| !(c.is_ascii_uppercase() || c == '_')) {
        let is_variable = word.starts_with("SERIALIZER_") || word.starts_with("LOG_");
        assert!(!is_variable || page.contains(&format!("`{word}`")), "{word} is missing");
    }
    if env::var_os("UPDATE_DOCUMENTS").is_some() {
        fs::write(path, &page).expect("it can be written");
    } else {
        assert_eq!(known, page, "`UPDATE_DOCUMENTS=1` regenerates it");
    }
}
