//! An address as the options that libpq has for its parts.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::backend::network::address::Address;
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

/// The options that an address stands for.
///
/// # Errors
/// When it cannot be understood.
pub fn parse(address: &str) -> Result<Pairs, Failure> {
    let address = Address::parse(address)?;
    let mut pairs = Pairs::default();
    pairs.set("user", address.user.unwrap_or_default());
    pairs.set("password", address.password.unwrap_or_default());
    // Apart, because an option may replace the one and leave the other.
    let (places, ports): (Vec<_>, Vec<_>) = address.places.into_iter().unzip();
    if ports.iter().any(Option::is_some) {
        pairs.set("port", ports.into_iter().map(Option::unwrap_or_default).collect::<Vec<_>>().join(","));
    }
    pairs.set("host", places.join(","));
    pairs.set("dbname", address.database.unwrap_or_default());
    let mut hosts: Vec<String> = Vec::new();
    for (name, value) in address.options {
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
