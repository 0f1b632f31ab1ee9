//! Times and durations as people read them.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use jiff::fmt::friendly::{Designator, Spacing, SpanPrinter};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// The system's time zones.
pub const ZONES: &str = "/usr/share/zoneinfo";

/// `YYYY-MM-DD HH:MM:SS` in the local time zone, as the Python plugin writes it.
pub fn local_time(time: Timestamp) -> impl fmt::Display {
    time.to_zoned(zone()).strftime("%Y-%m-%d %H:%M:%S")
}

/// A duration in whole seconds, such as `2m10s`.
pub fn short(duration: Duration) -> String {
    let seconds = SignedDuration::from_secs(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX));
    SpanPrinter::new()
        .designator(Designator::Compact)
        .spacing(Spacing::None)
        .duration_to_string(&seconds)
}

/// The zone that `TZ` names, or else the system's.
pub fn zone() -> TimeZone {
    named_zone().ok().flatten().unwrap_or_else(TimeZone::system)
}

/// The zone that `TZ` names, if it names one; the name, if there is not such a zone.
pub fn named_zone() -> Result<Option<TimeZone>, String> {
    let Some(name) = std::env::var("TZ").ok().filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let name = name.trim_start_matches(':');
    find_zone(name).map(Some).ok_or_else(|| name.to_owned())
}

/// The zone of this name, or of a rule such as `CET-1CEST,M3.5.0,M10.5.0/3`. jiff could look names
/// up itself, but reads the whole directory of zones for it, which takes longer than locking.
pub fn find_zone(name: &str) -> Option<TimeZone> {
    let bytes = std::fs::read(Path::new(ZONES).join(name)).ok().filter(|_| !name.contains(".."));
    let zone = bytes.and_then(|bytes| TimeZone::tzif(name, &bytes).ok());
    zone.or_else(|| TimeZone::posix(name).ok()).or_else(|| (name == "UTC").then_some(TimeZone::UTC))
}
