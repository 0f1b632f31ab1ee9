//! libpq's file of passwords.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::backend::network::passwords::MAX_FILE;
use crate::backend::plain;
use crate::printable;

/// libpq's `~/.pgpass`. Not `Debug`.
pub struct PassFile {
    text: String,
}

impl PassFile {
    /// Nothing if there is none, or none that others cannot read.
    pub fn read(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        let shown = printable::path(path);
        if !metadata.is_file() || metadata.len() > MAX_FILE {
            tracing::warn!("the password file `{shown}` is not used: it is no plain file");
            return None;
        }
        if metadata.permissions().mode() & 0o077 != 0 {
            tracing::warn!("the password file `{shown}` is not used: others can read it; `chmod 600 {shown}`");
            return None;
        }
        let text = fs::read_to_string(path).inspect_err(|error| {
            tracing::warn!("the password file `{shown}` is not used: {}", plain(error));
        });
        Some(Self { text: text.ok()? })
    }

    /// That of the first line that fits.
    pub fn password(&self, host: &str, port: u16, database: &str, user: &str) -> Option<String> {
        let port = port.to_string();
        self.text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
            let fields = fields(line);
            let [of_host, of_port, of_database, of_user, password] = fields.as_slice() else { return None };
            let fits = |(pattern, text): (&String, &str)| pattern == "*" || pattern == text;
            let pairs = [(of_host, host), (of_port, port.as_str()), (of_database, database), (of_user, user)];
            pairs.into_iter().all(fits).then(|| password.clone())
        })
    }
}

/// The fields between colons; a backslash takes the next character as it stands.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.trim_end_matches('\r').chars();
    while let Some(character) = characters.next() {
        let is_last = fields.len() == 5;
        match character {
            ':' if !is_last => fields.push(String::new()),
            '\\' => fields.last_mut().into_iter().for_each(|field| field.extend(characters.next())),
            _ => fields.last_mut().into_iter().for_each(|field| field.push(character)),
        }
    }
    fields
}
