//! Foreign text (file contents, command lines, paths), made safe to print: one line, bounded,
//! without control characters and, for command lines, without possible secrets.

use std::path::Path;

/// Shells, which run a script, whatever arguments it gets.
pub const SHELLS: [&str; 7] = ["sh", "bash", "dash", "ash", "ksh", "zsh", "fish"];

/// The longest value of a record's field, in characters. All fields fit into a record.
const MAX_FIELD: usize = 120;

/// The longest reason, in characters.
const MAX_REASON: usize = 80;

const HIDDEN: &str = "…";

/// The programs of which only the values of options may hold secrets.
const TOOLS: [&str; 4] = ["meltano", "dbt", "pipelinewise", "serializer"];

/// Their options that have no value, besides those that begin with `--no-`.
const FLAGS: [&str; 8] =
    ["", "debug", "dry-run", "exclusive", "fail-fast", "force", "full-refresh", "print-token"];

/// The value of a record's field: trimmed, on one line and bounded.
pub fn field(text: &str) -> String {
    value(text.trim())
}

/// The value of a setting, with its blanks, which may be what is wrong with it.
pub fn value(text: &str) -> String {
    text.chars().map(|c| if is_safe(c) { c } else { ' ' }).take(MAX_FIELD).collect()
}

/// A user's own words, short enough for a record with many holders.
pub fn reason(text: &str) -> String {
    field(text).chars().take(MAX_REASON).collect()
}

/// A path for a message. Control characters are shown as `?`.
pub fn path(path: &Path) -> String {
    path.to_string_lossy().chars().map(|c| if is_safe(c) { c } else { '?' }).collect()
}

/// A word as a shell reads it.
pub fn quoted(word: &str) -> String {
    let is_plain = !word.is_empty()
        && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:,+@%".contains(c));
    if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// The columns of a text on a terminal, or more: some characters take two.
pub fn width(text: &str) -> usize {
    text.chars().map(width_of).sum()
}

fn width_of(c: char) -> usize {
    if c.is_ascii() || c == '…' { 1 } else { 2 }
}

/// The beginning of a text that fits into so many columns, with `…` in place of the rest.
pub fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut room = columns.saturating_sub(1);
    let fits = |c: &char| room.checked_sub(width_of(*c)).map(|rest| room = rest).is_some();
    text.chars().take_while(fits).chain(['…']).collect()
}

/// Neither a control character nor one that reorders the text around it.
pub fn is_safe(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// A process's arguments as one line for people, without the interpreter and directories. `…`
/// stands for possible secrets: all from the first option or odd word on, but of known programs
/// only odd words and options' values.
pub fn command_line(arguments: &[String]) -> String {
    let Some((title, rest)) = program(arguments) else { return String::new() };
    // Some programs show their state in place of their name.
    let (program, title) = title.split_once(char::is_whitespace).unwrap_or((title, ""));
    let is_shell = SHELLS.contains(&program.trim_start_matches('-'));
    let is_tool = TOOLS.contains(&program);
    let mut line = program.to_owned();
    let words: Vec<&str> = match rest {
        // `-c`, `-lc`
        [option, script, ..] if is_shell && option.starts_with('-') && option.ends_with('c') => {
            line = format!("{program} {option}");
            script.split_whitespace().collect()
        }
        _ => title.split_whitespace().chain(rest.iter().map(String::as_str)).collect(),
    };
    let mut may_be_value = false;
    for word in words {
        let is_option = word.starts_with('-');
        let shown = match word {
            _ if is_option && is_tool => option_name(word),
            _ if is_option || may_be_value || !is_plain(word, is_tool) => HIDDEN.to_owned(),
            // `meltano config tap-x set password x`
            "set" => format!("set {HIDDEN}"),
            _ => word.to_owned(),
        };
        let is_flag = |name: &str| FLAGS.contains(&name) || name.starts_with("no-");
        may_be_value =
            is_option && !shown.ends_with(HIDDEN) && !word.strip_prefix("--").is_some_and(is_flag);
        line = format!("{line} {shown}");
        if word == "set" || shown == HIDDEN && !is_tool {
            break;
        }
    }
    field(&line)
}

/// Whether a word can be shown. Tools select by `dbt:run`.
fn is_plain(word: &str, is_of_tool: bool) -> bool {
    let is_odd = |c: char| "@=".contains(c) || c.is_whitespace() || c == ':' && !is_of_tool;
    !word.contains(is_odd) && !word.contains("://")
}

/// An option without its value: `--name=…`, `-p…`.
fn option_name(option: &str) -> String {
    let end = if option.starts_with("--") {
        option.find('=').map(|at| at + 1)
    } else {
        option.char_indices().nth(2).map(|(at, _)| at)
    };
    let (name, hidden) = end.map_or((option, ""), |end| (&option[..end], HIDDEN));
    if is_plain(name.trim_end_matches('='), false) {
        format!("{name}{hidden}")
    } else {
        HIDDEN.to_owned()
    }
}

/// The name of the program that a process runs, and the program's arguments. A Python script or
/// module is known by its own name, without the interpreter and its options.
pub fn program(arguments: &[String]) -> Option<(&str, &[String])> {
    let (first, rest) = arguments.split_first()?;
    let name = base_name(first);
    let is_python = name.starts_with("python") || name.starts_with("pypy");
    Some(is_python.then(|| python_script(rest)).flatten().unwrap_or((name, rest)))
}

/// The script or module of an interpreter, and its arguments; `None` for code or stdin.
fn python_script(mut arguments: &[String]) -> Option<(&str, &[String])> {
    // Each round takes an argument.
    while let Some((word, rest)) = arguments.split_first() {
        arguments = rest;
        match word.strip_prefix('-') {
            // Meltano starts itself by a link that is called so, in a directory of its project.
            None if Path::new(word).ends_with("run/bin") => return Some(("meltano", rest)),
            None => return Some((base_name(word), rest)),
            Some("") => return None,
            Some("-check-hash-based-pycs") => arguments = rest.get(1..)?,
            Some(long) if long.starts_with('-') => {}
            // Several options may share a word; the last one has its value behind it, or next.
            Some(options) => match options.find(['c', 'm', 'W', 'X']) {
                None => {}
                Some(at) => match (&options[at..=at], &options[at + 1..]) {
                    ("c", _) => return None,
                    ("m", "") => {
                        return rest.split_first().map(|(module, rest)| (module.as_str(), rest));
                    }
                    ("m", module) => return Some((module, rest)),
                    (_, "") => arguments = rest.get(1..)?,
                    _ => {}
                },
            },
        }
    }
    None
}

/// The last component of a path.
pub fn base_name(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

/// An operating system's error as part of a sentence.
pub fn io_message(error: &std::io::Error) -> String {
    sentence(&error.to_string())
}

const MAX_TEXT: usize = 300;

/// Another program's words as part of a sentence: on one line, lower case where it is a word,
/// without its end, and without the number of an operating system's error.
pub fn sentence(text: &str) -> String {
    let text = text.split(" (os error").next().unwrap_or("").chars().take(MAX_TEXT);
    let text: String = text.map(|c| if is_safe(c) { c } else { ' ' }).collect();
    let text = text.trim().trim_end_matches('.');
    let mut letters = text.chars();
    let (first, rest) = (letters.next(), letters.as_str());
    match first {
        None => "unknown error".to_owned(),
        // An abbreviation stays one.
        Some(_) if rest.starts_with(char::is_uppercase) => text.to_owned(),
        Some(first) => first.to_lowercase().chain(rest.chars()).collect(),
    }
}
