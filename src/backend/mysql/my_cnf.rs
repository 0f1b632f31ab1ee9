//! `~/.my.cnf`, where people keep what they do not want to write down elsewhere.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::super::remote::Failure;
use crate::printable;

/// The groups that all clients read.
const GROUPS: [&str; 2] = ["client", "client-server"];

/// What an option file says: group, name, value. No `Debug`: it may hold a password.
#[derive(Default)]
pub struct OptionFile(Vec<(String, String, String)>);

impl OptionFile {
    /// Reads the file that is named, or the one in the home directory, which need not be there.
    pub fn read(named: Option<&str>, home: Option<&str>) -> Result<Self, Failure> {
        let path = match (named, home) {
            (Some(named), Some(home)) if named.starts_with("~/") => Path::new(home).join(&named[2..]),
            (Some(named), _) => PathBuf::from(named),
            (None, Some(home)) => Path::new(home).join(".my.cnf"),
            (None, None) => return Ok(Self::default()),
        };
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Self::parse(&text)),
            // Nobody has asked for it.
            Err(error) if named.is_none() && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                Ok(Self::default())
            }
            Err(error) => {
                let why = super::super::plain(&error).to_string();
                Err(Failure::permanent(format!("cannot read `{}`: {why}", printable::path(&path))))
            }
        }
    }

    fn parse(text: &str) -> Self {
        let mut group = String::new();
        let mut values = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';', '!'])) {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                group = name.0.trim().to_owned();
                continue;
            }
            let (name, value) = line.split_once('=').unwrap_or((line, "1"));
            values.push((group.clone(), name.trim().replace('-', "_"), unquoted(value.trim()).to_owned()));
        }
        Self(values)
    }

    /// The last value that one of these options has, in the usual groups or in `group`.
    pub fn value(&self, group: Option<&str>, names: &[&str]) -> Option<String> {
        let is_read = |name: &str| GROUPS.contains(&name) || Some(name) == group;
        let values = self.0.iter().rev().filter(|(group, name, _)| is_read(group) && names.contains(&name.as_str()));
        values.map(|(_, _, value)| value.clone()).find(|value| !value.is_empty())
    }
}

/// Quotes protect a `#`, which otherwise begins a comment.
fn unquoted(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some((inner, _)) = value.strip_prefix(quote).and_then(|rest| rest.rsplit_once(quote)) {
            return inner;
        }
    }
    value.split(" #").next().unwrap_or(value).trim_end()
}

#[cfg(test)]
mod tests {
    use super::OptionFile;

    #[test]
    fn the_clients_groups_are_read() {
        let file = OptionFile::parse(
            "user = nobody\n[mysqld]\nuser=mysql\n[client]\n# comment\nuser = me # that is I\npassword=\"p#w d\"\nssl-ca=/ca\n\
             ssl_verify_server_cert\n[mine]\nport=3307\n!includedir /etc\n",
        );
        assert_eq!(file.value(None, &["user"]).as_deref(), Some("me"));
        assert_eq!(file.value(None, &["password"]).as_deref(), Some("p#w d"));
        assert_eq!(file.value(None, &["ssl_ca"]).as_deref(), Some("/ca"));
        assert_eq!(file.value(None, &["port"]), None);
        assert_eq!(file.value(Some("mine"), &["port"]).as_deref(), Some("3307"));
    }

    #[test]
    fn only_a_file_that_was_named_must_be_there() {
        assert!(OptionFile::read(None, Some("/nonexistent")).is_ok());
        assert!(OptionFile::read(Some("/nonexistent/my.cnf"), None).is_err());
    }
}
