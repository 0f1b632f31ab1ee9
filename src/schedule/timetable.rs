//! When a task is due. Pure: no clock is read.

use std::time::Duration;

use jiff::tz::TimeZone;

/// When a task is due. A slot is a time in milliseconds since 1970, in UTC.
#[derive(Clone, Debug)]
pub enum Timetable {
    /// A cron expression in a time zone.
    Cron(Box<croner::Cron>, TimeZone),
    /// At multiples of this time since 1970.
    Every(Duration),
}

impl Timetable {
    /// Reads a cron expression of five fields, or an alias such as `@daily`.
    ///
    /// # Errors
    /// What is wrong with it, as part of a sentence.
    pub fn cron(_text: &str, _zone: TimeZone) -> Result<Self, String> {
        Err("not yet".to_owned())
    }

    /// The first slot after `time`; `None` if there is none within five years.
    pub fn after(&self, _time: u64) -> Option<u64> {
        None
    }

    /// The last slot that is not after `time`, and not before `since`.
    pub fn last(&self, _since: u64, _time: u64) -> Option<u64> {
        None
    }
}
