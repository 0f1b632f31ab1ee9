//! Calendar periods, in the zone of `TZ`.

use jiff::tz::TimeZone;
use jiff::{RoundMode, Timestamp, Unit, ZonedRound};
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
        let now = Timestamp::from_millisecond(i64::try_from(now).ok()?).ok()?;
        let now = now.to_zoned(zone.clone());
        let hour = ZonedRound::new().smallest(Unit::Hour).mode(RoundMode::Trunc);
        let monday = now.date().iso_week_date().first_of_week().ok()?.date();
        let begin = match self {
            // By the offset that is in force: some clocks go back by half an hour.
            Self::Hour => now.with_time_zone(now.offset().to_time_zone()).round(hour),
            Self::Day => now.start_of_day(),
            Self::Week => monday.to_zoned(zone).and_then(|day| day.start_of_day()),
            Self::Month => now.first_of_month().and_then(|day| day.start_of_day()),
        };
        u64::try_from(begin.ok()?.timestamp().as_millisecond()).ok()
    }
}
