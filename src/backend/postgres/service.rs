//! libpq's files of services: options under a name.

use std::path::PathBuf;

use super::address::Pairs;
use super::options::Surroundings;
use crate::backend::remote::Failure;

/// Where administrators keep it on Debian, unless `PGSYSCONFDIR` says otherwise.
const SYSTEM_DIRECTORY: &str = "/etc/postgresql-common";

/// Adds the options of the service `name` that are not set yet.
///
/// # Errors
/// When there is no such service.
pub fn read(name: &str, around: &Surroundings, pairs: &mut Pairs) -> Result<(), Failure> {
    let own = (around.variable)("PGSERVICEFILE").map(PathBuf::from);
    let own = own.or_else(|| Some(around.home.as_ref()?.join(".pg_service.conf")));
    let system = (around.variable)("PGSYSCONFDIR").unwrap_or_else(|| SYSTEM_DIRECTORY.to_owned());
    let files = own.into_iter().chain([PathBuf::from(system).join("pg_service.conf")]);
    for text in files.filter_map(|path| std::fs::read_to_string(path).ok()) {
        if let Some(options) = section(&text, name) {
            for (name, value) in options {
                if !pairs.has(name) {
                    pairs.set(name, value.to_owned());
                }
            }
            return Ok(());
        }
    }
    Err(Failure::permanent("the service that is named is in no service file")
        .with_hint("services are in `~/.pg_service.conf`, or the file that `PGSERVICEFILE` names"))
}

/// What stands between `[name]` and the next such line.
fn section<'a>(text: &'a str, name: &str) -> Option<Vec<(&'a str, &'a str)>> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let is_heading = |line: &str| line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) == Some(name);
    lines.find(|line| is_heading(line))?;
    let lines = lines.take_while(|line| !line.starts_with('['));
    Some(lines.filter_map(|line| line.split_once('=')).map(|(name, value)| (name.trim(), value.trim())).collect())
}
