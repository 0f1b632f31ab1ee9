//! The five fields of a cron expression, on wall clocks: zones are left to the timetable.
//!
//! The fields are those of Vixie's cron (Debian's crontab(5)). Ranges may wrap around (`22-2`,
//! `fri-mon`), names may stand in ranges and lists, and `n/step` goes from n to the end of the
//! field. Days follow Vixie's rule of the star: if neither field of days begins with `*`, a day
//! matches by either of them, otherwise by both.

use jiff::Timestamp;
use jiff::tz::Offset;

use crate::sys::text;

/// The seconds of a day.
pub(super) const DAY: i64 = 24 * 60 * 60;

/// A cron expression.
#[derive(Clone, Debug)]
pub struct Cron {
    /// The times of a day, in seconds, in order.
    times: Vec<i64>,
    /// Whether neither the minute nor the hour begins with `*`.
    pub(super) is_fixed: bool,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether neither field of days begins with `*`.
    is_either_day: bool,
}

impl Cron {
    /// Reads five fields or an alias.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let text = if text.starts_with('@') { alias(text)? } else { text };
        let fields: Vec<_> = text.split_whitespace().collect();
        let count = fields.len();
        let fields = <[&str; 5]>::try_from(fields).map_err(|_| {
            format!(
                "five fields are required (minute, hour, day of month, month, day of week; seconds \
                 and years are unsupported), not {count}"
            )
        })?;
        let mut sets = [0; 5];
        for ((set, text), field) in sets.iter_mut().zip(fields).zip(&FIELDS) {
            *set = field.read(text)?;
        }
        let [minutes, hours, days, months, weekdays] = sets;
        let times = (0..24 * 60).filter(|time| has(hours, time / 60) && has(minutes, time % 60));
        let times = times.map(|time| time * 60).collect();
        let [is_fixed, is_either_day] =
            [[0, 1], [2, 4]].map(|two| two.iter().all(|at| !fields[*at].starts_with('*')));
        let cron = Self { times, is_fixed, days, months, weekdays, is_either_day };
        // Within 28 years, each date falls on each day of the week.
        let happens = (0..28 * 366).any(|day| cron.is_on(day));
        happens.then_some(cron).ok_or_else(|| "it never happens: no such day exists".to_owned())
    }

    /// Whether a day matches, counted from 1970.
    fn is_on(&self, day: i64) -> bool {
        let Ok(midnight) = Timestamp::from_second(day * DAY) else { return false };
        let date = Offset::UTC.to_datetime(midnight).date();
        let by_day = has(self.days, date.day().into());
        let by_weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset().into());
        let is_day = if self.is_either_day { by_day || by_weekday } else { by_day && by_weekday };
        is_day && has(self.months, date.month().into())
    }

    /// The matching times of a wall clock from `begin` on and before `end`. Both are in seconds
    /// since 1970 on that clock.
    pub(super) fn times(&self, begin: i64, end: i64) -> impl DoubleEndedIterator<Item = i64> {
        let days = begin.div_euclid(DAY)..=(end - 1).div_euclid(DAY);
        days.filter(|day| self.is_on(*day)).flat_map(move |day| {
            let before = |end: i64| self.times.partition_point(|time| day * DAY + time < end);
            let of_day = &self.times[before(begin)..before(end).max(before(begin))];
            of_day.iter().map(move |time| day * DAY + time)
        })
    }
}

fn alias(text: &str) -> Result<&'static str, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "@hourly" => "0 * * * *",
        "@daily" | "@midnight" => "0 0 * * *",
        "@weekly" => "0 0 * * 0",
        "@monthly" => "0 0 1 * *",
        "@yearly" | "@annually" => "0 0 1 1 *",
        _ => {
            return Err(format!(
                "`{}` is not a time; the aliases are @hourly, @daily, @midnight, @weekly, \
                 @monthly, @yearly and @annually",
                text::field(text)
            ));
        }
    })
}

fn has(set: u64, member: i64) -> bool {
    set >> member & 1 == 1
}

struct Field {
    /// A value, for people.
    value: &'static str,
    lowest: usize,
    highest: usize,
    /// All values from the lowest one on, if they have names.
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field { value: "a minute (0-59)", lowest: 0, highest: 59, names: &[] },
    Field { value: "an hour (0-23)", lowest: 0, highest: 23, names: &[] },
    Field { value: "a day of the month (1-31)", lowest: 1, highest: 31, names: &[] },
    Field { value: "a month (1-12 or jan-dec)", lowest: 1, highest: 12, names: &MONTHS },
    // Day 7 of the week is day 0.
    Field { value: "a day of the week (0-7 or sun-sat)", lowest: 0, highest: 7, names: &DAYS },
];

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Field {
    fn read(&self, list: &str) -> Result<u64, String> {
        if list.split([',', '-', '/']).any(str::is_empty) {
            return Err(format!("`{}` lacks a value", text::field(list)));
        }
        list.split(',').try_fold(0, |set, part| Ok(set | self.read_part(part)?))
    }

    fn read_part(&self, part: &str) -> Result<u64, String> {
        let (range, step) =
            part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (self.lowest, self.highest),
            Some((first, last)) => (self.read_value(first)?, self.read_value(last)?),
            None if step.is_some() => (self.read_value(range)?, self.highest),
            None => (self.read_value(range)?, self.read_value(range)?),
        };
        let Some(step) = step.map_or(Some(1), number).filter(|step| *step > 0) else {
            let part = text::field(part);
            return Err(format!("the step of `{part}` is not a number above 0"));
        };
        let count =
            if self.names.is_empty() { self.highest - self.lowest + 1 } else { self.names.len() };
        let last = if last < first { last + count } else { last };
        let bit = |value| 1_u64 << ((value - self.lowest) % count + self.lowest);
        Ok((first..=last).step_by(step).fold(0, |set, value| set | bit(value)))
    }

    fn read_value(&self, text: &str) -> Result<usize, String> {
        let position = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let value = position.map(|position| position + self.lowest).or_else(|| number(text));
        let value = value.filter(|value| (self.lowest..=self.highest).contains(value));
        value.ok_or_else(|| format!("`{}` is not {}", text::field(text), self.value))
    }
}

/// A number of digits alone.
fn number(text: &str) -> Option<usize> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}
