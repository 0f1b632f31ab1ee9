//! When a task is due. Pure: no clock is read.
//!
//! Where clocks are set, cron expressions follow cron(8) and Vixie's cron.c:
//! * If neither the minute nor the hour begins with `*`, the times are fixed. All fixed times in
//!   a gap are due once, at its end. A fixed time that clocks show twice is due the first time.
//! * Otherwise, each minute that clocks show is due if it matches: none in a gap, and twice if
//!   clocks show it twice.
//! * A gap of three hours or more, or clocks set back by more, is a correction: the new time
//!   counts for all expressions.
//!
//! The time between two changes of a zone is a stretch with one offset. The slots of a stretch
//! are the matching times of a wall clock, and at its begin perhaps one more, for a gap.

use std::iter;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::{TimeZone, TimeZoneTransition};

use super::cron::{Cron, DAY};
use crate::sys::clock::millis;
use crate::sys::local_time::{ZONES, find_zone};
use crate::sys::text;

/// How far ahead to search for a slot, in milliseconds.
const HORIZON: u64 = 5 * 366 * DAY as u64 * 1000;

/// Changes of clocks by less than this, in seconds, do not affect fixed times.
const CORRECTION: i64 = 3 * 60 * 60;

/// The last second to consider; jiff's times end in the year 9999.
const END: u64 = 253_370_764_800;

/// When a task is due. A slot is a time in milliseconds since 1970, in UTC.
#[derive(Clone, Debug)]
pub enum Timetable {
    /// A cron expression in a time zone.
    Cron(Box<Cron>, TimeZone),
    /// At multiples of this time since 1970.
    Every(Duration),
}

impl Timetable {
    /// Parses a cron expression of five fields, or an alias such as `@daily`. The error is part of
    /// a sentence.
    pub fn cron(text: &str, zone: TimeZone) -> Result<Self, String> {
        Ok(Self::Cron(Box::new(Cron::parse(text)?), zone))
    }

    /// The first slot after `time`; `None` if there is none within five years.
    pub fn after(&self, time: u64) -> Option<u64> {
        self.slots(time.saturating_add(1), time.saturating_add(HORIZON)).next()
    }

    /// The last slot that is not after `time`, and not before `since`.
    pub fn last(&self, since: u64, time: u64) -> Option<u64> {
        self.slots(since, time.saturating_add(1)).next_back()
    }

    /// The last slots that are after `after` and not after `until`, at most `limit`, in order.
    pub fn between(&self, after: u64, until: u64, limit: usize) -> Vec<u64> {
        let slots = self.slots(after.saturating_add(1), until.saturating_add(1));
        let mut slots: Vec<_> = slots.rev().take(limit).collect();
        slots.reverse();
        slots
    }

    /// The number of slots that are after `after` and not after `until`, at most `most`.
    pub fn count(&self, after: u64, until: u64, most: u64) -> u64 {
        let slots = self.slots(after.saturating_add(1), until.saturating_add(1));
        (0..most).zip(slots).map(|_| 1).sum()
    }

    /// The slots from `begin` on and before `end`, in order.
    fn slots(&self, begin: u64, end: u64) -> Box<dyn DoubleEndedIterator<Item = u64> + '_> {
        match self {
            Self::Cron(cron, zone) => {
                let seconds = |time: u64| time.div_ceil(1000).min(END).cast_signed();
                let (begin, end) = (seconds(begin), seconds(end));
                let stretches = stretches(zone, begin, end).into_iter();
                let slots = stretches.flat_map(move |stretch| stretch.slots(cron, begin, end));
                Box::new(slots.filter_map(|slot| Some(u64::try_from(slot).ok()? * 1000)))
            }
            Self::Every(time) => {
                let time = millis(*time).max(1);
                let numbers = begin.div_ceil(time)..end.div_ceil(time);
                Box::new(numbers.map(move |number| number * time))
            }
        }
    }
}

/// A time without a change of the zone's clocks. Times are in seconds since 1970.
struct Stretch {
    begin: i64,
    end: i64,
    offset: i64,
    /// The offset before.
    before: i64,
}

/// The stretches of the time from `begin` to `end`.
fn stretches(zone: &TimeZone, begin: i64, end: i64) -> Vec<Stretch> {
    let at = |time| Timestamp::from_second(time).unwrap_or(Timestamp::MAX);
    let offset = |time| i64::from(zone.to_offset(at(time)).seconds());
    let second = |change: TimeZoneTransition<'_>| change.timestamp().as_second();
    let current = zone.preceding(at(begin + 1)).next().map_or(begin, second);
    let following = zone.following(at(begin)).map(second).take_while(|begin| *begin < end);
    let begins: Vec<_> = iter::once(current).chain(following).collect();
    let ends = begins.iter().copied().skip(1).chain([end]);
    let stretch = |(&begin, end)| {
        let before = offset(begin - 1);
        Stretch { begin, end, offset: offset(begin), before }
    };
    begins.iter().zip(ends).map(stretch).collect()
}

impl Stretch {
    /// The slots from `begin` on and before `end`.
    fn slots(self, cron: &Cron, begin: i64, end: i64) -> impl DoubleEndedIterator<Item = i64> {
        let Self { offset, before, .. } = self;
        let follows = cron.is_fixed && (-CORRECTION..CORRECTION).contains(&(offset - before));
        // What clocks showed when they were set, and what they were set to.
        let (old, new) = (self.begin + before, self.begin + offset);
        let is_in = (begin..end).contains(&self.begin);
        let is_late = follows && is_in && cron.times(old, new).next().is_some();
        let late = is_late.then_some(self.begin);
        let from = if follows { old.max(new) } else { new } + i64::from(is_late);
        let times = cron.times(from.max(begin + offset), end.min(self.end) + offset);
        late.into_iter().chain(times.map(move |time| time - offset))
    }
}

/// The time zone with this name, or by a rule such as `CET-1CEST,M3.5.0,M10.5.0/3`. The error is
/// part of a sentence.
pub fn zone(name: &str) -> Result<TimeZone, String> {
    find_zone(name).ok_or_else(|| {
        let shown = text::field(name);
        if Path::new(ZONES).join("Etc/UTC").exists() {
            format!("`{shown}` is not a time zone; `ls {ZONES}` shows which there are")
        } else {
            format!("`{shown}` is unknown: {ZONES} has no time zones; install tzdata, or use UTC")
        }
    })
}
