//! The text of an address, as libpq and SQLAlchemy write it.

use std::collections::BTreeMap;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::backend::remote::Failure;

/// Options by their names. Not `Debug`: one of them is a password.
#[derive(Default)]
pub struct Pairs(BTreeMap<String, String>);

impl Pairs {
    /// Whether it is set.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Sets it; nothing says nothing.
    pub fn set(&mut self, name: &str, value: String) {
        if !value.is_empty() {
            self.0.insert(name.to_owned(), value);
        }
    }

    /// Its value, which is asked for once.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// The names of those that nobody has asked for.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Its value, if it is a number. What is negative asks for the default.
    ///
    /// # Errors
    /// When it is something else.
    pub fn number(&mut self, name: &str) -> Result<Option<u64>, Failure> {
        let number = self.take(name).map(|value| value.trim().parse::<i64>()).transpose();
        let number = number.map_err(|_| Failure::permanent(format!("`{name}` is not a number")))?;
        Ok(number.and_then(|number| u64::try_from(number).ok()))
    }

    /// Its value in seconds.
    ///
    /// # Errors
    /// When it is no number.
    pub fn seconds(&mut self, name: &str) -> Result<Option<Duration>, Failure> {
        Ok(self.number(name)?.map(Duration::from_secs))
    }

    /// Its value in milliseconds; 0 asks for the default.
    ///
    /// # Errors
    /// When it is no number.
    pub fn milliseconds(&mut self, name: &str) -> Result<Option<Duration>, Failure> {
        Ok(self.number(name)?.filter(|number| *number > 0).map(Duration::from_millis))
    }
}

/// Takes an address apart: `scheme://user:password@host:port,host:port/database?option=value`. All parts may be missing.
///
/// # Errors
/// When it cannot be understood.
pub fn parse(address: &str) -> Result<Pairs, Failure> {
    let mut pairs = Pairs::default();
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    // A password may hold `/`, `?` and `@` although it should not: it ends at the last `@` that stands before an option.
    let options = options_at(rest);
    let at = rest[..options].rfind('@');
    let (login, rest) = at.map_or((None, rest), |at| (Some(&rest[..at]), &rest[at + 1..]));
    if let Some(login) = login {
        let (user, password) = login.split_once(':').map_or((login, None), |(user, password)| (user, Some(password)));
        pairs.set("user", decoded(user)?);
        pairs.set("password", decoded(password.unwrap_or(""))?);
    }
    let (place, options) = rest.split_once('?').unwrap_or((rest, ""));
    let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
    // Apart, because an option may replace the one and leave the other.
    let places: Vec<_> = hosts.split(',').map(host_and_port).collect();
    if places.iter().any(|(_, port)| port.is_some()) {
        pairs.set("port", places.iter().map(|(_, port)| port.unwrap_or("")).collect::<Vec<_>>().join(","));
    }
    let hosts = places.iter().map(|(host, _)| decoded(host)).collect::<Result<Vec<_>, _>>()?;
    pairs.set("host", hosts.join(","));
    pairs.set("dbname", decoded(database)?);
    let mut hosts: Vec<String> = Vec::new();
    for (name, value) in options.split('&').filter_map(|option| option.split_once('=')) {
        let (name, value) = (decoded(name)?, decoded(value)?);
        match name.as_str() {
            // SQLAlchemy names several servers so.
            "host" => hosts.push(value),
            "database" => pairs.set("dbname", value),
            _ => pairs.set(&name, value),
        }
    }
    pairs.set("host", hosts.join(","));
    Ok(pairs)
}

/// Where the options begin: at the first `?` that is followed by something like `name=`.
fn options_at(text: &str) -> usize {
    let is_option = |(at, _): &(usize, &str)| {
        text[at + 1..].split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
    };
    text.match_indices('?').find(is_option).map_or(text.len(), |(at, _)| at)
}

/// What is no `%` and two digits stays as it is.
fn decoded(text: &str) -> Result<String, Failure> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| Failure::permanent("the address is not UTF-8 once its `%` are decoded"))?;
    if decoded.contains('\0') {
        return Err(Failure::permanent("the address contains a null character"));
    }
    Ok(decoded.into_owned())
}

/// A host, and the port if it has one: `name`, `name:1`, `::1`, `[::1]:1`, `/directory`, `/directory:1`.
pub fn host_and_port(text: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        return (host, rest.strip_prefix(':'));
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, Some(port)),
        _ => (text, None),
    }
}
