//! Foreign text (file contents, command lines, paths), made safe to print: one line, bounded, without control
//! characters and, for command lines, without secrets.

use std::path::Path;

/// The longest value of a record's field, in characters of at most four bytes; all fields together fit into a record.
const MAX_FIELD: usize = 120;

/// Stands for what is not shown.
const HIDDEN: &str = "***";

/// The value of a record's field: trimmed, on one line and bounded.
pub fn field(text: &str) -> String {
    text.trim().chars().map(|c| if is_safe(c) { c } else { ' ' }).take(MAX_FIELD).collect()
}

/// A path for a message. Control characters are shown as `?`.
pub fn path(path: &Path) -> String {
    path.to_string_lossy().chars().map(|c| if is_safe(c) { c } else { '?' }).collect()
}

/// Neither a control character nor one that reorders the text around it.
pub fn is_safe(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// A process's arguments as one line for people: the interpreter and the program's directory are left out, and so are
/// passwords in options, assignments and URLs. Where a password may end is not known, so that rather too much is hidden.
pub fn command_line(arguments: &[String]) -> String {
    let Some((program, rest)) = program(arguments) else { return String::new() };
    let mut shown = vec![program.to_owned()];
    let mut is_secret = false;
    let mut before = "";
    for argument in rest {
        if std::mem::take(&mut is_secret) {
            shown.push(HIDDEN.to_owned());
            continue;
        }
        let (argument, is_cut) = up_to_a_secret(argument);
        // An argument may be a script.
        let mut words = argument.split_whitespace().peekable();
        while let Some(word) = words.next() {
            shown.push(match word.split_once(':') {
                _ if word.starts_with("-p") && word.len() > 2 => format!("-p{HIDDEN}"),
                Some((user, _)) if ["-u", "-U", "--user", "--proxy-user"].contains(&before) => format!("{user}:{HIDDEN}"),
                _ => without_login(word),
            });
            before = word;
            // Our own option shows what is not a secret.
            let takes_secret = word.starts_with('-') && names_a_secret(word) && word != "--print-token";
            if word == "-p" || takes_secret && !word.contains('=') {
                is_secret = words.peek().is_none();
                shown.extend(words.peek().map(|_| HIDDEN.to_owned()));
                break;
            }
        }
        if is_cut && let Some(last) = shown.last_mut() {
            last.push_str(HIDDEN);
        }
    }
    let line = shown.join(" ");
    let is_whole = line.chars().count() <= MAX_FIELD;
    let line = field(&line);
    if is_whole { line } else { line.chars().take(MAX_FIELD - 1).chain(['…']).collect() }
}

/// The name of the program that a process runs, and the program's arguments. A Python script or module is known by its own
/// name: the interpreter and its options are left out.
pub fn program(arguments: &[String]) -> Option<(&str, &[String])> {
    let (first, rest) = arguments.split_first()?;
    let name = base_name(first);
    let is_python = name.starts_with("python") || name.starts_with("pypy");
    Some(is_python.then(|| python_script(rest)).flatten().unwrap_or((name, rest)))
}

/// What an interpreter with these arguments runs, and the arguments of that; `None` for a script on its command line or its
/// stdin.
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
            // Several options may share one word, the last of which has its value behind it, or in the next word.
            Some(options) => match options.find(['c', 'm', 'W', 'X']) {
                None => {}
                Some(at) => match (&options[at..=at], &options[at + 1..]) {
                    ("c", _) => return None,
                    ("m", "") => return rest.split_first().map(|(module, rest)| (module.as_str(), rest)),
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

fn names_a_secret(word: &str) -> bool {
    let word = word.to_ascii_lowercase();
    let parts = ["pass", "pwd", "secret", "token", "key", "signature", "credential", "auth", "bearer"];
    // `sig` is that of Azure's shared access signatures.
    word == "sig" || parts.iter().any(|name| word.contains(name))
}

/// An argument up to a secret in it, and whether there is one: `--password=x`, `Authorization: Bearer x`,
/// `{"password": "x"}`, `postgres://host?password=x`, in a script as well.
fn up_to_a_secret(argument: &str) -> (&str, bool) {
    let is_end_of_name = |at: usize| {
        let before = argument[..at].trim_end_matches(['"', '\'']);
        let name = before.rsplit(|c: char| c.is_whitespace() || "?&;,{(\"':=".contains(c)).next();
        name.is_some_and(names_a_secret) && !argument[at..].starts_with("://")
    };
    let found = argument.match_indices(['=', ':']).find(|(at, _)| is_end_of_name(*at));
    found.map_or((argument, false), |(at, _)| (&argument[..=at], true))
}

/// A word without the password in a URL, which may hold `/`, `:` and `@` although it should not: it ends at the last `@`.
fn without_login(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else { return word.to_owned() };
    let Some((user, host)) = rest.rsplit_once('@') else { return word.to_owned() };
    match user.split_once(':') {
        Some((name, _)) => format!("{scheme}://{name}:{HIDDEN}@{host}"),
        // Tokens for git and package indexes stand where the user does.
        None if scheme.ends_with("http") || scheme.ends_with("https") => format!("{scheme}://{HIDDEN}@{host}"),
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{command_line, field};

    fn shown(line: &str) -> String {
        // A script is one argument.
        let (line, script) = line.split_once(" | ").map_or((line, None), |(line, script)| (line, Some(script)));
        command_line(&line.split(' ').chain(script).map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_console_script_is_shown_by_its_name() {
        assert_eq!(shown("/venv/bin/python3 /venv/bin/meltano run tap-x"), "meltano run tap-x");
        assert_eq!(shown("/venv/bin/python /p/.meltano/run/bin run tap-x"), "meltano run tap-x");
        for options in ["-X dev", "-Xdev", "-uW ignore", "-sE --check-hash-based-pycs never", "-I -m", "-Im", "-mmeltano"] {
            let script = if options == "-mmeltano" { "" } else { "meltano " };
            assert_eq!(shown(&format!("python3.11 {options} {script}run tap-x")), "meltano run tap-x");
        }
        for line in ["python3", "python3 -c pass", "python3 -Ic pass", "python3 - x", "python3 -X", "python3 -m"] {
            assert_eq!(shown(&format!("/usr/bin/{line}")), line);
        }
        assert_eq!(shown("bash ./nightly.sh"), "bash ./nightly.sh");
        assert_eq!(command_line(&[]), "");
    }

    #[test]
    fn secrets_on_a_command_line_are_not_shown() {
        for (line, expected) in [
            ("psql postgres://me:hunter2@db/x?a=b", "psql postgres://me:***@db/x?a=b"),
            ("psql postgres://me:hunter2/x@db/x", "psql postgres://me:***@db/x"),
            ("psql postgres://me:hunter2@db/x?password=hunter2", "psql postgres://me:***@db/x?password=***"),
            ("psql postgres://db/x?user=me&password=hunter2&y=1", "psql postgres://db/x?user=me&password=***"),
            ("x https://a.blob/x?sv=1&sig=hunter2", "x https://a.blob/x?sv=1&sig=***"),
            ("psql postgres://me@db/x", "psql postgres://me@db/x"),
            ("git clone https://hunter2@host/x", "git clone https://***@host/x"),
            ("x --password hunter2 --y", "x --password *** --y"),
            ("x --api-key=hunter2 y", "x --api-key=*** y"),
            ("x --password | hunter2 hunter2", "x --password ***"),
            ("sh -c | PGPASSWORD=hunter2 psql", "sh -c PGPASSWORD=***"),
            ("sh -c | cd x; PGPASSWORD=hunter2 psql", "sh -c cd x; PGPASSWORD=***"),
            ("sh -c | cd x; password='a hunter2' y", "sh -c cd x; password=***"),
            ("sh -c | cd x; y --password 'a hunter2'", "sh -c cd x; y --password ***"),
            ("sh -c | cd x; mysqldump -phunter2 db", "sh -c cd x; mysqldump -p*** db"),
            ("curl -H | Authorization: Bearer hunter2", "curl -H Authorization:***"),
            ("curl -d | {\"password\": \"hunter2\"}", "curl -d {\"password\":***"),
            ("curl -u me:hunter2 x", "curl -u me:*** x"),
            ("curl --user me x:y", "curl --user me x:y"),
            ("mysql -u me -phunter2 -p", "mysql -u me -p*** -p"),
            ("sshpass -p hunter2 ssh x", "sshpass -p *** ssh x"),
            ("meltano run tap-auth0 target-x", "meltano run tap-auth0 target-x"),
            ("serializer lock --print-token -n", "serializer lock --print-token -n"),
        ] {
            assert_eq!(shown(line), expected);
        }
    }

    #[test]
    fn nothing_that_moves_the_cursor_is_printed() {
        assert_eq!(field("a\x1b[2Jb\r\nc\u{202e}d"), "a [2Jb  c d");
        assert_eq!(field(&"x".repeat(9999)).len(), super::MAX_FIELD);
    }
}
