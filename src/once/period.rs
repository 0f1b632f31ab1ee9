//! Calendar periods, in the zone of `TZ`.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};

/// A calendar period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Period {
    Hour,
    Day,
    Week,
    Month,
}

impl Period {
    /// The begin and the end of the period around `now`, in milliseconds, in the zone of `TZ`; `None` at the end of time.
    pub fn around(self, now: u64) -> Option<(u64, u64)> {
        self.around_in(now, crate::local_time::zone())
    }

    fn around_in(self, now: u64, zone: TimeZone) -> Option<(u64, u64)> {
        let now = Timestamp::from_millisecond(i64::try_from(now).ok()?).ok()?.to_zoned(zone.clone());
        let begin_of = |date: jiff::civil::Date| date.to_zoned(zone.clone()).and_then(|day| day.start_of_day()).ok();
        let date = now.date();
        let (begin, end) = match self {
            Self::Hour => {
                // In the second hour of the two that have the same name, the offset stays.
                let begin = now.with().minute(0).second(0).subsec_nanosecond(0).build().ok()?;
                (begin.clone(), begin.checked_add(1.hour()).ok()?)
            }
            Self::Day => (begin_of(date)?, begin_of(date.tomorrow().ok()?)?),
            Self::Week => {
                let monday = date.checked_sub(i64::from(date.weekday().to_monday_zero_offset()).days()).ok()?;
                (begin_of(monday)?, begin_of(monday.checked_add(1.week()).ok()?)?)
            }
            Self::Month => (begin_of(date.first_of_month())?, begin_of(date.last_of_month().tomorrow().ok()?)?),
        };
        let milliseconds = |time: Zoned| u64::try_from(time.timestamp().as_millisecond()).ok();
        Some((milliseconds(begin)?, milliseconds(end)?))
    }
}
