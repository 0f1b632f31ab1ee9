//! Calendar periods, in the zone of `TZ`.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};

/// A calendar period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Period {
    Hour,
    Day,
    Week,
    Month,
}

impl Period {
    /// When the period around `now` began, both in milliseconds since 1970; `None` at the end of
    /// time.
    pub fn begin(self, now: u64) -> Option<u64> {
        self.begin_in(now, crate::sys::local_time::zone())
    }

    /// The same in another zone.
    pub fn begin_in(self, now: u64, zone: TimeZone) -> Option<u64> {
        let now =
            Timestamp::from_millisecond(i64::try_from(now).ok()?).ok()?.to_zoned(zone.clone());
        let date = match self {
            // By the offset that is in force: some clocks go back by half an hour.
            Self::Hour => {
                let past = i64::from(now.minute()) * 60 + i64::from(now.second());
                let begin = u64::try_from(now.timestamp().as_second().checked_sub(past)?).ok()?;
                return Some(begin * 1000);
            }
            Self::Day => now.date(),
            Self::Week => now
                .date()
                .checked_sub(i64::from(now.weekday().to_monday_zero_offset()).days())
                .ok()?,
            Self::Month => now.date().first_of_month(),
        };
        let begin = date.to_zoned(zone).and_then(|day| day.start_of_day()).ok()?;
        u64::try_from(begin.timestamp().as_millisecond()).ok()
    }
}
