//! Texts for a database whose encoding cannot store every character, such as LATIN1.

/// A text in ASCII: other characters as `\u{…}`, and a backslash that could be taken for the
/// beginning of one as well.
pub fn escaped(text: &str) -> String {
    let text = text.replace("\\u{", "\\u{5c}u{");
    text.chars().map(|c| if c.is_ascii() { c.to_string() } else { c.escape_unicode().to_string() }).collect()
}

/// The text that was [`escaped`]. Any other text is itself, but for what looks like an escape.
pub fn unescaped(text: &str) -> String {
    let mut rest = text;
    let mut plain = String::with_capacity(text.len());
    // Ends with the last escape.
    while let Some((before, after)) = rest.split_once("\\u{") {
        let escape = after
            .split_once('}')
            .and_then(|(digits, behind)| Some((char::from_u32(u32::from_str_radix(digits, 16).ok()?)?, behind)));
        plain.push_str(before);
        match escape {
            Some((character, behind)) => {
                plain.push(character);
                rest = behind;
            }
            None => {
                plain.push_str("\\u{");
                rest = after;
            }
        }
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::{escaped, unescaped};

    #[test]
    fn what_is_escaped_is_ascii_and_comes_back() {
        for text in ["", "plain", "# Łódź", "\\u{41}", "\\u{5c}u{41}", "\\\\u{", "é\\u{zz}", "\u{10ffff}\\"] {
            assert!(escaped(text).is_ascii());
            assert_eq!(unescaped(&escaped(text)), text);
        }
    }
}
