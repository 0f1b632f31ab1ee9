//! Files with a password, as `SERIALIZER_PASSWORD_FILE` names them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::backend::failure::Failure;
use crate::backend::plain;
use crate::printable;

/// Larger files hold something else.
pub const MAX_FILE: u64 = 1 << 20;

/// The first line of a file, without its end.
///
/// # Errors
/// When it cannot be read.
pub fn first_line(path: &Path) -> Result<String, Failure> {
    let shown = printable::path(path);
    let cannot =
        |error: std::io::Error| Failure::permanent(format!("cannot read the password file `{shown}`: {}", plain(&error)));
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text)).map_err(cannot)?;
    Ok(text.lines().next().unwrap_or("").to_owned())
}

#[cfg(test)]
mod tests {
    use super::first_line;

    #[test]
    fn only_the_first_line_counts_and_only_its_end_is_cut() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for (text, expected) in [("", ""), (" a b \r\nc\n", " a b "), ("a", "a")] {
            std::fs::write(file.path(), text).expect("written");
            assert_eq!(first_line(file.path()).map_err(|failure| failure.why), Ok(expected.to_owned()));
        }
        assert!(first_line(std::path::Path::new("/nonexistent")).is_err());
    }
}
