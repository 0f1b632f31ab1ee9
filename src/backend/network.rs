//! What stores that are reached over a network have in common.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::failure::Failure;
use super::plain;
use crate::printable;

/// A larger password file holds something else.
const MAX_FILE: u64 = 1 << 20;

/// The longest text of a server that is repeated, in characters.
const MAX_TEXT: usize = 300;

/// A server's words as part of a sentence: on one line, lower case where it is a word, and without its end.
pub fn sentence(text: &str) -> String {
    let text: String = text.chars().map(|c| if printable::is_safe(c) { c } else { ' ' }).take(MAX_TEXT).collect();
    let text = text.trim().trim_end_matches('.');
    let mut letters = text.chars();
    let (Some(first), second) = (letters.next(), text.chars().nth(1)) else { return "unknown error".to_owned() };
    // An abbreviation stays one.
    if second.is_some_and(char::is_uppercase) {
        return text.to_owned();
    }
    first.to_lowercase().chain(letters).collect()
}

/// The password of a file: its first line, without its end.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "dynamodb"))]
pub fn first_line(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    let shown = printable::path(path);
    read.map_err(|error| Failure::permanent(format!("cannot read the password file `{shown}`: {}", plain(&error))))?;
    Ok(text.lines().next().unwrap_or("").to_owned())
}

#[cfg(test)]
mod tests {
    use super::sentence;

    #[test]
    fn what_the_server_says_becomes_part_of_a_sentence() {
        assert_eq!(sentence("Too many\nconnections."), "too many connections");
        assert_eq!(sentence("WSREP has not yet prepared node"), "WSREP has not yet prepared node");
        assert_eq!(sentence(""), "unknown error");
    }
}
