//! What others wrote (file contents, command lines, paths), made safe to print: one line, bounded, without control
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
/// passwords in options, assignments and URLs.
pub fn command_line(arguments: &[String]) -> String {
    let Some((program, rest)) = program(arguments) else { return String::new() };
    let mut shown = vec![program.to_owned()];
    let mut hide_next = false;
    let mut is_user_next = false;
    let mut takes_passwords = PASSWORD_TAKERS.contains(&program);
    for argument in rest {
        // What follows an option is hidden whole; a script in an argument is looked at word by word.
        if std::mem::take(&mut hide_next) {
            shown.push(HIDDEN.to_owned());
            continue;
        }
        // A value may hold spaces, so it is hidden up to the argument's end.
        if let Some((name, _)) = argument.split_once('=')
            && !name.contains(char::is_whitespace)
            && names_a_secret(name)
            && !name.contains("://")
        {
            shown.push(format!("{name}={HIDDEN}"));
            continue;
        }
        for word in argument.split_whitespace() {
            if has_a_secret_behind_it(word) {
                shown.push(HIDDEN.to_owned());
                break;
            }
            takes_passwords |= PASSWORD_TAKERS.contains(&base_name(word));
            shown.push(match word.split_once(':') {
                _ if hide_next => HIDDEN.to_owned(),
                _ if takes_passwords && word.starts_with("-p") && word.len() > 2 => format!("-p{HIDDEN}"),
                Some((user, _)) if is_user_next => format!("{user}:{HIDDEN}"),
                _ => without_secret(word),
            });
            hide_next = word.starts_with('-') && !word.contains('=') && names_a_secret(word);
            hide_next |= word == "-p" && shown.iter().any(|word| word == "sshpass");
            is_user_next = ["-u", "-U", "--user", "--proxy-user"].contains(&word);
        }
    }
    let line = shown.join(" ");
    if line.chars().count() <= MAX_FIELD {
        field(&line)
    } else {
        field(&line).chars().take(MAX_FIELD - 1).chain(['…']).collect()
    }
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

/// Programs whose option `-p` has a password behind it, without a space.
const PASSWORD_TAKERS: [&str; 6] = ["mysql", "mysqldump", "mysqladmin", "mariadb", "mariadb-dump", "sshpass"];

fn names_a_secret(word: &str) -> bool {
    // Our own, of what is no secret.
    if word.trim_end_matches(';') == "--print-token" {
        return false;
    }
    let word = word.to_ascii_lowercase().replace(['-', '_'], "");
    let parts = [
        "pass",
        "pwd",
        "secret",
        "token",
        "apikey",
        "accesskey",
        "accountkey",
        "privatekey",
        "signature",
        "credential",
        "auth",
        "bearer",
    ];
    // Of Azure's shared access signatures, by which a URL may begin.
    word == "sig" || word.ends_with("?sig") || parts.iter().any(|name| word.contains(name))
}

/// `Authorization: Bearer x`, `{"password": "x"}`, `password='x y'`: where the value ends is not known.
fn has_a_secret_behind_it(word: &str) -> bool {
    let name = word.split_once("='").or(word.split_once("=\"")).map(|(name, _)| name);
    let name = name.or_else(|| word.split_once(':').filter(|(_, rest)| !rest.starts_with("//")).map(|(name, _)| name));
    name.is_some_and(names_a_secret)
}

fn without_secret(word: &str) -> String {
    // Each setting of a URL's query, or of a list, for itself.
    let pieces = word.split_inclusive(['?', '&', ';', ',']).map(|piece| match piece.split_once('=') {
        Some((name, value)) if names_a_secret(name) => {
            let separator = value.strip_suffix(['?', '&', ';', ',']).map_or("", |value_only| &value[value_only.len()..]);
            format!("{name}={HIDDEN}{separator}")
        }
        _ => piece.to_owned(),
    });
    let word: String = pieces.collect();
    // A password may hold `/`, `:` and `@` although it should not: it ends at the last `@`.
    if let Some((scheme, rest)) = word.split_once("://")
        && let Some((user, host)) = rest.rsplit_once('@')
    {
        return match user.split_once(':') {
            Some((name, _)) => format!("{scheme}://{name}:{HIDDEN}@{host}"),
            // Tokens for git and package indexes stand where the user does.
            None if scheme.ends_with("http") || scheme.ends_with("https") => format!("{scheme}://{HIDDEN}@{host}"),
            None => word,
        };
    }
    word
}

#[cfg(test)]
mod tests {
    use super::{command_line, field};

    fn shown(line: &str) -> String {
        command_line(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
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
        assert_eq!(shown("psql postgres://me:hunter2@db/x?a=b"), "psql postgres://me:***@db/x?a=b");
        assert_eq!(shown("x --password hunter2 --y"), "x --password *** --y");
        assert_eq!(shown("x --api-key=hunter2"), "x --api-key=***");
        assert_eq!(command_line(&["sh".into(), "-c".into(), "PGPASSWORD=hunter2 psql".into()]), "sh -c PGPASSWORD=***");
        assert_eq!(
            command_line(&["sh".into(), "-c".into(), "cd x; PGPASSWORD=hunter2 psql".into()]),
            "sh -c cd x; PGPASSWORD=*** psql"
        );
        let header = ["curl", "-H", "Authorization: Bearer hunter2", "x"].map(str::to_owned);
        assert_eq!(command_line(&header), "curl -H *** x");
        let script = ["sh", "-c", "cd x; password='a hunter2' y"].map(str::to_owned);
        assert_eq!(command_line(&script), "sh -c cd x; ***");
        assert_eq!(shown("curl -u me:hunter2 x"), "curl -u me:*** x");
        assert_eq!(shown("curl --user me x:y"), "curl --user me x:y");
        assert_eq!(shown("mysql -u me -phunter2 -p"), "mysql -u me -p*** -p");
        assert_eq!(
            command_line(&["sh".into(), "-c".into(), "cd x; mysqldump -phunter2 db".into()]),
            "sh -c cd x; mysqldump -p*** db"
        );
        assert_eq!(shown("sshpass -p hunter2 ssh -p 22 x"), "sshpass -p *** ssh -p *** x");
        assert_eq!(shown("mkdir -pv x"), "mkdir -pv x");
        assert_eq!(shown("meltano run tap-auth0 target-x"), "meltano run tap-auth0 target-x");
        assert_eq!(shown("git clone https://hunter2@host/x"), "git clone https://***@host/x");
        assert_eq!(shown("psql postgres://me@db/x"), "psql postgres://me@db/x");
        assert_eq!(shown("psql postgres://me:hunter2/x@db/x"), "psql postgres://me:***@db/x");
        assert_eq!(shown("psql postgres://db/x?user=me&password=hunter2&y=1"), "psql postgres://db/x?user=me&password=***&y=1");
        assert_eq!(command_line(&["x".into(), "--password".into(), "hunter2 hunter2".into(), "y".into()]), "x --password *** y");
    }

    #[test]
    fn nothing_that_moves_the_cursor_is_printed() {
        assert_eq!(field("a\x1b[2Jb\r\nc\u{202e}d"), "a [2Jb  c d");
        assert_eq!(field(&"x".repeat(9999)).len(), super::MAX_FIELD);
    }
}
